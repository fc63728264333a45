"""A lock on a file that only its holder can lose: nobody else who closes it frees it.

The lock ends with the process that took it, however that ends: a child it forked has no
part in it. It excludes other processes, on this machine and, where the file system passes
locks on, on others; and whoever else asks for it in the same process.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import sys
import threading
from functools import cache
from pathlib import Path

__all__ = ["FileLock", "HeldHereError"]

_TRIES = 10
_GONE = {errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.EBADF}

_Key = tuple[int, int, str]


class HeldHereError(BlockingIOError):
    """This very process holds the lock already."""


class FileLock:
    """The lock on the file at *path*, which is made when missing. For any thread."""

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        self._fd = -1
        self._key: _Key = (0, 0, "")

    def acquire(self) -> None:
        """Take the lock now or not at all.

        Raises:
            HeldHereError: If this process holds it.
            BlockingIOError: If another one does.
            OSError: If there is no folder, or its file system has no locks.
        """
        _watch_forks()
        with _GUARD:
            for _ in range(_TRIES):
                folder = self._path.parent.stat()
                self._key = folder.st_dev, folder.st_ino, self._path.name
                if self._key in _HELD:
                    raise HeldHereError(errno.EAGAIN, os.strerror(errno.EAGAIN))
                if self._take():
                    _HELD[self._key] = self
                    return
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    def is_in_place(self) -> bool:
        """Tell whether the lock is held, and its file where others look for it.

        Raises:
            OSError: If the file system does not say.
        """
        return _is_at(self._fd, self._path)

    def release(self) -> None:
        """Let go of the lock; again is harmless."""
        with _GUARD:
            if self._fd < 0:
                return
            fd, self._fd = self._fd, -1
            del _HELD[self._key]
            # A child on its way from fork to exec shares the lock: closing is not enough.
            with contextlib.suppress(OSError):
                _set(fd, fcntl.F_UNLCK)
            with contextlib.suppress(OSError):
                os.close(fd)

    def forget(self) -> None:
        """Close the file of a lock that another process, the parent, holds."""
        with contextlib.suppress(OSError):
            os.close(self._fd)
        self._fd = -1

    def _take(self) -> bool:
        """Open and lock the file; tell whether it is still the one at the path."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(self._path, flags, 0o666)
        try:
            _set(fd, fcntl.F_WRLCK)
            if _is_at(fd, self._path):
                self._fd, fd = fd, -1
                return True
            return False
        finally:
            if fd >= 0:
                os.close(fd)


_GUARD = threading.RLock()
_HELD: dict[_Key, FileLock] = {}


@cache
def _watch_forks() -> None:
    """From now on close in a forked child what this process holds.

    Else a worker of a loader, or what it started, that outlives a killed trainer would
    keep the lock. What was not forked by Python, and does not become another program, does.
    """
    os.register_at_fork(
        before=_GUARD.acquire,
        after_in_parent=_GUARD.release,
        after_in_child=_forget_all,
    )


def _forget_all() -> None:
    for lock in _HELD.values():
        lock.forget()
    _HELD.clear()
    _GUARD.release()


def _set(fd: int, kind: int) -> None:
    # lockf's locks go when the process closes any descriptor of the file, as a copy of the
    # folder does. Those of an open file description do not, and are the same kind to other
    # processes, NFS and older versions; flock's are another. gVisor has only the latter.
    if sys.platform == "linux":
        request = struct.pack("hhqqi0q", kind, os.SEEK_SET, 0, 0, 0)
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, request)
        except PermissionError as error:  # POSIX leaves the choice between the two
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        else:
            return
    unlocks = kind == fcntl.F_UNLCK
    fcntl.flock(fd, fcntl.LOCK_UN if unlocks else fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except OSError as error:
        if error.errno in _GONE:
            return False
        raise
