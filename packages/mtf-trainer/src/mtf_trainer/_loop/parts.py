"""What a trainer is made of: checked, and set up by Fabric."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies.ddp import DDPStrategy
from lightning.fabric.strategies.single_device import SingleDeviceStrategy
from lightning.fabric.wrappers import is_wrapped
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import LBFGS, Optimizer, SparseAdam
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from mtf_trainer._loop.schedulers import SchedulerSpec, unwrapped
from mtf_trainer._ranks.sharding import check_strategy, is_sharded, set_up_sharded
from mtf_trainer.config import GenericTrainerConfig

__all__ = [
    "as_list",
    "as_spec",
    "check_optimizers",
    "check_parts",
    "deterministic",
    "set_up_model",
    "settings_of",
]


def as_list(value: Any) -> list[Any]:
    """Return what may be one object, several or None as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def as_spec(scheduler: Any, config: GenericTrainerConfig) -> SchedulerSpec:
    """Return *scheduler* with when it steps, as *config* says where it does not.

    Raises:
        TypeError: If it is no scheduler of torch.
    """
    if isinstance(scheduler, SchedulerSpec):
        return scheduler
    if not isinstance(scheduler, LRScheduler):
        message = f"scheduler must be a scheduler of torch, not {scheduler!r}"
        raise TypeError(message)
    if isinstance(scheduler, ReduceLROnPlateau):
        monitor = config.checkpoint.monitor
        return SchedulerSpec(scheduler=scheduler, interval="metric", monitor=monitor)
    return SchedulerSpec(scheduler=scheduler, interval=config.scheduler_interval)


def check_parts(
    fabric: Fabric,
    model: object,
    optimizers: Sequence[object],
    schedulers: Sequence[SchedulerSpec] = (),
) -> None:
    """Accept what a trainer can be made of.

    Raises:
        TypeError: If *model* or one of *optimizers* is something else, or there are none.
        ValueError: If *fabric* has another strategy, or has set up only a part of them;
            if an optimizer needs a closure, or has parameters that are not the model's;
            if a scheduler is of another optimizer; if the model is not whole yet, or has
            sparse gradients.
    """
    if is_sharded(fabric):
        check_strategy(fabric)
    elif not isinstance(fabric.strategy, SingleDeviceStrategy | DDPStrategy):
        name = type(fabric.strategy).__name__
        message = (
            "fabric must use one device, the ddp strategy or ModelParallelStrategy, "
            f"not {name}"
        )
        raise ValueError(message)
    if not isinstance(model, nn.Module):
        message = f"model must be a torch.nn.Module, not {model!r}"
        raise TypeError(message)
    if not optimizers:
        message = "optimizer must be a torch.optim.Optimizer, or several; there is none"
        raise TypeError(message)
    check_optimizers(optimizers)
    wrapped = [is_wrapped(part) for part in (model, *optimizers)]
    if any(wrapped) and not all(wrapped):
        message = "fabric must have set up both model and optimizer, or neither"
        raise ValueError(message)
    _check_shapes(model)
    _check_gradients(model)
    if not is_sharded(fabric):  # those of a sharded model are exchanged, and checked then
        _check_parameters(model, optimizers)
    _check_schedulers(optimizers, schedulers)


def check_optimizers(optimizers: Sequence[object]) -> None:
    """Accept optimizers whose steps can be taken and saved.

    Raises:
        TypeError: If one is something else.
        ValueError: If one is of another kind.
    """
    for optimizer in optimizers:
        if not isinstance(optimizer, Optimizer):
            message = f"optimizer must be a torch.optim.Optimizer, not {optimizer!r}"
            raise TypeError(message)
        if isinstance(optimizer, LBFGS):
            message = "LBFGS calls the step several times for one update: not supported"
            raise ValueError(message)  # noqa: TRY004 - it is an optimizer
        if isinstance(optimizer, SparseAdam):
            message = "SparseAdam is of sparse gradients, which no checkpoint holds"
            raise ValueError(message)  # noqa: TRY004 - it is an optimizer


def _check_shapes(model: nn.Module) -> None:
    named = (*model.named_parameters(), *model.named_buffers())
    for name, tensor in named:
        if is_lazy(tensor):
            message = (
                f"{name} of the model has no shape yet, as it is lazy: pass one batch "
                "through the model before the trainer is made"
            )
            raise ValueError(message)


def _check_gradients(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse:
            message = (
                f"{name or 'the model'} has sparse gradients, which can neither be clipped "
                "nor saved inside an accumulation window: make it with sparse=False"
            )
            raise ValueError(message)


def _check_parameters(model: nn.Module, optimizers: Sequence[Any]) -> None:
    own = {id(parameter) for parameter in model.parameters()}
    for index, optimizer in enumerate(optimizers):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if id(parameter) not in own:
                    message = (
                        f"optimizer {index} has a parameter of shape "
                        f"{tuple(parameter.shape)} that is not the model's, and would not "
                        "be saved: make the optimizer from the parameters of the model "
                        "that the trainer gets, all others as modules of it"
                    )
                    raise ValueError(message)


def _check_schedulers(
    optimizers: Sequence[Any], schedulers: Sequence[SchedulerSpec]
) -> None:
    own = {id(unwrapped(optimizer)) for optimizer in optimizers}
    for index, spec in enumerate(schedulers):
        optimizer = getattr(spec.scheduler, "optimizer", None)
        if optimizer is not None and id(unwrapped(optimizer)) not in own:
            message = (
                f"scheduler {index}, a {type(spec.scheduler).__name__}, is of an optimizer "
                "that the trainer does not get: make it with one of the trainer's"
            )
            raise ValueError(message)


def set_up_model(
    config: GenericTrainerConfig,
    fabric: Fabric,
    model: nn.Module,
    optimizers: list[Optimizer],
) -> tuple[nn.Module, list[Optimizer]]:
    """Let *fabric* set up checked parts, unless it has, as *config* says.

    Raises:
        ValueError: If the model cannot be what a setting asks for.
    """
    if config.gradient_checkpointing:
        enable = getattr(model, "gradient_checkpointing_enable", None)
        if not callable(enable):
            message = (
                f"gradient_checkpointing is set, and {type(model).__name__} has no "
                "gradient_checkpointing_enable(): give it one, or leave it out"
            )
            raise ValueError(message)
        enable()
    if is_sharded(fabric):
        return set_up_sharded(config, fabric, model, optimizers)
    if is_wrapped(model):
        if config.compile:
            message = "compile is set, and fabric has set up the model: compile it before"
            raise ValueError(message)
        return model, optimizers
    if config.compile:
        model = cast(nn.Module, torch.compile(model))
    model, *optimizers = fabric.setup(model, *optimizers)
    return model, optimizers


@contextmanager
def deterministic(*, enabled: bool) -> Iterator[None]:
    """Let torch use deterministic algorithms meanwhile, if *enabled*."""
    if not enabled:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)  # noqa: FBT003 - torch's own signature
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)
        torch.backends.cudnn.benchmark = benchmark


def settings_of(config: GenericTrainerConfig) -> dict[str, Any]:
    """Return the settings by name, those of a part as ``part.name``, for trackers."""
    found: dict[str, Any] = {}
    for name, value in asdict(config).items():
        inner = value if isinstance(value, dict) else {"": value}
        for key, each in inner.items():
            plain = str(each) if isinstance(each, Path) else each
            found[f"{name}.{key}" if key else name] = plain
    return found
