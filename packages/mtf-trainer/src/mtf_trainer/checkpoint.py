"""Checkpoints on disk: whole or absent, proven before an older one goes.

A checkpoint ``epoch_005_step_001234.ckpt`` is what ``torch.save`` writes, and loads with
plain ``torch.load(path, weights_only=True)``. Beside it lies its digest, in the form that
``sha256sum -c`` checks. Both are written under another name in the same folder, brought
to the disk, read back, and only then renamed; ``latest.ckpt`` is a relative link to the
newest. Durability is what ``fsync`` of the file and of its folder give.

This module knows nothing of models: content is a dictionary of plain data and tensors.
One process writes to a folder.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from mtf_trainer.errors import (
    CheckpointDamagedError,
    CheckpointWarning,
    CheckpointWriteError,
)

__all__ = ["LATEST", "CheckpointStore", "checkpoint_name"]

LATEST = "latest.ckpt"

_NAME = re.compile(r"epoch_(\d{3,})_step_(\d{6,})\.ckpt")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_ASIDE = re.compile(r"\.(epoch_\d+_step_\d+\.ckpt(\.sha256)?|latest\.ckpt)\.tmp")
_CANNOT_SAVE = (OSError, RuntimeError, pickle.PicklingError, AttributeError, TypeError)


def checkpoint_name(epoch: int, global_step: int) -> str:
    """Return the file name after *epoch* epochs and *global_step* steps.

    >>> checkpoint_name(5, 1234)
    'epoch_005_step_001234.ckpt'
    """
    return f"epoch_{epoch:03d}_step_{global_step:06d}.ckpt"


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        folder: Where they lie; made by `prepare`.
        keep_last_n: How many to keep, at least 1.
    """

    def __init__(self, folder: Path, *, keep_last_n: int) -> None:
        self._folder = folder
        self._keep_last_n = keep_last_n

    def prepare(self) -> None:
        """Make the folder, and delete what an interrupted write left in it.

        Raises:
            CheckpointWriteError: If the folder cannot be made or written to.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for path in self._folder.iterdir():
                orphan = path.suffix == ".sha256" and _NAME.fullmatch(path.stem)
                if _ASIDE.fullmatch(path.name) or (
                    orphan and not path.with_suffix("").exists()
                ):
                    path.unlink()
            probe = self._aside(LATEST)
            probe.touch()
            probe.unlink()
            _sync_folder(self._folder.parent)
        except OSError as error:
            problem = f"checkpoints cannot be written here: {error.strerror or error}"
            raise CheckpointWriteError(self._folder, problem) from error

    def list(self) -> list[Path]:
        """Return the checkpoints in the folder, whole or not, newest first."""
        if not self._folder.is_dir():
            return []
        named = [p for p in self._folder.iterdir() if _NAME.fullmatch(p.name)]
        return sorted(named, key=_age, reverse=True)

    def save(self, content: Mapping[str, Any], *, epoch: int, global_step: int) -> Path:
        """Write *content*, prove it, link it, and delete what is too old.

        Raises:
            CheckpointWriteError: If any of it fails; the older ones are all there then.
        """
        path = self._folder / checkpoint_name(epoch, global_step)
        digest_path = _digest_path(path)
        asides = [self._aside(p.name) for p in (path, digest_path)]
        try:
            for aside in asides:
                aside.unlink(missing_ok=True)
            with _create(asides[0]) as file:
                hashing = _HashingFile(file)
                torch.save(dict(content), cast(BinaryIO, hashing))
                _flush(file)
            digest = hashing.hexdigest()
            _prove(asides[0], digest)
            with _create(asides[1]) as file:
                file.write(f"{digest}  {path.name}\n".encode())
                _flush(file)
            asides[1].replace(digest_path)
            asides[0].replace(path)
            _sync_folder(self._folder)
            self._link(path.name)
        except _CANNOT_SAVE as error:
            for aside in asides:
                _delete(aside)
            raise CheckpointWriteError(path, _why_not_written(error)) from error
        self._delete_old(path)
        return path

    def load(self, path: Path) -> dict[str, Any]:
        """Return the content of *path*, its tensors on the CPU. Runs no code from it.

        Raises:
            CheckpointDamagedError: If it is not what was written, or cannot be read.
        """
        try:
            _check_digest(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
        except OSError as error:
            problem = f"cannot be read: {error.strerror or error}"
            raise CheckpointDamagedError(path, problem) from error
        except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
            problem = f"cannot be loaded as plain data: {_first_line(error)}"
            raise CheckpointDamagedError(path, problem) from error
        if not isinstance(content, dict):
            raise CheckpointDamagedError(path, "holds no dictionary")
        return content

    def load_newest(self) -> tuple[Path, dict[str, Any]] | None:
        """Return the newest whole checkpoint; None if there are none at all.

        Damaged ones are passed over, each with a `CheckpointWarning` that names it.

        Raises:
            CheckpointDamagedError: If there are checkpoints, and all are damaged: to
                start anew then would waste what might be repaired.
        """
        paths = self.list()
        for path in paths:
            try:
                return path, self.load(path)
            except CheckpointDamagedError as error:
                message = f"passed over a damaged checkpoint: {error}"
                warnings.warn(message, CheckpointWarning, stacklevel=2)
        if paths:
            problem = (
                f"none of its {len(paths)} checkpoints can be used; "
                "repair one, or move them away to start from the beginning"
            )
            raise CheckpointDamagedError(self._folder, problem)
        return None

    def _aside(self, name: str) -> Path:
        return self._folder / f".{name}.tmp"

    def _link(self, name: str) -> None:
        aside = self._aside(LATEST)
        aside.unlink(missing_ok=True)
        aside.symlink_to(name)
        try:
            aside.replace(self._folder / LATEST)
        except OSError:
            aside.unlink()
            raise
        _sync_folder(self._folder)

    def _delete_old(self, newest: Path) -> None:
        """Delete all but the last few up to *newest*; never one of a later age."""
        older = [path for path in self.list() if _age(path) < _age(newest)]
        for path in older[self._keep_last_n - 1 :]:
            # The digest goes last: without its checkpoint it is a leftover, whereas
            # a checkpoint without its digest would look damaged.
            for victim in (path, _digest_path(path)):
                if not _delete(victim):
                    message = f"{victim}: could not be deleted"
                    warnings.warn(message, CheckpointWarning, stacklevel=3)
                    break


class _HashingFile:
    """Passes bytes on to a file, and digests them on the way."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._sha256.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def hexdigest(self) -> str:
        return self._sha256.hexdigest()


def _age(path: Path) -> tuple[int, int]:
    epoch, step = re.findall(r"\d+", path.name)
    return int(epoch), int(step)


def _digest_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _create(path: Path) -> BinaryIO:
    """Open a new file: never one, or a link, that is already there."""
    return path.open("xb")


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _delete(path: Path) -> bool:
    """Delete *path*, and tell whether it is gone."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _prove(path: Path, digest: str) -> None:
    """Read back what was written, as a later process will."""
    if _sha256(path) != digest:
        message = "reads back other bytes than were written"
        raise OSError(message)
    try:
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        message = f"holds more than plain data: {_first_line(error)}"
        raise TypeError(message) from error


def _check_digest(path: Path) -> None:
    if not path.is_file():
        raise CheckpointDamagedError(path, "is not a file")
    if path.stat().st_size == 0:
        raise CheckpointDamagedError(path, "is empty")
    beside = _digest_path(path)
    if not beside.is_file():
        raise CheckpointDamagedError(path, f"its digest {beside.name} is missing")
    recorded = beside.read_text("utf-8", errors="replace").partition(" ")[0]
    if not _DIGEST.fullmatch(recorded):
        raise CheckpointDamagedError(path, f"its digest {beside.name} is damaged")
    found = _sha256(path)
    if found != recorded:
        problem = f"its sha256 is {found}, and {beside.name} says {recorded}"
        raise CheckpointDamagedError(path, problem)


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _why_not_written(error: BaseException) -> str:
    # torch's writer reports its own trouble in place of the file's: look behind it.
    cause = error.__cause__ or error.__context__
    if not isinstance(error, OSError) and isinstance(cause, OSError):
        error = cause
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be written: {error.strerror}"
    return f"cannot be written: {_first_line(error)}"
