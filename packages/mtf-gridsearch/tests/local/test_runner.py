"""The parts of a runner that need no process of their own; others: test_launcher.py."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from mtf_gridsearch.local import _processes, runner
from mtf_gridsearch.local.runner import Place, Watch


@pytest.mark.parametrize(
    ("code", "errors", "expected"),
    [
        (0, "", ("succeeded", "")),
        (75 << 8, "", ("preempted", "exit code 75: it asks to be continued")),
        (1 << 8, "first\n  last \n\n", ("failed", "exit code 1: last")),
        (2 << 8, " \n", ("failed", "exit code 2")),
        (2 << 8, "y" * 9000, ("failed", "exit code 2: " + "y" * 600)),
        (signal.SIGTERM, "", ("failed", "killed by signal 15 (Terminated)")),
    ],
)
def test_verdict(
    tmp_path: Path, code: int, errors: str, expected: tuple[str, str]
) -> None:
    """The way a process ended makes the state, and what it said last the reason."""
    (tmp_path / "err").write_text(errors, encoding="utf-8")
    assert runner._verdict(code, None, str(tmp_path / "err")) == expected


def test_a_limit_is_the_reason(tmp_path: Path) -> None:
    """What a process was made to end for counts, not the code it ended with."""
    made = ("timeout", "too long")
    assert runner._verdict(0, made, str(tmp_path / "none")) == made


def test_a_place_of_two_devices_is_taken_whole_or_not(tmp_path: Path) -> None:
    """If one of its devices is in use, the other stays free for others."""
    one, both = Place(str(tmp_path), "1"), Place(str(tmp_path), "0,1")
    zero = Place(str(tmp_path), "0")
    assert one.take()
    assert not both.take()
    assert zero.take()
    for fd in (*one.fds, *zero.fds):
        os.close(fd)
    assert both.take()
    for fd in both.fds:
        os.close(fd)


def test_a_place_shows_that_it_is_used(tmp_path: Path) -> None:
    """What cleans up temporary folders by their age finds the locks young."""
    place = Place(str(tmp_path), "MIG-1/2")
    assert place.take()
    [path] = tmp_path.iterdir()
    os.utime(path, (0, 0))
    place.touch()
    assert path.stat().st_mtime > 0
    os.close(place.fds[0])


@pytest.fixture
def watch() -> Watch:
    """Return a watch of a process that there is not."""
    return Watch(2**31 - 1, time_limit_s=0, memory_limit_bytes=0, grace_s=1)


def test_processes_that_became_another_users(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What must not be killed is left, and does not hinder the end."""

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "killpg", refuse)
    monkeypatch.setattr(os, "kill", refuse)
    monkeypatch.setattr(_processes, "children", lambda _: ["2147483647"])
    watch._signal_group(signal.SIGKILL)
    signals = runner.Signals.__new__(runner.Signals)
    watch._kill_adopted(signals)


def test_processes_that_do_not_die(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """What hangs in the kernel is given up, so that the end can be noted."""
    monkeypatch.setattr(runner, "_LAST_KILL_S", 0.0)
    watch._kill_adopted(runner.Signals.__new__(runner.Signals))
