from __future__ import annotations

import gc
import os
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mtf_trainer._memory import segment as segment_module
from mtf_trainer._memory.flat import flatten
from mtf_trainer._memory.segment import Segment, size_needed
from mtf_trainer._memory.segment_file import PAGE, Name, owner_of, read
from mtf_trainer.errors import SnapshotError

NAME = Name(os.getuid(), "0123456789abcdef" * 2, 0, 0)
PLACES = ("wiped", "copying", "described")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder in memory."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


class Stopped(Exception):  # noqa: N818 - not an error
    pass


def open_files() -> int:
    """Return how many files this process has open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def write(segment: Segment, value: float, step: int, size: int = 1000) -> None:
    """Write tensors that are all *value*."""
    content = {"a": torch.full((size,), value), "b": [torch.full((3, 5), value).T]}
    skeleton, tensors = flatten(content)
    segment.write(skeleton, tensors, epoch=0, global_step=step, sequence=step)


def test_a_segment_is_made_for_its_owner_alone(folder: Path) -> None:
    """The file has the size and mode it should, all its memory, and no open descriptor."""
    before = open_files()
    segment = Segment.create(folder, NAME, 10 * PAGE)
    found = segment.path.stat()
    assert (found.st_size, found.st_mode & 0o777) == (10 * PAGE, 0o600)
    assert found.st_blocks * 512 == 10 * PAGE
    assert owner_of(segment.path)[0] == os.getpid()
    segment.unlink()
    segment.unlink()
    del segment
    gc.collect()
    assert open_files() == before


def test_an_existing_file_or_link_is_never_used(folder: Path) -> None:
    """What lies there under the name stays as it is."""
    target = folder / "target"
    target.write_bytes(b"x")
    (folder / str(NAME)).symlink_to(target)
    with pytest.raises(FileExistsError):
        Segment.create(folder, NAME, PAGE)
    assert target.read_bytes() == b"x"


def test_a_claim_that_fails_leaves_no_file(folder: Path) -> None:
    """Where the memory cannot be had, the error is the system's, and nothing stays."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 * PAGE, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            Segment.create(folder, NAME, 5 * PAGE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(folder.iterdir()) == []


def test_pages_are_mapped_ahead(folder: Path) -> None:
    """Prefaulting makes the whole file resident in this process."""
    segment = Segment.create(folder, NAME, 64 * PAGE)
    segment.prefault()
    smaps = Path("/proc/self/smaps").read_text("utf-8")
    own = smaps.partition(str(segment.path))[2]
    assert f"\nRss:{64 * PAGE // 1024:>20} kB" in own.partition("VmFlags")[0]


def test_what_is_written_again_takes_the_place(folder: Path) -> None:
    """A segment holds the last content, larger or smaller, and nothing of those before."""
    segment = Segment.create(folder, NAME, 10 * PAGE)
    for step, size in enumerate((1000, 10, 1500, 1500), start=1):
        write(segment, float(step), step, size)
        committed = read(segment.path)
        content = committed.content()
        assert torch.equal(content["a"], torch.full((size,), float(step)))
        assert torch.equal(content["b"][0], torch.full((5, 3), float(step)))
        assert (committed.global_step, segment.sequence) == (step, step)
        assert torch.equal(segment.content()["a"], content["a"])


def test_own_content_is_the_memory_itself(folder: Path) -> None:
    """Views of a segment are no copies, and outlive it."""
    segment = Segment.create(folder, NAME, 10 * PAGE)
    write(segment, 1.0, 1)
    view = segment.content()["a"]
    write(segment, 2.0, 2)
    assert float(view[0]) == 2.0
    segment.unlink()
    del segment
    gc.collect()
    assert float(view.sum()) == 2000.0


def test_each_tensor_has_a_storage_of_its_own(folder: Path) -> None:
    """So torch.save writes each tensor's bytes, not the whole file for each."""
    segment = Segment.create(folder, NAME, 10 * PAGE)
    write(segment, 1.0, 1)
    content = read(segment.path).content()
    assert content["a"].untyped_storage().nbytes() == 4000
    assert content["b"][0].untyped_storage().nbytes() == 60


@pytest.mark.parametrize("place", PLACES)
def test_a_write_that_stops_leaves_a_torn_segment(
    folder: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Interrupted anywhere before its end, a write is seen not to have ended."""
    segment = Segment.create(folder, NAME, 10 * PAGE)
    write(segment, 1.0, 1)

    def stop(reached: str) -> None:
        if reached == place:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(segment_module, "reached", stop)
        with pytest.raises(Stopped):
            write(segment, 2.0, 2)
    with pytest.raises(SnapshotError, match="torn"):
        read(segment.path)
    write(segment, 3.0, 3)
    assert float(read(segment.path).content()["a"][0]) == 3.0


def test_modes_of_torch_do_not_matter(folder: Path) -> None:
    """A segment can be written under inference mode, and with another default device."""
    segment = Segment.create(folder, NAME, 10 * PAGE)
    with torch.inference_mode():
        write(segment, 1.0, 1)
    write(segment, 2.0, 2)
    with torch.device("meta"):
        tensors = read(segment.path).tensors
    assert float(tensors[0][0]) == 2.0
    with torch.device("meta"):
        skeleton, tensors = flatten([torch.ones(0, 3, device="cpu"), "x"])
        segment.write(skeleton, tensors, epoch=0, global_step=3, sequence=3)
        assert read(segment.path).content()[0].shape == (0, 3)


def test_parameters_that_want_gradients_are_copied(folder: Path) -> None:
    """Copying neither tracks gradients nor fails for those that want them."""
    weight = torch.nn.Parameter(torch.ones(4))
    skeleton, tensors = flatten({"w": weight})
    segment = Segment.create(folder, NAME, size_needed(skeleton, tensors))
    segment.write(skeleton, tensors, epoch=0, global_step=1, sequence=1)
    assert torch.equal(segment.content()["w"], torch.ones(4))
    assert weight.grad is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tensors_of_a_device_are_copied(folder: Path) -> None:
    """What lies on a device is in memory, whole, once the write returns."""
    x = torch.arange(1e6, device="cuda")
    skeleton, tensors = flatten({"x": x, "y": [torch.ones(3, device="cuda")]})
    segment = Segment.create(folder, NAME, size_needed(skeleton, tensors))
    segment.write(skeleton, tensors, epoch=0, global_step=1, sequence=1)
    assert torch.equal(read(segment.path).content()["x"], x.cpu())


def test_a_device_is_waited_for_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies from a device do not wait each for itself, but all together before the end."""
    calls: list[str] = []

    class OnDevice(torch.Tensor):
        is_cuda = True
        device = torch.device("cuda:0")

    monkeypatch.setattr(torch.cuda, "synchronize", lambda d: calls.append(f"wait {d}"))
    monkeypatch.setattr(segment_module, "reached", calls.append)
    tensors = [torch.ones(3).as_subclass(OnDevice) for _ in range(2)]
    segment = Segment.create(folder, NAME, 2 * PAGE)
    calls.clear()
    segment.write(b"{}", tensors, epoch=0, global_step=1, sequence=1)
    assert calls == [
        "wiped",
        "copying",
        "copying",
        "wait cuda:0",
        "described",
        "committed",
    ]
