"""Checkpoints of models whose tensors are spread over the processes.

A checkpoint is a folder ``epoch_005_step_001234.ckpt`` that all processes can see::

    .metadata  __0_0.distcp  __1_0.distcp     the spread tensors (DTensor), as
                                              torch.distributed.checkpoint writes them
    shared.pt                                 the rest of the content, by the first process
    rank_00000.pt  rank_00001.pt              the ``locals`` of each process
    commit.json                               that all of it is there: see
                                              `mtf_trainer._saving.commit`

In ``shared.pt`` and the files of the processes, a digest of each of its pieces stands for
a spread tensor, so that the certificate in ``shared.pt`` is one of all of it.

All processes write beside the folder's name; once all are done, the first one finishes:
see `mtf_trainer._saving.folder_saver`. What has no marker, or files of another moment, is refused.
Tensors are loaded into those of the model as they are spread now, over however many
processes. Loading runs no code: see `mtf_trainer._saving.dcp`.
"""

from __future__ import annotations

import pickle
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from mtf_trainer._canonical import digest_of
from mtf_trainer._saving.certified import check_certificate
from mtf_trainer._saving.commit import (
    MARKER,
    SHARED,
    Marker,
    check_files,
    own_name,
    read_marker,
)
from mtf_trainer._saving.dcp import load_spread, pieces_in, save_spread
from mtf_trainer._saving.files import aside_of, first_line, flush, sha256
from mtf_trainer._saving.spread import (
    Piece,
    as_spread,
    check_places,
    piece_of,
    put_in,
    spread_in,
    take_out,
)
from mtf_trainer.errors import (
    CheckpointDamagedError,
    CheckpointError,
    CheckpointWriteError,
)

__all__ = [
    "Finish",
    "Targets",
    "load_certified",
    "load_sharded",
    "load_whole",
    "save_sharded",
    "write_part",
]

T = TypeVar("T")

Finish = Callable[[dict[str, Any], Marker], T]
"""Called in the first process: with the content and the marker, whose files are written
but for ``shared.pt``."""

Targets = Callable[[dict[str, Any]], Mapping[str, DTensor]]
"""Gives the tensors to fill, by place, for a content in which each is a `Spread`."""

_TROUBLE = (
    OSError,
    RuntimeError,
    pickle.PickleError,
    EOFError,
    TypeError,
    ValueError,
    AttributeError,
)


def save_sharded(path: Path, content: Mapping[str, Any], finish: Finish[T]) -> T:
    """Write *content* beside *path*, and let the first process finish.

    All processes call it together. What is not spread is taken from the first process,
    but for ``content["locals"]``, which is each one's own.

    Returns:
        What *finish* returned, in all processes. The content it is given has digests in
        place of spread tensors, and as ``locals`` those of all processes.

    Raises:
        CheckpointWriteError: In all processes, if one could not do its part. Nothing
            of it is left then, and an older checkpoint of that name is still there.
        CheckpointError: Likewise, what else of that tree *finish* raises.
    """
    saving = _Saving(path)
    spread: dict[str, DTensor] = {}
    take_out(dict(content), spread, {})
    try:
        moment = _together(saving.prepare, saving.failed)[0]
        pieces = _merged(_together(lambda: _pieces_of(spread), saving.failed))
        shared = take_out(dict(content), {}, pieces)
        own = shared.pop("locals", None)
        if spread:
            save_spread(saving.aside, spread, saving.failed)
        parts = _together(lambda: saving.write(moment, own), saving.failed)

        def end() -> T | None:
            if saving.rank != 0:
                return None
            whole = {**shared, "locals": [each for each, _ in parts]}
            files = {name: digest for _, some in parts for name, digest in some.items()}
            return finish(
                whole, Marker(moment=moment, world_size=len(parts), files=files)
            )

        return cast(T, _together(end, saving.failed)[0])
    except CheckpointError:
        if saving.rank == 0:
            shutil.rmtree(saving.aside, ignore_errors=True)
        raise


class _Saving:
    """The steps of one save, in one process."""

    def __init__(self, path: Path) -> None:
        self.rank = dist.get_rank()
        self.aside = aside_of(path)
        self._path = path

    def failed(self, error: BaseException) -> CheckpointWriteError:
        return CheckpointWriteError(self._path, f"cannot be written: {_told(error)}")

    def prepare(self) -> str:
        """Make the folder; return an id of the moment."""
        if self.rank == 0:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(self.aside, ignore_errors=True)
            self.aside.mkdir()
        return uuid.uuid4().hex

    def write(self, moment: str, own: object) -> tuple[object, dict[str, str]]:
        """Write this process's part; return it, and the digests of all that are its."""
        mine = sorted(self.aside.glob(f"__{self.rank}_*.distcp"))
        if self.rank == 0:
            mine += self.aside.glob(".metadata")
        files = {each.name: sha256(each) for each in mine}
        name = own_name(self.rank)
        return own, files | {name: write_part(self.aside / name, moment, own)}


def _pieces_of(spread: Mapping[str, DTensor]) -> dict[str, Piece]:
    """Return this process's pieces, by place."""
    found = {place: piece_of(tensor) for place, tensor in spread.items()}
    return {place: piece for place, piece in found.items() if piece is not None}


def write_part(path: Path, moment: str, content: object) -> str:
    """Write *content* to the new file *path*, and return its sha256.

    Raises:
        OSError: If that fails.
        RuntimeError: If it cannot be read back without running code.
        UnpicklingError: Likewise.
    """
    with path.open("xb") as file:
        torch.save({"moment": moment, "content": content}, file)
        flush(cast(BinaryIO, file))
    torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return sha256(path)


def load_sharded(path: Path, targets: Targets) -> dict[str, Any]:
    """Load the checkpoint *path*, its spread tensors into those that *targets* gives.

    All processes call it together.

    Returns:
        The content, in which ``locals`` is the list of those of all processes that saved
        it. Tensors that are not spread are on the CPU.

    Raises:
        CheckpointDamagedError: In all processes, naming the file: if the folder was not
            committed, or a file is missing, altered, or of another moment, or the
            certificate is of something else.
        CheckpointMismatchError: In all processes, if the targets do not fit.
        CheckpointError: In all processes, what else *targets* raises. Nothing was loaded
            in any of these cases.
    """
    world_size, rank = dist.get_world_size(), dist.get_rank()
    content: dict[str, Any] = {}
    tensors: dict[str, DTensor] = {}

    def failed(error: BaseException) -> CheckpointDamagedError:
        return CheckpointDamagedError(path, f"cannot be loaded: {_told(error)}")

    def check() -> Marker:
        marker = read_marker(path)
        # Each process reads a part of the files.
        check_files(path, marker, sorted(marker.files)[rank::world_size])
        return marker

    def read() -> None:
        shared, owns = _parts(path, marker)
        whole = {**shared, "locals": owns}
        check_certificate(path, whole)
        content.update(as_spread(path, whole))
        tensors.update(targets(content))
        check_places(path, content, tensors)

    marker = _together(check, failed)[rank]
    _together(read, failed)
    wanted = {each.place: tensors[each.place] for each in spread_in(content)}
    if wanted:
        load_spread(path, set(marker.files), wanted, failed)
    return cast(dict[str, Any], put_in(content, wanted))


def load_whole(path: Path) -> dict[str, Any]:
    """Return the content of *path* with whole tensors on the CPU, in this process alone.

    Raises:
        CheckpointDamagedError: If it is not what was written, or cannot be read.
    """
    content, marker = _load_alone(path)
    tensors = {
        each.place: torch.zeros(each.shape, dtype=each.dtype)
        for each in spread_in(content)
    }
    missing = {place: tensor.numel() for place, tensor in tensors.items()}
    for place, offset, piece in _pieces(path, marker):
        if place in tensors:
            try:
                _put_piece(tensors[place], offset, piece)
            except (RuntimeError, ValueError, IndexError) as error:
                problem = f"cannot be loaded: {_told(error)}"
                raise CheckpointDamagedError(path, problem) from error
            missing[place] -= piece.numel()
    if any(missing.values()):
        raise CheckpointDamagedError(path, "does not hold all of its tensors")
    return cast(dict[str, Any], put_in(content, tensors))


def _put_piece(tensor: Tensor, offset: tuple[int, ...], piece: Tensor) -> None:
    for dim, (start, size) in enumerate(zip(offset, piece.shape, strict=True)):
        tensor = tensor.narrow(dim, start, size)
    tensor.copy_(piece)


def load_certified(path: Path) -> dict[str, Any]:
    """Return the content of *path* as its certificate is of it, in this process alone.

    That has a digest of each piece in place of a spread tensor; they are those of what
    lies there.

    Raises:
        CheckpointDamagedError: If it is not what was written, or cannot be read.
    """
    content, marker = _load_alone(path)
    recorded = {
        (each.place, *piece) for each in spread_in(content) for piece in each.pieces
    }
    found = {
        (place, offset, digest_of(piece))
        for place, offset, piece in _pieces(path, marker)
    }
    for place, offset, _ in sorted(recorded ^ found):
        problem = f"{place.strip('/')} at {list(offset)} is not what was saved"
        raise CheckpointDamagedError(path, problem)
    plain, owns = _parts(path, marker)
    return {**plain, "locals": owns}


def _load_alone(path: Path) -> tuple[dict[str, Any], Marker]:
    try:
        marker = read_marker(path)
        check_files(path, marker)
        return _read(path, marker), marker
    except OSError as error:
        problem = f"cannot be read: {error.strerror or error}"
        raise CheckpointDamagedError(path, problem) from error


def _pieces(path: Path, marker: Marker) -> list[tuple[str, tuple[int, ...], Tensor]]:
    """Return the pieces that have values."""
    if ".metadata" not in marker.files:
        return []
    try:
        found = list(pieces_in(path, set(marker.files)))
    except _TROUBLE as error:
        problem = f"cannot be loaded: {_told(error)}"
        raise CheckpointDamagedError(path, problem) from error
    return [each for each in found if each[2].numel()]


def _read(path: Path, marker: Marker) -> dict[str, Any]:
    """Return the content, with a `Spread` for each spread tensor."""
    shared, owns = _parts(path, marker)
    content = as_spread(path, {**shared, "locals": owns})
    return cast(dict[str, Any], content)


def _parts(path: Path, marker: Marker) -> tuple[dict[str, Any], list[Any]]:
    owns = [
        _load(path / own_name(rank), marker.moment) for rank in range(marker.world_size)
    ]
    shared = _load(path / SHARED, marker.moment)
    if not isinstance(shared, dict):
        raise CheckpointDamagedError(path / SHARED, "holds no dictionary")
    return shared, owns


def _load(path: Path, moment: str) -> Any:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        own, content = loaded["moment"], loaded["content"]
    except _TROUBLE as error:
        problem = f"cannot be loaded as plain data: {_told(error)}"
        raise CheckpointDamagedError(path, problem) from error
    if own != moment:
        problem = f"is of moment {own}, and {MARKER} of {moment}"
        raise CheckpointDamagedError(path, problem)
    return content


def _merged(told: list[dict[str, Piece]]) -> dict[str, list[Piece]]:
    """Return the pieces of all processes by place; those that several have, once."""
    pieces: dict[str, set[Piece]] = {}
    for each in told:
        for place, piece in each.items():
            pieces.setdefault(place, set()).add(piece)
    return {place: sorted(found) for place, found in pieces.items()}


def _together(work: Callable[[], T], failed: Callable[[BaseException], Any]) -> list[T]:
    """Do *work* in each process; return all values, or raise one's error in all."""
    value: T | None = None
    problem: CheckpointError | None = None
    try:
        value = work()
    except CheckpointError as error:
        problem = error
    except (*_TROUBLE, KeyError) as error:
        problem = failed(error)
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, (value, problem))
    for _, failure in told:
        if failure is not None:
            raise failure
    return [each for each, _ in told]


def _told(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return first_line(error)
