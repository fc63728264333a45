from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mtf_trainer import CheckpointMismatchError
from mtf_trainer._loop.match import check_groups, check_like, check_tensors

PLACE = Path("x.ckpt")


def test_tensors_have_names_and_shapes() -> None:
    """One that lacks, is too many, or of another shape is named; types may differ."""
    own: dict[str, Any] = {"w": torch.ones(2, 3), "extra": "state"}
    check_tensors(PLACE, "model", {"w": torch.ones(2, 3).double(), "extra": 3}, own)

    for saved, told in (
        ({"extra": 1}, r"model\.w: is missing in the checkpoint"),
        ({**own, "b": 1}, r"model\.b: is not in the model"),
        (
            {**own, "w": torch.ones(3, 2)},
            r"model\.w: has shape \(3, 2\), the model needs",
        ),
    ):
        with pytest.raises(CheckpointMismatchError, match=told):
            check_tensors(PLACE, "model", saved, own)


def test_groups_are_as_many_and_as_large() -> None:
    """What they are set to is taken over, if it is of the kind that is wanted."""
    own = {"param_groups": [{"params": [0, 1], "lr": 0.1}]}
    check_groups(PLACE, 0, {"param_groups": [{"params": [4, 5], "lr": 0.2}]}, own)

    for groups, told in (
        ([], r"optimizers\.0\.param_groups: the checkpoint has 0, this run 1"),
        ([{"params": [0], "lr": 0.1}], r"param_groups\.0: the checkpoint has 1 param"),
        ([{"params": [0, 1], "lr": "x"}], r"param_groups\.0\.lr: is of kind text, and"),
        ([{"params": [0, 1]}], r"param_groups\.0\.lr: is missing"),
    ):
        with pytest.raises(CheckpointMismatchError, match=told):
            check_groups(PLACE, 0, {"param_groups": groups}, own)


@pytest.mark.parametrize(
    ("saved", "own", "told"),
    [
        ({"a": torch.ones(())}, {"a": 1.0}, None),
        ({"a": 2}, {"a": 1.0}, None),
        ({"a": [1]}, {"a": (1, 2)}, None),
        ({"a": "x"}, {"a": None}, None),
        ({"a": None}, {"a": True}, None),
        ({"a": 1, "new": 2}, {"a": 1}, None),
        ({}, {"_own": 1}, None),
        ({}, {"a": 1}, "a: is missing"),
        ({"a": None}, {"a": 1}, "a: is of kind none, and must be number"),
        ({"a": True}, {"a": 1}, "a: is of kind true or false, and must be number"),
        ({"_own": "x"}, {"_own": [1]}, "_own: is of kind text, and must be list"),
    ],
)
def test_entries_are_of_the_kind_of_ours(
    saved: dict[str, Any], own: dict[str, Any], told: str | None
) -> None:
    """A tensor may stand for a number, and what was left open for a choice."""
    if told is None:
        check_like(PLACE, "state", saved, own)
        return
    with pytest.raises(CheckpointMismatchError, match=rf"state\.{told}"):
        check_like(PLACE, "state", saved, own)
