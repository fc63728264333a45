"""Code snapshots: the code that was submitted is the code that runs.

`GitManager` freezes the code of a project on a branch of its repository, and touches
nothing else there. The job's side is the script ``checkout.py`` beside this file.
"""

from mtf_slurm.git.lock import GitOperationLock
from mtf_slurm.git.manager import GitManager
from mtf_slurm.git.snapshot import Snapshot

__all__ = ["GitManager", "GitOperationLock", "Snapshot"]
