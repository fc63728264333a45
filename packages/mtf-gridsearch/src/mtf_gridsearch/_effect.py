"""What a parameter did to a model: whether it is there, and what else it changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from mtf_gridsearch._base import Fault, left_out
from mtf_gridsearch._plain import shown
from mtf_gridsearch._schema import fields
from mtf_gridsearch._written import same

__all__ = ["at", "fallen_back", "get", "without_effect"]


def fallen_back(old: Any, new: Any, value: Any, key: str) -> Iterator[Fault]:
    """Yield fields that *value* does not name, and that it changes all the same."""
    if not isinstance(value, dict) or type(old) is not type(new):
        return
    for name in fields(type(old)):
        before, after = getattr(old, name), getattr(new, name)
        if name in value:
            yield from fallen_back(before, after, value[name], f"{key}.{name}")
        elif not same(before, after):
            fate = f"become {shown(after)}"
            yield left_out(f"{key}.{name}", shown(before), fate)


def without_effect(config: Any, value: Any, key: str) -> Iterator[Fault]:
    """Yield what is set at *key* and is not in *config*: another member of a union has it."""
    at, section = "", config
    for part in key.split("."):
        at = f"{at}.{part}" if at else part
        if not _has(section, part):
            yield at, _in_force(section, at)
            return
        section = get(section, part)
    yield from _lost_inside(section, value, key)


def _lost_inside(result: Any, value: Any, key: str) -> Iterator[Fault]:
    if isinstance(value, dict):
        for part, inner in value.items():
            if _has(result, part):
                yield from _lost_inside(get(result, part), inner, f"{key}.{part}")
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


def at(value: Any, key: str) -> Any:
    for part in key.split("."):
        value = get(value, part)
    return value


def get(value: Any, part: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(part)
    return getattr(value, part, None)
