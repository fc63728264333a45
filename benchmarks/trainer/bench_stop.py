"""Stopping and going on: after SIGTERM, and under a SIGKILL once a minute.

What is trained is an MLP with AdamW, 51 MB of state, one thread of torch. Two tables:

1. The time from the start of a process to its first step, without imports and the making
   of model and data, for a new run and for one that goes on; and from SIGTERM to the end
   of the process. The loop by hand saves with torch.save and fsync when the signal came,
   and goes on from the first sample of its data: it does less.
2. SIGKILLs, each a minute after the last was made good and followed by a new process at
   once: optimizer steps that were done twice, and the time from the kill until the training
   was where it had been, which has the imports of the new process in it.

    python benchmarks/trainer/bench_stop.py --quick
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import torch
from _children import describe, parser_for
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mtf_trainer import (
    EXIT_RESUME,
    GenericTrainer,
    GenericTrainerConfig,
    SnapshotSettings,
)
from mtf_trainer._loop.run_dir import memory_id

STEPS_AN_EPOCH = 4000
STEPS_BEFORE_TERM = 100


class Work:
    """What is trained in a child, which tells its parent how far it is."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        hidden = [nn.Linear(1024, 1024) for _ in range(4)]
        self.model = nn.Sequential(nn.Linear(64, 1024), *hidden, nn.Linear(1024, 10))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        x = torch.randn(STEPS_AN_EPOCH * 32, 64)
        data = TensorDataset(x, torch.randint(10, (len(x),)))
        self.loader: DataLoader[Any] = DataLoader(data, 32, shuffle=True)
        self._file = os.open(folder / "step", os.O_RDWR | os.O_CREAT)
        self._has_begun = False
        self._ready = time.monotonic()

    def loss(self, model: Any, batch: Any, step: int) -> Tensor:
        """Return the loss of *batch*, the one after *step* optimizer steps."""
        os.pwrite(self._file, step.to_bytes(8, "little"), 0)
        if not self._has_begun:
            self._has_begun = True
            took = time.monotonic() - self._ready
            print(json.dumps({"first_step_s": took, "step": step}), flush=True)
        x, y = batch
        return nn.functional.cross_entropy(model(x), y)


def by_hand(work: Work, folder: Path, _: int) -> int:
    """Run a loop that saves when SIGTERM came; return the exit code."""
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopping.append(number))
    path = folder / "state.pt"
    first = 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        work.model.load_state_dict(state["model"])
        work.optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    batches = chain.from_iterable(repeat(work.loader))
    for step, batch in enumerate(batches, first):
        work.optimizer.zero_grad()
        work.loss(work.model, batch, step).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(work.model.parameters(), 1.0)
        work.optimizer.step()
        if stopping:
            state = {
                "model": work.model.state_dict(),
                "optimizer": work.optimizer.state_dict(),
                "step": step + 1,
            }
            with (folder / "new.pt").open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            (folder / "new.pt").replace(path)
            break
    return EXIT_RESUME


def ours(work: Work, folder: Path, max_steps: int) -> int:
    """Let `GenericTrainer` train, with its defaults; return the exit code."""

    def step(trainer: GenericTrainer, batch: Any, _: int) -> Tensor:
        return work.loss(trainer.model, batch, trainer.global_step)

    trainer = GenericTrainer(
        GenericTrainerConfig(run_dir=folder / "run", show_progress=False),
        Fabric(accelerator="cpu", devices=1),
        work.model,
        work.optimizer,
        training_step=step,
    )
    return trainer.fit(work.loader, max_epochs=10**6, max_steps=max_steps).exit_code


KINDS: dict[str, tuple[str, Callable[[Work, Path, int], int]]] = {
    "hand": ("torch.save, a loop by hand", by_hand),
    "ours": ("mtf-trainer", ours),
}


class Child:
    """A process that trains in *folder*."""

    def __init__(self, kind: str, folder: Path, max_steps: int) -> None:
        self._folder = folder
        command = [sys.executable, __file__, "--child", kind, str(folder)]
        self._process = subprocess.Popen(
            [*command, str(max_steps)], stdout=subprocess.PIPE, encoding="utf-8"
        )
        assert self._process.stdout is not None  # noqa: S101 - it was asked for
        line = self._process.stdout.readline()
        self.first: dict[str, Any] = json.loads(line) if line else {}

    def step(self) -> int:
        """Return the optimizer steps done."""
        return int.from_bytes((self._folder / "step").read_bytes(), "little")

    def wait(self, deadline: float) -> int | None:
        """Return the exit code; None if the process is still there at *deadline*."""
        try:
            return self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return None

    def signal(self, number: int) -> float:
        """Send the signal *number*, and return the seconds until the process has ended."""
        start = time.monotonic()
        self._process.send_signal(number)
        self._process.wait()
        return time.monotonic() - start


def stop_and_resume(kind: str) -> tuple[float, float, float]:
    """Return seconds: new run to first step, going on, SIGTERM to end."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        begun, ended = [], []
        for _ in range(2):
            child = Child(kind, folder, sys.maxsize)
            last = child.first["step"] + STEPS_BEFORE_TERM
            while child.step() < last and child.wait(time.monotonic() + 0.01) is None:
                pass
            begun.append(child.first["first_step_s"])
            ended.append(child.signal(signal.SIGTERM))
    return begun[0], begun[1], statistics.mean(ended)


def kill_again_and_again(num_kills: int, every_s: float) -> Iterator[tuple[int, float]]:
    """Yield for each SIGKILL the steps lost, and the seconds until they were done again."""
    with tempfile.TemporaryDirectory() as name:
        child = Child("ours", Path(name), sys.maxsize)
        for _ in range(num_kills):
            child.wait(time.monotonic() + every_s)
            start = time.monotonic()
            child.signal(signal.SIGKILL)
            done = child.step()
            child = Child("ours", Path(name), sys.maxsize)
            resumed_at = child.first["step"]
            while child.step() < done and child.wait(time.monotonic() + 0.005) is None:
                pass
            yield max(0, done - resumed_at), time.monotonic() - start
        child.signal(signal.SIGKILL)
        # Nobody goes on with this run, so nobody gives its memory back.
        run_dir = Path(name, "run")
        run_id = json.loads((run_dir / "run.json").read_text("utf-8"))["run_id"]
        memory = memory_id(run_dir, run_id)
        for left in SnapshotSettings().folder.glob(f"mtf-{os.getuid()}-{memory}-*"):
            left.unlink()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure both, and print a table of each."""
    parser = parser_for(__doc__, rounds=5)
    parser.add_argument("--kills", type=int, default=4, help="so many SIGKILLs: 4")
    parser.add_argument("--every-s", type=float, default=60, help="between SIGKILLs: 60")
    options = parser.parse_args(arguments)
    if options.child:
        kind, folder, max_steps = options.child
        sys.exit(KINDS[kind][1](Work(Path(folder)), Path(folder), int(max_steps)))
    os.environ["OMP_NUM_THREADS"] = "1"
    rounds, kills, every_s = options.rounds, options.kills, options.every_s
    if options.quick:
        rounds, kills, every_s = 1, 2, 15
    print(f"{describe()}; median of {rounds} rounds\n")
    print("| | new run to first step, s | going on, s | SIGTERM to end, s |")
    print("|---|---:|---:|---:|")
    found: dict[str, list[tuple[float, ...]]] = {kind: [] for kind in KINDS}
    for _ in range(rounds):
        for kind, rows in found.items():
            rows.append(stop_and_resume(kind))
    for kind, rows in found.items():
        begin, resume, end = map(statistics.median, zip(*rows, strict=True))
        print(f"| {KINDS[kind][0]} | {begin:.2f} | {resume:.2f} | {end:.2f} |")
    lost, back = zip(*kill_again_and_again(kills, every_s), strict=True)
    print(f"\n{kills} SIGKILLs, {every_s:.0f} s of training before each\n")
    print("| steps lost, each | back where it was, s | overhead, % |")
    print("|---:|---:|---:|")
    back_s = statistics.median(back)
    each = ", ".join(map(str, lost))
    print(f"| {each} | {back_s:.1f} | {100 * back_s / every_s:.0f} |")


if __name__ == "__main__":
    main()
