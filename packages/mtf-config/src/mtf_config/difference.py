"""What differs between two experiments, key by key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mtf_config._tree import MISSING
from mtf_config.experiment import ExperimentConfig

__all__ = ["ABSENT", "Difference", "diff"]


class _Absent:
    """The type of `ABSENT`."""

    def __repr__(self) -> str:
        return "(absent)"

    def __reduce__(self) -> str:
        return "ABSENT"


ABSENT = _Absent()
"""Stands for the value of a key that one side does not have."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One key that differs; a side without the key holds `ABSENT`."""

    key: str
    left: Any
    right: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.left!r} -> {self.right!r}"


def diff(left: ExperimentConfig, right: ExperimentConfig) -> tuple[Difference, ...]:
    """Return every key whose value differs, in the order of the schema.

    Where a section stands on one side only, its keys are listed against `ABSENT`.

    >>> values = {
    ...     "experiment_name": "a",
    ...     "model": {"type": "mlp"},
    ...     "data": {"dataset_name": "d"},
    ... }
    >>> a = ExperimentConfig.model_validate(values)
    >>> b = ExperimentConfig.model_validate(values | {"optimizer": {"lr": 0.1}})
    >>> print(*diff(a, b))
    optimizer.lr: 0.0001 -> 0.1
    """
    return tuple(_walk(left.model_dump(mode="json"), right.model_dump(mode="json"), ""))


def _walk(left: Any, right: Any, key: str) -> Iterator[Difference]:
    if isinstance(left, dict) and isinstance(right, dict):
        for name in left | right:
            below = f"{key}.{name}" if key else name
            yield from _walk(left.get(name, MISSING), right.get(name, MISSING), below)
    elif isinstance(left, dict) and right in (None, MISSING) and left:
        yield from _walk(left, {}, key)
    elif isinstance(right, dict) and left in (None, MISSING) and right:
        yield from _walk({}, right, key)
    elif _canonical(left) != _canonical(right):
        yield Difference(key, _shown(left), _shown(right))


def _canonical(value: Any) -> str:
    # As configs compare: to Python, True is 1 and -0.0 is 0.0.
    return "" if value is MISSING else json.dumps(value, sort_keys=True)


def _shown(value: Any) -> Any:
    return ABSENT if value is MISSING else value
