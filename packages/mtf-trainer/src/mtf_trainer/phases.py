"""The phases of a training run, and which may follow which.

The loop enters each phase at one place, and looks the step up here; between two phases
lies a safe point, where the run can be saved exactly. One edge is passed on: a graph of
autograd cannot be saved, so a run that is asked to stop between TRAIN_BATCH_FORWARD and
TRAIN_BATCH_BACKWARD does so behind the latter. This module knows nothing of models, data
or files.

With validation and gradient accumulation, one epoch reads::

    TRAIN_START_EPOCH
      TRAIN_BATCH_LOAD, _FORWARD, _BACKWARD [, _OPTIM_STEP [, SCHEDULER_BATCH_STEP]],
      TRAIN_BATCH_END                                               for every batch
    [SCHEDULER_EPOCH_STEP]
    [VAL_START_EPOCH
      VAL_BATCH_LOAD, _FORWARD, _END                                for every batch]
    EPOCH_END
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from mtf_trainer.errors import IllegalTransitionError

__all__ = ["TRANSITIONS", "Phase", "check_transition"]


class Phase(StrEnum):
    """What the loop is about to do; its value is its name."""

    INIT = "INIT"
    TRAIN_START_EPOCH = "TRAIN_START_EPOCH"
    TRAIN_BATCH_LOAD = "TRAIN_BATCH_LOAD"
    TRAIN_BATCH_FORWARD = "TRAIN_BATCH_FORWARD"
    TRAIN_BATCH_BACKWARD = "TRAIN_BATCH_BACKWARD"
    TRAIN_BATCH_OPTIM_STEP = "TRAIN_BATCH_OPTIM_STEP"
    SCHEDULER_BATCH_STEP = "SCHEDULER_BATCH_STEP"
    TRAIN_BATCH_END = "TRAIN_BATCH_END"
    SCHEDULER_EPOCH_STEP = "SCHEDULER_EPOCH_STEP"
    VAL_START_EPOCH = "VAL_START_EPOCH"
    VAL_BATCH_LOAD = "VAL_BATCH_LOAD"
    VAL_BATCH_FORWARD = "VAL_BATCH_FORWARD"
    VAL_BATCH_END = "VAL_BATCH_END"
    EPOCH_END = "EPOCH_END"
    TRAINING_COMPLETE = "TRAINING_COMPLETE"


_AFTER_TRAINING = {Phase.SCHEDULER_EPOCH_STEP, Phase.VAL_START_EPOCH, Phase.EPOCH_END}

TRANSITIONS: Mapping[Phase, frozenset[Phase]] = MappingProxyType(
    {
        Phase.INIT: frozenset({Phase.TRAIN_START_EPOCH, Phase.TRAINING_COMPLETE}),
        Phase.TRAIN_START_EPOCH: frozenset({Phase.TRAIN_BATCH_LOAD}),
        Phase.TRAIN_BATCH_LOAD: frozenset({Phase.TRAIN_BATCH_FORWARD}),
        Phase.TRAIN_BATCH_FORWARD: frozenset({Phase.TRAIN_BATCH_BACKWARD}),
        Phase.TRAIN_BATCH_BACKWARD: frozenset(
            {Phase.TRAIN_BATCH_OPTIM_STEP, Phase.TRAIN_BATCH_END}
        ),
        Phase.TRAIN_BATCH_OPTIM_STEP: frozenset(
            {Phase.SCHEDULER_BATCH_STEP, Phase.TRAIN_BATCH_END}
        ),
        Phase.SCHEDULER_BATCH_STEP: frozenset({Phase.TRAIN_BATCH_END}),
        Phase.TRAIN_BATCH_END: frozenset({Phase.TRAIN_BATCH_LOAD, *_AFTER_TRAINING}),
        Phase.SCHEDULER_EPOCH_STEP: frozenset({Phase.VAL_START_EPOCH, Phase.EPOCH_END}),
        Phase.VAL_START_EPOCH: frozenset({Phase.VAL_BATCH_LOAD}),
        Phase.VAL_BATCH_LOAD: frozenset({Phase.VAL_BATCH_FORWARD}),
        Phase.VAL_BATCH_FORWARD: frozenset({Phase.VAL_BATCH_END}),
        Phase.VAL_BATCH_END: frozenset({Phase.VAL_BATCH_LOAD, Phase.EPOCH_END}),
        Phase.EPOCH_END: frozenset({Phase.TRAIN_START_EPOCH, Phase.TRAINING_COMPLETE}),
        Phase.TRAINING_COMPLETE: frozenset(),
    }
)


def check_transition(current: Phase, following: Phase) -> None:
    """Accept the step from *current* to *following*, or raise.

    >>> check_transition(Phase.EPOCH_END, Phase.TRAIN_START_EPOCH)
    >>> check_transition(Phase.INIT, Phase.TRAIN_BATCH_BACKWARD)
    Traceback (most recent call last):
    mtf_trainer.errors.IllegalTransitionError: TRAIN_BATCH_BACKWARD may not follow INIT; \
TRAINING_COMPLETE, TRAIN_START_EPOCH may

    Raises:
        IllegalTransitionError: If the table does not list the step.
    """
    legal = TRANSITIONS[current]
    if following not in legal:
        may = ", ".join(sorted(legal)) or "nothing"
        message = f"{following} may not follow {current}; {may} may"
        raise IllegalTransitionError(message)
