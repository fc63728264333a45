from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

import pytest

from mtf_gridsearch.early_stopping import (
    EarlyStopping,
    MedianRule,
    Mode,
    SuccessiveHalving,
)
from mtf_gridsearch.records import Curve


def curve(*values: float, metric: str = "loss") -> Mapping[str, Curve]:
    """Return curves with one metric, from step 1."""
    return {metric: list(enumerate(values, 1))}


@pytest.mark.parametrize("mode", ["min", "max"])
def test_halving_keeps_one_in_factor_at_each_step(mode: Mode) -> None:
    """Of those that come in the order of their rank, only the best third goes on."""
    rule = SuccessiveHalving("loss", mode, min_step=1, factor=3)
    sign = 1 if mode == "min" else -1
    reasons = [rule.observe(f"e{n}", curve(sign * float(n))) for n in range(9)]
    assert [reason is None for reason in reasons] == [n == 0 for n in range(9)]
    assert rule.observe("late", curve(sign * 0.5)) is None


def test_halving_asks_more_where_more_remain() -> None:
    """A later step has its own values: a late bloomer passes where few have come."""
    rule = SuccessiveHalving("loss", "min", min_step=1, factor=2)
    assert rule.observe("a", curve(0.1, 0.9)) is None
    assert rule.observe("b", curve(0.2)) is not None
    assert rule.observe("c", curve(0.05, 0.5)) is None
    assert rule.observe("a", curve(0.1, 0.9, 0.9, 0.8)) is None  # the first at step 4
    assert rule.observe("d", curve(0.01, 0.6, 0.6, 0.9)) is not None


def test_halving_judges_a_step_once() -> None:
    """Who passed a step is not stopped there later, however good the others are."""
    rule = SuccessiveHalving("loss", "min", min_step=2, factor=2)
    assert rule.observe("a", curve(0.5, 0.5)) is None
    assert rule.observe("b", curve(0.1, 0.1)) is None
    assert rule.observe("a", curve(0.5, 0.5, 0.5)) is None
    assert rule.observe("a", {}) is None


def test_halving_takes_the_first_value_at_or_after_a_step() -> None:
    """Where steps are skipped, the value that follows counts."""
    rule = SuccessiveHalving("loss", "min", min_step=10, factor=2)
    assert rule.observe("a", {"loss": [(9, 0.1), (12, 0.5)]}) is None
    assert rule.observe("b", {"loss": [(7, 0.9), (11, 0.4)]}) is None
    assert rule.observe("c", {"loss": [(10, 0.45)]}) is None
    assert rule.observe("d", {"loss": [(10, 0.6)]}) is not None


@pytest.mark.parametrize("worst", [math.nan, math.inf, -math.inf])
def test_halving_stops_what_diverged(worst: float) -> None:
    """A value that is no finite number is worse than any other, in either mode."""
    modes: tuple[Mode, ...] = ("min", "max")
    for mode in modes:
        rule = SuccessiveHalving("loss", mode, min_step=1, factor=2)
        assert rule.observe("a", curve(1e9)) is None
        reason = rule.observe("b", curve(worst))
        assert reason == f"loss {worst:.6g} at step 1 is not among the best 1 of 2"


def test_halving_learns_from_what_has_ended() -> None:
    """An executor that goes on shows what ended, which counts at each step it reached."""
    rule = SuccessiveHalving("loss", "min", min_step=1, factor=2)
    rule.tell("a", curve(0.1), completed=True)
    rule.tell("b", curve(0.3), completed=False)
    rule.tell("b", curve(0.3), completed=False)
    assert rule.observe("c", curve(0.2)) is None  # among the best 2 of 3
    assert rule.observe("d", curve(0.25)) is not None


def test_halving_forgets_what_a_failed_attempt_had_reported() -> None:
    """Shown a curve without it, the rule judges by nothing of it, and the next one anew."""
    rule = SuccessiveHalving("loss", "min", min_step=1, factor=2)
    rule.tell("flaky", curve(0.1, 0.1, 0.1, 0.1), completed=False)
    assert rule.observe("a", curve(0.5)) is not None
    assert rule.observe("flaky", {}) is None
    assert rule.observe("b", curve(0.4)) is None
    assert rule.observe("flaky", curve(9.0)) is not None
    other = SuccessiveHalving("loss", "min", min_step=1, factor=2)
    for values in ((0.1, 0.1), (0.1, 0.3), (0.1, 0.3)):
        assert other.observe("again", curve(*values)) is None
    assert other.observe("c", curve(0.1, 0.2)) is None


def test_halving_saves_most_of_the_work_and_keeps_the_best() -> None:
    """Of 81 curves that never cross, the best ends whole, and most end early."""
    order = random.Random(0).sample(range(81), 81)  # noqa: S311
    rule = SuccessiveHalving("loss", "min", min_step=1, factor=3)
    work = {}
    for number in order:
        steps = next(
            (s for s in range(1, 82) if rule.observe(str(number), curve(*[number] * s))),
            81,
        )
        work[number] = steps
    assert work[0] == 81
    assert sum(work.values()) < 81 * 81 / 4


def test_the_median_rule_compares_with_means_of_those_that_succeeded() -> None:
    """The best so far is held against the median of mean values up to that step."""
    rule = MedianRule("acc", "max", min_experiments=3)
    for name, values in (("a", (0.2, 0.4)), ("b", (0.4, 0.6)), ("c", (0.6, 0.8))):
        rule.tell(name, curve(*values, metric="acc"), completed=True)
    assert rule.observe("d", curve(0.4, metric="acc")) is None  # as good as the median
    assert rule.observe("d", curve(0.4, 0.49, metric="acc")) == (
        "best acc 0.49 up to step 2 is worse than the median 0.5 of 3"
    )
    assert rule.observe("d", curve(0.4, 0.5, 0.1, 0.1, metric="acc")) is None


def test_the_median_rule_waits() -> None:
    """Nothing is stopped before min_step, nor before enough have succeeded that far."""
    rule = MedianRule("loss", "min", min_step=2, min_experiments=2)
    bad = curve(9.0, 9.0)
    rule.tell("a", curve(0.1, 0.1), completed=True)
    rule.tell("failed", curve(0.1, 0.1), completed=False)
    rule.tell("silent", {}, completed=True)
    assert rule.observe("x", bad) is None
    rule.tell("late", {"loss": [(5, 0.1)]}, completed=True)
    assert rule.observe("x", bad) is None  # at step 2 there is but one
    rule.tell("b", curve(0.2, 0.2), completed=True)
    assert rule.observe("x", curve(9.0)) is None
    assert rule.observe("x", bad) is not None
    assert rule.observe("x", {}) is None


@pytest.mark.parametrize("kind", [SuccessiveHalving, MedianRule])
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"metric": ""}, "metric"),
        ({"metric": 3}, "metric"),
        ({"mode": "least"}, "mode"),
        ({"min_step": 0}, "step"),
    ],
)
def test_bad_arguments_are_refused(kind: Any, changes: dict[str, Any], said: str) -> None:
    """A rule that could not decide is not made."""
    arguments = {"metric": "loss", "mode": "min", "min_step": 1, **changes}
    with pytest.raises(ValueError, match=said):
        kind(**arguments)


def test_a_rule_needs_someone_to_compare_with() -> None:
    """A factor of one stops nobody, and a median of none is none."""
    with pytest.raises(ValueError, match="factor"):
        SuccessiveHalving("loss", "min", min_step=1, factor=1)
    with pytest.raises(ValueError, match="min_experiments"):
        MedianRule("loss", "min", min_experiments=0)


def test_both_fit_the_protocol() -> None:
    """An executor takes either."""
    rules: list[EarlyStopping] = [
        SuccessiveHalving("loss", "min", min_step=1),
        MedianRule("loss", "min"),
    ]
    assert [rule.observe("a", {}) for rule in rules] == [None, None]
