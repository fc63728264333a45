from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from mtf_trainer import (
    DataError,
    GenericTrainer,
)

MakeTrainer = Callable[..., GenericTrainer]


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (None, TypeError, "not None"),
        (1.0, TypeError, "not 1.0"),
        ({"accuracy": 1.0}, TypeError, "a mapping with a tensor as 'loss'"),
        (torch.ones(2, requires_grad=True), ValueError, r"not of shape \(2,\)"),
    ],
)
def test_what_is_no_loss_is_refused(
    make_trainer: MakeTrainer,
    loader: DataLoader[Any],
    returned: object,
    error: type[Exception],
    message: str,
) -> None:
    """A step that returns no single loss is told what it must return."""
    trainer = make_trainer(step=lambda *_: returned)

    with pytest.raises(error, match=message):
        trainer.fit(loader)


def test_loader_without_batches_is_refused(
    make_trainer: MakeTrainer, data: TensorDataset, loader: DataLoader[Any]
) -> None:
    """An empty training or validation loader is an error that says so."""
    empty = DataLoader(data, batch_size=100, drop_last=True)

    with pytest.raises(DataError, match="no batch"):
        make_trainer().fit(empty)
    with pytest.raises(DataError, match="no batch"):
        make_trainer().fit(loader, empty)
    with pytest.raises(DataError, match="no batch"):
        make_trainer().validate(empty)
