from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtf_slurm.after import Kept, checked, levels, resolved
from mtf_slurm.errors import SubmissionError
from mtf_slurm.states import JobState

NAMES = [f"e{i}" for i in range(8)]
# Each may wait for those with lower numbers, so no two wait for each other.
graphs = st.dictionaries(
    st.integers(1, 7), st.sets(st.integers(0, 6), max_size=3), max_size=7
).map(
    lambda found: {
        f"e{i}": {f"e{o}": "afterok" for o in others if o < i}
        for i, others in found.items()
    }
)


@given(graphs, st.permutations(NAMES))
def test_nobody_comes_before_those_it_waits_for(after: Any, names: list[str]) -> None:
    """Each part waits for earlier ones alone, and all names come once, in their order."""
    parts = levels(names, checked(after, names))
    place = {name: at for at, part in enumerate(parts) for name in part}
    assert sorted(place) == NAMES
    assert all(place[o] < place[name] for name, others in after.items() for o in others)
    assert all(part == sorted(part, key=names.index) for part in parts)


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (
            {"a": {"b": "afterok"}, "b": {"c": "afterany"}, "c": {"a": "afterok"}},
            "wait for each other: (a -> b -> c -> a|b -> c -> a -> b|c -> a -> b -> c)",
        ),
        ({"a": {"a": "afterok"}}, "wait for each other: a -> a"),
        ({"a": {"b": "after"}}, "a waits for b with 'after': one of afterany, after"),
        ({"x": {"b": "afterok"}}, "x: in `after`, and not in the batch"),
    ],
)
def test_what_is_no_order(after: Any, said: str) -> None:
    """A cycle is named as it is; so is a word or a name that is none."""
    with pytest.raises(ValueError, match=said):
        checked(after, ["a", "b", "c"])


@pytest.mark.parametrize(
    ("kind", "state", "expected"),
    [
        ("afterok", JobState.PENDING, ("afterok:5",)),
        ("afterany", JobState.RUNNING, ("afterany:5",)),
        ("afternotok", JobState.UNKNOWN, ("afternotok:5",)),
        ("afterok", JobState.SUCCEEDED, ()),
        ("afterany", JobState.FAILED, ()),
        ("afternotok", JobState.TIMEOUT, ()),
    ],
)
def test_what_came_true_is_left_out(
    kind: str, state: JobState, expected: tuple[str, ...]
) -> None:
    """Slurm is told of jobs that have not ended; it forgets those that have."""
    assert resolved("a", {"b": kind}, {"b": Kept("5", state)}, {}) == expected


@pytest.mark.parametrize(
    ("kind", "kept", "refused", "said"),
    [
        ("afterok", Kept("5", JobState.FAILED), {}, r"has failed: job 5; submit b again"),
        ("afternotok", Kept("5", JobState.SUCCEEDED), {}, "has succeeded: job 5$"),
        ("afterok", Kept("5.1", JobState.RUNNING), {}, "shares a task with others"),
        ("afterok", None, {}, "b, which has no job here"),
        ("afterok", None, {"b": "bad"}, "b, which was not submitted: bad"),
    ],
)
def test_what_cannot_come_true(
    kind: str, kept: Kept | None, refused: dict[str, str], said: str
) -> None:
    """It is refused with the reason, and not left to wait for ever."""
    with pytest.raises(SubmissionError, match=said):
        resolved("a", {"b": kind}, {"b": kept} if kept else {}, refused)
