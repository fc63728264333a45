from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mtf_trainer._memory.shared_memory import SnapshotArea
from mtf_trainer._saving import background
from mtf_trainer._saving.background import Background, area_of
from mtf_trainer._saving.saver import Saved
from mtf_trainer._saving.writer import WriterProcess
from mtf_trainer.config import CheckpointSettings
from mtf_trainer.errors import CheckpointWriteError

SETTINGS = CheckpointSettings()
SAVED = Saved(path=Path("x.ckpt"), digest="0" * 64, seconds=0.1)


class Area:
    """Counts what is held."""

    def __init__(self) -> None:
        self.held: list[int] = []
        self.removed = 0

    def put(self, content: Mapping[str, Any], *, epoch: int, global_step: int) -> int:
        self.held.append(epoch * 100 + global_step + len(content))
        return self.held[-1]

    def release(self, segment: int) -> None:
        self.held.remove(segment)

    def remove(self) -> None:
        self.removed += 1


class Writer:
    """Is done when told, or when waited for."""

    def __init__(self, parent: str | None) -> None:
        self.parent = parent
        self.submitted: list[tuple[Any, ...]] = []
        self.results: list[Saved | CheckpointWriteError] = []
        self.is_closed = False

    def submit(self, segment: Any, **more: Any) -> None:
        self.submitted.append((segment, more))

    def poll(self) -> list[Saved | CheckpointWriteError]:
        found, self.results = self.results, []
        return found

    def wait(self) -> bool:
        self.results = [SAVED]
        return True

    def close(self) -> None:
        self.is_closed = True


class Scene:
    """A background with stand-ins."""

    def __init__(self, folder: Path, area: Area | None) -> None:
        self.writers: list[Writer] = []
        self.background = Background(folder, SETTINGS, area, self.start)

    def start(self, _: Path, __: CheckpointSettings, parent: str | None) -> Writer:
        self.writers.append(Writer(parent))
        return self.writers[-1]

    def submit(self, parent: str | None = None) -> None:
        self.background.submit(
            {}, epoch=1, global_step=2, metrics={"loss": 3.0}, parent=parent
        )


def test_memory_is_held_until_it_is_written(tmp_path: Path) -> None:
    """What is being written stays as it is; nothing is told before its end."""
    area = Area()
    scene = Scene(tmp_path, area)
    assert scene.background.results(wait=True) == []

    scene.submit(parent="a")
    (writer,) = scene.writers
    assert (writer.parent, scene.background.results(wait=False)) == ("a", [])
    assert writer.submitted == [
        (102, {"epoch": 1, "global_step": 2, "metrics": {"loss": 3.0}})
    ]
    assert area.held == [102]
    writer.results = [SAVED]

    assert scene.background.results(wait=False) == [SAVED]
    assert area.held == []
    scene.submit()
    assert scene.background.results(wait=True) == [SAVED]
    assert len(scene.writers) == 1


def test_another_parent_needs_another_writer(tmp_path: Path) -> None:
    """Once the process is ended the next write starts one, which knows the parent."""
    area = Area()
    scene = Scene(tmp_path, area)
    scene.submit(parent="a")
    scene.background.end_writer()
    assert (scene.writers[0].is_closed, area.held) == (True, [])
    scene.background.end_writer()

    scene.submit(parent="b")

    assert [writer.parent for writer in scene.writers] == ["a", "b"]
    scene.background.close()
    scene.background.close()
    assert scene.writers[1].is_closed
    assert area.removed == 0


def test_memory_of_its_own_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an area it takes the folder's own, and gives it back, a killed one's too."""
    areas: list[Area] = []

    def make(folder: Path) -> Area:
        assert folder == tmp_path
        areas.append(Area())
        return areas[-1]

    monkeypatch.setattr(background, "area_of", make)
    scene = Scene(tmp_path, None)
    scene.background.prepare()
    assert areas.pop().removed == 1
    scene.submit()
    scene.background.results(wait=True)
    scene.submit()

    scene.background.close()

    assert [(area.removed, area.held) for area in areas] == [(1, [])]
    Scene(tmp_path, Area()).background.prepare()
    assert len(areas) == 1


def test_real_ones_fit(tmp_path: Path) -> None:
    """The defaults are the shared memory and the process of this package."""
    area = area_of(tmp_path)
    assert isinstance(area, SnapshotArea)
    area.remove()
    writer = background._start_writer(tmp_path, SETTINGS, None)
    assert isinstance(writer, WriterProcess)
    writer.close()
