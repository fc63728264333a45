from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mtf_trainer._saving.commit import (
    MARKER,
    SHARED,
    Marker,
    check_files,
    is_committed,
    own_name,
    read_marker,
)
from mtf_trainer.errors import CheckpointDamagedError


@pytest.fixture
def marker(tmp_path: Path) -> Marker:
    """Write a folder of two files and its marker."""
    files = {}
    for name in (SHARED, own_name(0)):
        (tmp_path / name).write_text(name, "utf-8")
        files[name] = hashlib.sha256(name.encode()).hexdigest()
    marker = Marker(moment="m", world_size=1, files=files)
    (tmp_path / MARKER).write_text(marker.to_json(), "utf-8")
    return marker


def test_marker_is_read_as_written(marker: Marker, tmp_path: Path) -> None:
    """And its files are accepted."""
    assert is_committed(tmp_path)
    assert read_marker(tmp_path) == marker
    check_files(tmp_path, marker)
    check_files(tmp_path, replace(marker, files={"x": "0"}), [])


def test_folder_without_marker_was_not_committed(tmp_path: Path) -> None:
    """Nor was what is no folder, or has a name that no file can have."""
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file", tmp_path / "none", tmp_path / ("x" * 300)):
        assert not is_committed(path)
        with pytest.raises(CheckpointDamagedError, match="was not committed"):
            read_marker(path)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 1},
        {"moment": 3},
        {"world_size": 0},
        {"world_size": True},
        {"world_size": 2},
        {"world_size": 10**12},
        {"files": {}},
        {"files": {"../x": "0" * 64}},
        {"files": {SHARED: "0"}},
        {"files": 3},
        None,
    ],
)
def test_malformed_marker_is_damage(
    marker: Marker, tmp_path: Path, change: dict[str, Any] | None
) -> None:
    """Whatever it says, no file is looked for that cannot be one of the folder's."""
    plain = json.loads(marker.to_json())
    text = "[" * 10**5 if change is None else json.dumps(plain | change)
    (tmp_path / MARKER).write_text(text, "utf-8")

    with pytest.raises(CheckpointDamagedError, match=r"commit.json: is damaged"):
        read_marker(tmp_path)


def test_file_that_is_not_what_was_written_is_named(
    marker: Marker, tmp_path: Path
) -> None:
    """Altered, missing, or a pipe that would never end."""
    (tmp_path / SHARED).write_text("other", "utf-8")
    with pytest.raises(CheckpointDamagedError, match=r"shared.pt: its sha256 is"):
        check_files(tmp_path, marker)
    check_files(tmp_path, marker, [own_name(0)])
    (tmp_path / SHARED).unlink()
    with pytest.raises(CheckpointDamagedError, match=r"shared.pt: is missing"):
        check_files(tmp_path, marker)
    os.mkfifo(tmp_path / SHARED)
    with pytest.raises(CheckpointDamagedError, match=r"shared.pt: is missing, or not"):
        check_files(tmp_path, marker)
