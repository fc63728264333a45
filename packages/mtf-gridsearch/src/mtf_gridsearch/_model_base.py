"""A base config that is a pydantic model: copies validated by its class, and how it is written.

Relied on for: an experiment reads back equal from what is written of it; it shares nothing
with the base that can be changed; what the class works out from other values is worked out
again, unless it was set.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from typing import Any

from pydantic import BaseModel, ValidationError

from mtf_gridsearch._base import NAME, Base, Fault, MappingBase, UnfitError
from mtf_gridsearch._effect import at, fallen_back, get, without_effect
from mtf_gridsearch._model_class import class_name
from mtf_gridsearch._plain import nearest, plain, shown
from mtf_gridsearch._schema import below, fields, schema_keys, unknown_inside
from mtf_gridsearch._section import Section, is_immutable, tag_values
from mtf_gridsearch._written import differing, dumped, read_back, same, written
from mtf_gridsearch.errors import GridError

__all__ = ["ModelBase", "base_of"]

_LEAVE_OUT = (
    "leave out secrets, excluded fields, custom serializers and aliases that are not read"
)


class _Leaf:
    """A value that is set, as against a section that is gone into."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


_Changes = dict[str, Any]


def base_of(config: Any) -> Base:
    """Return *config* as a base.

    Raises:
        GridError: If a mapping holds what is not plain, or if what would be written of a
            model does not read back equal.
        TypeError: If it is neither a mapping nor a pydantic model.
    """
    if isinstance(config, BaseModel):
        return ModelBase(config)
    if isinstance(config, Mapping):
        return MappingBase(config)
    kind = type(config).__name__
    message = f"the base config is a mapping or a pydantic model, not a {kind}"
    raise TypeError(message)


class ModelBase(Base):
    """A copy of a model."""

    def __init__(self, config: BaseModel) -> None:
        self.by_alias = _written_form(config)
        self.class_name = class_name(type(config))
        self._config = config if is_immutable(config) else copy.deepcopy(config)
        self._sections: dict[str, Section] = {}
        self._unknown_keys: dict[str, str] = {}

    @property
    def name(self) -> Any:
        return getattr(self._config, NAME, None)

    @property
    def plain(self) -> dict[str, Any]:
        return self.plain_of(self._config)

    def plain_of(self, config: BaseModel | Mapping[str, Any]) -> dict[str, Any]:
        values = config
        if isinstance(config, BaseModel):
            values = written(config, by_alias=self.by_alias)
        return plain(values, "base config")  # type: ignore[no-any-return]

    def applied(self, parameters: Mapping[str, Any], name: str) -> BaseModel:
        changes = self._changes(parameters, name)
        try:
            result = self._validated(changes)
        except ValidationError as error:
            raise UnfitError([_fault(e, parameters) for e in error.errors()]) from None
        except Exception as error:  # noqa: BLE001 - a validator of the user's may raise any
            raise UnfitError([("", f"{type(error).__name__}: {error}")]) from None
        faults: list[Fault] = []
        for key, value in parameters.items():
            faults += without_effect(result, value, key)
            old, new = (at(config, key) for config in (self._config, result))
            faults += fallen_back(old, new, value, key)
        faults = faults or [
            *self._out_of_date(result, changes),
            *self._lost(result, parameters),
        ]
        if faults:
            raise UnfitError(faults)
        return result

    def _changes(self, parameters: Mapping[str, Any], name: str) -> _Changes:
        """Return *parameters* and *name* by sections.

        Raises:
            UnfitError: If the schema lacks a key.
        """
        faults: list[Fault] = []
        changes: _Changes = {}
        for key, value in parameters.items():
            if unknown := self._unknown(key, value):
                hint = nearest(unknown, schema_keys(type(self._config)))
                faults.append((unknown, f"the schema has no such key{hint}"))
            *above, last = key.split(".")
            section = changes
            for part in above:
                section = section.setdefault(part, {})
            section[last] = _Leaf(value)
        if faults:
            raise UnfitError(faults)
        if NAME in type(self._config).model_fields:
            changes[NAME] = _Leaf(name)
        return changes

    def _validated(
        self, changes: _Changes, without: frozenset[str] = frozenset()
    ) -> BaseModel:
        """Return the base with *changes*, as Python or else as JSON.

        A strict model takes the plain form of an enumeration, a tuple or a path from JSON
        alone; a validator may want mappings where Python has models.
        """
        kind = type(self._config)
        try:
            values = self._changed(self._config, changes, without)
            return kind.model_validate(values, by_alias=True, by_name=True)
        except Exception as error:  # noqa: BLE001 - a validator of the user's may raise any
            try:
                values = self._changed(self._config, changes, without, is_plain=True)
                text = json.dumps(values)
                return kind.model_validate_json(text, by_alias=True, by_name=True)
            except ValidationError as other:
                is_clearer = (
                    isinstance(error, ValidationError)
                    and error.error_count() < other.error_count()
                )
                raise (error if is_clearer else other) from None
            except Exception:  # noqa: BLE001 - what has no such form, as above
                raise error from None

    def _changed(
        self,
        section: Any,
        changes: _Changes,
        without: frozenset[str],
        place: str = "",
        *,
        is_plain: bool = False,
    ) -> dict[str, Any]:
        """Return the fields of *section* by name, changed; sections left alone stay objects."""
        known = self._section(section, place)
        values = known.plain() if is_plain else known.values()
        for part, change in changes.items():
            keeping = known.tags.get(part)
            if keeping and isinstance(change, _Leaf) and change.value not in keeping:
                kept = self._of_member(place, part, change.value) or values.keys()
                values = {n: v for n, v in values.items() if n in kept}
        for key in without:
            above, _, last = key.rpartition(".")
            if f"{above}." * bool(above) == place:
                values.pop(last, None)
        for part, change in changes.items():
            if isinstance(change, _Leaf):
                values[part] = copy.deepcopy(change.value)
            else:
                values[part] = self._changed(
                    get(section, part),
                    change,
                    without,
                    f"{place}{part}.",
                    is_plain=is_plain,
                )
        return values

    def _section(self, value: Any, place: str) -> Section:
        if place not in self._sections:
            is_union = sum(bool(fields(kind)) for kind in self._kinds(place)) > 1
            self._sections[place] = Section(value, is_union=is_union)
        return self._sections[place]

    def _of_member(self, place: str, tag: str, value: Any) -> set[str]:
        """Return the fields of the member of a union at *place* that *value* chooses."""
        kinds = self._kinds(place)
        found = [k for k in kinds if value in tag_values(fields(k).get(tag))]
        return {name for kind in found for name in fields(kind)}

    def _kinds(self, place: str) -> set[Any]:
        """Return the types that a section may be of."""
        kinds: set[Any] = {type(self._config)}
        for part in place.split(".")[:-1]:
            kinds = below(kinds, part) or set()
        return kinds

    def _out_of_date(self, result: BaseModel, changes: _Changes) -> Iterator[Fault]:
        """Yield what was set to what the class makes of other values, which are changed."""
        if not self._derived:
            return
        inside, without = _into(changes, self._derived)
        try:
            other = self._validated(inside, without)
        except Exception:  # noqa: BLE001 - without them the class makes nothing of it
            return
        for key in sorted(without):
            old, new = at(result, key), at(other, key)
            if not same(old, new):
                reason = (
                    f"{shown(old)} of the base config is what its class makes of other "
                    f"values, and is set all the same; here it would make {shown(new)}: set "
                    f"{key} in the same experiment, or not in the base config"
                )
                yield key, reason

    @cached_property
    def _derived(self) -> frozenset[str]:
        """What was set to what the class would make of it by itself; a default is none.

        Nobody can tell whether a user wrote that or a validator.
        """
        found = set()
        for key in self._set_values(self._config):
            inside, without = _into({}, [key])
            with suppress(Exception):  # a class may need it
                made = self._validated(inside, without)
                if not differing(self._config, made):
                    found.add(key)
        return frozenset(found)

    def _set_values(self, section: BaseModel, place: str = "") -> Iterator[str]:
        """Yield the key of each value that would be passed on and is no default."""
        known = self._section(section, place)
        for name in type(section).model_fields:
            value = getattr(section, name)
            if isinstance(value, BaseModel):
                yield from self._set_values(value, f"{place}{name}.")
            elif name in known.names - known.defaults and place + name != NAME:
                yield f"{place}{name}"

    def _lost(self, result: BaseModel, parameters: Mapping[str, Any]) -> Iterator[Fault]:
        """Yield what does not come back from what is written of *result*."""
        try:
            back = read_back(type(result), dumped(result, by_alias=self.by_alias))
        except Exception as error:  # noqa: BLE001 - whatever a model of the user's raises
            reason = (
                f"its config.yaml could not be read ({type(error).__name__}: {error})"
            )
            yield "", f"{reason}: {_LEAVE_OUT}"
            return
        lost = differing(result, back)
        keys = [k for k in parameters if not same(at(result, k), at(back, k))]
        for key in (keys or lost) if lost else ():
            old, new = at(result, key), at(back, key)
            reason = f"{shown(old)} would be read as {shown(new)} from its config.yaml"
            yield key, f"{reason}: {_LEAVE_OUT}"

    def _unknown(self, key: str, value: Any) -> str:
        """Return the key, perhaps one inside *value*, that the schema lacks; or ``""``."""
        if isinstance(value, dict | list):
            return self._look_up(key, value)
        if key not in self._unknown_keys:
            self._unknown_keys[key] = self._look_up(key, value)
        return self._unknown_keys[key]

    def _look_up(self, key: str, value: Any) -> str:
        kinds, current = {type(self._config)}, self._config
        for part in key.split("."):
            found = below(kinds, part)
            if found is None:
                return ""
            if not found:
                return key
            current = get(current, part)
            kinds = found | ({type(current)} if current is not None else set())
        return unknown_inside(kinds, value, key)


def _copied(changes: _Changes) -> _Changes:
    return {k: v if isinstance(v, _Leaf) else _copied(v) for k, v in changes.items()}


def _into(changes: _Changes, keys: Collection[str]) -> tuple[_Changes, frozenset[str]]:
    """Return *changes* that go into the sections of *keys*, and those that they do not set."""
    result = _copied(changes)
    left = set()
    for key in keys:
        *above, last = key.split(".")
        section: Any = result
        for part in above:
            section = section.setdefault(part, {}) if isinstance(section, dict) else None
        if isinstance(section, dict) and last not in section:
            left.add(key)
    return result, frozenset(left)


def _written_form(config: BaseModel) -> bool:
    """Return whether *config* is written by its aliases, so that it reads back equal.

    If both forms do, it is the one of which more is read: what is not read comes back equal
    only as long as it is the default.

    Raises:
        GridError: If it does not in either form.
    """
    lost = ""
    forms: list[tuple[int, bool]] = []
    for by_alias in (True, False):
        try:
            values = written(config, by_alias=by_alias)
        except Exception as error:  # noqa: BLE001 - whatever a model of the user's raises
            lost = lost or f"{type(error).__name__}: {error}"
            continue
        plain(values, "base config")
        try:
            back = read_back(type(config), values)
        except Exception as error:  # noqa: BLE001 - whatever a model of the user's raises
            lost = lost or f"{type(error).__name__}: {error}"
            continue
        if names := differing(config, back):
            lost = f"{names[0]} does not come back"
        else:
            forms.append((_num_unset(back), not by_alias))
    if forms:
        return not min(forms)[1]
    place = "base config"
    reason = (
        f"what would be written of it does not read back equal ({lost}), so experiments "
        f"would get other values: {_LEAVE_OUT}"
    )
    raise GridError(place, reason)


def _num_unset(value: Any) -> int:
    """Return how many fields of the models in *value* were not set."""
    if isinstance(value, BaseModel):
        unset = type(value).model_fields.keys() - value.model_fields_set
        return len(unset) + sum(
            _num_unset(getattr(value, n)) for n in value.model_fields_set
        )
    if isinstance(value, Mapping):
        return sum(map(_num_unset, value.values()))
    if isinstance(value, list | tuple | set | frozenset):
        return sum(map(_num_unset, value))
    return 0


def _fault(error: Any, parameters: Mapping[str, Any]) -> Fault:
    place = ".".join(str(part) for part in error["loc"])
    for key in parameters:
        if place == key or place.startswith(f"{key}.") or key.startswith(f"{place}."):
            place = place if place.startswith(f"{key}.") else key
            break
    return place, f"{error['msg']}, found {shown(error['input'])}"
