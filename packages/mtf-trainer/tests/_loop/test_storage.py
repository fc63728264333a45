from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from torch import nn
from torch.distributed.tensor import Replicate, distribute_tensor

from mtf_trainer import (
    CheckpointDamagedError,
    CheckpointMismatchError,
    CheckpointSettings,
    CheckpointWarning,
    CheckpointWriteError,
    GenericTrainer,
    GenericTrainerConfig,
    SnapshotSettings,
    load_weights,
)
from mtf_trainer.__main__ import main
from mtf_trainer._loop import storage as storage_module
from mtf_trainer._loop.storage import Folders, OneFile, storage_for
from mtf_trainer._ranks.sharding import is_sharded
from mtf_trainer._verify.verify import verify
from mtf_trainer.checkpoint import CheckpointManager
from mtf_trainer.phases import Phase

SCRIPT = Path(__file__).parents[1] / "run_sharded.py"
CHECKPOINT = CheckpointSettings(asynchronous=False)
PLACES = (
    *("certified", "written", "marked", "proven", "in the ledger", "out of the way"),
    *("renamed", "in place", "link made", "linked", "deleting", "deleted"),
)


class Killed(BaseException):
    """Ends a training as a kill does: nothing puts anything in order."""


@pytest.fixture(scope="module")
def script() -> Any:
    """Import the script, for its model and data."""
    spec = spec_from_file_location("run_sharded", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def alone(script: Any) -> Iterator[Fabric]:
    """Return this process as the only one that a model is sharded over."""
    before = dict(os.environ)
    fabric: Fabric = script.make_fabric(1)
    fabric.launch()
    told: list[Any] = [None]
    dist.all_gather_object(told, 1)  # connects, and stays so
    yield fabric
    dist.destroy_process_group()
    os.environ.clear()
    os.environ.update(before)


def environ() -> dict[str, str]:
    """Return the variables for processes that form a group of their own."""
    ours = {"MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE"}
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return kept | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def folder(
    script: Any,
    alone: Fabric,
    launch: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Path]:
    """Return where two processes did all scenarios, after one that stopped in a window."""
    folder = tmp_path_factory.mktemp(f"sharded{os.getpid()}_")
    trainer = script.make_trainer(folder / "one", alone)
    trainer.probe = script.at(1, Phase.TRAIN_BATCH_LOAD, trainer)
    assert script.fit(trainer).reason == "interrupted"
    try:
        for done in launch(SCRIPT, folder, processes=2, timeout_s=400):
            assert done.code == 0, done.err
        yield folder
    finally:
        shutil.rmtree(script.MEMORY / folder.name, ignore_errors=True)
        shutil.rmtree(left_in_memory(script, folder), ignore_errors=True)
        with contextlib.suppress(OSError):
            script.MEMORY.rmdir()


def left_in_memory(script: Any, folder: Path) -> Path:
    """Return where the snapshots of a run that ended without a word are kept."""
    left: Path = script.MEMORY / f"{folder.name}_left"
    return left


@pytest.fixture
def ranks(folder: Path) -> list[dict[str, Any]]:
    """Return the reports of both processes."""
    return [json.loads((folder / f"rank{r}.json").read_text("utf-8")) for r in (0, 1)]


def close(ours: list[list[float]], theirs: list[list[float]]) -> bool:
    """Tell whether weights are the same but for their rounding."""
    return ours == [pytest.approx(each, rel=1e-9, abs=1e-12) for each in theirs]


@pytest.mark.slow
def test_stopped_run_is_the_undisturbed_one(ranks: list[dict[str, Any]]) -> None:
    """Stopped at edges all over two epochs: bytes, streams, samples and metrics.

    With accumulation 1, and with 3 and two optimizers.
    """
    for told in [each for rank in ranks for each in rank["exact"]]:
        assert told["wrong"] == []
        assert told["tried"] >= 5
        assert told["inside"] >= 2
    phases = {phase for told in ranks[0]["exact"] for phase in told["phases"]}
    assert len(phases) >= 6


@pytest.mark.slow
def test_checkpoints_are_folders(ranks: list[dict[str, Any]], folder: Path) -> None:
    """Those that shall stay are there, the newest is linked, and their chain is whole."""
    for rank in ranks:
        assert rank["resharded"]["names"] == [
            ".lock",
            "chain.jsonl",
            "epoch_001_step_000003.ckpt",
            "epoch_002_step_000006.ckpt",
            "epoch_003_step_000009.ckpt",
            "latest.ckpt",
        ]
        assert rank["resharded"]["latest"] == "epoch_003_step_000009.ckpt"
    report = verify(folder / "whole", CHECKPOINT)
    assert report.problems == []
    assert len(report.on_disk) == 3
    assert report.metrics_checked > 0


@pytest.mark.slow
def test_one_process_goes_on_where_two_stopped(
    ranks: list[dict[str, Any]], script: Any, folder: Path, alone: Fabric, tmp_path: Path
) -> None:
    """In a window; values are those of the whole run but for rounding."""
    assert ranks[0]["resharded"]["reason"] == "interrupted"
    shutil.copytree(folder / "stopped", tmp_path / "run", symlinks=True)
    trainer = script.make_trainer(tmp_path / "run", alone)

    with pytest.warns(CheckpointWarning, match="written by 2 processes"):
        result = script.fit(trainer)

    whole = ranks[0]["resharded"]
    assert result.global_step == 9
    assert close(script.weights(trainer), whole["weights"])
    assert result.metrics == pytest.approx(whole["metrics"], rel=1e-9)
    path = folder / "whole" / "checkpoints" / "epoch_003_step_000009.ckpt"
    model = script.Model().double()
    load_weights(path, model)
    assert [p.flatten().tolist() for p in model.parameters()] == whole["weights"]


@pytest.mark.slow
def test_sharded_steps_are_those_of_one_process_with_the_whole_model(
    ranks: list[dict[str, Any]],
    script: Any,
    fabric: Fabric,
    folder: Path,
    tmp_path: Path,
) -> None:
    """But for rounding: weights, and each line of metrics with its norm of gradients."""
    trainer = script.make_trainer(tmp_path / "run", fabric)
    script.fit(trainer)

    assert close(script.weights(trainer), ranks[0]["resharded"]["weights"])
    ours, theirs = (
        [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        for path in (tmp_path / "run" / "metrics.jsonl", folder / "whole/metrics.jsonl")
    )
    assert "grad_norm" in ours[0]
    assert len(ours) == 12
    for our, their in zip(ours, theirs, strict=True):
        assert our.pop("split") == their.pop("split")
        assert our == pytest.approx(their, rel=1e-9)


@pytest.mark.slow
def test_predictions_take_part_in_each_pass(ranks: list[dict[str, Any]]) -> None:
    """Also where a process has no sample left: five samples, in twos."""
    assert [rank["resharded"]["predicted"] for rank in ranks] == [[2, 1], [2]]


@pytest.mark.slow
def test_two_processes_go_on_where_one_stopped(ranks: list[dict[str, Any]]) -> None:
    """The other way round, also in a window."""
    told = [rank["resharded"] for rank in ranks]
    assert close(told[0]["from_one"], told[0]["weights"])
    assert told[0]["from_one"] == told[1]["from_one"]
    assert "written by 1 processes" in told[0]["warned"][0]
    assert told[1]["warned"] == []
    assert told[0]["validated"][1] == pytest.approx(told[0]["validated"][0], rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "told"),
    [("flipped", r"__1_0.distcp: its sha256 is"), ("uncommitted", "was not committed")],
)
def test_damaged_one_is_passed_over(
    ranks: list[dict[str, Any]], kind: str, told: str
) -> None:
    """One process warns; all go on from the one before, to the same end."""
    for number, rank in enumerate(ranks):
        found, weights = rank["damaged"][kind]["after"]
        assert found.endswith("epoch_002_step_000006.ckpt")
        assert weights == rank["resharded"]["weights"]
        warned = rank["damaged"][kind]["warned"]
        assert [told in each for each in warned] == [True] * (number == 0)


@pytest.mark.slow
def test_what_cannot_be_used_is_an_error_of_all(ranks: list[dict[str, Any]]) -> None:
    """Where all are damaged, or the newest is of a model that was not sharded."""
    for rank in ranks:
        assert (
            "none of its 3 checkpoints can be used" in rank["damaged"]["all"]["after"][0]
        )
        told = rank["damaged"]["file"]["after"][0]
        assert told.startswith("CheckpointMismatchError: ")
        assert "was saved whole" in told


@pytest.mark.slow
def test_snapshot_is_gone_on_from(ranks: list[dict[str, Any]], script: Any) -> None:
    """Each process takes up its own pieces, and buffers; the memory is given back."""
    assert ranks[0]["resharded"]["seen"] != ranks[1]["resharded"]["seen"]
    for rank in ranks:
        told = rank["snapshots"]
        assert told["resumed_from"].startswith(str(script.MEMORY))
        for key in ("weights", "seen"):
            assert told[key] == rank["resharded"][key]
        assert told["metrics"]
        assert told["left"] == []


@pytest.mark.slow
def test_snapshot_of_others_is_left_alone(
    ranks: list[dict[str, Any]], script: Any, folder: Path, alone: Fabric
) -> None:
    """One process has not all pieces of two, and goes on from a checkpoint instead."""
    assert ranks
    memory = left_in_memory(script, folder)
    assert list(memory.iterdir())
    run_dir = folder / "left"
    shutil.rmtree(run_dir / "checkpoints" / "epoch_003_step_000009.ckpt")
    snapshot = SnapshotSettings(folder=memory)
    trainer = script.make_trainer(run_dir, alone, snapshot=snapshot)

    with pytest.warns(CheckpointWarning, match="written by 2 processes"):
        result = script.fit(trainer)

    assert result.resumed_from.name == "epoch_002_step_000006.ckpt"
    assert {path.name.split("-")[3] for path in memory.iterdir()} == {"1"}


@pytest.mark.slow
def test_full_disk_is_an_error_of_all(ranks: list[dict[str, Any]]) -> None:
    """The one before stands; training stops or goes on with a warning, as it is set."""
    for number, rank in enumerate(ranks):
        for reaction, told in rank["unwritable"].items():
            epochs = [name for name in told["names"] if "epoch" in name]
            assert epochs == ["epoch_001_step_000003.ckpt"]
            told_by = [told["after"]] if reaction == "stop" else told["warned"]
            # Two epochs, and once more at the end; the first process warns.
            times = 1 if reaction == "stop" else 3 * (number == 0)
            assert ["No space left on device" in each for each in told_by] == [
                True
            ] * times
        assert rank["unwritable"]["continue"]["after"] == "completed"


@pytest.mark.slow
def test_guard_works_on_spread_gradients(ranks: list[dict[str, Any]]) -> None:
    """A run goes back to its checkpoint, or leaves a step out, in all processes alike."""
    for rank in ranks:
        assert rank["diverged"] == {"step": 9, "rate": 0.01, "finite": True}


@pytest.mark.slow
@pytest.mark.parametrize("place", ["part", "written", "in the ledger"])
def test_kill_between_two_steps_of_a_save_leaves_the_one_before(
    script: Any, alone: Fabric, launch: Callable[..., Any], tmp_path: Path, place: str
) -> None:
    """Two processes, of which one is killed: another start goes on to the end."""
    first, second = launch(SCRIPT, "kill", tmp_path, place, processes=2)
    killed, other = (second, first) if place == "part" else (first, second)
    assert killed.code == -signal.SIGKILL, killed.err
    assert other.code > 0, other.err
    left = sorted(
        path.name for path in (tmp_path / "killed" / "checkpoints").glob("[.e]*")
    )
    assert left == [
        ".epoch_002_step_000006.ckpt.tmp",
        ".lock",
        "epoch_001_step_000003.ckpt",
    ]
    trainer = script.make_trainer(tmp_path / "killed", alone)

    with pytest.warns(CheckpointWarning, match="written by 2 processes"):
        result = script.fit(trainer)

    assert result.resumed_from.name == "epoch_001_step_000003.ckpt"
    assert result.global_step == 9
    assert verify(tmp_path / "killed", CHECKPOINT).is_whole


@pytest.mark.parametrize("place", PLACES)
def test_kill_anywhere_loses_nothing(
    script: Any,
    alone: Fabric,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    """Ended at each place of a save that replaces another: the next start goes on."""
    settings = replace(CHECKPOINT, keep_last_n=1)
    trainer = script.make_trainer(tmp_path / "run", alone, checkpoint=settings)
    trainer.probe = script.at(1, Phase.TRAIN_BATCH_LOAD, trainer)
    assert script.fit(trainer).reason == "interrupted"

    def fault(reached: str) -> None:
        if reached == place:
            raise Killed

    monkeypatch.setattr(storage_module, "no_fault", fault)
    trainer = script.make_trainer(tmp_path / "run", alone, checkpoint=settings)
    # The place is left behind before anything else has been done: the name is the same.
    wanted = script.at(2, Phase.TRAIN_BATCH_OPTIM_STEP, trainer)
    if "delet" not in place:
        trainer.probe = wanted
    with pytest.raises(Killed):
        script.fit(trainer)
    monkeypatch.undo()

    trainer = script.make_trainer(tmp_path / "run", alone, checkpoint=settings)
    result = script.fit(trainer)
    whole = script.make_trainer(tmp_path / "whole", alone)
    script.fit(whole)

    assert result.resumed_from is not None
    assert result.resumed_from.name >= "epoch_001_step_000003.ckpt"
    assert script.weights(trainer) == script.weights(whole)
    names = script.names(tmp_path / "run")
    assert names == [".lock", "chain.jsonl", "epoch_003_step_000009.ckpt", "latest.ckpt"]
    assert verify(tmp_path / "run", settings).is_whole


def test_weights_alone_go_anywhere(script: Any, alone: Fabric, tmp_path: Path) -> None:
    """A model that is not sharded takes weights, or their average, of one that was."""
    trainer = script.make_trainer(tmp_path / "run", alone)
    path = script.fit(trainer, 1).checkpoint
    model = script.Model().double()

    load_weights(path, model)

    assert [p.flatten().tolist() for p in model.parameters()] == script.weights(trainer)
    with pytest.raises(ValueError, match="is sharded already: load its weights before"):
        load_weights(path, trainer.model)
    load_weights(path, model, use_ema=True)
    assert [p.flatten().tolist() for p in model.parameters()] != script.weights(trainer)
    manager = CheckpointManager(tmp_path / "run" / "checkpoints", CHECKPOINT)
    assert manager.load(path)["resume"]["global_step"] == 3
    with pytest.raises(CheckpointMismatchError, match="go on with Fabric's ModelPar"):
        manager.load_newest()


def test_other_kind_of_run_does_not_take_it_up(
    script: Any, alone: Fabric, fabric: Fabric, tmp_path: Path
) -> None:
    """A whole model refuses the folder of a sharded one, and the other way round."""
    for first, second, told in (
        (alone, fabric, "is spread over processes: go on with Fabric's ModelParallel"),
        (fabric, alone, "was saved whole, and this run's is spread"),
    ):
        run_dir = tmp_path / type(first.strategy).__name__
        script.fit(script.make_trainer(run_dir, first), 1)
        before = script.names(run_dir)

        with pytest.raises(CheckpointMismatchError, match=told):
            script.fit(script.make_trainer(run_dir, second))

        assert script.names(run_dir) == before


def test_snapshot_of_another_kind_of_run_is_a_mismatch(
    alone: Fabric, fabric: Fabric, tmp_path: Path
) -> None:
    """One of a whole model, and one of pieces; of more processes' pieces it is no use."""
    objects: Any = None
    whole = OneFile(tmp_path / "whole", CHECKPOINT, fabric)
    pieces = Folders(tmp_path / "pieces", CHECKPOINT, alone, objects)
    content = {"model": {}, "locals": {}, "world_size": 1}

    other = pieces.pack({**content, "world_size": 2})
    assert pieces.unpack(tmp_path, other) is None
    with pytest.raises(CheckpointMismatchError, match="is whole, and this run's is spr"):
        pieces.unpack(tmp_path, whole.pack(content))
    with pytest.raises(CheckpointMismatchError, match="is spread over processes, and"):
        whole.unpack(tmp_path, pieces.pack(content))


def test_checkpoint_is_told_and_verified_by_the_commands(
    script: Any, alone: Fabric, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`show` of the run, the folder and the link; `verify`, before and after a change."""
    run_dir = tmp_path / "run"
    path = script.fit(script.make_trainer(run_dir, alone), 1).checkpoint
    told = []
    for place in (run_dir, path, path.with_name("latest.ckpt")):
        assert main(["show", str(place), "--tensors"]) == 0
        told.append(capsys.readouterr().out)

    assert told[0] == told[1] == told[2]
    lines = told[0].splitlines()
    size = sum(file.stat().st_size for file in path.iterdir())
    assert lines[0] == f"{path.name}, {size / 1000:.1f} kB"
    assert any(x.startswith("weights       12 tensors      1.0 kB  model") for x in lines)
    assert "model.first.weight  float64 [7, 5]  280 B" in lines
    assert "DIFFERS" not in told[0]
    assert main(["verify", str(run_dir)]) == 0
    assert "WHOLE: 1 " in capsys.readouterr().out
    part = path / "__0_0.distcp"
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    assert main(["verify", str(run_dir)]) == 1
    assert "__0_0.distcp" in capsys.readouterr().out


@pytest.mark.slow
def test_replay_of_two_processes_is_equal(
    ranks: list[dict[str, Any]], folder: Path
) -> None:
    """From one folder to the next, trained again by two processes."""
    assert ranks
    replay = ("--replay", "run_sharded:train", "--from", "epoch_001_step_000003.ckpt")
    ended = subprocess.run(
        [sys.executable, "-m", "mtf_trainer", "verify", str(folder / "whole"), *replay],
        cwd=SCRIPT.parent,
        env=environ(),
        capture_output=True,
        encoding="utf-8",
        timeout=400,
        check=False,
    )

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "epoch_002_step_000006.ckpt: equal, bit" in ended.stdout


def test_other_optimizer_is_a_mismatch(
    script: Any, alone: Fabric, tmp_path: Path
) -> None:
    """What does not fit is told before anything of the model is changed."""
    script.fit(script.make_trainer(tmp_path / "run", alone), 1)
    model = nn.Sequential(nn.Linear(5, 2)).double()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    config = GenericTrainerConfig(run_dir=tmp_path / "run", checkpoint=CHECKPOINT)
    trainer = GenericTrainer(
        config, alone, model, optimizer, training_step=lambda *_: torch.zeros(())
    )
    before = script.weights(trainer)

    with pytest.raises(CheckpointMismatchError, match=r"model\.0\.weight: is missing"):
        script.fit(trainer)

    assert script.weights(trainer) == before


@pytest.mark.parametrize("ends_by", [KeyboardInterrupt, ZeroDivisionError])
def test_one_process_goes_on_from_its_snapshot(
    script: Any, alone: Fabric, tmp_path: Path, ends_by: type[BaseException]
) -> None:
    """With the bytes of a run that never ended, also where an error ended it."""
    whole = script.make_trainer(tmp_path / "whole", alone)
    script.fit(whole)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        snapshot = SnapshotSettings(every_n_steps=1, folder=Path(folder))

        def leave(trainer: GenericTrainer) -> None:
            if trainer.global_step == 8:
                raise ends_by

        trainer = script.make_trainer(tmp_path / "run", alone, leave, snapshot=snapshot)
        with pytest.raises(ends_by):
            script.fit(trainer)
        again = script.make_trainer(tmp_path / "run", alone, snapshot=snapshot)
        result = script.fit(again)
        assert result.resumed_from.parent == Path(folder)
        assert list(Path(folder).iterdir()) == []

    assert script.weights(again) == script.weights(whole)


def trainer_storage(trainer: GenericTrainer, tmp_path: Path) -> Folders:
    """Return a storage of the trainer's objects."""
    objects = trainer._objects
    return Folders(tmp_path / "storage", CHECKPOINT, trainer.fabric, objects)


def content_of(trainer: GenericTrainer) -> dict[str, Any]:
    """Return what the trainer's newest checkpoint holds."""
    objects = trainer._objects
    storage = Folders(
        trainer.config.run_dir / "checkpoints", CHECKPOINT, trainer.fabric, objects
    )
    found = storage.newest()
    assert found is not None
    return found[1]


def test_snapshot_in_other_pieces_is_a_mismatch(
    script: Any, alone: Fabric, tmp_path: Path
) -> None:
    """It is told with the entry, as is what belongs to no parameter."""
    trainer = script.make_trainer(tmp_path / "run", alone)
    script.fit(trainer, 1)
    content = content_of(trainer)
    storage = trainer_storage(trainer, tmp_path)
    packed = storage.pack({**content, "locals": content["locals"][0]})
    pieces = packed["locals"][0]["pieces"]
    pieces["/model/scale"] = pieces["/model/scale"][:2]

    with pytest.raises(CheckpointMismatchError, match="model/scale: is cut into other"):
        storage.unpack(tmp_path, packed)

    strange = {**content, "guard": {"a": content["model"]["scale"]}, "locals": {}}
    with pytest.raises(
        CheckpointMismatchError, match=r"guard/a: .* belongs to no parameter"
    ):
        storage.unpack(tmp_path, storage.pack(strange))
    state = content["optimizers"][0]["state"]
    more = {**state, "state": {**state["state"], 99: {"m": content["model"]["scale"]}}}
    strange = {**content, "optimizers": [{**content["optimizers"][0], "state": more}]}
    with pytest.raises(
        CheckpointMismatchError, match=r"99/m: .* belongs to no parameter"
    ):
        storage.unpack(tmp_path, storage.pack({**strange, "locals": {}}))


class Rows(torch.optim.SGD):
    """An optimizer that keeps something of another shape than its parameters."""

    def step(self, closure: Any = None) -> Any:
        """Count the rows, as a spread tensor."""
        for group in self.param_groups:
            for parameter in group["params"]:
                count = self.state[parameter].get("rows")
                one = distribute_tensor(
                    torch.ones(3), parameter.device_mesh, [Replicate()]
                )
                self.state[parameter]["rows"] = one if count is None else count + one
        return super().step(closure)


def test_optimizer_may_keep_what_it_likes(
    script: Any, alone: Fabric, tmp_path: Path
) -> None:
    """A tensor of another shape and dtype is saved whole, and comes back as it was."""

    def make() -> GenericTrainer:
        model = script.Model().double()
        config = GenericTrainerConfig(
            run_dir=tmp_path / "run", checkpoint=CHECKPOINT, show_progress=False
        )
        return GenericTrainer(
            config,
            alone,
            model,
            Rows(model.parameters(), 0.1),
            training_step=lambda t, batch, _: t.model(batch[0]).square().mean(),
        )

    script.fit(make(), 1)
    trainer = make()
    script.fit(trainer, 2)

    states: Any = trainer.optimizer.state.values()
    assert [s["rows"].full_tensor().tolist() for s in states] == [[10.0] * 3] * 5
    # torch would have made it what the parameters are.
    assert {s["rows"].dtype for s in states} == {torch.float32}


@pytest.mark.parametrize("reaction", ["stop", "continue"])
def test_write_error_stops_or_is_a_warning(
    script: Any,
    alone: Fabric,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reaction: Any,
) -> None:
    """As it is set; nothing of the checkpoint is left."""

    def fault(place: str) -> None:
        if place == "written":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage_module, "no_fault", fault)
    settings = replace(CHECKPOINT, on_write_error=reaction)
    trainer = script.make_trainer(tmp_path / "run", alone, checkpoint=settings)

    if reaction == "stop":
        with pytest.raises(CheckpointWriteError, match="No space left on device"):
            script.fit(trainer, 1)
    else:
        with pytest.warns(CheckpointWarning, match="No space left on device"):
            assert script.fit(trainer, 1).checkpoint is None
    assert script.names(tmp_path / "run") == [".lock"]


def test_checkpoint_of_a_whole_model_is_a_mismatch(
    script: Any, alone: Fabric, tmp_path: Path
) -> None:
    """It is not overwritten, nor passed over."""
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "epoch_001_step_000003.ckpt").write_bytes(b"x")

    with pytest.raises(CheckpointMismatchError, match="was saved whole"):
        script.fit(script.make_trainer(tmp_path / "run", alone))


def test_damaged_without_another_is_an_error(
    script: Any, alone: Fabric, tmp_path: Path
) -> None:
    """A folder that lost its marker is no reason to begin anew."""
    path = script.fit(script.make_trainer(tmp_path / "run", alone), 1).checkpoint
    (path / "commit.json").unlink()

    with (
        pytest.warns(CheckpointWarning, match="was not committed"),
        pytest.raises(CheckpointDamagedError, match="none of its 1 checkpoints"),
    ):
        script.fit(script.make_trainer(tmp_path / "run", alone))


def test_storage_follows_from_the_strategy(
    alone: Fabric, fabric: Fabric, tmp_path: Path
) -> None:
    """A file for what each process has whole, a folder for what is spread."""
    objects: Any = None
    kinds = [
        type(storage_for(tmp_path, CHECKPOINT, each, objects)) for each in (alone, fabric)
    ]

    assert kinds == [Folders, OneFile]
    assert (is_sharded(alone), is_sharded(fabric)) == (True, False)
