"""One epoch of training, one of validation, through their phases.

`EpochLoop` is the part of a trainer that runs batches. It writes metrics and reports
progress through the `Run` it is handed; it knows nothing of checkpoints or of resuming.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import count
from typing import Any, cast

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mtf_trainer import _data
from mtf_trainer._means import Means
from mtf_trainer._run import Run, Window
from mtf_trainer.config import GenericTrainerConfig
from mtf_trainer.errors import LoaderLengthError
from mtf_trainer.phases import Phase, check_transition

__all__ = ["EpochLoop", "StepResult"]

StepResult = Tensor | Mapping[str, Any]

_END = object()
_NO_CONTEXT = nullcontext()


class EpochLoop:
    """Runs batches. A subclass says what a step is.

    Args:
        config: The settings.
        fabric: Launched.
        model: Set up by *fabric*.
        optimizer: Set up by *fabric*.
        scheduler: Steps as ``config.scheduler_interval`` says.
    """

    def __init__(
        self,
        config: GenericTrainerConfig,
        fabric: Fabric,
        model: nn.Module,
        optimizer: Optimizer,
        scheduler: LRScheduler | None,
    ) -> None:
        self.config = config
        self.fabric = fabric
        self.model = model
        self.optimizer = optimizer
        self.scheduler = scheduler
        self._phase = Phase.INIT
        self._epoch = 0
        self._global_step = 0
        self._grad_norm: Tensor | None = None
        self._trained = False
        self._distributed = fabric.world_size > 1

    def training_step(self, batch: Any, batch_idx: int) -> StepResult:
        """Return the mean loss over *batch*, or a mapping with it as ``loss``."""
        raise NotImplementedError

    def validation_step(self, batch: Any, batch_idx: int) -> StepResult:
        """Return the mean loss over *batch* likewise."""
        raise NotImplementedError

    def num_samples(self, batch: Any) -> int:
        """Return how many samples *batch* holds; means and gradients are weighted by it.

        By default the length of the first dimension of the first tensor in it. Override
        this for batches of another form.
        """
        return _data.count_samples(batch)

    def _safe_point(self, following: Phase) -> None:
        """Enter *following*: all work of the phase before is done, none of its own begun.

        The one place between any two phases, where a run can be looked at or stopped.
        """
        check_transition(self._phase, following)
        self._phase = following

    def _train_epoch(self, run: Run, train: Any, label: str) -> bool:
        """Train on all of *train*; tell whether it was stopped on the way."""
        enter, window = self._safe_point, run.window
        enter(Phase.TRAIN_START_EPOCH)
        self._trained = True
        self.model.train()
        self.optimizer.zero_grad()
        _data.set_epoch(train, self._epoch)
        run.begin(label, _data.num_batches(train))
        batches = iter(train)
        for batch_idx in count():
            enter(Phase.TRAIN_BATCH_LOAD)
            batch = next(batches, _END)
            if batch is _END:
                break
            is_last = batch_idx + 1 == run.num_batches
            if self._train_batch(run, batch, batch_idx, is_last=is_last):
                enter(Phase.TRAIN_BATCH_END)
                self._log_if_due(run)
                if not is_last and run.stop():
                    return True
            else:
                enter(Phase.TRAIN_BATCH_END)
        if batch_idx == 0:
            message = "the training loader has no batches"
            raise ValueError(message)
        if window.batches:
            self._close_short_window(run, batch_idx)
        return False

    def _train_batch(
        self, run: Run, batch: Any, batch_idx: int, *, is_last: bool
    ) -> bool:
        """Train on one batch; tell whether it made an optimizer step."""
        window = run.window
        num_samples = self.num_samples(batch)
        weight = window.weight(num_samples)
        closes = is_last or window.batches == window.full
        # Where the end of an epoch is not known, any batch may be the last of its window.
        skip_sync = self._distributed and not closes and run.num_batches is not None
        with self._no_sync() if skip_sync else _NO_CONTEXT:
            self._safe_point(Phase.TRAIN_BATCH_FORWARD)
            loss, others = _loss_of(self.training_step(batch, batch_idx))
            self._safe_point(Phase.TRAIN_BATCH_BACKWARD)
            self.fabric.backward(loss if weight == 1.0 else loss * weight)
        run.means.add(loss, others, num_samples)
        if run.progress is not None:
            run.progress.advance(num_samples)
        if closes:
            self._optimizer_step(window)
        return closes

    def _optimizer_step(self, window: Window) -> None:
        self._safe_point(Phase.TRAIN_BATCH_OPTIM_STEP)
        factor = window.close()
        if factor != 1.0:
            _scale_gradients(self.optimizer, factor)
        if self.config.max_grad_norm is not None:
            # What is not finite is reported; looking for it here would wait for the device.
            self._grad_norm = self.fabric.clip_gradients(
                self.model,
                self.optimizer,
                max_norm=self.config.max_grad_norm,
                error_if_nonfinite=False,
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._global_step += 1
        if self.scheduler is not None and self.config.scheduler_interval == "step":
            self._safe_point(Phase.SCHEDULER_BATCH_STEP)
            self.scheduler.step()

    def _no_sync(self) -> AbstractContextManager[None]:
        return self.fabric.no_backward_sync(cast(Any, self.model))

    def _close_short_window(self, run: Run, num_batches: int) -> None:
        """Make the step of a window that the end of the loader cut short."""
        if self._distributed and run.num_batches is not None:
            message = (
                f"the training loader says it has {run.num_batches} batches and gave "
                f"{num_batches}: give its dataset the right length, or none"
            )
            raise LoaderLengthError(message)
        self._optimizer_step(run.window)
        self._safe_point(Phase.TRAIN_BATCH_END)
        self._log_if_due(run)

    def _log_if_due(self, run: Run) -> None:
        if self._global_step % self.config.log_every_n_steps == 0:
            self._log_training(run)

    def _log_training(self, run: Run) -> None:
        """Write the means over the steps since the last line, if there were any."""
        if run.means.num_samples == 0:
            return
        means, counts = run.means.take()
        run.add_to_epoch(means, counts)
        values = {"samples": counts["loss"], **means}
        values["lr"] = float(self.optimizer.param_groups[0]["lr"])
        if self._grad_norm is not None:
            values["grad_norm"] = float(self._grad_norm)
        self._write(run, "train", values)
        if run.progress is not None:
            run.progress.loss = means["loss"]

    def _end_training(self, run: Run) -> dict[str, float]:
        """Finish the training part of an epoch, and return its means."""
        self._log_training(run)
        if self.scheduler is not None and self.config.scheduler_interval == "epoch":
            self._safe_point(Phase.SCHEDULER_EPOCH_STEP)
            self.scheduler.step()
        means = run.epoch_means()
        run.end(means)
        return means

    def _validate_epoch(self, run: Run, val: Any, label: str) -> dict[str, float] | None:
        """Return the means over *val*; None if it was stopped on the way."""
        self._safe_point(Phase.VAL_START_EPOCH)
        _data.set_epoch(val, self._epoch)
        run.begin(f"{label} validation", _data.num_batches(val))
        means = self._evaluate(val, run)
        if means is None:
            return None
        values, counts = means.take()
        self._write(run, "val", {"samples": counts["loss"], **values})
        run.end(values)
        return values

    def _evaluate(self, loader: Any, run: Run | None) -> Means | None:
        """Take the validation steps, through the phases of *run* if there is one."""
        enter = _no_phase if run is None else self._safe_point
        means = Means(self.fabric)
        batches = iter(loader)
        with _evaluating(self.model):
            for batch_idx in count():
                enter(Phase.VAL_BATCH_LOAD)
                batch = next(batches, _END)
                if batch is _END:
                    break
                enter(Phase.VAL_BATCH_FORWARD)
                loss, others = _loss_of(self.validation_step(batch, batch_idx))
                num_samples = self.num_samples(batch)
                means.add(loss, others, num_samples)
                enter(Phase.VAL_BATCH_END)
                if run is not None:
                    if run.progress is not None:
                        run.progress.advance(num_samples)
                    if run.stop():
                        return None
        if batch_idx == 0:
            message = "the validation loader has no batches"
            raise ValueError(message)
        return means

    def _write(self, run: Run, split: str, values: Mapping[str, float]) -> None:
        writer = run.metrics
        if writer is not None:
            epoch, step = self._epoch + 1, self._global_step
            writer.append(step=step, epoch=epoch, split=split, values=values)


def _loss_of(result: object) -> tuple[Tensor, Mapping[str, Any] | None]:
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


def _scale_gradients(optimizer: Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def _no_phase(_: Phase) -> None:
    """Stand in for a safe point outside `fit`."""
