from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtf_trainer._data.schedule import Place, Plan
from mtf_trainer._data.streams import mix
from mtf_trainer.errors import DataError
from mtf_trainer.multi_loader import MultiLoader

KEYS = st.integers(0, 2**64 - 1)
LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=4)
POLICIES = st.one_of(st.sampled_from(["sum", "longest", "shortest"]), st.integers(1, 40))


def names(lengths: list[int]) -> list[str]:
    """Return a name for each loader."""
    return [f"l{i}" for i in range(len(lengths))]


def plan(lengths: list[Any], schedule: Any, epoch_length: Any) -> Plan:
    """Return the plan for loaders of *lengths*."""
    loaders: Any = dict.fromkeys(names(lengths))
    multi = MultiLoader(loaders, schedule=schedule, epoch_length=epoch_length)
    return Plan(multi, lengths)


def sequence(made: Plan, key: int, place: Place | None = None) -> list[int]:
    """Return which loader comes at each step, to the end of the epoch."""
    place, chosen = place or made.start, []
    while place.step < made.total:
        index, place = made.next(place, key)
        chosen.append(index)
    return chosen


@st.composite
def plans(draw: st.DrawFn) -> tuple[Plan, list[int], Any, Any]:
    """Give any plan, with the lengths, schedule and policy it is made of."""
    lengths = draw(LENGTHS)
    known = names(lengths)
    pattern = st.lists(st.sampled_from(known), max_size=5).map(lambda more: known + more)
    weights = st.fixed_dictionaries({n: st.integers(1, 9) for n in known})
    schedule = draw(
        st.one_of(st.sampled_from(["round_robin", "sequential"]), pattern, weights)
    )
    policy = draw(POLICIES)
    if policy == "shortest" and not isinstance(schedule, str):
        policy = "longest"
    return plan(lengths, schedule, policy), lengths, schedule, policy


@settings(deadline=None)
@given(plans(), KEYS)
def test_an_epoch_is_as_long_as_its_policy_says(
    given_plan: tuple[Plan, list[int], Any, Any], key: int
) -> None:
    """Sum reads each once; longest reads each at least once, shortest none twice."""
    made, lengths, schedule, policy = given_plan
    chosen = sequence(made, key)
    counts = Counter(chosen)

    assert len(chosen) == made.total
    if policy == "sum":
        assert [counts[i] for i in range(len(lengths))] == lengths
    elif isinstance(policy, int):
        assert made.total == policy
    elif isinstance(schedule, dict):
        return
    elif policy == "longest":
        assert all(counts[i] >= n for i, n in enumerate(lengths))
    else:
        assert all(counts[i] == min(lengths) for i in range(len(lengths)))


@settings(deadline=None)
@given(plans(), KEYS, st.integers(0, 100))
def test_a_cut_at_any_place_changes_nothing(
    given_plan: tuple[Plan, list[int], Any, Any], key: int, cut: int
) -> None:
    """What follows a place is what the undisturbed sequence has there."""
    made, lengths, schedule, policy = given_plan
    whole = sequence(made, key)
    place = made.start
    for _ in range(min(cut, made.total)):
        _, place = made.next(place, key)

    again = plan(lengths, schedule, policy)

    assert sequence(again, key, Place(*place)) == whole[place.step :]
    assert sum(place.counts) == place.step


@settings(deadline=None)
@given(LENGTHS, POLICIES, KEYS)
def test_round_robin_takes_one_of_each(lengths: list[int], policy: Any, key: int) -> None:
    """In each round, of those that are left."""
    chosen = sequence(plan(lengths, "round_robin", policy), key)

    seen: Counter[int] = Counter()
    for left, right in pairwise(chosen):
        seen[left] += 1
        if policy == "sum":
            following = [*range(left + 1, len(lengths)), *range(left + 1)]
            assert right == next(i for i in following if seen[i] < lengths[i])
        else:
            assert right == (left + 1) % len(lengths)


@settings(deadline=None)
@given(LENGTHS, POLICIES, KEYS)
def test_sequential_reads_one_after_the_other(
    lengths: list[int], policy: Any, key: int
) -> None:
    """A block of each; with a number, from the start again where they end."""
    share = {"longest": max(lengths), "shortest": min(lengths)}
    blocks = [[i] * share.get(policy, n) for i, n in enumerate(lengths)]
    once = [i for block in blocks for i in block]
    chosen = sequence(plan(lengths, "sequential", policy), key)

    assert chosen == (once * 40)[: len(chosen)]
    assert isinstance(policy, int) or len(chosen) == len(once)


def test_a_pattern_makes_bursts() -> None:
    """Again and again in its order; one that is used up is left out."""
    pattern = ["l0", "l0", "l1"]

    assert sequence(plan([3, 3], pattern, 7), 0) == [0, 0, 1, 0, 0, 1, 0]
    assert sequence(plan([3, 3], pattern, "sum"), 0) == [0, 0, 1, 0, 1, 1]
    assert sequence(plan([3, 3], pattern, "longest"), 0) == [0, 0, 1] * 3
    assert sequence(plan([3, 3], pattern, "shortest"), 0) == [0, 0, 1]


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=4), st.integers(0, 2**32))
def test_weights_are_how_often_each_comes(weights: list[int], seed: int) -> None:
    """In 2000 draws each is within 6 standard deviations of its share."""
    lengths = [1] * len(weights)
    schedule = dict(zip(names(lengths), weights, strict=True))
    chosen = Counter(sequence(plan(lengths, schedule, 2000), mix(seed)))

    for index, weight in enumerate(weights):
        share = weight / sum(weights)
        assert abs(chosen[index] - 2000 * share) < 6 * (2000 * share * (1 - share)) ** 0.5


def test_weighted_draws_differ_between_epochs() -> None:
    """Another key gives another sequence, the same key the same."""
    made = plan([5, 5], {"l0": 1, "l1": 1}, 50)

    assert sequence(made, mix(1)) == sequence(made, mix(1)) != sequence(made, mix(2))


def test_weights_say_how_long_an_epoch_is() -> None:
    """As many steps as the loaders need on average, exact in decimals."""
    weights = {"l0": 0.1, "l1": 0.3}

    assert plan([30, 30], weights, "longest").total == 120
    assert plan([30, 30], weights, "shortest").total == 40


def test_a_draw_at_the_edge_takes_the_last_that_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The largest number that can be drawn chooses a loader too."""
    monkeypatch.setattr("mtf_trainer._data.schedule.mix_in", lambda *_: 2**64 - 1)

    made = plan([1, 1, 1], {"l0": 0.1, "l1": 0.2, "l2": 1e-30}, "sum")

    assert sorted(sequence(made, 0)) == [0, 1, 2]


def test_lengths_that_are_not_known() -> None:
    """Enough is a number for the epoch; else the error says what to do."""
    assert plan([None, 3], "round_robin", 5).total == 5
    for schedule, policy in (("round_robin", "sum"), ("sequential", 5)):
        with pytest.raises(DataError, match="nobody knows how many batches loader 'l0'"):
            plan([None, 3], schedule, policy)


def test_an_empty_epoch_is_refused() -> None:
    """A loader without batches, or one too short for a round."""
    with pytest.raises(DataError, match="loader 'l1' has no batches"):
        plan([3, 0], "round_robin", "longest")
    with pytest.raises(DataError, match="an epoch would be empty"):
        plan([1, 3], ["l0", "l0", "l1"], "shortest")
