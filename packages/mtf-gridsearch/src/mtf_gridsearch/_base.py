"""The base config of a search: what its schema knows, and copies with parameters set.

A mapping is its own schema: its keys, at every level, are the ones there are, and a value
keeps its kind (number, truth, text, list, mapping; null goes with all). A pydantic model
is validated as a whole by its own class, values as it would take them from JSON; a key that
its schema would ignore is unknown.

A mapping that is set takes the place of the base's, and is never merged with it. One that
would change by this what it does not name is refused: it lacks keys of a mapping, or would
give fields of the same section their defaults. A section of another type is all its own.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

from mtf_gridsearch._plain import nearest, plain, shown

__all__ = ["NAME", "Base", "Fault", "MappingBase", "UnfitError", "left_out"]

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

    name_key = NAME
    """The key that the name is written under."""

    class_name: str | None = None
    """Of the class that a model is of; None for a mapping."""

    @abstractmethod
    def plain_of(self, config: Any) -> dict[str, Any]:
        """Return the values of *config*, which is of the base's type, as YAML holds them."""

    @abstractmethod
    def applied(self, parameters: Mapping[str, Any], name: str) -> Any:
        """Return a config like the base, with *parameters* set, called *name*.

        Raises:
            UnfitError: If they do not fit.
        """

    def made_again(
        self,
        config: Any,  # noqa: ARG002
        parameters: Mapping[str, Any],  # noqa: ARG002
    ) -> Iterator[tuple[str, str, str]]:
        """Yield what was set in the base, and is made again by its class as another value.

        Args:
            config: That *parameters* make.
            parameters: By dotted key.

        Yields:
            A key, the base's value, the new one.
        """
        yield from ()


class MappingBase(Base):
    """A base config that is a mapping.

    Raises:
        GridError: If it holds what is not plain.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._values: dict[str, Any] = plain(config, "base config")

    @property
    def name(self) -> Any:
        return self._values.get(NAME)

    @property
    def plain(self) -> dict[str, Any]:
        return copy.deepcopy(self._values)

    def plain_of(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return plain(config, "config")  # type: ignore[no-any-return]

    def applied(self, parameters: Mapping[str, Any], name: str) -> dict[str, Any]:
        result = self.plain
        faults = []
        for key, value in parameters.items():
            *above, last = key.split(".")
            section: Any = result
            for part in above:
                section = section.get(part) if isinstance(section, dict) else None
            if not isinstance(section, dict) or last not in section:
                faults.append((key, self._no_such(key)))
                continue
            faults += self._unlike(section[last], value, key)
            section[last] = copy.deepcopy(value)
        if faults:
            raise UnfitError(faults)
        if NAME in result:
            result[NAME] = name
        return result

    def _no_such(self, key: str) -> str:
        known = list(_dotted(self._values))
        if key in known:
            section, _, last = key.rpartition(".")
            nested = f"write sections, as in {section}: {{{last}: ...}}"
            return f"the base config has it as one key, with a dot in it: {nested}"
        return f"the base config has no such key{nearest(key, known)}"

    def _unlike(self, known: Any, value: Any, key: str) -> Iterator[Fault]:
        if known is None or value is None:
            return
        if _kind(known) != _kind(value):
            reason = f"{shown(value)} is {_kind(value)}, but in the base config it is"
            yield key, f"{reason} {_kind(known)}: {shown(known)}"
        elif isinstance(value, dict) and known:  # one without keys takes any
            for part, inner in value.items():
                if part not in known:
                    yield f"{key}.{part}", self._no_such(f"{key}.{part}")
                else:
                    yield from self._unlike(known[part], inner, f"{key}.{part}")
            # One that was misspelt is told of above.
            for part in (
                known.keys() - value.keys() if value.keys() <= known.keys() else ()
            ):
                yield left_out(f"{key}.{part}", shown(known[part]), "be lost")


def left_out(key: str, value: str, fate: str) -> Fault:
    section = key.rpartition(".")[0]
    reason = f"{value} of the base config would {fate}, for {section} replaces it whole"
    return key, f"{reason}: name all in {section}, or set {section}.<key> alone"


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
