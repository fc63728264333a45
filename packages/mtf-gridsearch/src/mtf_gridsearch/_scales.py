"""Where the values of a parameter lie on an axis, and how an axis is labelled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mtf_gridsearch._groups import ABSENT, is_number, value_key
from mtf_gridsearch._tables import value_text

__all__ = [
    "Scale",
    "Upright",
    "axis_label",
    "is_drawn",
    "is_wide",
    "safe_text",
    "scale_of",
]

_UNITS = {
    "_s": "s",
    "_ms": "ms",
    "_minutes": "min",
    "_hours": "h",
    "_bytes": "bytes",
    "_mb": "MB",
    "_gb": "GB",
    "_percent": "%",
}
_WIDE = 50.0
_LARGEST = 1e300
_MAX_TEXT = 24
_MAX_TICKS = 6


@dataclass(frozen=True, slots=True)
class Scale:
    """An axis of one parameter.

    Attributes:
        labels: Of the places 0, 1, ... where values have no size; empty for numbers.
        is_log: Whether numbers lie by their logarithm.
    """

    labels: tuple[str, ...]
    is_log: bool
    _places: dict[Any, int]

    def place(self, value: Any) -> float:
        """Return where *value* lies: itself for a number, else the place of its label."""
        return float(self._places[value_key(value)] if self.labels else value)


def scale_of(cells: Sequence[Any]) -> Scale:
    """Return the axis for *cells*: of numbers if all may be drawn, else of labels."""
    if all(is_number(cell) and is_drawn(_float(cell)) for cell in cells):
        return Scale((), is_wide([float(cell) for cell in cells]), {})
    keys = dict.fromkeys(map(value_key, cells))
    first = {value_key(cell): cell for cell in reversed(cells)}
    order = sorted(keys, key=lambda key: _rank(first[key]))
    labels = tuple(safe_text(_cell_text(first[key])) for key in order)
    return Scale(labels, is_log=False, _places={key: i for i, key in enumerate(order)})


@dataclass(frozen=True, slots=True)
class Upright:
    """A `Scale` from 0 to 1, with ticks: the height of each, and its label."""

    scale: Scale
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]

    @classmethod
    def of(cls, cells: Sequence[Any]) -> Upright:
        """Return the scale on which all of *cells* have a place."""
        scale = scale_of(cells)
        sizes = [_size(scale, cell) for cell in cells]
        bare = cls(scale, min(sizes), max(sizes), ())
        if scale.labels:
            found = [(bare.height(i), label) for i, label in enumerate(scale.labels)]
        else:
            distinct = sorted(set(cells))
            if len(distinct) > _MAX_TICKS:
                distinct = _round_numbers(distinct[0], distinct[-1], scale.is_log)
            found = [(bare.place(value), f"{value:.4g}") for value in distinct]
        return replace(bare, ticks=tuple(found))

    def place(self, cell: Any) -> float:
        """Return the height of *cell*."""
        return self.height(_size(self.scale, cell))

    def height(self, size: float) -> float:
        """Return the height of a size on the scale; the middle where all are the same."""
        span = self.high - self.low
        return (size - self.low) / span if span else 0.5


def is_drawn(number: float) -> bool:
    """Whether Matplotlib can draw *number*: differences of larger ones are infinite."""
    return abs(number) <= _LARGEST


def is_wide(values: Sequence[float]) -> bool:
    """Whether positive numbers are better told apart by their logarithm."""
    finite = [value for value in values if math.isfinite(value)]
    return bool(finite) and min(finite) > 0 and max(finite) / min(finite) >= _WIDE


def axis_label(name: str) -> str:
    """Return *name* with the unit that its ending says.

    >>> axis_label("time_limit_s"), axis_label("optimizer.lr")
    ('time_limit_s (s)', 'optimizer.lr')
    """
    for ending, unit in _UNITS.items():
        if name.endswith(ending):
            return f"{safe_text(name, 60)} ({unit})"
    return safe_text(name, 60)


def safe_text(text: str, longest: int = _MAX_TEXT) -> str:
    r"""Return *text* for a picture: short, one line, no formula.

    >>> print(safe_text("$x$"))
    \$x\$
    """
    line = "".join(c if c.isprintable() else " " for c in text)
    short = line if len(line) <= longest else line[: longest - 1] + "…"
    return short.replace("$", r"\$")


def _round_numbers(low: float, high: float, is_log: bool) -> list[float]:  # noqa: FBT001
    """Return some round numbers from *low* to *high*."""
    if is_log:
        first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
        every = max(1, (last - first + 1) // _MAX_TICKS)
        return [10.0**power for power in range(first, last + 1, every)]
    rough = (high - low) / (_MAX_TICKS - 1)
    step = 10.0 ** math.floor(math.log10(rough))
    step *= next(times for times in (1, 2, 5, 10) if step * times >= rough)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _size(scale: Scale, cell: Any) -> float:
    place = scale.place(cell)
    return math.log10(place) if scale.is_log else place


def _cell_text(cell: Any) -> str:
    return repr(ABSENT) if cell is ABSENT else value_text(cell)


def _rank(cell: Any) -> tuple[int, float]:
    if cell is ABSENT:
        return 2, 0.0
    # Sorting is stable: values that are no numbers keep the order of first appearance.
    return (0, _float(cell)) if is_number(cell) else (1, 0.0)


def _float(number: float) -> float:
    """Return *number*, or infinity for a whole number beyond the largest."""
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf
