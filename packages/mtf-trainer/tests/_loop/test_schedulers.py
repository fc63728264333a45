from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mtf_trainer import (
    GenericTrainer,
    SchedulerSpec,
    read_metrics,
)
from mtf_trainer._memory.flat import flatten, unflatten


@pytest.mark.parametrize(
    ("interval", "kind", "told"),
    [
        ("steps", "StepLR", "must be one of 'step', 'epoch', 'metric'"),
        ("metric", "StepLR", "is not one that takes a metric"),
        ("epoch", "ReduceLROnPlateau", "is one that takes a metric"),
    ],
)
def test_a_scheduler_steps_as_its_kind_can(interval: Any, kind: str, told: str) -> None:
    """A slip in the interval, or one that is not for the scheduler, is refused at once."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    options = {"step_size": 1} if kind == "StepLR" else {}
    scheduler = getattr(torch.optim.lr_scheduler, kind)(optimizer, **options)

    with pytest.raises(ValueError, match=told):
        SchedulerSpec(scheduler=scheduler, interval=interval)


MakeTrainer = Callable[..., GenericTrainer]


@pytest.mark.parametrize(
    ("interval", "expected"),
    [("step", [0.5, 0.25, 0.125, 0.0625]), ("epoch", [1.0, 1.0, 0.5, 0.5])],
)
def test_scheduler_steps_per_batch_or_epoch(
    make_trainer: MakeTrainer,
    data: TensorDataset,
    tmp_path: Path,
    interval: str,
    expected: list[float],
) -> None:
    """With two steps an epoch, the rate halves after each step, or after each epoch."""
    trainer = make_trainer(
        optimizer=lambda p: torch.optim.SGD(p, lr=1.0),
        scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 1, gamma=0.5),
        scheduler_interval=interval,
        log_every_n_steps=1,
    )

    trainer.fit(DataLoader(data, batch_size=30), max_epochs=2)

    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["lr"] for row in rows] == expected


PLACE = Path("x.ckpt")


def test_schedulers_inside_of_another_go_on(make_trainer: MakeTrainer) -> None:
    """Saved before the next one begins, as shared memory has it, rates are as they were."""
    schedulers = torch.optim.lr_scheduler

    def schedule(optimizer: Any) -> Any:
        warm_up = schedulers.CyclicLR(optimizer, 0.01, 0.1, 2, cycle_momentum=False)
        steps = schedulers.MultiStepLR(optimizer, [2, 3], gamma=0.5)
        return schedulers.SequentialLR(optimizer, [warm_up, steps], [4])

    def make() -> GenericTrainer:
        return make_trainer(
            model=nn.Linear(2, 2),
            optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
            scheduler=schedule,
        )

    def rates(trainer: GenericTrainer, num: int) -> list[float]:
        found = []
        for _ in range(num):
            trainer.optimizer.step()
            trainer.schedulers[0].scheduler.step()
            found.append(float(trainer.optimizer.param_groups[0]["lr"]))
        return found

    first, second = make(), make()
    before = rates(first, 2)
    skeleton, tensors = flatten(first._objects.state())
    second._objects.load(unflatten(skeleton, tensors), PLACE)

    assert before + rates(second, 6) == rates(make(), 8)


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
