from __future__ import annotations

import re
from collections.abc import Iterator
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

from mtf_trainer._sharded import load_sharded, load_state, save_sharded, take_state
from mtf_trainer.errors import CheckpointMismatchError

NAME = "epoch_001_step_000003.ckpt"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where two processes save."""
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    """Return what two processes saw that train, save and load a sharded model."""
    spec = spec_from_file_location("ranks", Path(__file__).with_name("run_ranks.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    told: list[dict[str, Any]] = module.run_pair("sharded", folder)
    return told


@pytest.fixture(scope="module")
def mesh() -> Iterator[DeviceMesh]:
    """Make this process the only one of a group, which torch's caches keep for long."""
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def make(mesh: DeviceMesh) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a model sharded over this process alone, and its optimizer."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 3))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model, torch.optim.AdamW(model.parameters(), 0.01)


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
        ("missing", "Damaged.*__0_0.distcp: is missing"),
        ("moment", "Damaged.*rank_00001.pt: is of moment"),
        ("garbage", "Damaged.*shared.pt: cannot be loaded as plain data"),
        (
            "code",
            "Damaged.*.metadata asks for pathlib.Path.touch, which it has no use for",
        ),
        ("elsewhere", "Damaged.*.metadata names files of others: .*passwd"),
        ("fewer", "Mismatch.*optimizers/0/state/0.weight/exp_avg: is spread in"),
        ("none", "Mismatch.*model/0.weight: is spread in the checkpoint"),
        ("more", "Mismatch.*more: is missing in the checkpoint"),
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
    model, optimizer = make(mesh)
    target = take_state(model, [optimizer])
    weight = next(iter(model.parameters()))
    target["locals"] = {"grads": {"0.weight": torch.zeros_like(weight)}}

    loaded = load_sharded(folder / NAME, target)
    load_state(model, [optimizer], loaded)

    full = [p.full_tensor().tolist() for p in model.parameters()]  # type: ignore[attr-defined]
    assert full == ranks[0]["full"]
    assert len(loaded["locals"]) == 2
    assert optimizer.state_dict()["state"][0]["step"] == 3


def test_model_without_optimizer(tmp_path: Path, mesh: DeviceMesh) -> None:
    """Weights alone are a content too; an optimizer is then not in it."""
    model, optimizer = make(mesh)
    path = save_sharded(tmp_path, take_state(model, []), name=NAME)
    before = [p.full_tensor().tolist() for p in model.parameters()]  # type: ignore[attr-defined]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()

    with pytest.raises(CheckpointMismatchError, match="optimizers"):
        load_sharded(path, take_state(model, [optimizer]))
    assert not any(p.full_tensor().any() for p in model.parameters())  # type: ignore[attr-defined]
    load_sharded(path, take_state(model, []))

    after = [p.full_tensor().tolist() for p in model.parameters()]  # type: ignore[attr-defined]
    assert after == before
