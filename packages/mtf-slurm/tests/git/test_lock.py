from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import SoftFileLock

from mtf_slurm.errors import GitLockTimeoutError, SnapshotError
from mtf_slurm.git import lock as lock_module
from mtf_slurm.git.lock import GitOperationLock

DEADLINE_S = 60.0


def until(condition: Callable[[], object]) -> None:
    """Wait for something."""
    give_up_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < give_up_s
        threading.Event().wait(0.01)


def record(path: Path) -> Path:
    """Return where it says who holds a lock."""
    return path.with_name(path.name + ".holder")


def leave(path: Path, **about: Any) -> None:
    """Leave the record of a holder that died."""
    holder = {
        "host": "elsewhere",
        "pid": 77,
        "boot_id": "b",
        "since": "then",
        "token": "t",
    }
    record(path).write_text(json.dumps(holder | about), encoding="utf-8")


@pytest.fixture
def holder(tmp_path: Path) -> Any:
    """Start a process that holds a lock, and return it and the lock's file."""
    path = tmp_path / "a.lock"
    code = (
        "import sys\n"
        "from mtf_slurm.git.lock import GitOperationLock\n"
        f"with GitOperationLock({str(path)!r}):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process, path
    process.kill()
    process.communicate(timeout=DEADLINE_S)


def test_the_file_says_who_holds_it(tmp_path: Path) -> None:
    """Host, process, boot and time stand in the record while the lock is held."""
    path = tmp_path / "a.lock"
    with GitOperationLock(path):
        about = json.loads(record(path).read_bytes())
        assert about["host"] == socket.gethostname()
        assert about["pid"] == os.getpid()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        assert about["boot_id"] == boot.strip()
        assert about["since"].endswith("+00:00")
    assert {p.name for p in tmp_path.iterdir() if p.is_file()} == {"a.lock"}


def test_one_at_a_time(tmp_path: Path) -> None:
    """Of many threads with the same lock, or one each, never are two inside."""
    shared = GitOperationLock(tmp_path / "a.lock")
    inside: list[int] = []
    most: list[int] = []

    def enter(*, own: bool) -> None:
        with GitOperationLock(tmp_path / "a.lock") if own else shared:
            inside.append(1)
            most.append(len(inside))
            threading.Event().wait(0.001)
            inside.pop()

    threads = [
        threading.Thread(target=enter, kwargs={"own": bool(i % 2)}) for i in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert most == [1] * 12


def test_the_holder_is_named_when_time_is_up(holder: Any) -> None:
    """The error of who waited in vain names process, host and time, and what to do."""
    process, path = holder
    with pytest.raises(GitLockTimeoutError) as raised:
        GitOperationLock(path, timeout=0.1).acquire()
    said = str(raised.value)
    assert f"process {process.pid} on {socket.gethostname()}, since 20" in said
    assert "for longer than 0.1 s" in said
    with GitOperationLock(path.with_name("other.lock"), timeout=0):
        pass


def test_the_lock_of_a_killed_process_is_free(holder: Any) -> None:
    """After SIGKILL the next one gets the lock at once, over the record that was left."""
    process, path = holder
    process.send_signal(signal.SIGKILL)
    process.wait(DEADLINE_S)
    assert record(path).exists()
    with GitOperationLock(path, timeout=5):
        assert json.loads(record(path).read_bytes())["pid"] == os.getpid()
    assert not record(path).exists()


@pytest.mark.parametrize(
    "about",
    [
        {"host": socket.gethostname(), "boot_id": "before the last boot"},
        {"boot_id": lock_module._this_process()["boot_id"], "host": "its container"},
    ],
)
def test_records_of_this_machine_are_passed_over(
    tmp_path: Path, about: dict[str, str]
) -> None:
    """This kernel frees its processes' locks, so what they left holds nobody up."""
    path = tmp_path / "a.lock"
    leave(path, **about)
    with GitOperationLock(path, timeout=0):
        pass


def test_a_dead_host_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record of another host that nobody touches any more is passed over, not before."""
    path = tmp_path / "a.lock"
    leave(path)
    with pytest.raises(GitLockTimeoutError, match="process 77 on elsewhere, since then"):
        GitOperationLock(path, timeout=0.1).acquire()
    monkeypatch.setattr(lock_module, "_SILENCE_S", 0.05)
    with GitOperationLock(path, timeout=DEADLINE_S):
        assert json.loads(record(path).read_bytes())["pid"] == os.getpid()


@pytest.mark.slow
def test_a_live_host_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that is touched belongs to someone alive, though the lock seems free."""
    monkeypatch.setattr(lock_module, "_SILENCE_S", 0.5)
    path = tmp_path / "a.lock"
    leave(path)
    stop = threading.Event()

    def live() -> None:
        while not stop.wait(0.01):
            os.utime(record(path))

    alive = threading.Thread(target=live)
    alive.start()
    try:
        with pytest.raises(GitLockTimeoutError, match="on elsewhere"):
            GitOperationLock(path, timeout=2).acquire()
    finally:
        stop.set()
        alive.join(DEADLINE_S)


def test_the_record_is_touched_while_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever holds the lock shows that it lives, and stops doing so afterwards."""
    monkeypatch.setattr(lock_module, "_BEAT_S", 0.01)
    path = tmp_path / "a.lock"
    with GitOperationLock(path):
        first = record(path).stat().st_mtime_ns
        until(lambda: record(path).stat().st_mtime_ns != first)
    assert not any(thread.name == "git-lock" for thread in threading.enumerate())


def test_another_holders_record_is_not_removed(tmp_path: Path) -> None:
    """What another wrote meanwhile stays when this one lets go."""
    path = tmp_path / "a.lock"
    with GitOperationLock(path):
        leave(path)
    assert record(path).exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 3}'])
def test_odd_records(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that is torn, or of another version, is no trouble."""
    monkeypatch.setattr(lock_module, "_SILENCE_S", 0.05)
    path = tmp_path / "a.lock"
    record(path).write_text(text, encoding="utf-8")
    with GitOperationLock(path):
        pass
    record(path).write_text(text, encoding="utf-8")
    with pytest.raises(GitLockTimeoutError, match=r"another process|3 on unknown host"):
        raise GitOperationLock(path)._timed_out()


def test_the_same_thread_is_told_at_once(tmp_path: Path) -> None:
    """A thread that would wait for itself gets an error instead; release is harmless twice."""
    lock = GitOperationLock(tmp_path / "a.lock")
    with lock, pytest.raises(RuntimeError, match="held by this thread already"):
        lock.acquire()
    lock.release()


def test_places_that_cannot_be_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that cannot be written, or a system without locks, is an error with a way out."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SnapshotError, match=r"cannot be locked: .*name a lock file"):
        GitOperationLock(tmp_path / "file/a.lock").acquire()
    lock = GitOperationLock(tmp_path / "a.lock")
    monkeypatch.setattr(lock, "_record", tmp_path / "file/a.holder")
    with pytest.raises(SnapshotError, match="cannot be locked"):
        lock.acquire()
    lock.release()
    soft = GitOperationLock(tmp_path / "soft.lock")
    monkeypatch.setattr(soft, "_lock", SoftFileLock(tmp_path / "soft.lock"))
    with pytest.raises(SnapshotError, match=r"no flock\(2\)"):
        soft.acquire()
    with GitOperationLock(tmp_path / "a.lock", timeout=0):
        pass


def test_interrupted_waiting_frees_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while a record is judged leaves the lock free."""
    path = tmp_path / "a.lock"
    leave(path)

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(time, "sleep", interrupt)
        with pytest.raises(KeyboardInterrupt):
            GitOperationLock(path).acquire()
    record(path).unlink()
    with GitOperationLock(path, timeout=0):
        pass


def test_machines_without_a_boot_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel names no boot, the machine's own number stands for it."""

    def refuse(*_: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", refuse)
    assert lock_module._this_process()["boot_id"].isdecimal()
