from __future__ import annotations

import io
import json
import math
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from mtf_trainer import (
    EXIT_RESUME,
    CallbackError,
    CheckpointSettings,
    CheckpointWarning,
    CheckpointWriteError,
    DivergenceError,
    GenericTrainer,
    GenericTrainerConfig,
    MetricsFileError,
    MultiLoader,
    NothingToResumeError,
    Phase,
    RegistryError,
    SnapshotSettings,
    StopReason,
    read_metrics,
)
from mtf_trainer._loop.run_dir import memory_id
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
    left = [".lock", "checkpoints", "metrics.jsonl", "run.json"]
    assert sorted(p.name for p in run.iterdir()) == left
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
def test_signal_stops_at_the_next_safe_point_and_nothing_is_repeated(
    make_trainer: MakeTrainer,
    loader: DataLoader[Any],
    tmp_path: Path,
    number: signal.Signals,
) -> None:
    """Stopped in a forward pass of its third epoch, a run ends as if never stopped."""
    whole = make_trainer(run_dir=tmp_path / "whole", step=cross_entropy)
    whole.fit(loader, max_epochs=4)
    expected = final_state(whole)
    stopped = make_trainer(step=stops_at(14, number))

    result = stopped.fit(loader, max_epochs=4)

    assert result.reason is StopReason.INTERRUPTED
    assert result.exit_code == EXIT_RESUME
    assert (result.epoch, result.global_step) == (2, 14)
    assert stopped.phase is Phase.TRAIN_BATCH_OPTIM_STEP
    assert result.checkpoint is not None
    assert result.checkpoint.name == "epoch_002_step_000014.ckpt"
    again = make_trainer(step=cross_entropy)
    finished = again.fit(loader, max_epochs=4)
    assert finished.resumed_from == result.checkpoint
    assert finished.global_step == 24
    assert_same_run(final_state(again), expected)
    metrics = [(tmp_path / n / "metrics.jsonl").read_bytes() for n in ("whole", "run")]
    assert metrics[0] == metrics[1]


def test_signal_in_validation_stops_there(
    make_trainer: MakeTrainer, data: TensorDataset, loader: DataLoader[Any]
) -> None:
    """Validation is left behind its batch, and goes on with the next."""
    numbers: list[int] = []

    def step(trainer: GenericTrainer, batch: Any, batch_idx: int) -> Tensor:
        if trainer.phase is Phase.VAL_BATCH_FORWARD:
            numbers.append(batch_idx)
            if numbers == [0, 1]:
                signal.raise_signal(signal.SIGTERM)
        return cross_entropy(trainer, batch, batch_idx)

    trainer = make_trainer(step=step)
    val = DataLoader(data, batch_size=8)

    result = trainer.fit(loader, val)

    assert result.reason is StopReason.INTERRUPTED
    assert result.epoch == 0
    assert trainer.phase is Phase.VAL_BATCH_END
    assert make_trainer(step=step).fit(loader, val).epoch == 1
    assert numbers == [0, 1, 2, 3, 4, 5]


def test_signal_when_all_is_done_changes_nothing(
    make_trainer: MakeTrainer, loader: DataLoader[Any]
) -> None:
    """A run whose last epoch has ended is completed, not interrupted."""

    class Late:
        def on_epoch_metrics(self, *_: object) -> None:
            signal.raise_signal(signal.SIGTERM)

    result = make_trainer(parts={"callbacks": [Late()]}).fit(loader)

    assert result.reason is StopReason.COMPLETED
    assert result.exit_code == 0


def test_requeue_is_called_when_there_is_more_to_do(
    make_trainer: MakeTrainer, loader: DataLoader[Any]
) -> None:
    """After a stop that is to be continued the launcher's function runs, once."""
    called: list[str] = []
    parts = {"requeue": lambda: called.append("requeue")}

    make_trainer(step=stops_at(3), parts=parts).fit(loader)
    assert called == ["requeue"]
    make_trainer(parts=parts).fit(loader)
    assert called == ["requeue"]


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

    result = trainer.fit(loader, max_epochs=3)

    assert result.reason is StopReason.INTERRUPTED
    trainer._training_step = cross_entropy
    assert trainer.fit(loader, max_epochs=3).epoch == 3
    assert_same_run(final_state(trainer), expected)


def test_used_model_does_not_pass_for_a_new_one(
    make_trainer: MakeTrainer, loader: DataLoader[Any], tmp_path: Path
) -> None:
    """With its checkpoints gone, a trainer refuses to begin anew with its model."""
    trainer = make_trainer()
    trainer.fit(loader)
    shutil.rmtree(tmp_path / "run")

    with pytest.raises(NothingToResumeError, match="make a new model"):
        trainer.fit(loader)


def test_model_is_set_up_once(
    make_trainer: MakeTrainer,
    fabric: Fabric,
    loader: DataLoader[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Fitting and validating again does not set it up again."""
    calls: list[object] = []
    setup = fabric.setup

    def counted(*args: Any) -> Any:
        calls.append(args)
        return setup(*args)

    monkeypatch.setattr(fabric, "setup", counted)

    trainer = make_trainer()
    for epochs in (1, 2):
        trainer.fit(loader, loader, max_epochs=epochs)
        trainer.validate(loader)

    assert len(calls) == 1


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
    settings = CheckpointSettings(every_n_epochs=2, keep_last_n=2, asynchronous=False)
    trainer = make_trainer(checkpoint=settings)

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


def test_full_disk_keeps_the_last_good_checkpoint(
    make_trainer: MakeTrainer, loader: DataLoader[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint that cannot be written ends the run clearly; the next one goes on."""
    first = make_trainer().fit(loader).checkpoint
    second = make_trainer()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mtf_trainer._saving.saver.flush", full)
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
    with pytest.raises(
        CheckpointWriteError, match=r"run\.json: cannot be used: (File exists|Not a)"
    ):
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


def left_in_memory(run_dir: Path) -> list[str]:
    """Return what a run has left in shared memory."""
    run_id = json.loads((run_dir / "run.json").read_text("utf-8"))["run_id"]
    name = memory_id(run_dir, run_id)
    return [path.name for path in Path("/dev/shm").glob(f"mtf-*{name}*")]  # noqa: S108


def test_error_of_a_step_loses_no_more_than_the_last_snapshot(
    make_trainer: MakeTrainer, loader: DataLoader[Any], tmp_path: Path
) -> None:
    """The snapshot is brought to the disk, and shared memory given back."""
    run = tmp_path / "run"
    snapshot = SnapshotSettings(every_n_steps=2)

    def step(trainer: GenericTrainer, batch: Any, batch_idx: int) -> Tensor:
        if trainer.global_step == 4:
            assert left_in_memory(run)
            message = "mine"
            raise RuntimeError(message)
        return cross_entropy(trainer, batch, batch_idx)

    with pytest.raises(RuntimeError, match="mine"):
        make_trainer(step=step, snapshot=snapshot).fit(loader)

    assert left_in_memory(run) == []
    result = make_trainer(step=cross_entropy).fit(loader)
    assert result.resumed_from is not None
    assert result.resumed_from.name == "epoch_000_step_000003.ckpt"
    assert result.global_step == 6


def test_asynchronous_saves_are_waited_for(
    make_trainer: MakeTrainer, loader: DataLoader[Any], tmp_path: Path
) -> None:
    """By the time fit returns its checkpoints are whole, and process and memory gone."""
    trainer = make_trainer(checkpoint=CheckpointSettings(every_n_steps=2))

    result = trainer.fit(loader, max_epochs=2)

    assert result.checkpoint == tmp_path / "run/checkpoints/epoch_002_step_000012.ckpt"
    assert result.checkpoint.is_file()
    assert left_in_memory(tmp_path / "run") == []


class Recorder:
    """A tracker that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

    def log_metrics(self, values: Any, step: int) -> None:
        self.told.append(("metrics", (step, sorted(values))))

    def log_params(self, params: Any) -> None:
        self.told.append(("params", params["seed"]))

    def log_artifact(self, path: Path) -> None:
        self.told.append(("artifact", path))

    def rewind(self, step: int) -> None:
        self.told.append(("rewind", step))

    def close(self) -> None:
        self.told.append(("close", None))


def test_trackers_are_told_and_rewound(
    make_trainer: MakeTrainer, data: TensorDataset, loader: DataLoader[Any]
) -> None:
    """Settings first, then each line; the step again where a run goes on; the end."""
    first, second = Recorder(), Recorder()
    make_trainer(parts={"trackers": [first]}, seed=3).fit(loader)
    with make_trainer(parts={"trackers": [second]}, seed=3) as trainer:
        trainer.fit(loader, max_epochs=2)
        trainer.test(DataLoader(data, batch_size=20))

    names = ["accuracy", "grad_norm", "loss", "lr", "samples"]
    line = ["epoch", *(f"train/{name}" for name in names)]
    assert first.told == [("params", 3), ("metrics", (6, line))]
    assert second.told == [
        ("rewind", 6),
        ("metrics", (12, line)),
        ("metrics", (12, ["test/accuracy", "test/loss"])),
        ("close", None),
    ]


def test_label_smoothing_is_for_training_alone(
    make_trainer: MakeTrainer, data: TensorDataset
) -> None:
    """The trainer's cross entropy smooths in training; a step without it is refused."""

    def step(trainer: GenericTrainer, batch: Any, _: int) -> Tensor:
        x_BD, y_B = batch
        return trainer.cross_entropy(trainer.model(x_BD), y_B)

    batches = DataLoader(data, batch_size=43)
    plain = make_trainer(model=nn.Linear(4, 2), step=step)
    before = plain.validate(batches)["loss"]
    rows: list[float] = []

    class Notes:
        def on_log(self, _: object, row: dict[str, float]) -> None:
            rows.append(row["loss"])

    smooth = make_trainer(
        model=plain.model.module,
        step=step,
        label_smoothing=0.5,
        parts={"callbacks": [Notes()]},
    )
    smooth.fit(batches, batches)

    assert rows[0] != pytest.approx(before)
    assert smooth.validate(batches)["loss"] == pytest.approx(rows[1])


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_label_smoothing_holds_where_activations_are_computed_again(
    make_trainer: MakeTrainer,
    loader: DataLoader[Any],
    tmp_path: Path,
    *,
    use_reentrant: bool,
) -> None:
    """A loss inside a checkpointed function is smoothed both times."""

    def plain(trainer: GenericTrainer, batch: Any, _: int) -> Tensor:
        x_BD, y_B = batch
        return trainer.cross_entropy(trainer.model(x_BD), y_B)

    def again(trainer: GenericTrainer, batch: Any, batch_idx: int) -> Tensor:
        x_BD, y_B = batch

        def loss(x_BD: Tensor) -> Tensor:
            return plain(trainer, (x_BD, y_B), batch_idx)

        x_BD.requires_grad_()
        found: Tensor = checkpoint(loss, x_BD, use_reentrant=use_reentrant)
        return found

    weights = []
    for step in (plain, again):
        torch.manual_seed(0)
        trainer = make_trainer(
            model=nn.Linear(4, 2),
            step=step,
            label_smoothing=0.5,
            run_dir=tmp_path / step.__name__,
        )
        trainer.fit(loader)
        weights.append([p.detach().clone() for p in trainer.model.parameters()])

    assert all(map(torch.equal, *weights))


def test_label_smoothing_is_for_no_validation_wherever_it_is_called(
    make_trainer: MakeTrainer, data: TensorDataset, loader: DataLoader[Any]
) -> None:
    """Neither in a hook, nor inside a training step, nor behind a fit that was stopped."""
    batches, found = DataLoader(data, batch_size=43), []

    def step(trainer: GenericTrainer, batch: Any, batch_idx: int) -> Tensor:
        if batch_idx == 2 and torch.is_grad_enabled():
            found.append(trainer.validate(batches)["loss"])
        x_BD, y_B = batch
        return trainer.cross_entropy(trainer.model(x_BD), y_B)

    class Validates:
        def on_train_batch_forward(self, trainer: GenericTrainer) -> None:
            found.append(trainer.validate(batches)["loss"])

    trainer = make_trainer(
        step=step,
        label_smoothing=0.5,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.0),
        parts={"callbacks": [Validates()]},
    )
    expected = trainer.validate(batches)["loss"]
    trainer.probe = lambda phase: phase == "TRAIN_BATCH_FORWARD" and len(found) > 3

    assert trainer.fit(loader).reason == "interrupted"

    found.append(trainer.validate(batches)["loss"])
    assert found == [expected] * 5


def test_label_smoothing_that_no_step_uses_is_refused_at_once(
    make_trainer: MakeTrainer, data: TensorDataset, loader: DataLoader[Any]
) -> None:
    """Behind the first batch, before a step is taken; of several loaders one may not."""

    def unused(trainer: GenericTrainer, batch: Any, batch_idx: int) -> Tensor:
        steps.append(trainer.global_step)
        return cross_entropy(trainer, batch, batch_idx)

    def used_by_one(trainer: GenericTrainer, batch: Any, _: int) -> Tensor:
        x_BD, y_B = batch
        z_BC = trainer.model(x_BD)
        if trainer.loader_name == "b":
            return trainer.cross_entropy(z_BC, y_B)
        return nn.functional.cross_entropy(z_BC, y_B)

    def validates(trainer: GenericTrainer, batch: Any, _: int) -> Tensor:
        x_BD, y_B = batch
        return trainer.cross_entropy(trainer.model(x_BD), y_B)

    steps: list[int] = []
    refused = make_trainer(
        step=unused, label_smoothing=0.1, parts={"validation_step": validates}
    )
    refused.validate(loader)
    with pytest.raises(ValueError, match=r"label_smoothing is set.*cross_entropy"):
        refused.fit(loader)
    assert steps == [0]

    loaders = MultiLoader({"a": loader, "b": DataLoader(data, batch_size=8)})
    two = make_trainer(step=used_by_one, label_smoothing=0.1)
    assert two.fit(loaders).epoch == 1
    with pytest.raises(ValueError, match=r"label_smoothing is set.*cross_entropy"):
        make_trainer(step=unused, label_smoothing=0.1).fit(loaders, max_epochs=2)


def test_label_smoothing_that_is_used_goes_on_behind_a_forward(
    make_trainer: MakeTrainer, loader: DataLoader[Any]
) -> None:
    """Stopped before a line is written, it writes that without another forward."""

    def step(trainer: GenericTrainer, batch: Any, _: int) -> Tensor:
        x_BD, y_B = batch
        return trainer.cross_entropy(trainer.model(x_BD), y_B)

    first = make_trainer(step=step, label_smoothing=0.1, log_every_n_steps=1)
    first.probe = lambda phase: phase is Phase.TRAIN_BATCH_OPTIM_STEP
    assert first.fit(loader).reason == "interrupted"

    again = make_trainer(step=step, label_smoothing=0.1, log_every_n_steps=1)
    assert again.fit(loader).epoch == 1


def test_algorithms_are_deterministic_while_it_fits(
    make_trainer: MakeTrainer, loader: DataLoader[Any]
) -> None:
    """If that is set; and not behind it."""
    deterministic: list[bool] = []

    def step(trainer: GenericTrainer, batch: Any, batch_idx: int) -> Tensor:
        deterministic.append(torch.are_deterministic_algorithms_enabled())
        return cross_entropy(trainer, batch, batch_idx)

    make_trainer(step=step, deterministic=True).fit(loader)

    assert set(deterministic) == {True}
    assert not torch.are_deterministic_algorithms_enabled()


def test_trainer_is_built_from_a_config(fabric: Fabric, tmp_path: Path) -> None:
    """Model, data, optimizer and scheduler by name; fit then needs no loaders."""
    from mtf_trainer.registry import Registry, names, register  # noqa: PLC0415 - late

    if "rows43" not in names("dataset"):

        @register("dataset", "rows43")
        def rows() -> TensorDataset:
            x_BD = torch.randn(43, 4, generator=torch.Generator().manual_seed(5))
            return TensorDataset(x_BD, (x_BD.sum(1) > 0).long())

    config = {
        "run_dir": str(tmp_path / "run"),
        "model": {"type": "mlp", "in_features": 4, "hidden_size": 8, "num_classes": 2},
        "data": {"dataset_name": "rows43", "batch_size": 8},
        "optimizer": {"type": "adamw", "lr": 0.01},
        "training": {"max_epochs": 2, "show_progress": False},
        "checkpoint": {"asynchronous": False},
    }
    trainer = GenericTrainer.from_config(config, fabric)

    assert trainer.fit().epoch == 2
    assert Registry is not None
    with pytest.raises(RegistryError, match="os:system"):
        GenericTrainer.from_config({**config, "model": {"type": "os:system"}}, fabric)
    model = nn.Linear(4, 2)
    with pytest.raises(TypeError, match="fit needs a train_loader"):
        GenericTrainer(
            trainer.config,
            fabric,
            model,
            torch.optim.SGD(model.parameters()),
            training_step=cross_entropy,
        ).fit()


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
    assert lines[0] == "going on from epoch_001_step_000006.ckpt, step 6"
    assert lines[1].startswith("epoch 2/2  loss 0.")
    assert lines[2].startswith("epoch 2/2 validation  loss 0.")
    assert lines[3] == "going on from epoch_002_step_000012.ckpt, step 12"
    assert lines[4] == (
        "stopped after step 13; run again to go on from epoch_002_step_000013.ckpt"
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
    """What the caller let Fabric set up is used as it is."""
    raw = nn.Linear(4, 2)
    model, optimizer = fabric.setup(raw, torch.optim.SGD(raw.parameters()))
    config = GenericTrainerConfig(run_dir=tmp_path, show_progress=False)

    trainer = GenericTrainer(
        config, fabric, model, optimizer, training_step=cross_entropy
    )

    assert trainer.model is model
    assert trainer.fit(loader).epoch == 1


def test_max_epochs_below_one_is_refused(
    make_trainer: MakeTrainer, loader: DataLoader[Any]
) -> None:
    """Nothing is done for a number of epochs that makes no sense."""
    with pytest.raises(ValueError, match="max_epochs must be at least 1, not 0"):
        make_trainer().fit(loader, max_epochs=0)


@pytest.mark.parametrize("hook", ["on_fit_start", "on_fit_end"])
def test_an_error_at_either_end_of_fit_is_told_to_callbacks(
    make_trainer: MakeTrainer, loader: Any, hook: str
) -> None:
    """``on_exception`` is called for what the first and the last hook raise, too."""
    told: list[BaseException] = []

    class Fails:
        def on_exception(self, _: Any, error: BaseException) -> None:
            told.append(error)

    def fail(*_: Any) -> None:
        raise ValueError

    setattr(Fails, hook, fail)
    with pytest.raises(CallbackError):
        make_trainer(parts={"callbacks": [Fails()]}).fit(loader)
    assert [type(error) for error in told] == [CallbackError]


def test_weights_that_are_not_finite_reach_no_disk(
    make_trainer: MakeTrainer, loader: Any, tmp_path: Path
) -> None:
    """A gradient that is NaN once, with a finite loss: no checkpoint behind it is written."""

    class Poisons:
        def on_train_batch_optim_step(self, trainer: Any) -> None:
            if trainer.global_step == 3:
                next(iter(trainer.model.parameters())).grad.fill_(math.nan)

    checkpoint = CheckpointSettings(asynchronous=False, every_n_steps=1, keep_last_n=9)
    trainer = make_trainer(
        parts={"callbacks": [Poisons()]}, checkpoint=checkpoint, max_grad_norm=None
    )

    with pytest.raises(DivergenceError):
        trainer.fit(loader)
    names = sorted(p.name for p in (tmp_path / "run" / "checkpoints").glob("*.ckpt"))
    assert "epoch_000_step_000003.ckpt" in names
    assert "epoch_000_step_000004.ckpt" not in names
