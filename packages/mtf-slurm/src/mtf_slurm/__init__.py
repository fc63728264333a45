"""Freeze the code, render and submit Slurm jobs, follow them.

Launching and following are not built yet. What there is: `mtf_slurm.git`, which freezes
the code of a project and proves it where a job runs.
"""

__all__ = ["__version__"]

__version__ = "0.0.2"
