"""Several loaders at once: which gives the next batch, and what it counts for.

`MultiLoader` says what is wanted; it reads nothing itself. Whether the objects in it are
loaders that can be run exactly is checked as a trainer takes it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

__all__ = ["EpochLength", "MultiLoader", "Schedule", "Validation"]

Schedule = Literal["round_robin", "sequential"] | Sequence[str] | Mapping[str, float]
EpochLength = Literal["sum", "longest", "shortest"] | int
Validation = Literal["samples", "loaders", "separate"]


class MultiLoader:
    """Loaders by name, and the order in which they are read.

    The *schedule* says who is next:

    * ``"round_robin"``: each in turn;
    * ``"sequential"``: all batches of the first, then those of the second, and so on;
    * a list of names, as ``["a", "a", "b"]``: again and again in this order;
    * a mapping of weights, as ``{"a": 3, "b": 1}``: drawn for each batch, from seed,
      epoch and the batch's number in the epoch.

    The *epoch_length* says how many batches of a process make an epoch:

    * ``"sum"``: each loader is read once; one that is used up is left out from there on;
    * ``"longest"``: until each was read at least once, in whole rounds (of a schedule in
      turn, of the list); ``"sequential"`` takes as many of each as the longest has, and
      weights as many as they need on average;
    * ``"shortest"``: until one was read once, likewise;
    * a number: so many.

    But for ``"sum"``, a loader that is used up begins again, in an order of its own. It
    is told ``set_epoch(epoch + 1_000_000 * pass)``, pass 0 being its first in the epoch.

    >>> from torch.utils.data import DataLoader
    >>> loaders = {"web": DataLoader(range(6)), "books": DataLoader(range(2))}
    >>> multi = MultiLoader(loaders, schedule=["web", "web", "books"])
    >>> multi.loss_weights
    {'web': 1.0, 'books': 1.0}

    Args:
        loaders: Two names or more; the order counts.
        schedule: See above.
        epoch_length: See above.
        loss_weights: What the loss of a batch is multiplied by, by loader; 1 if not named.
        optimizers: Which optimizer steps, by loader, as its index in the trainer's list;
            None for all of them. A window of accumulated batches steps each that one of
            its batches names, and the schedulers that step with those.
        validation: Whether the metrics of a validation are means over all samples, means
            over the means of loaders, or over all samples and each loader's apart.

    Raises:
        TypeError: If a value is of the wrong type.
        ValueError: If a value is out of its range, or a name is not a loader's.
    """

    def __init__(
        self,
        loaders: Mapping[str, DataLoader[Any]],
        *,
        schedule: Schedule = "round_robin",
        epoch_length: EpochLength = "sum",
        loss_weights: Mapping[str, float] | None = None,
        optimizers: Mapping[str, int] | None = None,
        validation: Validation = "samples",
    ) -> None:
        if not isinstance(cast(object, loaders), Mapping):
            message = f"loaders must be a mapping of names to loaders, not {loaders!r}"
            raise TypeError(message)
        if not loaders:
            message = "loaders must not be empty"
            raise ValueError(message)
        for name in loaders:
            if not isinstance(cast(object, name), str) or not name:
                message = f"the name of a loader must be a string, not {name!r}"
                raise TypeError(message)
        if validation not in get_args(Validation):
            choices = " or ".join(map(repr, get_args(Validation)))
            message = f"validation must be {choices}, not {validation!r}"
            raise ValueError(message)
        self.loaders = dict(loaders)
        self.schedule = _checked_schedule(schedule, loaders)
        self.epoch_length = _checked_length(epoch_length)
        weights = dict(loss_weights or {})
        _check_names("loss_weights", weights, loaders)
        for weight in weights.values():
            _check_number("a loss weight", weight, least=0)
        self.loss_weights = {name: float(weights.get(name, 1.0)) for name in loaders}
        self.optimizers = None if optimizers is None else dict(optimizers)
        if self.optimizers is not None:
            _check_names("optimizers", self.optimizers, loaders, all_of_them=True)
            for index in self.optimizers.values():
                _check_count("the index of an optimizer", index, least=0)
        self.validation = validation


def _checked_schedule(
    schedule: Schedule, loaders: Mapping[str, Any]
) -> str | list[str] | dict[str, float]:
    if isinstance(schedule, str):
        if schedule not in ("round_robin", "sequential"):
            message = (
                f"schedule must be 'round_robin', 'sequential', a list of names or a "
                f"mapping of weights, not {schedule!r}"
            )
            raise ValueError(message)
        return schedule
    if isinstance(schedule, Mapping):
        weights = dict(schedule)
        for weight in weights.values():
            _check_number("a weight of the schedule", weight, least=0)
            if weight == 0:
                message = "a weight of the schedule must be above 0: leave the loader out"
                raise ValueError(message)
        _check_names("schedule", weights, loaders, all_of_them=True)
        return weights
    if not isinstance(cast(object, schedule), Sequence):
        message = f"schedule must be a name, a list or a mapping, not {schedule!r}"
        raise TypeError(message)
    _check_names("schedule", schedule, loaders, all_of_them=True)
    return list(schedule)


def _checked_length(epoch_length: EpochLength) -> EpochLength:
    if isinstance(epoch_length, str):
        if epoch_length not in ("sum", "longest", "shortest"):
            message = (
                f"epoch_length must be 'sum', 'longest', 'shortest' or a number, not "
                f"{epoch_length!r}"
            )
            raise ValueError(message)
        return epoch_length
    _check_count("epoch_length", epoch_length, least=1)
    return epoch_length


def _check_names(
    what: str,
    names: Iterable[str],
    loaders: Mapping[str, Any],
    *,
    all_of_them: bool = False,
) -> None:
    given = list(names)
    for name in given:
        if name not in loaders:
            message = f"{what} names {name!r}; the loaders are {', '.join(loaders)}"
            raise ValueError(message)
    missing = [name for name in loaders if name not in given]
    if all_of_them and missing:
        message = f"{what} must name every loader; it leaves out {', '.join(missing)}"
        raise ValueError(message)


def _check_number(what: str, value: object, *, least: float) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        message = f"{what} must be a number, not {value!r}"
        raise TypeError(message)
    if not (math.isfinite(value) and value >= least):
        message = f"{what} must be at least {least} and finite, not {value}"
        raise ValueError(message)


def _check_count(what: str, value: object, *, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        message = f"{what} must be a whole number, not {value!r}"
        raise TypeError(message)
    if value < least:
        message = f"{what} must be at least {least}, not {value}"
        raise ValueError(message)
