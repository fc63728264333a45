"""Pictures of a search (extra ``plot``), written to files: PNG, SVG or PDF by the suffix.

What has no value is in every picture: as crosses or broken lines where there is a place
for it, and counted by reason in the line below. Uses Matplotlib's figures without pyplot:
no window, no global state.
"""

from __future__ import annotations

import math
from pathlib import Path

from mtf_gridsearch import metrics_file
from mtf_gridsearch._groups import grouped
from mtf_gridsearch._marks import (
    draw_cells,
    draw_curves,
    draw_lines,
    draw_parameter,
    draw_ticks,
)
from mtf_gridsearch._pictures import (
    cells_of,
    finish,
    missing_note,
    new_figure,
    ranked_values,
    save,
    unique_handles,
    varying,
)
from mtf_gridsearch._scales import axis_label, is_drawn, is_wide, safe_text
from mtf_gridsearch._values import At, Mode, reason_to_leave_out, value_of
from mtf_gridsearch.errors import ResultsError
from mtf_gridsearch.results import SearchResults

__all__ = ["plot_curves", "plot_heat_map", "plot_parallel", "plot_parameters"]

_MAX_CELLS_WITH_TEXT = 100
_MAX_TICK = 12  # characters that have room below a cell


def plot_parameters(
    results: SearchResults,
    metric: str,
    mode: Mode,
    path: Path | str,
    *,
    at: At = "best",
) -> Path:
    """Draw *metric* against each parameter that varies; return *path*.

    A dot is an experiment, a ring one that was stopped early; at the lower edge lie those
    without a value, a cross if it ended and a plus if not. Dashes are means, where
    experiments share a value of the parameter.

    Raises:
        ModuleNotFoundError: If Matplotlib is not installed.
        ResultsError: If no experiment with a result reported *metric*, or no parameter
            has two values.
        ValueError: If *mode* or *at* is another word, or the suffix of *path* is unknown.
        OSError: If the file cannot be written.
    """
    values = ranked_values(results, metric, mode, at)
    keys = varying(results)
    num_columns = min(3, len(keys))
    num_rows = math.ceil(len(keys) / num_columns)
    figure = new_figure(max(6.4, 4.6 * num_columns), 3.4 * num_rows + 0.8)
    axes = figure.subplots(num_rows, num_columns, squeeze=False, sharey=True)
    for place, one in enumerate(axes.flat):
        if place >= len(keys):
            one.set_visible(False)
            continue
        draw_parameter(one, results.records, keys[place], values)
        if place % num_columns == 0:
            one.set_ylabel(f"{axis_label(metric)}, {at}")
    if is_wide(list(values.values())):
        axes[0][0].set_yscale("log")
    # Room below for what has no value.
    axes[0][0].margins(y=0.12)
    note = missing_note(results, metric, len(values))
    finish(figure, results, f"{safe_text(metric, 60)} by parameter", note)
    handles, labels = unique_handles(axes.flat)
    figure.legend(
        handles, labels, loc="outside lower right", ncols=len(labels), frameon=False
    )
    return save(figure, path)


def plot_parallel(
    results: SearchResults,
    metric: str,
    mode: Mode,
    path: Path | str,
    *,
    at: At = "best",
) -> Path:
    """Draw each experiment as a line across its parameters to *metric*; return *path*.

    Colour is the metric, dark is good, and the best is drawn thick. A broken line is an
    experiment without a value: it ends at the last parameter.

    Raises:
        ModuleNotFoundError: If Matplotlib is not installed.
        ResultsError: If no experiment with a result reported *metric*, or no parameter
            has two values.
        ValueError: If *mode* or *at* is another word, or the suffix of *path* is unknown.
        OSError: If the file cannot be written.
    """
    values = ranked_values(results, metric, mode, at)
    keys = varying(results)
    figure = new_figure(max(6.4, 1.9 * (len(keys) + 1) + 0.8), 5.4)
    axes = figure.subplots()
    scales = draw_lines(axes, results.records, keys, values, mode)
    for place, scale in enumerate(scales):
        draw_ticks(axes, place, scale)
    labels = [*map(axis_label, keys), f"{axis_label(metric)}, {at}"]
    axes.set_xticks(range(len(labels)), labels)
    axes.tick_params(axis="x", top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.set_xlim(-0.15, len(keys) + 0.4)
    axes.set_ylim(-0.05, 1.05)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    note = missing_note(results, metric, len(values))
    finish(figure, results, f"{safe_text(metric, 60)} across parameters", note)
    handles, names = unique_handles([axes])
    if handles:
        style = {"ncols": len(names), "frameon": False}
        figure.legend(handles, names, loc="outside lower right", **style)
    return save(figure, path)


def plot_heat_map(  # noqa: PLR0913 -- two axes, one value
    results: SearchResults,
    x: str,
    y: str,
    metric: str,
    mode: Mode,
    path: Path | str,
    *,
    at: At = "best",
) -> Path:
    """Draw the mean of *metric* over all experiments that share two values; return *path*.

    Each cell says its mean, over how many experiments it is, and how many more are without
    a result. Numbers with more than eight values are cut into ranges.

    Raises:
        ModuleNotFoundError: If Matplotlib is not installed.
        ResultsError: If no experiment with a result reported *metric*, or none has the
            parameter *x* or *y*.
        ValueError: If *mode* or *at* is another word, or the suffix of *path* is unknown.
        OSError: If the file cannot be written.
    """
    values = ranked_values(results, metric, mode, at)
    for key in (x, y):
        if key not in results.parameters:
            known = ", ".join(results.parameters) or "none"
            msg = f"{results.folder}: no parameter {key!r}; there are: {known}"
            raise ResultsError(msg)
    columns = grouped(cells_of(results.records, x))
    rows = grouped(cells_of(results.records, y))
    by_row = [[set(row) & set(column) for _, column in columns] for _, row in rows]
    names = [record.experiment_name for record in results.records]
    cells = [[[values.get(names[i]) for i in cell] for cell in line] for line in by_row]
    size = (max(6.4, 1.05 * len(columns) + 2.8), max(3.6, 0.75 * len(rows) + 2.0))
    figure = new_figure(*size)
    axes = figure.subplots()
    with_text = len(rows) * len(columns) <= _MAX_CELLS_WITH_TEXT
    image = draw_cells(axes, cells, mode, with_text=with_text)
    axes.set_xticks(range(len(columns)), [safe_text(label) for label, _ in columns])
    axes.set_yticks(range(len(rows)), [safe_text(label) for label, _ in rows])
    if any(len(label) > _MAX_TICK for label, _ in columns):
        for text in axes.get_xticklabels():
            text.set(rotation=30, ha="right", rotation_mode="anchor")
    axes.set_xlabel(axis_label(x))
    axes.set_ylabel(axis_label(y))
    figure.colorbar(image, ax=axes, label=f"mean of {axis_label(metric)}, {at}")
    note = missing_note(results, metric, len(values))
    finish(figure, results, f"{safe_text(metric, 60)} by two parameters", note)
    return save(figure, path)


def plot_curves(
    results: SearchResults,
    metric: str,
    mode: Mode,
    path: Path | str,
    *,
    num_named: int = 5,
) -> Path:
    """Draw *metric* over steps, a line an experiment; return *path*.

    The best *num_named* have colours and names. What ended without a result is red,
    broken and ends in a cross; what was stopped early ends in a square, what has not ended
    in a triangle. Experiments that reported nothing are counted below.

    Raises:
        ModuleNotFoundError: If Matplotlib is not installed.
        ResultsError: If no experiment reported *metric*.
        ValueError: If *mode* is another word, *num_named* is negative, or the suffix of
            *path* is unknown.
        OSError: If the file cannot be written.
    """
    if num_named < 0:
        msg = f"num_named counts experiments: at least 0, not {num_named}"
        raise ValueError(msg)
    drawn = []
    for record in results.records:
        file = results.folder / record.experiment_name / metrics_file.METRICS_NAME
        curves = metrics_file.read_curves(file, record.failed_jobs)
        if curve := [
            (step, value if is_drawn(value) else math.nan)
            for step, value in curves.get(metric, ())
        ]:
            has_value = reason_to_leave_out(record, (metric,)) is None
            drawn.append((record, curve, has_value))
    if not drawn:
        known = ", ".join(results.metrics) or "none"
        msg = (
            f"{results.folder}: no experiment has a curve of {metric!r}; metrics: {known}"
        )
        raise ResultsError(msg)
    candidates = [
        (value, record.experiment_name)
        for record, _, has_value in drawn
        if has_value and (value := value_of(record, metric, mode)) is not None
    ]
    best = sorted(candidates, key=lambda c: c[0], reverse=mode == "max")[:num_named]
    named = {
        name: safe_text(f"{rank}. {name} ({value:.4g})", 48)
        for rank, (value, name) in enumerate(best, 1)
    }
    figure = new_figure(9.0, 4.8)
    axes = figure.subplots()
    draw_curves(axes, drawn, named)
    axes.legend(
        loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize="small"
    )
    if is_wide([value for _, curve, _ in drawn for _, value in curve]):
        axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel(axis_label(metric))
    axes.grid(color="0.9", linewidth=0.6)
    total, missing = len(results.records), len(results.records) - len(drawn)
    note = f"{len(drawn)} of {total} experiment{'s' * (total != 1)}; {missing} without a curve"
    finish(figure, results, f"{safe_text(metric, 60)} over steps", note)
    return save(figure, path)
