"""A small training with everything in it that could go astray; run by two ranks as well.

As a script, ``python exact_runs.py kill RUN_DIR STEP`` trains and is killed in that step;
``python exact_runs.py FOLDER ACCUMULATION WORKERS STRIDE [PROCESSES]`` stops it, on two
processes or as many, at every STRIDE-th edge, and writes what came out to
``FOLDER/rank<N>.json``.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mtf_trainer import (
    CheckpointSettings,
    FitResult,
    GenericTrainer,
    GenericTrainerConfig,
    SnapshotSettings,
)
from mtf_trainer.testing import run_whole, run_with_stops

NUM_SAMPLES = 22
BATCH_SIZE = 4


class Noisy(Dataset[tuple[Tensor, Tensor, int]]):
    """Sample *i* with noise from three streams, its class and its number."""

    def __len__(self) -> int:
        return NUM_SAMPLES

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, int]:
        x_D = torch.full((4,), float(i)) / NUM_SAMPLES
        noise = random.random() + np.random.rand()  # noqa: NPY002, S311 - the old stream
        return x_D + 0.1 * torch.randn(4) + 0.1 * noise, torch.tensor(i % 2), i


def make_model() -> nn.Sequential:
    """Return the same model each time, with dropout and running statistics."""
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 2)
    )


class Counts:
    """A callback with a state: how often each phase was entered."""

    def __init__(self) -> None:
        self.entered = 0

    def on_train_batch_forward(self, trainer: GenericTrainer) -> None:  # noqa: ARG002 - the hook's form
        """Count."""
        self.entered += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the count."""
        return {"entered": self.entered}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it over."""
        self.entered = state["entered"]


def maker(  # noqa: PLR0913 - each is a way to vary it
    fabric: Fabric,
    seen: list[list[int]],
    *,
    accumulation: int,
    workers: int,
    persistent: bool = False,
    epochs: int = 2,
    several: bool = False,
    **settings: Any,
) -> Callable[[Path], tuple[GenericTrainer, Callable[[], FitResult]]]:
    """Return a function that makes trainers; *seen* gets the samples of each batch.

    With *several* optimizers the last layer has one of its own.
    """

    def step(trainer: GenericTrainer, batch: Any, _: int) -> dict[str, Tensor]:
        x_BD, y_B, numbers_B = batch
        if torch.is_grad_enabled():
            seen.append(numbers_B.tolist())
        z_BC = trainer.model(x_BD)
        noise = random.random() * 1e-3  # noqa: S311 - the training process's own stream
        return {
            "loss": nn.functional.cross_entropy(z_BC, y_B) * (1 + noise),
            "spread": z_BC.std(),
        }

    def make(run_dir: Path) -> tuple[GenericTrainer, Callable[[], FitResult]]:
        model = make_model()
        *others, last = model
        if not several:
            others.append(last)
        parameters = [p for layer in others for p in layer.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=0.01)
        optimizers: list[torch.optim.Optimizer] = [optimizer]
        if several:
            optimizers.append(torch.optim.SGD(last.parameters(), 0.1, momentum=0.9))
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, 0.02, total_steps=20 * epochs
        )
        defaults: dict[str, Any] = {
            "run_dir": run_dir,
            "seed": 11,
            "gradient_accumulation_steps": accumulation,
            "log_every_n_steps": 2,
            "scheduler_interval": "step",
            "ema_decay": 0.9,
            "checkpoint": CheckpointSettings(asynchronous=False),
            "snapshot": SnapshotSettings(enabled=False),
            "show_progress": False,
        }
        trainer = GenericTrainer(
            GenericTrainerConfig(**defaults | settings),
            fabric,
            model,
            optimizers,
            scheduler,
            training_step=step,
            callbacks=[Counts()],
        )
        options: dict[str, Any] = {"num_workers": workers}
        if workers:
            options["persistent_workers"] = persistent
        train = DataLoader(Noisy(), batch_size=BATCH_SIZE, shuffle=True, **options)
        val = DataLoader(Noisy(), batch_size=12, **options)
        return trainer, lambda: trainer.fit(train, val, max_epochs=epochs)

    return make


def killed(run_dir: Path, step: int) -> None:
    """Train with a snapshot of every third step, killed when *step* steps are done."""
    fabric = Fabric(accelerator="cpu", devices=1)
    snapshot = SnapshotSettings(every_n_steps=3)
    make = maker(fabric, [], accumulation=1, workers=0, snapshot=snapshot)
    trainer, fit = make(run_dir)
    taken = trainer.training_step

    def training_step(batch: Any, batch_idx: int) -> Any:
        if trainer.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return taken(batch, batch_idx)

    trainer.training_step = training_step  # type: ignore[method-assign]
    fit()


def main(
    folder: Path, accumulation: int, workers: int, stride: int, processes: int = 2
) -> None:
    """Stop at every *stride*-th edge in all *processes*, and compare in each."""
    fabric = Fabric(accelerator="cpu", devices=processes, strategy="ddp")
    fabric.launch()
    seen: list[list[int]] = []
    make = maker(fabric, seen, accumulation=accumulation, workers=workers)
    whole = run_whole(make, folder / "whole")
    expected = list(seen)
    wrong, tried = [], 0
    for index in range(0, len(whole.edges), stride):
        edge = whole.edges[index]
        seen.clear()
        outcome = run_with_stops(make, folder / str(index), [edge])
        fabric.barrier()
        tried += 1
        if outcome != whole.outcome or seen != expected:
            wrong.append(str(edge))
    told = {"seen": expected, "wrong": wrong, "tried": tried}
    path = folder / f"rank{fabric.global_rank}.json"
    path.write_text(json.dumps(told), "utf-8")
    fabric.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__" and sys.argv[1] == "kill":
    killed(Path(sys.argv[2]), int(sys.argv[3]))
elif __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
