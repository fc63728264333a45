"""How experiments look in pictures: one look for each way to end, the same in all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from mtf_gridsearch._groups import ABSENT
from mtf_gridsearch._pictures import colours
from mtf_gridsearch._scales import Scale, Upright, axis_label, scale_of
from mtf_gridsearch._values import Mode
from mtf_gridsearch.records import Curve, ExperimentRecord, Status

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

__all__ = [
    "NAMED_COLOURS",
    "draw_cells",
    "draw_curves",
    "draw_lines",
    "draw_parameter",
    "draw_ticks",
]

NAMED_COLOURS = ("#1f77b4", "#e07b00", "#7b3fa0", "#17a2a8", "#8c564b", "#d45ba8")
"""None of them red, green or grey, which mean something else."""

_GOLDEN = 0.6180339887498949
_MAX_LEVEL = 30  # characters of tick labels side by side
_MAX_TICKS = 8
_UNFINISHED = frozenset({Status.MISSING, Status.PENDING, Status.RUNNING, Status.UNKNOWN})


@dataclass(frozen=True, slots=True)
class _Look:
    """How one kind of experiment looks: as a dot, and as a line with a mark at its end."""

    label: str
    colour: str
    marker: str
    line: str = "-"
    end: str = ""

    def dot(self) -> dict[str, Any]:
        """Return how it is plotted as a dot."""
        look = {"color": self.colour, "marker": self.marker, "linestyle": "none"}
        hollow = {"mfc": "none"} if self.end == "s" else {}
        return look | hollow | {"label": self.label, "zorder": 3}


_SUCCEEDED = _Look("succeeded", "#1f77b4", "o")
_STOPPED = _Look("stopped early", "0.4", "o", end="s")
_UNENDED = _Look("not ended", "#3a8f3a", "+", end=">")
_NO_RESULT = _Look("no result", "#c03028", "x", line="--", end="x")
_BEST = _Look("best", "#e07b00", "*")


def _look(record: ExperimentRecord, *, has_value: bool) -> _Look:
    if record.status in _UNFINISHED:
        return _UNENDED
    if not has_value:
        return _NO_RESULT
    return _STOPPED if record.status is Status.STOPPED else _SUCCEEDED


def draw_parameter(
    axes: Axes,
    records: Sequence[ExperimentRecord],
    key: str,
    values: Mapping[str, float],
) -> None:
    """Draw *values* (the best first) against a parameter; below them what has none."""
    cells = [record.parameters.get(key, ABSENT) for record in records]
    scale = scale_of(cells)
    _set_up(axes, key, cells, scale)
    best = next(iter(values))
    by_place: dict[float, list[float]] = {}
    dots: dict[_Look, list[tuple[float, float]]] = {}
    for index, record in enumerate(records):
        place = scale.place(cells[index])
        # Side by side where places have room, the same in each picture.
        shift = 0.24 * (index * _GOLDEN % 1.0 - 0.5) if scale.labels else 0.0
        value = values.get(record.experiment_name)
        look = _look(record, has_value=value is not None)
        if value is None:
            dots.setdefault(look, []).append((place + shift, _LOW))
            continue
        by_place.setdefault(place, []).append(value)
        if record.experiment_name == best:
            look = _BEST
        dots.setdefault(look, []).append((place + shift, value))
    for look, points in dots.items():
        style = look.dot()
        if look in (_UNENDED, _NO_RESULT):
            style["transform"] = axes.get_xaxis_transform()
        if look is _BEST:
            style |= {"markersize": 13, "zorder": 4}
        if look is _SUCCEEDED:
            style |= {"alpha": 0.6, "mew": 0}
        axes.plot(*zip(*points, strict=True), **style)
    if len(by_place) < len(values):
        means = sorted((place, fmean(found)) for place, found in by_place.items())
        line = "none" if scale.labels else "-"
        axes.plot(
            *zip(*means, strict=True),
            color="0.2",
            linestyle=line,
            marker="_",
            markersize=14,
            label="mean",
        )


def _set_up(axes: Axes, key: str, cells: Sequence[Any], scale: Scale) -> None:
    """Give *axes* the scale of a parameter, below."""
    axes.set_xlabel(axis_label(key))
    axes.grid(color="0.9", linewidth=0.6)
    if scale.is_log:
        axes.set_xscale("log")
    if scale.labels:
        axes.set_xticks(range(len(scale.labels)), scale.labels)
        axes.set_xlim(-0.5, len(scale.labels) - 0.5)
        is_long = sum(map(len, scale.labels)) > _MAX_LEVEL
        axes.tick_params(axis="x", rotation=30 if is_long else 0)
    elif len(set(cells)) <= _MAX_TICKS:
        distinct = sorted(set(cells))
        axes.set_xticks(distinct, [f"{value:.4g}" for value in distinct])
        axes.set_xticks([], minor=True)


_LOW = 0.035  # of the height: where those without a value lie


def draw_lines(
    axes: Axes,
    records: Sequence[ExperimentRecord],
    keys: Sequence[str],
    values: Mapping[str, float],
    mode: Mode,
) -> list[Upright]:
    """Draw a line an experiment across *keys* and its value; return the scales."""
    from matplotlib.collections import LineCollection  # noqa: PLC0415 -- an extra

    columns = [[record.parameters.get(key, ABSENT) for record in records] for key in keys]
    scales = [Upright.of(column) for column in columns]
    metric_scale = Upright.of(list(values.values()))
    rows = zip(records, zip(*columns, strict=True), strict=True)
    good: dict[str, list[tuple[float, float]]] = {}
    without: dict[_Look, list[list[tuple[float, float]]]] = {}
    for record, cells in rows:
        heights = [scale.place(cell) for scale, cell in zip(scales, cells, strict=True)]
        name = record.experiment_name
        line = [(float(place), height) for place, height in enumerate(heights)]
        if name in values:
            good[name] = [*line, (float(len(keys)), metric_scale.place(values[name]))]
        else:
            without.setdefault(_look(record, has_value=False), []).append(line)
    # *values* has the best first: it is drawn last, on top.
    names = list(values)[::-1]
    lines = LineCollection(
        [good[name] for name in names],
        array=[values[name] for name in names],
        cmap=colours(mode),
        linewidths=[1.2] * (len(names) - 1) + [3.5],
        alpha=0.8,
    )
    axes.add_collection(lines)
    for look, found in without.items():
        style: dict[str, Any] = {
            "colors": look.colour,
            "linestyles": "dashed",
            "linewidths": 0.9,
        }
        axes.add_collection(LineCollection(found, **style))
        ends = [line[-1] for line in found]
        axes.plot(*zip(*ends, strict=True), **look.dot())
    return [*scales, metric_scale]


def draw_ticks(axes: Axes, place: int, scale: Upright) -> None:
    """Draw an upright axis with its labels."""
    axes.axvline(place, color="0.25", linewidth=0.8, zorder=2)
    for height, label in scale.ticks:
        axes.annotate(
            label,
            (place, height),
            (5, 0),
            textcoords="offset points",
            va="center",
            fontsize="small",
            zorder=5,
            bbox={"boxstyle": "round,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.8},
        )


def draw_cells(
    axes: Axes,
    cells: Sequence[Sequence[Sequence[float | None]]],
    mode: Mode,
    *,
    with_text: bool,
) -> AxesImage:
    """Draw the mean of each cell; a cell has a value or None an experiment."""
    found = [[[v for v in cell if v is not None] for cell in row] for row in cells]
    means = [[fmean(cell) if cell else math.nan for cell in row] for row in found]
    axes.set_facecolor("0.9")
    image = axes.imshow(means, origin="lower", aspect="auto", cmap=colours(mode))
    colour_of: Any = image.to_rgba  # typed for arrays alone
    for y, row in enumerate(cells if with_text else ()):
        for x, cell in enumerate(row):
            num_used, mean = len(found[y][x]), means[y][x]
            num_without = len(cell) - num_used
            lines = [f"{mean:.4g}", f"of {num_used}"] if num_used else []
            lines += [f"{num_without} without"] if num_without else []
            red, green, blue, _ = colour_of(mean)
            is_dark = num_used and 0.3 * red + 0.6 * green + 0.1 * blue < _HALF
            axes.text(
                x,
                y,
                "\n".join(lines),
                color="white" if is_dark else "black" if num_used else _NO_RESULT.colour,
                ha="center",
                va="center",
                fontsize="x-small",
            )
    return image


_HALF = 0.5


def draw_curves(
    axes: Axes,
    curves: Sequence[tuple[ExperimentRecord, Curve, bool]],
    named: Mapping[str, str],
) -> None:
    """Draw curves, those in *named* (by name, its label) with colours of their own."""
    from matplotlib.collections import LineCollection  # noqa: PLC0415 -- an extra

    by_look: dict[_Look, list[Curve]] = {}
    for record, curve, has_value in curves:
        if record.experiment_name not in named:
            by_look.setdefault(_look(record, has_value=has_value), []).append(curve)
    by_name = {record.experiment_name: curve for record, curve, _ in curves}
    for index, (name, label) in enumerate(named.items()):
        colour = NAMED_COLOURS[index % len(NAMED_COLOURS)]
        style: dict[str, Any] = {"color": colour, "linewidth": 2.0, "zorder": 4}
        axes.plot(*zip(*by_name[name], strict=True), label=label, **style)
    for look, found in by_look.items():
        colour = "0.72" if look is _SUCCEEDED else look.colour
        axes.add_collection(
            LineCollection(
                [list(curve) for curve in found],
                colors=colour,
                linestyles=look.line,
                linewidths=1.0,
            )
        )
        # One line without points stands for them in the legend.
        axes.plot([], [], color=colour, ls=look.line, marker=look.end, label=look.label)
        ends = [curve[-1] for curve in found]
        if look.end:
            axes.plot(*zip(*ends, strict=True), look.end, color=colour, zorder=3)
    axes.autoscale_view()
