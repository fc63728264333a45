from __future__ import annotations

from datetime import UTC, datetime

import pytest

from mtf_slurm.follow._jobs import Followed
from mtf_slurm.follow.changes import NOT_LAUNCHED, Seen
from mtf_slurm.query import Row
from mtf_slurm.states import JobState

JOB = Followed(job_id="7", experiment_name="exp")
AT = datetime(2026, 1, 2, tzinfo=UTC)


def row(state: str, *, start_s: float | None = None, reason: str = "") -> Row:
    """Return what Slurm says of a job."""
    return Row(
        job_id="7",
        state=JobState(state),
        folder="",
        has_exit_code=False,
        reason=reason,
        nodes="n1" if start_s else "",
        start_s=start_s,
    )


def seen(state: str, **more: object) -> Seen:
    """Return what is known of a job."""
    return Seen().then(JobState(state), row(state, **more), 0.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("before", "after", "is_back"),
    [
        (seen("pending"), row("running", start_s=9), False),
        (seen("running", start_s=5), row("running", start_s=5), False),
        (seen("running", start_s=5), row("running", start_s=9), True),
        (seen("running", start_s=5), row("running"), False),
        (seen("running", start_s=5), row("pending"), True),
        (seen("node_failed", start_s=5), row("pending"), True),
        (seen("pending"), row("pending", reason="Priority"), False),
        (seen("pending"), row("pending", reason=NOT_LAUNCHED), True),
        (
            seen("pending", reason=NOT_LAUNCHED),
            row("pending", reason=NOT_LAUNCHED),
            False,
        ),
        (seen("running", start_s=5), row("succeeded", start_s=5), False),
        (Seen(), row("pending"), False),
    ],
)
def test_what_has_come_back(before: Seen, after: Row, *, is_back: bool) -> None:
    """It began, ended and waits or runs again, though nobody saw it in between."""
    assert before.is_back(after.state, after) is is_back
    assert before.is_back(after.state, None) is False


def test_what_is_over() -> None:
    """What may come back has to be seen twice; what is unknown is given up after a time."""
    assert seen("succeeded").is_over(0, 10)
    assert not seen("running", start_s=1).is_over(99, 10)
    once = seen("preempted", start_s=1)
    assert not once.is_over(0, 10)
    assert once.then(JobState.PREEMPTED, row("preempted", start_s=1), 1).is_over(1, 10)
    unknown = Seen().then(JobState.UNKNOWN, None, 5)
    assert [unknown.is_over(now_s, 10) for now_s in (14, 15)] == [False, True]
    assert not Seen().is_over(99, 10)


def test_a_change_is_told_in_words() -> None:
    """With the node, and why; of another's job, without a name."""
    before = seen("running", start_s=5)
    after = before.then(JobState.PENDING, row("pending", reason="BeginTime"), 1)
    change = after.change(before, JOB, AT)
    assert str(change).startswith("exp (7) pending: it came back; it may not begin yet")
    failed = seen("failed", start_s=5, reason="OutOfMemory")
    text = str(failed.change(before, Followed(job_id="7"), AT))
    assert (
        text
        == "7 failed on n1: it used more memory than it asked for: ask for more memory"
    )
    assert str(Seen(state=JobState.UNKNOWN).change(Seen(), JOB, AT)) == "exp (7) unknown"


def test_a_status() -> None:
    """The date is one in UTC; what is not known is empty."""
    status = seen("pending", start_s=60, reason="Priority").status(
        JOB, is_stale=True, is_over=False
    )
    assert status.start == datetime(1970, 1, 1, 0, 1, tzinfo=UTC)
    assert (status.why.code, status.node, status.is_stale) == ("Priority", "n1", True)
    empty = Seen().status(JOB, is_stale=False, is_over=False)
    assert (empty.start, str(empty.why), empty.node) == (None, "", "")
