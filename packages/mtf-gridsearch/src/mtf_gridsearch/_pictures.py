"""What every picture of a search has: a figure, a title, a count of what is missing, a file."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtf_gridsearch._groups import ABSENT, value_key
from mtf_gridsearch._scales import is_drawn, safe_text
from mtf_gridsearch._values import At, Mode
from mtf_gridsearch.errors import ResultsError
from mtf_gridsearch.records import ExperimentRecord
from mtf_gridsearch.results import SearchResults

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "cells_of",
    "colours",
    "finish",
    "missing_note",
    "new_figure",
    "ranked_values",
    "save",
    "unique_handles",
    "varying",
]

_COLOURS = "viridis"  # dark is low, and for "min" good
_DOTS_PER_INCH = 150
_SUFFIXES = (".pdf", ".png", ".svg")


def new_figure(width_inch: float, height_inch: float) -> Figure:
    try:
        from matplotlib.figure import Figure as NewFigure  # noqa: PLC0415 -- an extra
    except ModuleNotFoundError as error:
        msg = "plots need Matplotlib: pip install 'mtf-gridsearch[plot]'"
        raise ModuleNotFoundError(msg, name=error.name) from error
    return NewFigure(
        figsize=(width_inch, height_inch), dpi=_DOTS_PER_INCH, layout="constrained"
    )


def finish(figure: Figure, results: SearchResults, title: str, note: str) -> None:
    """Add the title, and below it what is not in the picture."""
    figure.suptitle(f"{title}: {safe_text(results.name, 40)}", x=0.01, ha="left")
    figure.supxlabel(
        safe_text(note, 140), x=0.01, ha="left", fontsize="small", color="0.3"
    )


def missing_note(results: SearchResults, metric: str, num_used: int) -> str:
    left_out = results.left_out(metric)
    without = ", ".join(f"{count} {why}" for why, count in left_out.items())
    end = f"; without: {without}" if without else ""
    total = len(results.records)
    return f"{num_used} of {total} experiment{'s' * (total != 1)}{end}"


def save(figure: Figure, path: Path | str) -> Path:
    """Write the picture, whole or not at all."""
    target = Path(path)
    suffix = target.suffix.lower()
    if suffix not in _SUFFIXES:
        msg = f"{target}: a picture ends in one of {', '.join(_SUFFIXES)}"
        raise ValueError(msg)
    aside = target.with_name(f".{secrets.token_hex(8)}{suffix}")
    try:
        figure.savefig(aside)
        aside.replace(target)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    return target


def ranked_values(
    results: SearchResults, metric: str, mode: Mode, at: At
) -> dict[str, float]:
    """Return the values that have a place in a picture, by name, the best first."""
    ranked = results.ranking(metric, mode, at=at)
    drawn = {r.experiment_name: value for r, value in ranked if is_drawn(value)}
    if not drawn:
        msg = f"{results.folder}: all results of {metric!r} are too large to be drawn"
        raise ResultsError(msg)
    return drawn


def cells_of(records: Iterable[ExperimentRecord], key: str) -> list[Any]:
    return [record.parameters.get(key, ABSENT) for record in records]


def varying(results: SearchResults) -> list[str]:
    """Return the parameters that have two values."""
    keys = [
        key
        for key in results.parameters
        if len(set(map(value_key, cells_of(results.records, key)))) > 1
    ]
    if not keys:
        msg = (
            f"{results.folder}: no parameter has two values, so there is nothing to draw"
        )
        raise ResultsError(msg)
    return keys


def colours(mode: Mode) -> str:
    return _COLOURS if mode == "min" else f"{_COLOURS}_r"


def unique_handles(several: Iterable[Axes]) -> tuple[list[Artist], list[str]]:
    """Return one entry of a legend for each label."""
    found: dict[str, Artist] = {}
    for axes in several:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return list(found.values()), list(found)
