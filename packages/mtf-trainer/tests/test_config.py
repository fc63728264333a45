from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from mtf_trainer.config import (
    CheckpointSettings,
    GenericTrainerConfig,
    GuardSettings,
    Limits,
    SnapshotSettings,
)


def test_defaults_hold_and_nothing_changes_later() -> None:
    """A config needs its folder alone, and is frozen."""
    config = GenericTrainerConfig(run_dir=Path("runs"))

    assert config.checkpoint.keep_last_n == 3
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
        ({"max_grad_norm": 0}, ValueError, "must be above 0 and finite"),
        ({"max_grad_norm": float("nan")}, ValueError, "must be above 0 and finite"),
        ({"max_grad_norm": "1"}, TypeError, "max_grad_norm must be a number, not '1'"),
        ({"scheduler_interval": "batch"}, ValueError, "must be 'step' or 'epoch'"),
        ({"show_progress": 1}, TypeError, "show_progress must be a bool, not 1"),
        ({"handle_signals": None}, TypeError, "handle_signals must be a bool"),
        ({"compile": 1}, TypeError, "compile must be a bool"),
        ({"ema_decay": 1.0}, ValueError, "ema_decay must be at least 0 and below 1"),
        ({"label_smoothing": -0.1}, ValueError, "label_smoothing must be at least 0"),
        ({"comm_hook": "fp8"}, ValueError, "comm_hook must be 'none' or 'fp16' or"),
        ({"powersgd_rank": 0}, ValueError, "powersgd_rank must be at least 1"),
        ({"checkpoint": 3}, TypeError, "checkpoint must be a CheckpointSettings"),
        ({"limits": None}, TypeError, "limits must be a Limits"),
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


@pytest.mark.parametrize(
    ("kind", "setting", "error", "message"),
    [
        (CheckpointSettings, {"every_n_epochs": 0}, ValueError, "at least 1, not 0"),
        (CheckpointSettings, {"every_n_minutes": 0}, ValueError, "must be above 0"),
        (CheckpointSettings, {"keep_last_n": 0}, ValueError, "must be at least 1"),
        (CheckpointSettings, {"keep_best_k": -1}, ValueError, "must be at least 0"),
        (CheckpointSettings, {"monitor": ""}, ValueError, "monitor must not be empty"),
        (CheckpointSettings, {"mode": "best"}, ValueError, "must be 'min' or 'max'"),
        (CheckpointSettings, {"asynchronous": 1}, TypeError, "must be a bool"),
        (CheckpointSettings, {"on_write_error": "skip"}, ValueError, "'continue'"),
        (CheckpointSettings, {"backup_url": 3}, TypeError, "must be a str, not 3"),
        (CheckpointSettings, {"encryption_key_file": "k"}, TypeError, "must be a Path"),
        (
            CheckpointSettings,
            {"encryption_key_file": Path("k"), "encryption_key_env": "K"},
            ValueError,
            "both given: which one",
        ),
        (SnapshotSettings, {"max_overhead": 1}, ValueError, "must be below 1, not 1"),
        (SnapshotSettings, {"max_overhead": 0}, ValueError, "must be above 0"),
        (SnapshotSettings, {"every_n_steps": 0}, ValueError, "must be at least 1"),
        (SnapshotSettings, {"folder": "shm"}, TypeError, "must be a Path"),
        (GuardSettings, {"step_deadline_s": -1}, ValueError, "must be above 0"),
        (GuardSettings, {"on_nonfinite": "warn"}, ValueError, "on_nonfinite must be"),
        (GuardSettings, {"on_explosion": "skip"}, ValueError, "on_explosion must be"),
        (GuardSettings, {"on_memory_growth": "rollback"}, ValueError, "'ignore' or 's"),
        (GuardSettings, {"explosion_factor": 1.0}, ValueError, "must be above 1, not 1"),
        (GuardSettings, {"rollback_lr_factor": 2.0}, ValueError, "at most 1, not 2"),
        (GuardSettings, {"max_rollbacks": -1}, ValueError, "must be at least 0"),
        (Limits, {"max_time_s": 0}, ValueError, "must be above 0"),
        (Limits, {"grace_s": -1}, ValueError, "must be above 0"),
        (Limits, {"max_memory_bytes": "1G"}, TypeError, "must be a number"),
    ],
)
def test_bad_values_of_parts_are_refused(
    kind: type[Any], setting: dict[str, Any], error: type[Exception], message: str
) -> None:
    """What a part of the config holds is checked as the part is made."""
    with pytest.raises(error, match=message):
        kind(**setting)


def test_no_grace_is_zero() -> None:
    """Nothing may be kept free before the end of a job."""
    assert Limits(grace_s=0).grace_s == 0
