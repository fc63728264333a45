"""The base config of a search: what its schema knows, and copies with parameters set.

A mapping is its own schema: its keys, at every level, are the ones there are, and a value
keeps its kind (number, truth, text, list, mapping; null goes with all). A pydantic model
is validated as a whole by its own class, values as it would take them from JSON; a key that
its schema would ignore is unknown.

A mapping that is set takes the place of the base's, and is never merged with it. One that
would change by this what it does not name is refused: it lacks keys of a mapping, or would
give fields of the same section their defaults. A section of another type is all its own.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from mtf_gridsearch._plain import nearest, plain, shown
from mtf_gridsearch._schema import below, fields, schema_keys, unknown_inside
from mtf_gridsearch.errors import GridError

__all__ = ["Base", "Fault", "UnfitError", "base_of"]

NAME = "experiment_name"
Fault = tuple[str, str]
"""A parameter's key, and what is wrong with it."""


class UnfitError(Exception):
    """Parameters do not fit; *faults* has one entry for each reason."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("; ".join(f"{key}: {reason}" for key, reason in faults))
        self.faults = faults


class Base(ABC):
    """A base config; nothing changes it."""

    @property
    @abstractmethod
    def name(self) -> Any:
        """Its ``experiment_name``; None if it has none."""

    @property
    @abstractmethod
    def plain(self) -> dict[str, Any]:
        """Its values, as YAML holds them."""

    by_alias = False
    """Whether configs are written by the aliases of their fields."""

    @abstractmethod
    def applied(self, parameters: Mapping[str, Any], name: str) -> Any:
        """Return a config like the base, with *parameters* set, called *name*.

        Raises:
            UnfitError: If they do not fit.
        """


def base_of(config: Any) -> Base:
    """Return *config* as a base.

    Raises:
        GridError: If a mapping holds what is not plain.
        TypeError: If it is neither a mapping nor a pydantic model.
    """
    if isinstance(config, BaseModel):
        return _ModelBase(config)
    if isinstance(config, Mapping):
        return _MappingBase(config)
    kind = type(config).__name__
    message = f"the base config is a mapping or a pydantic model, not a {kind}"
    raise TypeError(message)


class _MappingBase(Base):
    def __init__(self, config: Mapping[str, Any]) -> None:
        self._values: dict[str, Any] = plain(config, "base config")

    @property
    def name(self) -> Any:
        return self._values.get(NAME)

    @property
    def plain(self) -> dict[str, Any]:
        return copy.deepcopy(self._values)

    def applied(self, parameters: Mapping[str, Any], name: str) -> dict[str, Any]:
        result = self.plain
        faults = []
        for key, value in parameters.items():
            *above, last = key.split(".")
            section: Any = result
            for part in above:
                section = section.get(part) if isinstance(section, dict) else None
            if not isinstance(section, dict) or last not in section:
                reason = f"the base config has no such key{nearest(key, _dotted(self._values))}"
                faults.append((key, reason))
                continue
            faults += self._unlike(section[last], value, key)
            section[last] = copy.deepcopy(value)
        if faults:
            raise UnfitError(faults)
        if NAME in result:
            result[NAME] = name
        return result

    def _unlike(self, known: Any, value: Any, key: str) -> Iterator[Fault]:
        if known is None or value is None:
            return
        if _kind(known) != _kind(value):
            reason = f"{shown(value)} is {_kind(value)}, but in the base config it is"
            yield key, f"{reason} {_kind(known)}: {shown(known)}"
        elif isinstance(value, dict):
            for part, inner in value.items():
                if part not in known:
                    hint = nearest(f"{key}.{part}", _dotted(self._values))
                    yield f"{key}.{part}", f"the base config has no such key{hint}"
                else:
                    yield from self._unlike(known[part], inner, f"{key}.{part}")
            # One that was misspelt is told of above.
            for part in (
                known.keys() - value.keys() if value.keys() <= known.keys() else ()
            ):
                yield _left_out(f"{key}.{part}", shown(known[part]), "be lost")


def _left_out(key: str, value: str, fate: str) -> Fault:
    section = key.rpartition(".")[0]
    reason = f"{value} of the base config would {fate}, for {section} replaces it whole"
    return key, f"{reason}: name all in {section}, or set {section}.<key> alone"


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "text"
    return "a list" if isinstance(value, list) else "a mapping"


def _dotted(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{key}.")


class _ModelBase(Base):
    def __init__(self, config: BaseModel) -> None:
        self._config = config
        # What is given away must not be tied to the base by a section they share.
        self._is_frozen = bool(type(config).model_config.get("frozen"))
        self.by_alias = _written_form(config)

    @property
    def name(self) -> Any:
        return getattr(self._config, NAME, None)

    @property
    def plain(self) -> dict[str, Any]:
        values = self._config.model_dump(mode="json", by_alias=self.by_alias)
        return plain(values, "base config")  # type: ignore[no-any-return]

    def applied(self, parameters: Mapping[str, Any], name: str) -> BaseModel:
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
        try:
            result = self._validated(changes)
        except ValidationError as error:
            raise UnfitError([_fault(e, parameters) for e in error.errors()]) from None
        except Exception as error:  # noqa: BLE001 - a validator of the user's may raise any
            raise UnfitError([("", f"{type(error).__name__}: {error}")]) from None
        for key, value in parameters.items():
            faults += _without_effect(result, value, key)
            old, new = (_at(config, key) for config in (self._config, result))
            faults += _fallen_back(old, new, value, key)
        if faults:
            raise UnfitError(faults)
        return result

    def _validated(self, changes: _Changes) -> BaseModel:
        """Return the base with *changes*, as Python or else as JSON.

        A strict model takes the plain form of an enumeration, a tuple or a path from JSON
        alone.
        """
        kind = type(self._config)
        config = self._config if self._is_frozen else copy.deepcopy(self._config)
        try:
            values = _changed(config, changes)
            return kind.model_validate(values, by_alias=True, by_name=True)
        except ValidationError as error:
            try:
                values = _changed(self._config.model_dump(mode="json"), changes)
                text = json.dumps(values)
                return kind.model_validate_json(text, by_alias=True, by_name=True)
            except ValidationError as other:
                raise (
                    other if other.error_count() <= error.error_count() else error
                ) from None
            except Exception:  # noqa: BLE001 - what has no such form, as above
                raise error from None

    def _unknown(self, key: str, value: Any) -> str:
        """Return the key, perhaps one inside *value*, that the schema lacks; or ``""``."""
        kinds, current = {type(self._config)}, self._config
        for part in key.split("."):
            found = below(kinds, part)
            if found is None:
                return ""
            if not found:
                return key
            current = _get(current, part)
            kinds = found | ({type(current)} if current is not None else set())
        return unknown_inside(kinds, value, key)


def _written_form(config: BaseModel) -> bool:
    """Return whether *config* is written by its aliases, so that it reads back equal.

    Raises:
        GridError: If it does not in either form.
    """
    lost = ""
    for by_alias in (True, False):
        try:
            values = config.model_dump(mode="json", by_alias=by_alias)
        except Exception as error:  # noqa: BLE001 - whatever a model of the user's raises
            lost = lost or f"{type(error).__name__}: {error}"
            continue
        plain(values, "base config")
        try:
            back = _read_back(type(config), values)
        except Exception as error:  # noqa: BLE001 - whatever a model of the user's raises
            lost = lost or f"{type(error).__name__}: {error}"
            continue
        names = type(config).model_fields
        differing = [n for n in names if getattr(back, n) != getattr(config, n)]
        if not differing:
            return by_alias
        lost = f"{differing[0]} does not come back"
    place = "base config"
    reason = (
        f"what would be written of it does not read back equal ({lost}), so experiments "
        "would get other values: leave out secrets, excluded fields and custom serializers"
    )
    raise GridError(place, reason)


def _read_back(kind: type[BaseModel], values: dict[str, Any]) -> BaseModel:
    try:
        return kind.model_validate(values)
    except ValidationError:
        return kind.model_validate_json(json.dumps(values))


def _fallen_back(old: Any, new: Any, value: Any, key: str) -> Iterator[Fault]:
    """Yield fields that *value* does not name, and that it changes all the same."""
    if not isinstance(value, dict) or type(old) is not type(new):
        return
    for name in fields(type(old)):
        before, after = getattr(old, name), getattr(new, name)
        if name in value:
            yield from _fallen_back(before, after, value[name], f"{key}.{name}")
        elif before != after:
            fate = f"become {shown(after)}"
            yield _left_out(f"{key}.{name}", shown(before), fate)


def _without_effect(config: Any, value: Any, key: str) -> Iterator[Fault]:
    """Yield what is set at *key* and is not in *config*: another member of a union has it."""
    at, section = "", config
    for part in key.split("."):
        at = f"{at}.{part}" if at else part
        if not _has(section, part):
            yield at, _in_force(section, at)
            return
        section = _get(section, part)
    yield from _lost_inside(section, value, key)


def _lost_inside(result: Any, value: Any, key: str) -> Iterator[Fault]:
    if isinstance(value, dict):
        for part, inner in value.items():
            if _has(result, part):
                yield from _lost_inside(_get(result, part), inner, f"{key}.{part}")
            else:
                yield f"{key}.{part}", _in_force(result, f"{key}.{part}")
    elif isinstance(value, list) and isinstance(result, list | tuple):
        # Of another length, a validator made something else of it.
        for number, inner in enumerate(value if len(value) == len(result) else ()):
            yield from _lost_inside(result[number], inner, f"{key}.{number}")


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
        return part in value
    if dataclasses.is_dataclass(value):
        return hasattr(value, part)
    return value is not None


class _Leaf:
    """A value that is set, as against a section that is gone into."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


_Changes = dict[str, Any]


def _changed(value: Any, changes: _Changes) -> dict[str, Any]:
    """Return the fields of *value* by name, changed; sections left alone stay objects."""
    if isinstance(value, BaseModel):
        known = {name: getattr(value, name) for name in type(value).model_fields}
        known.update(value.model_extra or {})
    elif isinstance(value, Mapping):
        known = dict(value)
    elif dataclasses.is_dataclass(value):
        known = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    else:
        known = {}
    for part, change in changes.items():
        if isinstance(change, _Leaf):
            known[part] = copy.deepcopy(change.value)
        else:
            known[part] = _changed(known.get(part), change)
    return known


def _at(value: Any, key: str) -> Any:
    for part in key.split("."):
        value = _get(value, part)
    return value


def _get(value: Any, part: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(part)
    return getattr(value, part, None)


def _fault(error: Any, parameters: Mapping[str, Any]) -> Fault:
    place = ".".join(str(part) for part in error["loc"])
    for key in parameters:
        if place == key or place.startswith(f"{key}.") or key.startswith(f"{place}."):
            place = place if place.startswith(f"{key}.") else key
            break
    return place, f"{error['msg']}, found {shown(error['input'])}"
