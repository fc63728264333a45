from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mtf_trainer import (
    EXIT_RESUME,
    CheckpointSettings,
    DivergenceError,
    GenericTrainer,
    GuardSettings,
    Limits,
    StopReason,
    read_metrics,
)
from mtf_trainer._guards.limits import Deadline
from mtf_trainer._loop import fitting

MakeTrainer = Callable[..., GenericTrainer]


def cross_entropy(trainer: GenericTrainer, batch: Any, _: int) -> Tensor:
    """Return the mean loss."""
    x_BD, y_B = batch
    return nn.functional.cross_entropy(trainer.model(x_BD), y_B)


def test_program_can_ask_for_a_stop(
    make_trainer: MakeTrainer, loader: DataLoader[Any]
) -> None:
    """What `stop` asks for is done at the next safe point; outside of fit it is nothing."""

    def step(trainer: GenericTrainer, batch: Any, batch_idx: int) -> Tensor:
        if trainer.global_step == 3:
            trainer.stop()
        return cross_entropy(trainer, batch, batch_idx)

    trainer = make_trainer(step=step)
    trainer.stop()

    assert trainer.fit(loader).global_step == 3


def final_state(trainer: GenericTrainer) -> list[Tensor]:
    """Return all tensors of model and optimizer, then a number from the next draw."""
    states = trainer.optimizer.state_dict()["state"].values()
    return [
        *trainer.model.state_dict().values(),
        *(tensor for state in states for tensor in state.values()),
        torch.rand(()),
    ]


def assert_same_run(one: list[Tensor], other: list[Tensor]) -> None:
    """Compare bit for bit."""
    assert len(one) == len(other)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_steps_can_be_limited_and_the_rest_done_later(
    make_trainer: MakeTrainer, loader: DataLoader[Any], tmp_path: Path
) -> None:
    """Eight steps, then all, are the same as all at once."""
    whole = make_trainer(run_dir=tmp_path / "whole")
    whole.fit(loader, max_epochs=2)
    expected = final_state(whole)

    first = make_trainer().fit(loader, max_epochs=2, max_steps=8)
    again = make_trainer().fit(loader, max_epochs=2, max_steps=8)
    last = make_trainer()
    result = last.fit(loader, max_epochs=2)

    assert first.reason is again.reason is StopReason.MAX_STEPS
    assert first.exit_code == 0
    assert (first.epoch, first.global_step, again.global_step) == (1, 8, 8)
    assert result.reason is StopReason.COMPLETED
    assert_same_run(final_state(last), expected)


def test_memory_that_is_used_up_before_a_step_is_an_error(
    make_trainer: MakeTrainer, loader: DataLoader[Any]
) -> None:
    """To be run again, it would be there again; a run that is done needs no memory."""
    too_little = Limits(max_memory_bytes=1)
    with pytest.raises(ValueError, match=r"max_memory_bytes allows 0 MiB .* first step"):
        make_trainer(limits=too_little).fit(loader)

    make_trainer().fit(loader)
    done = make_trainer(limits=too_little).fit(loader)

    assert done.reason is StopReason.COMPLETED


@pytest.mark.parametrize("batches", [1, 2])
def test_memory_that_a_first_step_uses_up(
    make_trainer: MakeTrainer,
    loader: DataLoader[Any],
    monkeypatch: pytest.MonkeyPatch,
    batches: int,
) -> None:
    """Behind the step it is a stop; inside its window it is an error."""
    used = [0]

    def step(trainer: GenericTrainer, batch: Any, batch_idx: int) -> Tensor:
        used[0] = 100
        return cross_entropy(trainer, batch, batch_idx)

    def make_deadline(limits: Limits, environ: Mapping[str, str]) -> Deadline:
        return Deadline(limits, environ, memory=lambda: used[0])

    monkeypatch.setattr(fitting, "Deadline", make_deadline)
    trainer = make_trainer(
        step=step,
        limits=Limits(max_memory_bytes=100),
        gradient_accumulation_steps=batches,
    )

    if batches == 1:
        result = trainer.fit(loader)
        assert (result.reason, result.global_step) == (StopReason.LIMIT, 1)
        assert result.exit_code == EXIT_RESUME
    else:
        with pytest.raises(ValueError, match="max_memory_bytes"):
            trainer.fit(loader)


def test_time_limit_saves_and_stops(
    make_trainer: MakeTrainer, loader: DataLoader[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end that the job's environment tells, less the grace, the run is saved."""
    end = str(int(datetime.now(UTC).timestamp()) + 20)
    monkeypatch.setenv("SLURM_JOB_END_TIME", end)

    result = make_trainer(limits=Limits(grace_s=60)).fit(loader)

    assert result.reason is StopReason.LIMIT
    assert result.exit_code == EXIT_RESUME
    assert result.checkpoint is not None
    assert result.global_step < 6


def test_signals_are_left_alone_when_told_so(
    make_trainer: MakeTrainer, loader: DataLoader[Any]
) -> None:
    """Switched off, or in another thread, the process's own handlers stay."""
    handlers = []

    def step(trainer: GenericTrainer, batch: Any, batch_idx: int) -> Tensor:
        handlers.append(signal.getsignal(signal.SIGTERM))
        return cross_entropy(trainer, batch, batch_idx)

    make_trainer(step=step, handle_signals=False).fit(loader)
    trainer = make_trainer(step=step)
    thread = threading.Thread(target=trainer.fit, args=(loader, None, 2))
    thread.start()
    thread.join()

    assert trainer.epoch == 2
    assert set(handlers) == {signal.getsignal(signal.SIGTERM)}


def linear() -> nn.Module:
    """Return a small model in double precision, the same each time."""
    torch.manual_seed(0)
    return nn.Linear(4, 2).double()


def double_step(trainer: GenericTrainer, batch: Any, _: int) -> Tensor:
    """Return the mean loss alone, in double precision."""
    x_BD, y_B = batch
    return nn.functional.cross_entropy(trainer.model(x_BD.double()), y_B)


def test_divergence_rolls_back_with_lower_rates(
    make_trainer: MakeTrainer, data: TensorDataset, tmp_path: Path
) -> None:
    """From the last checkpoint, with half the rate; the lines in between are taken back."""
    seen: list[float] = []

    def step(trainer: GenericTrainer, batch: Any, _: int) -> Tensor:
        rate = float(trainer.optimizer.param_groups[0]["lr"])
        if torch.is_grad_enabled():
            seen.append(rate)
        bad = trainer.epoch == 1 and rate == 0.5
        return double_step(trainer, batch, 0) * (torch.nan if bad else 1.0)

    trainer = make_trainer(
        model=linear(),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.5),
        step=step,
        log_every_n_steps=1,
        guard=GuardSettings(on_nonfinite="rollback"),
    )

    result = trainer.fit(DataLoader(data, batch_size=43), max_epochs=3)

    assert seen == [0.5, 0.5, 0.25, 0.25]
    assert result.epoch == 3
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [(row["step"], row["lr"]) for row in rows] == [(1, 0.5), (2, 0.25), (3, 0.25)]


def test_last_step_that_diverges_is_taken_again(
    make_trainer: MakeTrainer, loader: DataLoader[Any]
) -> None:
    """A run that goes back as it is to end takes all the steps that were asked for."""
    trainer = make_trainer(
        step=step_that_diverges_at(4),
        optimizer=plain_sgd,
        guard=GuardSettings(on_nonfinite="rollback"),
        checkpoint=CheckpointSettings(asynchronous=False, every_n_steps=2),
    )

    result = trainer.fit(loader, max_steps=5)

    assert (result.reason, result.global_step) == (StopReason.MAX_STEPS, 5)
    assert result.checkpoint is not None
    assert result.checkpoint.name == "epoch_000_step_000005.ckpt"
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


def step_that_diverges_at(bad: int) -> Any:
    """Return a step that has no number behind *bad* steps, as long as the rate is 0.1."""

    def step(trainer: GenericTrainer, batch: Any, _: int) -> Tensor:
        rate = trainer.optimizer.param_groups[0]["lr"]
        is_bad = trainer.global_step == bad and rate == pytest.approx(0.1)
        return cross_entropy(trainer, batch, 0) * (torch.nan if is_bad else 1.0)

    return step


def test_error_leaves_no_data_open(
    make_trainer: MakeTrainer, data: TensorDataset
) -> None:
    """Behind a step that raised, the trainer holds no pipes to the loader's workers."""

    def step(trainer: GenericTrainer, batch: Any, batch_idx: int) -> Tensor:
        if batch_idx == 1:
            message = "no more"
            raise RuntimeError(message)
        return cross_entropy(trainer, batch, batch_idx)

    trainer = make_trainer(step=step)
    before = set(Path("/proc/self/fd").iterdir())
    with pytest.raises(RuntimeError, match="no more"):
        trainer.fit(DataLoader(data, 8, num_workers=1, persistent_workers=True))

    assert set(Path("/proc/self/fd").iterdir()) <= before


def plain_sgd(parameters: Any) -> torch.optim.Optimizer:
    """Make steps that show the gradient as it is."""
    return torch.optim.SGD(parameters, lr=0.1)


def nan_step(trainer: GenericTrainer, batch: Any, _: int) -> Tensor:
    """Return no number."""
    return double_step(trainer, batch, 0) * torch.nan


def test_rollbacks_end(make_trainer: MakeTrainer, data: TensorDataset) -> None:
    """Without a checkpoint there is nothing to go back to; and not for ever with one."""
    guard = GuardSettings(on_nonfinite="rollback", max_rollbacks=2)
    loader = DataLoader(data, batch_size=43)

    def make(step: Any) -> GenericTrainer:
        return make_trainer(model=linear(), optimizer=plain_sgd, step=step, guard=guard)

    with pytest.raises(DivergenceError, match="no checkpoint to go back to"):
        make(nan_step).fit(loader)
    make(double_step).fit(loader)
    with pytest.raises(DivergenceError, match="rolled back 2 times already"):
        make(nan_step).fit(loader, max_epochs=2)
