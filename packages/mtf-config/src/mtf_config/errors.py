"""Errors of ``mtf-config``.

* MtfConfigError
  * LocatedError               one thing is wrong at one place
    * ConfigFileError          the file cannot be read, or is not the YAML we accept
    * CompositionError         a ``defaults:`` list is wrong, leads nowhere or in a circle
    * OverrideError            a ``key=value`` cannot be applied
    * InterpolationError       a ``${...}`` cannot be resolved
  * ConfigValidationError      the values do not fit the schema; carries every problem

A bad argument is a plain `ValueError` or `TypeError`: the caller's bug, not the config's.
"""

from __future__ import annotations

from collections.abc import Iterable

from mtf_config.origin import Origin
from mtf_config.problem import Problem

__all__ = [
    "CompositionError",
    "ConfigFileError",
    "ConfigValidationError",
    "InterpolationError",
    "LocatedError",
    "MtfConfigError",
    "OverrideError",
]


class MtfConfigError(Exception):
    """Base of every error this package raises on purpose; ``str()`` is for users."""

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What is wrong, one entry each."""
        return ()


class LocatedError(MtfConfigError):
    """One thing is wrong at one place.

    Attributes:
        place: Where.
        reason: What is wrong and what would be right.
        key: Dotted key, empty where the problem is not about one key.
    """

    def __init__(self, place: Origin, reason: str, key: str = "") -> None:
        super().__init__(place, reason, key)
        self.place = place
        self.reason = reason
        self.key = key

    def __str__(self) -> str:
        return str(self.problems[0])

    @property
    def problems(self) -> tuple[Problem, ...]:
        """The one problem."""
        return (Problem(key=self.key, place=self.place, message=self.reason),)


class ConfigFileError(LocatedError):
    """The file cannot be read, or is not the YAML that is accepted here."""


class CompositionError(LocatedError):
    """A ``defaults:`` list is wrong, leads nowhere or in a circle."""


class OverrideError(LocatedError):
    """A ``key=value`` override cannot be parsed or applied."""


class InterpolationError(LocatedError):
    """A ``${...}`` cannot be resolved."""


class ConfigValidationError(MtfConfigError):
    """The values do not fit the schema; *problems* holds every one of them."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self._problems = tuple(problems)
        super().__init__(self._problems)

    def __str__(self) -> str:
        count = len(self._problems)
        head = (
            "1 problem in the config" if count == 1 else f"{count} problems in the config"
        )
        return "\n".join([f"{head}:", *(f"  {problem}" for problem in self._problems)])

    def __reduce__(self) -> tuple[type[ConfigValidationError], tuple[object, ...]]:
        return type(self), (self._problems,)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Every problem found, in the order of the schema."""
        return self._problems
