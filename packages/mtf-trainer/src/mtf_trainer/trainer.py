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

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self, cast

from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer

from mtf_trainer._hooks import Hooks
from mtf_trainer._loop.capture import Objects
from mtf_trainer._loop.evaluation import Evaluation, Loader, average_of
from mtf_trainer._loop.fitting import Fitting
from mtf_trainer._loop.loop_base import StepResult
from mtf_trainer._loop.parts import (
    as_list,
    as_spec,
    check_parts,
    deterministic,
    set_up_model,
)
from mtf_trainer._loop.run import Run
from mtf_trainer._loop.schedulers import SchedulerSpec
from mtf_trainer._ranks import comm_hooks
from mtf_trainer.config import GenericTrainerConfig, check_count
from mtf_trainer.ema import WeightAverage
from mtf_trainer.multi_loader import MultiLoader
from mtf_trainer.phases import Phase
from mtf_trainer.result import FitResult, StopReason
from mtf_trainer.trackers import Trackers, WandbTracker

__all__ = ["GenericTrainer", "SchedulerSpec", "StepFunction", "StepResult"]

_TO_BE_CONTINUED = {StopReason.INTERRUPTED, StopReason.LIMIT}

StepFunction = Callable[["GenericTrainer", Any, int], StepResult]


class GenericTrainer(Fitting, Evaluation):
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
        check_parts(fabric, model, optimizers, specs)
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
            RegistryError: If a component is unknown, its module is not listed, or it
                raises something else; that is the cause then.
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

    def cross_entropy(self, z_BC: Tensor, y_B: Tensor) -> Tensor:
        """Return the cross entropy, in training with ``config.label_smoothing``.

        Args:
            z_BC: Logits by class.
            y_B: Classes, or probabilities of shape ``(B, C)``.
        """
        if self._trains:
            self._unsmoothed.clear()
        smoothing = self.config.label_smoothing if self._trains else 0.0
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
        """End the training behind this epoch, for good: it is part of the run's state.

        All processes must ask for it. For a callback that may think otherwise when `fit`
        is called again, see ``wants_end`` of `mtf_trainer.callbacks.Callback`.
        """
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
            run.average = average_of(val_loader)
            if isinstance(train_loader, MultiLoader):
                run.optimizers_of = _checked_indices(train_loader, len(self.optimizers))
            if self.config.label_smoothing:
                is_multi = isinstance(train_loader, MultiLoader)
                self._unsmoothed = set(train_loader.loaders) if is_multi else {""}
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


def _checked_indices(loader: MultiLoader, count: int) -> dict[str, int] | None:
    for name, index in (loader.optimizers or {}).items():
        if index >= count:
            message = (
                f"optimizers has {index} for loader {name!r}; the trainer has {count}"
            )
            raise ValueError(message)
    return loader.optimizers
