"""The base config of a search: what its schema knows, and copies with parameters set.

A mapping is its own schema: its keys, at every level, are the ones there are, and a value
keeps its kind (number, truth, text, list, mapping; null goes with all). A pydantic model
is validated as a whole by its own class; a key that its schema would ignore is unknown.
"""

from __future__ import annotations

import copy
import dataclasses
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from mtf_gridsearch._plain import nearest, plain, shown
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
                hint = nearest(unknown, _schema_keys(type(self._config)))
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
        config = self._config if self._is_frozen else copy.deepcopy(self._config)
        values = _changed(config, changes)
        try:
            return type(self._config).model_validate(values, by_alias=True, by_name=True)
        except ValidationError as error:
            raise UnfitError([_fault(e, parameters) for e in error.errors()]) from None
        except Exception as error:  # noqa: BLE001 - a validator of the user's may raise any
            raise UnfitError([("", f"{type(error).__name__}: {error}")]) from None

    def _unknown(self, key: str, value: Any) -> str:
        """Return the key, perhaps one inside *value*, that the schema lacks; or ``""``."""
        kinds, current = {type(self._config)}, self._config
        for part in key.split("."):
            found = _below(kinds, part)
            if found is None:
                return ""
            if not found:
                return key
            current = _get(current, part)
            kinds = found | ({type(current)} if current is not None else set())
        return _unknown_inside(kinds, value, key)


def _written_form(config: BaseModel) -> bool:
    """Return whether *config* is written by its aliases, so that it reads back equal.

    Raises:
        GridError: If it does not in either form.
    """
    lost = ""
    for by_alias in (True, False):
        try:
            values = config.model_dump(mode="json", by_alias=by_alias)
            back = type(config).model_validate(values)
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


class _Leaf:
    """A value that is set, as against a section that is gone into."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


_Changes = dict[str, Any]


def _changed(value: Any, changes: _Changes) -> dict[str, Any]:
    """Return the fields of *value* by name, changed; sections left alone stay objects."""
    if isinstance(value, BaseModel):
        fields = {name: getattr(value, name) for name in type(value).model_fields}
        fields.update(value.model_extra or {})
    elif isinstance(value, Mapping):
        fields = dict(value)
    elif dataclasses.is_dataclass(value):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    else:
        fields = {}
    for part, change in changes.items():
        if isinstance(change, _Leaf):
            fields[part] = copy.deepcopy(change.value)
        else:
            fields[part] = _changed(fields.get(part), change)
    return fields


def _get(value: Any, part: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(part)
    return getattr(value, part, None)


def _unknown_inside(kinds: set[Any], value: Any, key: str) -> str:
    if isinstance(value, list):
        elements = {
            leaf
            for kind in kinds
            if typing.get_origin(kind) in (list, tuple, set, frozenset)
            for argument in typing.get_args(kind)
            for leaf in _leaves(argument)
        }
        for number, inner in enumerate(value if elements else ()):
            if unknown := _unknown_inside(elements, inner, f"{key}.{number}"):
                return unknown
    if isinstance(value, dict):
        for part, inner in value.items():
            found = _below(kinds, part)
            if found is None:
                return ""
            place = f"{key}.{part}"
            if not found:
                return place
            if unknown := _unknown_inside(found, inner, place):
                return unknown
    return ""


def _below(kinds: set[Any], part: str) -> set[Any] | None:
    """Return the types that *part* may have in values of *kinds*.

    Empty if none of them knows it; None if one of them takes any key.
    """
    found: set[Any] = set()
    is_open = False
    for kind in kinds:
        fields = _fields(kind)
        if part in fields:
            found |= set(_leaves(fields[part]))
        elif _takes_any(kind):
            is_open = True
            if arguments := typing.get_args(kind):
                found |= set(_leaves(arguments[-1]))
    return found if found or not is_open else None


def _fields(kind: Any) -> Mapping[str, Any]:
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


def _schema_keys(kind: Any, prefix: str = "", depth: int = 0) -> Iterator[str]:
    for name, annotation in _fields(kind).items():
        yield f"{prefix}{name}"
        for leaf in _leaves(annotation):
            if depth < 8:  # noqa: PLR2004 - a model may hold itself
                yield from _schema_keys(leaf, f"{prefix}{name}.", depth + 1)


def _fault(error: Any, parameters: Mapping[str, Any]) -> Fault:
    place = ".".join(str(part) for part in error["loc"])
    for key in parameters:
        if place == key or place.startswith(f"{key}.") or key.startswith(f"{place}."):
            place = place if place.startswith(f"{key}.") else key
            break
    return place, f"{error['msg']}, found {shown(error['input'])}"
