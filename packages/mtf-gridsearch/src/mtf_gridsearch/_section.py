"""One section of a base that is a pydantic model, or like one: what an experiment gets of it.

That is what was set, so that the class works out again what follows from other values; and
what else is needed for an equal section, such as what was changed in a default.
"""

from __future__ import annotations

import copy
import dataclasses
import typing
from collections.abc import Collection, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import cached_property
from pathlib import PurePath
from typing import Any
from uuid import UUID

from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from mtf_gridsearch._written import differing, same

__all__ = ["Section", "is_immutable", "tag_values"]

_SCALARS = (type(None), bool, int, float, complex, str, bytes, Enum)
_MAPPING = TypeAdapter(dict[str, Any])
_OBJECTS = (PurePath, date, time, timedelta, Decimal, UUID)


class Section:
    """What is passed on of *value*: of a model, a dataclass or a mapping; else nothing.

    Args:
        value: Of the section.
        is_union: Whether it is one of several that may stand there. Where no tag says
            which, all is passed on, for pydantic takes the one that knows the most of it.

    Attributes:
        names: Of what is passed on.
        defaults: Fields of a model that have their default.
        tags: Fields that choose a member of a union, and the values that keep this one.
    """

    def __init__(self, value: Any, *, is_union: bool = False) -> None:
        self._value = value
        self.defaults: set[str] = set()
        self.tags: dict[str, Collection[Any]] = {}
        if isinstance(value, BaseModel):
            for name, field in type(value).model_fields.items():
                if values := tag_values(field.annotation):
                    self.tags[name] = values
                if same(_default(field), getattr(value, name)):
                    self.defaults.add(name)
            is_told = self.tags or not is_union
            self._values = _least(value) if is_told else _all(value)
        elif isinstance(value, Mapping):
            self._values = dict(value)
        elif dataclasses.is_dataclass(value):
            self._values = {
                f.name: getattr(value, f.name) for f in dataclasses.fields(value)
            }
        else:
            self._values = {}
        self.names = self._values.keys()
        self._shared = {n for n, v in self._values.items() if is_immutable(v)}

    def values(self) -> dict[str, Any]:
        """Return it by field name, as Python objects that may be changed."""
        return {
            name: value if name in self._shared else copy.deepcopy(value)
            for name, value in self._values.items()
        }

    def plain(self) -> dict[str, Any]:
        """Return it by field name, as JSON has it."""
        return copy.deepcopy(self._plain)

    @cached_property
    def _plain(self) -> dict[str, Any]:
        if isinstance(self._value, BaseModel):
            dumped = self._value.model_dump(mode="json", by_alias=False, round_trip=True)
            return {name: v for name, v in dumped.items() if name in self._values}
        return _MAPPING.dump_python(  # type: ignore[no-any-return]
            self._values, mode="json", by_alias=False, round_trip=True
        )


def _least(model: BaseModel) -> dict[str, Any]:
    """Return fields of *model* from which its class makes an equal one: those set, above all."""
    kind = type(model)
    known = _all(model)
    kept = set(model.model_fields_set) | (model.model_extra or {}).keys()
    # What chooses a member of a union is needed, and often nobody sets it.
    kept.update(n for n, f in kind.model_fields.items() if tag_values(f.annotation))
    for _ in range(2):
        least = {name: value for name, value in known.items() if name in kept}
        made = _made(kind, least)
        if made is None:
            break
        lost = differing(model, made)
        if not lost:
            return least
        kept.update(lost)
    return known


def _all(model: BaseModel) -> dict[str, Any]:
    known = {name: getattr(model, name) for name in type(model).model_fields}
    return known | (model.model_extra or {})


def _made(kind: type[BaseModel], values: dict[str, Any]) -> BaseModel | None:
    """Return what *kind* makes of copies of *values*; None if it refuses them."""
    try:
        return kind.model_validate(copy.deepcopy(values), by_alias=True, by_name=True)
    except Exception:  # noqa: BLE001 - a validator of the user's may raise any
        return None


def _default(field: FieldInfo) -> Any:
    """Return the default; what equals no value where it is none or follows from others."""
    try:
        if not field.default_factory_takes_validated_data:
            return field.get_default(call_default_factory=True)
    except Exception:  # noqa: BLE001 - a factory of the user's may raise any
        return field
    return field


def tag_values(annotation: Any) -> Collection[Any]:
    """Return the plain values that a field which tells members of a union apart may have."""
    if typing.get_origin(annotation) is not typing.Literal:
        return ()
    values = typing.get_args(annotation)
    return [value.value if isinstance(value, Enum) else value for value in values]


def is_immutable(value: Any) -> bool:
    """Tell whether *value* may be shared, for nothing in it can be changed."""
    if isinstance(value, BaseModel):
        if not type(value).model_config.get("frozen"):
            return False
        inner = [*value.__dict__.values(), *(value.model_extra or {}).values()]
        return all(map(is_immutable, inner))
    if isinstance(value, tuple | frozenset):
        return all(map(is_immutable, value))
    return isinstance(value, _SCALARS + _OBJECTS)
