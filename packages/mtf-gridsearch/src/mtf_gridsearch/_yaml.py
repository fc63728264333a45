"""YAML in and out: read by the 1.2 core schema, written so that all readers agree.

Relied on for: only plain values come out (None, bool, int, float, str, list, dict with
text keys), whatever the text holds; every fault is a `GridError` that names file, line
and column; work and memory are bounded; what `dump` writes reads back equal, types
included. A file is replaced as a whole or not at all.

Source: YAML 1.2.2, section 10.3, "Core Schema".
"""

from __future__ import annotations

import copy
import os
import re
import secrets
import stat
from pathlib import Path
from typing import Any, NoReturn

import yaml

from mtf_gridsearch.errors import GridError

__all__ = ["ASIDE", "check", "dump", "load", "parse", "parse_scalar", "write_atomically"]

_MAX_BYTES = 1 << 26
_MAX_DEPTH = 48
_MAX_NODES = 1_000_000
_MAX_DIGITS = 400
_Parser: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NULL = frozenset(["", "~", "null", "Null", "NULL"])
_BOOL = dict.fromkeys(["true", "True", "TRUE"], True) | dict.fromkeys(
    ["false", "False", "FALSE"], False
)
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"([-+]?)\.(?:inf|Inf|INF)|\.(nan|NaN|NAN)")
_OTHER_BREAK = re.compile("[\x85\u2028\u2029]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_TAGS = "tag:yaml.org,2002:"
_OPEN = object()
"""Stands for an anchor's value while that is being read."""


def parse_scalar(text: str) -> bool | int | float | str | None:
    """Return what the plain scalar *text* means in the core schema.

    Raises:
        ValueError: If it is a number too large for its type.

    >>> [parse_scalar(t) for t in ("1e-4", "on", "12:00:00", "0x10", "~")]
    [0.0001, 'on', '12:00:00', 16, None]
    """
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _INT.fullmatch(text):
        if len(text) > _MAX_DIGITS:
            message = f"a number of {len(text)} digits is too large"
            raise ValueError(message)
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    if _FLOAT.fullmatch(text):
        number = float(text)
        if number in (float("inf"), float("-inf")):
            message = f"{text} is too large for a 64-bit number; infinity is written .inf"
            raise ValueError(message)
        return number
    if match := _SPECIAL.fullmatch(text):
        return float("nan") if match[2] else float(match[1] + "inf")
    return text


def load(path: Path) -> dict[str, Any]:
    """Read the YAML mapping in *path*.

    Raises:
        GridError: If it cannot be read, or is not one mapping of plain values.
    """
    source = str(path)
    try:
        # Non-blocking, or a named pipe would wait for its writer.
        with open(path, "rb", opener=lambda p, f: os.open(p, f | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise GridError(source, "is a pipe or a device, not a file")
            raw = file.read(_MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise GridError(source, f"cannot be read: {reason}") from None
    values = parse(raw, source)
    if not isinstance(values, dict):
        raise GridError(source, "is not a mapping: write `key: value` lines")
    return values


def parse(raw: bytes, source: str) -> Any:
    """Parse one document of UTF-8; an empty one is an empty mapping.

    Args:
        raw: The file's bytes.
        source: Its name in messages.

    Raises:
        GridError: If it is anything but one plain YAML document.
    """
    if len(raw) > _MAX_BYTES:
        raise GridError(source, f"is larger than {_MAX_BYTES} bytes: this is no search")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        place = f"{source}:{line}"
        raise GridError(place, "is not UTF-8: save it as UTF-8") from None
    if match := _OTHER_BREAK.search(text):
        line = text.count("\n", 0, match.start()) + 1
        message = f"{match[0]!a} ends a line for some readers: write its escape"
        place = f"{source}:{line}"
        raise GridError(place, message)
    parser: Any = None
    try:
        parser = _Parser(text)
        return _Builder(parser, source).document()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        message = "a control character may not stand in YAML: write its escape"
        place = f"{source}:{line}"
        raise GridError(place, message) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        reason = " ".join(filter(None, [error.problem, error.context]))
        raise GridError(place, f"is not YAML: {reason}") from None
    except (ValueError, OverflowError):
        # PyYAML's own scanner lets chr() and int() fail; libyaml checks.
        place = f"{source}:{parser.line + 1}"
        raise GridError(place, "a number is too large for its place") from None
    finally:
        if parser is not None:
            parser.dispose()


class _Builder:
    """Turns the parser's events into plain values; one document, used once."""

    def __init__(self, parser: Any, source: str) -> None:
        self._next = parser.get_event
        self._source = source
        self._anchors: dict[str, Any] = {}
        self._nodes = 0

    def document(self) -> Any:
        self._next()  # StreamStart
        if isinstance(self._next(), yaml.StreamEndEvent):
            return {}
        value = self._value(self._next(), 0)
        self._next()  # DocumentEnd
        event = self._next()
        if not isinstance(event, yaml.StreamEndEvent):
            raise self._error(event, "a second document begins here; a search is one")
        return value

    def _error(self, event: Any, message: str) -> GridError:
        mark = event.start_mark
        return GridError(f"{self._source}:{mark.line + 1}:{mark.column + 1}", message)

    def _count(self, event: Any, nodes: int) -> None:
        self._nodes += nodes
        if self._nodes > _MAX_NODES:
            raise self._error(event, f"expands to more than {_MAX_NODES} values")

    def _value(self, event: Any, depth: int) -> Any:
        self._count(event, 1)
        if depth > _MAX_DEPTH:
            raise self._error(event, f"is nested more than {_MAX_DEPTH} levels deep")
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, depth)
        if isinstance(event, yaml.ScalarEvent):
            value = self._scalar(event)
        else:
            if event.tag is not None:
                raise self._tag_error(event)
            self._anchors[event.anchor] = _OPEN
            is_mapping = isinstance(event, yaml.MappingStartEvent)
            value = self._mapping(depth) if is_mapping else self._sequence(depth)
        self._anchors[event.anchor] = value
        return value

    def _alias(self, event: Any, depth: int) -> Any:
        value = self._anchors.get(event.anchor, _OPEN)
        if value is _OPEN:
            message = f"*{event.anchor} stands for nothing that is marked above"
            raise self._error(event, message)
        self._count(event, _size(value))
        if depth + _depth(value) > _MAX_DEPTH:
            raise self._error(event, f"is nested more than {_MAX_DEPTH} levels deep")
        return copy.deepcopy(value)

    def _scalar(self, event: Any) -> Any:
        text, tag = event.value, event.tag
        if _SURROGATE.search(text):
            raise self._error(event, "holds half of a character: write it whole")
        if tag not in (None, "!", _TAGS + "str"):
            raise self._tag_error(event)
        if event.style or tag == _TAGS + "str":
            return text
        try:
            return parse_scalar(text)
        except ValueError as error:
            raise self._error(event, str(error)) from None

    def _tag_error(self, event: Any) -> GridError:
        tag = event.tag
        if tag.startswith(_TAGS):
            tag = "!!" + tag.removeprefix(_TAGS)
        return self._error(event, f"the tag {tag!r} is refused: take it away")

    def _sequence(self, depth: int) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            items.append(self._value(event, depth + 1))
        return items

    def _mapping(self, depth: int) -> dict[str, Any]:
        items: dict[str, Any] = {}
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise self._error(event, "a key must be text")
            key = self._scalar(event)
            if key == "<<" and not event.style:
                raise self._error(event, "merge keys (<<) are not in YAML 1.2")
            if not isinstance(key, str):
                message = f'the key {event.value} is not text; write "{event.value}"'
                raise self._error(event, message)
            if key in items:
                raise self._error(event, f"the key {key!r} stands twice")
            items[key] = self._value(self._next(), depth + 1)
        return items


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _size(value: Any) -> int:
    text = len(value) // 16 if isinstance(value, str) else 0
    return 1 + text + sum(map(_size, _children(value)))


def _depth(value: Any) -> int:
    return max((1 + _depth(child) for child in _children(value)), default=0)


class _Dumper(yaml.SafeDumper):
    """Writes so that readers of YAML 1.1 and of 1.2 agree on every scalar."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - PyYAML's signature
        return True


def _represent_str(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    try:
        is_text = isinstance(parse_scalar(text), str)
    except ValueError:
        is_text = False
    style = None if is_text else "'"
    if _OTHER_BREAK.search(text):
        style = '"'
    return dumper.represent_scalar(_TAGS + "str", text, style=style)


def _represent_float(dumper: _Dumper, number: float) -> yaml.ScalarNode:
    # 1e-05 must be written 1.0e-05 for readers of YAML 1.1.
    text = repr(number).replace("inf", ".inf").replace("nan", ".nan")
    if "e" in text and "." not in text:
        text = text.replace("e", ".0e")
    return dumper.represent_scalar(_TAGS + "float", text)


def _represent_list(dumper: _Dumper, items: list[Any]) -> yaml.SequenceNode:
    is_flat = not any(isinstance(item, dict | list) for item in items)
    return dumper.represent_sequence(_TAGS + "seq", items, flow_style=is_flat)


_Dumper.add_representer(str, _represent_str)
_Dumper.add_representer(list, _represent_list)
_Dumper.add_representer(float, _represent_float)


def check(values: dict[str, Any]) -> None:
    """Refuse what could not be read back, before it is written.

    Raises:
        GridError: If it is nested too deep, or holds too much; as `dump`.
    """
    level: list[Any] = [values]
    nodes = num_bytes = depth = 0
    while level:
        nodes += len(level)
        for value in level:
            words = value if isinstance(value, dict) else [value]
            # What is left to count, escapes and numbers, is small against the bound.
            num_bytes += 2 * depth + sum(len(w) for w in words if isinstance(w, str))
        if depth > _MAX_DEPTH:
            _refuse(f"be nested more than {_MAX_DEPTH} levels deep: nest less")
        if nodes > _MAX_NODES:
            _refuse(f"hold more than {_MAX_NODES} values: {_LESS}")
        if num_bytes > _MAX_BYTES:
            _refuse(f"be larger than {_MAX_BYTES} bytes: {_LESS}")
        level = [child for value in level for child in _children(value)]
        depth += 1


_LESS = "include fewer combinations, or list the values of parameters instead"


def _refuse(what: str) -> NoReturn:
    file = "the file of the search"
    raise GridError(file, f"could not be read back, for it would {what}")


def dump(values: dict[str, Any]) -> str:
    """Return plain *values* as YAML, one key a line; key order is kept.

    Raises:
        GridError: If `parse` would not read it back, for its size.
        TypeError: If they are not plain values.
    """
    check(values)
    try:
        text = str(
            yaml.dump(
                values,
                Dumper=_Dumper,
                sort_keys=False,
                allow_unicode=True,
                default_flow_style=False,
            )
        )
    except yaml.representer.RepresenterError as error:
        message = f"not a plain value: {error.args[1]!r}"
        raise TypeError(message) from None
    if len(text.encode()) > _MAX_BYTES:
        _refuse(f"be larger than {_MAX_BYTES} bytes: {_LESS}")
    return text


ASIDE = re.compile(r"\.[0-9a-f]{16}\.tmp")
"""How files are called that a kill may leave behind."""


def write_atomically(path: Path, text: str) -> None:
    """Write *text* aside, flush it and rename it: *path* is old or new, never torn.

    Raises:
        OSError: If the folder cannot be made or the file not be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        with aside.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
