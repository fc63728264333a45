"""A training loop on Lightning Fabric that goes on from its last epoch's checkpoint.

It depends on torch and ``lightning.fabric`` alone, and writes nowhere but in the
folder it is given. Importing it, and its config, errors and phases, loads neither:
`GenericTrainer`, `ResumeState` and `RNGState` do, when first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mtf_trainer.config import GenericTrainerConfig
from mtf_trainer.errors import (
    CheckpointDamagedError,
    CheckpointError,
    CheckpointMismatchError,
    CheckpointVersionError,
    CheckpointWarning,
    CheckpointWriteError,
    IllegalTransitionError,
    LoaderLengthError,
    MetricsFileError,
    MtfTrainerError,
    NothingToResumeError,
)
from mtf_trainer.metrics import read_metrics
from mtf_trainer.phases import Phase
from mtf_trainer.result import FitResult, StopReason

if TYPE_CHECKING:
    from mtf_trainer.state import ResumeState, RNGState
    from mtf_trainer.trainer import GenericTrainer

__all__ = [
    "CheckpointDamagedError",
    "CheckpointError",
    "CheckpointMismatchError",
    "CheckpointVersionError",
    "CheckpointWarning",
    "CheckpointWriteError",
    "FitResult",
    "GenericTrainer",
    "GenericTrainerConfig",
    "IllegalTransitionError",
    "LoaderLengthError",
    "MetricsFileError",
    "MtfTrainerError",
    "NothingToResumeError",
    "Phase",
    "RNGState",
    "ResumeState",
    "StopReason",
    "read_metrics",
]

__version__ = "0.1.0"

_LAZY = {
    "GenericTrainer": "mtf_trainer.trainer",
    "RNGState": "mtf_trainer.state",
    "ResumeState": "mtf_trainer.state",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
