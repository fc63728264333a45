"""What the processes of one run do together. With one process, all of it is free."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from lightning.fabric import Fabric

from mtf_trainer.errors import MtfTrainerError

__all__ = ["StopAgreement", "gather", "on_rank_zero"]

T = TypeVar("T")

_PERIOD_US = 100_000
_MOST_STEPS = 32


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


class StopAgreement:
    """Makes all processes stop at the same step once any of them wants to.

    Asking all of them takes a reduction, which waits for the slowest. Where steps are
    short it is made for several at once: so many as take a tenth of a second, at most 32,
    by the time of the slowest process, so that all count alike.
    """

    def __init__(self, fabric: Fabric) -> None:
        self._alone = fabric.world_size == 1
        self._device = fabric.device
        self._begin(every=1)

    def reached(self, *, wanted: bool) -> bool:
        """Tell whether to stop now. All processes call it after the same steps."""
        if self._alone:
            return wanted
        self._calls += 1
        if self._calls < self._every:
            return False
        elapsed_us = round(1e6 * (time.monotonic() - self._since))
        any_wants, step_us = self._reduce(wanted, elapsed_us // self._calls)
        self._begin(every=max(1, min(_MOST_STEPS, _PERIOD_US // max(1, step_us))))
        return bool(any_wants)

    def settled(self, *, wanted: bool) -> bool:
        """Ask all at once, however short the last steps were."""
        if self._alone:
            return wanted
        any_wants, _ = self._reduce(wanted, 0)
        self._begin(every=1)
        return bool(any_wants)

    def _begin(self, *, every: int) -> None:
        self._every = every
        self._calls = 0
        self._since = time.monotonic()

    def _reduce(self, *values: int) -> list[int]:
        largest = torch.tensor(values, dtype=torch.int64, device=self._device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        numbers: list[int] = largest.tolist()
        return numbers
