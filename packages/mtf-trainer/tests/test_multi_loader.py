from __future__ import annotations

from typing import Any

import pytest
from torch.utils.data import DataLoader

from mtf_trainer.multi_loader import MultiLoader


def loaders(*names: str) -> Any:
    """Return a loader of 4 batches for each name."""
    data: Any = [1, 2, 3, 4]
    return {name: DataLoader(data) for name in names or ("a", "b")}


def test_defaults() -> None:
    """Each in turn and once, all losses alike, all optimizers."""
    multi = MultiLoader(loaders())

    assert list(multi.loaders) == ["a", "b"]
    assert (multi.schedule, multi.epoch_length) == ("round_robin", "sum")
    assert multi.loss_weights == {"a": 1.0, "b": 1.0}
    assert multi.optimizers is None
    assert multi.validation == "samples"


def test_what_is_given_is_kept_apart_from_what_the_caller_changes_later() -> None:
    """The mappings and lists are copies."""
    given: dict[str, Any] = {
        "schedule": ["a", "a", "b"],
        "loss_weights": {"b": 2},
        "optimizers": {"a": 0, "b": 1},
    }
    multi = MultiLoader(loaders(), **given)
    for value in given.values():
        value.clear()

    assert multi.schedule == ["a", "a", "b"]
    assert multi.loss_weights == {"a": 1.0, "b": 2.0}
    assert multi.optimizers == {"a": 0, "b": 1}
    assert MultiLoader(loaders(), schedule={"a": 3, "b": 1}).schedule == {"a": 3, "b": 1}


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"loaders": [1]}, TypeError, "must be a mapping"),
        ({"loaders": {}}, ValueError, "must not be empty"),
        ({"loaders": {1: None}}, TypeError, "must be a string, not 1"),
        ({"loaders": {"": None}}, TypeError, "must be a string, not ''"),
        ({"schedule": "random"}, ValueError, "'round_robin', 'sequential', a list"),
        ({"schedule": 3}, TypeError, "a name, a list or a mapping"),
        ({"schedule": ["a", "c"]}, ValueError, "names 'c'; the loaders are a, b"),
        ({"schedule": ["a", "a"]}, ValueError, "leaves out b"),
        ({"schedule": []}, ValueError, "leaves out a, b"),
        ({"schedule": {"a": 1}}, ValueError, "leaves out b"),
        ({"schedule": {"a": 1, "b": 0}}, ValueError, "leave the loader out"),
        ({"schedule": {"a": 1, "b": -1}}, ValueError, "at least 0"),
        ({"schedule": {"a": 1, "b": "x"}}, TypeError, "must be a number"),
        ({"epoch_length": "mean"}, ValueError, "'sum', 'longest', 'shortest'"),
        ({"epoch_length": 0}, ValueError, "at least 1"),
        ({"epoch_length": True}, TypeError, "whole number"),
        ({"loss_weights": {"c": 1}}, ValueError, "names 'c'"),
        ({"loss_weights": {"a": float("nan")}}, ValueError, "finite"),
        ({"optimizers": {"a": 0}}, ValueError, "leaves out b"),
        ({"optimizers": {"a": 0, "b": -1}}, ValueError, "at least 0"),
        ({"validation": "mean"}, ValueError, "'samples' or 'loaders' or 'separate'"),
    ],
)
def test_what_makes_no_sense_is_refused(
    options: dict[str, Any], error: type[Exception], told: str
) -> None:
    """At once, and with what would be right."""
    with pytest.raises(error, match=told):
        MultiLoader(**{"loaders": loaders(), **options})
