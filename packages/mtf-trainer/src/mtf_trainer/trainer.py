"""The training loop.

`GenericTrainer` drives a model through the phases of `mtf_trainer.phases` with the calls
of Lightning Fabric, writes ``metrics.jsonl`` and checkpoints into one folder, and goes on
from the newest good checkpoint there. It knows nothing of configs, registries or
launchers: it takes plain objects.

What it holds to in this version: a run goes on from the end of the last epoch that has a
checkpoint; what was done after it is done again. Continuing inside an epoch is not in it.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

from lightning.fabric import Fabric
from lightning.fabric.strategies.ddp import DDPStrategy
from lightning.fabric.strategies.single_device import SingleDeviceStrategy
from lightning.fabric.wrappers import is_wrapped
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils.data import DataLoader

from mtf_trainer import _data
from mtf_trainer._distributed import StopAgreement, gather, on_rank_zero
from mtf_trainer._loop import EpochLoop, StepResult
from mtf_trainer._means import Means
from mtf_trainer._run import Run, Window
from mtf_trainer._signals import StopSignals
from mtf_trainer._snapshot import Objects, Snapshot
from mtf_trainer.checkpoint import CheckpointStore
from mtf_trainer.config import GenericTrainerConfig
from mtf_trainer.errors import (
    CheckpointWarning,
    NothingToResumeError,
)
from mtf_trainer.metrics import MetricsWriter
from mtf_trainer.phases import Phase
from mtf_trainer.progress import Progress
from mtf_trainer.result import FitResult, StopReason
from mtf_trainer.state import ResumeState, RNGState

__all__ = ["GenericTrainer", "StepFunction", "StepResult"]

StepFunction = Callable[["GenericTrainer", Any, int], StepResult]


class GenericTrainer(EpochLoop):
    """Trains one model with one optimizer.

    Subclass it and override `training_step` (and `validation_step`), or pass functions
    that take the trainer first. A step returns the mean loss over its batch, or a mapping
    with that as ``loss`` and further scalars, which are averaged and reported.

    Model and optimizer are set up by Fabric here, unless they are already; loaders when
    first seen. With several processes, call ``fabric.launch()`` before, give every process
    the same number of batches, and let all of them see `GenericTrainerConfig.run_dir`.

    Args:
        config: The settings.
        fabric: With one device, or with the ``ddp`` strategy.
        model: The module to train; afterwards use `model` of the trainer.
        optimizer: Over parameters of *model*.
        scheduler: Steps as ``config.scheduler_interval`` says.
        training_step: ``(trainer, batch, batch_idx) -> loss or mapping``.
        validation_step: The same for validation; by default the training step, without
            gradients and with the model in evaluation mode.

    Raises:
        TypeError: If there is no training step, or a step is both given and overridden.
        ValueError: If a part is of a kind that this version cannot save and continue.
    """

    def __init__(  # noqa: PLR0913 - each is an object of its own
        self,
        config: GenericTrainerConfig,
        fabric: Fabric,
        model: nn.Module,
        optimizer: Optimizer,
        scheduler: LRScheduler | None = None,
        *,
        training_step: StepFunction | None = None,
        validation_step: StepFunction | None = None,
    ) -> None:
        _check_parts(fabric, model, optimizer, scheduler)
        self._training_step = training_step
        self._validation_step = validation_step
        self._check_steps()
        if not is_wrapped(model):
            model, optimizer = fabric.setup(model, optimizer)
        super().__init__(config, fabric, model, optimizer, scheduler)
        self._objects = Objects(
            fabric=fabric, model=model, optimizer=optimizer, scheduler=scheduler
        )
        self._store = CheckpointStore(
            config.run_dir / "checkpoints", keep_last_n=config.keep_last_n_checkpoints
        )
        self._loaders: dict[int, tuple[object, Any]] = {}
        self._metrics: dict[str, float] = {}

    @property
    def phase(self) -> Phase:
        """The phase the loop is in, or was in when it last stopped."""
        return self._phase

    @property
    def epoch(self) -> int:
        """Epochs finished; inside an epoch, its number counted from 0."""
        return self._epoch

    @property
    def global_step(self) -> int:
        """Optimizer steps taken."""
        return self._global_step

    def training_step(self, batch: Any, batch_idx: int) -> StepResult:
        """Return the mean loss over *batch*, or a mapping with it as ``loss``.

        *batch* is on the model's device; *batch_idx* counts from 0 in each epoch.
        """
        step = cast(StepFunction, self._training_step)
        return step(self, batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> StepResult:
        """Return the mean loss over *batch* likewise; gradients are off."""
        if self._validation_step is None:
            return self.training_step(batch, batch_idx)
        return self._validation_step(self, batch, batch_idx)

    def fit(
        self,
        train_loader: DataLoader[Any],
        val_loader: DataLoader[Any] | None = None,
        max_epochs: int = 1,
    ) -> FitResult:
        """Train until *max_epochs* epochs are done, those of earlier runs included.

        Goes on from the newest good checkpoint in ``config.run_dir``; its learning rate
        and other settings of the optimizer are taken over with it. If enough epochs are
        done already, the model is loaded and nothing is trained.

        Raises:
            ValueError: If *max_epochs* is below 1, a loader has no batches, or a step
                returns something else than a loss.
            TypeError: If a step returns something else than tensors and numbers.
            CheckpointError: If a checkpoint cannot be written, or the one to go on from
                does not fit this model, or none of those there can be used.
            MetricsFileError: If the metrics cannot be written.
            LoaderLengthError: If a loader ends before its length, in a distributed run.
            NothingToResumeError: If this trainer has trained before and left no
                checkpoint.
            Exception: Whatever a step, loader or scheduler raises, unchanged.
        """
        if max_epochs < 1:
            message = f"max_epochs must be at least 1, not {max_epochs}"
            raise ValueError(message)
        train = self._set_up(train_loader)
        val = None if val_loader is None else self._set_up(val_loader)
        self._phase = Phase.INIT
        with ExitStack() as stack:
            signals = StopSignals(enabled=self.config.handle_signals)
            run = Run(
                signals=stack.enter_context(signals),
                agreement=StopAgreement(self.fabric),
                means=Means(self.fabric),
                window=Window(self.config.gradient_accumulation_steps),
            )
            resumed_from = self._begin(run, train, stack)
            reason = StopReason.COMPLETED
            if not self._train(run, train, val, max_epochs):
                reason = StopReason.INTERRUPTED
                self._interrupted(run)
        return FitResult(
            reason=reason,
            epoch=self._epoch,
            global_step=self._global_step,
            metrics=dict(self._metrics),
            checkpoint=run.checkpoint,
            resumed_from=resumed_from,
        )

    def validate(self, loader: DataLoader[Any]) -> dict[str, float]:
        """Return the means of what the validation step returns, weighted by samples.

        With several processes, the samples that fill up the last round count twice.

        Raises:
            ValueError: If *loader* has no batches, or a step returns no loss.
            TypeError: If a step returns something else than tensors and numbers.
        """
        means = cast(Means, self._evaluate(self._set_up(loader), None))
        return means.take()[0]

    def _begin(self, run: Run, train: Any, stack: ExitStack) -> Path | None:
        """Load the newest checkpoint or begin anew, then open what `fit` writes to."""
        fabric, config = self.fabric, self.config
        on_rank_zero(fabric, self._store.prepare)
        keep_bytes = 0
        newest = self._newest()
        if newest is not None:
            run.checkpoint, snapshot = newest
            keep_bytes = self._restore(run.checkpoint, snapshot, train)
        elif self._trained:
            message = (
                f"this trainer has trained before, and {config.run_dir} holds no "
                "checkpoint to go on from: make a new model and a new trainer"
            )
            raise NothingToResumeError(message)
        else:
            RNGState.seed((config.seed + fabric.global_rank) % 2**32)

        def open_metrics() -> None:
            path = config.run_dir / "metrics.jsonl"
            writer = MetricsWriter(path, keep_bytes=keep_bytes)
            run.metrics = stack.enter_context(writer)

        on_rank_zero(fabric, open_metrics)
        if config.show_progress and fabric.is_global_zero:
            run.progress = Progress(sys.stderr)
            stack.callback(run.progress.close)
            if run.checkpoint is not None:
                run.progress.note(f"going on from {run.checkpoint.name}")
        return run.checkpoint

    def _newest(self) -> tuple[Path, Snapshot] | None:
        """Return the newest good checkpoint: the first process chooses, all load it."""
        content: dict[str, Any] = {}

        def choose() -> Path | None:
            found = self._store.load_newest()
            if found is None:
                return None
            content.update(found[1])
            return found[0]

        path = on_rank_zero(self.fabric, choose)
        if path is None:
            return None
        return path, Snapshot.from_plain(path, content or self._store.load(path))

    def _restore(self, path: Path, snapshot: Snapshot, train: Any) -> int:
        """Take over *snapshot*; return the size of the file of metrics at that time."""
        resume, rank = snapshot.resume, self.fabric.global_rank
        self._objects.check(path, snapshot.objects)
        self._objects.load(snapshot.objects)
        self._epoch, self._global_step = resume.epoch, resume.global_step
        self._metrics = dict(snapshot.metrics)
        self._trained = True
        if len(resume.rng) != self.fabric.world_size:
            message = (
                f"{path} was written by {len(resume.rng)} processes and is continued by "
                f"{self.fabric.world_size}: the order of samples will be another"
            )
            if self.fabric.is_global_zero:
                warnings.warn(message, CheckpointWarning, stacklevel=3)
            RNGState.seed((self.config.seed + rank + resume.global_step) % 2**32)
        else:
            generators = _data.generators(train)
            for generator, state in zip(
                generators, snapshot.generators[rank], strict=False
            ):
                generator.set_state(state)
            resume.rng[rank].restore()
        return snapshot.metrics_bytes

    def _save(self, run: Run, train: Any) -> None:
        """Write a checkpoint of this edge of an epoch."""
        states = [generator.get_state() for generator in _data.generators(train)]
        streams = gather(self.fabric, (RNGState.capture(), states))

        def write() -> Path:
            snapshot = Snapshot(
                resume=ResumeState.now(
                    phase=Phase.TRAIN_START_EPOCH,
                    epoch=self._epoch,
                    global_step=self._global_step,
                    rng=tuple(rng for rng, _ in streams),
                ),
                objects=self._objects.state(),
                generators=[states for _, states in streams],
                metrics=self._metrics,
                metrics_bytes=0 if run.metrics is None else run.metrics.flush(),
            )
            return self._store.save(
                snapshot.to_plain(), epoch=self._epoch, global_step=self._global_step
            )

        run.checkpoint = on_rank_zero(self.fabric, write)

    def _train(self, run: Run, train: Any, val: Any, max_epochs: int) -> bool:
        """Train the epochs that are left; tell whether all of them were finished."""
        every = self.config.checkpoint_every_n_epochs
        while self._epoch < max_epochs:
            label = f"epoch {self._epoch + 1}/{max_epochs}"
            if self._train_epoch(run, train, label):
                return False
            means = self._end_training(run)
            if val is not None:
                validated = self._validate_epoch(run, val, label)
                if validated is None:
                    return False
                means = validated
            self._safe_point(Phase.EPOCH_END)
            self._metrics = means
            self._epoch += 1
            stop = run.settle()
            done = self._epoch >= max_epochs
            if done or stop or self._epoch % every == 0:
                self._save(run, train)
            if stop and not done:
                return False
        self._safe_point(Phase.TRAINING_COMPLETE)
        return True

    def _interrupted(self, run: Run) -> None:
        if run.progress is not None:
            again = "the beginning" if run.checkpoint is None else run.checkpoint.name
            run.progress.note(
                f"stopped after step {self._global_step}; run again to go on from {again}"
            )

    def _check_steps(self) -> None:
        own, base = type(self), GenericTrainer
        trains = own.training_step is not base.training_step
        if trains == (self._training_step is not None):
            message = "pass training_step or override it in a subclass, one of the two"
            raise TypeError(message)
        validates = own.validation_step is not base.validation_step
        if validates and self._validation_step is not None:
            message = "validation_step is passed and overridden in a subclass: which one?"
            raise TypeError(message)

    def _set_up(self, loader: Any) -> Any:
        """Let Fabric set up *loader*, once."""
        known = self._loaders.get(id(loader))
        if known is None:
            prepared = _data.set_up(self.fabric, loader, self.config.seed)
            # The key is good as long as the loader lives, so it is kept beside.
            known = self._loaders[id(loader)] = (loader, prepared)
        return known[1]


def _check_parts(
    fabric: Fabric, model: object, optimizer: object, scheduler: object
) -> None:
    if not isinstance(fabric.strategy, SingleDeviceStrategy | DDPStrategy):
        name = type(fabric.strategy).__name__
        message = f"fabric must use one device or the ddp strategy, not {name}"
        raise ValueError(message)  # noqa: TRY004 - of the right type, in another setting
    for name, part, kind, title in (
        ("model", model, nn.Module, "a torch.nn.Module"),
        ("optimizer", optimizer, Optimizer, "a torch.optim.Optimizer"),
        ("scheduler", scheduler, LRScheduler | None, "a scheduler of torch, or None"),
    ):
        if not isinstance(part, kind):
            message = f"{name} must be {title}, not {part!r}"
            raise TypeError(message)
    if isinstance(scheduler, ReduceLROnPlateau):
        message = "scheduler must not need a metric: ReduceLROnPlateau is not supported"
        raise ValueError(message)  # noqa: TRY004 - a kind of scheduler like others
    if is_wrapped(model) != is_wrapped(optimizer):
        message = "fabric must have set up both model and optimizer, or neither"
        raise ValueError(message)
