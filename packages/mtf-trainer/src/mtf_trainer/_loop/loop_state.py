"""Where the loop stands between two phases: all of it, and nothing else.

`PhaseLoop` works on a `LoopState`; what is saved of a run is this, the states of the live
objects, and the random streams.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor

from mtf_trainer._data.source import Batch, Cursor
from mtf_trainer._loop.means import Means
from mtf_trainer.phases import Phase
from mtf_trainer.state import (
    LocalState,
    ResumeState,
    RNGState,
    TrainMicroState,
    ValMicroState,
)

__all__ = ["LoopState", "Window", "local_for"]


def _alone(number: int, _: str) -> int:
    return number


@dataclass(slots=True)
class Window:
    """Batches whose gradients make one optimizer step.

    Losses are means over a batch, so each is weighted by its samples. Where the samples
    of the window are known, in all processes, so are the weights. Where they are not, as
    in a stream, the unit is what a full window of batches like the first would hold, and
    a window that differs is corrected before its step, alike in all processes.

    Args:
        full: Batches in a window that nothing cuts short.
        over_all: The ``"sum"`` or the ``"max"`` of a number over all processes.
        samples: Of the batches so far in this process, where a correction may be needed.
        unit: What a full window would hold in all processes; 0 where none is needed.
    """

    full: int
    over_all: Callable[[int, str], int] = _alone
    samples: int = 0
    unit: int = 0

    def weight(self, batch: Batch, num_processes: int) -> float:
        """Count *batch*, and return the factor for its loss."""
        # DDP divides the sum over the processes by their number.
        share = batch.num_samples * num_processes
        if batch.window_samples is not None:
            return share / batch.window_samples * batch.loss_weight
        # Several processes agree on it once; asking costs more than it is worth.
        if self.unit == 0 or (num_processes == 1 and self.samples == 0):
            self.unit = self.over_all(max(1, share) * self.full, "max")
        self.samples += batch.num_samples
        return share / self.unit * batch.loss_weight

    def close(self) -> float:
        """Return the factor for the gathered gradients, and start anew."""
        if self.unit == 0:
            return 1.0
        total = self.over_all(self.samples, "sum")
        self.samples = 0
        return self.unit / total if total else 1.0


@dataclass(slots=True, kw_only=True)
class LoopState:
    """Where a loop stands.

    Args:
        phase: The phase about to begin, or the one it is in.
        epoch: Epochs finished.
        global_step: Optimizer steps taken.
        train: What of this epoch's training is done.
        val: What of this epoch's validation is done; None outside one.
        train_cursor: Place behind the last training batch used.
        val_cursor: Place behind the last validation batch used.
        window: The open window.
        train_means: Since the last line of metrics.
        val_means: Of this validation, by loader.
        grad_norm: Of the last optimizer step.
        metrics: Of the last epoch.
        best: The best of the monitored metric.
        ended: Whether a callback ended the training.
    """

    window: Window
    train_means: Means
    phase: Phase = Phase.INIT
    epoch: int = 0
    global_step: int = 0
    train: TrainMicroState = field(default_factory=TrainMicroState)
    val: ValMicroState | None = None
    train_cursor: Cursor | None = None
    val_cursor: Cursor | None = None
    val_means: dict[str, Means] = field(default_factory=dict)
    grad_norm: Tensor | float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    best: float | None = None
    ended: bool = False

    @property
    def in_window(self) -> bool:
        """Whether gradients are half gathered."""
        return self.train.window_batches > 0

    def shared(self) -> dict[str, Any]:
        """Return what is the same in all processes, as plain data."""
        # More epochs may be asked for later, and those begin here.
        complete = self.phase is Phase.TRAINING_COMPLETE
        resume = ResumeState(
            phase=Phase.TRAIN_START_EPOCH if complete else self.phase,
            epoch=self.epoch,
            global_step=self.global_step,
            train=self.train,
            val=self.val,
            rng=(),
            timestamp=ResumeState.now(),
        )
        return {
            "resume": resume.to_plain(),
            "metrics": dict(self.metrics),
            "best": self.best,
            "ended": self.ended,
        }

    def local(self) -> LocalState:
        """Return what this process has for itself, random streams included."""
        norm = self.grad_norm
        return LocalState(
            rng=RNGState.capture(),
            train_cursor=self.train_cursor,
            val_cursor=self.val_cursor,
            window_samples=self.window.samples,
            window_unit=self.window.unit,
            grad_norm=None if norm is None else float(norm),
            train_means=self.train_means.state_dict(),
            val_means={name: m.state_dict() for name, m in self.val_means.items()},
        )

    def load(
        self,
        resume: ResumeState,
        content: Mapping[str, Any],
        local: LocalState,
        fabric: Fabric,
    ) -> None:
        """Take over a state that was saved; the random streams are left to the caller."""
        self.phase = resume.phase
        self.epoch, self.global_step = resume.epoch, resume.global_step
        self.train, self.val = resume.train, resume.val
        self.metrics = dict(content["metrics"])
        self.best, self.ended = content["best"], content["ended"]
        self.train_cursor, self.val_cursor = local.train_cursor, local.val_cursor
        self.window.samples = local.window_samples
        self.window.unit = local.window_unit
        self.grad_norm = local.grad_norm
        self.train_means.load_state_dict(local.train_means)
        self.val_means = {name: Means(fabric) for name in local.val_means}
        for name, state in local.val_means.items():
            self.val_means[name].load_state_dict(state)


def local_for(
    locals_: Sequence[LocalState], rank: int, num_processes: int, seed: int
) -> LocalState:
    """Return the state of process *rank* of *num_processes*, which may not be as many.

    With as many as there were, each takes its own. With another number, the sums of all
    go to the first, and each takes the mean of the gradients, which is what DDP would
    have made of them; processes that are new draw from streams of their own. The cursors
    are the first process's: the source makes its own of it.
    """
    if num_processes == len(locals_):
        return locals_[rank]
    first = locals_[0]
    rng = locals_[rank].rng if rank < len(locals_) else RNGState.seeded(seed + rank)
    mine = LocalState(
        rng=rng,
        train_cursor=first.train_cursor,
        val_cursor=first.val_cursor,
        window_unit=first.window_unit,
        window_samples=sum(each.window_samples for each in locals_) if rank == 0 else 0,
        grad_norm=first.grad_norm,
        grads=_mean_gradients([each.grads for each in locals_]),
        val_means={name: {} for name in first.val_means},
    )
    if rank == 0:
        mine.train_means = _sum([each.train_means for each in locals_])
        for name in first.val_means:
            mine.val_means[name] = _sum([each.val_means[name] for each in locals_])
    return mine


def _mean_gradients(
    grads: Sequence[Mapping[str, Tensor] | None],
) -> dict[str, Tensor] | None:
    if any(each is None for each in grads):
        return None
    present = [each for each in grads if each is not None]
    return {
        name: torch.stack([each[name] for each in present]).mean(0) for name in present[0]
    }


def _sum(means: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    total = dict(means[0])
    for each in means[1:]:
        if not each or not total:
            total = total or dict(each)
            continue
        total["num_samples"] += each["num_samples"]
        total["sums"] = total["sums"] + each["sums"]
        counts = {n: c + each["counts"][n] for n, c in total["counts"].items()}
        total["counts"] = counts
    return total
