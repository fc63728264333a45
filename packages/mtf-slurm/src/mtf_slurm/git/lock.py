"""One process at a time, among all that share a file system.

The lock is `flock(2)` on a file, through filelock: the kernel, or the server of a network
file system, frees it when its holder dies. Beside it, ``<file>.holder`` says who holds it:
host, process, boot of the machine and time, and is touched while the holder lives.

A holder that died without a word leaves that record. It is passed over when two things say
that the holder is dead: its lock is free, and the record is of this boot or of an earlier
one of this host; or, where it is another host's, it is not touched any more while this
process watches it. So no two clocks are compared, and a file system that keeps locks
to one host does not let two hosts in. What a *live* process holds is never taken.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import Timeout, UnixFileLock

from mtf_slurm.errors import GitLockTimeoutError, SnapshotError

__all__ = ["GitOperationLock"]

_BEAT_S = 2.0
_SILENCE_S = 20.0  # of a holder on another host, until it counts as dead
_POLL_S = 0.02


class GitOperationLock:
    """Held in a ``with`` block by one thread of one process of one host at a time.

    Not reentrant: a thread that holds it and asks again gets an error at once.

    Args:
        lock_file_path: The file. It stays, locked or not.
        timeout: How long to wait for another holder, in seconds.
    """

    def __init__(self, lock_file_path: Path | str, timeout: float = 60.0) -> None:
        self.lock_file_path = Path(lock_file_path)
        self.timeout = timeout
        self._record = self.lock_file_path.with_name(self.lock_file_path.name + ".holder")
        self._lock = UnixFileLock(self.lock_file_path)
        self._token = ""
        self._stop = threading.Event()
        self._beat: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def acquire(self) -> None:
        """Take the lock, waiting for it.

        Raises:
            GitLockTimeoutError: If another holds it for longer than the time-out.
            SnapshotError: If the file cannot be written, or its file system has no locks.
            RuntimeError: If this thread holds it already.
        """
        if self._lock.is_locked:
            msg = f"{self.lock_file_path} is held by this thread already"
            raise RuntimeError(msg)
        give_up_s = time.monotonic() + self.timeout
        self._acquire(give_up_s)
        try:
            self._wait_for_silence(give_up_s)
            self._token = uuid.uuid4().hex
            me = {**_this_process(), "since": _now(), "token": self._token}
            aside = self._record.with_name(f"{self._record.name}.{self._token}")
            aside.write_text(json.dumps(me), encoding="utf-8")
            aside.replace(self._record)
        except OSError as error:
            self._lock.release()
            raise self._unusable(error) from error
        except BaseException:
            self._lock.release()
            raise
        self._stop.clear()
        self._beat = threading.Thread(target=self._touch, name="git-lock", daemon=True)
        self._beat.start()

    def release(self) -> None:
        """Free the lock. Does nothing if this thread does not hold it."""
        if not self._lock.is_locked:
            return
        self._stop.set()
        if self._beat is not None:
            self._beat.join()
        with suppress(OSError):
            if self._holder().get("token") == self._token:
                self._record.unlink()
        self._lock.release()

    def _acquire(self, give_up_s: float) -> None:
        try:
            timeout_s = max(0.0, give_up_s - time.monotonic())
            self._lock.acquire(timeout=timeout_s, poll_interval=_POLL_S)
        except Timeout as error:
            raise self._timed_out() from error
        except (OSError, NotImplementedError) as error:
            raise self._unusable(error) from error
        if (
            type(self._lock) is not UnixFileLock
        ):  # filelock changed it to one without flock
            self._lock.release()
            why = "its file system has no flock(2)"
            raise self._unusable(why)

    def _wait_for_silence(self, give_up_s: float) -> None:
        """Wait until the record that is there is a dead holder's."""
        seen, since_s = 0, time.monotonic()
        while holder := self._holder():
            me = _this_process()
            if holder.get("host") == me["host"] or holder.get("boot_id") == me["boot_id"]:
                return  # this kernel would know, and its lock is free
            touched = self._touched()
            if touched != seen:
                seen, since_s = touched, time.monotonic()
            elif time.monotonic() - since_s >= _SILENCE_S:
                return
            if time.monotonic() >= give_up_s:
                raise self._timed_out()
            time.sleep(_POLL_S)

    def _touch(self) -> None:
        while not self._stop.wait(_BEAT_S):
            with suppress(OSError):
                os.utime(self._record)

    def _touched(self) -> int:
        try:
            return self._record.stat().st_mtime_ns
        except OSError:
            return 0

    def _holder(self) -> dict[str, Any]:
        """Return what the record says; nothing if there is none that can be read."""
        try:
            said = json.loads(self._record.read_bytes())
        except (OSError, ValueError):
            return {}
        return said if isinstance(said, dict) else {}

    def _timed_out(self) -> GitLockTimeoutError:
        holder = self._holder()
        who = "another process"
        if holder:
            who = "process {pid} on {host}, since {since}".format_map(_Asked(holder))
        reason = (
            f"is held by {who}, for longer than {self.timeout:g} s: wait for it, or, if it "
            f"hangs, end it; if that host is gone, delete {self._record.name} as well"
        )
        return GitLockTimeoutError(self.lock_file_path, reason)

    def _unusable(self, error: object) -> SnapshotError:
        reason = f"cannot be locked: {error}; name a lock file in a folder where it can"
        return SnapshotError(self.lock_file_path, reason)


class _Asked(dict[str, Any]):
    """A record of another version may lack a key."""

    def __missing__(self, key: str) -> str:
        return f"unknown {key}"


def _this_process() -> dict[str, Any]:
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        boot_id = str(uuid.getnode())
    return {"host": socket.gethostname(), "pid": os.getpid(), "boot_id": boot_id}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
