"""What every test here has: a watch for leaks, and runners that can be measured."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no reason to fail, and a test leaves no files in the tree.
settings.register_profile(
    "mtf", deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("mtf")

# A script that finds its neighbour only when it is run as one.
collect_ignore = ["chaos.py"]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
LAUNCHER = "mtf_gridsearch.local.launcher"

WaitFor = Callable[[Callable[[], object]], None]


def _wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited for a minute"
        time.sleep(0.005)


def _children() -> set[str]:
    """Return the ids of this process's children."""
    tasks = Path("/proc/self/task")
    while True:
        try:
            files = tasks.glob("*/children")
            return {pid for file in files for pid in file.read_text("utf-8").split()}
        except (FileNotFoundError, ProcessLookupError):
            pass  # a thread ended; what it had begun is another's now: look again


def _open_files() -> int:
    """Return how many files this process has open; 0 where the system does not say."""
    folder = Path("/proc/self/fd")
    return sum(1 for _ in folder.iterdir()) if folder.is_dir() else 0


def _processes_of(folder: Path) -> list[str]:
    """Return the ids of the runners and experiments in *folder*."""
    mark, found = b"\0MTF_EXPERIMENT_DIR=" + os.fsencode(folder) + b"/", []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environ = b"\0" + (process / "environ").read_bytes()
        except OSError:
            continue  # it has ended, or is another user's
        if mark in environ:
            found.append(process.name)
    return found


def _end_of_runners() -> set[int]:
    """Reap runners, which end a little after their experiments; kill and return others."""
    launcher = sys.modules.get(LAUNCHER)
    if launcher is None:
        return set()
    deadline = time.monotonic() + 20
    while launcher._runners and time.monotonic() < deadline:
        launcher._reap()
        time.sleep(0.001)
    left = set(launcher._runners)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    launcher._runners.clear()
    return left


@pytest.fixture
def wait_for() -> WaitFor:
    """Wait until something is true, for a minute at most."""
    return _wait_for


@pytest.fixture(autouse=True, scope="session")
def _interruptible() -> Iterator[None]:
    """Let SIGINT count: a shell starts background jobs with it ignored."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.fixture(autouse=True, scope="session")
def _measured_runners() -> Iterator[None]:
    """Start runners such that coverage sees them, where it is on."""
    with pytest.MonkeyPatch.context() as patch:
        if any(name.startswith("COVERAGE_PROCESS") for name in os.environ):
            patch.setattr(f"{LAUNCHER}._RUNNER_FLAGS", ())
        yield


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep coverage out of processes that have no room for its file."""
    for name in list(os.environ):
        if name.startswith("COVERAGE_PROCESS"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a thread, a process, a file, a variable or a handler."""
    threads, children = set(threading.enumerate()), _children()
    environ = dict(os.environ)
    handlers = {s: signal.getsignal(s) for s in SIGNALS}
    files = _open_files()
    folder = request.getfixturevalue("tmp_path") if _has_folder(request) else None
    yield
    left = _end_of_runners()
    if _open_files() > files:
        gc.collect()  # what only a cycle still holds is not lost
    # pytest names the running test in a variable of its own.
    for variables in (environ, now := dict(os.environ)):
        variables.pop("PYTEST_CURRENT_TEST", None)
    assert now == environ
    assert not left
    assert set(threading.enumerate()) <= threads
    assert _children() <= children
    assert {s: signal.getsignal(s) for s in SIGNALS} == handlers
    assert _open_files() <= files
    if folder is not None and LAUNCHER in sys.modules:
        _wait_for(lambda: not _processes_of(folder))


def _has_folder(request: pytest.FixtureRequest) -> bool:
    return "tmp_path" in request.fixturenames
