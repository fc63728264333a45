"""A real Slurm cluster on this machine: `cluster.py` is what people and tests use."""
