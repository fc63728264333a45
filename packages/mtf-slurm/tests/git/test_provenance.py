from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mtf_slurm.errors import SnapshotError
from mtf_slurm.git.provenance import write

CODE = {"commit": "c" * 40, "dirty": ["M \udcff.py"]}


def read(path: Path) -> Any:
    """Return what a file of JSON says."""
    return json.loads(path.read_text(encoding="utf-8"))


def test_each_experiment_gets_both_files(tmp_path: Path) -> None:
    """Its own branch and command in one, the code in the other, which all share."""
    folders = {name: tmp_path / "deep" / name for name in ("a", "b", "c")}
    write(
        folders,
        CODE,
        branches={"a": "slurm-job/a", "b": "slurm-job/b"},
        commands={"a": ["python", "train.py"]},
    )
    first = read(folders["a"] / "submission.json")
    assert first.pop("submitted_at").endswith("+00:00")
    assert first == {
        "experiment_name": "a",
        "branch": "slurm-job/a",
        "command": ["python", "train.py"],
    }
    assert read(folders["c"] / "submission.json")["branch"] is None
    codes = [folder / "code.json" for folder in folders.values()]
    assert [read(path) for path in codes] == [CODE] * 3
    assert len({path.stat().st_ino for path in codes}) == 1
    assert codes[0].stat().st_mode & 0o222 == 0
    for folder in folders.values():
        assert {path.name for path in folder.iterdir()} == {
            "code.json",
            "submission.json",
        }


def test_a_new_submission_replaces_one_record_alone(tmp_path: Path) -> None:
    """Of experiments that shared a file, those not submitted again keep what they had."""
    folders = {name: tmp_path / name for name in ("a", "b", "c")}
    write(folders, CODE, branches={}, commands={})
    again = {name: folders[name] for name in ("a", "b")}
    write(again, {"commit": "d" * 40}, branches={}, commands={})
    commits = [read(folder / "code.json")["commit"][0] for folder in folders.values()]
    assert commits == ["d", "d", "c"]
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == [
        "code.json",
        "submission.json",
    ]


def test_files_are_copied_where_they_cannot_be_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On file systems without links, or past their limit, each has a file of its own."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EMLINK, "Too many links")

    monkeypatch.setattr(os, "link", refuse)
    folders = {name: tmp_path / name for name in ("a", "b")}
    write(folders, CODE, branches={}, commands={})
    assert [read(folder / "code.json") for folder in folders.values()] == [CODE] * 2


def test_unwritable_folders_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that cannot be made, or a full disk, is named, and no torn file is left."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(
        SnapshotError, match=r"file/a: what is submitted cannot be recorded"
    ):
        write({"a": tmp_path / "file/a"}, CODE, branches={}, commands={})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(SnapshotError, match="No space left on device"):
        write({"a": tmp_path / "a"}, CODE, branches={}, commands={})
    assert list((tmp_path / "a").iterdir()) == []


def test_importing_the_package_stays_light() -> None:
    """The package itself loads neither filelock nor what reads metadata."""
    code = "import mtf_slurm, sys; print([m for m in sys.modules if 'filelock' in m])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True
    )
    assert done.stdout == "[]\n"
