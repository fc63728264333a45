from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric

from mtf_trainer import CheckpointWarning, SnapshotError, SnapshotSettings
from mtf_trainer._loop.run_dir import memory_id
from mtf_trainer._memory import shared_memory
from mtf_trainer._memory.snapshots import Snapshots, _StepCounter

HERE = Path(__file__).parents[1]
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
    monkeypatch.setattr("mtf_trainer._memory.snapshots.time", clock)
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


def test_follower_goes_on_with_what_its_node_s_first_keeps(
    run_id: str, fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own part is its own; where the first's is not there, none is used."""
    follower: Any = SimpleNamespace(
        global_rank=1, local_rank=1, world_size=1, is_global_zero=False
    )
    # Those who wrote it live on: it is this process.
    monkeypatch.setattr(shared_memory, "is_alive", lambda _: False)
    first = make(run_id, fabric, every_n_steps=1)
    second = make(run_id, follower, every_n_steps=1)
    first.take(lambda: content(3), epoch=0, step=3)
    second.take(lambda: {"locals": [7]}, epoch=0, step=3)

    found = make(run_id, follower).newest(None)

    assert found is not None
    assert (found[0]["step"], found[0]["locals"]) == (3, [7])
    assert make(run_id, follower).newest((0, 3)) is None
    first.remove()
    with pytest.warns(CheckpointWarning, match="in shared memory is passed over"):
        assert make(run_id, follower).newest(None) is None
    second.remove()


def test_the_moment_before_stays_until_all_have_the_next(
    run_id: str, fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where another process could not take its part, what all have is not given up."""
    snapshots = make(run_id, fabric, every_n_steps=1)
    snapshots.take(lambda: content(3), epoch=0, step=3)
    monkeypatch.setattr(
        "mtf_trainer._memory.snapshots.gather", lambda _, failed: [failed, True]
    )

    snapshots.take(lambda: content(4), epoch=0, step=4)

    kept = snapshots.kept()
    assert kept is not None
    assert kept.content()["step"] == 3
    assert left_of(run_id) == [kept.path.name]
    assert snapshots.moment == (0, 3)
    assert not snapshots.due(5)
    snapshots.remove()


def test_old_one_goes_with_the_next_checkpoint_where_no_next_one_has_room(
    run_id: str, fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given up, its memory is free as soon as the disk has what it holds, not before."""
    snapshots = make(run_id, fabric, every_n_steps=1)
    snapshots.newest(None)
    snapshots.take(lambda: content(3), epoch=0, step=3)
    snapshots.relieve((0, 5))
    assert left_of(run_id) != []

    def full(*_: object, **__: object) -> None:
        message = "no room"
        raise SnapshotError(message)

    monkeypatch.setattr(shared_memory.SnapshotArea, "put", full)
    with pytest.warns(CheckpointWarning, match="no room"):
        snapshots.take(lambda: content(4), epoch=0, step=4)
    snapshots.relieve(None)
    snapshots.relieve((0, 2))
    assert left_of(run_id) != []

    snapshots.relieve((0, 3))

    assert left_of(run_id) == []


LIFE = """
import os, signal, sys
from pathlib import Path
import torch
from lightning.fabric import Fabric
from mtf_trainer import SnapshotSettings
from mtf_trainer._memory import segment
from mtf_trainer._memory.snapshots import Snapshots

def content(step):
    return {"step": step, "locals": [step], "w": torch.full((350_000,), float(step))}

folder, run_id, durable, first, last, place = sys.argv[1:]
settings = SnapshotSettings(every_n_steps=1, folder=Path(folder))
fabric = Fabric(accelerator="cpu", devices=1)
snapshots = Snapshots(settings, run_id, fabric, lambda *n: n, 1000)
found = snapshots.newest((0, int(durable)))
print(found[0]["step"] if found else 0, flush=True)

def end(reached):
    if reached == place:
        os.kill(os.getpid(), signal.SIGKILL)

for step in range(int(first), int(last) + 1):
    if step == int(last):
        segment.reached = end
    snapshots.take(lambda: content(step), epoch=0, step=step)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Return what mounts a file system in memory of so many MiB, and a little."""
    mounted = []

    def mount(size_mib: int) -> Path:
        folder = tmp_path / str(size_mib)
        folder.mkdir()
        size = f"size={1024 * size_mib + 64}k"
        command = ["mount", "-t", "tmpfs", "-o", size, "none", os.fspath(folder)]
        if subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("may not mount a file system")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", os.fspath(folder)], check=True)


@pytest.fixture
def live(launch: Callable[..., Any]) -> Callable[..., tuple[int, bool]]:
    """Take snapshots in a process that is killed at *place* of the last, or behind it.

    Return the step that it found, and whether it warned that it takes none.
    """

    def run(
        folder: Path, first: int, last: int, place: str = "", *, durable: int = -1
    ) -> tuple[int, bool]:
        arguments = (folder, "ab" * 16, durable, first, last, place)
        (done,) = launch("-c", LIFE, *arguments, timeout_s=120)
        assert done.code == -signal.SIGKILL, done.err
        return int(done.out), "no snapshots are taken in shared memory" in done.err

    return run


def steps_in(folder: Path) -> list[int]:
    """Return the steps of the snapshots that were left, newest first."""
    return [f.global_step for f in shared_memory.SnapshotArea.find(folder, "ab" * 16, 0)]


@pytest.mark.parametrize("place", ["claimed", "wiped", "copying", "described"])
def test_with_room_for_two_a_kill_never_takes_both(
    small: Callable[[int], Path], live: Callable[..., tuple[int, bool]], place: str
) -> None:
    """Killed before its first is committed, again and again, each life finds the newest."""
    folder = small(4)
    assert live(folder, 1, 3) == (0, False)
    for _ in range(3):
        assert live(folder, 4, 4, place) == (3, False)
        assert steps_in(folder) == [3]
        assert len(list(folder.iterdir())) == 2
    assert live(folder, 4, 4) == (3, False)
    assert steps_in(folder) == [4]
    assert len(list(folder.iterdir())) == 1


def test_with_room_for_one_the_old_one_stays(
    small: Callable[[int], Path], live: Callable[..., tuple[int, bool]]
) -> None:
    """No other is taken, with the warning, until a checkpoint has as many steps."""
    folder = small(2)
    assert live(folder, 1, 2) == (0, True)
    assert steps_in(folder) == [1]
    assert live(folder, 2, 2) == (1, True)
    assert steps_in(folder) == [1]
    assert live(folder, 2, 2, durable=1) == (0, False)
    assert steps_in(folder) == [2]


@pytest.mark.parametrize("place", ["missing", "link", "full", "foreign"])
def test_steps_are_not_counted_where_that_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """No folder, a link, no room, another user's file: zero, and training goes on."""
    path = tmp_path / "steps"
    if place == "missing":
        path = tmp_path / "none" / "steps"
    elif place == "link":
        path.symlink_to(tmp_path / "other")
    elif place == "full":

        def fail(*_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "posix_fallocate", fail)
    else:
        path.touch()
        monkeypatch.setattr(os, "getuid", lambda: -1)
    counter = _StepCounter(path)

    for step in (1, 2):
        counter.write(step)

    assert counter.read() == 0
    counter.close()


@pytest.fixture
def killed(launch: Callable[..., Any]) -> Callable[[Path, int], None]:
    """Train in another process, killed in a step, with a snapshot of every third step."""

    def run(run_dir: Path, step: int) -> None:
        (done,) = launch(HERE / "exact_runs.py", "kill", run_dir, step, timeout_s=120)
        assert done.code == -signal.SIGKILL, done.err

    return run


def test_killed_run_goes_on_from_memory(
    tmp_path: Path,
    fabric: Fabric,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    killed: Callable[[Path, int], None],
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


def test_killed_lives_leave_one_snapshot(
    tmp_path: Path, killed: Callable[[Path, int], None]
) -> None:
    """Each life that took one before its SIGKILL leaves that one, and none before it."""
    for step in (5, 8, 12):
        killed(tmp_path / "run", step)
        name = name_of(tmp_path / "run")
        files = [each for each in left_of(name) if not each.endswith("-steps")]
        found = shared_memory.SnapshotArea.find(SHM, name, 0)
        assert [each.path.name for each in found] == files
        assert [each.global_step for each in found] == [step - step % 4]
    for each in left_of(name):
        (SHM / each).unlink()


def test_steps_are_told_as_lost_where_nothing_was_kept(
    tmp_path: Path,
    fabric: Fabric,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    killed: Callable[[Path, int], None],
) -> None:
    """Killed before its first snapshot, a run begins anew, and says what that costs."""
    monkeypatch.syspath_prepend(str(HERE))
    import exact_runs  # noqa: PLC0415 - on the path for this test alone

    settings: dict[str, Any] = {"snapshot": SnapshotSettings(), "show_progress": True}
    make = exact_runs.maker(fabric, [], accumulation=1, workers=0, **settings)
    killed(tmp_path / "run", 3)
    capsys.readouterr()

    result = make(tmp_path / "run")[1]()

    del sys.modules["exact_runs"]
    assert result.resumed_from is None
    assert result.steps_lost == 3
    told = capsys.readouterr().err.splitlines()[0]
    assert told.endswith("beginning anew, 3 steps were lost")
    assert left_of(name_of(tmp_path / "run")) == []


def test_foreign_and_older_snapshots_are_left_alone(
    tmp_path: Path,
    fabric: Fabric,
    monkeypatch: pytest.MonkeyPatch,
    killed: Callable[[Path, int], None],
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
