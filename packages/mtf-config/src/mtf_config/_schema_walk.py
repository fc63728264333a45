"""Questions about the schema by key: does it exist, what does it take, what is near it."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from functools import lru_cache
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from mtf_config._tree import MISSING
from mtf_config.experiment import ExperimentConfig
from mtf_config.origin import KeyPath, dotted

__all__ = [
    "OPEN",
    "UNKNOWN",
    "default_of",
    "known_keys",
    "lookup",
    "nearest",
    "takes_text",
]

OPEN: Any = object()
"""Any value may stand there: an extra key of the model, or below one."""
UNKNOWN: Any = object()
"""The schema has no such key."""
_SYNONYMS = {
    "learning_rate": "lr",
    "learn_rate": "lr",
    "wd": "weight_decay",
    "epoch": "max_epochs",
    "clip": "max_grad_norm",
    "time_limit": "time",
}


def lookup(path: KeyPath) -> Any:
    """Return the annotation at *path*, or `OPEN`, or `UNKNOWN`."""
    annotation: Any = ExperimentConfig
    for part in path:
        section = _section(annotation)
        if section is not None:
            field = section.model_fields.get(str(part))
            if field is None:
                return OPEN if section.model_config.get("extra") == "allow" else UNKNOWN
            annotation = field.annotation
        elif isinstance(part, int) and any(
            get_origin(m) is tuple for m in members(annotation)
        ):
            annotation = float
        else:
            return UNKNOWN
    return annotation


def _section(annotation: Any) -> type[BaseModel] | None:
    for member in members(annotation):
        if isinstance(member, type) and issubclass(member, BaseModel):
            return member
    return None


def members(annotation: Any) -> Iterator[Any]:
    """Yield the types of a union, without what is only metadata."""
    if get_origin(annotation) is Annotated:
        yield from members(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from members(member)
    else:
        yield annotation


def takes_text(path: KeyPath, value: object) -> bool:
    """Tell whether text meaning *value* is wanted as text at *path*.

    ``seed=123`` is a number and ``description=123`` is text.
    """
    annotation = lookup(path)
    if annotation is OPEN or annotation is UNKNOWN:
        return False
    kinds = set(members(annotation))
    return str in kinds and type(value) not in kinds


def default_of(path: KeyPath, is_given: Callable[[KeyPath], bool]) -> Any:
    """Return the schema's default at *path* as a plain value, or `MISSING`.

    A section that is required, or optional and given, has none, but keys in it may.

    Args:
        path: A key that the config does not set.
        is_given: Tells whether the config holds the section at a path.
    """
    value: Any = ExperimentConfig
    for index, part in enumerate(path, start=1):
        if isinstance(value, type) and issubclass(value, BaseModel):
            field = value.model_fields.get(str(part))
            if field is None:
                return MISSING
            is_open = field.is_required() or (
                field.default is None and is_given(path[:index])
            )
            value = (_section(field.annotation) or MISSING) if is_open else field.default
        elif isinstance(value, BaseModel):
            value = value.__dict__.get(str(part), MISSING)
        elif isinstance(value, tuple) and part in range(len(value)):
            value = value[int(part)]
        else:
            return MISSING
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return list(value) if isinstance(value, tuple) else MISSING


def nearest(path: KeyPath) -> str:
    """Return the dotted key of the schema that is most like *path*, or ``""``.

    First that very name elsewhere, then among the keys beside it, then anywhere.
    """
    *above, last = path
    names = [known[-1] for known in _all_keys()]
    section = _section(lookup(tuple(above)))
    if section is not None and last not in names:
        near = _most_like(str(last), list(section.model_fields), cutoff=0.6)
        if near:
            return dotted((*above, near))
    near = _most_like(str(last), names, cutoff=0.75)
    return dotted(_all_keys()[names.index(near)]) if near else ""


def known_keys(path: KeyPath) -> str:
    """List the keys of the section at *path*, in words; ``""`` if it is none."""
    section = _section(lookup(path))
    return f"the keys here are {', '.join(section.model_fields)}" if section else ""


def _most_like(wanted: str, names: list[str], cutoff: float) -> str:
    """Return the closest of *names*, or one of which *wanted* is a word, or ``""``."""
    wanted = wanted.lower()
    known = [*names, *(other for other, name in _SYNONYMS.items() if name in names)]
    near = get_close_matches(wanted, known, n=1, cutoff=cutoff)
    found = near or [name for name in names if wanted in name.split("_")]
    return _SYNONYMS.get(found[0], found[0]) if found else ""


@lru_cache(maxsize=1)
def _all_keys() -> tuple[tuple[str, ...], ...]:
    def below(section: type[BaseModel], at: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        for name, field in section.model_fields.items():
            yield (*at, name)
            if (inner := _section(field.annotation)) is not None:
                yield from below(inner, (*at, name))

    return tuple(below(ExperimentConfig, ()))
