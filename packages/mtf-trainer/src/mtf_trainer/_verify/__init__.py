"""What ``python -m mtf_trainer`` does: chains of certificates, replays, reports."""
