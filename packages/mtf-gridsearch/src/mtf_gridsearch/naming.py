"""Names of experiments, and back from names to parameters.

Relied on for: a name matches ``[A-Za-z0-9][A-Za-z0-9._-]{0,127}`` and is a valid file
name, component of a git ref and job name. A readable name, ``<base>__<key>-<value>__...``
with keys in order of the alphabet, parses back to exactly what it was made of, types
included. What cannot be read out of a name is in the index of its search.

In a readable name a character that may not stand there is written ``_x`` and two
hexadecimal digits for each byte of its UTF-8.

Source: git-check-ref-format(1), git 2.39.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from mtf_gridsearch._plain import check_key, plain, shown
from mtf_gridsearch._yaml import parse_scalar
from mtf_gridsearch.errors import GridError, NamingError
from mtf_gridsearch.identity import identity_of

__all__ = [
    "MAX_LENGTH",
    "ExperimentNaming",
    "NamingStrategy",
    "ParsedName",
    "abbreviations",
    "check_name",
]

MAX_LENGTH = 128
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SAFE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
_ESCAPE = re.compile(r"(?:_x[0-9A-F]{2})+")
_DIGITS_FOLLOW = re.compile(r"x[0-9A-F]{2}")
_STAMP = "%Y%m%dT%H%M%S"
_STAMPS = re.compile(r"[A-Za-z0-9-]{1,32}")
_SHORT_WORD = 5
_WHOLE = "."  # before a key that is not abbreviated, though another is to the same


class NamingStrategy(StrEnum):
    """How experiments are named; each is unique within its search."""

    HASH_BASED = "hash_based"  # <base>__<identity>
    PARAMETER_BASED = "parameter_based"  # <base>__optimizer.lr-0.001__seed-1
    SHORT = "short"  # the same with keys abbreviated, no two alike in the search
    TIMESTAMP = "timestamp"  # <base>_<YYYYmmddTHHMMSS>__<identity>
    SEQUENTIAL = "sequential"  # <base>_0001, in the order of the search


@dataclass(frozen=True, slots=True)
class ParsedName:
    """What a name stands for."""

    base: str
    parameters: Mapping[str, Any]


class ExperimentNaming:
    """Makes names of parameters, and parameters of names. Has no state."""

    @staticmethod
    def generate_name(
        base: str,
        parameters: Mapping[str, Any],
        strategy: NamingStrategy | str = NamingStrategy.HASH_BASED,
        *,
        keys: Iterable[str] = (),
        number: int | None = None,
        stamp: str | None = None,
    ) -> str:
        """Return the name of the experiment *base* with *parameters*.

        A readable name that would be too long is its beginning and the identity.

        Args:
            base: What all names of the search begin with.
            parameters: By dotted key.
            strategy: How to name; or its word.
            keys: All keys of the search, for SHORT; those of *parameters* by default.
            number: For SEQUENTIAL, counted from 1.
            stamp: For TIMESTAMP: letters, digits and dashes; by default now, in local time.

        Raises:
            NamingError: If *base* is no name, *strategy* or *stamp* none, a key is none, a
                value is not plain, or SEQUENTIAL has no number.

        >>> ExperimentNaming.generate_name(
        ...     "digits", {"seed": 1, "optimizer.lr": 0.001}, NamingStrategy.SHORT
        ... )
        'digits__lr-0.001__seed-1'
        """
        check_name(base)
        strategy = _strategy(strategy)
        if stamp is not None and not _STAMPS.fullmatch(stamp):
            message = f"{shown(stamp)} is no stamp: write letters, digits and dashes, at most 32"
            raise NamingError(message)
        try:
            values = {check_key(k, "name"): plain(v, k) for k, v in parameters.items()}
        except GridError as error:
            raise NamingError(str(error)) from None
        if strategy is NamingStrategy.SEQUENTIAL:
            if number is None or number < 1:
                message = "a sequential name needs its number, counted from 1"
                raise NamingError(message)
            # Escaped, so that nobody takes a part of the base for a parameter.
            return _ending(_escaped(base), f"_{number:04d}")
        identity = f"__{identity_of(values)}"
        if strategy is NamingStrategy.TIMESTAMP:
            return _ending(base, f"_{stamp or time.strftime(_STAMP)}{identity}")
        if strategy is NamingStrategy.HASH_BASED or not values:
            return _ending(base, identity)
        is_short = strategy is NamingStrategy.SHORT
        short = abbreviations({*keys, *values}) if is_short else {}
        name = _readable(base, values, short)
        return name if len(name) <= MAX_LENGTH else _ending(name, identity)

    @staticmethod
    def parse_experiment_name(
        name: str,
        *,
        keys: Iterable[str] = (),
        index: Mapping[str, ParsedName] | None = None,
    ) -> ParsedName:
        """Return what *name* was made of.

        Args:
            name: As `generate_name` gave it.
            keys: All keys of the search, for names of the strategy SHORT; may be more than
                when *name* was given, as long as they leave no doubt.
            index: What the names of a search stand for; asked first. Needed for all but
                readable names: see `ParameterGridSearch.parse_experiment_name`.

        Raises:
            NamingError: If *name* is none that `generate_name` gives, its parameters stand
                in the index of its search alone, or a key in it may be any of several.

        >>> ExperimentNaming.parse_experiment_name("digits__lr-0.001__seed-1").parameters
        {'lr': 0.001, 'seed': 1}
        """
        if index is not None and name in index:
            return index[name]
        check_name(name)
        base, *texts = name.split("__")
        pairs = [text.partition("-") for text in texts]
        if not pairs or not all(dash for _, dash, _ in pairs):
            message = (
                "does not hold its parameters; only the index of its search has them"
            )
            message = f"{name}: {message}"
            raise NamingError(message)
        keys = tuple(keys)
        short, owners = abbreviations(keys), _owners(keys)
        try:
            texts = [_unescaped(key) for key, _, _ in pairs]
            for text in texts:
                check_key(text.removeprefix(_WHOLE) if keys else text, name)
            parsed = [_value(_unescaped(text)) for _, _, text in pairs]
            base = _unescaped(base)
        except (ValueError, GridError):
            texts, parsed = [], []
        if owners:
            texts = [_owner(text, owners, name) for text in texts]
        values = dict(zip(texts, parsed, strict=True))
        # Two spellings would be two names of one experiment: only ours is taken.
        if name not in (_readable(base, values, {}), _readable(base, values, short)):
            message = f"{name}: is no name of this form, or was changed by hand"
            raise NamingError(message)
        return ParsedName(base, values)


def _strategy(word: str) -> NamingStrategy:
    try:
        return NamingStrategy(word)
    except ValueError:
        message = f"{shown(word)} is no strategy: write {', '.join(NamingStrategy)}"
        raise NamingError(message) from None


def check_name(name: object) -> str:
    """Return *name* if it may name an experiment, a grid or a search.

    Raises:
        NamingError: If it may not.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        message = (
            f"{shown(name)} is no name: write at most 128 letters, digits, dots, dashes "
            "and underscores, the first a letter or digit"
        )
        raise NamingError(message)
    if ".." in name or name.endswith((".", ".lock")):
        message = f"{name!r} cannot name a git ref: take away '..' and '.lock' or '.' at the end"
        raise NamingError(message)
    return name


def abbreviations(keys: Iterable[str]) -> dict[str, str]:
    """Return a short form of each key: no two alike, and none like another key.

    A key that another could be abbreviated to is written whole, with a dot before it.

    >>> abbreviations(["model.hidden_size", "optimizer.lr", "scheduler.lr"])
    {'model.hidden_size': 'hs', 'optimizer.lr': 'o.lr', 'scheduler.lr': 's.lr'}
    >>> abbreviations(["data.seed", "seed"])
    {'data.seed': 'd.seed', 'seed': '.seed'}
    """
    keys = sorted(keys)
    owners = _owners(keys)
    return {
        key: next(text for text in _candidates(key) if len(owners[text]) == 1)
        for key in keys
    }


def _owners(keys: Iterable[str]) -> dict[str, set[str]]:
    """Return the keys that each short form may stand for, among these keys or fewer."""
    owners: dict[str, set[str]] = {}
    for key in keys:
        for text in _candidates(key):
            owners.setdefault(text, set()).add(key)
    return owners


def _owner(text: str, owners: Mapping[str, set[str]], name: str) -> str:
    """Return the key that *text* stands for; what it stood for in fewer keys may differ."""
    found = sorted(owners.get(text, ()))
    if len(found) != 1:
        which = f"may be {' or '.join(found)}" if found else "is no key of the search"
        message = (
            f"{name}: {text!r} {which}; ask parse_experiment_name of the search itself"
        )
        raise NamingError(message)
    return found[0]


def _candidates(key: str) -> list[str]:
    *above, last = key.split(".")
    words = [word for word in re.split("[_-]+", last) if word]
    short = last if len(last) <= _SHORT_WORD else "".join(w[0] for w in words)
    if len(words) == 1 and len(last) > _SHORT_WORD:
        short = last[: _SHORT_WORD - 1]
    sections = "".join(f"{section[0]}." for section in above)
    shorter = (short, sections + short, sections + last)
    return [*filter(None, shorter), key, _WHOLE + key]


def _ending(beginning: str, end: str) -> str:
    return beginning[: MAX_LENGTH - len(end)].rstrip("._-") + end


def _readable(base: str, values: Mapping[str, Any], short: Mapping[str, str]) -> str:
    pairs = [
        f"{_key(short.get(k, k))}-{_escaped(_text(values[k]))}" for k in sorted(values)
    ]
    return "__".join([_escaped(base), *pairs])


def _key(text: str) -> str:
    return _escaped(text, _SAFE - {"-"})


def _text(value: Any) -> str:
    """Return the text of a value, such that `_value` gives it back."""
    if isinstance(value, str):
        try:
            is_bare = parse_scalar(value) == value and value[0] not in '"[{'
        except ValueError:
            is_bare = False
        if is_bare:
            return value
    elif isinstance(value, float) and value in (float("inf"), float("-inf")):
        return repr(value).replace("inf", ".inf")
    elif isinstance(value, float):
        return repr(value).replace("e+", "e")
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _value(text: str) -> Any:
    return json.loads(text) if text[:1] in ('"', "[", "{") else parse_scalar(text)


def _escaped(text: str, safe: frozenset[str] = _SAFE) -> str:
    """Write *text* so that no ``__``, no ``..`` and no wrong end is in it."""
    result = ""
    for character in reversed(text[: 2 * MAX_LENGTH]):  # what is longer is cut anyway
        is_open = (
            character not in safe
            or (character == "_" and (result[:1] in ("", "_")))
            or (character == "_" and _DIGITS_FOLLOW.match(result))
            or (character == "." and (result[:1] in ("", ".") or result == "lock"))
        )
        if is_open:
            character = "".join(f"_x{byte:02X}" for byte in character.encode())  # noqa: PLW2901
        result = character + result
    return result


def _unescaped(text: str) -> str:
    def whole(match: re.Match[str]) -> str:
        return bytes.fromhex(match[0].replace("_x", "")).decode()

    return _ESCAPE.sub(whole, text)
