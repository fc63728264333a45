"""How a pydantic model is written as plain values, and read again by its class.

Relied on for: the same in every process, whatever the order in which a set gives its
elements; what a class computes from its fields is left out, for it is not read.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel

__all__ = [
    "differences",
    "differing",
    "dumped",
    "read_back",
    "same",
    "written",
    "written_keys",
]

_Path = tuple[str, ...]
_NOTHING = object()


def written(config: BaseModel, *, by_alias: bool, mode: str = "json") -> dict[str, Any]:
    """Return the values of *config*, by the aliases of its fields or by their names."""
    values = dumped(config, by_alias=by_alias, mode=mode)
    return dict(_in_order(config, values, by_alias=by_alias))


def dumped(config: BaseModel, *, by_alias: bool, mode: str = "json") -> dict[str, Any]:
    """Return the same, but that the order of what was a set is any."""
    return config.model_dump(
        mode=mode, by_alias=by_alias, round_trip=True, warnings=False
    )


def read_back(
    kind: type[BaseModel],
    make: Callable[[], Mapping[str, Any]],
    *,
    json_first: bool = False,
) -> BaseModel:
    """Return what *kind* makes of the values that *make* gives, as Python or else as JSON.

    A strict model takes some plain forms from JSON alone. They are made anew for each, for
    a validator may change them.

    Args:
        kind: The class.
        make: Gives plain values.
        json_first: Whether it is such a model.

    Raises:
        ValueError: If it refuses them; a validator of the user's may raise any other.
    """
    if json_first:
        with suppress(Exception):
            text = json.dumps(make())
            return kind.model_validate_json(text)
    try:
        return kind.model_validate(make())
    except Exception as error:  # noqa: BLE001 - a validator of the user's may raise any
        try:
            text = json.dumps(make())
            return kind.model_validate_json(text)
        except Exception as other:  # noqa: BLE001 - as above
            first, second = (getattr(e, "error_count", int)() for e in (error, other))
            is_clearer = second and (second <= first or not first)
            raise (other if is_clearer else error) from None


def written_keys(values: Mapping[Any, Any]) -> list[str]:
    """Return the keys of *values* as they are written."""
    if all(type(key) is str for key in values):
        return list(values)
    from pydantic import TypeAdapter  # noqa: PLC0415 -- only where used

    try:
        known = TypeAdapter(Any).dump_python(dict.fromkeys(values), mode="json")
        written = list(known)
    except ValueError:
        written = []
    return written if len(written) == len(values) else list(map(str, values))


def differing(one: BaseModel, other: BaseModel) -> list[str]:
    """Return the names of the fields in which two models of one class differ."""
    names = [
        name
        for name in type(one).model_fields
        if not same(getattr(one, name), getattr(other, name))
    ]
    extra, found = one.model_extra or {}, other.model_extra or {}
    either = dict.fromkeys([*extra, *found])
    return names + [
        n for n in either if not same(extra.get(n, _NOTHING), found.get(n, _NOTHING))
    ]


def differences(one: Any, other: Any, path: _Path = ()) -> Iterator[_Path]:
    """Yield where two plain values differ, ``1`` and ``true`` being two.

    Lists of other lengths do so as a whole; a key that one lacks is a difference.

    >>> list(differences({"a": 1, "b": [1]}, {"a": True, "b": [1, 2]}))
    [('a',), ('b',)]
    """
    if isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys([*one, *other]):
            before, after = one.get(key, _NOTHING), other.get(key, _NOTHING)
            yield from differences(before, after, (*path, key))
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, (before, after) in enumerate(zip(one, other, strict=True)):
            yield from differences(before, after, (*path, str(number)))
    elif type(one) is not type(other) or (
        one != other and (one == one or other == other)  # noqa: PLR0124 -- a nan is not
    ):
        yield path


def same(one: Any, other: Any) -> bool:
    """Tell whether two values are equal; what cannot be compared is not.

    Private attributes of models do not count.
    """
    kind: Any = type(one)
    if hasattr(kind, "__pydantic_fields__") and kind is type(other):
        is_own = not kind.__eq__.__module__.startswith("pydantic.")
        if not is_own and not getattr(kind, "__pydantic_root_model__", False):
            return not differing(one, other)
    try:
        return one is other or bool(one == other)
    except Exception:  # noqa: BLE001 - whatever a class of the user's raises
        return False


def _in_order(value: Any, plain: Any, *, by_alias: bool) -> Any:
    """Return *plain*, which was made of *value*, with what was a set in one order."""
    if not isinstance(plain, dict | list):
        return plain
    if getattr(type(value), "__pydantic_root_model__", False):
        value = value.root
    if isinstance(plain, dict):
        inner = _below(value, plain, by_alias=by_alias)
        for key in plain.keys() & inner.keys():
            plain[key] = _in_order(inner[key], plain[key], by_alias=by_alias)
    elif isinstance(value, list | tuple | set | frozenset) and len(value) == len(plain):
        pairs = zip(value, plain, strict=True)
        plain = [_in_order(v, p, by_alias=by_alias) for v, p in pairs]
        if isinstance(value, set | frozenset):
            plain.sort(key=lambda item: json.dumps(item, sort_keys=True))
    return plain


def _below(value: Any, plain: Mapping[str, Any], *, by_alias: bool) -> Mapping[str, Any]:
    """Return what of *value* stands below each key of *plain*, which was made of it."""
    if isinstance(value, Mapping):
        is_whole = len(value) == len(plain)
        return dict(zip(plain, value.values(), strict=True)) if is_whole else value
    if not hasattr(value, "__pydantic_fields__"):
        known = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
        return {field.name: getattr(value, field.name) for field in known}
    fields = type(value).__pydantic_fields__.items()
    aliases = {name: f.serialization_alias or name for name, f in fields if by_alias}
    inner = {aliases.get(name, name): getattr(value, name) for name, _ in fields}
    return inner | (getattr(value, "model_extra", None) or {})
