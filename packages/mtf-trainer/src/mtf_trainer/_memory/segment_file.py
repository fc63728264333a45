"""The file that holds one whole content in shared memory: its form, and reading it.

It holds a page of header, the bytes of the tensors, each aligned, and the skeleton (see
`flatten`). Apart in the header's page lie the commit record, which has a checksum of the
header, and the process that made the file.

A file is not trusted because of its name. It must be a regular file of this user, open to
nobody else, and every length in it is checked before use. There is no checksum of the
tensors: it would cost more than copying them (500 MB took 42 ms to copy, 19 ms to add up
and 120 ms for a CRC), and memory keeps what was written for as long as the machine runs;
files of an earlier boot are refused.
"""

from __future__ import annotations

import math
import mmap
import os
import re
import stat
import struct
import zlib
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from mtf_trainer._memory.flat import TensorSpec, tensor_specs, unflatten
from mtf_trainer.errors import SnapshotError

__all__ = [
    "ALIGN",
    "COMMIT_AT",
    "COMMIT_BYTES",
    "NOBODY",
    "OWNER_AT",
    "PAGE",
    "Committed",
    "Header",
    "Name",
    "boot_id",
    "is_alive",
    "layout",
    "own_process",
    "owner_of",
    "read",
    "tensors_at",
]

PAGE = 4096
ALIGN = 64
COMMIT_AT = 1024
OWNER_AT = 2048
_VERSION = 1
_MAGIC = b"MTF-SNAP"
_HEADER = struct.Struct("<8sIIQ32s36sQQQQQQQI")
_COMMIT = struct.Struct("<8sQI")
_OWNER = struct.Struct("<QQ")
_NAME = re.compile(r"mtf-(\d{1,10})-([0-9a-f]{32})-(\d{1,9})-(\d{1,3})", re.ASCII)
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

COMMIT_BYTES = _COMMIT.size
NOBODY = bytes(_OWNER.size)

Specs = Sequence[tuple[torch.dtype, Sequence[int]]]


@dataclass(frozen=True, slots=True)
class Name:
    """What the name of such a file says."""

    uid: int
    run_id: str
    rank: int
    slot: int

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """Return what *name* says; None if it is no such name.

        >>> Name.parse("mtf-1000-0123456789abcdef0123456789abcdef-2-0").rank
        2
        """
        found = _NAME.fullmatch(name)
        if found is None:
            return None
        return cls(int(found[1]), found[2], int(found[3]), int(found[4]))

    def __str__(self) -> str:
        return f"mtf-{self.uid}-{self.run_id}-{self.rank}-{self.slot}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a file says of itself."""

    magic: bytes = _MAGIC
    version: int = _VERSION
    uid: int
    rank: int
    run_id: bytes
    boot_id: bytes
    sequence: int
    epoch: int
    global_step: int
    taken_ns: int
    size_bytes: int
    data_bytes: int
    skeleton_bytes: int
    skeleton_crc: int

    def pack(self) -> tuple[bytes, bytes]:
        """Return its bytes, and those of the commit record for it."""
        packed = _HEADER.pack(*astuple(self))
        return packed, _COMMIT.pack(_MAGIC, self.sequence, zlib.crc32(packed))


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """A whole content that was found.

    Args:
        path: Where.
        epoch: Epochs finished.
        global_step: Optimizer steps taken.
        sequence: Its number: greater than that of all that were taken before.
        taken_ns: When, in nanoseconds since the machine started.
        owner: The process that wrote it: its id and start; zeros if it let go of it.
        skeleton: As `flatten` gave it.
        tensors: They lie in the mapping; changing them does not change the file.
    """

    path: Path
    epoch: int
    global_step: int
    sequence: int
    taken_ns: int
    owner: tuple[int, int]
    skeleton: bytes
    tensors: list[Tensor]

    def content(self, *, copy: bool = False) -> Any:
        """Return the content; its tensors lie in the mapping, which they keep alive.

        Args:
            copy: Whether they are to be copies instead.

        Raises:
            SnapshotError: If it is damaged.
        """
        tensors = [each.clone() for each in self.tensors] if copy else self.tensors
        try:
            return unflatten(self.skeleton, tensors)
        except ValueError as error:
            raise _refusal(self.path, f"is damaged: {error}") from error


def read(path: Path) -> Committed:
    """Map the file at *path* for reading.

    Raises:
        SnapshotError: If it is not whole, or not one that this user wrote since the
            machine started; says why.
    """
    name = Name.parse(path.name)
    if name is None:
        raise _refusal(path, "is not named as a snapshot is")
    try:
        memory = _map(path)
    except OSError as error:
        raise _refusal(path, f"cannot be used: {error.strerror or error}") from error
    header = _checked_header(path, name, memory)
    skeleton = bytes(memory[PAGE + header.data_bytes :][: header.skeleton_bytes])
    try:
        if zlib.crc32(skeleton) != header.skeleton_crc:
            message = "its skeleton is not the one that was written"
            raise ValueError(message)  # noqa: TRY301 - told as the others are
        tensors = _tensors(memory, tensor_specs(skeleton), header.data_bytes)
    except (ValueError, RuntimeError) as error:
        raise _refusal(path, f"is damaged: {error}") from error
    return Committed(
        path=path,
        epoch=header.epoch,
        global_step=header.global_step,
        sequence=header.sequence,
        taken_ns=header.taken_ns,
        owner=_OWNER.unpack_from(memory, OWNER_AT),
        skeleton=skeleton,
        tensors=tensors,
    )


def owner_of(path: Path) -> tuple[int, int]:
    """Return which process made *path*, whole or not: its id and start; zeros if unknown."""
    try:
        return _OWNER.unpack_from(_map(path), OWNER_AT)
    except OSError:
        return 0, 0


def own_process() -> bytes:
    """Return this process, as a file names its owner."""
    pid = os.getpid()
    return _OWNER.pack(pid, _start_of(pid) or 0)


def is_alive(owner: tuple[int, int]) -> bool:
    """Tell whether the process *owner* runs."""
    pid, start = owner
    return pid != 0 and _start_of(pid) == start


def boot_id() -> bytes:
    """Return what names the time since this machine was started."""
    return _BOOT_ID.read_bytes().strip()


def layout(specs: Specs) -> tuple[list[int], int]:
    """Return where in the file each tensor lies, and the bytes of all together."""
    offsets = []
    end = PAGE
    for dtype, shape in specs:
        offsets.append(end)
        size_bytes = math.prod(shape) * dtype.itemsize
        end += -(-size_bytes // ALIGN) * ALIGN
    return offsets, end - PAGE


def tensors_at(memory: memoryview, specs: Specs, offsets: Sequence[int]) -> list[Tensor]:
    """Return tensors that are parts of *memory*, and keep it mapped while they live."""
    tensors = []
    with torch.inference_mode(mode=False):
        for (dtype, shape), offset in zip(specs, offsets, strict=True):
            count = math.prod(shape)
            if count:
                # Each has a storage of its own: torch.save writes whole storages.
                flat = torch.frombuffer(memory, dtype=dtype, count=count, offset=offset)
            else:
                flat = torch.empty(0, dtype=dtype, device="cpu")
            tensors.append(flat.view(torch.Size(shape)))
    return tensors


def _tensors(
    memory: memoryview, specs: list[TensorSpec], data_bytes: int
) -> list[Tensor]:
    offsets, needed_bytes = layout(specs)
    if needed_bytes != data_bytes:
        message = "its tensors do not fit into it"
        raise ValueError(message)
    return tensors_at(memory, specs, offsets)


def _start_of(pid: int) -> int | None:
    """Return when *pid* started, in ticks since boot; None if no such process runs."""
    try:
        told = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace")
    except OSError:
        return None
    fields = told.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def _map(path: Path) -> memoryview:
    # A FIFO that lies there must not hold us up: hence O_NONBLOCK.
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        problem = ""
        if not stat.S_ISREG(found.st_mode):
            problem = "it is not a file"
        elif found.st_uid != os.getuid():
            problem = f"it belongs to user {found.st_uid}"
        elif found.st_mode & 0o077:
            problem = "others than its owner may open it"
        elif found.st_size < PAGE:
            problem = "it is too short"
        if problem:
            raise OSError(problem)
        return memoryview(mmap.mmap(fd, found.st_size, access=mmap.ACCESS_COPY))
    finally:
        os.close(fd)


def _checked_header(path: Path, name: Name, memory: memoryview) -> Header:
    names = Header.__dataclass_fields__
    found = _HEADER.unpack_from(memory)
    header = Header(**dict(zip(names, found, strict=True)))
    _, commit = header.pack()
    if header.magic == _MAGIC and header.version != _VERSION:
        raise _refusal(path, f"has version {header.version}, not {_VERSION}")
    if header.magic != _MAGIC or memory[COMMIT_AT:][:COMMIT_BYTES] != commit:
        raise _refusal(path, "is torn: its process did not come to the end of writing it")
    says = Name(
        header.uid, header.run_id.decode("ascii", "replace"), header.rank, name.slot
    )
    if says != name or name.uid != os.getuid():
        raise _refusal(path, f"is another's: it says that it is {says}")
    if header.boot_id != boot_id():
        raise _refusal(path, "was taken before this machine was started")
    end = PAGE + header.data_bytes + header.skeleton_bytes
    if header.size_bytes != len(memory) or end > len(memory):
        raise _refusal(path, f"is damaged: it has {len(memory):,} bytes")
    return header


def _refusal(path: Path, problem: str) -> SnapshotError:
    return SnapshotError(f"the snapshot {path} {problem}")
