"""A training loop on Lightning Fabric that can be stopped anywhere and goes on exactly.

It depends on torch and ``lightning.fabric`` alone, and writes nowhere but in the
folder it is given and in shared memory. Importing it, and its config, errors and phases,
loads neither: what needs them is loaded when first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mtf_trainer.config import (
    CheckpointSettings,
    GenericTrainerConfig,
    GuardSettings,
    Limits,
    SnapshotSettings,
)
from mtf_trainer.errors import (
    BackupError,
    CallbackError,
    CheckpointDamagedError,
    CheckpointError,
    CheckpointMismatchError,
    CheckpointVersionError,
    CheckpointWarning,
    CheckpointWriteError,
    DataError,
    DivergenceError,
    EncryptionError,
    IllegalTransitionError,
    MetricsFileError,
    MtfTrainerError,
    NothingToResumeError,
    RankError,
    RegistryError,
    SnapshotError,
    VerificationError,
)
from mtf_trainer.metrics import read_metrics
from mtf_trainer.phases import Phase
from mtf_trainer.result import EXIT_RESUME, FitResult, StopReason

if TYPE_CHECKING:
    from mtf_trainer.callbacks import EarlyStopping
    from mtf_trainer.checkpoint import CheckpointManager, load_weights
    from mtf_trainer.multi_loader import MultiLoader
    from mtf_trainer.registry import register
    from mtf_trainer.state import ResumeState, RNGState, TrainMicroState, ValMicroState
    from mtf_trainer.trainer import GenericTrainer, SchedulerSpec

__all__ = [
    "EXIT_RESUME",
    "BackupError",
    "CallbackError",
    "CheckpointDamagedError",
    "CheckpointError",
    "CheckpointManager",
    "CheckpointMismatchError",
    "CheckpointSettings",
    "CheckpointVersionError",
    "CheckpointWarning",
    "CheckpointWriteError",
    "DataError",
    "DivergenceError",
    "EarlyStopping",
    "EncryptionError",
    "FitResult",
    "GenericTrainer",
    "GenericTrainerConfig",
    "GuardSettings",
    "IllegalTransitionError",
    "Limits",
    "MetricsFileError",
    "MtfTrainerError",
    "MultiLoader",
    "NothingToResumeError",
    "Phase",
    "RNGState",
    "RankError",
    "RegistryError",
    "ResumeState",
    "SchedulerSpec",
    "SnapshotError",
    "SnapshotSettings",
    "StopReason",
    "TrainMicroState",
    "ValMicroState",
    "VerificationError",
    "load_weights",
    "read_metrics",
    "register",
]

__version__ = "0.2.0"

_LAZY = {
    "CheckpointManager": "mtf_trainer.checkpoint",
    "EarlyStopping": "mtf_trainer.callbacks",
    "GenericTrainer": "mtf_trainer.trainer",
    "MultiLoader": "mtf_trainer.multi_loader",
    "RNGState": "mtf_trainer.state",
    "ResumeState": "mtf_trainer.state",
    "SchedulerSpec": "mtf_trainer.trainer",
    "TrainMicroState": "mtf_trainer.state",
    "ValMicroState": "mtf_trainer.state",
    "load_weights": "mtf_trainer.checkpoint",
    "register": "mtf_trainer.registry",
}


if not TYPE_CHECKING:  # else a misspelt name would pass

    def __getattr__(name: str) -> Any:
        if name not in _LAZY:
            message = f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(message)
        value = getattr(import_module(_LAZY[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
