"""Data for example 1."""
