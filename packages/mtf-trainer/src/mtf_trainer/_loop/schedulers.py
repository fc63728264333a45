"""Schedulers: when each one steps, and its state among the others of a run.

Torch's schedulers hold functions, counters and other schedulers. What is saved of them is
plain data; what is put back has the kinds that the scheduler made itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

__all__ = [
    "SchedulerSpec",
    "like_own",
    "plain_state",
    "scale_rates",
    "unwrapped",
]

_INNER = "_schedulers"
_Interval = Literal["step", "epoch", "metric"]


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


def unwrapped(optimizer: Any) -> Any:
    """Return what Fabric wrapped, or *optimizer* itself."""
    return getattr(optimizer, "optimizer", optimizer)


def scale_rates(scheduler: Any, factor: float) -> None:
    """Multiply the rates that *scheduler* starts from, and those inside of it."""
    for name in ("base_lrs", "max_lrs", "_last_lr"):
        rates = getattr(scheduler, name, None)
        if rates is not None:
            setattr(scheduler, name, [rate * factor for rate in rates])
    for inner in getattr(scheduler, _INNER, ()):
        scale_rates(inner, factor)


def plain_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a scheduler's state without its functions, which it makes itself."""
    return {
        key: [plain_state(each) for each in value] if key == _INNER else value
        for key, value in state.items()
        if not callable(value)
    }


def like_own(scheduler: object, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return *state* with its mappings of the kinds that *scheduler* has, as Counter."""
    own, found = vars(scheduler), dict(state)
    for key, value in state.items():
        if key == _INNER:
            found[key] = [like_own(*pair) for pair in zip(own[key], value, strict=True)]
        elif isinstance(value, dict) and isinstance(own.get(key), dict):
            found[key] = type(own[key])(value)
    return found
