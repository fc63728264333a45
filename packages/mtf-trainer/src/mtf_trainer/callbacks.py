"""What a callback of the trainer is, and the ones that come with it.

Loads neither torch nor lightning.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, Literal, Protocol

from mtf_trainer.phases import Phase

__all__ = ["HOOKS", "Callback", "EarlyStopping"]


class Callback(Protocol):
    """Anything with some of the methods below; it need not inherit from this.

    At the edge of each phase, ``on_<phase in lower case>(trainer)``, as
    ``on_train_batch_backward``, is called as the first work inside that phase. What the
    phases before did is done, of its own nothing is; a run that is stopped at that edge
    and goes on calls it once. Besides these:

    ================================== =================================================
    hook                               called
    ================================== =================================================
    on_fit_start(trainer)              when the state to go on from is loaded
    on_log(trainer, row)               with each line of ``metrics.jsonl``
    on_epoch_metrics(trainer, metrics) inside EPOCH_END, with the means that
                                       `FitResult.metrics` has
    on_checkpoint(trainer, path)       when a checkpoint is whole
    on_exception(trainer, error)       when ``fit`` fails; what it raises is added to
                                       the notes of that error
    on_fit_end(trainer, result)        when ``fit`` is about to return
    ================================== =================================================

    Every process calls its own callbacks, in the order they were given. A callback that
    remembers something has ``state_dict()``, which returns dictionaries with string keys,
    lists, numbers, strings, bytes, None and tensors, and ``load_state_dict(state)``: its
    state is part of each checkpoint. A method that begins with ``on_`` and is no hook is
    refused when the trainer is made.

    There are two ways to end the training behind an epoch. ``trainer.request_end()`` is
    for good: it is part of each checkpoint. An attribute ``wants_end`` that is true,
    alike in all processes, counts for as long as it is: it is looked at between two
    epochs, also when ``fit`` begins, after ``load_state_dict``.
    """


def _hooks() -> dict[str, tuple[str, ...]]:
    at_edges = {f"on_{phase.lower()}": ("trainer",) for phase in Phase}
    return {
        **at_edges,
        "on_fit_start": ("trainer",),
        "on_log": ("trainer", "row"),
        "on_epoch_metrics": ("trainer", "metrics"),
        "on_checkpoint": ("trainer", "path"),
        "on_exception": ("trainer", "error"),
        "on_fit_end": ("trainer", "result"),
    }


HOOKS: Mapping[str, tuple[str, ...]] = MappingProxyType(_hooks())
"""The parameters of each hook, by its name."""


class EarlyStopping:
    """Ends the training when a metric has not improved for some epochs.

    A run that it has ended goes on when ``fit`` is called with a greater *patience*. The
    epochs without improvement are those of the whole run.

    Args:
        monitor: A name among the metrics of validation (of training without one).
        patience: So many epochs in a row without improvement are the last.
        mode: Whether a smaller or a larger value is better.
        min_delta: An improvement is better than the best by more than this.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        monitor: str,
        patience: int = 3,
        mode: Literal["min", "max"] = "min",
        min_delta: float = 0.0,
    ) -> None:
        if patience < 1:
            message = f"patience must be at least 1, not {patience}"
            raise ValueError(message)
        if mode not in ("min", "max"):
            message = f"mode must be 'min' or 'max', not {mode!r}"
            raise ValueError(message)
        if not (min_delta >= 0 and math.isfinite(min_delta)):
            message = f"min_delta must be at least 0 and finite, not {min_delta}"
            raise ValueError(message)
        self.monitor = monitor
        self.patience = patience
        self.mode = mode
        self.min_delta = min_delta
        self.best: float | None = None
        """The best value so far."""
        self.epochs_without = 0
        """Epochs in a row that did not improve it."""

    @property
    def wants_end(self) -> bool:
        """Whether the patience is used up."""
        return self.epochs_without >= self.patience

    def on_epoch_metrics(
        self,
        trainer: object,  # noqa: ARG002 - the form of the hook
        metrics: Mapping[str, float],
    ) -> None:
        """Judge an epoch; one whose value is not a number did not improve.

        Raises:
            KeyError: If there is no such metric.
        """
        if self.monitor not in metrics:
            near = get_close_matches(self.monitor, metrics, n=1)
            known = ", ".join(metrics) or "none"
            hint = f"; did you mean {near[0]}?" if near else ""
            message = f"no metric {self.monitor!r}; there are: {known}{hint}"
            raise KeyError(message)
        value = metrics[self.monitor]
        if self._improves(value):
            self.best = value
            self.epochs_without = 0
        else:
            self.epochs_without += 1

    def state_dict(self) -> dict[str, Any]:
        """Return what it remembers."""
        return {"best": self.best, "epochs_without": self.epochs_without}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.best, self.epochs_without = state["best"], state["epochs_without"]

    def _improves(self, value: float) -> bool:
        if self.best is None:
            return not math.isnan(value)
        gain = self.best - value if self.mode == "min" else value - self.best
        return gain > self.min_delta
