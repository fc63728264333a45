from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from mtf_slurm.command import Commands, NoAnswerError, NoRoomError, environ
from mtf_slurm.errors import SchedulerCommandError, SchedulerUnreachableError
from mtf_slurm.testing import FakeSlurm


def test_asks_again_while_there_is_no_answer(slurm: FakeSlurm) -> None:
    """A controller that is away for a moment costs time, and nothing else."""
    waits: list[float] = []
    commands = Commands(num_attempts=4, longest_wait_s=3, sleep=waits.append)
    slurm.fail("squeue", times=3)
    assert commands.run(["squeue"]) == ""
    assert waits == [1, 2, 3]
    assert len(slurm.calls("squeue")) == 4


def test_gives_up_in_the_end(slurm: FakeSlurm) -> None:
    """A controller that stays away is an error that says what to ask."""
    commands = Commands(num_attempts=2, sleep=lambda _: None)
    slurm.fail("squeue", times=2)
    with pytest.raises(NoAnswerError, match=r"Unable to contact.*scontrol ping"):
        commands.run(["squeue"])
    assert commands.run(["squeue"]) == ""


def test_a_refusal_is_not_repeated(slurm: FakeSlurm) -> None:
    """What the controller says no to is asked once; its words are kept."""
    slurm.fail("squeue", "error: Access denied", status=7)
    with pytest.raises(SchedulerCommandError, match="exited 7") as caught:
        Commands().run(["squeue"])
    assert caught.value.stderr == "squeue: error: Access denied"
    assert len(slurm.calls()) == 1


POLICY = (
    "Batch job submission failed: Job violates accounting/QOS policy (job submit limit, "
    "user's size and/or time limits)"
)
# As Slurm 22.05.8 writes it where munge's socket is not there.
NO_MUNGE = (
    'error: Munge encode failed: Failed to access "/run/munge/munge.socket.2": No such file or '
    "directory (Did you start munged?)\n"
    "squeue: error: slurm_send_node_msg: auth_g_create: REQUEST_JOB_INFO has authentication "
    "error\n"
    "slurm_load_jobs error: Protocol authentication error"
)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (f"error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: {POLICY}", NoRoomError),
        (f"error: AssocGrpSubmitJobsLimit\nsbatch: error: {POLICY}", NoRoomError),
        (f"error: {POLICY}", NoRoomError),
        ("error: Unable to create job record, try again", NoRoomError),
        ("error: Reached max number of jobs", NoRoomError),
        (
            f"error: QOSMaxWallDurationPerJobLimit\nsbatch: error: {POLICY}",
            SchedulerCommandError,
        ),
        (
            "error: Requested time limit is invalid (missing or exceeds some limit)",
            SchedulerCommandError,
        ),
        ("error: Batch job submission failed: Unspecified error", SchedulerCommandError),
        ("error: Unable to open file /speed-limit/job.sbatch", SchedulerCommandError),
        ("slurm_load_jobs error: Unspecified error", NoAnswerError),
        ("error: Unexpected message received", NoAnswerError),
        (NO_MUNGE, NoAnswerError),
        (
            "error: Controller is in standby mode, try a different controller",
            NoAnswerError,
        ),
        ("error: Socket timed out on send/recv operation", NoAnswerError),
    ],
)
def test_kinds_of_errors_go_by_slurms_own_words(
    slurm: FakeSlurm, said: str, kind: type[Exception]
) -> None:
    """A refusal for good, no room now, and no answer are three; the command says nothing."""
    slurm.fail("squeue", said)
    with pytest.raises((SchedulerCommandError, SchedulerUnreachableError)) as caught:
        Commands().once(["squeue", "--jobs=/speed-limit/QOSMaxSubmit/Socket timed out"])
    assert type(caught.value) is kind


def test_a_command_that_hangs_is_killed(slurm: FakeSlurm) -> None:
    """Waiting has an end, and another attempt is made."""
    slurm.fail("squeue", is_hanging=True)
    commands = Commands(timeout_s=5, num_attempts=2, sleep=lambda _: None)
    assert commands.run(["squeue"]) == ""
    slurm.fail("squeue", is_hanging=True)
    with pytest.raises(NoAnswerError, match=r"no answer: none within 0\.5 s"):
        Commands(timeout_s=0.5).once(["squeue"])


def test_sbatch_that_waits_for_room_is_told_so(
    slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would wait for minutes; what it says of that is no silence."""
    assert slurm.folder.is_dir()
    said = "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying."
    script = tmp_path / "sbatch"
    script.write_text(f"#!/bin/sh\necho '{said}' >&2\nexec sleep 60\n", encoding="utf-8")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(NoRoomError, match=r"no room now: .*unable to accept job"):
        Commands(timeout_s=2).once(["sbatch", "job.sh"])


def test_no_slurm_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no such command, or it is no program, that is said at once."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SchedulerUnreachableError, match="no squeue on PATH"):
        Commands(sleep=lambda _: pytest.fail("waited")).run(["squeue"])
    (tmp_path / "squeue").touch(mode=0o600)
    with pytest.raises(SchedulerUnreachableError, match="cannot be run"):
        Commands().run(["squeue"])


def test_no_configuration(slurm: FakeSlurm) -> None:
    """A Slurm without configuration is not asked again; the fix is named."""
    slurm.fail("squeue", "fatal: Could not establish a configuration source")
    with pytest.raises(SchedulerUnreachableError, match="SLURM_CONF") as caught:
        Commands().run(["squeue"])
    assert not isinstance(caught.value, NoAnswerError)


def test_variables_that_change_commands_are_kept_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No option comes from the environment, and no other job's variables do."""
    monkeypatch.setenv("SQUEUE_FORMAT", "%u")
    monkeypatch.setenv("SBATCH_PARTITION", "other")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    monkeypatch.setenv("MINE", "yes")
    code = "import os; print(*sorted(n for n in os.environ if 'S' in n or n == 'MINE'))"
    shown = Commands().once([sys.executable, "-c", code]).split()
    assert {"MINE", "SLURM_CONF"} <= {*shown}
    assert not {"SQUEUE_FORMAT", "SBATCH_PARTITION", "SLURM_JOB_ID"} & {*shown}
    assert "MINE" in environ()


def test_extra_variables_and_odd_bytes() -> None:
    """What is asked for is set; what is no text is shown, not raised."""
    code = "import os; os.write(1, os.environb[b'X'] + b'\\xff')"
    assert Commands().once([sys.executable, "-c", code], extra={"X": "1"}) == "1\\xff"


@pytest.mark.parametrize(
    "wrong",
    [
        {"timeout_s": 0},
        {"num_attempts": 0},
        {"first_wait_s": -1},
        {"longest_wait_s": -1},
    ],
)
def test_numbers_out_of_range(wrong: dict[str, float]) -> None:
    """A number that means nothing is the caller's bug."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Commands(**wrong)  # type: ignore[arg-type]
