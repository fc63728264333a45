"""Plain values: what a config file can hold, and what saves and reads back equal.

The Python counterpart of `mtf_config._yaml`, with the same limits: a value that passes
here can be written there. Cycles and huge structures cost bounded work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

from pydantic import BaseModel

from mtf_config.origin import KeyPath

__all__ = [
    "MAX_DEPTH",
    "MAX_INT_BITS",
    "MAX_NODES",
    "Fault",
    "Foreign",
    "check_key",
    "check_text",
    "kind_of",
    "plain",
    "structure",
]

# Those of `mtf_config._yaml`, which stands above this module; a test compares them.
MAX_DEPTH = 32
MAX_NODES = 50_000
MAX_INT_BITS = 1024

Fault: TypeAlias = tuple[KeyPath, str]
"""Where, and what is wrong there."""


@dataclass(frozen=True, slots=True)
class Foreign:
    """Stands for an object that is no value of a config."""

    kind: str


def kind_of(value: Any) -> str:
    """Name the type of *value*."""
    return value.kind if isinstance(value, Foreign) else type(value).__name__


def structure(
    value: Any, unwrap: Callable[[BaseModel], Any]
) -> tuple[Any, tuple[Fault, ...]]:
    """Return a copy of *value* in built-in types, and what is wrong with its structure.

    Mappings become dicts, tuples lists, subclasses of scalars their base, and pydantic
    models what *unwrap* makes of them. Anything else becomes a `Foreign`, which no type
    of the schema takes: pydantic would make a number of whatever can be one.
    """
    walk = _Walk(0, unwrap)
    return walk.run(value), tuple(walk.faults)


def plain(value: Any, depth: int) -> tuple[Any, tuple[Fault, ...]]:
    """Do as `structure`, and also find fault with every leaf that no file can hold.

    Args:
        value: A value that stands *depth* levels below the top of its document.
        depth: Counts against the limit.
    """
    walk = _Walk(depth, None)
    return walk.run(value), tuple(walk.faults)


def check_text(text: str) -> str:
    """Return *text*.

    Raises:
        ValueError: If it holds half of a character, which no file can.
    """
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        message = "not Unicode text: it holds a lone surrogate"
        raise ValueError(message)
    return text


def check_key(key: Any) -> str:
    """Return *key* as text.

    Raises:
        ValueError: If it cannot be the key of a value.
    """
    if not isinstance(key, str):
        message = f"a key must be text, found a Python {type(key).__name__}"
        raise ValueError(message)  # noqa: TRY004 - pydantic reports ValueErrors
    if not key or "." in key:
        message = f"the key {key!r} is empty or holds a dot"
        raise ValueError(message)
    return str.__str__(check_text(key))


class _TooLargeError(Exception):
    """The walk was given up."""


class _Walk:
    def __init__(self, depth: int, unwrap: Callable[[BaseModel], Any] | None) -> None:
        self.faults: list[Fault] = []
        self._depth = depth
        self._unwrap = unwrap
        self._nodes = 0

    def run(self, value: Any) -> Any:
        try:
            return self._value(value, ())
        except _TooLargeError:
            return None

    def _give_up(self, path: KeyPath, message: str) -> NoReturn:
        self.faults.append((path, message))
        raise _TooLargeError

    def _value(self, value: Any, path: KeyPath) -> Any:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            self._give_up((), f"more than {MAX_NODES} values")
        if value is None or isinstance(value, bool | int | float | str):
            return self._scalar(value, path)
        if isinstance(value, BaseModel) and self._unwrap is not None:
            value = self._unwrap(value)
        if not isinstance(value, Mapping | list | tuple):
            if self._unwrap is None:
                message = f"a Python {kind_of(value)} is no value of a config file"
                self.faults.append((path, message))
            return Foreign(kind_of(value))
        if self._depth + len(path) >= MAX_DEPTH:
            self._give_up(path, f"nested more than {MAX_DEPTH} levels deep")
        if isinstance(value, Mapping):
            return self._mapping(value, path)
        return [self._value(item, (*path, i)) for i, item in enumerate(value)]

    def _mapping(self, value: Mapping[Any, Any], path: KeyPath) -> dict[str, Any]:
        copy = {}
        for key, item in value.items():
            try:
                name = check_key(key)
            except ValueError as error:
                self.faults.append((path, str(error)))
            else:
                copy[name] = self._value(item, (*path, name))
        return copy

    def _scalar(self, value: Any, path: KeyPath) -> Any:
        if value is None or isinstance(value, bool):
            return value
        fault = ""
        if isinstance(value, str):
            value = str.__str__(value)
            try:
                check_text(value)
            except ValueError as error:
                fault = str(error)
        elif isinstance(value, float):
            value = float.__float__(value)
            if math.isnan(value):
                fault = "NaN is not a value: it does not even equal itself"
        else:
            value = int.__int__(value)
            if value.bit_length() > MAX_INT_BITS:
                fault = f"an integer of {value.bit_length()} bits is too large"
        if fault and self._unwrap is None:
            self.faults.append((path, fault))
        return value
