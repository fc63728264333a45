from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor

from mtf_trainer._saving.spread import (
    as_spread,
    check_places,
    piece_of,
    put_in,
    spread_in,
    take_out,
)
from mtf_trainer.errors import CheckpointDamagedError, CheckpointMismatchError

HERE = Path("here")


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


def test_what_is_taken_out_is_put_in_again(tensor: DTensor) -> None:
    """In dictionaries, lists and tuples; what is not spread stays as it is."""
    content = {"a": [1, (tensor, "x")], "b": {"c": torch.ones(2)}}
    spread: dict[str, DTensor] = {}
    piece = piece_of(tensor)
    assert piece is not None

    plain = take_out(content, spread, {"/a/1/0": [piece]})

    assert list(spread) == ["/a/1/0"]
    assert plain["a"][1][0] == {
        "__sharded__": "/a/1/0",
        "shape": [6],
        "dtype": "bfloat16",
        "pieces": [[[0], piece[1]]],
    }
    read = as_spread(HERE, plain)
    (found,) = spread_in(read)
    assert (found.shape, found.dtype, found.pieces) == ((6,), torch.bfloat16, (piece,))
    again = put_in(read, spread)
    assert again["a"][1] == (tensor, "x")
    assert again["b"]["c"] is content["b"]["c"]  # type: ignore[index]


def test_piece_without_values_is_none(mesh: DeviceMesh) -> None:
    """More processes than rows leave some of them nothing."""
    assert piece_of(distribute_tensor(torch.zeros(0, 2), mesh, [Shard(0)])) is None


def test_sum_that_was_not_taken_is_refused(mesh: DeviceMesh) -> None:
    """Its pieces are none of the tensor's: one process's would be kept for all."""
    summand = DTensor.from_local(torch.zeros(2), mesh, [Partial()])

    with pytest.raises(TypeError, match=r"shape \[2\] is a sum that was not taken"):
        piece_of(summand)


@pytest.mark.parametrize(
    "change",
    [
        {"shape": "x"},
        {"dtype": "nonsense"},
        {"dtype": "nn"},
        {"pieces": [1]},
        {"__sharded__": 3},
    ],
)
def test_malformed_one_is_damage(change: dict[str, Any]) -> None:
    """What says that it is spread, and is not, is refused with the file's name."""
    plain = {"__sharded__": "/x", "shape": [1], "dtype": "float32", "pieces": []}

    with pytest.raises(CheckpointDamagedError, match="here: holds no spread tensor"):
        as_spread(HERE, {"x": plain | change})


def test_places_must_be_the_same(tensor: DTensor) -> None:
    """What one side alone has is named; gradients may be left over."""
    content = as_spread(HERE, take_out({"x": tensor}, {}, {}))
    other = tensor.reshape(2, 3)

    check_places(HERE, content, {"/x": tensor, "/locals/grads/x": tensor})
    with pytest.raises(CheckpointMismatchError, match="x: is spread in the checkpoint,"):
        check_places(HERE, content, {})
    with pytest.raises(CheckpointMismatchError, match="y: is not spread in the"):
        check_places(HERE, content, {"/x": tensor, "/y": tensor})
    with pytest.raises(CheckpointMismatchError, match=r"x: has shape \[6\], the model"):
        check_places(HERE, content, {"/x": other})  # type: ignore[dict-item]
