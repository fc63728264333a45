"""Fixtures: a small run that is the same each time, and a watch for leaks."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

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
    tasks = Path("/proc/self/task")
    while True:
        try:
            files = tasks.glob("*/children")
            return {pid for file in files for pid in file.read_text("utf-8").split()}
        except (FileNotFoundError, ProcessLookupError):
            pass  # a thread ended; what it had begun is another's now: look again


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


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Let one thread round sums, here and in the processes that tests start."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        # Where it is not set, Fabric sets a number of its own as it launches.
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


class Ended(NamedTuple):
    """How a process ended, and what it printed."""

    code: int
    out: str
    err: str


class ForkServer:
    """Starts processes that need not import torch first: see ``fork_server.py``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = count()
        self._server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("fork_server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the tests
        )

    def run(
        self, *arguments: object, processes: int = 1, timeout_s: float = 300
    ) -> list[Ended]:
        """Do ``python ARGUMENTS`` to the end, in one process or a group of several.

        Those that take longer are killed, and the test fails with what they said.
        """
        order = {
            "run": [str(each) for each in arguments],
            "cwd": os.getcwd(),  # noqa: PTH109 - as text
        }
        environ = group_environ(processes)
        outs = [self._folder / f"{next(self._numbers)}.out" for _ in range(processes)]
        errs = [out.with_suffix(".err") for out in outs]
        running: list[int] = []
        codes: list[int] = []
        deadline_s = time.monotonic() + timeout_s
        try:
            for rank, (out, err) in enumerate(zip(outs, errs, strict=True)):
                if processes > 1:
                    environ["LOCAL_RANK"] = str(rank)
                files = {"stdout": str(out), "stderr": str(err)}
                self._send(order | files | {"environ": environ})
                running.append(self._answer())
            while running:
                self._send({"wait": running[0]})
                in_time = self._answers_until(deadline_s)
                if not in_time:
                    self._kill(running)
                codes.append(self._answer())
                running.pop(0)
                assert in_time, [err.read_text("utf-8") for err in errs]
        finally:
            self._kill(running)
        told = [[path.read_text("utf-8") for path in each] for each in (outs, errs)]
        return list(map(Ended, codes, *told))

    def _send(self, order: Mapping[str, Any]) -> None:
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(order).encode() + b"\n")
        self._server.stdin.flush()

    def _answers_until(self, deadline_s: float) -> bool:
        assert self._server.stdout is not None
        left_s = max(0, deadline_s - time.monotonic())
        return bool(select.select([self._server.stdout], [], [], left_s)[0])

    def _answer(self) -> int:
        assert self._server.stdout is not None
        return int(self._server.stdout.readline())

    def _kill(self, pids: list[int]) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)

    def close(self) -> None:
        """End, and wait for that."""
        self._server.communicate()


def group_environ(processes: int) -> dict[str, str]:
    """Return the variables for a group of processes of its own, but for their rank."""
    ours = {"MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE"}
    environ = {name: value for name, value in os.environ.items() if name not in ours}
    if processes > 1:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return environ


@pytest.fixture(scope="session")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """Give `ForkServer.run`, to start processes that need not import torch."""
    server = ForkServer(tmp_path_factory.mktemp("launched"))
    yield server.run
    server.close()


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
