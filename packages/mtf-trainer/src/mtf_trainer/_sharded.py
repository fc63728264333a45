"""Checkpoints of models whose tensors are spread over the processes.

A checkpoint is a folder ``epoch_005_step_001234.ckpt`` that all processes can see::

    .metadata  __0_0.distcp  __1_0.distcp     the spread tensors (DTensor), as
                                              torch.distributed.checkpoint writes them
    shared.pt                                 the rest of the content, by the first process
    rank_00000.pt  rank_00001.pt              the ``locals`` of each process
    commit.json                               that all of it is there: the number of
                                              processes, a moment's id, digests of all files

It is written under another name, committed once all processes are done, and renamed. What
has no marker, or files of another moment, is refused. Tensors are loaded into those of
the model as they are spread now, over however many processes.

Loading runs no code: see `mtf_trainer._dcp`.

Gradients that `no_sync` keeps in the processes of a model sharded by ``fully_shard`` are
in no tensor that can be seen: such a model must exchange them after each batch to be saved
inside a window.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import torch
import torch.distributed as dist
from lightning.fabric.wrappers import is_wrapped
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from mtf_trainer._dcp import load_spread, save_spread
from mtf_trainer.errors import (
    CheckpointDamagedError,
    CheckpointError,
    CheckpointMismatchError,
    CheckpointWriteError,
)

__all__ = ["is_committed", "load_sharded", "load_state", "save_sharded", "take_state"]

T = TypeVar("T")

_MARKER = "commit.json"
_SHARED = "shared.pt"
_VERSION = 1
_ASIDE = ".partial"
_OLD = ".replaced"
_PLACE = "__sharded__"
_FILE = re.compile(r"\.metadata|shared\.pt|rank_\d{5}\.pt|__\d+_\d+\.distcp")
_HEX = re.compile(r"[0-9a-f]{64}")
_TROUBLE = (
    OSError,
    RuntimeError,
    pickle.PickleError,
    EOFError,
    TypeError,
    AttributeError,
)


def take_state(model: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Any]:
    """Return ``model`` and ``optimizers`` for a content: what `load_sharded` fills.

    An optimizer that has taken no step is given its state, at zero.
    """
    inner = _inner(model)
    states = [get_state_dict(inner, _inner(each)) for each in optimizers]
    return {
        "model": states[0][0] if states else inner.state_dict(),
        "optimizers": [state for _, state in states],
    }


def load_state(
    model: nn.Module, optimizers: Sequence[Optimizer], state: Mapping[str, Any]
) -> None:
    """Put back what `take_state` took, out of a content that was loaded."""
    for each, optimizer_state in zip(optimizers, state["optimizers"], strict=True):
        set_state_dict(
            _inner(model),
            _inner(each),
            model_state_dict=state["model"],
            optim_state_dict=optimizer_state,
        )


def is_committed(path: Path) -> bool:
    """Tell whether *path* is a folder that was written to its end."""
    return (path / _MARKER).is_file()


def save_sharded(folder: Path, content: Mapping[str, Any], *, name: str) -> Path:
    """Write *content* to a new checkpoint in *folder*; one of that name is replaced.

    All processes call it together. What is not spread is taken from the first process,
    but for ``content["locals"]``, which is each one's own.

    Raises:
        CheckpointWriteError: In all processes, if one could not write its part. Nothing
            is left of it then, and an older checkpoint of that name is still there.
    """
    saving = _Saving(folder, name)
    spread: dict[str, DTensor] = {}
    shared = _take_out(dict(content), "", spread)
    own = shared.pop("locals", None)
    try:
        moment = _together(saving.prepare, saving.failed)[0]
        if spread:
            save_spread(saving.aside, spread, saving.failed)
        parts = _together(lambda: saving.write(moment, shared, own), saving.failed)
        _together(lambda: saving.commit(moment, parts), saving.failed)
    except CheckpointWriteError:
        if saving.rank == 0:
            shutil.rmtree(saving.aside, ignore_errors=True)
        raise
    return saving.path


def load_sharded(path: Path, target: Mapping[str, Any]) -> dict[str, Any]:
    """Load the checkpoint *path*, its spread tensors into those of *target*.

    All processes call it together. *target* holds, at the places where the content had
    them, the tensors to be filled, as `take_state` gives them; those under ``locals``
    may be there in vain.

    Returns:
        The content, in which spread tensors are those of *target*, and ``locals`` is the
        list of those of all processes that saved it. Other tensors are on the CPU.

    Raises:
        CheckpointDamagedError: In all processes, naming the file: if the folder was not
            committed, or a file is missing, altered, or of another moment.
        CheckpointMismatchError: In all processes, if *target* has other spread tensors.
            Nothing was loaded then.
    """
    world_size, rank = dist.get_world_size(), dist.get_rank()
    spread: dict[str, DTensor] = {}
    _take_out(dict(target), "", spread)

    def failed(error: BaseException) -> CheckpointDamagedError:
        return CheckpointDamagedError(path, f"cannot be loaded: {_told(error)}")

    def check() -> dict[str, Any]:
        marker = _read_marker(path)
        # Each process reads a part of the files.
        for name in sorted(marker["files"])[rank::world_size]:
            _check_digest(path / name, marker["files"][name])
        return marker

    marker = _together(check, failed)[rank]

    def read() -> dict[str, Any]:
        names = [f"rank_{r:05}.pt" for r in range(marker["world_size"])]
        shared, *own = (_load(path / n, marker["moment"]) for n in (_SHARED, *names))
        content = {**shared, "locals": own}
        _check_places(path, dict(_places(content)), spread)
        return content

    # What a process read goes to no other.
    content: dict[str, Any] = {}
    _together(lambda: content.update(read()), failed)
    wanted = {place: spread[place] for place, _ in _places(content)}
    if wanted:
        load_spread(path, set(marker["files"]), wanted, failed)
    return cast(dict[str, Any], _put_in(content, wanted))


class _Saving:
    """The steps of one save, in one process; the first one does what is done once."""

    def __init__(self, folder: Path, name: str) -> None:
        self.rank = dist.get_rank()
        self.path = folder / name
        self.aside = folder / f".{name}{_ASIDE}"
        self._old = folder / f".{name}{_OLD}"

    def failed(self, error: BaseException) -> CheckpointWriteError:
        return CheckpointWriteError(self.path, f"cannot be written: {_told(error)}")

    def prepare(self) -> str:
        """Make the folder, after putting in order what an interrupted save left."""
        if self.rank == 0:
            folder = self.path.parent
            folder.mkdir(parents=True, exist_ok=True)
            for old in folder.glob(f".*{_OLD}"):
                replaced = folder / old.name[1 : -len(_OLD)]
                if replaced.exists():
                    shutil.rmtree(old)
                else:
                    old.rename(replaced)
            for aside in folder.glob(f".*{_ASIDE}"):
                shutil.rmtree(aside)
            self.aside.mkdir()
        return uuid.uuid4().hex

    def write(self, moment: str, shared: object, own: object) -> dict[str, str]:
        """Write this process's files; return the digests of all that are its."""
        name = f"rank_{self.rank:05}.pt"
        _save(self.aside / name, {"moment": moment, "content": own})
        mine = [self.aside / name, *self.aside.glob(f"__{self.rank}_*.distcp")]
        if self.rank == 0:
            _save(self.aside / _SHARED, {"moment": moment, "content": shared})
            mine += [self.aside / _SHARED, *self.aside.glob(".metadata")]
        return {each.name: _digest(each) for each in mine}

    def commit(self, moment: str, parts: list[dict[str, str]]) -> None:
        """Write the marker, then give the folder its name."""
        if self.rank != 0:
            return
        marker = {
            "version": _VERSION,
            "moment": moment,
            "world_size": len(parts),
            "files": {file: digest for part in parts for file, digest in part.items()},
        }
        with (self.aside / _MARKER).open("xb") as file:
            file.write(json.dumps(marker, indent=1).encode())
            _flush(file)
        _sync(self.aside)
        # A folder can take the place of none but an empty one.
        if self.path.exists():
            self.path.rename(self._old)
        self.aside.rename(self.path)
        _sync(self.path.parent)
        shutil.rmtree(self._old, ignore_errors=True)


def _together(work: Callable[[], T], failed: Callable[[BaseException], Any]) -> list[T]:
    """Do *work* in each process; return all values, or raise one's error in all."""
    value: T | None = None
    problem: CheckpointError | None = None
    try:
        value = work()
    except CheckpointError as error:
        problem = error
    except _TROUBLE as error:
        problem = failed(error)
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, (value, problem))
    for _, failure in told:
        if failure is not None:
            raise failure
    return [each for each, _ in told]


def _inner(part: Any) -> Any:
    """Return the model or optimizer that Fabric may have wrapped, as names depend on it."""
    if not is_wrapped(part):
        return part
    return part.module if isinstance(part, nn.Module) else part.optimizer


def _take_out(value: Any, place: str, spread: dict[str, DTensor]) -> Any:
    """Return *value* with spread tensors moved to *spread*, by place."""
    if isinstance(value, DTensor):
        spread[place] = value
        return {_PLACE: place, "shape": list(value.shape)}
    if isinstance(value, Mapping):
        return {k: _take_out(v, f"{place}/{k}", spread) for k, v in value.items()}
    if isinstance(value, list | tuple):
        taken = (_take_out(v, f"{place}/{i}", spread) for i, v in enumerate(value))
        return type(value)(taken)
    return value


def _places(value: Any) -> Iterator[tuple[str, list[int]]]:
    """Give the place and the shape of each tensor that was taken out of *value*."""
    if isinstance(value, dict):
        if _PLACE in value:
            yield value[_PLACE], value.get("shape", [])
        else:
            for each in value.values():
                yield from _places(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _places(each)


def _put_in(value: Any, tensors: Mapping[str, DTensor]) -> Any:
    if isinstance(value, dict):
        if _PLACE in value:
            return tensors[value[_PLACE]]
        return {k: _put_in(v, tensors) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_put_in(v, tensors) for v in value)
    return value


def _check_places(
    path: Path, saved: dict[str, list[int]], spread: Mapping[str, DTensor]
) -> None:
    for place, shape in saved.items():
        if place not in spread:
            problem = "is spread in the checkpoint, and not in the model"
            raise CheckpointMismatchError(path, place.strip("/"), problem)
        if shape != list(spread[place].shape):
            problem = f"has shape {shape}, the model needs {list(spread[place].shape)}"
            raise CheckpointMismatchError(path, place.strip("/"), problem)
    for place in spread:
        if place not in saved and not place.startswith("/locals/"):
            problem = "is missing in the checkpoint"
            raise CheckpointMismatchError(path, place.strip("/"), problem)


def _read_marker(path: Path) -> dict[str, Any]:
    try:
        marker = json.loads((path / _MARKER).read_text("utf-8"))
        files, world_size = marker["files"], marker["world_size"]
        whole = (
            marker["version"] == _VERSION
            and isinstance(marker["moment"], str)
            and isinstance(world_size, int)
            and all(_FILE.fullmatch(f) and _HEX.fullmatch(d) for f, d in files.items())
            and {_SHARED, *(f"rank_{r:05}.pt" for r in range(world_size))} <= set(files)
        )
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointDamagedError(path, f"was not committed: no {_MARKER}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise CheckpointDamagedError(path / _MARKER, "is damaged, or of another version")
    return cast(dict[str, Any], marker)


def _check_digest(path: Path, recorded: str) -> None:
    try:
        found = _digest(path)
    except FileNotFoundError:
        raise CheckpointDamagedError(path, "is missing") from None
    if found != recorded:
        problem = f"its sha256 is {found}, and {_MARKER} says {recorded}"
        raise CheckpointDamagedError(path, problem)


def _load(path: Path, moment: str) -> Any:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        own = loaded["moment"]
    except (RuntimeError, pickle.PickleError, EOFError, KeyError, TypeError) as error:
        problem = f"cannot be loaded as plain data: {_told(error)}"
        raise CheckpointDamagedError(path, problem) from error
    if own != moment:
        problem = f"is of moment {own}, and {_MARKER} of {moment}"
        raise CheckpointDamagedError(path, problem)
    return loaded["content"]


def _save(path: Path, content: dict[str, Any]) -> None:
    with path.open("xb") as file:
        torch.save(content, file)
        _flush(file)
    # What a loader that runs no code cannot read is of no use.
    torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _told(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).partition("\n")[0] or type(error).__name__
