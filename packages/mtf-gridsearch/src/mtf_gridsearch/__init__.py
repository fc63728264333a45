"""Enumerate, name, run and aggregate hyperparameter searches.

Not built yet: this release reserves the name and holds nothing but its version.
"""

__all__ = ["__version__"]

__version__ = "0.0.1"
