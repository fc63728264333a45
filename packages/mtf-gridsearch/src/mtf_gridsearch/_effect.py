"""What a parameter did to a model: whether it is there, and what else it changed."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, RootModel, TypeAdapter

from mtf_gridsearch._base import Fault, left_out
from mtf_gridsearch._plain import shown
from mtf_gridsearch._schema import default_of, fields
from mtf_gridsearch._written import same, written_keys

__all__ = [
    "Difference",
    "Path",
    "at",
    "fallen_back",
    "get",
    "has_same",
    "is_taken",
    "lost",
    "unread",
    "without_effect",
]

_ANY: TypeAdapter[Any] = TypeAdapter(Any)

Path = tuple[str, ...]
"""Names of fields, keys of mappings as they are written, numbers in lists."""


class _Nothing:
    def __repr__(self) -> str:
        return "nothing"


_NOTHING = _Nothing()


class Difference(NamedTuple):
    """What one model has at a path, and another."""

    path: Path
    one: Any
    other: Any


def fallen_back(old: Any, new: Any, value: Any, key: str) -> Iterator[Fault]:
    """Yield fields that *value* does not name, and that it changes all the same.

    Args:
        old: What the base has at *key*.
        new: What the experiment has there.
        value: That was set there.
        key: Of a parameter.
    """
    old, new = _root(old), _root(new)
    if not isinstance(value, dict) or type(old) is not type(new):
        return
    for name in _names(old):
        before, after, place = get(old, name), get(new, name), f"{key}.{name}"
        if name in value:
            yield from fallen_back(before, after, value[name], place)
        elif not has_same(new, old, name):
            fate = f"become {shown(after)}" if name in _names(new) else "be gone"
            yield left_out(place, shown(before), fate)


def _names(value: Any) -> Collection[str]:
    """Return the names of fields and further keys; a mapping is set as a whole."""
    return [*fields(type(value)), *_further(value)]


def _further(value: Any) -> dict[str, Any]:
    return getattr(value, "model_extra", None) or {}


def without_effect(base: Any, config: Any, value: Any, key: str) -> Iterator[Fault]:
    """Yield what is set at *key* and is not in *config*.

    Another member of a union has it, or code of the class does not read it, or makes of
    it what *base* has anyway.
    """
    place, section = "", config
    *above, last = key.split(".")
    for part in above:
        place = f"{place}.{part}" if place else part
        if not _has(section, part):
            yield place, _in_force(section, place)
            return
        section = get(section, part)
    faults = list(_lost_inside(section, value, last, key))
    yield from faults or _like_the_base(at(base, key), section, value, last, key)


def is_taken(config: Any, value: Any, key: str) -> bool:
    """Tell whether what *config* has at *key* is *value*, as the field's type reads it."""
    above, _, last = key.rpartition(".")
    section = at(config, above) if above else config
    return same(get(section, last), value) or _is_read_of(section, last, value)


def unread(config: Any, key: str) -> Fault:
    """Return that *config* is the same without what is set at *key*."""
    above = key.rpartition(".")[0]
    return key, _unread(at(config, above) if above else config, at(config, key))


def _like_the_base(
    base: Any, section: Any, value: Any, part: str, key: str
) -> Iterator[Fault]:
    """Yield what *section* has like *base*, though *value* is another."""
    result = get(section, part)
    if same(result, value) or not same(result, base):
        return
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        items += value.items()
    elif isinstance(value, list) and isinstance(result, list | tuple):
        is_whole = len(value) == len(result) and any(isinstance(i, dict) for i in value)
        items += enumerate(value) if is_whole else ()
    for name, inner in items:
        old = get(base, str(name))
        yield from _like_the_base(old, _root(result), inner, str(name), f"{key}.{name}")
    if not items and not _is_read_of(section, part, value):
        yield key, _unread(section, result)


def _lost_inside(section: Any, value: Any, part: str, key: str) -> Iterator[Fault]:
    if not _has(section, part):
        yield key, _in_force(section, key)
        return
    result = _root(get(section, part))
    is_field = isinstance(section, BaseModel) and part in type(section).model_fields
    is_lost = is_field and part not in section.model_fields_set
    if is_lost and not same(result, value) and not _is_read_of(section, part, value):
        yield key, _unread(section, result)
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _lost_inside(result, inner, name, f"{key}.{name}")
    elif isinstance(value, list) and isinstance(result, list | tuple):
        # Of another length, a validator made something else of it.
        for number, inner in enumerate(value if len(value) == len(result) else ()):
            for name, each in inner.items() if isinstance(inner, dict) else ():
                yield from _lost_inside(
                    _root(result[number]), each, name, f"{key}.{number}.{name}"
                )


def lost(one: Any, other: Any) -> list[Difference]:
    """Return where the model *other* does not have what *one* has.

    Not where *one* has a default of another type than its field, such as text for a `Path`,
    which the field reads as what *other* has, and which is written as that: models do not
    check their defaults.
    """
    return list(_Loose(one, other).left(_unlike(one, other, ())))


def has_same(one: Any, other: Any, part: str) -> bool:
    """Tell whether two sections have the same at *part*, but for a loose default of *one*."""
    found = _unlike(get(one, part), get(other, part), (part,))
    return not any(_Loose(one, other).left(found))


def _unlike(one: Any, other: Any, path: Path) -> Iterator[Difference]:
    """Yield where two values differ, as far down as both have the same parts."""
    if same(one, other):
        return
    found: list[Difference] = []
    is_list = all(isinstance(value, list | tuple) for value in (one, other))
    is_all = False
    if type(one) is type(other) or is_list:
        parts, others = _parts(one), _parts(other)
        more, less = _further(one), _further(other)
        found += [
            Difference((*path, name), more.get(name, _NOTHING), less.get(name, _NOTHING))
            for name in sorted(more.keys() ^ less.keys())
        ]
        if parts.keys() == others.keys():
            for name, value in parts.items():
                found += _unlike(value, others[name], (*path, name))
            # Containers compare private attributes of models, too, which do not count.
            is_keys = isinstance(one, Mapping) and list(one) == list(other)
            is_all = type(one) is type(other) and (is_list or is_keys)
    yield from found or ([] if is_all else [Difference(path, one, other)])


def _parts(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return dict(zip(written_keys(value), value.values(), strict=True))
    if isinstance(value, list | tuple):
        return {str(number): item for number, item in enumerate(value)}
    known = fields(type(value))
    return _further(value) | {name: getattr(value, name, None) for name in known}


class _Loose:
    """Tells of differences between two models whether they are types of defaults alone."""

    def __init__(self, one: Any, other: Any) -> None:
        self._one, self._other = one, other
        self._read: dict[Path, bool] = {}

    def left(self, found: Iterable[Difference]) -> Iterator[Difference]:
        """Yield those of which no field on the way reads the one as the other."""
        for each in found:
            ends = range(1, len(each.path) + 1)
            if not _is_written_as(each.one, each.other) or not any(
                self._is_read_at(each.path[:end]) for end in ends
            ):
                yield each

    def _is_read_at(self, path: Path) -> bool:
        if path not in self._read:
            one, other = self._one, self._other
            for part in path[:-1]:
                one, other = get(one, part), get(other, part)
            self._read[path] = False
            with suppress(Exception):  # what is no field, or refuses it
                read = _read_of(other, path[-1], get(one, path[-1]))
                self._read[path] = same(read, get(other, path[-1]))
        return self._read[path]


def _is_written_as(one: Any, other: Any) -> bool:
    """Tell whether two values are written alike; a set is in any order."""
    texts = []
    for value in (one, other):
        try:
            plain = _ANY.dump_python(value, mode="json", round_trip=True, warnings=False)
        except Exception:  # noqa: BLE001 - whatever a serializer of the user's raises
            return False
        if isinstance(other, set | frozenset) and isinstance(plain, list):
            plain.sort(key=repr)
        texts.append(json.dumps(plain))
    return texts[0] == texts[1]


def _is_read_of(section: Any, part: str, value: Any) -> bool:
    """Tell whether the type of a field reads *value* as what is there.

    So it does where only the class knows what it makes of it, and of the field's default,
    such as None, by which it is asked for one.
    """
    try:
        read = _read_of(section, part, value)
    except Exception:  # noqa: BLE001 - a type of the user's may raise any
        return True
    return same(read, get(section, part)) or same(default_of(type(section), part), value)


def _read_of(section: Any, part: str, value: Any) -> Any:
    """Return what the type of a field makes of *value*, without validators of the class."""
    config: ConfigDict | None = None
    if isinstance(section, BaseModel):
        field = type(section).model_fields[part]
        kind, config = field.rebuild_annotation(), type(section).model_config
    else:
        kind = typing.get_type_hints(type(section), include_extras=True)[part]
    adapter = _adapter(kind, config)
    return adapter.validate_python(value, by_alias=True, by_name=True)


def _adapter(kind: Any, config: ConfigDict | None) -> TypeAdapter[Any]:
    if config:
        with suppress(Exception):  # what is a model has a config of its own
            return TypeAdapter(kind, config={**config, "strict": False})
    return TypeAdapter(kind)


def _unread(section: Any, result: Any) -> str:
    return (
        f"it would do nothing, for {type(section).__name__} does not read it by a name that "
        f"is written, or makes {shown(result)} of it, as without it: give what the class "
        f"reads, or leave this out"
    )


def _in_force(section: Any, key: str) -> str:
    place = key.rpartition(".")[0]
    return (
        f"it would do nothing, for {place or 'the config'} is a {type(section).__name__} "
        f"here, which has no such key: set what makes it another in the same experiment, or "
        f"leave this out there (only_when=)"
    )


def _has(value: Any, part: str) -> bool:
    """Tell whether *value* keeps *part*; of what is no section nothing is known."""
    if isinstance(value, BaseModel):
        return part in type(value).model_fields or part in (value.model_extra or {})
    if isinstance(value, Mapping):
        return part in value or part in written_keys(value)
    if dataclasses.is_dataclass(value):
        return hasattr(value, part)
    return value is not None


def at(value: Any, key: str) -> Any:
    for part in key.split("."):
        value = get(value, part)
    return value


def get(value: Any, part: str) -> Any:
    """Return what *value* has at *part*: of a mapping by its written key, of a list by number."""
    if isinstance(value, BaseModel):
        if not isinstance(value, RootModel):
            return getattr(value, part, None)
        value = _root(value)
    if isinstance(value, Mapping):
        if part in value:
            return value[part]
        return dict(zip(written_keys(value), value.values(), strict=True)).get(part)
    if isinstance(value, list | tuple) and part.isdecimal():
        return value[int(part)] if int(part) < len(value) else None
    return getattr(value, part, None)


def _root(value: Any) -> Any:
    while isinstance(value, RootModel):
        value = value.root
    return value
