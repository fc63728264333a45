"""The form of a checkpoint's content: which entries there are, and of which kinds.

A file may hold anything, though its digest be right: one made by hand, or by another
program. What is looked at here can be told before anything is loaded; what an object
makes of its own state comes out as it takes it over, inside `reading`. Either way the
error names the file and the entry.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mtf_trainer._saving.spread import Spread
from mtf_trainer.errors import (
    CheckpointDamagedError,
    CheckpointMismatchError,
    CheckpointVersionError,
)
from mtf_trainer.state import LocalState, ResumeState, UnknownVersionError

__all__ = ["check_kinds", "kind_of", "locals_of", "read_resume", "reading"]

_NUMBER, _LIST, _DICT, _NONE = "number", "list", "dictionary", "none"
_FLAG = "true or false"

_SHARED: Mapping[str, tuple[str, ...]] = {
    "resume": (_DICT,),
    "model": (_DICT,),
    "optimizers": (_LIST,),
    "schedulers": (_LIST,),
    "precision": (_DICT,),
    "ema": (_DICT, _NONE),
    "modes": (_LIST,),
    "trained": (_LIST,),
    "buffers": (_DICT,),
    "callbacks": (_LIST,),
    "trackers": (_LIST,),
    "guard": (_DICT,),
    "metrics": (_DICT,),
    "metrics_bytes": (_NUMBER,),
    "best": (_NUMBER, _NONE),
    "ended": (_FLAG,),
    "layout": (_DICT,),
    "world_size": (_NUMBER,),
    "locals": (_LIST,),
}
_OBJECT = {"type": ("text", _NONE), "state": (_DICT,)}
_OPTIMIZER = {"state": (_DICT,), "param_groups": (_LIST,)}
_GROUP = {"params": (_LIST,)}
_MEANS = {"num_samples": (_NUMBER,), "sums": ("tensor",), "counts": (_DICT,)}
_LOCAL = {
    "rng": (_DICT,),
    "train_cursor": (_DICT, _NONE),
    "val_cursor": (_DICT, _NONE),
    "window_samples": (_NUMBER,),
    "window_unit": (_NUMBER,),
    "grad_norm": (_NUMBER, _NONE),
    "train_means": (_DICT,),
    "val_means": (_DICT,),
    "grads": (_DICT, _NONE),
    "ddp": (_DICT, _NONE),
    "comm": (_DICT, _NONE),
}


def kind_of(value: object) -> str:
    """Return the kind of *value*, as errors tell it.

    >>> kind_of([0.5]), kind_of("0.5"), kind_of(False), kind_of(torch.ones(2))
    ('list', 'text', 'true or false', 'tensor')
    """
    kinds: tuple[tuple[Any, str], ...] = (
        (bool, _FLAG),
        (int | float, _NUMBER),
        (str, "text"),
        (Mapping, _DICT),
        (list | tuple, _LIST),
        (Tensor | Spread, "tensor"),
        (type(None), _NONE),
    )
    return next(
        (name for kind, name in kinds if isinstance(value, kind)), type(value).__name__
    )


def check_kinds(
    place: Any, under: str, found: Any, wanted: Mapping[str, Sequence[str]]
) -> None:
    """Raise unless *found*, at *under* of *place*, has each entry, of a kind *wanted*.

    Raises:
        CheckpointMismatchError: Naming the first that is not.
    """
    if kind_of(found) != _DICT:
        raise CheckpointMismatchError(place, under, f"is a {kind_of(found)}")
    for name, kinds in wanted.items():
        key = f"{under}.{name}" if under else name
        if name not in found:
            problem = "is missing; it is no checkpoint of this mtf-trainer"
            raise CheckpointMismatchError(place, key, problem)
        if kind_of(found[name]) not in kinds:
            problem = (
                f"is of kind {kind_of(found[name])}, and must be {' or '.join(kinds)}"
            )
            raise CheckpointMismatchError(place, key, problem)


def read_resume(place: Any, content: Mapping[str, Any]) -> ResumeState:
    """Return where *content* stands, found at *place*; its form is checked.

    Raises:
        CheckpointVersionError: If it has a version that is not ours.
        CheckpointMismatchError: If an entry is missing, or of another kind.
        CheckpointDamagedError: If the resume state is malformed.
    """
    if not isinstance(content.get("resume"), Mapping):
        problem = "is missing; it is no checkpoint of mtf-trainer"
        raise CheckpointMismatchError(place, "resume", problem)
    try:
        resume = ResumeState.from_plain(content["resume"])
    except UnknownVersionError as error:
        raise CheckpointVersionError(place, str(error)) from error
    except ValueError as error:
        raise CheckpointDamagedError(place, f"resume: {error}") from error
    _check_form(place, content, resume.train.epoch_sums)
    return resume


def _check_form(place: Any, content: Mapping[str, Any], sums: Mapping[str, Any]) -> None:
    for name, pair in sums.items():
        key = f"resume.train.epoch_sums.{name}"
        if not isinstance(pair, list) or [kind_of(n) for n in pair] != [_NUMBER] * 2:
            raise CheckpointMismatchError(place, key, f"is {pair!r}, no two numbers")
    check_kinds(place, "", content, _SHARED)
    for key in ("optimizers", "schedulers"):
        for index, each in enumerate(content[key]):
            check_kinds(place, f"{key}.{index}", each, _OBJECT)
    for index, each in enumerate(content["optimizers"]):
        _check_optimizer(place, f"optimizers.{index}.state", each["state"])
    for key, kind in (("modes", _FLAG), ("trained", _FLAG), ("locals", _DICT)):
        for index, each in enumerate(content[key]):
            check_kinds(place, key, {str(index): each}, {str(index): (kind,)})
    for key, kinds in (("metrics", (_NUMBER,)), ("layout", (_NUMBER, "text"))):
        check_kinds(place, key, content[key], dict.fromkeys(content[key], kinds))


def _check_optimizer(place: Any, key: str, state: Mapping[str, Any]) -> None:
    check_kinds(place, key, state, _OPTIMIZER)
    for number, group in enumerate(state["param_groups"]):
        check_kinds(place, f"{key}.param_groups.{number}", group, _GROUP)
    for number, entry in state["state"].items():
        check_kinds(place, f"{key}.state.{number}", entry, {})


def locals_of(place: Any, content: Mapping[str, Any], expected: int) -> list[LocalState]:
    """Return what *expected* processes had for themselves; a snapshot has that of one.

    Raises:
        CheckpointMismatchError: If there are not as many, or an entry is missing or of
            another kind.
        CheckpointDamagedError: If one is malformed.
    """
    found = content["locals"]
    if len(found) != expected:
        problem = f"has {len(found)} entries, of {expected} processes"
        raise CheckpointMismatchError(place, "locals", problem)
    parts = []
    for index, plain in enumerate(found):
        key = f"locals.{index}"
        check_kinds(place, key, plain, _LOCAL)
        for name, means in (
            ("train_means", plain["train_means"]),
            *((f"val_means.{n}", m) for n, m in plain["val_means"].items()),
        ):
            # Empty at a beginning.
            check_kinds(place, f"{key}.{name}", means, _MEANS if means else {})
        try:
            parts.append(LocalState.from_plain(plain))
        except ValueError as error:
            raise CheckpointDamagedError(place, f"{key}: {error}") from error
    return parts


@contextmanager
def reading(place: Any, key: str) -> Iterator[None]:
    """Make what goes wrong inside ``with`` an error about *key* of *place*.

    Raises:
        CheckpointMismatchError: With the error as its cause.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        problem = str(error)
        if type(error) is not ValueError:
            problem = f"cannot be taken over: {type(error).__name__}: {error}"
        raise CheckpointMismatchError(place, key, problem) from error
