"""The training loop.

`GenericTrainer` drives a model through the phases of `mtf_trainer.phases` with the calls
of Lightning Fabric, writes ``metrics.jsonl`` and checkpoints into one folder, and goes on
from the newest good checkpoint there, or from a newer snapshot in shared memory. It knows
nothing of launchers: it takes plain objects.

What it holds to: a run that is stopped at any safe points, any number of times, ends with
the same weights, optimizer, streams of random numbers, order of samples and metrics as
one that never was.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Self, cast

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer

from mtf_trainer._data import sources
from mtf_trainer._data.source import Source
from mtf_trainer._guards.guard import Guard
from mtf_trainer._guards.limits import Deadline
from mtf_trainer._guards.signals import StopSignals
from mtf_trainer._guards.watchdog import Watchdog
from mtf_trainer._hooks import Hooks
from mtf_trainer._loop.capture import Objects
from mtf_trainer._loop.keeper import Keeper
from mtf_trainer._loop.means import Average, Means, combine
from mtf_trainer._loop.parts import (
    as_list,
    as_spec,
    check_parts,
    deterministic,
    set_up_model,
)
from mtf_trainer._loop.phase_loop import PhaseLoop, SchedulerSpec, StepResult, Stopped
from mtf_trainer._loop.run import RollBack, Run
from mtf_trainer._ranks import comm_hooks
from mtf_trainer._ranks.agreement import StopAgreement
from mtf_trainer._ranks.rank_errors import RankErrors
from mtf_trainer._ranks.sharding import is_sharded
from mtf_trainer._saving.save_schedule import SaveSchedule
from mtf_trainer._verify.replay import TARGET
from mtf_trainer.config import GenericTrainerConfig, check_count
from mtf_trainer.ema import WeightAverage
from mtf_trainer.errors import DataError
from mtf_trainer.multi_loader import MultiLoader
from mtf_trainer.phases import Phase
from mtf_trainer.progress import Progress
from mtf_trainer.result import FitResult, StopReason
from mtf_trainer.trackers import Trackers, WandbTracker

__all__ = ["GenericTrainer", "SchedulerSpec", "StepFunction", "StepResult"]

_TO_BE_CONTINUED = {StopReason.INTERRUPTED, StopReason.LIMIT}

StepFunction = Callable[["GenericTrainer", Any, int], StepResult]
Loader = Any  # a DataLoader, or a MultiLoader


class GenericTrainer(PhaseLoop):
    """Trains one model.

    Subclass it and override `training_step` (and `validation_step`), or pass functions
    that take the trainer first. A step returns the mean loss over its batch, or a mapping
    with that as ``loss`` and further scalars, which are averaged and reported.

    Model and optimizers are set up by Fabric here, unless they are already; loaders when
    first seen. With several processes, call ``fabric.launch()`` before, and let all of
    them see `GenericTrainerConfig.run_dir`.

    Args:
        config: The settings.
        fabric: With one device, with the ``ddp`` strategy, or launched with
            ``ModelParallelStrategy`` for a model sharded with ``fully_shard``.
        model: The module to train; afterwards use `model` of the trainer.
        optimizer: Over parameters of *model*; or several.
        scheduler: One or several; a `SchedulerSpec` says when it steps, a scheduler alone
            does as ``config.scheduler_interval`` says.
        training_step: ``(trainer, batch, batch_idx) -> loss or mapping``.
        validation_step: The same for validation; by default the training step, without
            gradients and with the model in evaluation mode.
        callbacks: Objects with some of the hooks of `mtf_trainer.callbacks.Callback`.
        trackers: Objects as `mtf_trainer.trackers.Tracker` has it; used in the first
            process.
        wandb_run: A run of wandb's, which becomes a tracker.
        requeue: Called in the first process after a stop that is to be continued, as by
            a signal or at the end of the time allowed.

    Attributes:
        probe: For tests: called at each safe point with the phase about to begin, in all
            processes; what it returns says whether to save and stop there.

    Raises:
        TypeError: If there is no training step, or a step is both given and overridden.
        ValueError: If a part is of a kind that cannot be saved and continued.
    """

    def __init__(  # noqa: PLR0913 - each is an object of its own
        self,
        config: GenericTrainerConfig,
        fabric: Fabric,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        scheduler: Any = None,
        *,
        training_step: StepFunction | None = None,
        validation_step: StepFunction | None = None,
        callbacks: Sequence[object] = (),
        trackers: Sequence[object] = (),
        wandb_run: object = None,
        requeue: Callable[[], None] | None = None,
    ) -> None:
        optimizers = as_list(optimizer)
        specs = [as_spec(each, config) for each in as_list(scheduler)]
        check_parts(fabric, model, optimizers)
        self._training_step = training_step
        self._validation_step = validation_step
        self._check_steps()
        model, optimizers = set_up_model(config, fabric, model, optimizers)
        decay = config.ema_decay
        ema = None if decay is None else WeightAverage(model, decay)
        super().__init__(config, fabric, model, optimizers, specs, ema)
        if wandb_run is not None:
            trackers = [*trackers, WandbTracker(wandb_run)]
        self._hooks = Hooks(callbacks)
        self._trackers = Trackers(
            trackers if fabric.is_global_zero else (), where=lambda: str(self.phase)
        )
        self._requeue = requeue
        comm = None
        if config.comm_hook != "none" and fabric.world_size > 1:
            rank = config.powersgd_rank
            comm = comm_hooks.register(model, config.comm_hook, powersgd_rank=rank)
        self._objects = Objects(
            fabric=fabric,
            model=model,
            optimizers=self.optimizers,
            schedulers=specs,
            ema=ema,
            hooks=self._hooks,
            trackers=self._trackers,
            comm=comm,
        )
        self._sources: dict[tuple[int, bool], tuple[object, Any]] = {}
        self._run: Run | None = None
        self.probe: Callable[[Phase], bool] | None = None
        self._default_loaders: tuple[Any, Any, int] | None = None
        self._trained = False

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        fabric: Fabric,
        *,
        modules: Sequence[str] = (),
        **parts: Any,
    ) -> Self:
        """Build model, data, optimizer and scheduler from the registry, and a trainer.

        `fit` of what is returned needs no loaders.

        Args:
            config: With the sections that `mtf_trainer.registry.components_from_config`
                describes.
            fabric: See the class.
            modules: Those that *config* may name components of, as ``package.module:attr``.
            parts: Further arguments of the class, by default a step for classification.

        Raises:
            RegistryError: If a component is unknown, or its module is not listed.
            TypeError: If a component does not take an argument that the config has.
            ValueError: If a value is out of its range.
        """
        from mtf_trainer.registry import (  # noqa: PLC0415 - only where used
            classification_step,
            components_from_config,
        )

        built = components_from_config(config, modules)
        if cls.training_step is GenericTrainer.training_step:
            parts.setdefault("training_step", classification_step)
        trainer = cls(
            built.config, fabric, built.model, built.optimizer, built.scheduler, **parts
        )
        loaders = (built.train_loader, built.val_loader, built.max_epochs)
        trainer._default_loaders = loaders
        return trainer

    @property
    def phase(self) -> Phase:
        """The phase the loop is in, or was in when it last stopped."""
        return self._at.phase

    @property
    def epoch(self) -> int:
        """Epochs finished; inside an epoch, its number counted from 0."""
        return self._at.epoch

    @property
    def global_step(self) -> int:
        """Optimizer steps taken."""
        return self._at.global_step

    @property
    def loader_name(self) -> str:
        """The loader that the batch in hand came from, of a `MultiLoader`."""
        return "" if self._batch is None else self._batch.loader

    @property
    def is_filler(self) -> bool:
        """Whether the batch in hand weighs nothing.

        At the end of an epoch that has no sample left for this process, it gets one that
        was used already, so that all processes take part in the step.
        """
        return self._batch is not None and self._batch.num_samples == 0

    @property
    def optimizer(self) -> Optimizer:
        """The first optimizer."""
        return self.optimizers[0]

    @property
    def metrics(self) -> dict[str, float]:
        """Means over the last validation; over the last epoch without one."""
        return dict(self._at.metrics)

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

    def predict_step(self, batch: Any, batch_idx: int) -> Any:  # noqa: ARG002
        """Return what `predict` is to gather; by default the model's output.

        A batch that is a sequence or a mapping gives its first value to the model.
        """
        if isinstance(batch, Mapping):
            batch = next(iter(batch.values()))
        elif isinstance(batch, list | tuple):
            batch = batch[0]
        return self.model(batch)

    def num_samples(self, batch: Any) -> int:
        """Return how many samples *batch* holds, where the loader makes no batches.

        A loader that puts samples together counts them; this is for data that come as
        whole batches.

        By default the length of the first dimension of the first tensor in it. Override
        this for batches of another form.
        """
        return sources.count_samples(batch)

    def cross_entropy(self, z_BC: Tensor, y_B: Tensor) -> Tensor:
        """Return the cross entropy, in training with ``config.label_smoothing``.

        Args:
            z_BC: Logits by class.
            y_B: Classes, or probabilities of shape ``(B, C)``.
        """
        self._smoothed = True
        training = self._at.phase is Phase.TRAIN_BATCH_FORWARD
        smoothing = self.config.label_smoothing if training else 0.0
        return nn.functional.cross_entropy(z_BC, y_B, label_smoothing=smoothing)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the trackers. `fit` leaves them open, for `test` and for another `fit`.

        Raises:
            CallbackError: If one raises.
        """
        self._trackers.close()

    def stop(self) -> None:
        """Ask `fit` to save and stop at a safe point: as soon as all processes agree."""
        if self._run is not None:
            self._run.signals.request()

    def request_end(self) -> None:
        """End the training behind this epoch. All processes must ask for it."""
        self._at.ended = True

    def fit(
        self,
        train_loader: Loader = None,
        val_loader: Loader = None,
        max_epochs: int | None = None,
        max_steps: int | None = None,
    ) -> FitResult:
        """Train until *max_epochs* epochs, or *max_steps* optimizer steps, are done.

        Those of earlier runs count. Goes on from the newest good state in
        ``config.run_dir``, with the settings of optimizers and schedulers that it holds.
        If enough is done already, the model is loaded and nothing is trained.

        Args:
            train_loader: A `torch.utils.data.DataLoader` or a `MultiLoader`.
            val_loader: Likewise; None for no validation.
            max_epochs: By default 1.
            max_steps: None for no limit.

        Raises:
            ValueError: If a number is below 1, a loader has no batches, or a step
                returns something else than a loss.
            TypeError: If a step returns something else than tensors and numbers.
            CheckpointError: If a checkpoint cannot be written, or the one to go on from
                does not fit this model, or none of those there can be used.
            MetricsFileError: If the metrics cannot be written.
            DataError: If a loader cannot be run exactly, or ends before its length.
            DivergenceError: If the loss or the gradients went wrong, as
                ``config.guard`` says.
            CallbackError: If a callback or a tracker raises.
            RankError: If another process failed.
            NothingToResumeError: If this trainer has trained before and left no
                checkpoint.
            Exception: Whatever a step, loader or scheduler raises, unchanged.
        """
        if train_loader is None:
            if self._default_loaders is None:
                message = "fit needs a train_loader"
                raise TypeError(message)
            train_loader, default_val, epochs = self._default_loaders
            val_loader = default_val if val_loader is None else val_loader
            max_epochs = epochs if max_epochs is None else max_epochs
        max_epochs = 1 if max_epochs is None else max_epochs
        for name, value in (("max_epochs", max_epochs), ("max_steps", max_steps)):
            if value is not None:
                check_count(name, value, least=1)
        train = self._source(train_loader, training=True)
        val = None if val_loader is None else self._source(val_loader)
        with ExitStack() as stack:
            stack.enter_context(deterministic(enabled=self.config.deterministic))
            run, keeper = self._open(stack, train, val, max_epochs, max_steps)
            run.average = _average_of(val_loader)
            if isinstance(train_loader, MultiLoader):
                run.optimizers_of = _checked_indices(train_loader, len(self.optimizers))
            stack.callback(self._leave)
            with run.unwatched():
                keeper.begin(run, trained=self._trained)
            self._trained = True
            self._resume_loop(run)
            try:
                self._hooks.call("on_fit_start", self)
                reason = self._train(run)
                keeper.end(run, complete=reason not in _TO_BE_CONTINUED)
                result = FitResult(
                    reason=reason,
                    epoch=self._at.epoch,
                    global_step=self._at.global_step,
                    metrics=dict(self._at.metrics),
                    best_metric=self._at.best,
                    checkpoint=keeper.checkpoint,
                    resumed_from=keeper.resumed_from,
                    steps_lost=keeper.steps_lost,
                )
                self._hooks.call("on_fit_end", self, result)
            except Exception as error:
                self._hooks.call("on_exception", self, error)
                raise
        if result.exit_code and self._requeue is not None and self.fabric.is_global_zero:
            self._requeue()
        return result

    def _open(
        self,
        stack: ExitStack,
        train: Source,
        val: Source | None,
        max_epochs: int,
        max_steps: int | None,
    ) -> tuple[Run, Keeper]:
        """Open what a call of `fit` needs, to be closed with *stack*."""
        config, fabric = self.config, self.fabric
        distributed = fabric.world_size > 1
        self._at = self._new_state()
        agreement = StopAgreement(fabric, values=(0, 0))
        stack.callback(agreement.close)
        keeper = Keeper(config, fabric, self._at, self._objects, agreement.max_of)
        stack.enter_context(keeper)
        for source in (train, val):
            if source is not None:
                stack.callback(source.close)
        if distributed:
            stack.enter_context(RankErrors(fabric))
        probe = self.probe or self._replay_probe()
        guard = Guard(config.guard)
        deadline = config.guard.step_deadline_s
        watchdog = None
        if deadline is not None:
            watchdog = stack.enter_context(Watchdog(deadline, describe=self._describe))
        progress = None
        if config.show_progress and fabric.is_global_zero:
            progress = Progress(sys.stderr)
            stack.callback(progress.close)
        run = Run(
            owner=self,
            signals=stack.enter_context(StopSignals(enabled=config.handle_signals)),
            agreement=agreement,
            hooks=self._hooks,
            guard=guard,
            deadline=Deadline(config.limits, os.environ),
            watchdog=watchdog,
            schedule=SaveSchedule(config.checkpoint),
            keeper=keeper,
            trackers=self._trackers,
            train=train,
            val=val,
            max_epochs=max_epochs,
            max_steps=max_steps,
            probe=probe,
            progress=progress,
            scales=self._scaler is not None,
            distributed=distributed,
            attention=probe is not None,
        )
        self._run = run
        stack.callback(setattr, self, "_run", None)
        return run, keeper

    def _resume_loop(self, run: Run) -> None:
        """Bring what is not saved into the state that belongs to where the loop stands."""
        self._batch = self._train_batches = self._val_batches = None
        if self._at.val is not None:
            if self.ema is not None:
                self.ema.swap()
            self._show_validation(run)
        elif self._at.train.batch_idx:
            self._show_training(run)
        run.guard.begin(self._at.global_step)

    def _replay_probe(self) -> Callable[[Phase], bool] | None:
        """Return what stops a replay where the run it repeats had its checkpoint."""
        target = TARGET.get()
        if target is None:
            return None
        return lambda _: target.reached(self._at.shared()["resume"])

    def _leave(self) -> None:
        """Leave the model with its own weights, wherever the run was left."""
        if self.ema is not None and self.ema.swapped:
            self.ema.swap()

    def _describe(self) -> str:
        at = self._at
        return f"{at.phase}, epoch {at.epoch + 1}, step {at.global_step}"

    def _train(self, run: Run) -> StopReason:
        """Drive the phases to their end, or to where the run is to stop."""
        while True:
            try:
                if self._at.phase is Phase.TRAIN_START_EPOCH and self._is_done(run):
                    self._at.phase = Phase.TRAINING_COMPLETE
                elif self._has_enough_steps(run) and not self._ends_step():
                    return StopReason.MAX_STEPS
                run.keeper.start_streams()
                self._drive(run)
            except Stopped:
                try:
                    run.keeper.save(run, wait=True)
                except RollBack as error:
                    self._roll_back(run, error)
                return cast(StopReason, run.stopping)
            except RollBack as error:
                self._roll_back(run, error)
            else:
                if self._at.ended:
                    return StopReason.ENDED
                enough = self._at.epoch >= run.max_epochs
                return StopReason.COMPLETED if enough else StopReason.MAX_STEPS

    def _roll_back(self, run: Run, error: RollBack) -> None:
        """Go back to the last checkpoint, which is saved once more."""
        with run.unwatched():
            run.keeper.roll_back(run, str(error))
        self._resume_loop(run)

    def _attend(self, run: Run, phase: Phase) -> None:
        if not run.distributed and run.signals.wanted:
            run.stop(StopReason.INTERRUPTED)
        if run.probe is not None and run.probe(phase):
            run.stop(StopReason.INTERRUPTED)
        if phase is Phase.TRAIN_BATCH_BACKWARD:
            return
        if run.stopping is not None and phase is not Phase.TRAINING_COMPLETE:
            raise Stopped
        if run.save_due:
            run.save_due = False
            run.keeper.save(run, wait=False)
        if run.snapshot_due:
            run.snapshot_due = False
            run.keeper.take_snapshot(run)
        run.attention = run.probe is not None

    def validate(self, loader: Loader) -> dict[str, float]:
        """Return the means of what the validation step returns, weighted by samples.

        Each sample counts once, with several processes too. Weights are the averaged
        ones where ``config.ema_decay`` is set.

        Raises:
            DataError: If *loader* has no batches, or cannot be run.
            ValueError: If a step returns no loss.
            TypeError: If a step returns something else than tensors and numbers.
        """
        source, held = self._source(loader), self._batch
        means: dict[str, Means] = {}
        with self._evaluating():
            for batch_idx, batch in enumerate(source.batches(0, None)):
                self._batch = batch
                self._evaluate(batch, batch_idx, means)
        self._batch = held
        if not means:
            message = "the loader has no batches"
            raise DataError(message)
        return combine(means, _average_of(loader))[0]

    def test(self, loader: Loader) -> dict[str, float]:
        """Return what `validate` does, and tell the trackers, as ``test/...``.

        Raises:
            Exception: As `validate` does.
        """
        values = self.validate(loader)
        named = {f"test/{name}": value for name, value in values.items()}
        self._trackers.log_metrics(named, self._at.global_step)
        return values

    def predict(self, loader: Loader) -> list[Any]:
        """Return `predict_step` of each batch of this process, in order, on the CPU.

        Raises:
            DataError: If *loader* cannot be run.
        """
        found, held = [], self._batch
        with self._evaluating(), torch.no_grad():
            for batch_idx, batch in enumerate(self._source(loader).batches(0, None)):
                self._batch = batch
                # All processes take part in a forward pass of a sharded model.
                if batch.num_samples or is_sharded(self.fabric):
                    value = self.predict_step(batch.data, batch_idx)
                    if batch.num_samples:
                        found.append(_to_cpu(value))
        self._batch = held
        return found

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        modes = [module.training for module in self.model.modules()]
        swaps = self.ema is not None and not self.ema.swapped
        self.model.eval()
        if swaps:
            cast(WeightAverage, self.ema).swap()
        try:
            yield
        finally:
            if swaps:
                cast(WeightAverage, self.ema).swap()
            for module, mode in zip(self.model.modules(), modes, strict=True):
                module.training = mode

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

    def _source(self, loader: Loader, *, training: bool = False) -> Any:
        """Return what the loop reads *loader*'s batches from, made once."""
        known = self._sources.get((id(loader), training))
        if known is None:
            accumulation = self.config.gradient_accumulation_steps if training else 1
            source = sources.make_source(
                self.fabric,
                loader,
                seed=self.config.seed,
                accumulation=accumulation,
                num_samples=self.num_samples,
                skip_to_resume=self.config.skip_to_resume,
                training=training,
            )
            # The key is good as long as the loader lives, so it is kept beside.
            known = self._sources[id(loader), training] = (loader, source)
        return known[1]


def _checked_indices(loader: MultiLoader, count: int) -> dict[str, int] | None:
    for name, index in (loader.optimizers or {}).items():
        if index >= count:
            message = (
                f"optimizers has {index} for loader {name!r}; the trainer has {count}"
            )
            raise ValueError(message)
    return loader.optimizers


def _average_of(loader: Loader) -> Average:
    return loader.validation if isinstance(loader, MultiLoader) else "samples"


def _to_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {key: _to_cpu(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_to_cpu(each) for each in value]
    return value
