"""Run experiments as Kubernetes jobs.

Not built yet: this release reserves the name and holds nothing but its version.
"""

__all__ = ["__version__"]

__version__ = "0.0.1"
