from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mtf_gridsearch._progress import Progress, Running, is_settled
from mtf_gridsearch.metrics_file import CurveReader
from mtf_gridsearch.records import Status


def progress(**changes: Any) -> Progress:
    """Return a search of nine in the midst of its work."""
    known: dict[str, Any] = {
        "counts": {Status.SUCCEEDED: 1, Status.FAILED: 1, Status.RUNNING: 1},
        "total": 9,
        "running": {},
        "ended": 2,
        "elapsed_s": 30.0,
        "has_ended": (),
    }
    return Progress(**{**known, **changes})


@pytest.mark.parametrize("status", Status)
def test_what_ended_well_or_was_stopped_is_settled(status: Status) -> None:
    """No run starts those again, whatever is asked."""
    assert is_settled(status) == (status in {"succeeded", "stopped"})


def test_what_starts_again_by_itself_is_not_done() -> None:
    """A preempted or cancelled experiment is still to come; a failed one is not."""
    counts = dict.fromkeys(Status, 1)
    assert progress(counts=counts).num_done == 4


def test_the_time_left_follows_the_pace() -> None:
    """Two in thirty seconds: seven more take as many times fifteen."""
    assert progress().left_s == 105.0
    assert progress(total=2).left_s == 0.0


def test_what_runs_is_left_even_if_it_was_counted_before(tmp_path: Path) -> None:
    """A failed one that runs again takes time, though all were done once."""
    running = Running("job", CurveReader(tmp_path / "m"), None, 0.0)
    assert progress(total=2, running={"a": running}).left_s == 15.0


def test_nothing_is_foreseen_without_a_pace_or_a_total() -> None:
    """Before the first end, or where nobody knows how many come, there is no time left."""
    assert progress(ended=0).left_s is None
    assert progress(total=None).left_s is None
