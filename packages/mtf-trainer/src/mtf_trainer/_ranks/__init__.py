"""Several processes: what they agree on, tell each other, and exchange gradients by."""
