"""Time of a training step: mtf-trainer beside a raw loop, Fabric, accelerate, Lightning.

Every contender trains the same model on the same loader with AdamW, clips the gradients
to norm 1, and writes the mean loss of every 50 steps. Each round of each contender is a
fresh process with one thread of torch, which warms up and then takes the time between two
calls of its step function: set-up and checkpoints are not in it. Rounds alternate between
contenders, so that a change of the machine's speed meets all of them; the median round is
shown, and the median of the ratios within rounds.

    python benchmarks/trainer/bench_step.py --quick
"""

# Each process loads the one contender that it runs.
# ruff: noqa: PLC0415

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _children import describe, parser_for, result_of
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

LOG_EVERY = 50
MAX_NORM = 1.0


def mlp(num_batches: int) -> tuple[nn.Module, TensorDataset, int]:
    """MLP of 85,000 weights, batches of 64 samples."""
    x = torch.randn(num_batches * 64, 64)
    hidden = [nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU()]
    model = nn.Sequential(*hidden, nn.Linear(256, 10))
    return model, TensorDataset(x, torch.randint(10, (len(x),))), 64


class Samples(Dataset[Any]):
    """Gives the samples of tensors one by one, as a data set of somebody's own does."""

    def __init__(self, tensors: TensorDataset) -> None:
        self._x, self._y = tensors.tensors

    def __len__(self) -> int:
        return len(self._x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._x[index], self._y[index]


def mlp_of_samples(num_batches: int) -> tuple[nn.Module, Dataset[Any], int]:
    """The same MLP, on a data set of somebody's own."""
    model, data, batch_size = mlp(num_batches)
    return model, Samples(data), batch_size


def transformer(num_batches: int) -> tuple[nn.Module, TensorDataset, int]:
    """Transformer of 133,000 weights, batches of 16 texts of 32 tokens."""
    x = torch.randint(256, (num_batches * 16, 32))
    layer = nn.TransformerEncoderLayer(64, 4, 256, dropout=0.1, batch_first=True)
    layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    model = nn.Sequential(nn.Embedding(256, 64), layers, nn.Linear(64, 256))
    return model, TensorDataset(x, x), 16


MODELS: dict[str, tuple[Callable[[int], tuple[nn.Module, Dataset[Any], int]], int]] = {
    "mlp": (mlp, 2000),
    "mlp_of_samples": (mlp_of_samples, 2000),
    "transformer": (transformer, 300),
}


class Work:
    """What every contender gets, and its clock.

    Args:
        kind: A name of `MODELS`.
        folder: For its files.
        steps: How many are on the clock, after some to warm up.
    """

    def __init__(self, kind: str, folder: Path, steps: int) -> None:
        self._first = LOG_EVERY
        self._last = self._first + steps
        make, _ = MODELS[kind]
        self.model, data, batch_size = make(self._last + 1)
        self.loader: DataLoader[Any] = DataLoader(data, batch_size, shuffle=True)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.folder = folder
        self.times: list[tuple[float, float]] = []
        self._steps = 0
        self._total = torch.zeros(())

    def loss(self, model: Any, batch: Any) -> Tensor:
        """Count a step, and return the loss of *batch*."""
        if self._steps in (self._first, self._last):
            self.times.append((time.process_time(), time.perf_counter()))
        self._steps += 1
        x, y = batch
        return nn.functional.cross_entropy(model(x).flatten(0, -2), y.flatten())

    def log(self, loss: Tensor, norm: Any) -> None:
        """Write a line of metrics when it is time, for a loop written by hand."""
        self._total += loss.detach()
        if self._steps % LOG_EVERY == 0:
            mean = self._total.item() / LOG_EVERY
            row = {"step": self._steps, "loss": mean, "grad_norm": norm.item()}
            with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            self._total.zero_()


def raw(work: Work) -> None:
    """Run a loop of torch alone."""
    for batch in work.loader:
        work.optimizer.zero_grad()
        loss = work.loss(work.model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(work.model.parameters(), MAX_NORM)
        work.optimizer.step()
        work.log(loss, norm)


def fabric(work: Work) -> None:
    """Run the same loop with the calls of Fabric."""
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1)
    model, optimizer = fabric.setup(work.model, work.optimizer)
    for batch in fabric.setup_dataloaders(work.loader):
        optimizer.zero_grad()
        loss = work.loss(model, batch)
        fabric.backward(loss)
        norm = fabric.clip_gradients(model, optimizer, max_norm=MAX_NORM)
        optimizer.step()
        work.log(loss, norm)


def accelerate(work: Work) -> None:
    """Run the same loop with the calls of accelerate."""
    from accelerate import Accelerator  # type: ignore[import-untyped]

    accelerator = Accelerator(cpu=True)
    parts = accelerator.prepare(work.model, work.optimizer, work.loader)
    model, optimizer, loader = parts
    for batch in loader:
        optimizer.zero_grad()
        loss = work.loss(model, batch)
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        work.log(loss, norm)


def lightning(work: Work) -> None:
    """Let Lightning's Trainer run, its progress bar, summary and checkpoints off."""
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.loggers import CSVLogger

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = work.model

        def training_step(self, batch: Any, _: int) -> Tensor:
            loss = work.loss(self.model, batch)
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return work.optimizer

    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        gradient_clip_val=MAX_NORM,
        logger=CSVLogger(work.folder, flush_logs_every_n_steps=LOG_EVERY),
        log_every_n_steps=LOG_EVERY,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), work.loader)


def ours(work: Work, *, snapshots: bool = True) -> None:
    """Let `GenericTrainer` run: safe points, metrics, signals."""
    from lightning.fabric import Fabric

    from mtf_trainer import GenericTrainer, GenericTrainerConfig, SnapshotSettings

    def step(trainer: GenericTrainer, batch: Any, _: int) -> Tensor:
        return work.loss(trainer.model, batch)

    config = GenericTrainerConfig(
        run_dir=work.folder / "run",
        log_every_n_steps=LOG_EVERY,
        max_grad_norm=MAX_NORM,
        snapshot=SnapshotSettings(enabled=snapshots),
        show_progress=False,
    )
    fabric = Fabric(accelerator="cpu", devices=1)
    parts = (config, fabric, work.model, work.optimizer)
    GenericTrainer(*parts, training_step=step).fit(work.loader)


CONTENDERS: dict[str, tuple[str, Callable[[Work], None]]] = {
    "raw": ("torch, a loop by hand", raw),
    "fabric": ("Fabric, a loop by hand", fabric),
    "ours": ("mtf-trainer", ours),
    "without": ("mtf-trainer, no snapshots", partial(ours, snapshots=False)),
    "accelerate": ("accelerate, a loop by hand", accelerate),
    "lightning": ("Lightning Trainer", lightning),
}


def time_one(name: str, kind: str, steps: int) -> tuple[float, float]:
    """Return the CPU and wall seconds that the contender *name* takes for one step."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        work = Work(kind, Path(folder), steps)
        CONTENDERS[name][1](work)
    cpu, wall = (b - a for a, b in zip(*work.times, strict=True))
    return cpu / steps, wall / steps


def compare(kind: str, steps: int, rounds: int) -> None:
    """Time the contenders in turn; print a step's time and its ratio to Fabric's."""
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in CONTENDERS}
    for _ in range(rounds):
        for name, rows in measured.items():
            rows.append(result_of(__file__, name, kind, steps))
    print(f"\n{MODELS[kind][0].__doc__} {steps} steps, median of {rounds} rounds.\n")
    print("| | CPU, µs a step | / Fabric | wall, µs a step | / Fabric |")
    print("|---|---:|---:|---:|---:|")
    for name, rows in measured.items():
        cells = []
        for which in (0, 1):
            mine, peer = ([row[which] for row in of] for of in (rows, measured["fabric"]))
            ratio = statistics.median(a / b for a, b in zip(mine, peer, strict=True))
            cells += [f"{statistics.median(mine) * 1e6:.0f}", f"{ratio:.2f}"]
        print(f"| {CONTENDERS[name][0]} | {' | '.join(cells)} |")


def main(arguments: Sequence[str] | None = None) -> None:
    """Time every contender with every model, and print a table for each."""
    options = parser_for(__doc__, rounds=5).parse_args(arguments)
    if options.child:
        name, kind, number = options.child
        print(json.dumps(time_one(name, kind, int(number))))
        return
    print(describe())
    for kind, (_, num_steps) in MODELS.items():
        steps, rounds = (50, 1) if options.quick else (num_steps, options.rounds)
        compare(kind, steps, rounds)


if __name__ == "__main__":
    main()
