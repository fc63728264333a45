"""Freeze the code, render and submit Slurm jobs, follow them.

Not built yet as a whole: following jobs is to come, and nothing is exported here. What
there is: `mtf_slurm.git`, which freezes the code of a project and proves it where a job
runs, and `mtf_slurm.launcher`, which submits experiments.
"""

__all__ = ["__version__"]

__version__ = "0.0.3"
