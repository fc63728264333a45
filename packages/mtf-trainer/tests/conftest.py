"""Fixtures: a small run that is the same each time, and a watch for leaks."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mtf_trainer import (
    CheckpointSettings,
    GenericTrainer,
    GenericTrainerConfig,
    SnapshotSettings,
)

# A script that finds its neighbour only when it is run as one.
collect_ignore = ["chaos.py"]

MakeTrainer = Callable[..., GenericTrainer]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def children() -> set[str]:
    """Return the ids of this process's children."""
    found: set[str] = set()
    for task in Path("/proc/self/task").glob("*/children"):
        found.update(task.read_text("utf-8").split())
    return found


def open_files() -> int:
    """Return how many files this process has open; 0 where the system does not say."""
    folder = Path("/proc/self/fd")
    return sum(1 for _ in folder.iterdir()) if folder.is_dir() else 0


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> Iterator[None]:
    """Let SIGINT count: a shell starts background jobs with it ignored."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Fail a test that leaves a thread, a child, a variable or a handler behind."""
    threads, before = set(threading.enumerate()), children()
    environ = dict(os.environ)
    handlers = {s: signal.getsignal(s) for s in SIGNALS}
    files = open_files()
    yield
    if open_files() > files:
        gc.collect()  # what only a cycle still holds is not lost
    # pytest names the running test in a variable of its own.
    for variables in (environ, now := dict(os.environ)):
        variables.pop("PYTEST_CURRENT_TEST", None)
    assert now == environ
    assert set(threading.enumerate()) <= threads
    assert children() <= before
    assert {s: signal.getsignal(s) for s in SIGNALS} == handlers
    assert open_files() <= files


@pytest.fixture
def fabric() -> Fabric:
    """One process on the CPU."""
    return Fabric(accelerator="cpu", devices=1)


@pytest.fixture
def data() -> TensorDataset:
    """Return 43 samples: ``x`` of shape (43, 4), classes of shape (43,)."""
    generator = torch.Generator().manual_seed(5)
    x_BD = torch.randn(43, 4, generator=generator)
    return TensorDataset(x_BD, (x_BD.sum(1) > 0).long())


@pytest.fixture
def loader(data: TensorDataset) -> DataLoader[Any]:
    """Give 6 batches: five of 8 and one of 3, in an order that is drawn."""
    return DataLoader(data, batch_size=8, shuffle=True)


def cross_entropy(trainer: GenericTrainer, batch: Any, _: int) -> dict[str, Tensor]:
    """Return a loss and the share of right answers."""
    x_BD, y_B = batch
    z_BC = trainer.model(x_BD)
    right_B = (z_BC.argmax(1) == y_B).float()
    return {"loss": nn.functional.cross_entropy(z_BC, y_B), "accuracy": right_B.mean()}


@pytest.fixture
def make_trainer(tmp_path: Path, fabric: Fabric) -> MakeTrainer:
    """Build trainers that are alike but for what is asked.

    ``make_trainer(model=, optimizer=, scheduler=, step=, parts=, **settings)``; optimizer
    and scheduler are functions of what comes before them, *parts* are further arguments of
    the trainer. The run's folder is ``tmp_path / "run"``.
    """

    def make(
        *,
        model: nn.Module | None = None,
        optimizer: Callable[[Any], Any] = lambda p: torch.optim.AdamW(p, lr=0.01),
        scheduler: Callable[[Any], Any] = lambda _: None,
        step: Any = cross_entropy,
        parts: Mapping[str, Any] = MappingProxyType({}),
        **settings: Any,
    ) -> GenericTrainer:
        if model is None:
            torch.manual_seed(3)
            model = nn.Sequential(
                nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2)
            )
        defaults: dict[str, Any] = {
            "run_dir": tmp_path / "run",
            "show_progress": False,
            "checkpoint": CheckpointSettings(asynchronous=False),
            "snapshot": SnapshotSettings(enabled=False),
        }
        built = optimizer(model.parameters())
        return GenericTrainer(
            GenericTrainerConfig(**defaults | settings),
            fabric,
            model,
            built,
            scheduler(built),
            training_step=step,
            **parts,
        )

    return make
