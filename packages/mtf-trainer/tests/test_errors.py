from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from mtf_trainer import errors
from mtf_trainer.errors import (
    CheckpointDamagedError,
    CheckpointError,
    CheckpointMismatchError,
    MetricsFileError,
    MtfTrainerError,
)


@pytest.mark.parametrize(
    "error",
    [
        CheckpointDamagedError(Path("a.ckpt"), "is empty"),
        CheckpointMismatchError(Path("a.ckpt"), "model.w", "is missing"),
        MetricsFileError(Path("m.jsonl"), "cannot be opened"),
    ],
)
def test_errors_travel_between_processes(error: MtfTrainerError) -> None:
    """An error sent to another process arrives with its type, text and data."""
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes

    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert copy.__dict__ == error.__dict__


def test_mismatch_names_file_and_key() -> None:
    """The message of a mismatch holds the file, the key and the problem."""
    error = CheckpointMismatchError(Path("run/a.ckpt"), "model.w", "is missing")

    assert str(error) == "run/a.ckpt: model.w: is missing"
    assert error.key == "model.w"


def test_every_error_is_in_the_tree() -> None:
    """Each public error descends from the base, and is named in the drawn tree."""
    for name in errors.__all__:
        kind = getattr(errors, name)
        assert issubclass(kind, MtfTrainerError | UserWarning)
        assert name in (errors.__doc__ or "")
    assert issubclass(CheckpointMismatchError, CheckpointError)
