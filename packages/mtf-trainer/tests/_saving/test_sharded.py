from __future__ import annotations

import hashlib
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor

from mtf_trainer import CheckpointSettings
from mtf_trainer._saving.commit import read_marker
from mtf_trainer._saving.folder_saver import FolderSaver
from mtf_trainer._saving.saver import Saved
from mtf_trainer._saving.sharded import (
    load_certified,
    load_sharded,
    load_whole,
    save_sharded,
    write_part,
)
from mtf_trainer._saving.spread import spread_in, take_out
from mtf_trainer.certificate import Certificate, check
from mtf_trainer.errors import CheckpointDamagedError, CheckpointWriteError

NAME = "epoch_001_step_000003.ckpt"
OTHER = "epoch_001_step_000004.ckpt"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where two processes save."""
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def ranks(launch: Callable[..., Any], folder: Path) -> list[dict[str, Any]]:
    """Return what two processes saw that train, save and load a sharded model."""
    spec = spec_from_file_location("ranks", Path(__file__).parents[1] / "run_ranks.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    told: list[dict[str, Any]] = module.run_pair(launch, "sharded", folder)
    return told


@pytest.fixture(scope="module")
def mesh() -> Iterator[DeviceMesh]:
    """Make this process the only one of a group, which torch's caches keep for long."""
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def make(mesh: DeviceMesh) -> nn.Module:
    """Return a model sharded over this process alone."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 3))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def save(folder: Path, content: dict[str, Any]) -> Path:
    """Save *content* with the processes there are."""
    saver = FolderSaver(folder, CheckpointSettings(asynchronous=False), parent=None)
    saved: Saved = save_sharded(
        folder / NAME,
        content,
        lambda whole, marker: saver.finish(
            whole, marker, epoch=1, global_step=3, metrics={}
        ),
    )
    return saved.path


def forge(path: Path, file: str, content: object) -> None:
    """Put *content* into *file*, of the same moment and with a digest that fits."""
    marker = read_marker(path)
    (path / file).unlink()
    digest = write_part(path / file, marker.moment, content)
    marker = replace(marker, files={**marker.files, file: digest})
    (path / "commit.json").write_text(marker.to_json(), "utf-8")


@pytest.mark.slow
def test_training_goes_on_as_if_never_stopped(ranks: list[dict[str, Any]]) -> None:
    """Through Fabric's ModelParallelStrategy: loaded weights train to the same bytes."""
    for rank in ranks:
        assert rank["again"] == rank["whole"]
        assert rank["grads"]


@pytest.mark.slow
def test_folder_holds_all_parts(ranks: list[dict[str, Any]]) -> None:
    """A save replaces one of its name, whole, and leaves nothing else."""
    for rank in ranks:
        assert rank["left"] == [NAME]
        assert rank["files"] == [
            ".metadata",
            "__0_0.distcp",
            "__1_0.distcp",
            "commit.json",
            "rank_00000.pt",
            "rank_00001.pt",
            "shared.pt",
        ]


@pytest.mark.slow
def test_content_comes_back(ranks: list[dict[str, Any]]) -> None:
    """Plain data and plain tensors are kept, and every process's own part, by rank."""
    for rank in ranks:
        assert (rank["resume"], rank["rate"]) == (2.5, 0.5)
        assert rank["locals"] == [[0, 0], [1, 1]]
        assert rank["small"] == {"resume": {}, "locals": [1, 1]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("uncommitted", f"Damaged.*{NAME}: was not committed"),
        ("marker", "Damaged.*commit.json: is damaged"),
        ("escape", "Damaged.*commit.json: is damaged"),
        ("version", "Damaged.*commit.json: is damaged"),
        ("flipped", "Damaged.*__1_0.distcp: its sha256 is"),
        ("missing", "Damaged.*__0_0.distcp: is missing, or not a file"),
        ("moment", "Damaged.*rank_00001.pt: is of moment"),
        ("garbage", "Damaged.*shared.pt: cannot be loaded as plain data"),
        (
            "code",
            "Damaged.*.metadata asks for pathlib.Path.touch, which it has no use for",
        ),
        ("elsewhere", "Damaged.*.metadata names files of others: .*passwd"),
        ("fewer", "Mismatch.*optimizers/0/state/0/exp_avg: is spread in"),
        ("none", "Mismatch.*model/0.weight: is spread in the checkpoint"),
        ("more", "Mismatch.*more: is not spread in the checkpoint"),
        ("shape", "Mismatch.*has shape .*the model needs"),
        ("intact", "loaded"),
    ],
)
def test_what_is_not_whole_is_refused(
    ranks: list[dict[str, Any]], kind: str, told: str
) -> None:
    """Every process names the file or entry that is wrong, also when one alone saw it."""
    for rank in ranks:
        assert re.search(told, rank["refused"][kind])


@pytest.mark.slow
def test_no_code_is_run(ranks: list[dict[str, Any]]) -> None:
    """Not even from metadata whose digest fits."""
    for rank in ranks:
        assert not rank["code_ran"]


@pytest.mark.slow
def test_interrupted_save_is_put_in_order(ranks: list[dict[str, Any]]) -> None:
    """The next save deletes what was half written, and brings back what was replaced."""
    for rank in ranks:
        assert rank["in_order"] == []
        assert rank["committed"] == [True, True, False]


@pytest.mark.slow
def test_error_of_one_is_an_error_of_all(ranks: list[dict[str, Any]]) -> None:
    """When one process cannot write, each raises, and nothing of it is left."""
    for rank in ranks:
        assert rank["unwritable"].startswith("CheckpointWriteError: ")
        assert rank["unpicklable"].startswith("CheckpointWriteError: ")
        assert rank["code"].startswith("CheckpointWriteError: ")
        assert rank["left_of_bad"] == []


@pytest.mark.slow
def test_one_process_loads_what_two_saved(
    ranks: list[dict[str, Any]], folder: Path, mesh: DeviceMesh
) -> None:
    """The tensors are spread anew, over another number of processes."""
    model = make(mesh)
    wanted: dict[str, Any] = {}
    take_out({"model": dict(model.state_dict())}, wanted, {})

    def targets(content: dict[str, Any]) -> dict[str, Any]:
        first = next(iter(wanted.values()))
        for each in spread_in(content):
            zeros = torch.zeros(each.shape, dtype=each.dtype)
            wanted.setdefault(each.place, distribute_tensor(zeros, mesh, [Shard(0)]))
        assert first.to_local().any()
        return wanted

    loaded = load_sharded(folder / NAME, targets)

    full = [p.full_tensor().tolist() for p in model.parameters()]  # type: ignore[attr-defined]
    assert full == ranks[0]["full"]
    assert len(loaded["locals"]) == 2
    assert loaded["optimizers"][0]["state"][0]["step"] == 3


@pytest.mark.slow
def test_no_group_of_processes_is_needed_to_read(
    ranks: list[dict[str, Any]], folder: Path
) -> None:
    """Whole tensors are put together from the pieces, those of optimizers too."""
    assert all(rank["whole_again"] for rank in ranks)
    content = load_whole(folder / NAME)
    weights = [weight.tolist() for weight in content["model"].values()]
    assert weights == ranks[0]["full"]
    assert content["optimizers"][0]["state"][0]["exp_avg"].shape == (10, 6)
    assert len(content["locals"]) == 2


@pytest.mark.slow
def test_certificate_is_of_every_piece(
    ranks: list[dict[str, Any]], folder: Path, tmp_path: Path
) -> None:
    """It can be checked alone; a piece that was exchanged for another is found."""
    assert ranks
    path = folder / NAME
    content = load_certified(path)
    own = Certificate.from_plain(content["certificate"])
    assert check(content, own) == ()
    assert {len(s["pieces"]) for s in content["model"].values()} == {2}

    # Both files of pieces, and their digests, changed in the way a forger would.
    copy = tmp_path / NAME
    shutil.copytree(path, copy)
    marker = read_marker(copy)
    for name in ("__0_0.distcp", "__1_0.distcp", ".metadata"):
        other = folder / OTHER / name
        (copy / name).write_bytes(other.read_bytes())
    files = {**marker.files}
    for name in files:
        files[name] = hashlib.sha256((copy / name).read_bytes()).hexdigest()
    (copy / "commit.json").write_text(replace(marker, files=files).to_json(), "utf-8")
    with pytest.raises(CheckpointDamagedError, match="is not what was saved"):
        load_certified(copy)


def test_content_without_spread_tensors(tmp_path: Path, mesh: DeviceMesh) -> None:
    """Is one too; nothing of torch.distributed.checkpoint is in it then."""
    assert mesh.size() == 1
    path = save(tmp_path, {"a": 1, "locals": {"b": torch.ones(1)}})

    for content in (load_whole(path), load_sharded(path, lambda _: {})):
        assert (content["a"], content["locals"][0]["b"].item()) == (1, 1.0)
    assert load_certified(path)["a"] == 1


def test_what_is_forged_is_damage(tmp_path: Path, mesh: DeviceMesh) -> None:
    """Tensors that are not all there, parts of another form, a file that is unreadable."""
    state = dict(make(mesh).state_dict())
    path = save(tmp_path, {"model": state, "locals": {}})
    shared = torch.load(path / "shared.pt", weights_only=True)["content"]
    assert set(load_whole(path)["model"]) == set(state)

    more = {**shared["model"]["0.bias"], "__sharded__": "/x"}
    forge(path, "shared.pt", {**shared, "x": more})
    with pytest.raises(CheckpointDamagedError, match="does not hold all of its tensors"):
        load_whole(path)
    with pytest.raises(CheckpointDamagedError, match=r"x at \[0\] is not what was saved"):
        load_certified(path)
    forge(path, "shared.pt", [])
    with pytest.raises(CheckpointDamagedError, match=r"shared\.pt: holds no dictionary"):
        load_whole(path)
    wrong = {**shared["model"]["0.bias"], "shape": [2]}
    forge(path, "shared.pt", {"model": {"0.bias": wrong}})
    with pytest.raises(CheckpointDamagedError, match="cannot be loaded: "):
        load_whole(path)
    metadata = pickle.dumps(3)
    (path / ".metadata").write_bytes(metadata)
    marker = read_marker(path)
    files = {**marker.files, ".metadata": hashlib.sha256(metadata).hexdigest()}
    (path / "commit.json").write_text(replace(marker, files=files).to_json(), "utf-8")
    with pytest.raises(CheckpointDamagedError, match="holds something else"):
        load_whole(path)
    with pytest.raises(CheckpointDamagedError, match="was not committed"):
        load_whole(tmp_path)


def test_sum_that_was_not_taken_cannot_be_written(
    tmp_path: Path, mesh: DeviceMesh
) -> None:
    """Rather than one process's summand for all; nothing is left of the save."""
    summand = DTensor.from_local(torch.zeros(2), mesh, [Partial()])

    with pytest.raises(CheckpointWriteError, match="is a sum that was not taken"):
        save(tmp_path, {"x": summand})

    assert list(tmp_path.iterdir()) == []


def test_unreadable_file_is_damage(
    tmp_path: Path, mesh: DeviceMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk's own error is told, with the checkpoint's name."""
    assert mesh.size() == 1
    path = save(tmp_path, {"a": 1})
    read = Path.open

    def refuse(self: Path, *args: Any, **named: Any) -> Any:
        if self.name == "shared.pt":
            raise OSError(5, "Input/output error")
        return read(self, *args, **named)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CheckpointDamagedError, match="cannot be read: Input/output"):
        load_whole(path)
    with pytest.raises(CheckpointDamagedError, match="cannot be loaded: Input/output"):
        load_sharded(path, lambda _: {})
