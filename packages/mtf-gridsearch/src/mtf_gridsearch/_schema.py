"""Which keys the types of a pydantic model know, found by their annotations."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

__all__ = ["below", "fields", "schema_keys", "unknown_inside"]


def unknown_inside(kinds: set[Any], value: Any, key: str) -> str:
    """Return a key inside *value*, which is set at *key*, that no kind knows; or ``""``."""
    if isinstance(value, list):
        elements = {
            leaf
            for kind in kinds
            if typing.get_origin(kind) in (list, tuple, set, frozenset)
            for argument in typing.get_args(kind)
            for leaf in _leaves(argument)
        }
        for number, inner in enumerate(value if elements else ()):
            if unknown := unknown_inside(elements, inner, f"{key}.{number}"):
                return unknown
    if isinstance(value, dict):
        for part, inner in value.items():
            found = below(kinds, part)
            if found is None:
                return ""
            place = f"{key}.{part}"
            if not found:
                return place
            if unknown := unknown_inside(found, inner, place):
                return unknown
    return ""


def below(kinds: set[Any], part: str) -> set[Any] | None:
    """Return the types that *part* may have in values of *kinds*.

    Empty if none of them knows it; None if one of them takes any key.
    """
    found: set[Any] = set()
    is_open = False
    for kind in kinds:
        known = fields(kind)
        if part in known:
            found |= set(_leaves(known[part]))
        elif _takes_any(kind):
            is_open = True
            if arguments := typing.get_args(kind):
                found |= set(_leaves(arguments[-1]))
    return found if found or not is_open else None


def fields(kind: Any) -> Mapping[str, Any]:
    """Return the annotations of the fields of a model, or of what is like one."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    if dataclasses.is_dataclass(kind):
        return {field.name: Any for field in dataclasses.fields(kind)}
    if _is_typed_dict(kind):
        return dict.fromkeys(kind.__annotations__, Any)
    return {}


def _is_typed_dict(kind: Any) -> bool:
    # That of typing_extensions is not known to `typing.is_typeddict`.
    return hasattr(kind, "__required_keys__")


def _takes_any(kind: Any) -> bool:
    if kind is Any or kind is object:
        return True
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind.model_config.get("extra") == "allow"
    origin = typing.get_origin(kind) or kind
    is_mapping = isinstance(origin, type) and issubclass(origin, Mapping)
    return is_mapping and not _is_typed_dict(kind)


def _leaves(annotation: Any) -> Iterator[Any]:
    """Yield the types that *annotation* is a union of."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        yield from _leaves(typing.get_args(annotation)[0])
    elif origin in (typing.Union, types.UnionType):
        for argument in typing.get_args(annotation):
            yield from _leaves(argument)
    elif isinstance(annotation, typing.TypeVar):
        yield Any
    else:
        value = getattr(annotation, "__value__", annotation)  # a `type X = ...` alias
        yield from _leaves(value) if value is not annotation else [annotation]


def schema_keys(kind: Any, prefix: str = "", depth: int = 0) -> Iterator[str]:
    """Yield every dotted key that *kind* knows."""
    for name, annotation in fields(kind).items():
        yield f"{prefix}{name}"
        for leaf in _leaves(annotation):
            if depth < 8:  # noqa: PLR2004 - a model may hold itself
                yield from schema_keys(leaf, f"{prefix}{name}.", depth + 1)
