from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from mtf_trainer.config import GenericTrainerConfig


def test_defaults_hold_and_nothing_changes_later() -> None:
    """A config needs its folder alone, and is frozen."""
    config = GenericTrainerConfig(run_dir=Path("runs"))

    assert config.keep_last_n_checkpoints == 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("setting", "error", "message"),
    [
        ({"run_dir": "runs"}, TypeError, "run_dir must be a Path, not 'runs'"),
        ({"seed": -1}, ValueError, "seed must be at least 0, not -1"),
        ({"seed": 2**32}, ValueError, "seed must be below 4294967296"),
        ({"seed": True}, TypeError, "seed must be a whole number, not True"),
        ({"log_every_n_steps": 1.5}, TypeError, "must be a whole number, not 1.5"),
        ({"log_every_n_steps": 0}, ValueError, "log_every_n_steps must be at least 1"),
        ({"gradient_accumulation_steps": 0}, ValueError, "must be at least 1, not 0"),
        ({"checkpoint_every_n_epochs": 0}, ValueError, "must be at least 1, not 0"),
        ({"keep_last_n_checkpoints": 0}, ValueError, "must be at least 1, not 0"),
        ({"max_grad_norm": 0}, ValueError, "must be above 0 and finite"),
        ({"max_grad_norm": float("nan")}, ValueError, "must be above 0 and finite"),
        ({"max_grad_norm": "1"}, TypeError, "must be a number or None, not '1'"),
        ({"scheduler_interval": "batch"}, ValueError, "must be 'step' or 'epoch'"),
        ({"show_progress": 1}, TypeError, "show_progress must be a bool, not 1"),
        ({"handle_signals": None}, TypeError, "handle_signals must be a bool"),
    ],
)
def test_bad_values_are_refused(
    setting: dict[str, Any], error: type[Exception], message: str
) -> None:
    """Each value is checked as the config is made; the message names it and its range."""
    settings: dict[str, Any] = {"run_dir": Path("runs")} | setting

    with pytest.raises(error, match=message):
        GenericTrainerConfig(**settings)


def test_no_clipping_is_none() -> None:
    """A norm of None is accepted, and so is a whole number."""
    assert GenericTrainerConfig(run_dir=Path(), max_grad_norm=None).max_grad_norm is None
    assert GenericTrainerConfig(run_dir=Path(), max_grad_norm=2).max_grad_norm == 2
