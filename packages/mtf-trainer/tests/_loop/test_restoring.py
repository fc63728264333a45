from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from mtf_trainer import (
    CheckpointManager,
    CheckpointMismatchError,
    CheckpointSettings,
    CheckpointWarning,
    GenericTrainer,
)

MakeTrainer = Callable[..., GenericTrainer]


def test_other_order_is_refused_inside_an_epoch(
    make_trainer: MakeTrainer, loader: DataLoader[Any]
) -> None:
    """Another seed would give samples twice; between two epochs it is a warning."""
    make_trainer().fit(loader, max_steps=3)
    with pytest.raises(CheckpointMismatchError, match=r"layout\.seed: was 0 and is 1"):
        make_trainer(seed=1).fit(loader)

    make_trainer().fit(loader)
    with pytest.warns(CheckpointWarning, match="seed was 0 and is 1 from here on"):
        make_trainer(seed=1).fit(loader, max_epochs=2)


def test_other_model_is_refused_and_unchanged(
    make_trainer: MakeTrainer, loader: DataLoader[Any]
) -> None:
    """A checkpoint that does not fit names file and key, and touches nothing."""
    make_trainer().fit(loader)
    other = nn.Linear(4, 2)
    before = other.weight.detach().clone()

    with pytest.raises(
        CheckpointMismatchError, match=r"\.ckpt: model\.weight: is missing"
    ):
        make_trainer(model=other).fit(loader)

    assert torch.equal(other.weight, before)


def test_other_number_of_processes_is_told(
    make_trainer: MakeTrainer, loader: DataLoader[Any], tmp_path: Path
) -> None:
    """Going on from a checkpoint of two processes with one works, with a warning."""
    trainer = make_trainer()
    path = trainer.fit(loader).checkpoint
    assert path is not None
    content = torch.load(path, weights_only=True)
    content["locals"] *= 2
    content["world_size"] = 2
    settings = CheckpointSettings(asynchronous=False)
    with CheckpointManager(path.parent, settings) as manager:
        manager.save(content, epoch=1, global_step=7, metrics={})

    with pytest.warns(
        CheckpointWarning, match="written by 2 processes and is continued by 1"
    ):
        result = make_trainer().fit(loader, max_epochs=2)

    assert result.epoch == 2
    assert (tmp_path / "run").is_dir()
