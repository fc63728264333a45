"""The folder of checkpoints: names, digests, and the calls that make a write durable.

Beside ``epoch_005_step_001234.ckpt`` lies its digest, in the form that ``sha256sum -c``
checks. While a checkpoint is replaced by another of its name, that file holds the digests
of both, the new one first: whichever of the two is there is whole. Durability is what
``fsync`` of a file and of its folder give.

A checkpoint of a sharded model is a folder, which holds the digests of its files: see
`mtf_trainer._saving.sharded`. One that is replaced waits under another name until it has been.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from mtf_trainer._saving.file_lock import FileLock
from mtf_trainer.errors import CheckpointDamagedError

__all__ = [
    "LATEST",
    "Fault",
    "HashingFile",
    "age",
    "aside_of",
    "checkpoint_name",
    "checkpoints_in",
    "create",
    "delete",
    "digest_line",
    "digest_path",
    "first_line",
    "flush",
    "is_checkpoint_name",
    "is_leftover",
    "no_fault",
    "put_digests",
    "put_in_order",
    "recorded_digests",
    "replaced_by",
    "sha256",
    "sync_folder",
    "writing",
]

LATEST = "latest.ckpt"
LOCK = ".lock"

Fault = Callable[[str], None]

_NAME = re.compile(r"epoch_([0-9]{3,})_step_([0-9]{6,})\.ckpt")
_ASIDE = re.compile(r"\.(epoch_\d+_step_\d+\.ckpt(\.sha256)?|latest\.ckpt)\.tmp")
_REPLACED = re.compile(r"\.(epoch_\d+_step_\d+\.ckpt)\.old")
_DIGEST_LINE = re.compile(r"([0-9a-f]{64})  ([^/\n]+)")
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF}
_LOCK_DEADLINE_S = 600.0
_LOCK_INTERVAL_S = 0.05


def no_fault(place: str) -> None:
    """Do nothing at *place*; tests raise there, to show what a kill would leave."""


def checkpoint_name(epoch: int, global_step: int) -> str:
    """Return the file name after *epoch* epochs and *global_step* steps.

    >>> checkpoint_name(5, 1234)
    'epoch_005_step_001234.ckpt'
    """
    return f"epoch_{epoch:03d}_step_{global_step:06d}.ckpt"


def is_checkpoint_name(name: str) -> bool:
    """Tell whether *name* is one that `checkpoint_name` gives."""
    return _NAME.fullmatch(name) is not None


def age(path: Path) -> tuple[int, int]:
    """Return epoch and step from the name of *path*: what orders checkpoints."""
    epoch, step = re.findall(r"\d+", path.name)
    return int(epoch), int(step)


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoints in *folder*, whole or not, newest first."""
    if not folder.is_dir():
        return []
    return sorted(
        (path for path in folder.iterdir() if is_checkpoint_name(path.name)),
        key=age,
        reverse=True,
    )


def is_leftover(path: Path) -> bool:
    """Tell whether an interrupted write left *path*: no later one would miss it."""
    orphan = path.suffix == ".sha256" and is_checkpoint_name(path.stem)
    return bool(_ASIDE.fullmatch(path.name)) or (
        orphan and not os.path.lexists(path.with_suffix(""))
    )


def put_in_order(folder: Path) -> None:
    """Delete what an interrupted write left in *folder*, and bring back what it replaced.

    Raises:
        OSError: If that fails.
    """
    for path in list(folder.iterdir()):
        replaced = _REPLACED.fullmatch(path.name)
        if replaced and not os.path.lexists(folder / replaced[1]):
            path.rename(folder / replaced[1])
        elif not (replaced or is_leftover(path)):
            continue
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def digest_path(path: Path) -> Path:
    """Return where the digest of the checkpoint *path* lies."""
    return path.with_name(f"{path.name}.sha256")


def aside_of(path: Path) -> Path:
    """Return where *path* is written before it is renamed."""
    return path.with_name(f".{path.name}.tmp")


def replaced_by(path: Path) -> Path:
    """Return where the folder *path* lies while another takes its place."""
    return path.with_name(f".{path.name}.old")


def digest_line(digest: str, name: str) -> str:
    """Return a line that ``sha256sum -c`` reads."""
    return f"{digest}  {name}\n"


def recorded_digests(path: Path) -> list[str]:
    """Return what the file beside *path* says its digest is: one, or two while replaced.

    Raises:
        CheckpointDamagedError: If that file is missing or damaged.
        OSError: If it cannot be read.
    """
    beside = digest_path(path)
    if not beside.is_file():
        raise CheckpointDamagedError(path, f"its digest {beside.name} is missing")
    lines = beside.read_text("utf-8", errors="replace").splitlines()
    matches = [_DIGEST_LINE.fullmatch(line) for line in lines]
    digests = [match[1] for match in matches if match and match[2] == path.name]
    if not digests or len(digests) < len(lines):
        raise CheckpointDamagedError(path, f"its digest {beside.name} is damaged")
    return digests


def put_digests(path: Path, digests: list[str], fault: Fault = no_fault) -> None:
    """Replace what is recorded beside *path*, whole or not at all.

    Raises:
        OSError: If that fails.
    """
    beside = digest_path(path)
    aside = aside_of(beside)
    aside.unlink(missing_ok=True)
    with create(aside) as file:
        file.writelines(digest_line(digest, path.name).encode() for digest in digests)
        fault("digest written")
        flush(file)
    aside.replace(beside)
    sync_folder(beside.parent)


def create(path: Path) -> BinaryIO:
    """Open a new file: never one, or a link, that is already there.

    Raises:
        OSError: If that is not possible.
    """
    return path.open("xb")


def flush(file: BinaryIO) -> None:
    """Bring what was written to the disk.

    Raises:
        OSError: If that fails.
    """
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Bring the names in *folder* to the disk.

    Raises:
        OSError: If that fails.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def delete(path: Path) -> bool:
    """Delete *path*, and tell whether it is gone."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def sha256(path: Path) -> str:
    """Return the digest of a file's bytes, in hexadecimal.

    Raises:
        OSError: If it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class HashingFile:
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


def first_line(error: BaseException) -> str:
    """Return the first line of what *error* says, or its class."""
    return str(error).partition("\n")[0] or type(error).__name__


@contextmanager
def writing(folder: Path, *, deadline_s: float = _LOCK_DEADLINE_S) -> Iterator[None]:
    """Keep others, in this process too, from writing to *folder* meanwhile.

    A writer that outlived its training finishes first; the system frees the lock of one
    that was killed. Where the file system has no locks there is none.

    Raises:
        OSError: If the lock cannot be made, or is not free in *deadline_s* seconds.
    """
    lock = FileLock(folder / LOCK)
    _acquire(lock, deadline_s)
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock, deadline_s: float) -> None:
    deadline = time.monotonic() + deadline_s
    while True:
        try:
            lock.acquire()
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                message = "another process has been writing here all the time"
                raise TimeoutError(message) from error
            time.sleep(_LOCK_INTERVAL_S)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return
        else:
            return
