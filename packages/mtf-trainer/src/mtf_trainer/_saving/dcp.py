"""Spread tensors on disk, by torch.distributed.checkpoint (DCP), without running code.

torch 2.13 unpickles DCP's ``.metadata``, and all entries that are no tensors, without any
check. So only tensors are written, an entry of another kind is refused, and the metadata is
read by an unpickler that knows just the classes it is made of. Their tensors are loaded
with ``weights_only=True`` by DCP itself.

This module knows nothing of what the tensors are, nor whether a folder is whole.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Collection, Iterator
from enum import EnumType
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from mtf_trainer.errors import CheckpointError

__all__ = ["load_spread", "pieces_in", "save_spread"]

_CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
}


def save_spread(
    folder: Path,
    tensors: dict[str, DTensor],
    failed: Callable[[BaseException], CheckpointError],
) -> None:
    """Write *tensors* into *folder*. All processes call it together.

    Raises:
        CheckpointError: What *failed* makes, in all processes, of the first error of one.
    """
    try:
        save(tensors, storage_writer=FileSystemWriter(folder))
    except CheckpointException as error:
        raise failed(_first_of(error)) from error


def load_spread(
    folder: Path,
    files: Collection[str],
    tensors: dict[str, DTensor],
    failed: Callable[[BaseException], CheckpointError],
) -> None:
    """Fill *tensors* from *files* in *folder*. All processes call it together.

    Raises:
        CheckpointError: What *failed* makes, in all processes, of the first error of one.
    """
    reader = Reader(folder, files)
    try:
        load(tensors, storage_reader=reader, planner=_Planner())
    except CheckpointException as error:
        raise failed(_first_of(error)) from error


def pieces_in(
    folder: Path, files: Collection[str]
) -> Iterator[tuple[str, tuple[int, ...], Tensor]]:
    """Give the name, the offsets and the values of each piece of the tensors in *folder*.

    One process does it alone. Only *files* are read.

    Raises:
        UnpicklingError: If they hold something else.
        RuntimeError: Likewise.
        OSError: If they cannot be read.
    """
    for index, info in Reader(folder, files).read_metadata().storage_data.items():
        with (folder / info.relative_path).open("rb") as file:
            file.seek(info.offset)
            data = io.BytesIO(file.read(info.length))
        piece = torch.load(data, map_location="cpu", weights_only=True)
        if not isinstance(piece, Tensor):
            message = f"{index.fqn} is no tensor"
            raise pickle.UnpicklingError(message)
        yield index.fqn, tuple(index.offset or ()), piece


class Reader(FileSystemReader):
    """Reads metadata that is made of known classes, and the files of one checkpoint."""

    def __init__(self, folder: Path, files: Collection[str]) -> None:
        super().__init__(folder)
        self._folder = folder
        self._files = set(files)

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """Return what ``.metadata`` says.

        Raises:
            UnpicklingError: If it is of other classes, or names files of others.
        """
        with (self._folder / ".metadata").open("rb") as file:
            metadata = _Unpickler(file).load()
        if not isinstance(metadata, Metadata) or not metadata.storage_data:
            message = ".metadata holds something else"
            raise pickle.UnpicklingError(message)
        named = {place.relative_path for place in metadata.storage_data.values()}
        if not named <= self._files:
            message = f".metadata names files of others: {sorted(named - self._files)}"
            raise pickle.UnpicklingError(message)
        metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return metadata


class _Planner(DefaultLoadPlanner):
    """Loads tensors alone."""

    def load_bytes(self, read_item: Any, value: Any) -> NoReturn:  # noqa: ARG002
        message = f"{read_item.dest_index.fqn} is no tensor"
        raise pickle.UnpicklingError(message)


class _Unpickler(pickle.Unpickler):
    """Knows the classes of DCP's metadata, which only hold values."""

    def find_class(self, module: str, name: str, /) -> Any:
        known = name in _CLASSES.get(module, ())
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if known or dtype:
            return super().find_class(module, name)
        if module.partition(".")[0] == "pathlib" and name in {"PosixPath", "WindowsPath"}:
            return _no_path
        if (module, name) == ("builtins", "getattr"):
            return _member
        message = f".metadata asks for {module}.{name}, which it has no use for"
        raise pickle.UnpicklingError(message)


def _member(kind: Any, name: str) -> Any:
    """Stand in for `getattr`, by which Python 3.11.0 to 3.11.3 write members of enumerations."""
    if isinstance(kind, EnumType):
        return kind[name]
    message = f".metadata asks for {name!r} of {kind!r}, which it has no use for"
    raise pickle.UnpicklingError(message)


def _no_path(*_: str) -> None:
    """Stand in for the folder that was written to: nothing depends on it."""


def _first_of(error: CheckpointException) -> BaseException:
    return next(iter(error.failures.values()))[0]
