from __future__ import annotations

from collections.abc import Callable

import pytest

from mtf_slurm.command import Commands
from mtf_slurm.errors import SchedulerCommandError, SchedulerUnreachableError
from mtf_slurm.testing import FakeSlurm

COMMANDS = Commands(timeout_s=20, num_attempts=1)
WaitFor = Callable[[Callable[[], object]], None]
State = Callable[[str], str]


def test_faults_happen_once_and_in_order(slurm: FakeSlurm) -> None:
    """A command fails as often as it was told to, before or after it did its work."""
    slurm.fail("scontrol", "error: one", times=2)
    slurm.fail("scontrol", "", status=0, stdout="odd\n", is_after=True)
    for _ in range(2):
        with pytest.raises(SchedulerCommandError, match="one"):
            COMMANDS.once(["scontrol", "ping"])
    assert COMMANDS.once(["scontrol", "ping"]) == "odd\n"
    assert "UP" in COMMANDS.once(["scontrol", "ping"])


def test_a_command_that_hangs(slurm: FakeSlurm) -> None:
    """It gives no answer until it is killed."""
    slurm.fail("squeue", is_hanging=True)
    with pytest.raises(SchedulerUnreachableError, match="none within"):
        Commands(timeout_s=0.5, num_attempts=1).once(["squeue"])


def test_calls_are_written_down(slurm: FakeSlurm) -> None:
    """What was run, with its arguments, in order."""
    COMMANDS.once(["squeue", "--me"])
    COMMANDS.once(["scontrol", "ping"])
    assert slurm.calls() == [["squeue", "--me"], ["scontrol", "ping"]]
    assert slurm.calls("squeue") == [["squeue", "--me"]]
