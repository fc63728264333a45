"""What the kernel says of processes, from ``/proc``; for the runner, so nothing heavy.

Where there is no ``/proc``, nothing is known: no children, no memory, no beginning.
Source: proc(5), prctl(2).
"""

from __future__ import annotations

import os
import sys

__all__ = ["adopt_orphans", "began", "children", "die_with_parent", "memory_bytes"]

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_SIGKILL = 9


def began(pid: int | str) -> str:
    """Return when a process began, in the kernel's ticks; empty where that is not known."""
    # The name of the command, in parentheses, may hold spaces.
    stat = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    return stat[19].decode() if stat else ""


def children(pid: int | str) -> list[str]:
    """Return the ids of the children of a process."""
    try:
        tasks = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208 -- pathlib loads much
    except OSError:
        return []
    found = []
    for task in tasks:
        found += _read(f"/proc/{pid}/task/{task}/children").decode().split()
    return found


def memory_bytes(limit_bytes: int) -> int:
    """Return what the descendants of this process hold in memory.

    Pages that several share count in each; only when that is too much they are parted.
    """
    pids, left = [], children(os.getpid())
    while left:
        pid = left.pop()
        pids.append(pid)
        left += children(pid)
    page = os.sysconf("SC_PAGE_SIZE")
    used = 0
    for pid in pids:
        statm = _read(f"/proc/{pid}/statm").split()
        used += int(statm[1]) * page if statm else 0
    if used <= limit_bytes:
        return used
    shares = [_read(f"/proc/{pid}/smaps_rollup").partition(b"\nPss:")[2] for pid in pids]
    parted = sum(int(share.split()[0]) * 1024 for share in shares if share)
    return parted or used


def adopt_orphans() -> None:
    """Become the parent of all descendants whose own parent ends."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> None:
    """Let the kernel kill this process when the one that started it ends."""
    _prctl(_PR_SET_PDEATHSIG, _SIGKILL)


def _read(path: str) -> bytes:
    """Return what is in a file, nothing where it is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        data = b""
        while more := os.read(fd, 1 << 16):
            data += more
    except OSError:  # a process that has ended meanwhile
        return b""
    finally:
        os.close(fd)
    return data


def _prctl(option: int, value: int) -> None:
    """Call `prctl(2)` where there is such a thing."""
    if sys.platform != "linux":
        return
    try:
        import _ctypes  # noqa: PLC0415 -- `ctypes` loads much; Python may be built without
    except ImportError:
        return
    function = _ctypes.dlsym(_ctypes.dlopen(None, 0), "prctl")  # type: ignore[arg-type]
    _ctypes.call_function(function, (option, value, 0, 0, 0))
