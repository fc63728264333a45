"""What `test_collectives.py` runs in two processes; each writes what it saw."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from mtf_trainer import (
    CheckpointSettings,
    DataError,
    FitResult,
    GenericTrainer,
    GenericTrainerConfig,
    MtfTrainerError,
    SnapshotSettings,
)

NUM_SAMPLES = 42


class Numbered(Dataset[tuple[Tensor, int]]):
    """Sample *i* and its number."""

    def __len__(self) -> int:
        return NUM_SAMPLES

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        generator = torch.Generator().manual_seed(i)
        return torch.randn(4, dtype=torch.float64, generator=generator), i


class Share(IterableDataset[tuple[Tensor, int]]):
    """Every second sample, as a stream."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return (Numbered()[i] for i in range(self.rank, NUM_SAMPLES, 2))


class Uneven(Share):
    """Gives one process fewer batches than the other."""

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return (Numbered()[i] for i in range(self.rank * 20, NUM_SAMPLES, 2))


def make_model() -> nn.Module:
    """Return the same model each time."""
    torch.manual_seed(0)
    return nn.Linear(4, 1).double()


def loss_of(model: Any, x_BD: Tensor, numbers_B: Tensor) -> Tensor:
    """Return the mean over the samples."""
    loss: Tensor = (model(x_BD).squeeze(1) - numbers_B / NUM_SAMPLES).square().mean()
    return loss


class Trainer(GenericTrainer):
    """Notes the samples it sees; gets a signal in one process at one step."""

    def __init__(
        self, run_dir: Path, fabric: Fabric, stop_at: int = -1, accumulation: int = 4
    ) -> None:
        model = make_model()
        config = GenericTrainerConfig(
            run_dir=run_dir,
            seed=7,
            gradient_accumulation_steps=accumulation,
            max_grad_norm=None,
            log_every_n_steps=1,
            skip_to_resume=True,
            checkpoint=CheckpointSettings(asynchronous=False),
            snapshot=SnapshotSettings(enabled=False),
        )
        super().__init__(config, fabric, model, torch.optim.SGD(model.parameters(), 0.1))
        self.stop_at = stop_at
        self.seen: list[list[int]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: ARG002
        x_BD, numbers_B = batch
        if torch.is_grad_enabled():
            self.seen.append([] if self.is_filler else numbers_B.tolist())
            if self.fabric.global_rank == 1 and self.global_step == self.stop_at:
                os.kill(os.getpid(), signal.SIGUSR1)
        return loss_of(self.model, x_BD, numbers_B)

    def report(self, result: FitResult) -> dict[str, Any]:
        """Return what the test looks at."""
        return {
            "reason": str(result.reason),
            "epoch": result.epoch,
            "step": result.global_step,
            "metrics": result.metrics,
            "resumed_from": result.resumed_from and result.resumed_from.name,
            "seen": self.seen,
            "weights": [p.flatten().tolist() for p in self.model.parameters()],
            "draw": torch.rand(()).item(),
        }


def error_of(trainer: GenericTrainer, loader: Any) -> str:
    """Return the name of the error that fitting ends with."""
    try:
        trainer.fit(loader)
    except MtfTrainerError as error:
        return type(error).__name__
    return "none"


def main(folder: Path) -> None:
    """Run each scenario, then write the reports of this process."""
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    told: dict[str, Any] = {}

    def loader(batch_size: int = 4) -> DataLoader[Any]:
        return DataLoader(Numbered(), batch_size=batch_size, shuffle=True)

    trainer = Trainer(folder / "table", fabric)
    result = trainer.fit(loader(), DataLoader(Numbered(), batch_size=5), max_epochs=2)
    told["table"] = trainer.report(result)

    trainer = Trainer(folder / "stream", fabric)
    stream: DataLoader[Any] = DataLoader(Share(fabric.global_rank), batch_size=4)
    told["stream"] = trainer.report(trainer.fit(stream))

    trainer = Trainer(folder / "whole", fabric)
    told["whole"] = trainer.report(trainer.fit(loader(2), max_epochs=4))
    trainer = Trainer(folder / "stopped", fabric, stop_at=6)
    told["stopped"] = trainer.report(trainer.fit(loader(2), max_epochs=4))
    trainer = Trainer(folder / "stopped", fabric)
    told["again"] = trainer.report(trainer.fit(loader(2), max_epochs=4))

    (folder / "file").touch()
    told["no_folder"] = error_of(Trainer(folder / "file", fabric), loader())
    uneven: DataLoader[Any] = DataLoader(Uneven(fabric.global_rank), batch_size=4)
    told["uneven"] = error_of(Trainer(folder / "uneven", fabric), uneven)
    trainer = Trainer(folder / "fewer", fabric, stop_at=6)
    told["fewer"] = trainer.report(trainer.fit(loader(2), max_epochs=4))
    # Fabric's other copy would be another Fabric.
    assert "lightning_fabric" not in sys.modules
    assert told["uneven"] == DataError.__name__
    text = json.dumps(told)
    (folder / f"rank{fabric.global_rank}.json").write_text(text, "utf-8")
    fabric.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
