"""Two pictures of a training: how it went, and which digits it takes for which.

The colours can be told apart with any kind of colour vision. Needs no display.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

__all__ = ["plot_confusion_matrix", "plot_loss_curve"]

DARK = 0.5  # a share above which text on its cell is white
BLUE, VERMILION = "#0072B2", "#D55E00"


def plot_loss_curve(metrics: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the loss and the validation accuracy over the epochs.

    Args:
        metrics: The lines of ``metrics.jsonl``, with an ``accuracy`` from 0 to 1.
        path: The PNG to write.
    """
    train = [row for row in metrics if row["split"] == "train"]
    val = [row for row in metrics if row["split"] == "val"]
    steps_per_epoch = val[-1]["step"] / val[-1]["epoch"]

    def epochs(rows: list[Mapping[str, Any]]) -> list[float]:
        return [row["step"] / steps_per_epoch for row in rows]

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    loss, accuracy = figure.subplots(1, 2)
    val_style: dict[str, Any] = {"color": VERMILION, "marker": "o", "markersize": 3.5}
    loss.plot(epochs(train), [row["loss"] for row in train], color=BLUE, label="training")
    loss.plot(epochs(val), [row["loss"] for row in val], **val_style, label="validation")
    loss.set(title="Loss", ylabel="cross-entropy", yscale="log")
    loss.yaxis.set_major_formatter("{x:g}")
    loss.legend(frameon=False)
    percent = [100 * row["accuracy"] for row in val]
    accuracy.plot(epochs(val), percent, **val_style)
    accuracy.set(
        title=f"Validation accuracy: {percent[-1]:.1f} % at the end",
        ylabel="correct answers (%)",
    )
    accuracy.yaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (loss, accuracy):
        axes.set(xlabel="epoch", xlim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.savefig(path, dpi=120)


def plot_confusion_matrix(counts: npt.NDArray[np.int64], path: Path) -> None:
    """Draw how often each digit was taken for each other.

    Args:
        counts: Shape ``(10, 10)``: a row for each digit shown, a column for each answer.
        path: The PNG to write.
    """
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (shown, answered), count in np.ndenumerate(counts):
        if count:
            axes.text(
                answered,
                shown,
                str(count),
                color="white" if share[shown, answered] > DARK else VERMILION,
                weight="bold" if shown != answered else "normal",
                ha="center",
                va="center",
            )
    axes.set(
        title=f"{counts.trace():,} of {counts.sum():,} validation images answered correctly",
        xlabel="digit answered",
        ylabel="digit shown",
        xticks=range(len(counts)),
        yticks=range(len(counts)),
    )
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    figure.colorbar(image, label="share of the images of a digit", shrink=0.85)
    figure.savefig(path, dpi=120)
