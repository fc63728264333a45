"""Trainings of other kinds than that of `exact_runs`, to be stopped at every edge.

As a script, ``python varied_runs.py FOLDER ACCUMULATION`` stops `several` on two processes
at every 17th edge, and writes what came out to ``FOLDER/rank<N>.json``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from mtf_trainer import (
    CheckpointSettings,
    FitResult,
    GenericTrainer,
    GenericTrainerConfig,
    GuardSettings,
    MultiLoader,
    SchedulerSpec,
    SnapshotSettings,
)
from mtf_trainer.testing import run_whole, run_with_stops

Make = Callable[[Path], tuple[GenericTrainer, Callable[[], FitResult]]]


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """Numbers in a row with noise, and where it is in them."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._next = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while self._next < self._length:
            self._next += 1
            x_D = torch.full((4,), self._next / self._length) + 0.1 * torch.randn(4)
            yield x_D, torch.tensor(self._next % 2)
        self._next = 0

    def __len__(self) -> int:
        return self._length

    def state_dict(self) -> dict[str, int]:
        """Return the place."""
        return {"next": self._next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go there."""
        self._next = state["next"]


def samples(count: int) -> TensorDataset:
    """Return as many samples, the same each time."""
    generator = torch.Generator().manual_seed(count)
    return TensorDataset(
        torch.randn(count, 4, generator=generator), torch.arange(count) % 2
    )


def several(fabric: Fabric, *, accumulation: int, **settings: Any) -> Make:
    """Return a maker of trainers with two optimizers, a plateau and three loaders.

    One of them is a stream; one has an optimizer and a weight of its own.
    """

    def step(trainer: GenericTrainer, batch: Any, _: int) -> Tensor:
        x_BD, y_B = batch
        return nn.functional.cross_entropy(trainer.model(x_BD), y_B)

    def make(run_dir: Path) -> tuple[GenericTrainer, Callable[[], FitResult]]:
        torch.manual_seed(5)
        body, head = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.2)), nn.Linear(6, 2)
        optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(body.parameters(), lr=0.05),
            torch.optim.SGD(head.parameters(), lr=0.5, momentum=0.9),
        ]
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizers[0], patience=0)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizers[1], T_max=9)
        defaults: dict[str, Any] = {
            "run_dir": run_dir,
            "seed": 7,
            "gradient_accumulation_steps": accumulation,
            "log_every_n_steps": 3,
            "checkpoint": CheckpointSettings(asynchronous=False),
            "snapshot": SnapshotSettings(enabled=False),
            "show_progress": False,
        }
        trainer = GenericTrainer(
            GenericTrainerConfig(**defaults | settings),
            fabric,
            nn.Sequential(body, head),
            optimizers,
            [plateau, SchedulerSpec(scheduler=cosine, interval="step")],
            training_step=step,
        )
        loaders = {
            "a": DataLoader(samples(10), batch_size=4, shuffle=True),
            "b": DataLoader(samples(7), batch_size=2, shuffle=True),
            "stream": DataLoader(Stream(9), batch_size=3),
        }
        train = MultiLoader(
            loaders,
            schedule={"a": 2.0, "b": 1.0, "stream": 1.0},
            loss_weights={"b": 0.5},
            optimizers={"a": 0, "b": 1, "stream": 0},
        )
        val = MultiLoader(
            {"a": DataLoader(samples(5), batch_size=2), "b": DataLoader(samples(3))}
        )
        return trainer, lambda: trainer.fit(train, val, max_epochs=2)

    return make


class Drifts(nn.Module):
    """Adds a number of its own that each training pass changes and no state dict shows."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("drift", torch.zeros(4), persistent=False)

    def forward(self, x_BD: Tensor) -> Tensor:
        """Add it."""
        if self.training:
            self.drift: Tensor = self.drift + 0.01 * x_BD.mean(0)
        return x_BD + self.drift


class Thaws:
    """A callback that trains the last layer alone until the fifth step."""

    def on_train_batch_load(self, trainer: GenericTrainer) -> None:
        """Freeze or thaw."""
        if trainer.global_step in (0, 5):
            for parameter in list(trainer.model.parameters())[:-2]:
                parameter.requires_grad_(trainer.global_step == 5)


class Poisons:
    """A callback that makes the gradient of one step something that is not finite."""

    def on_train_batch_optim_step(self, trainer: GenericTrainer) -> None:
        """Do so in the third step."""
        if trainer.global_step == 2:
            gradient = list(trainer.model.parameters())[-1].grad
            if gradient is not None:
                gradient.fill_(torch.nan)


def thawing(fabric: Fabric, **settings: Any) -> Make:
    """Return a maker of trainers with a hidden buffer, and layers that are frozen first.

    One step is to be skipped.
    """

    def step(trainer: GenericTrainer, batch: Any, _: int) -> Tensor:
        x_BD, y_B = batch
        return nn.functional.cross_entropy(trainer.model(x_BD), y_B)

    def make(run_dir: Path) -> tuple[GenericTrainer, Callable[[], FitResult]]:
        torch.manual_seed(5)
        model = nn.Sequential(Drifts(), nn.Linear(4, 6), nn.Linear(6, 2))
        config = GenericTrainerConfig(
            run_dir=run_dir,
            log_every_n_steps=2,
            guard=GuardSettings(on_nonfinite="skip"),
            checkpoint=CheckpointSettings(asynchronous=False),
            snapshot=SnapshotSettings(enabled=False),
            show_progress=False,
            **settings,
        )
        trainer = GenericTrainer(
            config,
            fabric,
            model,
            torch.optim.AdamW(model.parameters(), lr=0.05),
            training_step=step,
            callbacks=[Thaws(), Poisons()],
        )
        train = DataLoader(samples(14), batch_size=4, shuffle=True)
        return trainer, lambda: trainer.fit(train, max_epochs=2)

    return make


def mixed(fabric: Fabric, **settings: Any) -> Make:
    """Return a maker of trainers with two optimizers, for precisions that scale."""

    def step(trainer: GenericTrainer, batch: Any, _: int) -> Tensor:
        x_BD, y_B = batch
        return nn.functional.cross_entropy(trainer.model(x_BD), y_B)

    def make(run_dir: Path) -> tuple[GenericTrainer, Callable[[], FitResult]]:
        torch.manual_seed(5)
        body, head = nn.Linear(4, 6), nn.Linear(6, 2)
        defaults: dict[str, Any] = {
            "run_dir": run_dir,
            "gradient_accumulation_steps": 2,
            "log_every_n_steps": 3,
            "checkpoint": CheckpointSettings(asynchronous=False),
            "snapshot": SnapshotSettings(enabled=False),
            "show_progress": False,
        }
        trainer = GenericTrainer(
            GenericTrainerConfig(**defaults | settings),
            fabric,
            nn.Sequential(body, nn.Dropout(0.2), head),
            [
                torch.optim.AdamW(body.parameters(), lr=0.05),
                torch.optim.SGD(head.parameters(), lr=0.5, momentum=0.9),
            ],
            training_step=step,
        )
        train = DataLoader(samples(22), batch_size=2, shuffle=True)
        return trainer, lambda: trainer.fit(train, max_epochs=2)

    return make


def main(folder: Path, accumulation: int) -> None:
    """Compare the weights of two processes, and each with itself when stopped."""
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    trainers: list[GenericTrainer] = []
    inner = several(fabric, accumulation=accumulation)

    def make(run_dir: Path) -> tuple[GenericTrainer, Callable[[], FitResult]]:
        trainer, fit = inner(run_dir)
        trainers.append(trainer)
        return trainer, fit

    whole = run_whole(make, folder / "whole")
    weights = torch.cat([p.detach().flatten() for p in trainers[-1].model.parameters()])
    wrong, tried = [], 0
    for index in range(0, len(whole.edges), 17):
        outcome = run_with_stops(make, folder / str(index), [whole.edges[index]])
        fabric.barrier()
        tried += 1
        if outcome != whole.outcome:
            wrong.append(str(whole.edges[index]))
    told = {"weights": weights.tolist(), "wrong": wrong, "tried": tried}
    path = folder / f"rank{fabric.global_rank}.json"
    path.write_text(json.dumps(told), "utf-8")
    fabric.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
