"""Whether a file in shared memory may be as large as it should be.

A file system in memory gives more than there is: what is beyond kills processes. So what
is free in the file system, in the machine, and in this process's control group (version
2, see ``Documentation/admin-guide/cgroup-v2.rst`` of Linux) is asked for first. Linux only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from mtf_trainer.errors import SnapshotError

__all__ = ["check_folder", "check_room", "room_bytes"]

_INSTEAD = "or choose another folder, or switch snapshots off (SnapshotSettings)"
_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")


def check_folder(folder: Path) -> None:
    """Check that *folder* is one in memory.

    Raises:
        SnapshotError: If not.
    """
    try:
        device = os.stat(folder).st_dev  # noqa: PTH116 - of the file system, not the path
    except OSError as error:
        message = f"{folder}: {error.strerror}; name a folder in memory, as /dev/shm"
        raise SnapshotError(message) from error
    wanted = f"{os.major(device)}:{os.minor(device)}"
    kinds = [kind for number, kind in _mounts() if number == wanted]
    if "tmpfs" not in kinds:
        kind = kinds[-1] if kinds else "of a kind that is not known"
        message = (
            f"{folder} is no file system in memory (it is {kind}); mount a tmpfs there, "
            f"{_INSTEAD}"
        )
        raise SnapshotError(message)


def check_room(folder: Path, size_bytes: int) -> None:
    """Check that a file of *size_bytes* has room in *folder* and in memory.

    Raises:
        SnapshotError: If not; it tells the sizes.
    """
    for free, where, remedy in room_bytes(folder):
        if size_bytes > free:
            message = (
                f"a snapshot needs {size_bytes:,} bytes, and {where} has {free:,} left; "
                f"{remedy}, {_INSTEAD}"
            )
            raise SnapshotError(message)


def room_bytes(folder: Path) -> Iterator[tuple[int, str, str]]:
    """Yield what is left, of what, and how there would be more; what is known of it."""
    found = os.statvfs(folder)
    total = found.f_blocks * found.f_frsize
    yield (
        found.f_bavail * found.f_frsize,
        f"{folder} of {total:,} bytes",
        "make it larger (docker: --shm-size; Kubernetes: an emptyDir in memory)",
    )
    available = re.search(r"MemAvailable: +(\d+) kB", _text(_PROC / "meminfo"))
    if available:
        yield int(available[1]) * 1024, "this machine", "free memory"
    own = re.search(r"^0::/(.*)$", _text(_PROC / "self" / "cgroup"), re.MULTILINE)
    group = _CGROUPS / own[1] if own else _CGROUPS
    for each in (group, *group.parents):
        left = _left_in_group(each)
        if left is not None:
            yield left, f"the control group {each}", "ask for more memory"
        if each == _CGROUPS:
            break


def _left_in_group(group: Path) -> int | None:
    most, used = _text(group / "memory.max").strip(), _text(group / "memory.current")
    if not (most.isdecimal() and used.strip().isdecimal()):
        return None
    # Pages of files on disk are given up for it.
    statistics = dict(
        re.findall(r"^(\w+) (\d+)$", _text(group / "memory.stat"), re.MULTILINE)
    )
    cached = int(statistics.get("file", 0)) - int(statistics.get("shmem", 0))
    return max(0, int(most) - int(used) + max(0, cached))


def _mounts() -> Iterator[tuple[str, str]]:
    for line in _text(_PROC / "self" / "mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        yield before.split()[2], after.split()[0]


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:
        return ""
