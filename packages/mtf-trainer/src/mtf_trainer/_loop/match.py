"""Whether what was saved of an object fits the one of now: names, shapes, kinds.

`mtf_trainer._loop.form` has seen to it that a content has the form of one; here it is held
against the live objects' own states, before the first of them is changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mtf_trainer._loop.form import kind_of
from mtf_trainer._saving.spread import Spread
from mtf_trainer.errors import CheckpointMismatchError

__all__ = ["check_groups", "check_like", "check_tensors"]


def check_tensors(
    place: Any, under: str, saved: Mapping[str, Any], own: Mapping[str, Any]
) -> None:
    """Raise unless *saved* has the names and shapes that *own* has, and no others.

    Raises:
        CheckpointMismatchError: Naming the first below *under* that differs.
    """
    for name, value in own.items():
        key = f"{under}.{name}"
        if name not in saved:
            raise CheckpointMismatchError(place, key, "is missing in the checkpoint")
        found = getattr(saved[name], "shape", None)
        if found != getattr(value, "shape", None):
            problem = f"has shape {_shape(saved[name])}, the model needs {_shape(value)}"
            raise CheckpointMismatchError(place, key, problem)
    for name in saved:
        if name not in own:
            key = f"{under}.{name}"
            raise CheckpointMismatchError(place, key, "is not in the model")


def check_groups(
    place: Any, number: int, saved: Mapping[str, Any], own: Mapping[str, Any]
) -> None:
    """Raise unless optimizer *number* had the groups that it has now.

    Raises:
        CheckpointMismatchError: Naming the first that differs.
    """
    groups, ours = saved["param_groups"], own["param_groups"]
    key = f"optimizers.{number}.param_groups"
    if len(groups) != len(ours):
        problem = f"the checkpoint has {len(groups)}, this run {len(ours)}"
        raise CheckpointMismatchError(place, key, problem)
    for index, (group, our) in enumerate(zip(groups, ours, strict=True)):
        if len(group["params"]) != len(our["params"]):
            problem = (
                f"the checkpoint has {len(group['params'])} parameters, "
                f"this run {len(our['params'])}"
            )
            raise CheckpointMismatchError(place, f"{key}.{index}", problem)
        check_like(place, f"{key}.{index}", group, our)


def check_like(
    place: Any, key: str, saved: Mapping[str, Any], own: Mapping[str, Any]
) -> None:
    """Raise if a public entry is missing, or one of another kind than ours.

    A tensor may stand for a number; what is None here may be anything, and None may
    stand for a choice that was left open.

    Raises:
        CheckpointMismatchError: Naming the first below *key*.
    """
    for name, value in own.items():
        if name not in saved:
            if not name.startswith("_"):
                raise CheckpointMismatchError(place, f"{key}.{name}", "is missing")
            continue
        wanted, found = kind_of(value), kind_of(saved[name])
        is_open = wanted == "none" or (wanted, found) == ("true or false", "none")
        if not (is_open or wanted == found or {wanted, found} <= {"number", "tensor"}):
            problem = f"is of kind {found}, and must be {wanted}"
            raise CheckpointMismatchError(place, f"{key}.{name}", problem)


def _shape(value: object) -> object:
    if isinstance(value, Tensor | Spread):
        return tuple(value.shape)
    return "none (no tensor)"
