"""Models sharded with ``fully_shard``, under Fabric's ``ModelParallelStrategy``.

What `GenericTrainer` needs of such a model, and what it cannot do with it.

Gradients of a sharded model are exchanged after each batch, inside a window of
accumulation too: what FSDP keeps back under ``no_sync`` is in no tensor that can be seen,
and so could not be saved. Sums come out the same but for their rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.fabric import Fabric
from lightning.fabric.strategies.model_parallel import ModelParallelStrategy
from lightning.fabric.wrappers import is_wrapped
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from mtf_trainer.config import GenericTrainerConfig

__all__ = ["check_strategy", "is_sharded", "set_up_sharded"]


def is_sharded(fabric: Fabric) -> bool:
    """Tell whether *fabric* spreads models over the processes."""
    return isinstance(fabric.strategy, ModelParallelStrategy)


def check_strategy(fabric: Fabric) -> None:
    """Raise if models cannot be spread over processes as *fabric* would.

    Raises:
        ValueError: If it is not launched, or parallel in other ways too.
    """
    strategy: Any = fabric.strategy
    try:
        mesh = strategy.device_mesh
    except RuntimeError as error:
        message = (
            "call fabric.launch() before a trainer with ModelParallelStrategy is made"
        )
        raise ValueError(message) from error
    if mesh["tensor_parallel"].size() > 1:
        message = (
            "tensor_parallel_size must be 1: processes that share a layer would need the "
            "same samples, and each is given its own"
        )
        raise ValueError(message)


def set_up_sharded(
    config: GenericTrainerConfig,
    fabric: Fabric,
    model: nn.Module,
    optimizers: list[Optimizer],
) -> tuple[nn.Module, list[Optimizer]]:
    """Let *fabric* shard *model*, unless it has, and put its parameters into *optimizers*.

    Raises:
        ValueError: If a setting asks for what sharded models do not have; if a parameter
            that is trained was not sharded; if an optimizer has others than the model's,
            or has taken steps.
    """
    _check_settings(config)
    if getattr(fabric.strategy.precision, "scaler", None) is not None:
        message = "16-mixed does not work with ModelParallelStrategy: use bf16-mixed"
        raise ValueError(message)
    if not is_wrapped(model):
        names = _names(model)
        inner = model
        model, *optimizers = fabric.setup(model, *optimizers)
        _exchange(optimizers, names, inner)
    _check_parameters(model, optimizers)
    if config.ema_decay is not None:
        # Weights that stay gathered after a forward pass would outlive a swap.
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_reshard_after_forward(True, recurse=False)
    return model, optimizers


def _check_settings(config: GenericTrainerConfig) -> None:
    checkpoint = config.checkpoint
    wanted = {
        "compile": config.compile,
        "comm_hook": config.comm_hook != "none",
        "checkpoint.asynchronous": checkpoint.asynchronous,
        "checkpoint.backup_url": checkpoint.backup_url is not None,
        "checkpoint.encryption_key_file": checkpoint.encryption_key_file is not None,
        "checkpoint.encryption_key_env": checkpoint.encryption_key_env is not None,
    }
    hints = {
        "compile": "compile layers in the strategy's parallelize_fn",
        "checkpoint.asynchronous": (
            "set it to False; training waits while its processes write"
        ),
    }
    for name, is_set in wanted.items():
        if is_set:
            hint = f": {hints[name]}" if name in hints else ""
            message = f"{name} does not work with ModelParallelStrategy{hint}"
            raise ValueError(message)


def _names(model: nn.Module) -> dict[int, str]:
    named = model.named_parameters(remove_duplicate=False)
    return {id(parameter): name for name, parameter in named}


def _exchange(
    optimizers: Sequence[Optimizer], names: dict[int, str], model: nn.Module
) -> None:
    """Put the sharded parameters of *model* in place of those that had their names."""
    sharded = dict(model.named_parameters(remove_duplicate=False))
    for optimizer in optimizers:
        if optimizer.state_dict()["state"]:
            message = (
                f"{type(optimizer).__name__} has a state already, of whole parameters: it "
                f"has taken steps before its model was sharded, or makes a state when it "
                f"is made, as Adagrad does, which does not work with ModelParallelStrategy"
            )
            raise ValueError(message)
        for group in optimizer.param_groups:
            if not {id(p) for p in group["params"]} <= set(names):
                message = "an optimizer has parameters that are not the model's"
                raise ValueError(message)
            group["params"] = [sharded[names[id(p)]] for p in group["params"]]


def _check_parameters(model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not isinstance(parameter, DTensor):
            message = (
                f"{name} was not sharded, so that its gradients would not be exchanged: "
                "let parallelize_fn end with fully_shard of the whole model"
            )
            raise ValueError(message)
    own = {id(parameter) for parameter in model.parameters()}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if not {id(p) for p in group["params"]} <= own:
                message = (
                    "an optimizer has parameters that are not the model's: make it after "
                    "fabric.setup_module, or let the trainer set up both"
                )
                raise ValueError(message)
