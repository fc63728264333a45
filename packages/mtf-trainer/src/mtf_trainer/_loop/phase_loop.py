"""The phases of a run, one method each: the state machine that `GenericTrainer` is.

`PhaseLoop` does the work of one phase after another. All that it knows between two of
them is in attributes that `mtf_trainer._loop.capture` saves and puts back, so that it can
enter at any phase; a batch that was fetched and not yet used is fetched again. It knows
nothing of files.

Shapes: the loss is one number; a batch is whatever the loader's collate function makes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from mtf_trainer._data.source import Batch
from mtf_trainer._loop.loop_base import loss_of
from mtf_trainer._loop.means import combine
from mtf_trainer._loop.run import Run
from mtf_trainer._loop.val_phases import ValPhases
from mtf_trainer._ranks.sharding import is_sharded
from mtf_trainer.phases import TRANSITIONS, Phase, check_transition
from mtf_trainer.result import StopReason
from mtf_trainer.state import TrainMicroState

__all__ = ["PhaseLoop", "Stopped"]

_NO_CONTEXT = nullcontext()


class Stopped(Exception):  # noqa: N818 - not an error: the way out of the loop
    """The loop stands at a safe point and is to be left there."""


class PhaseLoop(ValPhases):
    """Runs batches. A subclass says what a step is; see `LoopBase` for its arguments."""

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
        enough = self._at.epoch >= run.max_epochs or self._has_enough_steps(run)
        return enough or self._is_ended(run)

    def _is_ended(self, run: Run) -> bool:
        """Tell, between two epochs, whether a callback ended the training."""
        return self._at.ended or run.hooks.want_end

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

    def _train_batch_forward(self, run: Run) -> Phase:
        if self._batch is None:
            self._train_batch_load(run)
        batch = cast(Batch, self._batch)
        self._weight = self._at.window.weight(batch, self.fabric.world_size)
        with self._gradients(batch), self._in_step(trains=True):
            result = self.training_step(batch.data, self._at.train.batch_idx)
        if self._unsmoothed:
            self._unsmoothed.discard(batch.loader)
            if not self._unsmoothed:
                self._refuse_unsmoothed()
        loss, others = loss_of(result)
        self._at.train_means.add(loss, others, batch.num_samples)
        self.loss = loss
        return Phase.TRAIN_BATCH_BACKWARD

    def _train_batch_backward(self, run: Run) -> Phase:
        batch, loss, weight = (
            cast(Batch, self._batch),
            cast(Tensor, self.loss),
            self._weight,
        )
        # What is checkpointed is computed once more, as it was.
        with self._gradients(batch), self._in_step(trains=True):
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
        chosen = self._at.train.optimizers or range(len(self.optimizers))
        skips = run.guard.wants_each_step and not run.scales
        norm, skipped = self._step.take(chosen, factor, skips=skips)
        self._at.train.skipped += skipped
        if norm is not None:
            self._at.grad_norm = norm
        self._zero_grad()
        if self.ema is not None:
            self.ema.update()
        self._at.global_step += 1
        self._at.train.window_batches = 0
        self._at.train.stepped = True
        return Phase.SCHEDULER_BATCH_STEP if self._per_step else Phase.TRAIN_BATCH_END

    def _zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        # Those in no optimizer would grow with the batches of this process.
        for parameter in self._parameters:
            parameter.grad = None

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
        """Write the means over the steps since the last line."""
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

    def _refuse_unsmoothed(self) -> None:
        message = (
            "label_smoothing is set, and training_step did not call "
            "trainer.cross_entropy: call it, or leave label_smoothing out"
        )
        raise ValueError(message)

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
