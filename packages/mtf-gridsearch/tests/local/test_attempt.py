"""Attempts, read from files and locks alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mtf_gridsearch.launcher import JobState
from mtf_gridsearch.local import _files, _processes, attempt
from mtf_gridsearch.local.attempt import Attempt, Outcome


@pytest.fixture
def first(tmp_path: Path) -> Attempt:
    """Return the first attempt of an experiment, submitted."""
    (tmp_path / "a").mkdir()
    made = Attempt(tmp_path / "a", 1)
    made.create()
    return made


@pytest.fixture
def held(first: Attempt) -> Iterator[int]:
    """Hold the lock of the experiment."""
    fd = _files.try_lock(str(first.folder / ".lock"))
    assert fd is not None
    yield fd
    os.close(fd)


def append(to: Attempt, word: str, **fields: object) -> None:
    """Write what a runner writes."""
    _files.append_line(to.job_id + ".job", word, fields)


def test_ids(tmp_path: Path) -> None:
    """A job's id leads to its files, and nothing else is one."""
    first = Attempt(tmp_path / "a", 12)
    again = Attempt.of(first.job_id)
    assert again is not None
    assert (again.folder, again.number, again.job_id) == (
        tmp_path / "a",
        12,
        str(tmp_path / "a" / "a.12"),
    )


@pytest.mark.parametrize(
    "job_id",
    [
        *("", "a.1", "a/a.1", "/a/b.1", "/a/a", "/a/a.", "/a/a.0", "/a/a.01", "/a/a.x"),
        *("/a b/a b.1", "/../...1", "/a/a.1\n", "/a/a.9999999999", "12345", "/a/a.²"),
    ],
)
def test_what_is_no_id(job_id: str) -> None:
    """Neither another launcher's ids nor hostile ones lead to any file."""
    assert Attempt.of(job_id) is None


def test_states_while_it_is_held(first: Attempt, held: int) -> None:
    """Under its lock an attempt waits, then runs, then has the end that is written."""
    assert held >= 0
    assert first.state() is JobState.PENDING
    append(first, "running", pid=1)
    assert first.state() is JobState.RUNNING
    append(first, "ended", status="succeeded")
    assert first.state() is JobState.SUCCEEDED


def test_lost_before_its_runner_began(first: Attempt) -> None:
    """A submitter that was killed before it started the runner leaves a failure."""
    assert first.state() is JobState.NODE_FAILED
    assert "its runner did not start" in first.outcome().reason
    assert first.state() is JobState.NODE_FAILED


def test_the_machine_was_restarted(
    first: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ran before the machine was restarted has lost its node, and stays so."""
    monkeypatch.setattr(attempt, "boot_id", lambda: "another")
    assert first.state() is JobState.NODE_FAILED
    assert "restarted" in first.outcome().reason
    monkeypatch.undo()
    assert first.state() is JobState.NODE_FAILED


def test_an_end_that_cannot_be_written(
    first: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a disk that is read-only a lost attempt is lost all the same."""

    def append_line(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(_files, "append_line", append_line)
    assert first.state() is JobState.NODE_FAILED
    assert first.outcome() == Outcome()
    Attempt(first.folder, 2).create()
    fd = _files.try_lock(str(first.folder / ".lock"))
    assert fd is not None
    assert (
        first.state() is JobState.NODE_FAILED
    )  # although the lock is held: by the second
    os.close(fd)


def test_its_end_was_written_meanwhile(
    first: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An end that comes between two looks is not written over."""
    take = _files.try_lock

    def end_and_lock(path: str) -> int | None:
        append(first, "ended", status="succeeded")
        return take(path)

    monkeypatch.setattr(_files, "try_lock", end_and_lock)
    assert first.state() is JobState.SUCCEEDED


@pytest.mark.parametrize(
    ("content", "state"),
    [
        (b"", JobState.UNKNOWN),
        (b"no line", JobState.UNKNOWN),
        (b"ended\tstatus=great\n", JobState.UNKNOWN),
        (b"ended\n", JobState.UNKNOWN),
        (b"ended\tstatus=timeout\twall_s=x\tcpu_s=1.5\n", JobState.TIMEOUT),
        (b"\xff\xfe\n", JobState.NODE_FAILED),
        (b"runner\tpid=1\n", JobState.NODE_FAILED),
    ],
)
def test_damaged_files(first: Attempt, content: bytes, state: JobState) -> None:
    """Whatever a file holds, asking gives a state and never an error."""
    Path(first.job_id + ".job").write_bytes(content)
    assert first.state() is state
    assert first.outcome().wall_s is None


def test_no_file(tmp_path: Path) -> None:
    """Nothing is known of an attempt that has no file."""
    missing = Attempt(tmp_path / "a", 1)
    assert missing.state() is JobState.UNKNOWN
    assert missing.outcome() == Outcome()
    missing.cancel(0)


def test_a_folder_that_has_no_lock(first: Attempt) -> None:
    """A lock that cannot be opened says nothing of the attempt."""
    (first.folder / ".lock").mkdir()
    assert first.state() is JobState.UNKNOWN


def test_newest(tmp_path: Path) -> None:
    """Attempts are ordered as numbers, and other files are none."""
    folder = tmp_path / "a"
    folder.mkdir()
    assert attempt.newest(folder) is None
    for name in ("a.9.job", "a.10.job", "a.11.out", "b.12.job", "a.x.job", "axx13.job"):
        (folder / name).touch()
    found = attempt.newest(folder)
    assert found is not None
    assert found.number == 10


def test_cancel_waits_for_a_runner_to_begin(first: Attempt, held: int) -> None:
    """A runner that does not appear is waited for, and not for ever."""
    assert held >= 0
    first.cancel(0.05)
    assert first.state() is JobState.PENDING


SLEEPER = [sys.executable, "-c", "import sys; sys.stdin.read()"]


@pytest.mark.parametrize("has_pidfd", [True, False])
def test_cancel_tells_the_runner(
    first: Attempt, held: int, monkeypatch: pytest.MonkeyPatch, *, has_pidfd: bool
) -> None:
    """The process that the file names gets SIGTERM."""
    assert held >= 0
    if not has_pidfd:
        monkeypatch.delattr(os, "pidfd_open")
    with subprocess.Popen(SLEEPER, stdin=subprocess.PIPE) as process:
        append(first, "runner", pid=process.pid, began=_processes.began(process.pid))
        first.cancel(5)
        assert process.wait() == -signal.SIGTERM


def test_cancel_spares_who_has_the_number_now(first: Attempt, held: int) -> None:
    """A process that has the id of a runner, and is not it, is left alone."""
    assert held >= 0
    with subprocess.Popen(SLEEPER, stdin=subprocess.PIPE) as process:
        append(first, "runner", pid=process.pid, began="1")
        first.cancel(5)
        process.communicate()
        assert process.returncode == 0


def test_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system tells nothing, there is no boot, and nothing to sweep."""

    def refuse(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", refuse)
    assert attempt.boot_id() == ""
    monkeypatch.undo()
    monkeypatch.setattr(os, "listdir", refuse)
    attempt.sweep("/a/a.1")
