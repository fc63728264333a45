"""Cost of a save: mtf-trainer beside torch.save, DCP and a plain copy of the state.

The state is a model of 42 million weights with AdamW, 503 MB, of which a tenth is trained
meanwhile. "Stall" is how long the training thread stands still; "durable" from the call
until the bytes are on the disk (with mtf-trainer certified, read back, and in place of an
older one); "slower" by how much a step takes longer meanwhile, in wall time.

Each round of each contender is a fresh process with one thread of torch; its first save,
for which memory and processes are made, is told apart from the later ones. Rounds
alternate; medians are shown. The files lie in the folder for temporary ones (TMPDIR).

    python benchmarks/trainer/bench_save.py --quick
"""

# Each process loads the one contender that it runs.
# ruff: noqa: PLC0415

from __future__ import annotations

import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from _children import describe, parser_for, result_of
from torch import Tensor, nn

STEPS_ALONE = 20  # before each save, with nothing to save
NOT_ON_CPU = ("use_pinned_memory", "use_async_staging", "use_non_blocking_copy")


class Training:
    """The state that is saved, and steps that change it."""

    def __init__(self, num_layers: int) -> None:
        layers = [nn.Linear(1024, 1024) for _ in range(num_layers)]
        self.model = nn.Sequential(*layers)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.model(torch.randn(1, 1024)).sum().backward()
        self.optimizer.step()  # makes its state
        self.optimizer.zero_grad()
        self._trained = nn.Sequential(*layers[: max(1, num_layers // 10)])
        self._x = torch.randn(64, 1024)

    def step(self) -> None:
        """Train the first tenth of the layers."""
        loss: Tensor = (self._trained(self._x) - self._x).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad()

    def content(self) -> dict[str, Any]:
        """Return what is saved."""
        optimizers = [self.optimizer.state_dict()]
        return {"model": self.model.state_dict(), "optimizers": optimizers}


Save = Callable[[dict[str, Any]], Callable[[], bool]]
"""Saves a content, and returns what tells whether all of it is on the disk."""


@contextmanager
def copied(_: Path) -> Iterator[Save]:
    """Copy every tensor; to memory that is there already, but for the first time."""
    copies: list[Tensor] = []

    def save(content: dict[str, Any]) -> Callable[[], bool]:
        tensors = _tensors(content)
        copies.extend(map(torch.empty_like, tensors[len(copies) :]))
        for copy, tensor in zip(copies, tensors, strict=True):
            copy.copy_(tensor)
        return lambda: True

    yield save


@contextmanager
def with_torch(folder: Path) -> Iterator[Save]:
    """Let torch.save write, and wait for the disk."""

    def save(content: dict[str, Any]) -> Callable[[], bool]:
        torch.save(content, folder / "new.pt")
        with (folder / "new.pt").open("rb+") as file:
            os.fsync(file.fileno())
        (folder / "new.pt").replace(folder / "state.pt")
        return lambda: True

    yield save


@contextmanager
def dcp_sync(folder: Path) -> Iterator[Save]:
    """Let torch.distributed.checkpoint write; it waits for the disk."""
    from torch.distributed.checkpoint import state_dict_saver as dcp

    numbers = count()

    def save(content: dict[str, Any]) -> Callable[[], bool]:
        number = next(numbers)
        dcp.save(content, checkpoint_id=folder / f"{number}", no_dist=True)
        shutil.rmtree(folder / f"{number - 1}", ignore_errors=True)
        return lambda: True

    yield save


@contextmanager
def dcp_async(folder: Path) -> Iterator[Save]:
    """Let it copy to shared memory that it keeps, and a process of its own write."""
    import torch.distributed as dist
    from torch.distributed.checkpoint import state_dict_saver as dcp
    from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

    numbers = count()

    def save(content: dict[str, Any]) -> Callable[[], bool]:
        number = next(numbers)
        future: Any = dcp.async_save(
            content,
            checkpoint_id=folder / f"{number}",
            async_checkpointer_type=dcp.AsyncCheckpointerType.PROCESS,
            async_stager=stager,
        )

        def is_done() -> bool:
            if not future.done():
                return False
            future.result()
            shutil.rmtree(folder / f"{number - 1}", ignore_errors=True)
            return True

        return is_done

    os.environ["MASTER_ADDR"] = "127.0.0.1"
    meet = (folder / "store").as_uri()
    dist.init_process_group("gloo", init_method=meet, rank=0, world_size=1)
    options = StagingOptions(**dict.fromkeys(NOT_ON_CPU, False), use_shared_memory=True)
    stager = DefaultStager(options)
    try:
        yield save
    finally:
        stager.close()
        dist.destroy_process_group()


@contextmanager
def ours(folder: Path, *, asynchronous: bool = True) -> Iterator[Save]:
    """Let the trainer's `CheckpointManager` save, which keeps one checkpoint."""
    from mtf_trainer import CheckpointSettings
    from mtf_trainer.checkpoint import CheckpointManager

    steps = count(1)

    def save(content: dict[str, Any]) -> Callable[[], bool]:
        manager.save(content, epoch=0, global_step=next(steps), metrics={"loss": 1.0})
        return lambda: bool(manager.poll())

    settings = CheckpointSettings(asynchronous=asynchronous, keep_last_n=1)
    with CheckpointManager(folder / "checkpoints", settings) as manager:
        manager.prepare()
        yield save


CONTENDERS: dict[str, tuple[str, Callable[[Path], AbstractContextManager[Save]]]] = {
    "copied": ("a copy of the state, in memory", copied),
    "torch": ("torch.save and fsync", with_torch),
    "dcp": ("DCP", dcp_sync),
    "dcp_async": ("DCP, asynchronous, in a process", dcp_async),
    "sync": ("mtf-trainer, asynchronous=False", partial(ours, asynchronous=False)),
    "ours": ("mtf-trainer", ours),
}


def _tensors(content: Any) -> list[Tensor]:
    if isinstance(content, Tensor):
        return [content]
    if not isinstance(content, dict | list):
        return []
    values = content.values() if isinstance(content, dict) else content
    return [tensor for each in map(_tensors, values) for tensor in each]


def time_one(name: str, num_layers: int, saves: int) -> list[tuple[float, ...]]:
    """Return stall and time until durable (s), and by how much a step took longer."""
    torch.set_num_threads(1)
    training = Training(num_layers)
    training.step()
    rows: list[tuple[float, ...]] = []
    _, make = CONTENDERS[name]
    with tempfile.TemporaryDirectory() as folder, make(Path(folder)) as save:
        for _ in range(saves):
            start = time.perf_counter()
            for _ in range(STEPS_ALONE):
                training.step()
            called = time.perf_counter()
            is_done = save(training.content())
            returned = time.perf_counter()
            steps = 0
            while not is_done():
                training.step()
                steps += 1
            end = time.perf_counter() if steps else returned
            alone_s = (called - start) / STEPS_ALONE
            slower = (end - returned) / steps / alone_s - 1 if steps else 0.0
            rows.append((returned - called, end - called, slower))
    return rows


def compare(num_layers: int, saves: int, rounds: int) -> None:
    """Time the contenders in turn; print a table."""
    measured: dict[str, list[list[tuple[float, ...]]]] = {name: [] for name in CONTENDERS}
    for _ in range(rounds):
        for name, found in measured.items():
            found.append(result_of(__file__, name, num_layers, saves))
    print("| | stall at first, s | stall, s | / copy | durable, s | slower, % |")
    print("|---|---:|---:|---:|---:|---:|")
    copy = statistics.median(row[0] for rows in measured["copied"] for row in rows[1:])
    for name, found in measured.items():
        first = statistics.median(rows[0][0] for rows in found)
        later = zip(*(row for rows in found for row in rows[1:]), strict=True)
        stall, durable, slower = map(statistics.median, later)
        on_disk = "-" if name == "copied" else f"{durable:.2f}"
        cells = f"{first:.2f} | {stall:.2f} | {stall / copy:.1f} | {on_disk}"
        print(f"| {CONTENDERS[name][0]} | {cells} | {100 * slower:.0f} |")


def main(arguments: Sequence[str] | None = None) -> None:
    """Time every contender, in processes of their own."""
    options = parser_for(__doc__, rounds=3).parse_args(arguments)
    if options.child:
        name, num_layers, saves = options.child
        print(json.dumps(time_one(name, int(num_layers), int(saves))))
        return
    layers, times, rounds = (2, 2, 1) if options.quick else (40, 4, options.rounds)
    print(describe())
    print(f"{12.6 * layers:.0f} MB, {times} saves a round, median of {rounds} rounds\n")
    compare(layers, times, rounds)


if __name__ == "__main__":
    main()
