from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
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
    GuardSettings,
    SchedulerSpec,
    read_metrics,
)

MakeTrainer = Callable[..., GenericTrainer]


def plain_sgd(parameters: Any) -> torch.optim.Optimizer:
    """Make steps that show the gradient as it is."""
    return torch.optim.SGD(parameters, lr=0.1)


def linear() -> nn.Module:
    """Return a small model in double precision, the same each time."""
    torch.manual_seed(0)
    return nn.Linear(4, 2).double()


def double_step(trainer: GenericTrainer, batch: Any, _: int) -> Tensor:
    """Return the mean loss alone, in double precision."""
    x_BD, y_B = batch
    return nn.functional.cross_entropy(trainer.model(x_BD.double()), y_B)


def test_norm_is_reported_and_bounds_the_step(
    make_trainer: MakeTrainer, data: TensorDataset, tmp_path: Path
) -> None:
    """The norm in the metrics is that before clipping; the step has the norm allowed."""
    model = linear()
    before = [p.detach().clone() for p in model.parameters()]
    trainer = make_trainer(
        model=model, optimizer=plain_sgd, step=double_step, max_grad_norm=0.01
    )

    trainer.fit(DataLoader(data, batch_size=43))

    moved = [a - b for a, b in zip(model.parameters(), before, strict=True)]
    norm = torch.cat([m.flatten() for m in moved]).norm().item()
    assert norm == pytest.approx(0.1 * 0.01, rel=1e-3)
    (row,) = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert row["grad_norm"] > 0.1


def test_steps_with_gradients_that_are_not_finite_can_be_skipped(
    make_trainer: MakeTrainer, data: TensorDataset, tmp_path: Path
) -> None:
    """Such steps are counted and change nothing; the others train."""

    def step(trainer: GenericTrainer, batch: Any, batch_idx: int) -> Tensor:
        factor = torch.nan if batch_idx == 1 else 1.0
        return double_step(trainer, batch, 0) * factor

    for norm in (1.0, None):
        trainer = make_trainer(
            run_dir=tmp_path / str(norm),
            model=linear(),
            optimizer=plain_sgd,
            step=step,
            max_grad_norm=norm,
            guard=GuardSettings(on_nonfinite="skip"),
        )
        trainer.fit(DataLoader(data, batch_size=15))

        assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
        (row,) = read_metrics(tmp_path / str(norm) / "metrics.jsonl")
        assert row["skipped_steps"] == 1
        assert trainer.global_step == 3


def test_skipped_steps_are_steps_and_not_optimizers(
    tmp_path: Path, fabric: Fabric, data: TensorDataset
) -> None:
    """A step that two optimizers leave out is one."""
    model = nn.Sequential(linear(), nn.Linear(2, 2).double())
    trainer = GenericTrainer(
        GenericTrainerConfig(
            run_dir=tmp_path,
            show_progress=False,
            checkpoint=CheckpointSettings(asynchronous=False),
            guard=GuardSettings(on_nonfinite="skip"),
        ),
        fabric,
        model,
        [plain_sgd(part.parameters()) for part in model],
        training_step=lambda t, batch, i: double_step(t, batch, i) * torch.nan,
    )

    trainer.fit(DataLoader(data, batch_size=15))

    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert row["skipped_steps"] == 3


def test_several_optimizers_and_a_plateau(
    tmp_path: Path, fabric: Fabric, data: TensorDataset
) -> None:
    """Each optimizer steps, and a scheduler sees the metric that it is told to see."""
    model = nn.Sequential(linear(), nn.Linear(2, 2).double())
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in model]
    plateau: Any = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizers[1], factor=0.5, patience=0, mode="max"
    )
    config = GenericTrainerConfig(
        run_dir=tmp_path,
        show_progress=False,
        checkpoint=CheckpointSettings(asynchronous=False),
    )
    before = [p.detach().clone() for p in model.parameters()]
    trainer = GenericTrainer(
        config, fabric, model, optimizers, [plateau], training_step=double_step
    )

    # A falling loss is no better by this mode, so the rate falls.
    trainer.fit(DataLoader(data, batch_size=43), max_epochs=3)

    after = list(model.parameters())
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    rates = [o.param_groups[0]["lr"] for o in trainer.optimizers]
    assert rates == [0.1, 0.025]
    spec = SchedulerSpec(scheduler=plateau, interval="metric", monitor="accuracy")
    trainer = GenericTrainer(
        config, fabric, model, optimizers, spec, training_step=double_step
    )
    with pytest.raises(ValueError, match="no metric is named 'accuracy'"):
        trainer.fit(DataLoader(data, batch_size=43), max_epochs=4)
