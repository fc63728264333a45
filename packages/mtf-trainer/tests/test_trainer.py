from __future__ import annotations

import io
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies.dp import DataParallelStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from mtf_trainer import (
    CheckpointMismatchError,
    CheckpointWarning,
    CheckpointWriteError,
    GenericTrainer,
    GenericTrainerConfig,
    MetricsFileError,
    NothingToResumeError,
    Phase,
    StopReason,
    read_metrics,
)
from mtf_trainer.trainer import StepFunction

MakeTrainer = Callable[..., GenericTrainer]


def cross_entropy(trainer: GenericTrainer, batch: Any, _: int) -> Tensor:
    """Return the mean loss."""
    x_BD, y_B = batch
    return nn.functional.cross_entropy(trainer.model(x_BD), y_B)


def stops_at(step: int, number: signal.Signals = signal.SIGTERM) -> StepFunction:
    """Return a step function that gets a signal while *step* steps are done."""

    def training_step(trainer: GenericTrainer, batch: Any, batch_idx: int) -> Tensor:
        if trainer.global_step == step:
            signal.raise_signal(number)
        return cross_entropy(trainer, batch, batch_idx)

    return training_step


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


def step_lr(optimizer: Any) -> Any:
    """Halve the rate after each epoch."""
    return torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)


def test_fit_trains_and_leaves_its_files(
    make_trainer: MakeTrainer,
    data: TensorDataset,
    loader: DataLoader[Any],
    tmp_path: Path,
) -> None:
    """The loss falls, the result says what was done, and the folder holds it."""
    trainer = make_trainer()
    before = trainer.validate(DataLoader(data, batch_size=8))

    result = trainer.fit(loader, DataLoader(data, batch_size=8), max_epochs=4)

    run = tmp_path / "run"
    assert result.reason is StopReason.COMPLETED
    assert (result.epoch, result.global_step) == (4, 24)
    assert (trainer.epoch, trainer.global_step) == (4, 24)
    assert result.metrics["loss"] < before["loss"]
    assert result.resumed_from is None
    assert result.checkpoint == run / "checkpoints" / "epoch_004_step_000024.ckpt"
    assert (run / "checkpoints" / "latest.ckpt").resolve() == result.checkpoint
    assert sorted(p.name for p in run.iterdir()) == ["checkpoints", "metrics.jsonl"]
    rows = read_metrics(run / "metrics.jsonl")
    assert [r["split"] for r in rows] == ["train", "val"] * 4
    assert rows[-1]["loss"] == result.metrics["loss"]


@pytest.mark.parametrize("own_generator", [False, True])
def test_run_in_two_parts_ends_as_one_in_one(
    make_trainer: MakeTrainer, data: TensorDataset, tmp_path: Path, *, own_generator: bool
) -> None:
    """Two epochs, then two more by a new trainer: weights, optimizer, streams, metrics.

    On one process, without loader workers, with dropout and a shuffling loader: all are
    bit for bit those of four epochs at once.
    """

    def loaders() -> tuple[DataLoader[Any], DataLoader[Any]]:
        generator = torch.Generator().manual_seed(1) if own_generator else None
        shuffled = DataLoader(data, batch_size=8, shuffle=True, generator=generator)
        return shuffled, DataLoader(data, batch_size=16)

    def make(name: str) -> GenericTrainer:
        return make_trainer(
            run_dir=tmp_path / name, scheduler=step_lr, gradient_accumulation_steps=2
        )

    whole = make("whole")
    whole.fit(*loaders(), max_epochs=4)
    expected = final_state(whole)

    first = make("parts").fit(*loaders(), max_epochs=2)
    torch.manual_seed(99)
    second = make("parts")
    result = second.fit(*loaders(), max_epochs=4)

    assert_same_run(final_state(second), expected)
    assert result.resumed_from == first.checkpoint
    metrics = [(tmp_path / n / "metrics.jsonl").read_bytes() for n in ("whole", "parts")]
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signal_stops_at_a_step_and_the_epoch_is_repeated(
    make_trainer: MakeTrainer,
    loader: DataLoader[Any],
    tmp_path: Path,
    number: signal.Signals,
) -> None:
    """A run stopped inside its third epoch repeats it, and ends as if never stopped."""
    whole = make_trainer(run_dir=tmp_path / "whole", step=cross_entropy)
    whole.fit(loader, max_epochs=4)
    expected = final_state(whole)
    stopped = make_trainer(step=stops_at(14, number), log_every_n_steps=2)

    result = stopped.fit(loader, max_epochs=4)

    assert result.reason is StopReason.INTERRUPTED
    assert (result.epoch, result.global_step) == (2, 15)
    assert stopped.phase is Phase.TRAIN_BATCH_END
    assert result.checkpoint is not None
    assert result.checkpoint.name == "epoch_002_step_000012.ckpt"
    again = make_trainer(step=cross_entropy)
    finished = again.fit(loader, max_epochs=4)
    assert finished.resumed_from == result.checkpoint
    assert finished.global_step == 24
    assert_same_run(final_state(again), expected)
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert sum(row["samples"] for row in rows) == 4 * 43


def test_signal_in_validation_stops_there(
    make_trainer: MakeTrainer, data: TensorDataset, loader: DataLoader[Any]
) -> None:
    """Validation is left at its next batch, and its epoch does not count."""

    def step(trainer: GenericTrainer, batch: Any, batch_idx: int) -> Tensor:
        if trainer.phase is Phase.VAL_BATCH_FORWARD and batch_idx == 1:
            signal.raise_signal(signal.SIGTERM)
        return cross_entropy(trainer, batch, batch_idx)

    trainer = make_trainer(step=step)

    result = trainer.fit(loader, DataLoader(data, batch_size=8), max_epochs=2)

    assert result.reason is StopReason.INTERRUPTED
    assert result.epoch == 0
    assert trainer.phase is Phase.VAL_BATCH_END
    assert trainer.model.training


def test_signal_in_the_last_batch_saves_the_finished_epoch(
    make_trainer: MakeTrainer, loader: DataLoader[Any]
) -> None:
    """At an epoch's edge nothing is lost: it is saved though none was due, then it stops."""
    trainer = make_trainer(step=stops_at(5), checkpoint_every_n_epochs=10)

    result = trainer.fit(loader, max_epochs=3)

    assert result.reason is StopReason.INTERRUPTED
    assert (result.epoch, result.global_step) == (1, 6)
    assert result.checkpoint is not None
    assert result.checkpoint.name == "epoch_001_step_000006.ckpt"


def test_signal_in_the_last_epochs_last_batch_changes_nothing(
    make_trainer: MakeTrainer, loader: DataLoader[Any]
) -> None:
    """A run that is done anyway is completed, not interrupted."""
    result = make_trainer(step=stops_at(5)).fit(loader)

    assert result.reason is StopReason.COMPLETED


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


def test_completed_run_returns_at_once(
    make_trainer: MakeTrainer, loader: DataLoader[Any]
) -> None:
    """Enough epochs done: the model is loaded, the stored metrics come back, no step."""
    done = make_trainer()
    first = done.fit(loader, max_epochs=3)

    def never(*_: object) -> Tensor:
        raise AssertionError

    again = make_trainer(step=never)
    result = again.fit(loader, max_epochs=2)

    assert result.reason is StopReason.COMPLETED
    assert (result.epoch, result.global_step) == (3, 18)
    assert result.metrics == first.metrics
    assert result.checkpoint == result.resumed_from == first.checkpoint
    assert again.phase is Phase.TRAINING_COMPLETE
    assert_same_run(final_state(again)[:-1], final_state(done)[:-1])


def test_same_trainer_goes_on(
    make_trainer: MakeTrainer, loader: DataLoader[Any], tmp_path: Path
) -> None:
    """Fitting again with more epochs trains the rest, as a new trainer would."""
    whole = make_trainer(run_dir=tmp_path / "whole", step=cross_entropy)
    whole.fit(loader, max_epochs=3)
    expected = final_state(whole)
    trainer = make_trainer(step=stops_at(8))
    trainer.fit(loader, max_epochs=3)

    result = trainer.fit(loader, max_epochs=3)

    assert result.reason is StopReason.INTERRUPTED
    trainer._training_step = cross_entropy
    assert trainer.fit(loader, max_epochs=3).epoch == 3
    assert_same_run(final_state(trainer), expected)


def test_used_model_does_not_pass_for_a_new_one(
    make_trainer: MakeTrainer, loader: DataLoader[Any]
) -> None:
    """Stopped before the first checkpoint, a trainer refuses to begin anew with its model."""
    trainer = make_trainer(step=stops_at(2))
    result = trainer.fit(loader)
    assert result.checkpoint is None
    assert result.metrics == {}

    with pytest.raises(NothingToResumeError, match="make a new model"):
        trainer.fit(loader)


def test_objects_are_set_up_once(
    make_trainer: MakeTrainer,
    fabric: Fabric,
    loader: DataLoader[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Fitting and validating again sets up neither model nor loader again."""
    calls: list[str] = []

    def counted(name: str) -> Callable[..., Any]:
        call = getattr(fabric, name)

        def wrapped(*args: Any) -> Any:
            calls.append(name)
            return call(*args)

        return wrapped

    for name in ("setup", "setup_dataloaders"):
        monkeypatch.setattr(fabric, name, counted(name))

    trainer = make_trainer()
    for epochs in (1, 2):
        trainer.fit(loader, loader, max_epochs=epochs)
        trainer.validate(loader)

    assert calls == ["setup", "setup_dataloaders"]


class TellsEpoch(RandomSampler):
    """Notes the epochs it is told."""

    def __init__(self, data: TensorDataset) -> None:
        super().__init__(data)
        self.epochs: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)


def test_sampler_is_told_the_epoch_of_the_run(
    make_trainer: MakeTrainer, data: TensorDataset
) -> None:
    """A sampler is told the run's epochs from 0, also where a run goes on."""
    sampler = TellsEpoch(data)
    make_trainer().fit(DataLoader(data, batch_size=8, sampler=sampler), max_epochs=2)

    make_trainer().fit(DataLoader(data, batch_size=8, sampler=sampler), max_epochs=4)

    assert sampler.epochs == [0, 1, 2, 3]


def test_checkpoints_come_when_due_and_at_the_end(
    make_trainer: MakeTrainer, loader: DataLoader[Any], tmp_path: Path
) -> None:
    """Every second epoch and the last make one; the oldest beyond two goes."""
    trainer = make_trainer(checkpoint_every_n_epochs=2, keep_last_n_checkpoints=2)

    trainer.fit(loader, max_epochs=5)

    names = sorted(p.name for p in (tmp_path / "run" / "checkpoints").glob("epoch*.ckpt"))
    assert names == ["epoch_004_step_000024.ckpt", "epoch_005_step_000030.ckpt"]


def test_damaged_checkpoint_falls_back(
    make_trainer: MakeTrainer, loader: DataLoader[Any], tmp_path: Path
) -> None:
    """With the newest cut short, the run goes on from the one before, to the same end."""
    whole = make_trainer()
    expected_path = whole.fit(loader, max_epochs=3).checkpoint
    expected = final_state(whole)
    metrics = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert expected_path is not None
    expected_path.write_bytes(expected_path.read_bytes()[:100])

    again = make_trainer()
    with pytest.warns(CheckpointWarning, match=str(expected_path)):
        result = again.fit(loader, max_epochs=3)

    assert result.resumed_from is not None
    assert result.resumed_from.name == "epoch_002_step_000012.ckpt"
    assert_same_run(final_state(again), expected)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == metrics
    assert result.checkpoint == expected_path
    make_trainer().fit(loader, max_epochs=3)


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
    content["resume"]["rng"] *= 2
    content["loader_generators"] *= 2
    trainer._store.save(content, epoch=1, global_step=7)

    with pytest.warns(
        CheckpointWarning, match="written by 2 processes and is continued by 1"
    ):
        result = make_trainer().fit(loader, max_epochs=2)

    assert result.epoch == 2
    assert (tmp_path / "run").is_dir()


def test_full_disk_keeps_the_last_good_checkpoint(
    make_trainer: MakeTrainer, loader: DataLoader[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint that cannot be written ends the run clearly; the next one goes on."""
    first = make_trainer().fit(loader).checkpoint
    second = make_trainer()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mtf_trainer.checkpoint._flush", full)
    with pytest.raises(CheckpointWriteError, match=r"epoch_002.*No space left on device"):
        second.fit(loader, max_epochs=2)
    monkeypatch.undo()

    assert make_trainer().fit(loader, max_epochs=2).resumed_from == first


def test_unusable_folder_is_found_before_training(
    make_trainer: MakeTrainer, loader: DataLoader[Any], tmp_path: Path
) -> None:
    """A file in the folder's place, or a folder in the metrics', stops it at the start."""

    def never(*_: object) -> Tensor:
        raise AssertionError

    (tmp_path / "file").touch()
    with pytest.raises(CheckpointWriteError, match="Not a directory"):
        make_trainer(run_dir=tmp_path / "file", step=never).fit(loader)
    (tmp_path / "run" / "metrics.jsonl").mkdir(parents=True)
    with pytest.raises(MetricsFileError, match="Is a directory"):
        make_trainer(step=never).fit(loader)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_error_of_a_step_arrives_untouched(
    make_trainer: MakeTrainer, loader: DataLoader[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The very exception reaches the caller, with the open line of the terminal ended."""
    error = RuntimeError("mine")
    stream = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr("mtf_trainer.progress._REDRAW_S", 0.0)

    def step(trainer: GenericTrainer, batch: Any, batch_idx: int) -> Tensor:
        if batch_idx == 2:
            raise error
        return cross_entropy(trainer, batch, batch_idx)

    with pytest.raises(RuntimeError) as caught:
        make_trainer(step=step, show_progress=True).fit(loader)

    assert caught.value is error
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert "2/6" in stream.getvalue()
    assert stream.getvalue().endswith("left\x1b[K\n")


def test_progress_goes_to_stderr_alone(
    make_trainer: MakeTrainer,
    data: TensorDataset,
    loader: DataLoader[Any],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Each part of an epoch, where it goes on and where it stopped are told; or nothing."""
    val = DataLoader(data, batch_size=8)
    make_trainer().fit(loader, val)
    assert capfd.readouterr() == ("", "")

    make_trainer(show_progress=True, log_every_n_steps=1).fit(loader, val, max_epochs=2)
    make_trainer(show_progress=True, step=stops_at(13)).fit(loader, max_epochs=3)

    out, err = capfd.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0] == "going on from epoch_001_step_000006.ckpt"
    assert lines[1].startswith("epoch 2/2  loss 0.")
    assert lines[2].startswith("epoch 2/2 validation  loss 0.")
    assert lines[3] == "going on from epoch_002_step_000012.ckpt"
    assert lines[4] == (
        "stopped after step 14; run again to go on from epoch_002_step_000012.ckpt"
    )


def test_stop_without_a_checkpoint_is_told(
    make_trainer: MakeTrainer, loader: DataLoader[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """A run stopped in its first epoch says that the next begins at the beginning."""
    make_trainer(show_progress=True, step=stops_at(1)).fit(loader)

    assert capsys.readouterr().err == (
        "stopped after step 2; run again to go on from the beginning\n"
    )


class Overrides(GenericTrainer):
    """Brings its own steps."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return cross_entropy(self, batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        return {"loss": cross_entropy(self, batch, batch_idx) * 0, "ones": torch.ones(())}


def test_steps_can_be_overridden(
    tmp_path: Path, fabric: Fabric, loader: DataLoader[Any]
) -> None:
    """A subclass's steps are the ones that run."""
    model = nn.Linear(4, 2)
    config = GenericTrainerConfig(run_dir=tmp_path, show_progress=False)
    trainer = Overrides(config, fabric, model, torch.optim.SGD(model.parameters()))

    result = trainer.fit(loader, loader)

    assert result.metrics == {"loss": 0.0, "ones": 1.0}


def test_steps_must_be_told_once(tmp_path: Path, fabric: Fabric) -> None:
    """No training step, or one in two places, is refused at once."""
    config = GenericTrainerConfig(run_dir=tmp_path)
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters())

    with pytest.raises(TypeError, match="pass training_step or override it"):
        GenericTrainer(config, fabric, model, optimizer)
    with pytest.raises(TypeError, match="pass training_step or override it"):
        Overrides(config, fabric, model, optimizer, training_step=cross_entropy)
    with pytest.raises(TypeError, match="validation_step is passed and overridden"):
        Overrides(config, fabric, model, optimizer, validation_step=cross_entropy)


def test_validation_function_is_used(
    tmp_path: Path, fabric: Fabric, loader: DataLoader[Any]
) -> None:
    """A validation step that is passed is the one validation takes."""
    model = nn.Linear(4, 2)
    trainer = GenericTrainer(
        GenericTrainerConfig(run_dir=tmp_path),
        fabric,
        model,
        torch.optim.SGD(model.parameters()),
        training_step=cross_entropy,
        validation_step=lambda *_: torch.tensor(7.0),
    )

    assert trainer.validate(loader) == {"loss": 7.0}


def test_objects_set_up_before_are_taken(
    tmp_path: Path, fabric: Fabric, loader: DataLoader[Any]
) -> None:
    """What the caller let Fabric set up is used as it is; half of it is refused."""
    raw = nn.Linear(4, 2)
    raw_optimizer = torch.optim.SGD(raw.parameters())
    model, optimizer = fabric.setup(raw, raw_optimizer)
    config = GenericTrainerConfig(run_dir=tmp_path, show_progress=False)

    trainer = GenericTrainer(
        config, fabric, model, optimizer, training_step=cross_entropy
    )

    assert trainer.model is model
    assert trainer.fit(loader).epoch == 1
    with pytest.raises(ValueError, match="both model and optimizer, or neither"):
        GenericTrainer(config, fabric, model, raw_optimizer, training_step=cross_entropy)


def test_what_cannot_be_continued_is_refused(tmp_path: Path, fabric: Fabric) -> None:
    """Strategies and schedulers this version cannot save are refused when it is made."""
    config = GenericTrainerConfig(run_dir=tmp_path)
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters())
    plateau: Any = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    several: Any = [optimizer]

    with pytest.raises(ValueError, match="ReduceLROnPlateau is not supported"):
        GenericTrainer(
            config, fabric, model, optimizer, plateau, training_step=cross_entropy
        )
    with pytest.raises(
        TypeError, match=r"optimizer must be a torch\.optim\.Optimizer, not \["
    ):
        GenericTrainer(config, fabric, model, several, training_step=cross_entropy)
    with pytest.raises(ValueError, match="not DataParallelStrategy"):
        GenericTrainer(
            config,
            Fabric(
                accelerator="cpu",
                strategy=DataParallelStrategy(parallel_devices=[torch.device("cpu")]),
            ),
            model,
            optimizer,
            training_step=cross_entropy,
        )


def test_max_epochs_below_one_is_refused(
    make_trainer: MakeTrainer, loader: DataLoader[Any]
) -> None:
    """Nothing is done for a number of epochs that makes no sense."""
    with pytest.raises(ValueError, match="max_epochs must be at least 1, not 0"):
        make_trainer().fit(loader, max_epochs=0)
