"""Errors and warnings of ``mtf-trainer``.

* MtfTrainerError
  * CheckpointError                 has ``path``
    * CheckpointWriteError          it could not be written; the previous one stands
    * CheckpointDamagedError        it is not what was written, or cannot be read
    * CheckpointMismatchError       it is whole, and belongs to another model or run
    * CheckpointVersionError        a version of this package that we do not know wrote it
  * MetricsFileError                ``metrics.jsonl`` cannot be opened or written
  * LoaderLengthError               a loader gave fewer batches than its ``len`` said
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
    "CheckpointDamagedError",
    "CheckpointError",
    "CheckpointMismatchError",
    "CheckpointVersionError",
    "CheckpointWarning",
    "CheckpointWriteError",
    "IllegalTransitionError",
    "LoaderLengthError",
    "MetricsFileError",
    "MtfTrainerError",
    "NothingToResumeError",
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


class LoaderLengthError(MtfTrainerError):
    """A loader gave fewer batches than its ``len`` said, in a distributed run."""


class NothingToResumeError(MtfTrainerError):
    """The model has been trained, and no checkpoint exists to go back to or on from."""


class IllegalTransitionError(MtfTrainerError):
    """The loop tried to go from one phase to another that may not follow it."""
