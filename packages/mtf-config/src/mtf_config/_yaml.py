"""Read YAML by the 1.2 core schema, with the place of every value.

Relied on for: only plain values come out (None, bool, int, float, str, list, dict with
text keys), whatever the text holds; every fault is a `ConfigFileError` with line and
column; work and memory are bounded by `MAX_BYTES`, `MAX_DEPTH` and `MAX_NODES`.
Scanning is libyaml's or PyYAML's; which scalar means what is decided here.

Source: YAML 1.2.2, section 10.3, "Core Schema".
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import yaml

from mtf_config import _yaml_faults as faults
from mtf_config._tree import copy_plain
from mtf_config.errors import ConfigFileError
from mtf_config.origin import KEY, KeyPath, Origin, Origins, dotted

__all__ = [
    "MAX_BYTES",
    "MAX_DEPTH",
    "MAX_NODES",
    "depth",
    "parse",
    "parse_scalar",
    "size",
]

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_NODES = 50_000
_NODE_CHARACTERS = MAX_BYTES // MAX_NODES

_Parser: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_NULL = frozenset(["", "~", "null", "Null", "NULL"])
_BOOL = dict.fromkeys(["true", "True", "TRUE"], True) | dict.fromkeys(
    ["false", "False", "FALSE"], False
)
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"([-+]?)\.(?:inf|Inf|INF)|\.(nan|NaN|NAN)")
_OTHER_BREAK = re.compile("[\x85\u2028\u2029]")
_MAX_DIGITS = 400
_TAGS = "tag:yaml.org,2002:"
_TEXT_TAG = _TAGS + "str"
_CACHED_CHARACTERS = 64
_SURROGATE = re.compile("[\ud800-\udfff]")


def parse_scalar(text: str) -> bool | int | float | str | None:
    """Return what the plain scalar *text* means in the core schema.

    Raises:
        ValueError: If it is a number too large for its type.

    >>> [parse_scalar(t) for t in ("1e-4", "on", "12:00:00", "0x10", "~")]
    [0.0001, 'on', '12:00:00', 16, None]
    """
    short = len(text) <= _CACHED_CHARACTERS
    return _parse_cached(text) if short else _parse_cached.__wrapped__(text)


@lru_cache(maxsize=4096)
def _parse_cached(text: str) -> bool | int | float | str | None:
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _INT.fullmatch(text):
        if len(text) > _MAX_DIGITS:
            message = f"a number of {len(text)} digits is too large"
            raise ValueError(message)
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        return int(text, base)
    if _FLOAT.fullmatch(text):
        number = float(text)
        if number in (float("inf"), float("-inf")):
            message = f"{text} is too large for a 64-bit number; infinity is written .inf"
            raise ValueError(message)
        return number
    if match := _SPECIAL.fullmatch(text):
        return float("nan") if match[2] else float(match[1] + "inf")
    return text


def parse(raw: bytes, source: str, at: KeyPath = ()) -> tuple[Any, Origins]:
    """Parse one document; return its value and where each part of it stands.

    Args:
        raw: The file's bytes, UTF-8.
        source: Its name in messages.
        at: Where the value will hang: the origins' keys begin with it.

    Raises:
        ConfigFileError: If it is anything but one plain YAML document.
    """
    text = _decode(raw, source)
    parser: Any = None
    try:
        parser = _Parser(text)
        return _Builder(parser, source, at).document()
    except yaml.reader.ReaderError:
        raise faults.unprintable(text, source) from None
    except yaml.MarkedYAMLError as error:
        raise faults.syntax_error(error, text, source) from None
    except (ValueError, OverflowError):
        # PyYAML's own scanner lets chr() and int() fail; libyaml checks.
        place = Origin(source, parser.line + 1, parser.column + 1)
        raise ConfigFileError(place, "a number is too large for its place") from None
    finally:
        if parser is not None:
            parser.dispose()


def _decode(raw: bytes, source: str) -> str:
    if len(raw) > MAX_BYTES:
        message = f"larger than {MAX_BYTES} bytes: this is no config"
        raise ConfigFileError(Origin(source), message)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = error.object[: error.start]  # without the byte order mark
        line = before.count(b"\n") + 1
        column = len(before.rpartition(b"\n")[2].decode("utf-8", "replace")) + 1
        byte = error.object[error.start]
        message = f"not UTF-8: byte 0x{byte:02x}; save the file as UTF-8"
        raise ConfigFileError(Origin(source, line, column), message) from None
    if not text.isascii() and (match := _OTHER_BREAK.search(text)):
        # The parsers end a line there, as YAML 1.1 did; 1.2 does not.
        raise faults.misplaced(match, text, source)
    return text


_new_tuple = tuple.__new__
_Scalar, _Alias, _MappingEnd = yaml.ScalarEvent, yaml.AliasEvent, yaml.MappingEndEvent
_OPEN = object()
"""Stands for an anchor's value while that is being read."""


class _Builder:
    """Turns the parser's events into plain values; one document, used once."""

    def __init__(self, parser: Any, source: str, at: KeyPath) -> None:
        self._next = parser.get_event
        self._source = source
        self._at = at
        self._origins: Origins = {}
        self._anchors: dict[str, Any] = {}
        self._nodes = 0

    def document(self) -> tuple[Any, Origins]:
        self._next()  # StreamStart
        event = self._next()
        if isinstance(event, yaml.StreamEndEvent):
            return {}, {self._at: Origin(self._source, 1, 1)}
        value = self._value(self._next(), self._at)
        self._next()  # DocumentEnd
        event = self._next()
        if not isinstance(event, yaml.StreamEndEvent):
            raise self._error(event, "a second document begins here; a config is one")
        return value, self._origins

    def _place(self, event: Any) -> Origin:
        mark = event.start_mark
        # What Origin(...) does, without the call of its constructor.
        return _new_tuple(Origin, (self._source, mark.line + 1, mark.column + 1, ""))

    def _error(self, event: Any, message: str) -> ConfigFileError:
        return ConfigFileError(self._place(event), message)

    def _too_many(self, event: Any) -> ConfigFileError:
        message = f"expands to more than {MAX_NODES} values: too large for a config"
        return self._error(event, message)

    def _value(self, event: Any, path: KeyPath) -> Any:
        self._origins[path] = self._place(event)
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise self._too_many(event)
        kind = type(event)
        if kind is _Scalar:
            value: Any = self._scalar(event)
        elif kind is _Alias:
            return self._alias(event, path)
        else:
            if len(path) >= MAX_DEPTH:
                message = f"nested more than {MAX_DEPTH} levels deep"
                raise self._error(event, message)
            if event.tag is not None:
                raise self._tag_error(event)
            if event.anchor is not None:
                self._anchors[event.anchor] = _OPEN
            fill = self._mapping if kind is yaml.MappingStartEvent else self._sequence
            value = fill(path)
        if event.anchor is not None:
            self._anchors[event.anchor] = value
        return value

    def _alias(self, event: Any, path: KeyPath) -> Any:
        if event.anchor not in self._anchors:
            message = (
                f"*{event.anchor} stands for what &{event.anchor} marks, and nothing "
                "above does; for the text itself put it in quotes"
            )
            raise self._error(event, message)
        value = self._anchors[event.anchor]
        if value is _OPEN:
            raise self._error(event, f"*{event.anchor} stands inside itself")
        self._nodes += size(value)
        if self._nodes > MAX_NODES:
            raise self._too_many(event)
        if len(path) + depth(value) > MAX_DEPTH:
            raise self._error(event, f"nested more than {MAX_DEPTH} levels deep")
        return copy_plain(value)

    def _scalar(self, event: Any) -> Any:
        text, tag = event.value, event.tag
        if not text.isascii() and _SURROGATE.search(text):
            # libyaml refuses the escape, PyYAML's own scanner does not.
            raise self._error(event, "holds half of a character: write it whole")
        if tag is not None and tag not in ("!", _TEXT_TAG):
            raise self._tag_error(event)
        if event.style or tag == _TEXT_TAG:
            return text
        try:
            return parse_scalar(text)
        except ValueError as error:
            raise self._error(event, str(error)) from None

    def _tag_error(self, event: Any) -> ConfigFileError:
        tag = event.tag
        if tag.startswith(_TAGS):
            tag = "!!" + tag.removeprefix(_TAGS)
        message = f"the tag {tag!r} is refused: a config holds plain values, take it away"
        return self._error(event, message)

    def _sequence(self, path: KeyPath) -> list[Any]:
        items: list[Any] = []
        while type(event := self._next()) is not yaml.SequenceEndEvent:
            items.append(self._value(event, (*path, len(items))))
        return items

    def _mapping(self, path: KeyPath) -> dict[str, Any]:
        items: dict[str, Any] = {}
        while type(event := self._next()) is not _MappingEnd:
            key = self._key(event)
            child = (*path, key)
            if key in items:
                first = self._origins[(*child, KEY)]
                message = f"the key {key!r} stands twice, first at {first}"
                raise ConfigFileError(self._place(event), message, key=dotted(child))
            self._origins[(*child, KEY)] = self._place(event)
            items[key] = self._value(self._next(), child)
        return items

    def _key(self, event: Any) -> str:
        if type(event) is not _Scalar:
            message = "a key must be text; text that begins with [ { & * is quoted"
            raise self._error(event, message)
        text: str = event.value
        if (
            text.isidentifier()
            and text.isascii()
            and text not in _NULL
            and text not in _BOOL
            and event.tag is None
            and event.anchor is None
        ):
            return text  # as nearly every key is: in any style it means itself
        key = self._scalar(event)
        if event.anchor is not None:
            self._anchors[event.anchor] = key
        if key == "<<" and not event.style:
            message = "merge keys (<<) are not in YAML 1.2; use a defaults: list"
            raise self._error(event, message)
        if not isinstance(key, str):
            raise self._error(
                event, f'the key {event.value} is not text; write "{event.value}"'
            )
        if not key or "." in key:
            above, _, last = key.rpartition(".")
            message = f"the key {key!r} is empty or holds a dot"
            if above and last:
                message += f": write {last!r} in a section of its own below {above!r}"
            raise self._error(event, message)
        return key


def size(value: Any) -> int:
    """Return what *value* counts against `MAX_NODES`: long text more than short."""
    if isinstance(value, dict):
        return 1 + sum(map(size, value.values()))
    if isinstance(value, list):
        return 1 + sum(map(size, value))
    return 1 + len(value) // _NODE_CHARACTERS if isinstance(value, str) else 1


def depth(value: Any) -> int:
    """Return how many levels of mappings and lists *value* has."""
    if not isinstance(value, dict | list):
        return 0
    children = value.values() if isinstance(value, dict) else value
    return 1 + max(map(depth, children), default=0)
