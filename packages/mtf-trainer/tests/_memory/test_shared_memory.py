from __future__ import annotations

import os
import resource
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mtf_trainer._memory import segment as segment_module
from mtf_trainer._memory import shared_memory
from mtf_trainer._memory.room import check_room
from mtf_trainer._memory.segment_file import Name, read
from mtf_trainer._memory.shared_memory import Found, SnapshotArea
from mtf_trainer.errors import SnapshotError

RUN_ID = "0123456789abcdef" * 2
OTHER_RUN = "fedcba9876543210" * 2


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder in memory."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.fixture
def area(folder: Path) -> Iterator[SnapshotArea]:
    """Return an area, whose memory is given back."""
    area = SnapshotArea(folder, RUN_ID, 0)
    yield area
    area.remove()


def state(step: int, size: int = 1000) -> dict[str, Any]:
    """Return a content that is all *step*."""
    weight = torch.full((size,), float(step))
    return {"model": {"weight": weight, "tied": weight}, "resume": {"global_step": step}}


def is_state(content: Any, step: int, size: int = 1000) -> bool:
    """Tell whether *content* is the whole of `state`."""
    weight, expected = content["model"]["weight"], torch.full((size,), float(step))
    return torch.equal(weight, expected) and content["resume"] == {"global_step": step}


def steps(folder: Path, rank: int = 0) -> list[int]:
    """Return the steps of what is found, each checked to be whole."""
    found = SnapshotArea.find(folder, RUN_ID, rank)
    assert all(is_state(each.load(), each.global_step) for each in found)
    return [each.global_step for each in found]


def leave(folder: Path, *taken: int, run_id: str = RUN_ID, rank: int = 0) -> None:
    """Leave snapshots as a process that was killed does: no longer owned, not removed."""
    area = SnapshotArea(folder, run_id, rank)
    for step in taken:
        segment = area.put(state(step), epoch=0, global_step=step)
        segment.disown()


def test_what_is_put_can_be_had_again(area: SnapshotArea) -> None:
    """A segment's content is what was put, and tied tensors are tied."""
    segment = area.put(state(1), epoch=0, global_step=1)
    content = segment.content()
    assert is_state(content, 1)
    assert content["model"]["weight"] is content["model"]["tied"]


def test_what_is_put_does_not_change_with_the_live_tensors(area: SnapshotArea) -> None:
    """Training on after a snapshot does not tear it."""
    live = state(1)
    segment = area.put(live, epoch=0, global_step=1)
    live["model"]["weight"].add_(1)
    assert is_state(segment.content(), 1)


def test_memory_of_free_segments_is_used_again(area: SnapshotArea, folder: Path) -> None:
    """Put and release in turn use one file; the mapping stays."""
    views = set()
    for step in range(5):
        segment = area.put(state(step), epoch=0, global_step=step)
        views.add(segment.content()["model"]["weight"].data_ptr())
        area.release(segment)
    assert len(list(folder.iterdir())) == 1
    assert len(views) == 1


def test_a_larger_content_takes_the_place_of_a_free_segment(
    area: SnapshotArea, folder: Path
) -> None:
    """A free segment that is too small is given back, and one that fits is made."""
    area.release(area.put(state(1), epoch=0, global_step=1))
    segment = area.put(state(2, 10**6), epoch=0, global_step=2)
    assert is_state(segment.content(), 2, 10**6)
    assert [path.stat().st_size for path in folder.iterdir()] == [segment.size_bytes]


def test_no_more_than_three_are_alive(area: SnapshotArea, folder: Path) -> None:
    """A fourth is refused while all are held, and the error says what to do."""
    segments = [area.put(state(step), epoch=0, global_step=step) for step in range(3)]
    with pytest.raises(SnapshotError, match="all 3 snapshots are in use: release one"):
        area.put(state(3), epoch=0, global_step=3)
    area.release(segments[1])
    assert area.put(state(4), epoch=0, global_step=4) is segments[1]
    assert is_state(segments[0].content(), 0)
    assert len(list(folder.iterdir())) == 3


def test_keeping_takes_over_and_releases_the_one_before(
    area: SnapshotArea, folder: Path
) -> None:
    """Put and keep, again and again, needs two segments, and no release."""
    for step in range(6):
        area.keep(area.put(state(step), epoch=0, global_step=step))
    assert len(list(folder.iterdir())) == 2


def test_a_kept_segment_can_be_held_for_a_writer(area: SnapshotArea) -> None:
    """A second hold outlasts being kept: the memory is not used before its release."""
    first = area.put(state(1), epoch=0, global_step=1)
    area.hold(first)
    area.keep(first)
    area.keep(first)
    second = area.put(state(2), epoch=0, global_step=2)
    area.keep(second)
    third = area.put(state(3), epoch=0, global_step=3)
    assert is_state(first.content(), 1)
    area.release(third)
    area.release(first)
    assert area.put(state(4), epoch=0, global_step=4) in (first, third)


def test_what_is_not_held_cannot_be_released_or_kept(area: SnapshotArea) -> None:
    """Releasing twice, or the kept one, would give away memory that is in use."""
    kept = area.put(state(1), epoch=0, global_step=1)
    area.keep(kept)
    with pytest.raises(ValueError, match="is the kept snapshot"):
        area.release(kept)
    segment = area.put(state(2), epoch=0, global_step=2)
    area.release(segment)
    for forbidden in (area.release, area.keep, area.hold):
        with pytest.raises(ValueError, match="is not held"):
            forbidden(segment)


def test_a_content_that_cannot_be_saved_takes_no_memory(
    area: SnapshotArea, folder: Path
) -> None:
    """The error names the place, and the area is as before."""
    with pytest.raises(TypeError, match=r"model\.weight"):
        area.put({"model": {"weight": object()}}, epoch=0, global_step=0)
    assert list(folder.iterdir()) == []


def test_an_interrupted_put_can_be_repeated(
    area: SnapshotArea, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an error amid copying, the segment is free, and can be used."""

    def fail(place: str) -> None:
        if place == "copying":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(segment_module, "reached", fail)
        with pytest.raises(KeyboardInterrupt):
            area.put(state(1), epoch=0, global_step=1)
    assert is_state(area.put(state(2), epoch=0, global_step=2).content(), 2)


def test_reserved_memory_is_used(area: SnapshotArea, folder: Path) -> None:
    """What was reserved in the background is what put uses."""
    area.reserve(5 * 2**20)
    segment = area.put(state(1), epoch=0, global_step=1)
    sizes = {path.stat().st_size for path in folder.iterdir()}
    assert sizes == {6 * 2**20}
    assert segment.size_bytes == 6 * 2**20
    assert len(list(folder.iterdir())) == 2
    area.reserve(5 * 2**20, segments=100)
    area.close()
    assert "mtf-reserve" not in [each.name for each in threading.enumerate()]
    assert list(folder.iterdir()) == []


def test_what_cannot_be_reserved_is_told_by_put(area: SnapshotArea, folder: Path) -> None:
    """Reserving more than there is does no harm; put tells what it cannot have."""
    area.reserve(2**60)
    assert is_state(area.put(state(1), epoch=0, global_step=1).content(), 1)
    huge = torch.zeros(1).expand(2**50)
    with pytest.raises(SnapshotError, match=r"needs 4,503,\d+,\d+,\d+,\d+ bytes, and"):
        area.put({"x": huge}, epoch=0, global_step=1)
    assert len(list(folder.iterdir())) == 1


def test_a_folder_that_is_not_in_memory_is_refused(tmp_path: Path) -> None:
    """On a disk, or where there is no folder, put says what to do."""
    for folder in (tmp_path, tmp_path / "missing"):
        area = SnapshotArea(folder, RUN_ID, 0)
        with pytest.raises(SnapshotError, match="in memory"):
            area.put(state(1), epoch=0, global_step=1)
        assert SnapshotArea.find(folder, RUN_ID, 0) == []
        area.remove()


def test_a_small_file_system_is_an_error_that_tells_the_size(folder: Path) -> None:
    """With 4 MB, what fits is kept, and what does not is refused, never a SIGBUS."""
    small = folder / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", os.fspath(small)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("may not mount a file system")
    try:
        area = SnapshotArea(small, RUN_ID, 0)
        area.keep(area.put(state(1, 700_000), epoch=0, global_step=1))
        with pytest.raises(SnapshotError, match=r"of 4,194,304 bytes has 1,\d+,\d+ left"):
            area.put(state(2, 700_000), epoch=0, global_step=2)
        area.close()
        assert [f.global_step for f in SnapshotArea.find(small, RUN_ID, 0)] == [1]
        again = SnapshotArea(small, RUN_ID, 0)
        again.put(state(2, 700_000), epoch=0, global_step=2)
        again.remove()
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", "--lazy", os.fspath(small)], check=True)


def test_room_that_vanishes_is_an_error(
    area: SnapshotArea, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where another takes the memory between the look and the claim, it is told as such."""
    monkeypatch.setattr(shared_memory, "check_room", lambda *_: None)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    try:
        with pytest.raises(SnapshotError, match=r"cannot be made in .*: File too large"):
            area.put(state(1), epoch=0, global_step=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_leftovers_make_room_when_there_is_none(
    area: SnapshotArea, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a killed process's snapshots fill the memory, they go for the new one."""
    leave(folder, 1, 2)

    def only_two(folder: Path, size_bytes: int) -> None:
        if len(list(folder.iterdir())) >= 2:
            message = "full"
            raise SnapshotError(message)
        check_room(folder, size_bytes)

    monkeypatch.setattr(shared_memory, "check_room", only_two)
    segment = area.put(state(3), epoch=0, global_step=3)
    assert list(folder.iterdir()) == [segment.path]


@pytest.mark.parametrize(
    ("run_id", "rank"),
    [("../" * 10 + "ab", 0), ("ab" * 15, 0), ("AB" * 16, 0), ("ab" * 16, -1), ("", 0)],
)
def test_wrong_names_are_refused(folder: Path, run_id: str, rank: int) -> None:
    """No run id or rank leads outside of the folder."""
    with pytest.raises(ValueError, match="32 hexadecimal digits"):
        SnapshotArea(folder, run_id, rank)
    with pytest.raises(ValueError, match="32 hexadecimal digits"):
        SnapshotArea.find(folder, run_id, rank)


def test_files_of_that_name_are_passed_over(folder: Path, area: SnapshotArea) -> None:
    """A name that is taken is not used, and a folder full of them is an error."""
    first = folder / str(Name(os.getuid(), RUN_ID, 0, 0))
    first.write_bytes(b"x")
    segment = area.put(state(1), epoch=0, global_step=1)
    assert segment.path.name.endswith("-0-1")
    assert first.read_bytes() == b"x"
    for slot in range(2, 100):
        (folder / str(Name(os.getuid(), RUN_ID, 0, slot))).mkdir()
    first.unlink()
    first.mkdir()
    with pytest.raises(SnapshotError, match="is full of files"):
        area.put(state(2), epoch=0, global_step=2)


def test_newest_first_with_their_times(folder: Path) -> None:
    """What a process left is found by the order in which it was taken, with its time."""
    before = time.time_ns() / 1e9
    leave(folder, 5, 9, 7)
    found = SnapshotArea.find(folder, RUN_ID, 0)
    assert [each.global_step for each in found] == [7, 9, 5]
    assert all(before - 1 < each.taken_at < time.time_ns() / 1e9 + 1 for each in found)
    content = found[1].load()
    assert is_state(content, 9)
    assert content["model"]["weight"] is content["model"]["tied"]


def test_a_loaded_content_is_a_copy(folder: Path) -> None:
    """It does not change with the file, nor the file with it."""
    leave(folder, 1)
    found = SnapshotArea.find(folder, RUN_ID, 0)[0]
    content = found.load()
    content["model"]["weight"].zero_()
    assert is_state(found.load(), 1)


def test_only_what_is_of_this_run_and_rank_is_found(folder: Path) -> None:
    """Other runs, other ranks, other names and torn files are left out."""
    leave(folder, 1)
    leave(folder, 2, run_id=OTHER_RUN)
    leave(folder, 3, rank=1)
    (folder / f"mtf-{os.getuid()}-{RUN_ID}-0-steps").write_bytes(b"x" * 8)
    (folder / str(Name(os.getuid(), RUN_ID, 0, 50))).write_bytes(bytes(8192))
    assert steps(folder) == [1]
    assert steps(folder, rank=1) == [3]


def test_what_belongs_to_a_process_that_runs_is_left_out(
    area: SnapshotArea, folder: Path
) -> None:
    """A training that is going on elsewhere is not interfered with."""
    segment = area.put(state(1), epoch=0, global_step=1)
    assert SnapshotArea.find(folder, RUN_ID, 0) == []
    with pytest.raises(
        SnapshotError, match=f"belongs to process {os.getpid()}, which runs"
    ):
        Found(segment.path, 0, 1, 0.0).load()
    other = SnapshotArea(folder, RUN_ID, 0)
    other.remove()
    assert read(segment.path).global_step == 1


def test_a_replaced_snapshot_is_not_loaded_for_the_found_one(folder: Path) -> None:
    """What was found must be what is loaded."""
    leave(folder, 1)
    found = SnapshotArea.find(folder, RUN_ID, 0)[0]
    found.path.unlink()
    with pytest.raises(SnapshotError, match="No such file"):
        found.load()
    leave(folder, 2)
    with pytest.raises(SnapshotError, match="was replaced by another"):
        found.load()


def test_a_snapshot_that_changes_while_it_is_read_is_refused(
    area: SnapshotArea, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that could not be seen, as one in another container, does no harm."""
    segment = area.put(state(1), epoch=0, global_step=1)
    segment.disown()
    found = SnapshotArea.find(folder, RUN_ID, 0)[0]
    area.release(segment)
    clone = torch.Tensor.clone

    def write_meanwhile(tensor: torch.Tensor) -> torch.Tensor:
        monkeypatch.setattr(torch.Tensor, "clone", clone)
        area.put(state(1), epoch=0, global_step=1)
        return clone(tensor)

    monkeypatch.setattr(torch.Tensor, "clone", write_meanwhile)
    with pytest.raises(SnapshotError, match="changed while it was read"):
        found.load()


def test_closing_leaves_the_kept_one_for_another_process(
    area: SnapshotArea, folder: Path
) -> None:
    """After close only the kept segment is there, it is found, and views still work."""
    area.keep(area.put(state(1), epoch=0, global_step=1))
    view = area.put(state(2), epoch=0, global_step=2).content()
    area.close()
    assert steps(folder) == [1]
    assert is_state(view, 2)
    area.close()
    area.remove()
    assert list(folder.iterdir()) == []


def test_leftovers_go_once_a_newer_one_is_kept(area: SnapshotArea, folder: Path) -> None:
    """The old process's snapshots stay until this one keeps its first, and no longer."""
    leave(folder, 1, 2)
    torn = folder / str(Name(os.getuid(), RUN_ID, 0, 60))
    torn.write_bytes(bytes(5000))
    segment = area.put(state(3), epoch=0, global_step=3)
    assert steps(folder) == [2, 1]
    area.keep(segment)
    assert list(folder.iterdir()) == [segment.path]


def test_what_is_spared_stays_until_another_is_kept(
    area: SnapshotArea, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All else makes room for the new one; where that is not enough, nothing is taken."""
    leave(folder, 1, 2, 3)
    room = 1

    def only(folder: Path, size_bytes: int) -> None:
        if len(list(folder.iterdir())) >= room:
            message = "full"
            raise SnapshotError(message)
        check_room(folder, size_bytes)

    monkeypatch.setattr(shared_memory, "check_room", only)
    spared = [f.path for f in SnapshotArea.find(folder, RUN_ID, 0) if f.global_step == 2]
    area.spare(spared)
    with pytest.raises(SnapshotError, match="full"):
        area.put(state(4), epoch=0, global_step=4)
    area.shrink()
    assert list(folder.iterdir()) == spared
    assert steps(folder) == [2]
    room = 2
    segment = area.put(state(4), epoch=0, global_step=4)
    assert steps(folder) == [2]
    area.keep(segment)
    assert list(folder.iterdir()) == [segment.path]


def test_shrinking_leaves_the_kept_one(area: SnapshotArea, folder: Path) -> None:
    """What was put after the kept one goes, and the kept one can be had as before."""
    kept = area.put(state(1), epoch=0, global_step=1)
    area.keep(kept)
    area.put(state(2), epoch=0, global_step=2)
    area.shrink()
    assert list(folder.iterdir()) == [kept.path]
    assert is_state(kept.content(), 1)
    area.close()
    assert steps(folder) == [1]


def test_removing_clears_this_run_and_rank_alone(
    area: SnapshotArea, folder: Path
) -> None:
    """Own segments and leftovers go; another rank's and run's stay; the area works on."""
    leave(folder, 1)
    leave(folder, 2, rank=1)
    leave(folder, 3, run_id=OTHER_RUN)
    view = area.put(state(4), epoch=0, global_step=4).content()
    area.remove()
    assert sorted(path.name.split("-")[2:4] for path in folder.iterdir()) == [
        [RUN_ID, "1"],
        [OTHER_RUN, "0"],
    ]
    assert is_state(view, 4)
    assert is_state(area.put(state(5), epoch=0, global_step=5).content(), 5)


def test_what_cannot_be_deleted_is_left(area: SnapshotArea, folder: Path) -> None:
    """A folder of a leftover's name, which nobody can unlink, does not stop removing."""
    stays = folder / str(Name(os.getuid(), RUN_ID, 0, 7))
    stays.mkdir()
    area.remove()
    assert stays.is_dir()


KILLED = """
import os, signal, sys, torch
from pathlib import Path
from mtf_trainer._memory import segment as segment_module
from mtf_trainer._memory.shared_memory import SnapshotArea

def state(step):
    weight = torch.full((1000,), float(step))
    return {"model": {"weight": weight, "tied": weight}, "resume": {"global_step": step}}

def train(rank, place, last):
    def end(reached):
        if reached == place:
            os.kill(os.getpid(), signal.SIGKILL)
    area = SnapshotArea(Path(sys.argv[1]), sys.argv[2], rank)
    for step in range(1, last + 1):
        if step == last:
            segment_module.reached = end
        area.keep(area.put(state(step), epoch=0, global_step=step))
    os._exit(1)

for rank, (place, last) in enumerate(eval(sys.argv[3])):
    pid = os.fork()
    if pid == 0:
        train(rank, place, last)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
"""


@pytest.mark.slow
def test_sigkill_at_every_place_of_a_put(
    folder: Path, launch: Callable[..., Any]
) -> None:
    """Killed anywhere in a put, the snapshot before it is found whole, and no torn one.

    The second put of a process writes to new memory, the third to used memory.
    """
    cases = {
        ("created", 2): [1],
        ("claimed", 2): [1],
        ("wiped", 2): [1],
        ("copying", 2): [1],
        ("described", 2): [1],
        ("committed", 2): [2, 1],
        ("wiped", 3): [2],
        ("copying", 3): [2],
        ("described", 3): [2],
        ("committed", 3): [3, 2],
    }
    (done,) = launch("-c", KILLED, folder, RUN_ID, list(cases), timeout_s=60)
    assert done.code == 0, done.err
    for rank, expected in enumerate(cases.values()):
        assert steps(folder, rank) == expected
        area = SnapshotArea(folder, RUN_ID, rank)
        area.remove()
    assert list(folder.iterdir()) == []
