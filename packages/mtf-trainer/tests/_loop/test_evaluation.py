from __future__ import annotations

import gc
import multiprocessing
import weakref
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
    StopReason,
    read_metrics,
)

# Loader workers are forked; from Python 3.12 on that warns where threads are about.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*multi-threaded, use of fork:DeprecationWarning"
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


class Told(IterableDataset[tuple[Tensor, Tensor]]):
    """Gives 12 numbers as samples, and says where it stands."""

    def __init__(self) -> None:
        self.at = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while self.at < 12:
            self.at += 1
            yield torch.full((4,), float(self.at - 1)), torch.tensor(self.at % 2)

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


def noting(seen: list[float]) -> Callable[..., Tensor]:
    """Return a step that notes the samples of its batch."""

    def step(trainer: GenericTrainer, batch: Any, batch_idx: int) -> Tensor:
        seen.extend(batch[0][:, 0].tolist())
        return cross_entropy(trainer, batch, batch_idx)

    return step


def test_a_stream_may_be_used_again_in_a_process(make_trainer: MakeTrainer) -> None:
    """A run that goes on, and one that is new, read all of each epoch's samples."""
    stream, seen = Told(), list[float]()
    interrupted = make_trainer(step=noting(seen))
    interrupted.probe = lambda phase: phase is Phase.TRAIN_BATCH_LOAD and len(seen) >= 6
    assert interrupted.fit(DataLoader(stream, 2), max_epochs=3).reason is (
        StopReason.INTERRUPTED
    )

    make_trainer(step=noting(seen)).fit(DataLoader(stream, 2), max_epochs=3)

    assert seen == [*range(12)] * 3
    assert len(make_trainer().predict(DataLoader(stream, 2))) == 6
    assert stream.at == 0


def refuse(*_: object) -> Tensor:
    """Stand in for a step that goes wrong."""
    message = "refused"
    raise ArithmeticError(message)


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("use", ["validate", "test", "predict"])
def test_nothing_is_left_of_an_evaluation(
    make_trainer: MakeTrainer,
    data: TensorDataset,
    monkeypatch: pytest.MonkeyPatch,
    use: str,
    *,
    persistent: bool,
) -> None:
    """No worker, whether a step raises or not, and nothing that keeps the trainer."""
    for wrong in (False, True):
        trainer = make_trainer()
        loader = DataLoader(data, 8, num_workers=1, persistent_workers=persistent)
        if wrong:
            monkeypatch.setattr(trainer, "validation_step", refuse)
            monkeypatch.setattr(trainer, "predict_step", refuse)
            with pytest.raises(ArithmeticError, match="refused"):
                getattr(trainer, use)(loader)
            monkeypatch.undo()
        else:
            getattr(trainer, use)(loader)

        assert multiprocessing.active_children() == []
        alive = weakref.ref(trainer)
        del trainer
        gc.collect()
        assert alive() is None


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("stream", [False, True])
def test_an_evaluation_within_a_run_does_not_disturb_it(
    make_trainer: MakeTrainer,
    data: TensorDataset,
    tmp_path: Path,
    num_workers: int,
    *,
    stream: bool,
) -> None:
    """A callback evaluates with the loader that is being read, and even in vain."""
    seen: list[float] = []

    class Evaluates:
        def __init__(self) -> None:
            self.done: list[str] = []

        def evaluate(self, trainer: GenericTrainer, where: str) -> None:
            if where in self.done:
                return
            self.done.append(where)
            before = seen.copy()
            trainer.validate(loader)
            whole, seen[:] = seen[len(before) :], before
            assert sorted(whole) == sorted(every)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(trainer, "validation_step", refuse)
                with pytest.raises(ArithmeticError):
                    trainer.validate(loader)

        def on_train_batch_end(self, trainer: GenericTrainer) -> None:
            self.evaluate(trainer, "training")

        def on_val_batch_end(self, trainer: GenericTrainer) -> None:
            self.evaluate(trainer, "validation")

    dataset: Any = Told() if stream else data
    every = [*range(12)] if stream else data.tensors[0][:, 0].tolist()
    loader: DataLoader[Any] = DataLoader(dataset, 8, num_workers=num_workers)

    callback = Evaluates()
    trainer = make_trainer(step=noting(seen), parts={"callbacks": [callback]})
    trainer.fit(loader, loader)

    assert callback.done == ["training", "validation"]
    assert sorted(seen) == sorted(every * 2)
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["samples"] for row in rows if row["split"] == "val"] == [len(every)]


def test_a_trainer_keeps_no_loader(
    make_trainer: MakeTrainer, data: TensorDataset
) -> None:
    """What it has read may go, and its persistent workers end with the run."""
    trainer = make_trainer()
    alive = []
    for epochs in (1, 2, 3):
        loader = DataLoader(data, 8, num_workers=1, persistent_workers=True)
        trainer.fit(loader, loader, max_epochs=epochs)
        alive.append(weakref.ref(loader))
        assert multiprocessing.active_children() == []
    del loader
    gc.collect()

    assert [each() for each in alive] == [None] * 3
