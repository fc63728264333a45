"""What ends or mends a run from outside its steps: signals, limits, hangs, divergence."""
