"""Plain values: what a combination may hold, and what its keys look like.

Relied on for: `plain` gives a copy made of None, bool, int, float, str, list and dict
with text keys alone, bounded in depth, or says what is in the way.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from enum import Enum
from numbers import Integral, Real
from typing import Any

from mtf_gridsearch.errors import GridError

__all__ = ["check_key", "nearest", "plain", "shown"]

_MAX_DEPTH = 16
_MAX_BITS = 1024
_MAX_KEY = 128
_MAX_SHOWN = 60
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*(?:\.[A-Za-z0-9_][A-Za-z0-9_-]*)*")
_SURROGATE = re.compile("[\ud800-\udfff]")
_SCALARS = (type(None), bool, str, Integral, Real)


def plain(value: Any, place: str, depth: int = 0) -> Any:
    """Return *value* as plain values: tuples become lists, NumPy's scalars Python's.

    Raises:
        GridError: If it holds anything that a YAML file cannot, or NaN.
    """
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, _SCALARS):
        return _scalar(value, place)
    if depth >= _MAX_DEPTH:
        raise GridError(place, f"is nested more than {_MAX_DEPTH} levels deep")
    if isinstance(value, list | tuple):
        return [plain(item, place, depth + 1) for item in value]
    if isinstance(value, Mapping):
        if wrong := [key for key in value if not isinstance(key, str)]:
            raise GridError(place, f"the key {wrong[0]!r} is not text")
        return {
            plain(key, place): plain(item, f"{place}.{key}", depth + 1)
            for key, item in value.items()
        }
    if hasattr(value, "ndim") and hasattr(value, "tolist"):
        if value.ndim:
            raise GridError(place, "an array is no value: give a list, such as .tolist()")
        return plain(value.tolist(), place, depth + 1)
    kind = type(value).__name__
    message = f"{shown(value)} is a {kind}: give text, numbers, true, false, null, lists"
    raise GridError(place, f"{message} or mappings of them")


def _scalar(value: Any, place: str) -> bool | int | float | str | None:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        if _SURROGATE.search(value):
            raise GridError(place, f"{value!a} holds half of a character: write it whole")
        return "".join(value)  # a subclass becomes plain text
    if isinstance(value, Integral):
        number = int(value)
        if number.bit_length() > _MAX_BITS:
            raise GridError(place, f"a number of more than {_MAX_BITS} bits is too large")
        return number
    if value != value:  # noqa: PLR0124 - `math.isnan` fails on what is too large
        raise GridError(place, "NaN equals nothing, not even itself: take it away")
    try:
        return float(value)
    except OverflowError:
        raise GridError(place, "a number is too large for 64 bits") from None


def check_key(key: object, place: str) -> str:
    """Return *key* if it is a dotted name.

    Raises:
        GridError: If it is not.
    """
    if not isinstance(key, str) or len(key) > _MAX_KEY or not _KEY.fullmatch(key):
        message = "is no key: write names joined by dots, as in 'optimizer.lr'"
        raise GridError(place, f"{shown(key)} {message}")
    return key


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint at what was meant by *name*, to be appended to a message.

    >>> nearest("optimizer.rl", ["optimizer.lr", "seed"])
    "; did you mean 'optimizer.lr'?"
    """
    names = list(known)
    if near := get_close_matches(name, names, n=1):
        return f"; did you mean {near[0]!r}?"
    last = name.rpartition(".")[2]
    same = [key for key in names if key.rpartition(".")[2] == last]
    if same:
        return f"; did you mean {same[0]!r}?"
    return f"; known here: {', '.join(names[:10])}" if names else ""


def shown(value: object) -> str:
    """Return *value* for a message: on one line, short, control characters escaped."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."
