from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mtf_trainer import (
    GenericTrainer,
)

MakeTrainer = Callable[..., GenericTrainer]


def test_validation_weighs_samples_and_disturbs_nothing(
    make_trainer: MakeTrainer, data: TensorDataset
) -> None:
    """Its mean is that over all samples; mode and gradients are as they were."""
    trainer = make_trainer()
    loader = DataLoader(data, batch_size=30)
    trainer.model.train()

    metrics = trainer.validate(loader)

    assert trainer.model.training
    assert all(p.grad is None for p in trainer.model.parameters())
    trainer.model.eval()
    x_ND, y_N = data.tensors
    with torch.no_grad():
        z_NC = trainer.model(x_ND)
    assert metrics["loss"] == pytest.approx(
        nn.functional.cross_entropy(z_NC, y_N).item(), rel=1e-6
    )
    assert metrics["accuracy"] == pytest.approx(
        (z_NC.argmax(1) == y_N).float().mean().item(), rel=1e-6
    )
    assert trainer.validate(loader) == metrics
