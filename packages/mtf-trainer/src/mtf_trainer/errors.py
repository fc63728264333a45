"""Errors and warnings of ``mtf-trainer``.

* MtfTrainerError
  * CheckpointError                 has ``path``
    * CheckpointWriteError          it could not be written; the previous one stands
    * CheckpointDamagedError        it is not what was written, or cannot be read
    * CheckpointMismatchError       it is whole, and belongs to another model or run
    * CheckpointVersionError        a version of this package that we do not know wrote it
  * MetricsFileError                ``metrics.jsonl`` cannot be opened or written
  * DataError                       a loader cannot be run exactly, or ended too early
  * SnapshotError                   shared memory cannot be used, or holds another's data
  * EncryptionError                 a key is missing, malformed, or the wrong one
  * BackupError                     a copy could not be made or read at its address
  * CallbackError                   has ``callback`` and ``phase``; its cause is the error
  * RankError                       has ``rank``; what another process failed with
  * RegistryError                   no such component, or one that cannot be made; an unlisted module
  * DivergenceError                 has ``step``; the loss or the gradients went wrong
  * VerificationError               a chain of checkpoints is not whole
  * NothingToResumeError            this trainer has trained, and no checkpoint is left
  * IllegalTransitionError          the loop took a step its table of phases forbids

* CheckpointWarning (a UserWarning) a damaged checkpoint was passed over, a run goes on
  with another number of processes

A bad argument is a plain `ValueError` or `TypeError`: the caller's bug. What a step
function raises reaches the caller of ``fit`` as it is.
"""

from __future__ import annotations

from pathlib import Path

__all__ = [
    "BackupError",
    "CallbackError",
    "CheckpointDamagedError",
    "CheckpointError",
    "CheckpointMismatchError",
    "CheckpointVersionError",
    "CheckpointWarning",
    "CheckpointWriteError",
    "DataError",
    "DivergenceError",
    "EncryptionError",
    "IllegalTransitionError",
    "MetricsFileError",
    "MtfTrainerError",
    "NothingToResumeError",
    "RankError",
    "RegistryError",
    "SnapshotError",
    "VerificationError",
]


class CheckpointWarning(UserWarning):
    """A run goes on, though not quite as its newest checkpoint says it should."""


class MtfTrainerError(Exception):
    """Base of every error this package raises on purpose."""


class CheckpointError(MtfTrainerError):
    """Something is wrong with the checkpoint at *path*."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.problem = problem

    def __reduce__(self) -> tuple[type[CheckpointError], tuple[Path, str]]:
        return type(self), (self.path, self.problem)


class CheckpointWriteError(CheckpointError):
    """A checkpoint could not be written; those written before it are untouched."""


class CheckpointDamagedError(CheckpointError):
    """A checkpoint is not what was written: cut short, altered, or not a file."""


class CheckpointMismatchError(CheckpointError):
    """A checkpoint is whole, and does not fit this model; *key* names where.

    Args:
        path: The checkpoint.
        key: Path of the entry inside it, as ``model.0.weight``.
        problem: What was found there, and what was needed.
    """

    def __init__(self, path: Path, key: str, problem: str) -> None:
        super().__init__(path, f"{key}: {problem}")
        self.key = key
        self._told = problem

    def __reduce__(self) -> tuple[type[CheckpointError], tuple[Path, str]]:
        return type(self), (self.path, self.key, self._told)  # type: ignore[return-value]


class CheckpointVersionError(CheckpointError):
    """A checkpoint has a version that this package does not know."""


class MetricsFileError(MtfTrainerError):
    """The file of metrics at *path* cannot be opened or written, or is damaged."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.problem = problem

    def __reduce__(self) -> tuple[type[MetricsFileError], tuple[Path, str]]:
        return type(self), (self.path, self.problem)


class DataError(MtfTrainerError):
    """A loader cannot be run exactly as it is, or ended before it should."""


class SnapshotError(MtfTrainerError):
    """Shared memory cannot be used, or what lies there is damaged or another's."""


class EncryptionError(MtfTrainerError):
    """A key is missing or malformed, or is not the one that encrypted."""


class BackupError(MtfTrainerError):
    """A checkpoint could not be copied to, or read from, its back-up address."""


class CallbackError(MtfTrainerError):
    """A callback or tracker raised; the error is ``__cause__``.

    Args:
        callback: Its class.
        phase: The phase in which it was called.
        problem: What it raised.
    """

    def __init__(self, callback: str, phase: str, problem: str) -> None:
        super().__init__(f"callback {callback} failed in {phase}: {problem}")
        self.callback = callback
        self.phase = phase
        self.problem = problem

    def __reduce__(self) -> tuple[type[CallbackError], tuple[str, str, str]]:
        return type(self), (self.callback, self.phase, self.problem)


class RankError(MtfTrainerError):
    """Process *rank* failed, so this one stops too.

    Args:
        rank: The process that failed first.
        told: Its traceback.
    """

    def __init__(self, rank: int, told: str) -> None:
        super().__init__(f"process {rank} failed:\n{told}")
        self.rank = rank
        self.told = told

    def __reduce__(self) -> tuple[type[RankError], tuple[int, str]]:
        return type(self), (self.rank, self.told)


class RegistryError(MtfTrainerError):
    """A component's name is unknown, its module is not listed, or it cannot be made."""


class DivergenceError(MtfTrainerError):
    """Training went wrong at optimizer step *step*: see *problem*."""

    def __init__(self, step: int, problem: str) -> None:
        super().__init__(f"step {step}: {problem}")
        self.step = step
        self.problem = problem

    def __reduce__(self) -> tuple[type[DivergenceError], tuple[int, str]]:
        return type(self), (self.step, self.problem)


class VerificationError(MtfTrainerError):
    """A checkpoint is not what its certificate says, or the chain has a gap."""


class NothingToResumeError(MtfTrainerError):
    """The model has been trained, and no checkpoint exists to go back to or on from."""


class IllegalTransitionError(MtfTrainerError):
    """The loop tried to go from one phase to another that may not follow it."""
