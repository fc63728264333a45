from __future__ import annotations

import mtf_slurm.git


def test_public_names() -> None:
    """What the package promises is there, and sorted."""
    assert mtf_slurm.git.__all__ == ["GitManager", "GitOperationLock", "Snapshot"]
    assert all(hasattr(mtf_slurm.git, name) for name in mtf_slurm.git.__all__)
