"""What makes two combinations the same: content alone.

Relied on for: equal parameters have equal identities whatever the order of keys, the grid
they come from, the machine or the release. A number counts by its value (1 and 1.0 are
the same, true and 1 are not), text by its characters, a tuple as a list.

Source: the idea of RFC 8785, "JSON Canonicalization Scheme"; numbers differ from it in
that integers keep all their digits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from mtf_gridsearch._plain import plain

__all__ = ["canonical", "identity_of"]

_DIGITS = 16


def canonical(parameters: Any) -> bytes:
    """Return the one text of plain values: keys sorted, no spaces, ASCII.

    Raises:
        GridError: If they are not plain values.

    >>> canonical({"b": 1.0, "a": (True, "x")})
    b'{"a":[true,"x"],"b":1}'
    """
    values = _normal(plain(parameters, "parameters"))
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()


def identity_of(parameters: Mapping[str, Any]) -> str:
    """Return 16 hex digits that stand for *parameters*: the beginning of SHA-256.

    Raises:
        GridError: If they are not plain values.

    >>> identity_of({"lr": 0.1, "depth": 2}) == identity_of({"depth": 2, "lr": 0.1})
    True
    """
    return hashlib.sha256(canonical(parameters)).hexdigest()[:_DIGITS]


def _normal(value: Any) -> Any:
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if isinstance(value, list):
        return [_normal(item) for item in value]
    if isinstance(value, dict):
        return {key: _normal(item) for key, item in value.items()}
    return value
