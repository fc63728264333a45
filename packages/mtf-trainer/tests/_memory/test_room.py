from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from mtf_trainer._memory import room
from mtf_trainer._memory.room import check_folder, check_room, room_bytes
from mtf_trainer.errors import SnapshotError

SHM = Path("/dev/shm")  # noqa: S108 - shared memory


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with ``proc`` and ``cgroup``, which are taken for the system's."""
    monkeypatch.setattr(room, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(room, "_CGROUPS", tmp_path / "cgroup")
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "cgroup" / "job" / "step").mkdir(parents=True)
    return tmp_path


def test_shared_memory_is_a_folder_in_memory() -> None:
    """The usual folder is taken, and so is a folder in it."""
    check_folder(SHM)


def test_a_folder_on_a_disk_is_refused(tmp_path: Path) -> None:
    """The error says what it is, and what to do."""
    with pytest.raises(SnapshotError, match=r"no file system in memory.*mount a tmpfs"):
        check_folder(tmp_path)


def test_a_folder_of_unknown_kind_is_refused(tmp_path: Path, system: Path) -> None:
    """Where the system does not tell its mounts, the folder is not trusted."""
    del system
    with pytest.raises(SnapshotError, match="not known"):
        check_folder(tmp_path)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """The error names one that is usually there."""
    with pytest.raises(SnapshotError, match=r"No such file.*/dev/shm"):
        check_folder(tmp_path / "missing")


def test_more_than_there_is_is_refused_with_the_sizes() -> None:
    """The error tells what is needed, what is left, and what to do."""
    with pytest.raises(SnapshotError) as caught:
        check_room(SHM, 2**62)
    pattern = r"needs 4,611,686,018,427,387,904 bytes, and /dev/shm of [\d,]+ bytes has"
    assert re.search(pattern, str(caught.value))
    assert "--shm-size" in str(caught.value)
    check_room(SHM, 4096)


def test_what_is_known_of_this_machine() -> None:
    """The file system's room is always told, and nothing negative is."""
    told = list(room_bytes(SHM))
    found = os.statvfs(SHM)
    assert told[0][1] == f"{SHM} of {found.f_blocks * found.f_frsize:,} bytes"
    assert all(free >= 0 for free, _, _ in told)


def test_memory_of_machine_and_control_groups_counts(
    tmp_path: Path, system: Path
) -> None:
    """The least of all groups up to the root counts; cached files are no use of memory."""
    (system / "proc" / "meminfo").write_text("MemAvailable:   2048 kB\n", "utf-8")
    (system / "proc" / "self" / "cgroup").write_text("0::/job/step\n", "utf-8")
    step, job = system / "cgroup" / "job" / "step", system / "cgroup" / "job"
    (step / "memory.max").write_text("max\n", "utf-8")
    (job / "memory.max").write_text("1000000\n", "utf-8")
    (job / "memory.current").write_text("900000\n", "utf-8")
    (job / "memory.stat").write_text("anon 5\nfile 600000\nshmem 200000\n", "utf-8")
    told = [(free, where) for free, where, _ in room_bytes(tmp_path)][1:]
    assert told == [(2048 * 1024, "this machine"), (500_000, f"the control group {job}")]
    with pytest.raises(SnapshotError, match=r"control group .* ask for more memory"):
        check_room(tmp_path, 500_001)
    check_room(tmp_path, 500_000)


def test_a_system_that_tells_nothing_is_no_limit(tmp_path: Path, system: Path) -> None:
    """Without control groups of version 2, what the file system tells is all."""
    del system
    assert len(list(room_bytes(tmp_path))) == 1


def test_a_group_outside_of_the_root_is_no_loop(tmp_path: Path, system: Path) -> None:
    """A group that lies beyond what this process sees ends the search."""
    (system / "proc" / "self" / "cgroup").write_text("0::/../../other\n", "utf-8")
    assert len(list(room_bytes(tmp_path))) == 1
