"""Trains a model sharded over the processes; run in two of them by ``test_storage.py``.

``python run_sharded.py FOLDER`` does all scenarios, and writes what came of them to
``FOLDER/rank<N>.json``; ``python run_sharded.py kill FOLDER PLACE`` trains until its second
checkpoint, and is killed at PLACE of that save: the first process, or the second while it
writes its ``part``. ``python run_sharded.py edges FOLDER STRIDE`` stops at every STRIDE-th
edge, and prints what differs.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies.model_parallel import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, TensorDataset

from mtf_trainer import (
    CheckpointSettings,
    FitResult,
    GenericTrainer,
    GenericTrainerConfig,
    GuardSettings,
    SnapshotSettings,
)
from mtf_trainer._loop import storage
from mtf_trainer._saving import sharded
from mtf_trainer._saving.files import no_fault
from mtf_trainer.errors import CheckpointWriteError, MtfTrainerError
from mtf_trainer.phases import Phase
from mtf_trainer.testing import run_whole, run_with_stops

CHECKPOINT = CheckpointSettings(asynchronous=False)
STRIDE = 9
MEMORY = Path(f"/dev/shm/mtf-test-sharded-{os.getuid()}")  # noqa: S108 - as the trainer does


def make_fabric(num_processes: int) -> Fabric:
    """Return a fabric that shards linear layers, and what is left of the model."""

    def parallelize(model: Any, mesh: Any) -> Any:
        for module in model.modules():
            if isinstance(module, nn.Linear):
                fully_shard(module, mesh=mesh["data_parallel"])
        return fully_shard(model, mesh=mesh["data_parallel"])

    strategy: Any = ModelParallelStrategy(
        parallelize, data_parallel_size=num_processes, tensor_parallel_size=1
    )
    return Fabric(accelerator="cpu", devices=num_processes, strategy=strategy)


class Model(nn.Module):
    """Two layers, a parameter, and a sum of what this process trained with."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.scale = nn.Parameter(torch.ones(5))
        self.first = nn.Linear(5, 7)
        self.second = nn.Linear(7, 2)
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def forward(self, x_BD: Tensor) -> Tensor:
        """Return logits."""
        if self.training:
            self.seen += x_BD.sum()
        hidden_BH = torch.tanh(self.first(x_BD * self.scale))
        logits_BC: Tensor = self.second(hidden_BH)
        return logits_BC


def make_trainer(
    run_dir: Path,
    fabric: Fabric,
    step: Callable[[GenericTrainer], object] = lambda _: None,
    **settings: Any,
) -> GenericTrainer:
    """Return a trainer in which nothing is drawn; *step* is called in each step."""

    def training_step(trainer: GenericTrainer, batch: Any, _: int) -> Tensor:
        x_BD, y_B = batch
        loss = nn.functional.cross_entropy(trainer.model(x_BD), y_B)
        if torch.is_grad_enabled() and step(trainer) == "diverge":
            return loss * float("nan")
        return loss

    model = Model().double()
    defaults: dict[str, Any] = {
        "run_dir": run_dir,
        "gradient_accumulation_steps": 2,
        "log_every_n_steps": 1,
        "ema_decay": 0.5,
        "checkpoint": CHECKPOINT,
        "snapshot": SnapshotSettings(enabled=False),
        "show_progress": False,
    }
    return GenericTrainer(
        GenericTrainerConfig(**defaults | settings),
        fabric,
        model,
        torch.optim.AdamW(model.parameters(), 0.02),
        training_step=training_step,
    )


def fit(trainer: GenericTrainer, epochs: int = 3) -> FitResult:
    """Train with 40 samples: a global batch of 8, with however many processes."""
    generator = torch.Generator().manual_seed(5)
    x_ND = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    data = TensorDataset(x_ND, (x_ND.sum(1) > 0).long())
    batch_size = 8 // trainer.fabric.world_size
    loader = DataLoader(data, batch_size=batch_size, shuffle=True)
    return trainer.fit(loader, DataLoader(data, batch_size=20), max_epochs=epochs)


def weights(trainer: GenericTrainer) -> list[list[float]]:
    """Return all of each parameter."""
    parameters: Any = trainer.model.parameters()
    whole = [p.full_tensor() if isinstance(p, DTensor) else p for p in parameters]
    return [each.flatten().tolist() for each in whole]


def seen(trainer: GenericTrainer) -> float:
    """Return the sum of what this process trained with."""
    model: Any = trainer.model
    return float(model.module.seen)


def at(batch: int, phase: Phase, trainer: GenericTrainer) -> Callable[[Phase], bool]:
    """Stop before *phase* of batch number *batch* of the second epoch."""

    def probe(reached: Phase) -> bool:
        micro = trainer._at.train
        return (trainer.epoch, micro.batch_idx, reached) == (1, batch, phase)

    return probe


def names(run_dir: Path) -> list[str]:
    """Return what lies in the folder of checkpoints."""
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def exact(
    fabric: Fabric, folder: Path, accumulation: int, stride: int = STRIDE
) -> dict[str, Any]:
    """Stop at every *stride*-th edge: with all that the exact runs have."""
    from exact_runs import maker  # noqa: PLC0415 - beside this, where it is a script

    samples: list[list[int]] = []
    several = accumulation > 1
    make = maker(fabric, samples, accumulation=accumulation, workers=0, several=several)
    folder = folder / f"edges{accumulation}"
    whole = run_whole(make, folder / "whole")
    expected, wrong, windows = list(samples), [], 0
    chosen = whole.edges[::stride]
    for number, edge in enumerate(chosen):
        samples.clear()
        run_dir = folder / str(number)
        outcome = run_with_stops(make, run_dir, [edge])
        fabric.barrier()
        ledger = (run_dir / "checkpoints" / "chain.jsonl").read_text("utf-8")
        windows += json.loads(ledger.splitlines()[0])["is_epoch_end"] is False
        if (outcome, samples) != (whole.outcome, expected):
            wrong.append(str(edge))
    phases = sorted({str(edge.phase) for edge in chosen})
    return {"wrong": wrong, "tried": len(chosen), "inside": windows, "phases": phases}


def resharded(fabric: Fabric, folder: Path) -> dict[str, Any]:
    """Train whole; stop in a window, for one process to go on; go on from one's."""
    whole = make_trainer(folder / "whole", fabric)
    result = fit(whole)
    short = DataLoader(TensorDataset(torch.ones(5, 5, dtype=torch.float64)), 2)
    predicted = [len(each) for each in whole.predict(short)]
    stopped = make_trainer(folder / "stopped", fabric)
    stopped.probe = at(1, Phase.TRAIN_BATCH_LOAD, stopped)
    reason = fit(stopped).reason
    again = make_trainer(folder / "one", fabric)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(again)
    return {
        "weights": weights(whole),
        "seen": seen(whole),
        "predicted": predicted,
        "validated": [whole.metrics, again.metrics],
        "metrics": result.metrics,
        "names": names(folder / "whole"),
        "latest": str((folder / "whole" / "checkpoints" / "latest.ckpt").readlink()),
        "reason": reason,
        "from_one": weights(again),
        "warned": [str(each.message) for each in caught],
    }


def damaged(fabric: Fabric, folder: Path) -> dict[str, Any]:
    """Go on where the newest checkpoint is damaged, or all are."""
    told: dict[str, Any] = {}
    for kind in ("flipped", "uncommitted", "all", "file"):
        run_dir = folder / kind
        if fabric.is_global_zero:
            shutil.copytree(folder / "whole", run_dir, symlinks=True)
            paths = sorted((run_dir / "checkpoints").glob("epoch*"))
            for path in paths if kind == "all" else paths[-1:]:
                if kind == "flipped":
                    part = path / "__1_0.distcp"
                    part.write_bytes(part.read_bytes()[:-1] + b"?")
                elif kind == "file":
                    shutil.rmtree(path)
                    path.write_bytes(b"of another kind")
                else:
                    (path / "commit.json").unlink()
        fabric.barrier()
        trainer = make_trainer(run_dir, fabric)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                result = fit(trainer)
                after = [str(result.resumed_from), weights(trainer)]
            except MtfTrainerError as error:
                after = [f"{type(error).__name__}: {error}", []]
        told[kind] = {"after": after, "warned": [str(each.message) for each in caught]}
    return told


def snapshots(fabric: Fabric, folder: Path) -> dict[str, Any]:
    """Leave without a word behind step 7, and go on from the snapshot of it."""
    memory = MEMORY / folder.name
    if fabric.is_global_zero:
        memory.mkdir(parents=True)
    fabric.barrier()
    settings: dict[str, Any] = {
        "snapshot": SnapshotSettings(every_n_steps=1, folder=memory)
    }

    def leave(trainer: GenericTrainer) -> None:
        if trainer.global_step == 8:
            raise KeyboardInterrupt

    trainer = make_trainer(folder / "left", fabric, leave, **settings)
    with contextlib.suppress(KeyboardInterrupt):
        fit(trainer)
    fabric.barrier()
    if fabric.is_global_zero:
        shutil.copytree(memory, memory.with_name(f"{folder.name}_left"))
    fabric.barrier()
    again = make_trainer(folder / "left", fabric, **settings)
    result = fit(again)
    fabric.barrier()
    metrics = (folder / "left" / "metrics.jsonl").read_text("utf-8")
    told = {
        "resumed_from": str(result.resumed_from),
        "weights": weights(again),
        "seen": seen(again),
        "metrics": metrics == (folder / "whole" / "metrics.jsonl").read_text("utf-8"),
        "left": [path.name for path in memory.iterdir()],
    }
    fabric.barrier()
    return told


def unwritable(fabric: Fabric, folder: Path) -> dict[str, Any]:
    """Fail to write the second checkpoint, and all, in the first process alone."""
    told: dict[str, Any] = {}
    for reaction in ("stop", "continue"):
        calls: list[str] = []

        def fault(place: str, calls: list[str] = calls) -> None:
            calls.append(place)
            if calls.count("written") >= 2 and place == "written":
                raise OSError(28, "No space left on device")

        vars(storage)["no_fault"] = fault
        settings = replace(CHECKPOINT, on_write_error=reaction)
        run_dir = folder / f"full_{reaction}"
        trainer = make_trainer(run_dir, fabric, checkpoint=settings)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                after = str(fit(trainer).reason)
            except CheckpointWriteError as error:
                after = str(error)
        fabric.barrier()
        told[reaction] = {
            "after": after,
            "warned": [str(each.message) for each in caught],
            "names": names(run_dir),
        }
        fabric.barrier()
    vars(storage)["no_fault"] = no_fault
    return told


def diverged(fabric: Fabric, folder: Path) -> dict[str, Any]:
    """Roll back once; and skip a step whose gradients are not finite."""
    went: list[int] = []

    def step(trainer: GenericTrainer) -> str | None:
        if trainer.global_step == 7 and len(went) < 1:
            went.append(trainer.global_step)
            return "diverge"
        return None

    guard = GuardSettings(on_nonfinite="rollback")
    trainer = make_trainer(folder / "back", fabric, step, guard=guard)
    result = fit(trainer)
    rate = trainer.optimizer.param_groups[0]["lr"]
    went.clear()
    guard = GuardSettings(on_nonfinite="skip")
    skipping = make_trainer(
        folder / "skip", fabric, step, guard=guard, max_grad_norm=None
    )
    fit(skipping)
    finite = all(torch.tensor(each).isfinite().all() for each in weights(skipping))
    return {"step": result.global_step, "rate": rate, "finite": finite}


def main(folder: Path) -> None:
    """Do all scenarios."""
    fabric = make_fabric(2)
    fabric.launch()
    scenarios = (resharded, damaged, snapshots, unwritable, diverged)
    told: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("default", category=DeprecationWarning)
        told["exact"] = [exact(fabric, folder, accumulation) for accumulation in (1, 3)]
        for scenario in scenarios:
            told[scenario.__name__] = scenario(fabric, folder)
    path = folder / f"rank{fabric.global_rank}.json"
    path.write_text(json.dumps(told), "utf-8")
    fabric.barrier()
    torch.distributed.destroy_process_group()


def killed(folder: Path, place: str) -> None:
    """Be killed at *place* of the second save; the other process is left alone."""
    fabric = make_fabric(2)
    fabric.launch()
    saves: list[str] = []

    def fault(reached: str) -> None:
        saves.append(reached)
        if reached == place and saves.count(place) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    def part(path: Path, *arguments: Any) -> str:
        fault("part")
        return write_part(path, *arguments)

    vars(storage)["no_fault"] = fault
    write_part = sharded.write_part
    if fabric.global_rank == 1:
        vars(sharded)["write_part"] = part
    fit(make_trainer(folder / "killed", fabric))


def train(run_dir: Path) -> None:
    """Train in two processes, or go on there; for replays."""
    fabric = make_fabric(2)
    fabric.launch()
    fit(make_trainer(run_dir, fabric))
    torch.distributed.destroy_process_group()


def edges(folder: Path, stride: int) -> None:
    """Stop at every *stride*-th edge."""
    fabric = make_fabric(2)
    fabric.launch()
    for accumulation in (1, 3):
        told = exact(fabric, folder, accumulation, stride)
        if fabric.is_global_zero:
            sys.stdout.write(f"{accumulation}: {json.dumps(told)}\n")
    torch.distributed.destroy_process_group()


if __name__ == "__main__" and sys.argv[1] == "kill":
    killed(Path(sys.argv[2]), sys.argv[3])
elif __name__ == "__main__" and sys.argv[1] == "edges":
    edges(Path(sys.argv[2]), int(sys.argv[3]))
elif __name__ == "__main__":
    main(Path(sys.argv[1]))
