"""What the experiments over a model are made of: the least from which its class makes it.

That is plain values under the keys that the class reads, as in a config.yaml: what was set,
what chooses a member of a union, and what else is needed for an equal config. What the class
makes again by itself, equal, is left out, so that it follows from the parameters.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel, RootModel, TypeAdapter

from mtf_gridsearch._base import NAME
from mtf_gridsearch._effect import Path, lost
from mtf_gridsearch._schema import default_of, read_key, tag_values
from mtf_gridsearch._written import (
    differences,
    same,
    written,
    written_keys,
)

__all__ = ["Form", "Forms", "values_of"]

_Read = Callable[[str], BaseModel]
_ANY: TypeAdapter[Any] = TypeAdapter(Any)
_MOST_TRIED = 300  # values of one base, each of which has the class make a config


class Form(NamedTuple):
    """The base as experiments get it before their parameters.

    Attributes:
        text: JSON that the class reads as the base; None if it reads another from any.
        kept: The same with what was set, and *text* leaves to the class.
        out: What is left out, and made by the class.
        frozen: Sections that the class may make of other values as a whole, and what is
            kept there, as dotted keys.
        wrong: Of *text* None: what the class does not make.
    """

    text: str | None
    kept: str | None = None
    out: frozenset[Path] = frozenset()
    frozen: tuple[tuple[str, str], ...] = ()
    wrong: Path = ()


@dataclasses.dataclass(slots=True)
class _Node:
    """A value of the base.

    Attributes:
        key: That it is read by.
        plain: As it is written.
        below: What it holds, by name; empty if that is nothing which experiments may set.
        is_list: Whether *plain* is a list of what it holds.
        is_odd: Whether it is written as something else than its fields.
        is_mapping: Whether what it holds are keys, and no fields.
        is_kept: Whether leaving it out tells nothing: a tag, a default, an item of a list.
        is_default: Whether it is the default of its field.
    """

    key: str
    plain: Any
    below: dict[str, _Node] = dataclasses.field(default_factory=dict)
    is_list: bool = False
    is_odd: bool = False
    is_mapping: bool = False
    is_kept: bool = False
    is_default: bool = False


class Forms:
    """The forms of a base: one for each set of sections that parameters go into.

    Args:
        config: The base.
        plain: As it is written.
        same_config: An equal one that nobody changes.
        read: What its class makes of JSON.
        by_alias: Whether it is written by aliases.

    Attributes:
        unset: What was not set in the base.
    """

    def __init__(
        self,
        config: BaseModel,
        plain: Any,
        same_config: BaseModel,
        read: _Read,
        *,
        by_alias: bool,
    ) -> None:
        self.unset: set[Path] = set()
        self._by_alias, self._config, self._read = by_alias, same_config, read
        self._values = values_of(same_config)
        self._root = self._node("", config, plain, ())
        self._forms: dict[frozenset[Path], Form] = {}

    def into(self, sections: frozenset[Path]) -> Form:
        """Return the form whose *sections* are there to be set in."""
        if sections not in self._forms:
            self._forms[sections] = self._form(sections)
        return self._forms[sections]

    def _form(self, sections: frozenset[Path]) -> Form:
        inner = {path[:end] for path in sections for end in range(len(path) + 1)}
        out = self.unset - inner
        while wrong := self._wrong(out, inner):
            back = {p for w in wrong for p in out if p and p == w[: len(p)]}
            back = back or {p for w in wrong for p in out if p[: len(w)] == w}
            if not back:
                return Form(None, wrong=wrong[0])
            out -= back
        kept = self._text(out, inner)
        self._leave_out(out, inner)
        frozen: list[tuple[str, str]] = []
        if inner - {()}:
            alone = self.into(frozenset()).out
            for section in inner & alone:
                if not self._at(section).is_default:
                    place = ".".join(section)
                    frozen += ((place, ".".join(p)) for p in self._leaves(section, out))
        text = self._text(out, inner)
        return Form(text, kept, frozenset(out), tuple(frozen))

    def _wrong(self, out: set[Path], inner: set[Path]) -> list[Path]:
        """Return where the class makes another config without *out*."""
        try:
            made = self._read(self._text(out, inner))
            # Equal values may be written in two ways, and then both count.
            if found := [each.path for each in lost(made, self._config)]:
                return found
            # What was not set in either is the same default, however it is written.
            unset = self.unset & out
            found = list(differences(self._values, values_of(made)))
            return [
                p for p in found if not any(p[:n] in unset for n in range(len(p) + 1))
            ]
        except Exception:  # noqa: BLE001 - a validator of the user's may raise any
            return [()]

    def _leave_out(self, out: set[Path], inner: set[Path]) -> None:
        """Add to *out* what the class makes again, last fields first.

        Whether a user set it or a validator, nobody can tell. Of two that follow from each
        other, one stays.
        """
        left: list[tuple[Path, _Node, bool]] = [((), self._root, True)]
        num_tried = 0
        while left:
            path, node, is_kept = left.pop()
            if path in out or path == (NAME,):
                continue
            is_kept |= path in inner or num_tried == _MOST_TRIED
            num_tried += not is_kept
            if not is_kept and not self._wrong({*out, path}, inner):
                out.add(path)
                continue
            known = self._filled(path, node, out, inner) if node.is_mapping else None
            for name, below in node.below.items():
                is_kept = below.is_kept if known is None else name not in known
                left.append(((*path, name), below, is_kept))

    def _filled(
        self, path: Path, node: _Node, out: set[Path], inner: set[Path]
    ) -> Collection[str]:
        """Return the keys that a mapping gets from the class if it is given without any."""
        without = {*out, *((*path, name) for name in node.below)}
        try:
            made: Any = self._read(self._text(without, inner))
        except Exception:  # noqa: BLE001 - a validator of the user's may raise any
            return ()
        for name in path:
            made = dict(_held(made)).get(name)
        return written_keys(made) if isinstance(made, Mapping) else ()

    def _leaves(self, path: Path, out: set[Path]) -> Iterator[Path]:
        below = [(*path, name) for name in self._at(path).below]
        for each in below:
            if each not in out:
                yield from self._leaves(each, out)
        if not below:
            yield path

    def _at(self, path: Path) -> _Node:
        node = self._root
        for name in path:
            node = node.below.get(name) or _Node(name, None)
        return node

    def _text(self, out: set[Path], inner: set[Path]) -> str:
        return json.dumps(self._plain(self._root, (), out, inner))

    def _plain(self, node: _Node, path: Path, out: set[Path], inner: set[Path]) -> Any:
        if not node.below or (node.is_odd and path not in inner):
            return node.plain
        items = ((below, (*path, name)) for name, below in node.below.items())
        if node.is_list:
            return [self._plain(below, place, out, inner) for below, place in items]
        return {
            below.key: self._plain(below, place, out, inner)
            for below, place in items
            if place not in out
        }

    def _node(self, key: str, value: Any, plain: Any, path: Path) -> _Node:
        node = _Node(key, plain)
        if isinstance(value, list | tuple):
            node.is_list = True
            has_sections = any(dict(_held(item)) for item in value)
            if has_sections and isinstance(plain, list) and len(value) == len(plain):
                for number, (item, inner) in enumerate(zip(value, plain, strict=True)):
                    name = str(number)
                    node.below[name] = self._node(name, item, inner, (*path, name))
                    node.below[name].is_kept = True
            return node
        kind, held = type(value), dict(_held(value))
        if not held:
            return node
        fields = getattr(kind, "__pydantic_fields__", {})
        keys = {
            name: (name in fields and self._by_alias and fields[name].serialization_alias)
            or name
            for name in held
        }
        if not isinstance(plain, dict) or plain.keys() - set(keys.values()):
            plain = {keys[name]: self._jsonable(inner) for name, inner in held.items()}
            node.is_odd = True
        node.is_mapping = isinstance(value, Mapping)
        set_names = _set_names(value, held)
        for name, inner in held.items():
            if keys[name] not in plain:
                continue
            place = (*path, name)
            read = read_key((kind,), name) if self._by_alias else name
            below = self._node(read, inner, plain[keys[name]], place)
            is_tag = name in fields and bool(tag_values(fields[name].annotation))
            below.is_default = same(default_of(kind, name), inner)
            below.is_kept = is_tag or below.is_default
            if name not in set_names and not is_tag:
                self.unset.add(place)
            node.below[name] = below
        return node

    def _jsonable(self, value: Any) -> Any:
        try:
            return _ANY.dump_python(
                value,
                mode="json",
                by_alias=self._by_alias,
                round_trip=True,
                warnings=False,
            )
        except Exception:  # noqa: BLE001 - whatever a serializer of the user's raises
            return None


def values_of(config: BaseModel) -> Any:
    """Return the values of *config* by the names of its fields."""
    try:
        return written(config, by_alias=False)
    except Exception:  # noqa: BLE001 - whatever a serializer of the user's raises
        return None


def _held(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what *value* holds, by names of fields or by keys as they are written."""
    if isinstance(value, BaseModel):
        if not isinstance(value, RootModel):
            for name in type(value).model_fields:
                yield name, getattr(value, name)
            yield from (value.model_extra or {}).items()
    elif isinstance(value, Mapping):
        yield from zip(written_keys(value), value.values(), strict=True)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield field.name, getattr(value, field.name)


def _set_names(value: Any, held: Collection[str]) -> Collection[str]:
    if isinstance(value, BaseModel):
        return value.model_fields_set
    if dataclasses.is_dataclass(value):
        return {field.name for field in dataclasses.fields(value) if field.init}
    return held
