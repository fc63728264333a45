from __future__ import annotations

import pytest

from mtf_slurm.states import JobState, from_exit_status, from_slurm


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("PENDING", JobState.PENDING),
        ("CONFIGURING", JobState.PENDING),
        ("RUNNING", JobState.RUNNING),
        ("COMPLETING", JobState.RUNNING),
        ("COMPLETED", JobState.SUCCEEDED),
        ("completed ", JobState.SUCCEEDED),
        ("FAILED", JobState.FAILED),
        ("OUT_OF_MEMORY", JobState.FAILED),
        ("OUT_OF_ME+", JobState.UNKNOWN),
        ("CANCELLED by 0", JobState.CANCELLED),
        ("CANCELLED+", JobState.CANCELLED),
        ("PREEMPTED", JobState.PREEMPTED),
        ("TIMEOUT", JobState.TIMEOUT),
        ("NODE_FAIL", JobState.NODE_FAILED),
        ("", JobState.UNKNOWN),
        ("SOMETHING_NEW", JobState.UNKNOWN),
    ],
)
def test_each_word_of_slurm_has_one_of_ours(text: str, state: JobState) -> None:
    """What is not known is unknown, never failed."""
    assert from_slurm(text) is state


def test_an_exit_status_that_asks_to_be_continued() -> None:
    """75 is no failure, but only as a status, and only of what failed."""
    assert from_slurm("FAILED", "75:0") is JobState.PREEMPTED
    assert from_slurm("FAILED", "0:75") is JobState.FAILED
    assert from_slurm("TIMEOUT", "75:0") is JobState.TIMEOUT
    assert [from_exit_status(n) for n in (0, 75, 1)] == [
        JobState.SUCCEEDED,
        JobState.PREEMPTED,
        JobState.FAILED,
    ]


def test_what_is_final() -> None:
    """Waiting ends with these, and with no other."""
    open_states = {state for state in JobState if not state.is_final}
    assert open_states == {JobState.PENDING, JobState.RUNNING, JobState.UNKNOWN}
