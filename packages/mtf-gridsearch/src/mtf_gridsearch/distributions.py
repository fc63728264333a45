"""Where random and Bayesian searches draw a parameter from, instead of listed values.

Drawing depends on the generator alone: the same seed gives the same values on every
machine.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from mtf_gridsearch._plain import plain, shown
from mtf_gridsearch.errors import GridError
from mtf_gridsearch.identity import canonical

__all__ = [
    "WORDS",
    "Choice",
    "Distribution",
    "IntUniform",
    "LogUniform",
    "Uniform",
    "choice",
    "from_plain",
    "int_uniform",
    "loguniform",
    "uniform",
]

_RANGE = 2


@dataclass(frozen=True, slots=True)
class Uniform:
    """Any number from *low* to *high*, all equally likely."""

    low: float
    high: float

    def __post_init__(self) -> None:
        _check_range(self.low, self.high, "uniform")

    def draw(self, rng: random.Random) -> float:
        """Return a value."""
        return rng.uniform(self.low, self.high)

    def to_plain(self) -> dict[str, Any]:
        """Return what stands in a file."""
        return {"uniform": [self.low, self.high]}


@dataclass(frozen=True, slots=True)
class LogUniform:
    """Any number from *low* > 0 to *high*, all orders of magnitude equally likely."""

    low: float
    high: float

    def __post_init__(self) -> None:
        _check_range(self.low, self.high, "loguniform")
        if self.low <= 0:
            message = f"loguniform begins above 0, not at {self.low!r}"
            raise ValueError(message)

    def draw(self, rng: random.Random) -> float:
        """Return a value."""
        drawn = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        return min(max(drawn, self.low), self.high)

    def to_plain(self) -> dict[str, Any]:
        """Return what stands in a file."""
        return {"loguniform": [self.low, self.high]}


@dataclass(frozen=True, slots=True)
class IntUniform:
    """Any whole number from *low* to *high*, both included, all equally likely."""

    low: int
    high: int

    def __post_init__(self) -> None:
        _check_range(self.low, self.high, "int")
        if {type(self.low), type(self.high)} != {int}:
            message = f"int takes whole numbers, not {self.low!r} and {self.high!r}"
            raise ValueError(message)

    def draw(self, rng: random.Random) -> int:
        """Return a value."""
        return rng.randint(self.low, self.high)

    def to_plain(self) -> dict[str, Any]:
        """Return what stands in a file."""
        return {"int": [self.low, self.high]}


@dataclass(frozen=True, slots=True)
class Choice:
    """Any of *values*, all equally likely."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        given: Any = self.values
        if not isinstance(given, list | tuple) or not given:
            message = f"choice takes a list of at least one value, not {self.values!r}"
            raise ValueError(message)
        values = tuple(plain(value, "choice") for value in self.values)
        if len({canonical(value) for value in values}) < len(values):
            message = f"choice has a value twice in {shown(list(values))}"
            raise ValueError(message)
        object.__setattr__(self, "values", values)

    def draw(self, rng: random.Random) -> Any:
        """Return a value."""
        return rng.choice(self.values)

    def to_plain(self) -> dict[str, Any]:
        """Return what stands in a file."""
        return {"choice": list(self.values)}


Distribution: TypeAlias = Uniform | LogUniform | IntUniform | Choice


def uniform(low: float, high: float) -> Uniform:
    """Draw any number from *low* to *high*.

    Raises:
        ValueError: If these are not two finite numbers in order.
    """
    return Uniform(low, high)


def loguniform(low: float, high: float) -> LogUniform:
    """Draw any number from *low* to *high*, evenly over the orders of magnitude.

    Raises:
        ValueError: If these are not two finite numbers above 0, in order.
    """
    return LogUniform(low, high)


def int_uniform(low: int, high: int) -> IntUniform:
    """Draw any whole number from *low* to *high*, both included.

    Raises:
        ValueError: If these are not two whole numbers in order.
    """
    return IntUniform(low, high)


def choice(values: Sequence[Any]) -> Choice:
    """Draw any of *values*.

    Raises:
        GridError: If one of them is not a plain value.
        ValueError: If there are none, or one stands twice.
    """
    return Choice(tuple(values))


_RANGES: dict[str, Callable[[Any, Any], Distribution]] = {
    "uniform": Uniform,
    "loguniform": LogUniform,
    "int": IntUniform,
}
WORDS = (*_RANGES, "choice")


def from_plain(word: str, arguments: Any, place: str) -> Distribution:
    """Return the distribution that `to_plain` wrote as ``{word: arguments}``.

    Raises:
        GridError: If there is none.
    """
    try:
        if word == "choice":
            return Choice(arguments)
        if not isinstance(arguments, list) or len(arguments) != _RANGE:
            raise GridError(place, f"write `{word}: [low, high]`")
        return _RANGES[word](*arguments)
    except ValueError as error:
        raise GridError(place, str(error)) from None


def _check_range(low: Any, high: Any, word: str) -> None:
    for bound in (low, high):
        is_number = isinstance(bound, int | float) and not isinstance(bound, bool)
        if not is_number or not _is_finite(bound):
            message = f"{word} takes two finite numbers, not {bound!r}"
            raise ValueError(message)
    if not low < high:
        message = (
            f"{word} goes from a smaller to a larger number, not {low!r} to {high!r}"
        )
        raise ValueError(message)
    if not _is_finite(high - low):
        message = f"{word} from {low!r} to {high!r} is wider than any number: narrow it"
        raise ValueError(message)


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number beyond them
        return False
