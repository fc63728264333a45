"""What the processes of one run do together. With one process, all of it is free."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import torch.distributed as dist
from lightning.fabric import Fabric

from mtf_trainer.errors import MtfTrainerError

__all__ = ["gather", "on_rank_zero"]

T = TypeVar("T")


def on_rank_zero(fabric: Fabric, work: Callable[[], T]) -> T:
    """Do *work* in the first process, and return its value, or raise its error, in all.

    Raises:
        MtfTrainerError: Whatever of that tree *work* raises.
    """
    if fabric.world_size == 1:
        return work()
    value: T | None = None
    failure: MtfTrainerError | None = None
    if fabric.is_global_zero:
        try:
            value = work()
        except MtfTrainerError as error:
            failure = error
    value, told = fabric.broadcast((value, failure), src=0)
    if failure is not None:
        raise failure
    if told is not None:
        raise told
    return cast(T, value)


def gather(fabric: Fabric, value: T) -> list[T]:
    """Return every process's *value*, by rank, in every process."""
    if fabric.world_size == 1:
        return [value]
    values: list[T | None] = [None] * fabric.world_size
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]
