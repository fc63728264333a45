from __future__ import annotations

from typing import Any

import pytest
import torch

from mtf_trainer._verify.differences import differences

NAN = float("nan")


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        ({"a": 1}, {"a": True}, ["a: 1 and True"]),
        ({"a": [1, (2, 3)]}, {"a": [1, (2, 4)]}, ["a.1.1: 3 and 4"]),
        ({"a": [1, 2]}, {"a": [1]}, ["a: 2 items and 1 items"]),
        ({"a": {"b": 0.0}}, {"a": {"b": -0.0}}, ["a.b: 0.0 and -0.0"]),
        ({"a": 1}, {"b": 1}, ["a: only in the first", "b: only in the second"]),
        (
            {"a": "x\x1b" * 50},
            {"a": ""},
            ["a: " + repr("x\x1b" * 50)[:30] + "... and ''"],
        ),
        (
            {"w": torch.zeros(2, 3)},
            {"w": torch.zeros(6)},
            ["w: float32 (2, 3) and float32 (6,)"],
        ),
        ({"w": torch.zeros(1)}, {"w": 0.0}, ["w: float32 (1,) and 0.0"]),
        (
            {"w": torch.tensor([1.0, 2.0, 3.0])},
            {"w": torch.tensor([1.0, 2.5, 2.9])},
            ["w: 2 of 3 numbers, by up to 0.5"],
        ),
        (
            {"w": torch.tensor([1j, 0])},
            {"w": torch.tensor([0, 0j])},
            ["w: 1 of 2 numbers, by up to 1"],
        ),
        (
            {"w": torch.tensor(0.0)},
            {"w": torch.tensor(-0.0)},
            ["w: 1 of 1 numbers, by up to 0"],
        ),
        (
            {"w": torch.zeros(2).bool()},
            {"w": torch.ones(2).bool()},
            ["w: 2 of 2 numbers, by up to 1"],
        ),
    ],
)
def test_difference_is_told(one: Any, other: Any, told: list[str]) -> None:
    """Of each kind of value, what differs is named with its place and by how much."""
    assert differences(one, other) == told


def test_equal_contents_have_none() -> None:
    """NaN is equal to itself, a tuple to a list, and time and certificate are left out."""
    one = {"a": (1, NAN), "w": torch.tensor(NAN), "resume": {"timestamp": 1}}
    other = {"a": [1, NAN], "w": torch.tensor(NAN), "resume": {"timestamp": 2}}

    assert differences(one | {"certificate": 1}, other | {"certificate": 2}) == []


def test_only_the_first_are_told() -> None:
    """Of a hundred differing entries a few are named, and that there are more."""
    told = differences(dict.fromkeys("abcdefgh", 1), dict.fromkeys("abcdefgh", 2), most=2)

    assert told == ["a: 1 and 2", "b: 1 and 2", "and more"]
