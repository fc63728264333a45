"""Tensors that are spread over the processes (DTensor), and what stands for them on disk.

In a content that is written, a spread tensor is a plain dictionary: its place in the
content, shape, type, and a digest of each piece of it. Where it is read it is a `Spread`,
until the tensor takes its place again. This module knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from mtf_trainer._canonical import digest_of
from mtf_trainer.errors import CheckpointDamagedError, CheckpointMismatchError

__all__ = [
    "Piece",
    "Spread",
    "as_spread",
    "check_places",
    "piece_of",
    "put_in",
    "spread_in",
    "take_out",
]

_PLACE = "__sharded__"

Piece = tuple[tuple[int, ...], str]
"""Where a piece begins in its tensor, by dimension, and the digest of its values."""


@dataclass(frozen=True, slots=True)
class Spread:
    """What stands for a spread tensor.

    Args:
        place: Keys and indices that lead to it in the content, each behind a ``/``.
        shape: Of the whole.
        dtype: Its type.
        pieces: Those that have values, in order.
    """

    place: str
    shape: torch.Size
    dtype: torch.dtype
    pieces: tuple[Piece, ...]


def piece_of(tensor: DTensor) -> Piece | None:
    """Return this process's piece of *tensor*; None if there is nothing in it.

    Raises:
        TypeError: If each process has a summand, rather than a piece.
    """
    if any(placement.is_partial() for placement in tensor.placements):
        message = f"a tensor of shape {list(tensor.shape)} is a sum that was not taken"
        raise TypeError(message)
    local = tensor.to_local().detach()
    if local.numel() == 0:
        return None
    _, offset = compute_local_shape_and_global_offset(
        tensor.shape, tensor.device_mesh, tensor.placements
    )
    return tuple(offset), digest_of(local)


def take_out(
    value: Any,
    spread: dict[str, DTensor],
    pieces: Mapping[str, list[Piece]],
    place: str = "",
) -> Any:
    """Return *value* with its spread tensors moved to *spread*, by place.

    Args:
        value: A content.
        spread: Gets the tensors.
        pieces: By place, where they are known.
        place: That of *value*.
    """
    if isinstance(value, DTensor):
        spread[place] = value
        return {
            _PLACE: place,
            "shape": list(value.shape),
            "dtype": str(value.dtype).removeprefix("torch."),
            "pieces": [[list(at), digest] for at, digest in pieces.get(place, ())],
        }
    if isinstance(value, Mapping):
        return {k: take_out(v, spread, pieces, f"{place}/{k}") for k, v in value.items()}
    if isinstance(value, list | tuple):
        taken = (take_out(v, spread, pieces, f"{place}/{i}") for i, v in enumerate(value))
        return type(value)(taken)
    return value


def as_spread(path: Path, value: Any) -> Any:
    """Return *value*, found at *path*, with a `Spread` for each that was taken out.

    Raises:
        CheckpointDamagedError: If one is malformed.
    """
    if isinstance(value, dict):
        if _PLACE in value:
            return _spread_of(path, value)
        return {k: as_spread(path, v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(as_spread(path, v) for v in value)
    return value


def _spread_of(path: Path, plain: Mapping[str, Any]) -> Spread:
    try:
        dtype = getattr(torch, plain["dtype"])
        found = Spread(
            place=plain[_PLACE],
            shape=torch.Size(plain["shape"]),
            dtype=dtype,
            pieces=tuple((tuple(at), digest) for at, digest in plain["pieces"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        problem = f"holds no spread tensor where it says so: {error!r}"
        raise CheckpointDamagedError(path, problem) from error
    if not isinstance(dtype, torch.dtype) or not isinstance(found.place, str):
        raise CheckpointDamagedError(path, "holds no spread tensor where it says so")
    return found


def spread_in(value: Any) -> Iterator[Spread]:
    """Give each `Spread` in *value*."""
    if isinstance(value, Spread):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from spread_in(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from spread_in(each)


def put_in(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return *value* with the tensor of its place for each `Spread`."""
    if isinstance(value, Spread):
        return tensors[value.place]
    if isinstance(value, dict):
        return {k: put_in(v, tensors) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(put_in(v, tensors) for v in value)
    return value


def check_places(path: Path, content: Any, tensors: Mapping[str, DTensor]) -> None:
    """Raise unless *tensors* has one for each `Spread` in *content*, and no other.

    Those under ``/locals/`` may be there in vain.

    Raises:
        CheckpointMismatchError: Naming the first.
    """
    saved = {spread.place: spread.shape for spread in spread_in(content)}
    for place, shape in saved.items():
        if place not in tensors:
            problem = "is spread in the checkpoint, and not in the model"
            raise CheckpointMismatchError(path, place.strip("/"), problem)
        if shape != tensors[place].shape:
            problem = (
                f"has shape {list(shape)}, the model needs {list(tensors[place].shape)}"
            )
            raise CheckpointMismatchError(path, place.strip("/"), problem)
    for place in tensors:
        if place not in saved and not place.startswith("/locals/"):
            problem = "is not spread in the checkpoint, and is in the model"
            raise CheckpointMismatchError(path, place.strip("/"), problem)
