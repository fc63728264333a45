from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mtf_gridsearch._lock import LOCK_NAME, locked, refuse_copies, sign
from mtf_gridsearch.errors import SearchBusyError


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the lock of *folder*, unless that is a copy."""
    with locked(folder, LOCK_NAME) as lock:
        refuse_copies(folder, lock)
        sign(folder, lock, is_held=True)
        yield
        sign(folder, lock, is_held=False)


def said(folder: Path) -> dict[str, Any]:
    """Return what the lock of *folder* says."""
    found: dict[str, Any] = json.loads((folder / LOCK_NAME).read_text("utf-8"))
    return found


def begun(folder: Path, /, **marks: Any) -> None:
    """Leave a job in *folder* that has not ended, and a lock that says *marks*."""
    with held(folder):
        pass
    lines: list[dict[str, Any]] = [
        {"event": "planned", "at": 1, "name": "e", "identity": "0", "parameters": {}},
        {"event": "submitted", "at": 1, "name": "e", "job_id": "1"},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "journal.jsonl").write_text(text, "utf-8")
    (folder / LOCK_NAME).write_text(json.dumps({**said(folder), **marks}), "utf-8")


@pytest.mark.parametrize("marks", [{"device": -1}, {"folder": -1}, {"inode": -1}])
def test_a_copy_is_told_by_each_of_its_marks(
    tmp_path: Path, marks: dict[str, Any]
) -> None:
    """On another file system the same inode is another file, and the lock is a copy."""
    begun(tmp_path, **marks)
    with pytest.raises(SearchBusyError, match="it is a copy, made before 1"):
        held(tmp_path).__enter__()


def test_what_is_no_copy_is_held_again(tmp_path: Path) -> None:
    """A job that has not ended is no reason to refuse the folder itself."""
    begun(tmp_path)
    with held(tmp_path):
        assert {"pid", "began", "host", "since"} <= said(tmp_path).keys()
    assert said(tmp_path).keys() == {"inode", "folder", "device", "boot"}


def test_devices_are_counted_anew_when_a_machine_starts(tmp_path: Path) -> None:
    """After a restart another device number, and an old lock without one, are no copy."""
    begun(tmp_path, device=-1, boot="of another day")
    with held(tmp_path):
        pass
    inode = (tmp_path / LOCK_NAME).stat().st_ino
    (tmp_path / LOCK_NAME).write_text(json.dumps({"inode": inode}), "utf-8")
    with held(tmp_path):
        assert said(tmp_path)["inode"] == inode


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"inode": 1, "pid": "x", "host": 3}'])
def test_a_lock_that_says_nonsense_is_no_copy(tmp_path: Path, text: str) -> None:
    """Where nothing has run, what a lock says is no reason to refuse the folder."""
    (tmp_path / LOCK_NAME).write_text(text, "utf-8")
    with held(tmp_path):
        assert said(tmp_path)["inode"] == (tmp_path / LOCK_NAME).stat().st_ino


def test_a_folder_that_is_gone_can_be_let_go(tmp_path: Path) -> None:
    """Whoever deletes a folder that is held makes no error of it."""
    folder = tmp_path / "search"
    folder.mkdir()
    with locked(folder, LOCK_NAME) as lock:
        (folder / LOCK_NAME).unlink()
        folder.rmdir()
        sign(folder, lock, is_held=False)
