"""Command-line overrides: ``key=value``, ``+key=value``, ``~key``.

* ``optimizer.lr=3e-4``         change a key that the config or the schema has
* ``+model.heads=8``            add a key that is not there yet; ``++`` adds or changes
* ``~scheduler``                take a key away, back to its default
* ``optimizer=sgd``             choose another file of a config group, ``[a, b]`` several,
                              ``null`` none
* ``model.layers=[64, 64]``     lists and mappings, as in YAML
* ``optimizer.betas.0=0.8``     one item of a list

A value is read as YAML only if it begins with ``[``, ``{`` or a quote; any other text is
one scalar, so ``description=a: b`` needs no quotes. Source: Hydra 1.3, "Basic Override
syntax", of which this is the typed subset without sweeps and functions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from mtf_config import _schema_walk as schema
from mtf_config import _yaml
from mtf_config._secrets import names_secret
from mtf_config._tree import MISSING, Tree, plain_origins, step
from mtf_config.errors import ConfigFileError, OverrideError
from mtf_config.experiment import SECTION_ALIASES
from mtf_config.origin import KeyPath, Origin, dotted

__all__ = ["Override", "apply", "choices", "parse", "split_key"]

_INDEX = re.compile(r"0|[1-9][0-9]{0,8}")
_KEY = re.compile(r"[A-Za-z_][\w-]*(?:\.[\w-]+)*")
_GROUP = re.compile(r"[A-Za-z_][\w-]*(?:/[A-Za-z_][\w-]*)*")

Action = Literal["set", "add", "force", "delete", "choose"]
_ACTION_BY_SIGN: dict[str, Action] = {"": "set", "+": "add", "++": "force", "~": "delete"}
_MAX_SHOWN = 80


class Override(NamedTuple):
    """One parsed override; *text* is the value's own text where it is one scalar."""

    action: Action
    path: KeyPath
    value: Any
    text: str | None
    origin: Origin


def split_key(key: str) -> KeyPath:
    """Split a dotted key; a section goes by its one name, a number may be an index.

    >>> split_key("trainer.layers.0")
    ('training', 'layers', 0)
    """
    first, *rest = key.split(".")
    parts = (int(part) if _INDEX.fullmatch(part) else part for part in rest)
    return (SECTION_ALIASES.get(first, first), *parts)


def choices(arguments: Sequence[str]) -> dict[str, Any]:
    """Return what *arguments* choose wherever their key is a config group: the last wins.

    Raises:
        OverrideError: If one has none of the forms above.
    """
    chosen: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = _checked(argument).partition("=")
        if equals and (group := _group(key)):
            chosen[group] = _choice(text)
    return {group: value for group, value in chosen.items() if value is not MISSING}


def parse(argument: str, groups: frozenset[str] = frozenset()) -> Override:
    """Parse one override.

    Args:
        argument: As given on the command line.
        groups: The config groups that may be chosen by name.

    Raises:
        OverrideError: If it has none of the forms above.
    """
    origin = _origin(_checked(argument))
    sign = re.match(r"~|\+{0,2}", argument)
    prefix = sign[0] if sign else ""
    action = _ACTION_BY_SIGN[prefix]
    key, equals, text = argument.removeprefix(prefix).partition("=")
    key, text = key.strip(), text.strip()
    group = _group(key)
    if action == "set" and equals and group in groups:
        chosen = _choice(text)
        if chosen is not MISSING:
            return Override("choose", tuple(group.split("/")), chosen, None, origin)
    if not _KEY.fullmatch(key):
        hint = "is not KEY=VALUE, +KEY=VALUE or ~KEY, such as optimizer.lr=3e-4"
        if group:
            hint = f"no `defaults:` list names the config group `{key}`"
        raise OverrideError(origin, hint)
    path = split_key(key)
    if len(path) > _yaml.MAX_DEPTH:
        message = f"a key of more than {_yaml.MAX_DEPTH} levels"
        raise OverrideError(origin, message)
    if action == "delete" and key in groups:
        message = f"is a config group: to choose no file of it, write {key}=null"
        raise OverrideError(origin, message, key=key)
    if action == "delete":
        if equals:
            raise OverrideError(origin, f"write ~{key} without a value", key=key)
        return Override(action, path, None, None, origin)
    if not equals:
        raise OverrideError(origin, f"has no value: write {prefix}{key}=VALUE", key=key)
    value, scalar_text = _parse_value(text, path, origin)
    return Override(action, path, value, scalar_text, origin)


def _origin(argument: str) -> Origin:
    if names_secret(argument):
        shown_key = re.match(r"[+~]*[\w.-]*", argument)
        argument = f"{shown_key[0] if shown_key else ''}..."
    shown = repr(argument)
    if len(shown) > _MAX_SHOWN:
        shown = f"{shown[:_MAX_SHOWN]}..."
    return Origin(f"override {shown}")


def _checked(argument: object) -> str:
    if not isinstance(argument, str):
        message = f"an override is a text KEY=VALUE, not a {type(argument).__name__}"
        raise TypeError(message)
    if not argument.isascii():
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise OverrideError(_origin(argument), "is not UTF-8 text") from None
    return argument


def _group(key: str) -> str:
    """Return *key* as `Composition.groups` spells it, or ``""`` if it cannot be one."""
    key = key.strip()
    if not _GROUP.fullmatch(key):
        return ""
    first, *rest = key.split("/")
    return "/".join([SECTION_ALIASES.get(first, first), *rest])


def _choice(text: str) -> Any:
    """Return the name or the names that *text* chooses, None for none, or `MISSING`."""
    text = text.strip()
    if text in ("null", "~"):
        return None
    if text[:1] not in ("[", "{", '"', "'"):
        return text
    try:
        value, _ = _yaml.parse(text.encode(), "value")
    except ConfigFileError:
        return MISSING
    names = value if isinstance(value, list) else [value]
    return value if all(isinstance(name, str) for name in names) else MISSING


def _parse_value(text: str, path: KeyPath, origin: Origin) -> tuple[Any, str | None]:
    if not text:
        return "", None
    key = dotted(path)
    try:
        if text[0] not in ("[", "{", '"', "'"):
            return _yaml.parse_scalar(text), text
        return _yaml.parse(text.encode(), "value", path)[0], None
    except ConfigFileError as error:
        message = f"column {error.place.column} of the value: {error.reason}. A value "
        message += f"that begins with {text[0]} is read as YAML; put a text in quotes"
        raise OverrideError(origin, message, key=key) from None
    except ValueError as error:
        raise OverrideError(origin, str(error), key=key) from None


def apply(tree: Tree, overrides: Sequence[Override]) -> None:
    """Apply *overrides* to *tree*, in order.

    Raises:
        OverrideError: If one does not fit the schema or what the config holds.
    """
    for override in overrides:
        if override.action == "delete":
            _delete(tree, override)
        elif override.action != "choose":
            _set(tree, override)


def _delete(tree: Tree, override: Override) -> None:
    path = tree.spell(override.path)
    key = dotted(path)
    if tree.get(path) is MISSING:
        raise OverrideError(override.origin, "the config sets no such key", key=key)
    if isinstance(path[-1], int):
        message = "items of a list cannot be taken away: give the whole list"
        raise OverrideError(override.origin, message, key=key)
    tree.delete(path)


def _set(tree: Tree, override: Override) -> None:
    path, value, origin = tree.spell(override.path), override.value, override.origin
    key = dotted(path)
    old = tree.get(path)
    if override.action == "add" and old is not MISSING:
        message = f"is there already: change it with {key}=..."
        raise OverrideError(origin, message, key=key)
    if old is MISSING and (reason := _cannot_add(tree, path, override.action)):
        raise OverrideError(origin, reason, key=key)
    if override.text is not None and schema.takes_text(path, value):
        value = override.text
    has_type = schema.lookup((*path, "type")) not in (schema.OPEN, schema.UNKNOWN)
    if has_type and isinstance(value, str) and "${" not in value:
        message = (
            "is a section, and no `defaults:` list names a config group of that name; "
            f"did you mean {key}.type={value}?"
        )
        raise OverrideError(origin, message, key=key)
    origins = plain_origins(value, path, origin)
    if isinstance(value, dict) and isinstance(old, dict):
        tree.merge(value, origins, path)  # as everywhere: mappings merge
    else:
        tree.set(path, value, origins)


def _cannot_add(tree: Tree, path: KeyPath, action: Action) -> str:
    """Say why nothing can be put at *path*, where nothing is; ``""`` if it can."""
    known = schema.lookup(path)
    near = schema.nearest(path)
    hint = f"; did you mean {near}?" if near else ""
    if known is schema.UNKNOWN:
        return f"no such key{hint or '; ' + schema.known_keys(path[:-1])}".rstrip("; ")
    if reason := _no_room(tree, path):
        return reason
    if action == "set" and known is schema.OPEN:
        return f"is not in the config{hint or '.'} To add it, write +{dotted(path)}=..."
    return ""


def _no_room(tree: Tree, path: KeyPath) -> str:
    """Say what above *path* cannot hold it; ``""`` if mappings are or can be made."""
    holder: Any = tree.data
    for end, part in enumerate(path):
        above = dotted(path[:end])
        if isinstance(part, int) and not isinstance(holder, list):
            return f"the config sets no list {above}: give the whole, {above}=[...]"
        if isinstance(holder, list) and step(holder, part) is MISSING:
            return f"no such item: {above} is a list of {len(holder)}"
        if holder is not None and not isinstance(holder, dict | list):
            return f"{above} is a value, not a section"
        # What is missing will be made, and can hold keys alone.
        holder = {} if (below := step(holder, part)) is MISSING else below
    return ""
