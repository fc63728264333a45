from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mtf_slurm._answers import forget
from mtf_slurm.command import Commands
from mtf_slurm.follow._source import Source
from mtf_slurm.testing import FakeSlurm

COMMANDS = Commands(timeout_s=20, num_attempts=1)
HOUR_S = 3600.0


@pytest.fixture
def job_id(slurm: FakeSlurm, submit: Callable[..., str]) -> str:
    """A job that waits."""
    slurm.configure(is_held=True)
    return submit("a")


def source(folder: Path) -> Source:
    """Return one that asks seldom."""
    return Source([folder], interval_s=HOUR_S, form="text")


def test_what_was_requeued_is_not_as_it_was_said_to_be(
    job_id: str, experiments: Path, slurm: FakeSlurm, submit: Callable[..., str]
) -> None:
    """Of it nothing follows until it is asked for, at its time; of others what was said does."""
    other = submit("b")
    first = source(experiments).ask(COMMANDS, [job_id, other])
    forget(experiments, [job_id], timeout_s=0.0)
    answer = source(experiments).ask(COMMANDS, [job_id, other])
    assert {*answer.rows} == answer.asked == {other}
    assert answer.stamp == first.stamp
    assert len(slurm.calls("squeue")) == 1
    path = experiments / ".slurm" / "follow.json"
    os.utime(path, (0, 0))
    assert source(experiments).ask(COMMANDS, [job_id]).asked == {job_id, other}


def test_a_question_under_way_is_waited_for(
    job_id: str, experiments: Path, slurm: FakeSlurm
) -> None:
    """What it is told may be older than the requeue; but nobody waits for ever."""
    source(experiments).ask(COMMANDS, [job_id])
    with (experiments / ".slurm" / "follow.wanted").open(encoding="ascii") as asks:
        fcntl.flock(asks, fcntl.LOCK_EX)
        forget(experiments, [job_id], timeout_s=0.05)
        waits = threading.Thread(
            target=forget, args=(experiments, [job_id]), kwargs={"timeout_s": 60.0}
        )
        waits.start()
        assert source(experiments).ask(COMMANDS, [job_id]).asked == frozenset()
    waits.join()
    assert source(experiments).ask(COMMANDS, [job_id]).asked == frozenset()
    assert len(slurm.calls("squeue")) == 1


def test_each_folder_tells_what_was_requeued_there(
    job_id: str, experiments: Path, tmp_path: Path
) -> None:
    """Of two that hold one answer, what was left out in either is not believed."""
    other = tmp_path / "other"
    other.mkdir()
    both = Source([experiments, other], interval_s=HOUR_S, form="text")
    both.ask(COMMANDS, [job_id])
    forget(experiments, [job_id], timeout_s=0.0)
    again = Source([experiments, other], interval_s=HOUR_S, form="text")
    assert again.ask(COMMANDS, [job_id]).asked == frozenset()
