"""Parameters set in the plain values of a model, under the keys that its class reads."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, RootModel

from mtf_gridsearch._base import Fault, UnfitError
from mtf_gridsearch._effect import at, get
from mtf_gridsearch._plain import nearest, shown
from mtf_gridsearch._schema import (
    as_read,
    below,
    fields,
    read_key,
    schema_keys,
    tag_values,
    unknown_inside,
)

__all__ = ["Setter", "Way"]

_Kinds = Collection[Any]
Way = list[tuple[str, _Kinds]]
"""The keys that lead to a value, and the types below each."""
_Members = dict[tuple[str, ...], _Kinds]
"""Members of unions that an experiment chooses, by section."""


class Setter:
    """Sets parameters.

    Args:
        config: The base.
        by_alias: Whether its class reads aliases.
    """

    def __init__(self, config: BaseModel, *, by_alias: bool) -> None:
        self._config, self._by_alias = config, by_alias
        self._unknown: dict[str, Fault | None] = {}
        self._ways: dict[str, Way] = {}
        self._tags: dict[str, tuple[type, Collection[Any]]] = {}

    def unknown(self, key: str, value: Any) -> Fault | None:
        """Return what is wrong with *key*, or with one inside *value*; None if nothing is."""
        if isinstance(value, dict | list):
            return self._look_up(key, value)
        if key not in self._unknown:
            self._unknown[key] = self._look_up(key, value)
        return self._unknown[key]

    def set(
        self, values: dict[str, Any], parameters: Mapping[str, Any]
    ) -> dict[str, Way]:
        """Set *parameters* in *values*; return how each is reached."""
        members: _Members = {}
        for key, value in parameters.items():
            self._choose(values, key, value, members)
        ways = {}
        for key, value in parameters.items():
            ways[key] = way = self._way(key, members)
            last, kinds = way[-1]
            if isinstance(value, dict | list):
                own = as_read(set(kinds), value, by_alias=self._by_alias)
            else:
                own = value
            _section(values, way[:-1])[last] = own
        return ways

    def _way(self, key: str, members: _Members) -> Way:
        """Return the key that each part of *key* is read by, and the types below it."""
        if members:
            return list(self._walk(key, members))
        if key not in self._ways:
            self._ways[key] = list(self._walk(key, members))
        return self._ways[key]

    def _walk(self, key: str, members: _Members) -> Iterator[tuple[str, _Kinds]]:
        kinds: _Kinds = {type(self._config)}
        current: Any = self._config
        path: tuple[str, ...] = ()
        for part in key.split("."):
            now = members.get(path) or {type(current)}
            name = read_key([*now, *kinds], part) if self._by_alias else part
            kinds = below({*now, *kinds}, part) or set()
            path, current = (*path, part), get(current, part)
            yield name, kinds

    def _choose(
        self, values: dict[str, Any], key: str, value: Any, members: _Members
    ) -> None:
        """Take from *values* what the member lacks that *key* chooses, if it is a tag."""
        place, _, tag = key.rpartition(".")
        if key not in self._tags:
            old = type(at(self._config, place) if place else None)
            self._tags[key] = old, tag_values(fields(old).get(tag))
        old, tags = self._tags[key]
        if not tags or value in tags:
            return
        way = self._way(place, members)
        found = [k for k in way[-1][1] if value in tag_values(fields(k).get(tag))]
        if not found:
            return
        section = _section(values, way)
        held = dict(section)
        section.clear()
        for name in fields(old):
            read = read_key([old], name) if self._by_alias else name
            if read in held and any(name in fields(kind) for kind in found):
                section[read_key(found, name) if self._by_alias else name] = held[read]
        members[tuple(place.split("."))] = found

    def _look_up(self, key: str, value: Any) -> Fault | None:
        kinds, current = {type(self._config)}, self._config
        place = ""
        for part in key.split("."):
            found = below(kinds, part)
            if found is None:
                return None
            if not found:
                return key, self._no_such(key, place, kinds)
            current = get(current, part)
            kinds = found | ({type(current)} if current is not None else set())
            place = f"{place}.{part}" if place else part
        unknown = unknown_inside(kinds, value, key)
        return (unknown, self._no_such(unknown)) if unknown else None

    def _no_such(self, key: str, place: str = "", kinds: _Kinds = ()) -> str:
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, RootModel):
                return (
                    f"{place} is a {kind.__name__}, a RootModel: set {place} as a whole"
                )
        if place and key.removeprefix(f"{place}.").split(".")[0].isdecimal():
            return f"items are not set alone: set {place} as a whole"
        hint = nearest(key, schema_keys(type(self._config)))
        return f"the schema has no such key{hint}"


def _section(values: dict[str, Any], way: Collection[tuple[str, Any]]) -> dict[str, Any]:
    """Return the mapping in *values* that *way* leads to; made where there is none."""
    place = ""
    for part, _ in way:
        place = f"{place}.{part}" if place else part
        if values.get(part) is None:
            values[part] = {}
        elif not isinstance(values[part], dict):
            reason = f"it is {shown(values[part])}, no section: set it as a whole"
            raise UnfitError([(place, reason)])
        values = values[part]
    return values
