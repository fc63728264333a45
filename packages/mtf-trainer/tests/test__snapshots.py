from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric

from mtf_trainer import CheckpointWarning, SnapshotSettings
from mtf_trainer._run_dir import memory_id
from mtf_trainer._snapshots import Snapshots

HERE = Path(__file__).parent
SHM = Path("/dev/shm")  # noqa: S108 - what the package uses


@pytest.fixture
def run_id() -> Iterator[str]:
    """Name a run, and delete what it leaves."""
    name = uuid.uuid4().hex
    yield name
    for path in SHM.glob(f"mtf-{os.getuid()}-{name}-*"):
        path.unlink()


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def left_of(run_id: str) -> list[str]:
    """Return the names of what lies in shared memory of a run."""
    return [path.name for path in SHM.glob(f"mtf-{os.getuid()}-{run_id}-*")]


def name_of(run_dir: Path) -> str:
    """Return what a run's memory is named by."""
    run_id = json.loads((run_dir / "run.json").read_text("utf-8"))["run_id"]
    return memory_id(run_dir, run_id)


def make(run_id: str, fabric: Fabric, **settings: Any) -> Snapshots:
    """Return the snapshots of a run of one process."""

    def agree(*numbers: int) -> tuple[int, ...]:
        return numbers

    return Snapshots(SnapshotSettings(**settings), run_id, fabric, agree, 1000)


def content(step: int) -> dict[str, Any]:
    """Return something to keep."""
    return {"step": step, "locals": [step], "w": torch.full((3,), float(step))}


def test_interval_keeps_the_share(
    run_id: str, fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With steps of 10 ms and snapshots of 50 ms, a share of 5 % is one in 100 steps."""
    clock = Clock()
    monkeypatch.setattr("mtf_trainer._snapshots.time", clock)
    snapshots = make(run_id, fabric, max_overhead=0.05)
    taken = []

    for step in range(1, 401):
        clock.now += 0.010

        def capture(step: int = step) -> dict[str, Any]:
            taken.append(step)
            clock.now += 0.050
            return content(step)

        if snapshots.due(step):
            snapshots.take(capture, epoch=0, step=step)

    # The first waits until the guess of its cost, a little above 5 ms, is worth its share.
    assert taken == [12, 112, 212, 312]
    assert not snapshots.give_back(None)
    assert snapshots.newest(None) is None
    assert not snapshots.give_back((0, 311))
    assert left_of(run_id)
    assert snapshots.give_back((0, 312))
    assert left_of(run_id) == []


def test_fixed_interval_is_taken(run_id: str, fabric: Fabric) -> None:
    """An interval in steps is what it says."""
    snapshots = make(run_id, fabric, every_n_steps=3)
    taken = []

    for step in range(1, 12):
        if snapshots.due(step):
            taken.append(step)
            snapshots.take(lambda: content(0), epoch=0, step=step)

    assert taken == [4, 7, 10]
    kept = snapshots.kept()
    assert kept is not None
    assert kept.content()["w"].tolist() == [0.0, 0.0, 0.0]
    snapshots.remove()


def test_no_memory_means_no_snapshots(
    tmp_path: Path, run_id: str, fabric: Fabric
) -> None:
    """A folder that is not in memory is a warning, once, and the training goes on."""
    snapshots = make(run_id, fabric, every_n_steps=1, folder=tmp_path)
    assert not snapshots.due(1)
    assert snapshots.due(2)

    with pytest.warns(CheckpointWarning, match="no snapshots are taken"):
        snapshots.take(lambda: content(1), epoch=0, step=2)

    assert not snapshots.due(3)
    assert snapshots.kept() is None
    snapshots.remove()


def killed(tmp_path: Path, step: int) -> None:
    """Train in another process, killed in a step, with a snapshot of every third step."""
    command = [sys.executable, str(HERE / "exact_runs.py"), "kill", str(tmp_path)]
    # With as many threads as here: sums are rounded by how they are split.
    done = subprocess.run([*command, str(step)], check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL


def test_killed_run_goes_on_from_memory(
    tmp_path: Path, fabric: Fabric, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """After SIGKILL the next start says what was lost, ends the same, and frees memory."""
    monkeypatch.syspath_prepend(str(HERE))
    import exact_runs  # noqa: PLC0415 - on the path for this test alone

    from mtf_trainer.testing import outcome_of, run_whole  # noqa: PLC0415 - with it

    settings: dict[str, Any] = {
        "snapshot": SnapshotSettings(every_n_steps=3),
        "show_progress": True,
    }
    make = exact_runs.maker(fabric, [], accumulation=1, workers=0, **settings)
    whole = run_whole(make, tmp_path / "whole").outcome
    killed(tmp_path / "killed", 9)
    capsys.readouterr()

    result = make(tmp_path / "killed")[1]()

    del sys.modules["exact_runs"]
    assert result.resumed_from is not None
    assert result.resumed_from.parent == SHM
    assert result.steps_lost == 2
    told = capsys.readouterr().err.splitlines()[0]
    assert told.endswith("step 7, 2 steps were lost")
    assert outcome_of(tmp_path / "killed") == whole
    assert left_of(name_of(tmp_path / "killed")) == []


def test_foreign_and_older_snapshots_are_left_alone(
    tmp_path: Path, fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder made anew takes nothing of the run that had its path before."""
    monkeypatch.syspath_prepend(str(HERE))
    import exact_runs  # noqa: PLC0415 - on the path for this test alone

    killed(tmp_path / "run", 9)
    left = [SHM / name for name in left_of(name_of(tmp_path / "run"))]
    assert left
    (tmp_path / "run").rename(tmp_path / "away")

    make = exact_runs.maker(fabric, [], accumulation=1, workers=0)
    del sys.modules["exact_runs"]
    result = make(tmp_path / "run")[1]()

    assert result.resumed_from is None
    for path in left:
        path.unlink()
