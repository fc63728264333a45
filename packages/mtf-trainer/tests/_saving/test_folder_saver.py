from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mtf_trainer import CheckpointSettings, CheckpointWriteError
from mtf_trainer._saving.commit import Marker, is_committed, own_name, read_marker
from mtf_trainer._saving.files import aside_of, checkpoint_name
from mtf_trainer._saving.folder_saver import FolderSaver
from mtf_trainer._saving.sharded import load_certified, write_part
from mtf_trainer.certificate import Certificate, check

SETTINGS = CheckpointSettings(asynchronous=False, keep_last_n=2)


def finish(saver: FolderSaver, folder: Path, step: int, moment: str = "m") -> Any:
    """Write what one process has for itself, and finish."""
    aside = aside_of(folder / checkpoint_name(0, step))
    aside.mkdir(parents=True)
    own = {"rng": torch.tensor([step])}
    files = {own_name(0): write_part(aside / own_name(0), moment, own)}
    content = {"model": {"w": torch.tensor([1.0])}, "locals": [own]}
    marker = Marker(moment=moment, world_size=1, files=files)
    return saver.finish(content, marker, epoch=0, global_step=step, metrics={"loss": 1})


def test_folder_is_certified_linked_and_chained(tmp_path: Path) -> None:
    """Each descends from the one before; the oldest goes; nothing is left beside."""
    saver = FolderSaver(tmp_path, SETTINGS, parent=None)

    saved = [finish(saver, tmp_path, step) for step in (1, 2, 3)]

    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".lock",
        "chain.jsonl",
        checkpoint_name(0, 2),
        checkpoint_name(0, 3),
        "latest.ckpt",
    ]
    assert is_committed(tmp_path / "latest.ckpt")
    lines = (tmp_path / "chain.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["digest"] for line in lines] == [s.digest for s in saved]
    content = load_certified(saved[2].path)
    own = Certificate.from_plain(content["certificate"])
    assert own.parent == saved[1].digest
    assert check(content, own) == ()


def test_folder_of_the_same_name_is_replaced(tmp_path: Path) -> None:
    """As a stop in a window makes one that a second stop replaces."""
    saver = FolderSaver(tmp_path, SETTINGS, parent=None)
    path = finish(saver, tmp_path, 1, "before").path

    finish(saver, tmp_path, 1, "after")

    assert read_marker(path).moment == "after"
    assert [p.name for p in tmp_path.glob(".*")] == [".lock"]


def test_damaged_one_is_not_counted(tmp_path: Path) -> None:
    """A folder whose file was altered is none of those that shall stay."""
    saver = FolderSaver(tmp_path, replace(SETTINGS, keep_last_n=9), parent=None)
    first, second = (finish(saver, tmp_path, step).path for step in (1, 2))
    (second / "shared.pt").write_bytes(b"x")

    saver = FolderSaver(tmp_path, SETTINGS, parent=None)
    third = finish(saver, tmp_path, 3).path

    assert [p.exists() for p in (first, second, third)] == [True, True, True]
    finish(saver, tmp_path, 4)
    assert [p.exists() for p in (first, second, third)] == [False, False, True]


def test_what_cannot_be_deleted_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new one is there all the same."""
    saver = FolderSaver(tmp_path, replace(SETTINGS, keep_last_n=1), parent=None)
    first = finish(saver, tmp_path, 1).path
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self == first:
            raise PermissionError
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    saved = finish(saver, tmp_path, 2)

    assert saved.warnings == (f"{first}: could not be deleted",)
    assert is_committed(saved.path)


def test_other_things_of_its_name_are_deleted_too(tmp_path: Path) -> None:
    """A file among the folders, as of a run that was not sharded, goes when it is old."""
    saver = FolderSaver(tmp_path, replace(SETTINGS, keep_last_n=1), parent=None)
    tmp_path.joinpath(checkpoint_name(0, 1)).write_bytes(b"x")

    finish(saver, tmp_path, 2)

    assert not os.path.lexists(tmp_path / checkpoint_name(0, 1))


def test_part_that_is_not_plain_is_an_error(tmp_path: Path) -> None:
    """What could not be certified or loaded again is never given a name."""
    saver = FolderSaver(tmp_path, SETTINGS, parent=None)
    marker = Marker(moment="m", world_size=1, files={})
    path = tmp_path / checkpoint_name(0, 1)
    aside_of(path).mkdir()

    with pytest.raises(CheckpointWriteError, match="data and dense tensors"):
        saver.finish({"x": object()}, marker, epoch=0, global_step=1, metrics={})

    assert not path.exists()
