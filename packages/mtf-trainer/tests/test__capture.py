from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from mtf_trainer import (
    CheckpointDamagedError,
    CheckpointMismatchError,
    CheckpointVersionError,
    GenericTrainer,
)
from mtf_trainer._capture import read_resume

MakeTrainer = Callable[..., GenericTrainer]
PLACE = Path("x.ckpt")


@pytest.fixture
def content(make_trainer: MakeTrainer, loader: DataLoader[Any]) -> dict[str, Any]:
    """Return what a run of one epoch saved."""
    path = make_trainer().fit(loader).checkpoint
    loaded: dict[str, Any] = torch.load(path, weights_only=True)  # type: ignore[arg-type]
    return loaded


def test_content_that_is_none_of_ours_is_refused(content: dict[str, Any]) -> None:
    """No resume state, another version, a damaged one or a missing entry: each is told."""
    assert read_resume(PLACE, content).epoch == 1

    with pytest.raises(CheckpointMismatchError, match="resume: is missing"):
        read_resume(PLACE, {"model": {}})
    with pytest.raises(CheckpointVersionError, match="has version 1 "):
        read_resume(PLACE, {**content, "resume": {"version": 1}})
    damaged = {**content["resume"], "phase": "NOWHERE"}
    with pytest.raises(CheckpointDamagedError, match="NOWHERE"):
        read_resume(PLACE, {**content, "resume": damaged})
    del content["best"]
    with pytest.raises(CheckpointMismatchError, match="best: is missing"):
        read_resume(PLACE, content)


def test_state_of_other_objects_is_refused(
    make_trainer: MakeTrainer, content: dict[str, Any]
) -> None:
    """What does not fit is named, before anything is changed."""
    objects = make_trainer()._objects
    one = content["optimizers"][0]
    other = {**one, "type": "SGD"}
    group = {**one["state"]["param_groups"][0], "params": [0]}
    short = {**one, "state": {**one["state"], "param_groups": [group]}}
    none = {**one, "state": {**one["state"], "param_groups": []}}
    extra = {**content["model"], "new": torch.ones(1)}
    changes: list[tuple[dict[str, Any], str]] = [
        ({"optimizers": [one, one]}, "optimizers: the checkpoint has 2, this run 1"),
        ({"optimizers": [other]}, r"optimizers\.0: the checkpoint has SGD"),
        ({"optimizers": [none]}, r"optimizers\.0\.param_groups: the checkpoint has 0"),
        ({"optimizers": [short]}, r"param_groups\.0: the checkpoint has 1 parameters"),
        ({"schedulers": [one]}, "schedulers: the checkpoint has 1, this run 0"),
        ({"model": extra}, r"model\.new: is not in the model"),
        ({"ema": {}}, "ema: the checkpoint has an average"),
        ({"modes": [True]}, "modes: the checkpoint has 1"),
        ({"callbacks": [{"type": "X", "state": None}]}, "callbacks.0"),
    ]
    for change, message in changes:
        with pytest.raises(CheckpointMismatchError, match=message):
            objects.check(PLACE, {**content, **change})
    objects.check(PLACE, content)


@pytest.mark.parametrize("kind", ["OneCycleLR", "SequentialLR", "CyclicLR"])
def test_lower_rates_outlive_schedulers(make_trainer: MakeTrainer, kind: str) -> None:
    """Halved, the rates stay half of what they would have been, whatever the schedule."""
    schedulers = torch.optim.lr_scheduler

    def schedule(optimizer: Any) -> Any:
        if kind == "OneCycleLR":
            return schedulers.OneCycleLR(optimizer, 0.1, total_steps=20)
        if kind == "CyclicLR":
            return schedulers.CyclicLR(optimizer, 0.01, 0.1, 5, cycle_momentum=False)
        parts: list[Any] = [
            schedulers.ConstantLR(optimizer, 0.5, 3),
            schedulers.CosineAnnealingLR(optimizer, 10),
        ]
        return schedulers.SequentialLR(optimizer, parts, [3])

    def rates(*, halved: bool) -> list[float]:
        trainer = make_trainer(
            model=nn.Linear(2, 2),
            optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
            scheduler=schedule,
        )
        found = []
        for step in range(8):
            if halved and step == 2:
                trainer._objects.scale_learning_rates(0.5)
            trainer.optimizer.step()
            trainer.schedulers[0].scheduler.step()
            found.append(float(trainer.optimizer.param_groups[0]["lr"]))
        return found

    whole, half = rates(halved=False), rates(halved=True)
    assert half[:2] == whole[:2]
    assert half[2:] == pytest.approx([rate / 2 for rate in whole[2:]])
