"""What one epoch does, seen through `GenericTrainer.fit`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from mtf_trainer import (
    CheckpointSettings,
    DivergenceError,
    GenericTrainer,
    GenericTrainerConfig,
    GuardSettings,
    Phase,
    SnapshotSettings,
    read_metrics,
)
from mtf_trainer._loop.phase_loop import PhaseLoop
from mtf_trainer.phases import check_transition

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


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """The samples of a table, as a stream; *told* is the length it claims."""

    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self.data[i] for i in range(len(self.data)))


def test_gradients_that_no_optimizer_uses_are_of_their_window_alone(
    make_trainer: MakeTrainer, loader: DataLoader[Any], tmp_path: Path
) -> None:
    """What is saved inside a window does not tell where the process began."""
    certificates = []
    for stops in ([13], [3, 13]):
        run_dir = tmp_path / str(len(stops))
        for stop in stops:
            trainer = make_trainer(
                run_dir=run_dir,
                optimizer=lambda parameters: plain_sgd(list(parameters)[2:]),
                gradient_accumulation_steps=3,
            )
            trainer.probe = stops_before_batch(trainer, stop)
            trainer.fit(loader, max_epochs=3)
        path = run_dir / "checkpoints/latest.ckpt"
        content = torch.load(path, weights_only=True)
        assert content["locals"][0]["grads"].keys() == content["model"].keys()
        certificates.append(content["certificate"]["optimizer"])

    assert certificates[0] == certificates[1]


def stops_before_batch(trainer: GenericTrainer, number: int) -> Any:
    """Return a probe that stops as batch *number* of the run, from 0, is to be loaded."""
    epoch, batch_idx = divmod(number, 6)

    def probe(phase: Phase) -> bool:
        at = trainer._at
        here = (at.epoch, at.train.batch_idx) == (epoch, batch_idx)
        return phase is Phase.TRAIN_BATCH_LOAD and here

    return probe


@pytest.mark.parametrize("accumulate", [1, 3, 4, 100])
@pytest.mark.parametrize("stream", [False, True])
def test_accumulation_is_exact_at_the_ragged_end(
    make_trainer: MakeTrainer,
    fabric: Fabric,
    data: TensorDataset,
    *,
    accumulate: int,
    stream: bool,
) -> None:
    """Six batches, the last short, in windows of several: each step is that of one batch.

    The reference takes each window's samples as a single batch; the length of a stream
    is not known.
    """
    size = 8 * accumulate
    reference = linear()
    optimizer = plain_sgd(reference.parameters())
    x_ND, y_N = data.tensors
    for start in range(0, len(data), size):
        window = slice(start, start + size)
        z_BC = reference(x_ND[window].double())
        optimizer.zero_grad()
        fabric.backward(nn.functional.cross_entropy(z_BC, y_N[window]))
        optimizer.step()

    trainer = make_trainer(
        model=linear(),
        optimizer=plain_sgd,
        step=double_step,
        gradient_accumulation_steps=accumulate,
        max_grad_norm=None,
        skip_to_resume=True,
    )
    dataset: Any = Stream(data) if stream else data
    result = trainer.fit(DataLoader(dataset, batch_size=8))

    assert result.global_step == -(-len(data) // size)
    for ours, theirs in zip(
        trainer.model.parameters(), reference.parameters(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_train_lines_cover_each_sample_once(
    make_trainer: MakeTrainer, loader: DataLoader[Any], tmp_path: Path
) -> None:
    """Every n steps and at the epoch's end there is a line; samples add up to the data."""
    trainer = make_trainer(log_every_n_steps=4, max_grad_norm=None)

    result = trainer.fit(loader, max_epochs=2)

    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [(r["step"], r["epoch"], r["samples"]) for r in rows] == [
        (4, 1, 32),
        (6, 1, 11),
        (8, 2, 16),
        (12, 2, 27),
    ]
    assert list(rows[0]) == [
        *("step", "epoch", "split", "samples", "loss", "accuracy", "lr"),
    ]
    mean = sum(r["loss"] * r["samples"] for r in rows[2:]) / 43
    assert result.metrics["loss"] == pytest.approx(mean)


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


def watched(tmp_path: Path, fabric: Fabric, **settings: Any) -> Watched:
    """Build a trainer that notes its phases, with a scheduler."""
    model = linear()
    optimizer = plain_sgd(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    config = GenericTrainerConfig(
        run_dir=tmp_path / "run",
        show_progress=False,
        checkpoint=CheckpointSettings(asynchronous=False),
        snapshot=SnapshotSettings(enabled=False),
        **settings,
    )
    return Watched(config, fabric, model, optimizer, scheduler)


def test_phases_of_an_epoch_come_in_order(
    tmp_path: Path, fabric: Fabric, data: TensorDataset
) -> None:
    """Three batches in windows of two, then validation on one: the phases in full."""
    trainer = watched(
        tmp_path, fabric, gradient_accumulation_steps=2, scheduler_interval="step"
    )

    trainer.fit(DataLoader(data, batch_size=15), DataLoader(data, batch_size=43))

    batch = ["TRAIN_BATCH_LOAD", "TRAIN_BATCH_FORWARD", "TRAIN_BATCH_BACKWARD"]
    step = ["TRAIN_BATCH_OPTIM_STEP", "SCHEDULER_BATCH_STEP"]
    assert trainer.seen == [
        *("INIT", "TRAIN_START_EPOCH", *batch, "TRAIN_BATCH_END"),
        *(*batch, *step, "TRAIN_BATCH_END"),
        *(*batch, *step, "TRAIN_BATCH_END"),
        *("VAL_START_EPOCH", "VAL_BATCH_LOAD", "VAL_BATCH_FORWARD", "VAL_BATCH_END"),
        *("EPOCH_END", "TRAINING_COMPLETE"),
    ]
    assert trainer.phase is Phase.TRAINING_COMPLETE


@example(
    num_samples=2,
    batch_size=1,
    accumulation=2,
    epochs=1,
    max_steps=1,
    validates=False,
    interval="step",
    stop_at=11,
)
@settings(deadline=None, max_examples=15)
@given(
    num_samples=st.integers(1, 9),
    batch_size=st.integers(1, 4),
    accumulation=st.integers(1, 4),
    epochs=st.integers(1, 2),
    max_steps=st.none() | st.integers(1, 8),
    validates=st.booleans(),
    interval=st.sampled_from(["step", "epoch"]),
    stop_at=st.none() | st.integers(0, 60),
)
def test_no_run_takes_a_step_that_the_table_forbids(  # noqa: PLR0913 - what is drawn
    tmp_path_factory: pytest.TempPathFactory,
    *,
    num_samples: int,
    batch_size: int,
    accumulation: int,
    epochs: int,
    max_steps: int | None,
    validates: bool,
    interval: str,
    stop_at: int | None,
) -> None:
    """Whatever the sizes, and stopped wherever: every step is in the table, each once."""
    folder = tmp_path_factory.mktemp("run")
    fabric = Fabric(accelerator="cpu", devices=1)
    rows = TensorDataset(torch.randn(num_samples, 4), torch.zeros(num_samples).long())
    loader = DataLoader(rows, batch_size=batch_size)
    seen: list[Phase] = []

    def fit(*, stops: bool) -> None:
        trainer = watched(
            folder,
            fabric,
            gradient_accumulation_steps=accumulation,
            scheduler_interval=interval,
        )

        def probe(phase: Phase) -> bool:
            if seen and phase is not seen[-1]:
                check_transition(seen[-1], phase)
            if not seen or phase is not seen[-1]:
                seen.append(phase)
            return stops and len(seen) == stop_at

        trainer.probe = probe
        trainer.fit(loader, loader if validates else None, epochs, max_steps)

    fit(stops=True)
    fit(stops=False)

    steps = -(-num_samples // (batch_size * accumulation)) * epochs
    expected = steps if max_steps is None else min(steps, max_steps)
    assert seen.count(Phase.TRAIN_BATCH_OPTIM_STEP) == expected
    if max_steps is None or max_steps >= steps:
        assert seen.count(Phase.EPOCH_END) == epochs


def test_short_window_of_a_stream_makes_a_step(
    tmp_path: Path, fabric: Fabric, data: TensorDataset
) -> None:
    """The last batch of a stream is known as such, and closes its window."""
    trainer = watched(
        tmp_path, fabric, gradient_accumulation_steps=2, skip_to_resume=True
    )

    trainer.fit(DataLoader(Stream(data), batch_size=43))

    assert trainer.seen[4:] == [
        *("TRAIN_BATCH_BACKWARD", "TRAIN_BATCH_OPTIM_STEP", "TRAIN_BATCH_END"),
        *("SCHEDULER_EPOCH_STEP", "EPOCH_END", "TRAINING_COMPLETE"),
    ]
    assert trainer.global_step == 1


def nan_step(trainer: GenericTrainer, batch: Any, _: int) -> Tensor:
    """Return no number."""
    return double_step(trainer, batch, 0) * torch.nan


def test_loss_that_is_not_finite_stops_unless_told_otherwise(
    make_trainer: MakeTrainer, data: TensorDataset, tmp_path: Path
) -> None:
    """A NaN ends the run with its step, and no checkpoint has it; or it is recorded."""

    def make(**settings: Any) -> GenericTrainer:
        return make_trainer(
            model=linear(), optimizer=plain_sgd, step=nan_step, **settings
        )

    loader = DataLoader(data, batch_size=43)
    with pytest.raises(DivergenceError, match="step 1: the loss is nan"):
        make().fit(loader)
    assert not list((tmp_path / "run" / "checkpoints").glob("*.ckpt"))

    result = make(guard=GuardSettings(on_nonfinite="ignore")).fit(loader)

    assert '"loss": "NaN"' in (tmp_path / "run" / "metrics.jsonl").read_text("utf-8")
    assert result.metrics["loss"] != result.metrics["loss"]
    assert result.best_metric is None


def test_loop_alone_has_no_steps(tmp_path: Path, fabric: Fabric) -> None:
    """The part without steps says that a subclass brings them."""
    config = GenericTrainerConfig(run_dir=tmp_path)
    model = linear()
    optimizer = plain_sgd(model.parameters())
    loop = PhaseLoop(config, fabric, model, [optimizer], [], None)
    run: Any = None

    with pytest.raises(NotImplementedError):
        loop.training_step(None, 0)
    with pytest.raises(NotImplementedError):
        loop.validation_step(None, 0)
    with pytest.raises(NotImplementedError):
        loop._attend(run, Phase.INIT)
