"""The state machine of a training, what it stands on, and what keeps its state."""
