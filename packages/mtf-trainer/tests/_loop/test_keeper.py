from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mtf_trainer import (
    CheckpointMismatchError,
    CheckpointSettings,
    CheckpointWarning,
    CheckpointWriteError,
    EarlyStopping,
    GenericTrainer,
    GuardSettings,
    MetricsFileError,
    Phase,
    SnapshotError,
    SnapshotSettings,
    StopReason,
    read_metrics,
)
from mtf_trainer._loop.run_dir import memory_id
from mtf_trainer._memory.shared_memory import SnapshotArea
from mtf_trainer.state import RNGState
from mtf_trainer.testing import Edge, run_whole, run_with_stops

MakeTrainer = Callable[..., GenericTrainer]
SHM = Path("/dev/shm")  # noqa: S108 - what the package uses
EVERY_STEP = SnapshotSettings(every_n_steps=1)


def step_of(trainer: GenericTrainer, batch: Any, _: int) -> Tensor:
    """Return the mean loss."""
    x_BD, y_B = batch
    return nn.functional.cross_entropy(trainer.model(x_BD), y_B)


def fails_at(step: int, error: BaseException) -> Any:
    """Return a step function that raises *error* once so many steps are done."""

    def training_step(trainer: GenericTrainer, batch: Any, batch_idx: int) -> Tensor:
        if trainer.global_step == step:
            raise error
        return step_of(trainer, batch, batch_idx)

    return training_step


def left(run_dir: Path) -> list[Path]:
    """Return what a run has in shared memory."""
    return named(id_of(run_dir))


def id_of(run_dir: Path) -> str:
    """Return what is in the names of a run's segments."""
    run_id = json.loads((run_dir / "run.json").read_text("utf-8"))["run_id"]
    return memory_id(run_dir, run_id)


def named(identity: str) -> list[Path]:
    """Return the segments with that in their names."""
    return sorted(SHM.glob(f"mtf-*{identity}*"))


def newest(run_dir: Path) -> str:
    """Return the name of the newest checkpoint."""
    return (run_dir / "checkpoints" / "latest.ckpt").resolve().name


def test_error_brings_the_snapshot_to_the_disk(
    make_trainer: MakeTrainer, loader: DataLoader[Any], tmp_path: Path
) -> None:
    """After an error of the user's the last snapshot is a checkpoint, and memory free."""
    with pytest.raises(RuntimeError, match="mine"):
        make_trainer(step=fails_at(4, RuntimeError("mine")), snapshot=EVERY_STEP).fit(
            loader
        )

    assert newest(tmp_path / "run") == "epoch_000_step_000004.ckpt"
    assert left(tmp_path / "run") == []


def test_older_snapshot_does_not_replace_a_newer_checkpoint(
    make_trainer: MakeTrainer, loader: DataLoader[Any], tmp_path: Path
) -> None:
    """Where the disk is ahead of shared memory, an error changes nothing there."""
    settings = CheckpointSettings(every_n_steps=1, asynchronous=False)
    trainer = make_trainer(
        step=fails_at(5, RuntimeError("mine")),
        snapshot=SnapshotSettings(every_n_steps=3),
        checkpoint=settings,
    )

    with pytest.raises(RuntimeError, match="mine"):
        trainer.fit(loader)

    assert newest(tmp_path / "run") == "epoch_000_step_000005.ckpt"
    names = [
        json.loads(line)["global_step"]
        for line in (tmp_path / "run/checkpoints/chain.jsonl")
        .read_text("utf-8")
        .splitlines()
    ]
    assert names == [1, 2, 3, 4, 5]


def interrupted(make_trainer: MakeTrainer, loader: Any, run_dir: Path) -> list[Path]:
    """Leave a run with nothing but a snapshot of its fourth step, as a kill does."""
    trainer = make_trainer(
        step=fails_at(4, KeyboardInterrupt()), snapshot=EVERY_STEP, run_dir=run_dir
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(loader)
    assert not list((run_dir / "checkpoints").glob("*.ckpt"))
    return left(run_dir)


def test_start_that_fails_leaves_the_snapshot_to_the_next(
    make_trainer: MakeTrainer, loader: DataLoader[Any], tmp_path: Path
) -> None:
    """Another model, then a step that fails at once: the snapshot is still there."""
    run = tmp_path / "run"
    assert interrupted(make_trainer, loader, run)

    with pytest.raises(CheckpointMismatchError, match="is missing in the checkpoint"):
        make_trainer(model=nn.Linear(4, 2), snapshot=EVERY_STEP).fit(loader)
    with pytest.raises(RuntimeError, match="no data"):
        make_trainer(step=fails_at(4, RuntimeError("no data")), snapshot=EVERY_STEP).fit(
            loader
        )
    assert left(run)

    result = make_trainer(step=step_of, snapshot=EVERY_STEP).fit(loader)

    assert result.resumed_from is not None
    assert result.resumed_from.parent == SHM
    assert result.global_step == 6
    assert left(run) == []


def test_snapshot_with_enough_steps_is_brought_to_the_disk(
    make_trainer: MakeTrainer, loader: DataLoader[Any], tmp_path: Path
) -> None:
    """Where nothing is left to do, what shared memory held is saved first."""
    run = tmp_path / "run"
    interrupted(make_trainer, loader, run)

    result = make_trainer(snapshot=EVERY_STEP).fit(loader, max_steps=2)

    assert result.reason is StopReason.MAX_STEPS
    assert newest(run) == "epoch_000_step_000004.ckpt"
    assert left(run) == []


def test_fit_with_nothing_left_leaves_random_streams_alone(
    make_trainer: MakeTrainer, loader: DataLoader[Any], tmp_path: Path
) -> None:
    """The process keeps its own, and what goes to the disk has those of the snapshot."""
    whole = make_trainer(step=step_of, run_dir=tmp_path / "whole")
    whole.fit(loader)
    interrupted(make_trainer, loader, tmp_path / "run")

    trainer = make_trainer(snapshot=EVERY_STEP)
    before = RNGState.capture()
    trainer.fit(loader, max_steps=2)
    after = RNGState.capture()
    last = make_trainer(step=step_of)
    last.fit(loader)
    trainer = make_trainer(step=step_of)
    again = RNGState.capture()
    trainer.fit(loader)

    for state, expected in ((after, before), (RNGState.capture(), again)):
        assert torch.equal(state.torch_cpu, expected.torch_cpu)
        assert state.python == expected.python
    pairs = zip(last.model.parameters(), whole.model.parameters(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_copy_of_a_run_leaves_the_memory_of_the_first_alone(
    make_trainer: MakeTrainer, loader: DataLoader[Any], tmp_path: Path
) -> None:
    """A copied folder neither goes on from the other's snapshot nor deletes it."""
    run, copy = tmp_path / "run", tmp_path / "copy"
    before = interrupted(make_trainer, loader, run)
    shutil.copytree(run, copy, symlinks=True)

    result = make_trainer(run_dir=copy, snapshot=EVERY_STEP).fit(loader)

    assert result.resumed_from is None
    assert left(run) == before
    for path in before:
        path.unlink()


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda chain: chain.unlink(), "is missing"),
        (lambda chain: chain.write_bytes(b"x" + chain.read_bytes()), "has damaged lines"),
        (lambda chain: chain.write_bytes(b""), "lacks the line of the checkpoint"),
    ],
)
def test_chain_that_was_damaged_is_told_at_the_start(
    make_trainer: MakeTrainer,
    loader: DataLoader[Any],
    tmp_path: Path,
    harm: Callable[[Path], object],
    told: str,
) -> None:
    """Once, with the file's name; the run goes on, and an undamaged one says nothing."""
    chain = tmp_path / "run" / "checkpoints" / "chain.jsonl"
    make_trainer().fit(loader)
    make_trainer().fit(loader, max_epochs=2)
    harm(chain)

    with pytest.warns(CheckpointWarning) as caught:
        result = make_trainer().fit(loader, max_epochs=3)

    assert [str(each.message).startswith(f"{chain} {told}: ") for each in caught] == [
        True
    ]
    assert result.epoch == 3


def test_stop_that_cannot_be_saved_is_an_error(
    make_trainer: MakeTrainer, loader: DataLoader[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told to go on after failed writes, a run that is to stop still says it was lost."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mtf_trainer._saving.saver.flush", full)

    def step(trainer: GenericTrainer, batch: Any, batch_idx: int) -> Tensor:
        if trainer.global_step == 3:
            signal.raise_signal(signal.SIGTERM)
        return step_of(trainer, batch, batch_idx)

    settings = CheckpointSettings(on_write_error="continue", asynchronous=False)
    trainer = make_trainer(step=step, checkpoint=settings)

    with (
        pytest.warns(CheckpointWarning, match="No space left on device"),
        pytest.raises(CheckpointWriteError, match="was to stop, and could not be saved"),
    ):
        trainer.fit(loader)


def test_training_that_a_callback_ends_is_saved(
    make_trainer: MakeTrainer, loader: DataLoader[Any]
) -> None:
    """The epoch it ended in has a checkpoint though none was due; it stays ended."""

    class Ends:
        def on_epoch_metrics(self, trainer: GenericTrainer, _: object) -> None:
            if trainer.epoch == 2:
                trainer.request_end()

    settings = CheckpointSettings(every_n_epochs=2, asynchronous=False)

    def make() -> GenericTrainer:
        return make_trainer(checkpoint=settings, parts={"callbacks": [Ends()]})

    result = make().fit(loader, max_epochs=9)
    again = make().fit(loader, max_epochs=9)

    assert (result.reason, result.epoch) == (StopReason.ENDED, 3)
    assert result.checkpoint is not None
    assert result.checkpoint.name == "epoch_003_step_000018.ckpt"
    assert (again.reason, again.global_step) == (StopReason.ENDED, 18)


def test_greater_patience_goes_on_where_early_stopping_ended(
    make_trainer: MakeTrainer, loader: DataLoader[Any], tmp_path: Path
) -> None:
    """The same patience ends it again at once; a greater one ends as it would have."""

    def make(run: str, patience: int) -> GenericTrainer:
        callbacks = [EarlyStopping("loss", patience, min_delta=10.0)]
        return make_trainer(run_dir=tmp_path / run, parts={"callbacks": callbacks})

    whole = make("whole", 3)
    straight = whole.fit(loader, max_epochs=9)
    ended = make("a", 1).fit(loader, max_epochs=9)
    again = make("a", 1).fit(loader, max_epochs=12)
    patient = make("a", 3)
    later = patient.fit(loader, max_epochs=9)

    reasons = {result.reason for result in (straight, ended, again, later)}
    assert reasons == {StopReason.ENDED}
    epochs = [result.epoch for result in (straight, ended, again, later)]
    assert epochs == [4, 2, 2, 4]
    for one, other in zip(
        patient.model.parameters(), whole.model.parameters(), strict=True
    ):
        assert torch.equal(one, other)
    lines = [(tmp_path / run / "metrics.jsonl").read_bytes() for run in ("a", "whole")]
    assert lines[0] == lines[1]


def deletes(
    path: Path, step: int, ids: list[str] | None = None, *, replace: bool = False
) -> Any:
    """Return a step function that deletes *path* once so many steps are done.

    What `id_of` says of it before goes to *ids*.
    """

    def training_step(trainer: GenericTrainer, batch: Any, batch_idx: int) -> Tensor:
        if trainer.global_step == step and path.exists():
            if ids is not None:
                ids.append(id_of(path))
            shutil.rmtree(path)
            if replace:
                path.mkdir()
                (path / ".lock").touch()
        return step_of(trainer, batch, batch_idx)

    return training_step


@pytest.mark.parametrize("replace", [False, True])
def test_run_that_may_goes_on_without_its_folder(
    make_trainer: MakeTrainer, loader: DataLoader[Any], tmp_path: Path, *, replace: bool
) -> None:
    """One warning, no file where another run may be, and a result that claims none."""
    run, ids = tmp_path / "run", list[str]()
    settings = CheckpointSettings(
        every_n_steps=2, asynchronous=False, on_write_error="continue"
    )
    trainer = make_trainer(
        step=deletes(run, 3, ids, replace=replace),
        checkpoint=settings,
        snapshot=EVERY_STEP,
        log_every_n_steps=1,
    )

    with pytest.warns(CheckpointWarning, match="was deleted or replaced") as told:
        result = trainer.fit(loader, max_epochs=2)

    assert len(told) == 1
    assert (result.reason, result.global_step) == (StopReason.COMPLETED, 12)
    assert result.checkpoint is None
    assert [p.name for p in run.rglob("*")] == ([".lock"] if replace else [])
    assert named(ids[0]) == []


def test_stop_without_a_folder_is_an_error(
    make_trainer: MakeTrainer, loader: DataLoader[Any], tmp_path: Path
) -> None:
    """Whoever was to be run again is told that there is nothing to go on from."""
    goes = deletes(tmp_path / "run", 3)

    def step(trainer: GenericTrainer, batch: Any, batch_idx: int) -> Tensor:
        if trainer.global_step == 4:
            trainer.stop()
        loss: Tensor = goes(trainer, batch, batch_idx)
        return loss

    settings = CheckpointSettings(on_write_error="continue", asynchronous=False)
    trainer = make_trainer(
        step=step, checkpoint=settings, snapshot=SnapshotSettings(enabled=False)
    )
    with (
        pytest.warns(CheckpointWarning, match="was deleted or replaced"),
        pytest.raises(CheckpointWriteError, match="was to stop, and could not be saved"),
    ):
        trainer.fit(loader)


class DeletesAtTheEnd:
    """Deletes a folder when the last checkpoint is written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_checkpoint(self, trainer: GenericTrainer, _: Path) -> None:
        """Do it."""
        if trainer.global_step == 6 and self.path.exists():
            shutil.rmtree(self.path)
            self.path = Path("done")


@pytest.mark.parametrize("asynchronous", [False, True])
def test_checkpoint_deleted_behind_the_last_save_is_written_again(
    make_trainer: MakeTrainer,
    loader: DataLoader[Any],
    tmp_path: Path,
    *,
    asynchronous: bool,
) -> None:
    """The result's checkpoint is there, and can be gone on from."""
    callback = DeletesAtTheEnd(tmp_path / "run" / "checkpoints")
    settings = CheckpointSettings(asynchronous=asynchronous)
    trainer = make_trainer(checkpoint=settings, parts={"callbacks": [callback]})

    with pytest.warns(
        CheckpointWarning, match="000006.ckpt was deleted during the train"
    ):
        result = trainer.fit(loader)

    assert result.checkpoint is not None
    assert result.checkpoint.name == "epoch_001_step_000006.ckpt"
    again = make_trainer(parts={"callbacks": [callback]}).fit(loader, max_epochs=2)
    assert again.resumed_from == result.checkpoint


def test_folder_deleted_behind_the_last_save_is_noticed(
    make_trainer: MakeTrainer, loader: DataLoader[Any], tmp_path: Path
) -> None:
    """It stops the run, or is told and nothing is claimed, as it is set."""
    run = tmp_path / "run"
    settings = CheckpointSettings(asynchronous=False)
    parts = {"callbacks": [DeletesAtTheEnd(run)]}
    with pytest.raises(CheckpointWriteError, match="was deleted or replaced"):
        make_trainer(checkpoint=settings, parts=parts).fit(loader)

    settings = CheckpointSettings(asynchronous=False, on_write_error="continue")
    parts = {"callbacks": [DeletesAtTheEnd(run)]}
    shutil.rmtree(run, ignore_errors=True)
    with pytest.warns(CheckpointWarning, match="was deleted or replaced"):
        result = make_trainer(checkpoint=settings, parts=parts).fit(loader)
    assert result.checkpoint is None
    assert result.global_step == 6


def test_snapshot_is_not_brought_into_another_run(
    make_trainer: MakeTrainer, loader: DataLoader[Any], tmp_path: Path
) -> None:
    """After an error in a folder that became another's, nothing is written there."""
    run, ids = tmp_path / "run", list[str]()
    settings = CheckpointSettings(every_n_steps=5, asynchronous=False)
    trainer = make_trainer(
        step=deletes(run, 4, ids, replace=True), checkpoint=settings, snapshot=EVERY_STEP
    )

    with pytest.raises(CheckpointWriteError, match="was deleted or replaced") as caught:
        trainer.fit(loader)

    assert "the last snapshot could not be saved" in caught.value.__notes__[0]
    assert [p.name for p in run.rglob("*")] == [".lock"]
    assert named(ids[0])
    for path in named(ids[0]):
        path.unlink()


def test_snapshot_without_room_for_another_goes_with_the_next_checkpoint(
    make_trainer: MakeTrainer,
    loader: DataLoader[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Until that is on the disk it stays, for a kill; then its memory is free."""
    found: list[int] = []
    put = SnapshotArea.put

    def only_first(area: SnapshotArea, content: Any, **moment: int) -> Any:
        if moment["global_step"] > 2:
            message = "no room"
            raise SnapshotError(message)
        return put(area, content, **moment)

    def training_step(trainer: GenericTrainer, batch: Any, batch_idx: int) -> Tensor:
        found.append(len([p for p in left(tmp_path / "run") if "steps" not in p.name]))
        return step_of(trainer, batch, batch_idx)

    monkeypatch.setattr(SnapshotArea, "put", only_first)
    settings = CheckpointSettings(every_n_steps=4, asynchronous=False)
    trainer = make_trainer(step=training_step, checkpoint=settings, snapshot=EVERY_STEP)
    with pytest.warns(CheckpointWarning, match="no room"):
        trainer.fit(loader)

    assert found == [0, 0, 1, 1, 0, 0]


def test_each_roll_back_lowers_the_rates_further_and_outlives_a_stop(
    make_trainer: MakeTrainer, data: TensorDataset, tmp_path: Path
) -> None:
    """Three times back is an eighth of the rate; a new start goes on with that."""

    def make(first_good: float) -> GenericTrainer:
        def step(trainer: GenericTrainer, batch: Any, batch_idx: int) -> Tensor:
            rate = trainer.optimizer.param_groups[0]["lr"]
            bad = trainer.epoch == 1 and rate > first_good
            return step_of(trainer, batch, batch_idx) * (torch.nan if bad else 1.0)

        return make_trainer(
            step=step,
            optimizer=lambda p: torch.optim.SGD(p, lr=0.8),
            log_every_n_steps=1,
            guard=GuardSettings(on_nonfinite="rollback"),
        )

    batches = DataLoader(data, batch_size=43)
    make(0.1).fit(batches, max_epochs=2)

    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["lr"] for row in rows] == pytest.approx([0.8, 0.1])
    again = make(0.1)
    again.fit(batches, max_epochs=3)
    assert again.optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


@pytest.mark.parametrize(("accumulation", "batch"), [(1, 7), (3, 7), (3, 9)])
def test_stop_behind_the_end_of_the_best_epoch_leaves_it(
    make_trainer: MakeTrainer,
    loader: DataLoader[Any],
    tmp_path: Path,
    accumulation: int,
    batch: int,
) -> None:
    """Before the next epoch's first step, the stop takes its name and not its rank."""

    def make(run_dir: Path) -> Any:
        trainer = make_trainer(
            run_dir=run_dir,
            gradient_accumulation_steps=accumulation,
            checkpoint=CheckpointSettings(
                asynchronous=False, keep_last_n=1, keep_best_k=1
            ),
            parts={"validation_step": lambda t, *_: torch.tensor(float(t.epoch))},
        )
        return trainer, lambda: trainer.fit(loader, loader, max_epochs=4)

    whole = run_whole(make, tmp_path / "whole")
    stop = Edge(Phase.TRAIN_BATCH_FORWARD, batch)

    assert run_with_stops(make, tmp_path / "stopped", [stop]) == whole.outcome

    steps = 6 // accumulation
    for name in ("whole", "stopped"):
        kept = sorted(tmp_path.glob(f"{name}/checkpoints/epoch*.ckpt"))
        assert [path.name for path in kept] == [
            f"epoch_001_step_{steps:06d}.ckpt",
            f"epoch_004_step_{4 * steps:06d}.ckpt",
        ]


def test_lost_lines_of_metrics_are_told(
    make_trainer: MakeTrainer, loader: DataLoader[Any], tmp_path: Path
) -> None:
    """A file cut short is a warning; a stump of a line does not spoil the next one."""
    make_trainer(log_every_n_steps=1).fit(loader)
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-30])

    with pytest.warns(CheckpointWarning, match="lines of metrics are lost"):
        make_trainer(log_every_n_steps=1).fit(loader, max_epochs=2)

    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3, 4, 5, *range(7, 13)]


@pytest.mark.parametrize(
    ("lost", "error"),
    [
        ("metrics.jsonl", MetricsFileError),
        (".lock", CheckpointWriteError),
        ("", CheckpointWriteError),
    ],
)
def test_lost_folder_stops_the_run(
    make_trainer: MakeTrainer,
    loader: DataLoader[Any],
    tmp_path: Path,
    lost: str,
    error: type[Exception],
) -> None:
    """What is deleted under a run is noticed no later than at its next checkpoint."""
    path, steps = tmp_path / "run" / lost, []

    def training_step(trainer: GenericTrainer, batch: Any, batch_idx: int) -> Tensor:
        steps.append(trainer.global_step)
        if trainer.global_step == 3:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return step_of(trainer, batch, batch_idx)

    settings = CheckpointSettings(every_n_steps=2, asynchronous=False)
    with pytest.raises(error, match="was deleted or replaced"):
        make_trainer(step=training_step, checkpoint=settings).fit(loader)
    assert steps == [0, 1, 2, 3]
