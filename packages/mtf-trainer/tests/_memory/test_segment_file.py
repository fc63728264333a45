from __future__ import annotations

import os
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtf_trainer._memory import segment_file
from mtf_trainer._memory.flat import flatten
from mtf_trainer._memory.segment import Segment, size_needed
from mtf_trainer._memory.segment_file import (
    COMMIT_AT,
    OWNER_AT,
    PAGE,
    Header,
    Name,
    boot_id,
    is_alive,
    own_process,
    owner_of,
    read,
)
from mtf_trainer.errors import SnapshotError

RUN_ID = "0123456789abcdef" * 2
NAME = Name(os.getuid(), RUN_ID, 3, 0)
CONTENT: dict[str, Any] = {
    "model": {"weight": torch.arange(6.0)},
    "resume": {"phase": "INIT"},
}


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Return a folder in memory."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.fixture
def path(folder: Path) -> Iterator[Path]:
    """Return a file that holds `CONTENT`."""
    segment = written(folder)
    yield segment.path
    segment.unlink()


def written(folder: Path, name: Name = NAME) -> Segment:
    """Write `CONTENT`."""
    skeleton, tensors = flatten(CONTENT)
    segment = Segment.create(folder, name, size_needed(skeleton, tensors))
    segment.write(skeleton, tensors, epoch=2, global_step=7, sequence=1)
    return segment


def header_of(path: Path) -> Header:
    """Return what *path* says of itself."""
    names = Header.__dataclass_fields__
    found = segment_file._HEADER.unpack_from(path.read_bytes())
    return Header(**dict(zip(names, found, strict=True)))


def describe(path: Path, header: Header) -> None:
    """Have *path* say *header* of itself, and commit that."""
    packed, commit = header.pack()
    patch(path, 0, packed)
    patch(path, COMMIT_AT, commit)


def patch(path: Path, at: int, data: bytes) -> None:
    """Change bytes of *path*."""
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def test_what_was_written_is_read(path: Path) -> None:
    """Content, counters and owner are those that were written."""
    committed = read(path)
    content = committed.content()
    assert torch.equal(content["model"]["weight"], CONTENT["model"]["weight"])
    assert content["resume"] == CONTENT["resume"]
    assert (committed.epoch, committed.global_step, committed.sequence) == (2, 7, 1)
    assert committed.owner == owner_of(path)
    assert committed.owner[0] == os.getpid()


def test_changing_what_was_read_leaves_the_file(path: Path) -> None:
    """A reader that writes to its tensors changes its own copy of the page alone."""
    read(path).content()["model"]["weight"].zero_()
    again = read(path).content()
    assert torch.equal(again["model"]["weight"], CONTENT["model"]["weight"])


def test_what_was_read_outlives_the_file(folder: Path) -> None:
    """Tensors keep the memory mapped after the file is gone and all else is forgotten."""
    segment = written(folder)
    weight = read(segment.path).content()["model"]["weight"]
    segment.unlink()
    del segment
    assert torch.equal(weight, CONTENT["model"]["weight"])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda h: replace(h, version=2), "has version 2, not 1"),
        (lambda h: replace(h, magic=b"ANOTHER!"), "torn"),
        (lambda h: replace(h, uid=h.uid + 1), "another's"),
        (lambda h: replace(h, rank=4), "another's: it says .*-4-0"),
        (lambda h: replace(h, run_id=b"f" * 32), "another's"),
        (lambda h: replace(h, run_id=b"\xff" * 32), "another's"),
        (lambda h: replace(h, boot_id=b"0" * 36), "before this machine was started"),
        (lambda h: replace(h, size_bytes=h.size_bytes + 1), "damaged"),
        (lambda h: replace(h, data_bytes=2**64 - 1), "damaged"),
        (lambda h: replace(h, skeleton_bytes=2**64 - 1), "damaged"),
        (lambda h: replace(h, data_bytes=0), "damaged: its skeleton"),
        (lambda h: replace(h, skeleton_crc=0), "damaged: its skeleton"),
    ],
)
def test_a_header_that_says_something_else_is_refused(
    path: Path, change: Callable[[Header], Header], told: str
) -> None:
    """Whatever a committed header claims is checked, and the error says what is wrong."""
    describe(path, change(header_of(path)))
    with pytest.raises(SnapshotError, match=told):
        read(path)


@pytest.mark.parametrize(
    ("skeleton", "told"),
    [
        (b"[]", "not a skeleton"),
        (b'{"tensors":[["float32",[99]]],"tree":{"tensor":0}}', "do not fit"),
        (b'{"tensors":[["float32",[6]]],"tree":{"no":0}}', "not a skeleton"),
        (
            b'{"tensors":[["float32",[6]],["int8",[%d,%d,0]]],"tree":0}' % (2**61, 2**61),
            "damaged",
        ),
    ],
)
def test_a_hostile_skeleton_is_refused(path: Path, skeleton: bytes, told: str) -> None:
    """A skeleton that asks for what is not there does not get it."""
    header = header_of(path)
    with path.open("r+b") as file:
        file.truncate(max(header.size_bytes, PAGE + header.data_bytes + len(skeleton)))
    size = path.stat().st_size
    patch(path, PAGE + header.data_bytes, skeleton)
    crc = zlib.crc32(skeleton)
    describe(
        path,
        replace(header, size_bytes=size, skeleton_bytes=len(skeleton), skeleton_crc=crc),
    )
    with pytest.raises(SnapshotError, match=told):
        read(path).content()


@pytest.mark.parametrize("at", [0, 8, 16, 100, COMMIT_AT, COMMIT_AT + 19])
def test_a_changed_byte_of_the_header_is_a_torn_write(path: Path, at: int) -> None:
    """No byte of the header or of its record can differ."""
    before = path.read_bytes()[at]
    patch(path, at, bytes([before ^ 1]))
    with pytest.raises(SnapshotError, match=r"torn|version"):
        read(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(
    noise=st.binary(max_size=6000),
    at=st.integers(0, 6000),
    commits=st.booleans(),
)
def test_random_bytes_never_do_harm(
    folder: Path, noise: bytes, at: int, *, commits: bool
) -> None:
    """Noise anywhere in a file ends in a `SnapshotError`, or in a content."""
    segment = written(folder)
    try:
        patch(segment.path, at, noise)
        if commits and segment.path.stat().st_size >= PAGE:
            packed = segment.path.read_bytes()[: segment_file._HEADER.size]
            sequence = struct.unpack_from("<Q", packed, 88)[0]
            commit = struct.pack("<8sQI", b"MTF-SNAP", sequence, zlib.crc32(packed))
            patch(segment.path, COMMIT_AT, commit)
        try:
            read(segment.path).content()
        except SnapshotError:
            return
    finally:
        segment.unlink()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(noise=st.binary(max_size=2 * PAGE))
def test_a_file_of_noise_is_refused(folder: Path, noise: bytes) -> None:
    """A file that only has the right name is no snapshot."""
    path = folder / str(replace(NAME, slot=9))
    path.write_bytes(noise)
    path.chmod(0o600)
    with pytest.raises(SnapshotError):
        read(path)


def test_files_that_are_none_are_refused(folder: Path, path: Path) -> None:
    """Links, pipes, folders, missing files and other names are refused, at once."""
    other = folder / str(replace(NAME, slot=5))
    other.symlink_to(path)
    with pytest.raises(SnapshotError, match="cannot be used: Too many levels"):
        read(other)
    other.unlink()
    os.mkfifo(other, 0o600)
    with pytest.raises(SnapshotError, match="it is not a file"):
        read(other)
    assert owner_of(other) == (0, 0)
    other.unlink()
    other.mkdir(0o700)
    with pytest.raises(SnapshotError, match="it is not a file"):
        read(other)
    other.rmdir()
    with pytest.raises(SnapshotError, match="No such file"):
        read(other)
    with pytest.raises(SnapshotError, match="not named as"):
        read(path.rename(folder / "other"))
    (folder / "other").rename(path)


def test_a_file_that_others_may_open_is_refused(path: Path) -> None:
    """What another user could have written to is not believed."""
    path.chmod(0o620)
    with pytest.raises(SnapshotError, match="others than its owner"):
        read(path)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_refused(path: Path) -> None:
    """Whose file it is counts, not what its name or header says."""
    os.chown(path, 12345, -1)
    with pytest.raises(SnapshotError, match="belongs to user 12345"):
        read(path)


def test_a_name_of_another_user_is_refused(folder: Path) -> None:
    """A file of ours that is named and described as another's is refused."""
    segment = written(folder, replace(NAME, uid=NAME.uid + 1))
    with pytest.raises(SnapshotError, match="another's"):
        read(segment.path)
    segment.unlink()


def test_a_file_cut_short_is_refused(path: Path) -> None:
    """Less than a page, or less than it should have, is refused before it is used."""
    with path.open("r+b") as file:
        file.truncate(PAGE)
    with pytest.raises(SnapshotError, match="damaged: it has 4,096 bytes"):
        read(path)
    with path.open("r+b") as file:
        file.truncate(PAGE - 1)
    with pytest.raises(SnapshotError, match="too short"):
        read(path)
    assert owner_of(path) == (0, 0)


@pytest.mark.parametrize(
    "name",
    [
        "",
        f"mtf-0-{RUN_ID}-0",
        f"mtf-0-{RUN_ID}-0-steps",
        f"mtf-0-{RUN_ID[1:]}-0-0",
        f"mtf-0-{RUN_ID}-0-0\n",
        f"mtf-0-{RUN_ID}-\u0661-0",
        f"mtf-0-{RUN_ID.upper()}-0-0",
        f"mtf-0-../../etc/passwd{RUN_ID[:18]}-0-0",
    ],
)
def test_other_names_are_none(name: str) -> None:
    """Only names of the one form are taken for a segment's."""
    assert Name.parse(name) is None


def test_a_name_is_read_as_it_was_written() -> None:
    """Every part of a name comes back."""
    assert Name.parse(str(NAME)) == NAME


def test_a_process_is_known_by_its_start() -> None:
    """A process that runs is alive; its id with another start, or no process, is not."""
    pid, start = struct.unpack("<QQ", own_process())
    assert is_alive((pid, start))
    assert not is_alive((pid, start + 1))
    assert not is_alive((0, 0))
    assert not is_alive((2**63, start))


def test_a_process_that_ended_and_waits_to_be_reaped_is_not_alive() -> None:
    """A killed process is gone, though its parent did not ask for its exit code yet."""
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    start = segment_file._start_of(pid)
    os.waitpid(pid, 0)
    assert start is None


def test_owner_and_boot_have_their_places(path: Path) -> None:
    """The owner lies apart from the checked header, the boot in it."""
    assert path.read_bytes()[OWNER_AT : OWNER_AT + 16] == own_process()
    assert header_of(path).boot_id == boot_id()
    assert len(boot_id()) == 36
