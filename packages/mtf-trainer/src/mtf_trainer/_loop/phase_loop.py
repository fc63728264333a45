"""The phases of a run, one method each: the state machine that `GenericTrainer` is.

`PhaseLoop` does the work of one phase after another. All that it knows between two of
them is in attributes that `mtf_trainer._loop.capture` saves and puts back, so that it can
enter at any phase; a batch that was fetched and not yet used is fetched again. It knows
nothing of files.

Shapes: the loss is one number; a batch is whatever the loader's collate function makes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from mtf_trainer._data.source import Batch, Source
from mtf_trainer._loop.loop_state import LoopState, Window
from mtf_trainer._loop.means import Means, combine
from mtf_trainer._loop.run import Run
from mtf_trainer._ranks.sharding import is_sharded
from mtf_trainer.config import GenericTrainerConfig
from mtf_trainer.ema import WeightAverage
from mtf_trainer.errors import DataError
from mtf_trainer.phases import TRANSITIONS, Phase, check_transition
from mtf_trainer.result import StopReason
from mtf_trainer.state import TrainMicroState, ValMicroState

__all__ = ["PhaseLoop", "SchedulerSpec", "StepResult", "Stopped"]

_Interval = Literal["step", "epoch", "metric"]
StepResult = Tensor | Mapping[str, Any]

_NO_CONTEXT = nullcontext()


class Stopped(Exception):  # noqa: N818 - not an error: the way out of the loop
    """The loop stands at a safe point and is to be left there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SchedulerSpec:
    """A scheduler, and when it steps.

    Args:
        scheduler: One of torch's, or with their methods.
        interval: After each optimizer ``"step"``, after each ``"epoch"`` of training, or
            at the end of each epoch with a ``"metric"``.
        monitor: The metric's name, of validation (of training without one).

    Raises:
        ValueError: If *interval* is none of these, or is not for such a scheduler.
    """

    scheduler: LRScheduler
    interval: _Interval
    monitor: str = "loss"

    def __post_init__(self) -> None:
        if self.interval not in get_args(_Interval):
            choices = ", ".join(map(repr, get_args(_Interval)))
            message = f"interval must be one of {choices}, not {self.interval!r}"
            raise ValueError(message)
        takes_metric = isinstance(self.scheduler, ReduceLROnPlateau)
        if takes_metric != (self.interval == "metric"):
            name = type(self.scheduler).__name__
            wanted = "is" if takes_metric else "is not"
            message = (
                f"interval={self.interval!r}: {name} {wanted} one that takes a metric"
            )
            raise ValueError(message)


class PhaseLoop:
    """Runs batches. A subclass says what a step is.

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
        self._smoothed = False
        self._distributed = fabric.world_size > 1
        self._scaler: Any = getattr(fabric.strategy.precision, "scaler", None)
        self._batch: Batch | None = None
        self._weight = 1.0
        self._train_batches: Iterator[Batch] | None = None
        self._val_batches: Iterator[Batch] | None = None
        of = {id(_unwrapped(o)): index for index, o in enumerate(self.optimizers)}
        # With the index of its optimizer, where that is one of the trainer's.
        self._per_step = [
            (of.get(id(_unwrapped(getattr(s.scheduler, "optimizer", None)))), s.scheduler)
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

    def _work(self) -> dict[Phase, Callable[[Run], Phase | None]]:
        """Return what does the work of each phase, and says which is next."""
        return {
            Phase.INIT: self._init,
            Phase.TRAIN_START_EPOCH: self._train_start_epoch,
            Phase.TRAIN_BATCH_LOAD: self._train_batch_load,
            Phase.TRAIN_BATCH_FORWARD: self._train_batch_forward,
            Phase.TRAIN_BATCH_BACKWARD: self._train_batch_backward,
            Phase.TRAIN_BATCH_OPTIM_STEP: self._train_batch_optim_step,
            Phase.SCHEDULER_BATCH_STEP: self._scheduler_batch_step,
            Phase.TRAIN_BATCH_END: self._train_batch_end,
            Phase.SCHEDULER_EPOCH_STEP: self._scheduler_epoch_step,
            Phase.VAL_START_EPOCH: self._val_start_epoch,
            Phase.VAL_BATCH_LOAD: self._val_batch_load,
            Phase.VAL_BATCH_FORWARD: self._val_batch_forward,
            Phase.VAL_BATCH_END: self._val_batch_end,
            Phase.EPOCH_END: self._epoch_end,
            Phase.TRAINING_COMPLETE: self._training_complete,
        }

    def _drive(self, run: Run) -> None:
        """Do phase after phase, from the one that is about to begin, to the last."""
        phase, work, hooks = self._at.phase, self._work(), run.hooks.by_phase
        while True:
            self._at.phase = phase
            if run.attention or run.signals.wanted:
                self._attend(run, phase)
            for hook in hooks[phase]:
                hook(self)
            following = work[phase](run)
            if following is None:
                return
            if following not in TRANSITIONS[phase]:
                check_transition(phase, following)
            phase = following

    def _attend(self, run: Run, phase: Phase) -> None:
        """Do what was asked for at this safe point, between *phase* and the one before.

        Raises:
            Stopped: If the run is to stop here.
        """
        raise NotImplementedError

    def _init(self, run: Run) -> Phase:
        done = self._is_done(run)
        return Phase.TRAINING_COMPLETE if done else Phase.TRAIN_START_EPOCH

    def _is_done(self, run: Run) -> bool:
        """Tell, between two epochs, whether another is to come."""
        enough = self._at.epoch >= run.max_epochs or self._at.ended
        return enough or self._has_enough_steps(run)

    def _has_enough_steps(self, run: Run) -> bool:
        return run.max_steps is not None and self._at.global_step >= run.max_steps

    def _ends_step(self) -> bool:
        """Tell whether what follows belongs to a step, or an epoch, already taken."""
        at = self._at
        ends_epoch = at.train.is_last and at.phase is not Phase.TRAIN_BATCH_OPTIM_STEP
        return at.phase is Phase.INIT or at.train.stepped or ends_epoch

    def _train_start_epoch(self, run: Run) -> Phase:
        self.model.train()
        self._zero_grad()
        self._at.train = TrainMicroState()
        self._at.train_cursor = None
        self._train_batches = None
        self._show_training(run)
        return Phase.TRAIN_BATCH_LOAD

    def _show_training(self, run: Run) -> None:
        label = f"epoch {self._at.epoch + 1}/{run.max_epochs}"
        run.begin(label, run.train.num_batches, self._at.train.batch_idx)

    def _train_batch_load(self, run: Run) -> Phase:
        if self._train_batches is None:
            self._train_batches = run.train.batches(self._at.epoch, self._at.train_cursor)
        self._batch = self._next(run, run.train, self._train_batches, "training")
        return Phase.TRAIN_BATCH_FORWARD

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

    def _train_batch_forward(self, run: Run) -> Phase:
        if self._batch is None:
            self._train_batch_load(run)
        batch = cast(Batch, self._batch)
        self._weight = self._at.window.weight(batch, self.fabric.world_size)
        with self._gradients(batch):
            result = self.training_step(batch.data, self._at.train.batch_idx)
        loss, others = _loss_of(result)
        self._at.train_means.add(loss, others, batch.num_samples)
        self.loss = loss
        return Phase.TRAIN_BATCH_BACKWARD

    def _train_batch_backward(self, run: Run) -> Phase:
        batch, loss, weight = (
            cast(Batch, self._batch),
            cast(Tensor, self.loss),
            self._weight,
        )
        with self._gradients(batch):
            self.fabric.backward(loss if weight == 1.0 else loss * weight)
        self.loss = loss.detach()
        micro = self._at.train
        micro.batch_idx += 1
        micro.window_batches += 1
        micro.closes_window, micro.is_last = batch.closes_window, batch.is_last
        if run.optimizers_of is not None:
            index = run.optimizers_of[batch.loader]
            micro.optimizers = sorted({*micro.optimizers, index})
        self._at.train_cursor = batch.cursor
        self._batch = None
        if run.progress is not None:
            run.progress.advance(batch.num_samples)
        closes = batch.closes_window
        return Phase.TRAIN_BATCH_OPTIM_STEP if closes else Phase.TRAIN_BATCH_END

    def _gradients(self, batch: Batch) -> AbstractContextManager[None]:
        """Keep the gradients of *batch* in this process until its window closes.

        Those of a sharded model could not be saved then: they are exchanged at once.
        """
        if batch.closes_window or not self._distributed or is_sharded(self.fabric):
            return _NO_CONTEXT
        return self.fabric.no_backward_sync(cast(Any, self.model))

    def _train_batch_optim_step(self, run: Run) -> Phase:
        factor = self._at.window.close()
        norms: list[Tensor] = []
        chosen = self._at.train.optimizers or range(len(self.optimizers))
        for index in chosen:
            self._take_step(run, self.optimizers[index], factor, norms)
        if self._scales_several:
            self._scaler.update()
        if norms:
            self._at.grad_norm = (
                norms[0] if len(norms) == 1 else torch.stack(norms).norm()
            )
        self._zero_grad()
        if self.ema is not None:
            self.ema.update()
        self._at.global_step += 1
        self._at.train.window_batches = 0
        self._at.train.stepped = True
        return Phase.SCHEDULER_BATCH_STEP if self._per_step else Phase.TRAIN_BATCH_END

    def _take_step(
        self, run: Run, optimizer: Optimizer, factor: float, norms: list[Tensor]
    ) -> None:
        if factor != 1.0:
            _scale_gradients(optimizer, factor)
        max_norm = self.config.max_grad_norm
        if max_norm is not None:
            # What is not finite is looked for where the device is waited for anyway.
            norm = self.fabric.clip_gradients(
                self.model, optimizer, max_norm=max_norm, error_if_nonfinite=False
            )
            norms.append(cast(Tensor, norm))
        if run.guard.wants_each_step and not run.scales:
            found = _norm_of(optimizer) if max_norm is None else norms[-1]
            if not torch.isfinite(found):
                self._at.train.skipped += 1
                return
        if self._scales_several:
            # Fabric's own call would change the scale before the next optimizer's turn.
            self._scaler.step(cast(Any, optimizer).optimizer)
        else:
            optimizer.step()

    @property
    def _scales_several(self) -> bool:
        return self._scaler is not None and len(self.optimizers) > 1

    def _zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def _scheduler_batch_step(self, run: Run) -> Phase:  # noqa: ARG002 - one form for all
        chosen = self._at.train.optimizers
        for index, scheduler in self._per_step:
            if not chosen or index is None or index in chosen:
                scheduler.step()
        return Phase.TRAIN_BATCH_END

    def _train_batch_end(self, run: Run) -> Phase:
        micro = self._at.train
        if micro.stepped:
            micro.stepped = False
            micro.optimizers = []
            step = self._at.global_step
            if step % self.config.log_every_n_steps == 0 or micro.is_last:
                self._log_training(run)
            run.after_step(step)
            if self._has_enough_steps(run) and not micro.is_last:
                run.stop(StopReason.MAX_STEPS)
        run.after_batch()
        if not micro.is_last:
            return Phase.TRAIN_BATCH_LOAD
        self._train_batches = None
        run.end(self._epoch_means())
        if self._per_epoch:
            return Phase.SCHEDULER_EPOCH_STEP
        return self._after_training(run)

    def _log_training(self, run: Run) -> None:
        """Write the means over the steps since the last line.

        Raises:
            ValueError: If label smoothing is set, and the step does not use it.
        """
        if self.config.label_smoothing and not self._smoothed:
            message = (
                "label_smoothing is set, and training_step did not call "
                "trainer.cross_entropy: call it, or leave label_smoothing out"
            )
            raise ValueError(message)
        means, counts = self._at.train_means.take()
        sums = self._at.train.epoch_sums
        for name, mean in means.items():
            total, num_samples = sums.get(name, [0.0, 0])
            sums[name] = [total + mean * counts[name], num_samples + counts[name]]
        values = {"samples": counts["loss"], **means}
        values["lr"] = float(self.optimizers[0].param_groups[0]["lr"])
        if self._at.grad_norm is not None:
            values["grad_norm"] = float(self._at.grad_norm)
        if self._at.train.skipped:
            values["skipped_steps"] = self._at.train.skipped
            self._at.train.skipped = 0
        run.log("train", self._at.epoch + 1, self._at.global_step, values)

    def _epoch_means(self) -> dict[str, float]:
        return {
            name: total / max(1, num_samples)
            for name, (total, num_samples) in self._at.train.epoch_sums.items()
        }

    def _scheduler_epoch_step(self, run: Run) -> Phase:
        for scheduler in self._per_epoch:
            scheduler.step()
        return self._after_training(run)

    def _after_training(self, run: Run) -> Phase:
        return Phase.EPOCH_END if run.val is None else Phase.VAL_START_EPOCH

    def _val_start_epoch(self, run: Run) -> Phase:
        self._at.val = ValMicroState()
        self._at.val_cursor = None
        self._val_batches = None
        self._at.val_means = {}
        self.model.eval()
        if self.ema is not None:
            self.ema.swap()
        self._show_validation(run)
        return Phase.VAL_BATCH_LOAD

    def _show_validation(self, run: Run) -> None:
        val, micro = cast(Source, run.val), cast(ValMicroState, self._at.val)
        label = f"epoch {self._at.epoch + 1}/{run.max_epochs} validation"
        run.begin(label, val.num_batches, micro.batch_idx)

    def _val_batch_load(self, run: Run) -> Phase:
        val = cast(Source, run.val)
        if self._val_batches is None:
            self._val_batches = val.batches(self._at.epoch, self._at.val_cursor)
        self._batch = self._next(run, val, self._val_batches, "validation")
        return Phase.VAL_BATCH_FORWARD

    def _val_batch_forward(self, run: Run) -> Phase:
        if self._batch is None:
            self._val_batch_load(run)
        batch, micro = cast(Batch, self._batch), cast(ValMicroState, self._at.val)
        self._evaluate(batch, micro.batch_idx, self._at.val_means)
        micro.batch_idx += 1
        micro.is_last = batch.is_last
        self._at.val_cursor = batch.cursor
        self._batch = None
        if run.progress is not None:
            run.progress.advance(batch.num_samples)
        return Phase.VAL_BATCH_END

    def _evaluate(self, batch: Batch, batch_idx: int, into: dict[str, Means]) -> None:
        """Take a validation step, and count what it returns under the batch's loader."""
        with torch.no_grad():
            loss, others = _loss_of(self.validation_step(batch.data, batch_idx))
        means = into.get(batch.loader)
        if means is None:
            means = into[batch.loader] = Means(self.fabric)
        means.add(loss, others, batch.num_samples)

    def _val_batch_end(self, run: Run) -> Phase:
        run.after_batch()
        micro = cast(ValMicroState, self._at.val)
        return Phase.EPOCH_END if micro.is_last else Phase.VAL_BATCH_LOAD

    def _epoch_end(self, run: Run) -> Phase:
        if run.val is None:
            self._at.metrics = self._epoch_means()
        else:
            if self.ema is not None:
                self.ema.swap()
            self._at.metrics, samples = combine(self._at.val_means, run.average)
            values = {"samples": samples, **self._at.metrics}
            run.log("val", self._at.epoch + 1, self._at.global_step, values)
            run.end(self._at.metrics)
            self._at.val = None
            self._at.val_means = {}
            self._val_batches = None
        self._judge()
        run.hooks.call("on_epoch_metrics", self, dict(self._at.metrics))
        self._at.epoch += 1
        self._at.train = TrainMicroState()
        self._at.train_cursor = None
        done = self._is_done(run)
        run.after_epoch(self._at.epoch, self._at.global_step, is_last=done)
        return Phase.TRAINING_COMPLETE if done else Phase.TRAIN_START_EPOCH

    def _judge(self) -> None:
        """Let schedulers and the best metric see the epoch's metrics."""
        for spec in self.schedulers:
            if spec.interval == "metric":
                value = self._metric(spec.monitor)
                cast(ReduceLROnPlateau, spec.scheduler).step(value)
        settings, best = self.config.checkpoint, self._at.best
        sign = 1 if settings.mode == "min" else -1
        if settings.keep_best_k:
            self._metric(settings.monitor)
        value = self._at.metrics.get(settings.monitor, math.nan)
        if best is None or sign * value < sign * best:
            self._at.best = None if math.isnan(value) else value

    def _metric(self, name: str) -> float:
        if name not in self._at.metrics:
            known = ", ".join(self._at.metrics)
            message = f"no metric is named {name!r}; this epoch's are {known}"
            raise ValueError(message)
        return self._at.metrics[name]

    def _training_complete(self, run: Run) -> None:  # noqa: ARG002 - one form for all
        return None


def _unwrapped(optimizer: Any) -> Any:
    """Return what Fabric wrapped, or *optimizer* itself."""
    return getattr(optimizer, "optimizer", optimizer)


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


def _norm_of(optimizer: Optimizer) -> Tensor:
    gradients = [
        p.grad
        for group in optimizer.param_groups
        for p in group["params"]
        if p.grad is not None
    ]
    return nn.utils.get_total_norm(gradients)
