"""A file in shared memory that this process writes whole contents to, one at a time.

The process can be killed at any instant: the commit record is wiped before the first
other byte changes, and written when the last has. So a record that fits says that all
copying had ended.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from mtf_trainer._memory.flat import TensorSpec, unflatten
from mtf_trainer._memory.segment_file import (
    ALIGN,
    COMMIT_AT,
    COMMIT_BYTES,
    NOBODY,
    OWNER_AT,
    PAGE,
    Header,
    Name,
    boot_id,
    layout,
    own_process,
    tensors_at,
)

__all__ = ["Segment", "reached", "size_needed"]

_POPULATE_WRITE = 23


class Segment:
    """Made by `create`; its memory stays mapped while a tensor of `content` lives.

    Attributes:
        path: Where the file lies.
        size_bytes: How large it is.
        sequence: The number that the last call of `write` was given.
    """

    def __init__(self, path: Path, name: Name, memory: memoryview) -> None:
        self.path = path
        self.size_bytes = len(memory)
        self.sequence = 0
        self._name = name
        self._memory = memory
        self._skeleton = b""
        self._specs: list[TensorSpec] = []
        self._views: list[Tensor] = []
        self._data_bytes = 0

    @classmethod
    def create(cls, folder: Path, name: Name, size_bytes: int) -> Self:
        """Make a new file, and claim all its memory.

        Raises:
            FileExistsError: If there is one of that name.
            OSError: If there is no room, or it cannot be made.
        """
        path = folder / str(name)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(path, flags, 0o600)
        try:
            os.pwrite(fd, own_process().ljust(PAGE - OWNER_AT, b"\0"), OWNER_AT)
            reached("created")
            # Writing to a page that the file system cannot give is a SIGBUS.
            os.posix_fallocate(fd, 0, size_bytes)
            memory = memoryview(mmap.mmap(fd, size_bytes))
        except BaseException:
            path.unlink()
            raise
        finally:
            os.close(fd)
        reached("claimed")
        return cls(path, name, memory)

    def prefault(self) -> None:
        """Have the system map every page now, where it can (Linux 5.14)."""
        # Not by way of the mmap module, which keeps the GIL meanwhile.
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        whole = torch.frombuffer(self._memory, dtype=torch.uint8)
        madvise(whole.data_ptr(), self.size_bytes, _POPULATE_WRITE)

    def write(
        self,
        skeleton: bytes,
        tensors: Sequence[Tensor],
        *,
        epoch: int,
        global_step: int,
        sequence: int,
    ) -> None:
        """Copy *tensors* into the file; at the end it holds a whole content again."""
        record = self._memory[COMMIT_AT : COMMIT_AT + COMMIT_BYTES]
        record[:] = bytes(COMMIT_BYTES)
        reached("wiped")
        with torch.inference_mode(mode=False), torch.no_grad():
            data_bytes = self._copy(tensors)
        self._memory[PAGE + data_bytes :][: len(skeleton)] = skeleton
        header, commit = Header(
            uid=self._name.uid,
            rank=self._name.rank,
            run_id=self._name.run_id.encode(),
            boot_id=boot_id(),
            sequence=sequence,
            epoch=epoch,
            global_step=global_step,
            taken_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME),
            size_bytes=self.size_bytes,
            data_bytes=data_bytes,
            skeleton_bytes=len(skeleton),
            skeleton_crc=zlib.crc32(skeleton),
        ).pack()
        self._memory[: len(header)] = header
        reached("described")
        record[:] = commit
        self.sequence, self._skeleton = sequence, skeleton
        reached("committed")

    def _copy(self, tensors: Sequence[Tensor]) -> int:
        specs: list[TensorSpec] = [(each.dtype, each.shape) for each in tensors]
        if specs != self._specs:
            offsets, self._data_bytes = layout(specs)
            self._views = tensors_at(self._memory, specs, offsets)
            self._specs = specs
        devices = set()
        for view, tensor in zip(self._views, tensors, strict=True):
            view.copy_(tensor, non_blocking=tensor.is_cuda)
            if tensor.is_cuda:
                devices.add(tensor.device)
            reached("copying")
        for device in devices:
            torch.cuda.synchronize(device)
        return self._data_bytes

    def content(self) -> Any:
        """Return what was written; the tensors are the memory itself.

        They change when the segment is written again.
        """
        offsets, _ = layout(self._specs)
        return unflatten(self._skeleton, tensors_at(self._memory, self._specs, offsets))

    def disown(self) -> None:
        """Let another process use the file while this one lives."""
        self._memory[OWNER_AT : OWNER_AT + len(NOBODY)] = NOBODY

    def unlink(self) -> None:
        """Delete the file; the memory goes with the last tensor in it."""
        self.path.unlink(missing_ok=True)


def size_needed(skeleton: bytes, tensors: Sequence[Tensor]) -> int:
    """Return how large a file is needed, in bytes."""
    aligned = sum(-(-each.nbytes // ALIGN) for each in tensors)
    return PAGE + ALIGN * aligned + len(skeleton)


def reached(place: str) -> None:
    """Do nothing; tests end the process here."""
