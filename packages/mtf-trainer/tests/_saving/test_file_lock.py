from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mtf_trainer._saving.file_lock import FileLock, HeldHereError

TRY = """
import sys
from pathlib import Path
from mtf_trainer._saving.file_lock import FileLock
try:
    FileLock(Path(sys.argv[1])).acquire()
    print("free")
except BlockingIOError:
    print("held")
"""


def seen_by_another(path: Path) -> str:
    """Return what another process finds: "free" or "held"."""
    command = [sys.executable, "-c", TRY, str(path)]
    return subprocess.run(
        command, check=True, capture_output=True, encoding="utf-8"
    ).stdout.strip()


def fails_with(number: int) -> Callable[..., None]:
    """Return a function that raises this error."""

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def test_closing_another_descriptor_frees_nothing(tmp_path: Path) -> None:
    """Whoever reads the file, as a copy of the folder does, leaves it locked."""
    path = tmp_path / ".lock"
    lock = FileLock(path)
    lock.acquire()
    path.read_bytes()

    assert seen_by_another(path) == "held"
    lock.release()
    lock.release()
    assert seen_by_another(path) == "free"


def test_lock_is_exclusive_inside_a_process(tmp_path: Path) -> None:
    """The same folder under another name is the same, until the lock is released."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to("a")
    first, second = FileLock(tmp_path / "a/.lock"), FileLock(tmp_path / "b/.lock")
    first.acquire()
    (tmp_path / "a/.lock").unlink()

    with pytest.raises(HeldHereError):
        second.acquire()
    first.release()
    second.acquire()
    second.release()


def test_forked_child_neither_holds_nor_frees_it(tmp_path: Path) -> None:
    """A child lets go of its copy; the parent keeps the lock, then another may have it."""
    path = tmp_path / ".lock"
    lock = FileLock(path)
    lock.acquire()
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        lock.release()
        in_place = lock.is_in_place()
        os.write(write_end, b"1" if in_place else b"0")
        os._exit(0)
    try:
        assert os.read(read_end, 1) == b"0"
        os.waitpid(child, 0)
        assert lock.is_in_place()
        assert seen_by_another(path) == "held"
    finally:
        lock.release()
        os.close(read_end)
        os.close(write_end)


def test_release_is_felt_while_another_shares_the_file(tmp_path: Path) -> None:
    """A descriptor that a starting program still has does not prolong the lock."""
    path = tmp_path / ".lock"
    lock = FileLock(path)
    lock.acquire()
    held = [
        int(fd.name)
        for fd in Path("/proc/self/fd").iterdir()
        if fd.is_symlink() and fd.readlink() == path
    ]
    shared = [os.dup(fd) for fd in held]
    lock.release()
    try:
        assert len(shared) == 1
        assert seen_by_another(path) == "free"
    finally:
        os.close(shared[0])


def test_lost_file_is_noticed(tmp_path: Path) -> None:
    """A file deleted, replaced or moved with its folder is not in place."""
    path = tmp_path / "run" / ".lock"
    path.parent.mkdir()
    lock = FileLock(path)
    assert not lock.is_in_place()
    lock.acquire()
    assert lock.is_in_place()
    path.unlink()
    assert not lock.is_in_place()
    path.touch()
    assert not lock.is_in_place()
    path.parent.rename(tmp_path / "moved")
    assert not lock.is_in_place()
    lock.release()


def test_file_deleted_while_it_is_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who locks a file that is gone by then locks the next; not for ever, though."""
    path = tmp_path / ".lock"
    lock, real, left = FileLock(path), fcntl.fcntl, [1]

    def delete_first(fd: int, command: int, request: bytes) -> object:
        if left[0]:
            left[0] -= 1
            path.unlink()
        return real(fd, command, request)

    monkeypatch.setattr(fcntl, "fcntl", delete_first)
    lock.acquire()
    assert lock.is_in_place()
    lock.release()
    left[0] = 1000
    with pytest.raises(OSError, match=r"[Ss]tale"):
        lock.acquire()


def test_system_without_these_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a kernel does not know them those of flock do the same."""
    lock = FileLock(tmp_path / ".lock")
    monkeypatch.setattr(fcntl, "fcntl", fails_with(errno.EINVAL))
    lock.acquire()
    with (tmp_path / ".lock").open("rb") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    lock.release()
    with (tmp_path / ".lock").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EAGAIN])
def test_both_ways_to_say_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A system may say either that it is not permitted or that it would block."""
    monkeypatch.setattr(fcntl, "fcntl", fails_with(number))

    with pytest.raises(BlockingIOError):
        FileLock(tmp_path / ".lock").acquire()


def test_file_system_that_does_not_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that is no answer is not taken for one."""
    lock = FileLock(tmp_path / ".lock")
    lock.acquire()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", fails_with(errno.EIO))
        with pytest.raises(OSError, match="Input/output"):
            lock.is_in_place()
    lock.release()
