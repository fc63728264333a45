"""Writing checkpoints and reading them: files, digests, retention, encryption, back-up."""
