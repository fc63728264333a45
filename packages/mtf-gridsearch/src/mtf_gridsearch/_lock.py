"""The lock of a folder: held by one process, and told from a copy of it.

The lock is `flock(2)` on a file: the kernel frees it when its holder dies, however it dies.
The file says who holds it, for people, and which file it is, by inode (its own and the
folder's), device and start of the machine: in a folder that was copied it is another one, and
what ran when it was copied is not run again.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mtf_gridsearch.errors import SearchBusyError, SearchFolderError
from mtf_gridsearch.journal import read_records
from mtf_gridsearch.local import _processes

__all__ = ["LOCK_NAME", "locked", "refuse_copies", "sign"]

LOCK_NAME = ".lock"


@contextmanager
def locked(folder: Path, name: str) -> Iterator[int]:
    """Hold the lock *name* in *folder*; the short one for finding is waited for."""
    try:
        fd = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        reason = f"its {name} cannot be opened: {error.strerror or error}"
        raise SearchFolderError(folder, reason) from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (fcntl.LOCK_NB if name == LOCK_NAME else 0))
        except BlockingIOError as error:
            raise SearchBusyError(folder, _busy(fd)) from error
        except OSError as error:
            reason = f"its {name} cannot be locked: {error.strerror or error}"
            raise SearchFolderError(folder, reason) from error
        yield fd
    finally:
        os.close(fd)


def sign(folder: Path, lock: int, *, is_held: bool) -> None:
    """Say in a lock's file which it is and who holds it; a full disk is no reason to stop."""
    holder: dict[str, Any] = {}
    with suppress(OSError):  # the folder may be gone
        holder = _marks(folder, lock)
    if is_held:
        pid = os.getpid()
        holder |= {
            "pid": pid,
            "began": _processes.began(pid),
            "host": socket.gethostname(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
    with suppress(OSError):
        os.ftruncate(lock, 0)
        os.pwrite(lock, json.dumps(holder).encode(), 0)


def refuse_copies(folder: Path, lock: int) -> None:
    """Refuse a copy of a folder in which something ran: it may run there yet."""
    said = _said(lock)
    if _is_its_own(said, _marks(folder, lock)):
        return
    way_out = (
        f"go on there; if that is gone, or this is it and its file system was mounted "
        f"again, delete {folder / LOCK_NAME} and run the command again, which starts anew "
        f"what had not ended"
    )
    pid, began = str(said.get("pid")), said.get("began")
    is_here = said.get("host") == socket.gethostname() and pid.isdecimal()
    if is_here and began and _processes.began(pid) == began:
        reason = f"it is a copy, and process {pid} runs the search that was copied: "
        raise SearchBusyError(folder, reason + way_out)
    records = read_records(folder).values()
    running = [r for r in records if r.job_id is not None and r.ended_at is None]
    if running:
        reason = (
            f"it is a copy, made before {len(running)} of its experiments had ended "
            f"({running[0].experiment_name} is one), which may run yet where it was copied "
            f"from: "
        )
        raise SearchBusyError(folder, reason + way_out)


def _marks(folder: Path, lock: int) -> dict[str, Any]:
    """Return what tells a lock's file from a copy of it, on any file system."""
    info = os.fstat(lock)
    boot = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    return {
        "inode": info.st_ino,
        "folder": folder.stat().st_ino,
        "device": info.st_dev,
        "boot": boot,
    }


def _is_its_own(said: Mapping[str, Any], marks: Mapping[str, Any]) -> bool:
    """Tell whether a lock's file was written where it lies now.

    A device keeps its number until the machine starts again, and has another on others.
    """
    same = {key for key in marks if said.get(key) in (None, marks[key])}
    return {"inode", "folder"} <= same and ("device" in same or "boot" not in same)


def _said(lock: int) -> dict[str, Any]:
    """Return what a lock's file says; nothing where it cannot be read."""
    with suppress(OSError, ValueError, RecursionError):
        said = json.loads(os.pread(lock, 4096, 0))
        if isinstance(said, dict):
            return said
    return {}


def _busy(lock: int) -> str:
    """Say who holds a lock, as far as the file tells."""
    said = _said(lock)
    who = "another process"
    if {"pid", "host", "since"} <= said.keys():
        who = f"process {said['pid']} on {said['host']} since {said['since']}"
    return f"{who} runs it; wait for that, or end it, and run the command again"
