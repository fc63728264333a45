from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mtf_slurm.command import Commands
from mtf_slurm.testing import FakeSlurm

COMMANDS = Commands(timeout_s=20, num_attempts=1)
WaitFor = Callable[[Callable[[], object]], None]
State = Callable[[str], str]


def test_places_are_kept(
    sbatch: Callable[..., str],
    slurm: FakeSlurm,
    state: State,
    tmp_path: Path,
    wait_for: WaitFor,
) -> None:
    """No more run than there are slots, and than the array's limit."""
    slurm.configure(num_slots=3)
    wait = "until [ -e go ]; do sleep 0.02; done"
    many = sbatch(wait, "--array=0-3%2")
    other = sbatch(wait, "--array=0-3")
    words = [state(f"{job}_{i}") for job in (many, other) for i in range(4)]
    assert words.count("RUNNING") == 3
    assert words[:4].count("RUNNING") == 2
    (tmp_path / "go").touch()
    wait_for(lambda: {t["state"] for t in slurm.tasks().values()} == {"COMPLETED"})


def test_dependencies(
    sbatch: Callable[..., str], slurm: FakeSlurm, state: State, wait_for: WaitFor
) -> None:
    """They wait, run, or are cancelled when they never can."""
    slurm.configure(is_held=True)
    bad = sbatch("exit 1")
    after = sbatch("true", f"--dependency=afterany:{bad}")
    never = sbatch("true", f"--dependency=afterok:{bad}", "--kill-on-invalid-dep=yes")
    reason = sbatch("true", f"--dependency=afternotok:{after}")
    slurm.configure(is_held=False)
    wait_for(lambda: state(after) == "COMPLETED")
    assert (state(bad), state(never)) == ("FAILED", "CANCELLED")
    assert slurm.tasks()[reason]["reason"] == "Dependency"


def test_tasks_wait_for_tasks(
    sbatch: Callable[..., str], slurm: FakeSlurm, state: State, wait_for: WaitFor
) -> None:
    """With `aftercorr` each task of an array waits for that of the same index."""
    slurm.configure(is_held=True)
    first = sbatch("exit $SLURM_ARRAY_TASK_ID", "--array=0-1")
    options = (f"--dependency=aftercorr:{first}", "--kill-on-invalid-dep=yes")
    second = sbatch("true", "--array=0-1", *options)
    slurm.configure(is_held=False)
    wait_for(lambda: state(f"{second}_1") == "CANCELLED")
    wait_for(lambda: state(f"{second}_0") == "COMPLETED")
