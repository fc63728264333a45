from __future__ import annotations

from typing import Any

import pytest

from mtf_gridsearch._sections import bayesian_search, early_stopping, rule_to_plain
from mtf_gridsearch.early_stopping import MedianRule, SuccessiveHalving
from mtf_gridsearch.errors import GridError
from mtf_gridsearch.grid import ParameterGrid

BASE = {"experiment_name": "digits", "lr": 0.1}
GRID = ParameterGrid("g").add_parameter("lr", [0.1, 0.2])


def test_rules_are_made() -> None:
    """Both kinds, with their options; nothing where there is nothing."""
    assert early_stopping(None, "here") is None
    options = {"metric": "loss", "mode": "max", "min_step": 2}
    halving = early_stopping(
        {"rule": "successive_halving", "factor": 2, **options}, "here"
    )
    assert isinstance(halving, SuccessiveHalving)
    assert (halving.metric, halving.mode, halving.min_step) == ("loss", "max", 2)
    median = early_stopping({"rule": "median", "metric": "a", "mode": "min"}, "here")
    assert isinstance(median, MedianRule)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (3, "write a mapping"),
        ({"rule": "mean"}, "one of successive_halving, median, not 'mean'"),
        ({"rule": "median", "metrc": "a"}, "did you mean 'metric'"),
        ({"rule": "median", "metric": "a", "mode": "low"}, "mode must be"),
        ({"rule": "median", "metric": "a"}, "missing .* 'mode'"),
        (
            {"rule": "median", "metric": "a", "mode": "min", "min_step": "3"},
            "a whole number, not '3'",
        ),
        ({"rule": "median", "metric": 3, "mode": "min"}, "metric is text, not 3"),
        ({"rule": "median", "metric": "a", "mode": ["min"]}, "mode is text"),
        ({"rule": ["median"]}, r"one of successive_halving, median, not \['median'\]"),
    ],
)
def test_what_is_no_rule(values: Any, reason: str) -> None:
    """The error names the place and what would be right."""
    with pytest.raises(GridError, match=f"^here: .*{reason}"):
        early_stopping(values, "here")


def test_a_bayesian_search_is_made() -> None:
    """With its options; wrong ones are told with their place."""
    pytest.importorskip("optuna")
    options: dict[str, Any] = {"metric": "loss", "mode": "min", "num_trials": 3}

    def made(**more: Any) -> Any:
        values = {**options, **more}
        return bayesian_search(values, "here", BASE, GRID, name=None, only=None)

    assert (made(seed=3).total, made().name) == (3, "digits")
    for more, reason in (
        ({"num_trial": 1}, "did you mean 'num_trials'"),
        ({"sampler": "best"}, "best"),
        ({"num_trials": 0}, "num_trials must be at least 1"),
        ({"num_trials": 2.5}, "whole number"),
        ({"metric": 3}, "metric is text, not 3: quote it"),
        ({"at": None}, "at is text"),
        ({"in_order": "no"}, "in_order is true or false, not 'no'"),
        ({"sampler": 3}, "3"),
    ):
        with pytest.raises(GridError, match=f"^here: .*{reason}"):
            made(**more)


def test_a_rule_is_written_as_it_is_read() -> None:
    """Both kinds come back equal; a rule of the user's own is not written."""

    class Own(MedianRule):
        pass

    halving = SuccessiveHalving("loss", "max", min_step=4, factor=2)
    for rule in (halving, MedianRule("a", "min", min_step=2, min_experiments=3)):
        plain = rule_to_plain(rule)
        back = early_stopping(plain, "here")
        assert type(back) is type(rule)
        assert vars(back) == vars(rule)
    assert rule_to_plain(Own("a", "min")) is None
