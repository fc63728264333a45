"""Which keys the types of a pydantic model know, found by their annotations."""

from __future__ import annotations

import copy
import dataclasses
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from enum import Enum
from typing import Any

from pydantic import BaseModel, RootModel

__all__ = [
    "as_read",
    "below",
    "chosen",
    "default_of",
    "fields",
    "read_key",
    "schema_keys",
    "tag_values",
    "unknown_inside",
]

_NO_DEFAULT = object()


def unknown_inside(kinds: set[Any], value: Any, key: str) -> str:
    """Return a key inside *value*, which is set at *key*, that no kind knows; or ``""``."""
    kinds = _opened(kinds)
    if isinstance(value, list):
        elements = _elements(kinds)
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


def as_read(kinds: set[Any], value: Any, *, by_alias: bool = True) -> Any:
    """Return a copy of *value*, one of *kinds*, with the keys that they read."""
    if not by_alias:
        return copy.deepcopy(value)
    kinds = _opened(kinds)
    if isinstance(value, list):
        return [as_read(_elements(kinds), inner) for inner in value]
    if isinstance(value, dict):
        members = chosen(kinds, value)
        return {
            read_key(members, part): as_read(below(members, part) or set(), inner)
            for part, inner in value.items()
        }
    return value


def read_key(kinds: Collection[Any], part: str) -> str:
    """Return the key that the field *part* is read by, where that is an alias."""
    ordered = sorted(kinds, key=_name) if isinstance(kinds, set) else kinds
    for kind in ordered:
        if field := getattr(kind, "__pydantic_fields__", {}).get(part):
            alias = field.validation_alias
            return alias if isinstance(alias, str) else field.serialization_alias or part
    return part


def chosen(kinds: set[Any], values: Mapping[str, Any]) -> set[Any]:
    """Return those of *kinds* that *values* may be of; all if none is left.

    Tags tell, and which of them know all keys.
    """
    left = {
        kind
        for kind in kinds
        if all(
            values[name] in tags
            for name, annotation in fields(kind).items()
            if name in values and (tags := tag_values(annotation))
        )
    }
    left = left or kinds
    return {kind for kind in left if values.keys() <= fields(kind).keys()} or left


def _name(kind: Any) -> str:
    """Return what types are ordered by: in a set they come by their addresses."""
    return f"{getattr(kind, '__module__', '')}.{getattr(kind, '__qualname__', kind)}"


def tag_values(annotation: Any) -> Collection[Any]:
    """Return the plain values that a field which tells members of a union apart may have."""
    if typing.get_origin(annotation) is not typing.Literal:
        return ()
    values = typing.get_args(annotation)
    return [value.value if isinstance(value, Enum) else value for value in values]


def default_of(kind: Any, name: str) -> Any:
    """Return the default of a field; what equals no value where it follows from others."""
    try:
        if field := getattr(kind, "__pydantic_fields__", {}).get(name):
            if not field.default_factory_takes_validated_data:
                return field.get_default(call_default_factory=True)
        elif dataclasses.is_dataclass(kind):
            (known,) = (f for f in dataclasses.fields(kind) if f.name == name)
            if known.default_factory is not dataclasses.MISSING:
                return known.default_factory()
            return known.default
    except Exception:  # noqa: BLE001 - a factory of the user's may raise any
        return _NO_DEFAULT
    return _NO_DEFAULT


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
    """Return the annotations of the fields of a model, or of what is like one.

    A `RootModel` is its root, and has none.
    """
    if isinstance(kind, type) and issubclass(kind, RootModel):
        return {}
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    if dataclasses.is_dataclass(kind):
        return {field.name: Any for field in dataclasses.fields(kind)}
    if _is_typed_dict(kind):
        return dict.fromkeys(kind.__annotations__, Any)
    return {}


def _opened(kinds: set[Any]) -> set[Any]:
    """Return *kinds*, each `RootModel` replaced by what its root may be."""
    seen: set[Any] = set()
    left = list(kinds)
    while left:
        kind = left.pop()
        if kind not in seen:
            seen.add(kind)
            if isinstance(kind, type) and issubclass(kind, RootModel):
                left += _leaves(kind.model_fields["root"].annotation)
    return seen


def _elements(kinds: set[Any]) -> set[Any]:
    return {
        leaf
        for kind in kinds
        if typing.get_origin(kind) in (list, tuple, set, frozenset)
        for argument in typing.get_args(kind)
        for leaf in _leaves(argument)
    }


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
