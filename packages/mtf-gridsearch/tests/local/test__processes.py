"""What the kernel says of processes, asked about real ones."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mtf_gridsearch.local import _processes

WaitFor = Callable[[Callable[[], object]], None]

HOLD = "import sys; x = bytearray(64 << 20); print('here', flush=True); sys.stdin.read()"


def test_began() -> None:
    """A process keeps its beginning, and one that is gone has none."""
    began = _processes.began(os.getpid())
    assert began.isdecimal()
    assert _processes.began("self") == began
    assert _processes.began(2**31 - 1) == ""


def test_children_and_their_memory() -> None:
    """Descendants are found, and what they hold is added up."""
    before = _processes.memory_bytes(1 << 60)
    command = [sys.executable, "-c", HOLD]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert str(process.pid) in _processes.children(os.getpid())
        added = _processes.memory_bytes(1 << 60) - before
        assert 64 << 20 <= added < 128 << 20
        assert 64 << 20 <= _processes.memory_bytes(1) <= before + added
        process.communicate()
    assert _processes.children(process.pid) == []


def test_a_process_that_ends_while_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening and reading its file, a process may be gone."""

    def read(fd: int, size: int) -> bytes:
        raise ProcessLookupError(fd, size)

    monkeypatch.setattr(os, "read", read)
    assert _processes.began("self") == ""


ORPHAN = """
import os, subprocess, sys
from mtf_gridsearch.local import _processes
_processes.adopt_orphans()
code = "import os; os.fork() or os.read(0, 1)"
subprocess.run([sys.executable, "-c", code], check=True)
print(len(_processes.children(os.getpid())))
"""


def test_orphans_are_adopted() -> None:
    """A process whose parent has ended becomes a child of who adopts."""
    process = subprocess.run(
        [sys.executable, "-c", ORPHAN],
        input="",
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    assert process.stdout == "1\n"


FAITHFUL = """
import os
from mtf_gridsearch.local import _processes
pid = os.fork()
if pid == 0:
    _processes.die_with_parent()
    os.write(1, b"%d\\n" % os.getpid())
os.read(0, 1)
"""


def test_dies_with_its_parent(wait_for: WaitFor) -> None:
    """When the parent is killed, so is the child, which did nothing for it."""
    command = [sys.executable, "-c", FAITHFUL]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        folder = Path("/proc") / process.stdout.readline().decode().strip()
        assert folder.exists()
        process.kill()
        wait_for(lambda: is_dead(folder))


def is_dead(folder: Path) -> bool:
    """Tell whether a process only waits to be reaped, or is gone."""
    try:
        return ") Z " in (folder / "stat").read_text("utf-8")
    except OSError:
        return True


def test_elsewhere_nothing_is_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no such call, or no way to it, it is left out."""
    monkeypatch.setattr(sys, "platform", "darwin")
    _processes.adopt_orphans()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setitem(sys.modules, "_ctypes", None)
    _processes.die_with_parent()


SHARING = """
import os, sys
from mtf_gridsearch.local import _processes
ready, at_ready = os.pipe()
go_on, at_go_on = os.pipe()
def wait():
    os.write(at_ready, b"+")
    os.close(at_go_on)
    os.read(go_on, 1)
    os._exit(0)
if not os.fork():
    hold = b"x" * (80 << 20)
    for _ in range(2):
        if not os.fork():
            wait()
    wait()
seen = b""
while len(seen) < 3:
    seen += os.read(ready, 3)
limit = 150 << 20
print(_processes.memory_bytes(limit) <= limit, _processes.memory_bytes(1 << 40) > limit)
"""


def test_memory_that_is_shared_counts_once() -> None:
    """Pages of forked workers count in each, and are parted before that is too much."""
    ran = subprocess.run(
        [sys.executable, "-c", SHARING], capture_output=True, encoding="utf-8", check=True
    )
    assert ran.stdout == "True True\n"
