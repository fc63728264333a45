"""Composition: a file's ``defaults:`` list names the files it builds on.

Entries are resolved relative to the folder of the file that holds them, and never leave
the folder of the first file:

* ``- base`` or ``- common/base``   a file; in a sub-folder, its keys hang below its name
* ``- optimizer: adamw``            ``optimizer/adamw.yaml``, hung below ``optimizer``
* ``- callbacks: [early, ema]``     several of one group
* ``- optional data: local``        skipped if there is no such file
* ``- _self_``                      where the file's own keys come; last if left out

Later wins. Source: Hydra 1.3, "The Defaults List"; what is left out of it (package
headers, ``override``, ``@package``) is refused, not ignored.
"""

# Paths are text here: with pathlib they took a third of the time of a load.
# ruff: noqa: PTH114, PTH118, PTH120

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from mtf_config import _files, _yaml
from mtf_config._tree import Tree
from mtf_config.errors import CompositionError
from mtf_config.experiment import SECTION_ALIASES, canonical_sections
from mtf_config.origin import KEY, KeyPath, Origin, Origins, origin_of

__all__ = ["MAX_FILES", "Composition", "compose"]

MAX_FILES = 500
MAX_NESTING = 50
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_HEADER = re.compile(
    rb"(?:\xef\xbb\xbf)?(?:[ \t]*(?:#.*)?\r?\n)*?[ \t]*#[ \t]*@package\b"
)
_MANDATORY = "???"
_MAX_NAMES = 10


class Composition(NamedTuple):
    """What composing gave.

    Attributes:
        tree: The values and their origins.
        groups: Every config group that a ``defaults:`` list in use names.
    """

    tree: Tree
    groups: frozenset[str]


class _Entry(NamedTuple):
    """One file that a defaults list asks for; *group* is relative to the list's file."""

    group: tuple[str, ...]
    name: str
    place: Origin
    is_optional: bool = False


class _File(NamedTuple):
    """A file, its name in messages, and the folders that lead to it from the root."""

    path: str
    source: str
    folders: tuple[str, ...]


def compose(
    path: Path, source: str, choices: Mapping[str, Any] | None = None
) -> Composition:
    """Read *path* and all that it builds on.

    Args:
        path: The first file; its folder is the root that nothing leaves.
        source: Its name in messages.
        choices: Group to name, names or None, instead of what the files choose. What
            is no group is left alone.

    Raises:
        ConfigFileError: If a file cannot be read, or is not the YAML we accept.
        CompositionError: If a ``defaults:`` list is wrong.
    """
    composer = _Composer(path.parent, Path(source).parent, choices or {})
    first = _File(os.fspath(path), source, ())
    composer.add(first, at=(), stack=(), place=Origin(source))
    return Composition(composer.tree, frozenset(composer.groups))


class _Composer:
    def __init__(self, root: Path, shown_root: Path, choices: Mapping[str, Any]) -> None:
        self.tree = Tree()
        self.groups: set[str] = set()
        self._root = root
        self._shown_root = shown_root
        self._choices = choices
        self._shown = "" if shown_root == Path() else os.fspath(shown_root)
        self._linked = {os.fspath(root): False}
        self._num_files = 0
        self._num_values = 0

    def add(
        self, file: _File, at: KeyPath, stack: tuple[str, ...], place: Origin
    ) -> None:
        """Merge *file*, asked for at *place*, and its defaults, at *at*."""
        if at:
            at = (SECTION_ALIASES.get(str(at[0]), at[0]), *at[1:])
        if file.source in stack:
            chain = " -> ".join([*stack[stack.index(file.source) :], file.source])
            raise CompositionError(place, f"defaults go in a circle: {chain}")
        if len(stack) > MAX_NESTING:
            message = f"defaults lead on through more than {MAX_NESTING} files"
            raise CompositionError(place, message)
        values, origins = self._read(file, at)
        self._num_files += 1
        self._num_values += _yaml.size(values)
        if self._num_files > MAX_FILES or self._num_values > _yaml.MAX_NODES:
            message = f"defaults name more than {MAX_FILES} files or {_yaml.MAX_NODES}"
            raise CompositionError(place, f"{message} values: too large for a config")
        if not at:
            values, origins = _rename_sections(values, origins)
        if "defaults" not in values:
            self.tree.merge(values, origins, at)
            return
        own = {key: value for key, value in values.items() if key != "defaults"}
        key = (*at, "defaults")
        own_origins = {k: o for k, o in origins.items() if k[: len(key)] != key}
        for entry in self._entries(values["defaults"], origins, at):
            if entry is None:
                self.tree.merge(own, own_origins, at)
            else:
                self._add_entry(entry, file.folders, at, (*stack, file.source))

    def _entries(self, listed: Any, origins: Origins, at: KeyPath) -> list[_Entry | None]:
        """Read a defaults list; None stands for the file's own keys."""
        key = (*at, "defaults")
        if not isinstance(listed, list):
            raise CompositionError(origins[key], "`defaults` must be a list")
        entries: list[_Entry | None] = []
        for index, item in enumerate(listed):
            place = origin_of(origins, (*key, index)) or origins[key]
            if item == "_self_":
                entries.append(None)
            elif isinstance(item, str):
                _refuse_absolute_below(item, at, place)
                entries.append(_Entry((), item, place))
            elif isinstance(item, dict) and len(item) == 1:
                entries += self._group_entries(item, place, at)
            else:
                message = "write `- file`, `- group: name` or `- group: [name, name]`"
                raise CompositionError(place, message)
        if entries.count(None) > 1:
            raise CompositionError(origins[key], "`_self_` stands twice")
        return entries if None in entries else [*entries, None]

    def _group_entries(
        self, item: dict[str, Any], place: Origin, at: KeyPath
    ) -> list[_Entry]:
        [(group, names)] = item.items()
        is_optional = group.startswith("optional ")
        group = group.removeprefix("optional ").strip()
        if group.startswith("override ") or "@" in group:
            message = f"`{group}`: `override` and `@package` are not supported here"
            raise CompositionError(place, message)
        parts = _split(group.removeprefix("/"), place, is_group=True)
        _refuse_absolute_below(group, at, place)
        first, *rest = parts if group.startswith("/") else (*at, *parts)
        full_name = "/".join(map(str, [SECTION_ALIASES.get(str(first), first), *rest]))
        self.groups.add(full_name)
        if full_name in self._choices:
            names = self._choices[full_name]
            place = Origin(f"the override for {full_name}")
            is_optional = False  # a name on the command line is meant
        chosen = names if isinstance(names, list) else [names]
        if not all(name is None or isinstance(name, str) for name in chosen):
            message = f"`{group}`: a file's name must be text; put it in quotes"
            raise CompositionError(place, message)
        if _MANDATORY in chosen:
            message = (
                f"no default for `{group}`: choose one with the override {full_name}=NAME"
            )
            raise CompositionError(place, message)
        if any(name is not None and "/" in name for name in chosen):
            message = f"`{group}`: a name holds no /; name the folder in the group, as in"
            raise CompositionError(place, f"{message} `- {group}/folder: name`")
        prefix = ("",) if group.startswith("/") else ()
        return [
            _Entry((*prefix, *parts), name, place, is_optional)
            for name in chosen
            if name is not None
        ]

    def _add_entry(
        self,
        entry: _Entry,
        folders: tuple[str, ...],
        at: KeyPath,
        stack: tuple[str, ...],
    ) -> None:
        text = "/".join([*entry.group, entry.name])
        is_absolute = text.startswith("/")
        *groups, name = _split(text.removeprefix("/"), entry.place)
        base, package = ((), ()) if is_absolute else (folders, at)
        if not name.endswith((".yaml", ".yml")):
            name += ".yaml"
        folders = (*base, *groups)
        path = os.path.join(self._root, *folders, name)
        # Unlike Path.resolve, realpath takes a circle of links without an error.
        if self._has_links(path) and not Path(os.path.realpath(path)).is_relative_to(
            self._real_root
        ):
            message = f"`{text}` leads out of the folder {self._shown_root.absolute()}"
            raise CompositionError(entry.place, message)
        if not os.path.lexists(path):
            if entry.is_optional:
                return
            raise CompositionError(entry.place, self._missing(Path(path), text))
        file = _File(path, os.path.join(self._shown, *folders, name), folders)
        self.add(file, (*package, *groups), stack, entry.place)

    def _has_links(self, path: str) -> bool:
        """Tell whether *path* is a link, or goes through one below the root."""
        linked = self._linked.get(path)
        if linked is None:
            above = self._has_links(os.path.dirname(path))
            linked = self._linked[path] = above or os.path.islink(path)
        return linked

    @cached_property
    def _real_root(self) -> str:
        return os.path.realpath(self._root)

    def _read(self, file: _File, at: KeyPath) -> tuple[dict[str, Any], Origins]:
        raw = _files.read_bytes(file.path, file.source)
        if b"@package" in raw and (header := _HEADER.match(raw)):
            place = Origin(file.source, header[0].count(b"\n") + 1, 1)
            message = "`# @package` is not supported here: a file's keys go where it lies"
            raise CompositionError(place, message)
        return _files.parse(raw, file.source, at)

    def _missing(self, path: Path, text: str) -> str:
        shown = self._shown_root / path.relative_to(self._root)
        names = _names(path.parent)
        near = get_close_matches(path.stem, names, n=1)
        if near:
            return f"`{text}`: no file {shown}; did you mean `{near[0]}`?"
        if names:
            more = ", ..." if len(names) > _MAX_NAMES else ""
            listed = ", ".join(names[:_MAX_NAMES]) + more
            return f"`{text}`: no file {shown}; there are {listed}"
        return f"`{text}`: no file {shown}"


def _names(folder: Path) -> list[str]:
    """Return what a ``defaults:`` list may call the files in *folder*."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError:
        return []
    return [n.removesuffix(".yaml") for n in names if n.endswith((".yaml", ".yml"))]


def _refuse_absolute_below(name: str, at: KeyPath, place: Origin) -> None:
    """Refuse ``/name`` in a file of a group: Hydra would hang it below that group."""
    if name.startswith("/") and at:
        message = f"`{name}`: an entry from the root stands only in a file at the root"
        raise CompositionError(place, message)


def _split(name: str, place: Origin, *, is_group: bool = False) -> tuple[str, ...]:
    parts = tuple(name.split("/"))
    if len(parts) > _yaml.MAX_DEPTH:
        message = f"a name leads through more than {_yaml.MAX_DEPTH} folders"
        raise CompositionError(place, message)
    folders = parts if is_group else parts[:-1]
    if not all(map(_NAME.fullmatch, parts)) or "." in "".join(folders):
        message = (
            f"`{name}` names no {'folder' if is_group else 'file'} below this one: write "
            "letters, digits, _ and -, with / between folders"
        )
        raise CompositionError(place, message)
    return parts


def _rename_sections(
    values: dict[str, Any], origins: Origins
) -> tuple[dict[str, Any], Origins]:
    """Call `trainer:` by the name of the schema, before anything is merged."""
    if values.keys().isdisjoint(SECTION_ALIASES):
        return values, origins
    try:
        renamed = canonical_sections(values)
    except ValueError as error:
        (alias,) = values.keys() & SECTION_ALIASES.keys()
        place = origins[(alias, KEY)]
        raise CompositionError(place, str(error), key=alias) from None
    return renamed, {
        (SECTION_ALIASES.get(str(k[0]), k[0]), *k[1:]) if k else k: o
        for k, o in origins.items()
    }
