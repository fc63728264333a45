from __future__ import annotations

from collections.abc import Callable

import pytest

from mtf_slurm.command import Commands
from mtf_slurm.errors import SchedulerCommandError
from mtf_slurm.testing import FakeSlurm

COMMANDS = Commands(timeout_s=20, num_attempts=1)
WaitFor = Callable[[Callable[[], object]], None]
State = Callable[[str], str]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["sbatch", "--nope", "x"], "unrecognized option"),
        (["sbatch", "--nodes"], "requires an argument"),
        (["sbatch"], "Batch script missing"),
        (["sbatch", "none"], "Unable to open"),
        (["sbatch", "slurm/lock"], "does not look like a batch script"),
        (["sbatch", "--array=x", "slurm/bin/srun"], "Invalid job array"),
        (["sbatch", "--array=0-2000", "slurm/bin/srun"], "Invalid job array"),
        (["squeue", "--jobs=9"], "Invalid job id"),
        (["scancel", "9"], "Invalid job id"),
        (["scontrol", "requeue", "9"], "Invalid job id"),
        (["scontrol", "reconfigure"], "invalid keyword"),
    ],
)
def test_what_is_refused(argv: list[str], said: str, slurm: FakeSlurm) -> None:
    """As Slurm refuses, in its words."""
    slurm.configure(is_held=True)
    with pytest.raises(SchedulerCommandError, match=said):
        COMMANDS.once(argv, cwd=str(slurm.folder.parent))


def test_some_tasks_of_an_array_are_cancelled(
    sbatch: Callable[..., str], slurm: FakeSlurm
) -> None:
    """Ranges and lists of indices mean these tasks; what never began leaves no trace."""
    slurm.configure(is_held=True)
    job = sbatch("true", "--array=0-5")
    assert COMMANDS.run(["scancel", f"{job}_[0-2,5]", f"{job}_3"]) == ""
    assert list(slurm.tasks()) == [f"{job}_4"]


def test_all_tasks_of_an_array_are_cancelled(
    sbatch: Callable[..., str], slurm: FakeSlurm
) -> None:
    """An array that never began is shown as cancelled, however its tasks are named."""
    slurm.configure(is_held=True)
    job = sbatch("true", "--array=0-2")
    COMMANDS.run(["scancel", f"{job}_[0-2]"])
    assert {task["state"] for task in slurm.tasks().values()} == {"CANCELLED"}


def test_what_can_be_requeued_is(
    sbatch: Callable[..., str], slurm: FakeSlurm, wait_for: WaitFor
) -> None:
    """Of the others it is told why they are not, with a status that is not 0."""
    ended = sbatch("exit 1")
    wait_for(lambda: slurm.tasks()[ended]["state"] == "FAILED")
    slurm.configure(is_held=True)
    waits = sbatch("true")
    said = f"pending execution for job {waits}; Invalid job id specified for job 99"
    with pytest.raises(SchedulerCommandError, match=said):
        COMMANDS.run(["scontrol", "requeue", f"{waits},99,{ended}"])
    assert slurm.tasks()[ended]["state"] == "PENDING"


def test_nodes_that_are_down(slurm: FakeSlurm) -> None:
    """They are told from those that are not, by names or lists of them."""
    slurm.configure(down_nodes=["n2"])
    said = COMMANDS.run(["scontrol", "--oneliner", "show", "node", "n[1-2],m"])
    assert [line.split()[:2] for line in said.splitlines()] == [
        ["NodeName=n1", "State=IDLE"],
        ["NodeName=n2", "State=DOWN+NOT_RESPONDING"],
        ["NodeName=m", "State=IDLE"],
    ]


def test_the_configuration(slurm: FakeSlurm) -> None:
    """It says what was set."""
    slurm.configure(max_array_size=7, scheduler_parameters="max_array_tasks=5")
    said = COMMANDS.run(["scontrol", "show", "config"])
    assert "MaxArraySize            = 7\n" in said
    assert "= max_array_tasks=5\n" in said
