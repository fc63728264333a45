"""What the phases of training and of validation work on, and what a step returns.

Shapes: the loss is one number; a batch is whatever the loader's collate function makes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer

from mtf_trainer._data.source import Batch, Source
from mtf_trainer._loop.loop_state import LoopState, Window
from mtf_trainer._loop.means import Means
from mtf_trainer._loop.optimizer_step import OptimizerStep
from mtf_trainer._loop.run import Run
from mtf_trainer._loop.schedulers import SchedulerSpec, unwrapped
from mtf_trainer.config import GenericTrainerConfig
from mtf_trainer.ema import WeightAverage
from mtf_trainer.errors import DataError

__all__ = ["LoopBase", "StepResult", "loss_of"]

StepResult = Tensor | Mapping[str, Any]


class LoopBase:
    """The parts of a loop, and where it stands. A subclass says what a step is.

    Args:
        config: The settings.
        fabric: Launched.
        model: Set up by *fabric*.
        optimizers: Set up by *fabric*.
        schedulers: With when they step.
        ema: The average of the weights, if there is one.
    """

    def __init__(
        self,
        config: GenericTrainerConfig,
        fabric: Fabric,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        schedulers: Sequence[SchedulerSpec],
        ema: WeightAverage | None,
    ) -> None:
        self.config = config
        self.fabric = fabric
        self.model = model
        self.optimizers = list(optimizers)
        self.schedulers = list(schedulers)
        self.ema = ema
        self.loss: Tensor | None = None
        self._at = self._new_state()
        # Loaders of which a batch is to come before label smoothing counts as unused.
        self._unsmoothed: set[str] = set()
        self._trains = False
        self._parameters = list(model.parameters())
        self._distributed = fabric.world_size > 1
        self._scaler: Any = getattr(fabric.strategy.precision, "scaler", None)
        self._step = OptimizerStep(
            fabric,
            model,
            self.optimizers,
            max_norm=config.max_grad_norm,
            scaler=self._scaler,
        )
        self._batch: Batch | None = None
        self._weight = 1.0
        self._train_batches: Iterator[Batch] | None = None
        self._val_batches: Iterator[Batch] | None = None
        of = {id(unwrapped(o)): index for index, o in enumerate(self.optimizers)}
        # With the index of its optimizer, where that is one of the trainer's.
        self._per_step = [
            (of.get(id(unwrapped(getattr(s.scheduler, "optimizer", None)))), s.scheduler)
            for s in self.schedulers
            if s.interval == "step"
        ]
        self._per_epoch = [s.scheduler for s in self.schedulers if s.interval == "epoch"]

    def _new_state(self) -> LoopState:
        window = Window(self.config.gradient_accumulation_steps)
        if self.fabric.world_size > 1:
            window.over_all = self._over_all
        return LoopState(window=window, train_means=Means(self.fabric))

    def _over_all(self, number: int, operation: str) -> int:
        value = torch.tensor(number, device=self.fabric.device)
        return int(cast(Tensor, self.fabric.all_reduce(value, reduce_op=operation)))

    def training_step(self, batch: Any, batch_idx: int) -> StepResult:
        """Return the mean loss over *batch*, or a mapping with it as ``loss``."""
        raise NotImplementedError

    def validation_step(self, batch: Any, batch_idx: int) -> StepResult:
        """Return the mean loss over *batch* likewise."""
        raise NotImplementedError

    @contextmanager
    def _in_step(self, *, trains: bool) -> Iterator[None]:
        """Say meanwhile whether the step is one of training."""
        before, self._trains = self._trains, trains
        try:
            yield
        finally:
            self._trains = before

    def _next(
        self, run: Run, source: Source, batches: Iterator[Batch], title: str
    ) -> Batch:
        """Return the next batch, of which every process must have one.

        Raises:
            DataError: If there is none, or the processes' streams end apart.
        """
        batch = next(batches, None)
        if batch is None:
            message = f"the {title} loader has no batches, or fewer than it said"
            raise DataError(message)
        if self._distributed and source.num_batches is None:
            # Each process knows the end of its own stream alone, and a step needs all.
            ends, goes_on = run.agreement.max_of(batch.is_last, not batch.is_last)
            if ends and goes_on:
                message = (
                    f"the {title} streams of the processes end after different numbers "
                    "of batches: let them give the same number"
                )
                raise DataError(message)
        return batch


def loss_of(result: object) -> tuple[Tensor, Mapping[str, Any] | None]:
    """Return the loss in what a step returned, and the mapping it came in, if any."""
    others = None
    loss = result
    if isinstance(result, Mapping):
        others = result
        loss = result.get("loss")
    if not isinstance(loss, Tensor):
        message = (
            f"a step must return a tensor or a mapping with a tensor as 'loss', not "
            f"{result!r}"
        )
        raise TypeError(message)
    if loss.dim():
        message = f"the loss must be one number, not of shape {tuple(loss.shape)}"
        raise ValueError(message)
    return loss, others
