from __future__ import annotations

import pickle
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from mtf_trainer._saving.dcp import load_spread, pieces_in, save_spread
from mtf_trainer.errors import CheckpointDamagedError


class Opens:
    """Would make a file if it were unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.fixture(scope="module")
def mesh() -> Iterator[DeviceMesh]:
    """Make this process the only one of a group, which torch's caches keep for long."""
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.fixture
def tensor(mesh: DeviceMesh) -> DTensor:
    """Return a tensor spread over this process alone."""
    return distribute_tensor(torch.arange(6.0).bfloat16(), mesh, [Shard(0)])


def failed(error: BaseException) -> CheckpointDamagedError:
    """Say what happened."""
    return CheckpointDamagedError(Path("here"), str(error))


def names(folder: Path) -> set[str]:
    """Return the files in *folder*."""
    return {path.name for path in folder.iterdir()}


def test_what_was_written_is_read(tensor: DTensor, tmp_path: Path) -> None:
    """Any type of number comes back, into the tensors that are given."""
    save_spread(tmp_path, {"x": tensor}, failed)
    other = cast(DTensor, torch.zeros_like(tensor))

    load_spread(tmp_path, names(tmp_path), {"x": other}, failed)

    assert torch.equal(other.full_tensor(), tensor.full_tensor())


def test_unwritable_folder_is_told(tensor: DTensor, tmp_path: Path) -> None:
    """The error of the process that could not write is the one that is raised."""
    file = tmp_path / "file"
    file.touch()

    with pytest.raises(CheckpointDamagedError, match="file"):
        save_spread(file, {"x": tensor}, failed)


def test_entry_that_is_no_tensor_is_refused(tensor: DTensor, tmp_path: Path) -> None:
    """It would be unpickled by torch; here its mere mention is an error."""
    made = tmp_path / "made"
    folder = tmp_path / "checkpoint"
    save({"x": Opens(made)}, checkpoint_id=folder)

    with pytest.raises(CheckpointDamagedError, match="BytesStorageMetadata"):
        load_spread(folder, names(folder), {"x": tensor}, failed)
    assert not made.exists()


def test_code_in_metadata_is_refused(tensor: DTensor, tmp_path: Path) -> None:
    """A class that metadata is not made of is never looked up."""
    save_spread(tmp_path, {"x": tensor}, failed)
    made = tmp_path / "made"
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Opens(made)))

    with pytest.raises(CheckpointDamagedError, match="which it has no use for"):
        load_spread(tmp_path, names(tmp_path), {"x": tensor}, failed)
    assert not made.exists()


class Older(pickle.Pickler):
    """Writes members of enumerations as Python 3.11.0 to 3.11.3 do."""

    def reducer_override(self, value: Any) -> Any:
        return (
            (getattr, (type(value), value.name))
            if isinstance(value, Enum)
            else NotImplemented
        )


def test_members_of_enumerations_are_read_as_any_python_wrote_them(
    tensor: DTensor, tmp_path: Path
) -> None:
    """Some ask for `getattr`; of anything but an enumeration it is refused."""
    save_spread(tmp_path, {"x": tensor}, failed)
    path = tmp_path / ".metadata"
    with path.open("rb") as file:
        metadata = pickle.load(file)  # noqa: S301 - just written
    with path.open("wb") as file:
        Older(file).dump(metadata)
    assert b"getattr" in path.read_bytes()
    other = cast(DTensor, torch.zeros_like(tensor))
    load_spread(tmp_path, names(tmp_path), {"x": other}, failed)
    assert torch.equal(other.full_tensor(), tensor.full_tensor())

    path.write_bytes(b"cbuiltins\ngetattr\n(ctorch\nSize\nVcount\ntR.")
    with pytest.raises(CheckpointDamagedError, match=r"'count' of <class .torch\.Size.>"):
        load_spread(tmp_path, names(tmp_path), {"x": other}, failed)


@pytest.mark.parametrize("data", [b"N.", b"", b"garbage"])
def test_garbage_is_refused(tensor: DTensor, tmp_path: Path, data: bytes) -> None:
    """What is no metadata is told as such."""
    save_spread(tmp_path, {"x": tensor}, failed)
    (tmp_path / ".metadata").write_bytes(data)

    with pytest.raises(CheckpointDamagedError, match="metadata"):
        load_spread(tmp_path, names(tmp_path), {"x": tensor}, failed)


def test_files_of_others_are_refused(tensor: DTensor, tmp_path: Path) -> None:
    """Metadata cannot make anything be read but the files that were proven."""
    save_spread(tmp_path, {"x": tensor}, failed)

    with pytest.raises(CheckpointDamagedError, match="names files of others"):
        load_spread(tmp_path, {".metadata"}, {"x": tensor}, failed)


def test_pieces_are_read_without_a_group(tensor: DTensor, tmp_path: Path) -> None:
    """Each with its name and place; one that is no tensor is refused."""
    save_spread(tmp_path, {"x": tensor}, failed)

    ((name, offset, piece),) = pieces_in(tmp_path, names(tmp_path))

    assert (name, offset) == ("x", (0,))
    assert torch.equal(piece, tensor.full_tensor())
    (file,) = tmp_path.glob("*.distcp")
    torch.save([1], file)
    with pytest.raises((pickle.UnpicklingError, RuntimeError)):
        list(pieces_in(tmp_path, names(tmp_path)))
