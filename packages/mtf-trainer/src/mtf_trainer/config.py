"""The settings of a run, checked when made. Loads neither torch nor lightning."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

__all__ = ["GenericTrainerConfig", "SchedulerInterval"]

SchedulerInterval = Literal["step", "epoch"]

_SEEDS = 2**32


@dataclass(frozen=True, kw_only=True, slots=True)
class GenericTrainerConfig:
    """What a `GenericTrainer` needs to know besides its objects.

    >>> GenericTrainerConfig(run_dir=Path("runs/a"), gradient_accumulation_steps=0)
    Traceback (most recent call last):
    ValueError: gradient_accumulation_steps must be at least 1, not 0

    Args:
        run_dir: The one folder the trainer writes to; made when missing.
        seed: Seeds Python, NumPy (when imported) and torch as a new run begins, process
            *n* with ``seed + n``; 0 to 2**32 - 1. A resumed run takes up the states
            in its checkpoint instead.
        gradient_accumulation_steps: Batches that make one optimizer step. A shorter
            window at the end of an epoch makes a step too; each sample in a window
            weighs the same, if the step function returns the mean over its batch.
        max_grad_norm: Gradients are scaled down to this 2-norm; ``None`` for never
            (no norm is reported then).
        log_every_n_steps: Optimizer steps between two training lines in
            ``metrics.jsonl``; an epoch's last steps are always written.
        scheduler_interval: Whether the scheduler steps after each optimizer step
            (``"step"``) or after each epoch's training (``"epoch"``).
        checkpoint_every_n_epochs: Epochs between checkpoints; the last epoch, and the
            one after which a signal stops the run, always make one.
        keep_last_n_checkpoints: Older ones are deleted once a new one is proven.
        show_progress: Whether the first process reports on stderr.
        handle_signals: Whether INT, TERM and USR1 stop ``fit`` at the next optimizer
            step. Only ever so in the main thread, and only while ``fit`` runs.

    Raises:
        TypeError: If a value is of the wrong type.
        ValueError: If a value is out of its range.
    """

    run_dir: Path
    seed: int = 0
    gradient_accumulation_steps: int = 1
    max_grad_norm: float | None = 1.0
    log_every_n_steps: int = 50
    scheduler_interval: SchedulerInterval = "epoch"
    checkpoint_every_n_epochs: int = 1
    keep_last_n_checkpoints: int = 3
    show_progress: bool = True
    handle_signals: bool = True

    def __post_init__(self) -> None:
        """Check every value."""
        _check_type("run_dir", self.run_dir, Path)
        _check_count("seed", self.seed, least=0)
        if self.seed >= _SEEDS:
            message = f"seed must be below {_SEEDS}, not {self.seed}"
            raise ValueError(message)
        for name in (
            "gradient_accumulation_steps",
            "log_every_n_steps",
            "checkpoint_every_n_epochs",
            "keep_last_n_checkpoints",
        ):
            _check_count(name, getattr(self, name), least=1)
        _check_type("show_progress", self.show_progress, bool)
        _check_type("handle_signals", self.handle_signals, bool)
        if self.scheduler_interval not in get_args(SchedulerInterval):
            choices = " or ".join(map(repr, get_args(SchedulerInterval)))
            message = (
                f"scheduler_interval must be {choices}, not {self.scheduler_interval!r}"
            )
            raise ValueError(message)
        if self.max_grad_norm is not None:
            _check_norm(self.max_grad_norm)


def _check_type(name: str, value: object, kind: type) -> None:
    if not isinstance(value, kind):
        message = f"{name} must be a {kind.__name__}, not {value!r}"
        raise TypeError(message)


def _check_count(name: str, value: object, *, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        message = f"{name} must be a whole number, not {value!r}"
        raise TypeError(message)
    if value < least:
        message = f"{name} must be at least {least}, not {value}"
        raise ValueError(message)


def _check_norm(value: object) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        message = f"max_grad_norm must be a number or None, not {value!r}"
        raise TypeError(message)
    if not (math.isfinite(value) and value > 0):
        message = f"max_grad_norm must be above 0 and finite (None: never), not {value}"
        raise ValueError(message)
