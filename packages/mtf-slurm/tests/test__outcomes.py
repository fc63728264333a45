from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mtf_slurm import arrays
from mtf_slurm._outcomes import Outcomes, task_of
from mtf_slurm.arrays import Job, Planned, Work
from mtf_slurm.command import Commands
from mtf_slurm.settings import SlurmSettings
from mtf_slurm.testing import FakeSlurm

COMMANDS = Commands(timeout_s=20, num_attempts=1)


@pytest.fixture
def make_job(tmp_path: Path) -> Callable[..., Job]:
    """Make a submission of these tasks, which became that job."""

    def make(*tasks: tuple[str, ...], base: str) -> Job:
        job = arrays.new_job(tmp_path, 1)
        planned = Planned(Work(SlurmSettings(), None), tasks)
        arrays.write_files(job, planned, "", "#!/bin/bash\n")
        job.claim(base)
        for name in planned.names:
            (tmp_path / name).mkdir()
        return job

    return make


def test_a_failure_is_told_from_a_wish_to_be_continued(
    make_job: Callable[..., Job], slurm: FakeSlurm, tmp_path: Path
) -> None:
    """The controller says no exit status; the experiment's file does."""
    job = make_job(("a",), ("b",), ("c",), base="7")
    for name, index, status in (("a", 0, "75"), ("b", 1, "3"), ("c", 2, "rubbish")):
        (tmp_path / name / f"7_{index}.exit").write_text(status, encoding="ascii")
    reply = "".join(
        f"7_{i}|FAILED|NonZeroExitCode|n1|N/A|{job.folder}\n" for i in range(3)
    )
    slurm.fail("squeue", "", status=0, stdout=reply)
    outcomes = Outcomes(COMMANDS, ["7_0", "7_1", "7_2"], [])
    states = [outcomes.state(f"7_{i}") for i in range(3)]
    assert states == ["preempted", "failed", "failed"]


def test_one_of_several_in_a_task(
    make_job: Callable[..., Job], slurm: FakeSlurm, tmp_path: Path
) -> None:
    """What has an end is known; what has none is as the task, unless that cannot be."""
    job = make_job(("a", "b"), base="7")
    (tmp_path / "a" / "7.0.exit").write_text("0\n", encoding="ascii")
    for word, second in (("RUNNING", "running"), ("COMPLETED", "unknown")):
        slurm.fail("squeue", "", status=0, stdout=f"7|{word}|None||N/A|{job.folder}\n")
        outcomes = Outcomes(COMMANDS, ["7.0", "7.1"], [])
        assert [outcomes.state(i) for i in ("7.0", "7.1")] == ["succeeded", second]
        assert outcomes.sharing("7.0") == ["7.0", "7.1"]


def test_jobs_of_others(slurm: FakeSlurm, tmp_path: Path) -> None:
    """A job that is not of this package has Slurm's state, and shares nothing."""
    slurm.fail("squeue", "", status=0, stdout=f"7|FAILED|None||N/A|{tmp_path}\n")
    outcomes = Outcomes(COMMANDS, ["7", "../x"], [tmp_path])
    assert [outcomes.state(i) for i in ("7", "../x", "8")] == [
        "failed",
        "unknown",
        "unknown",
    ]
    assert [outcomes.sharing(i) for i in ("7", "../x")] == [["7"], ["../x"]]


def test_the_id_that_slurm_knows() -> None:
    """A place in a task is this package's own."""
    assert [task_of(i) for i in ("7", "7_1", "7_1.2")] == ["7", "7_1", "7_1"]
