from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from mtf_trainer import (
    CheckpointSettings,
    GenericTrainer,
    GenericTrainerConfig,
    Phase,
    read_metrics,
)

MakeTrainer = Callable[..., GenericTrainer]


def test_predictions_come_in_order(
    make_trainer: MakeTrainer, data: TensorDataset
) -> None:
    """Outputs of all batches, in evaluation mode, which is put back."""
    trainer = make_trainer()
    trainer.model.train()

    batches = trainer.predict(DataLoader(data, batch_size=8))

    assert trainer.model.training
    trainer.model.eval()
    with torch.no_grad():
        expected = trainer.model(data.tensors[0])
    torch.testing.assert_close(torch.cat(batches), expected)


@pytest.mark.parametrize("kind", [list, dict])
def test_predictions_take_the_first_of_a_batch(
    make_trainer: MakeTrainer, data: TensorDataset, kind: type
) -> None:
    """What a mapping or a sequence holds first is what the model gets."""
    x_ND = data.tensors[0]
    rows: Any = [{"x": x} if kind is dict else [x, 0] for x in x_ND]

    batches = make_trainer().predict(DataLoader(rows, batch_size=43))

    assert [batch.shape for batch in batches] == [(43, 2)]


def cross_entropy(trainer: GenericTrainer, batch: Any, _: int) -> Tensor:
    """Return the mean loss."""
    x_BD, y_B = batch
    return nn.functional.cross_entropy(trainer.model(x_BD), y_B)


def test_average_of_the_weights_is_what_is_evaluated(
    make_trainer: MakeTrainer, data: TensorDataset, loader: DataLoader[Any]
) -> None:
    """Validation sees the averaged weights, and training goes on with its own."""
    seen: list[Tensor] = []

    def step(trainer: GenericTrainer, batch: Any, batch_idx: int) -> Tensor:
        weight = next(iter(trainer.model.parameters())).detach().clone()
        if not torch.is_grad_enabled():
            seen.append(weight)
        return cross_entropy(trainer, batch, batch_idx)

    trainer = make_trainer(step=step, ema_decay=0.5)
    val = DataLoader(data, batch_size=43)
    trainer.fit(loader, val)
    own = next(iter(trainer.model.parameters())).detach().clone()

    trainer.validate(val)

    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], own)
    assert torch.equal(next(iter(trainer.model.parameters())), own)


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


class Watched(GenericTrainer):
    """Notes every phase it enters."""

    def __init__(self, *args: Any, **parts: Any) -> None:
        super().__init__(*args, **parts)
        self.seen: list[Phase] = []
        self.probe = self.note

    def note(self, phase: Phase) -> bool:
        self.seen.append(phase)
        return False

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return double_step(self, batch, batch_idx)


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """The samples of a table, as a stream; *told* is the length it claims."""

    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self.data[i] for i in range(len(self.data)))


class Batches(Stream):
    """Gives all samples as one batch, made by itself."""

    def __iter__(self) -> Iterator[Any]:
        yield self.data.tensors


def test_batches_of_another_form_can_be_counted(
    tmp_path: Path, fabric: Fabric, data: TensorDataset
) -> None:
    """Where a stream makes whole batches, a subclass can say how many samples they hold."""

    class Counts(Watched):
        def num_samples(self, batch: Any) -> int:
            return 2 * len(batch[0])

    model = linear()
    config = GenericTrainerConfig(
        run_dir=tmp_path,
        show_progress=False,
        skip_to_resume=True,
        checkpoint=CheckpointSettings(asynchronous=False),
    )
    trainer = Counts(config, fabric, model, plain_sgd(model.parameters()))

    batches: Any = Batches(data)
    trainer.fit(DataLoader(batches, batch_size=None))

    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert row["samples"] == 86
