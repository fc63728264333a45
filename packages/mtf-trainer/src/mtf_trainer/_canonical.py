"""Digests of plain data and tensors, by an encoding that is the same everywhere.

The encoding is free of prefixes, so two values with the same encoding are the same;
``u64`` is eight bytes, the lowest first.

======== ===========================================================================
None     ``N``
booleans ``T``, ``F``
int      ``I``, u64 length, two's complement, lowest byte first, as short as it can be
float    ``D``, IEEE 754 binary64, lowest byte first: each NaN and zero is its own
str      ``S``, u64 length, UTF-8
bytes    ``B``, u64 length, themselves
list     ``L``, u64 length, the items; a tuple is a list
dict     ``M``, u64 length, then each key and value, sorted by the encoding of the key
tensor   ``X``, name of the dtype as str, u64 number of dimensions, each as u64, then
         the elements in row-major order, lowest byte first
======== ===========================================================================

Where a tensor lies, its strides, and whether it needs a gradient are not in it.
"""

from __future__ import annotations

import ctypes
import hashlib
import struct
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final

import torch

__all__ = ["digest_of"]

_CHUNK_BYTES: Final = 1 << 24
# A damaged or hostile file may hold itself, or name one list a billion times over.
_MAX_DEPTH: Final = 64
_MAX_ENTRIES: Final = 50_000_000
_MOST_TOLD: Final = 8


def digest_of(value: object, kind: Sequence[int | str] = ()) -> str:
    """Return the SHA-256 of the encoding of *value*, in hexadecimal.

    With a *kind*, it is that of the list of its items and *value*.

    >>> digest_of({"b": 1, "a": [2.0]}) == digest_of({"a": (2.0,), "b": 1})
    True

    Raises:
        TypeError: If *value* holds what has no encoding; it says where.
        ValueError: If it is nested too deep, or without end.
    """
    sha256 = hashlib.sha256()
    encoder = _Encoder(sha256.update)
    if kind:
        sha256.update(b"L" + struct.pack("<Q", len(kind) + 1))
        for item in kind:
            encoder.feed(item)
    encoder.feed(value)
    return sha256.hexdigest()


class _Encoder:
    """Hands the canonical encoding of plain data on, piece by piece."""

    def __init__(self, update: Callable[[Any], object]) -> None:
        self._update = update
        self._path: list[object] = []
        self._num_entries = 0

    def feed(self, value: object) -> None:  # noqa: C901 - one case a type
        update = self._update
        if isinstance(value, str):
            update(_framed(b"S", value.encode("utf-8", "surrogatepass")))
        elif isinstance(value, torch.Tensor):
            self._feed_tensor(value)
        elif value is None:
            update(b"N")
        elif value is True or value is False:
            update(b"T" if value else b"F")
        elif isinstance(value, int):
            num_bytes = ((value if value >= 0 else ~value).bit_length() + 8) // 8
            update(_framed(b"I", value.to_bytes(num_bytes, "little", signed=True)))
        elif isinstance(value, float):
            update(b"D" + struct.pack("<d", value))
        elif isinstance(value, bytes):
            update(_framed(b"B", value))
        elif isinstance(value, list | tuple):
            self._enter(b"L", len(value))
            for index, item in enumerate(value):
                self._feed_under(index, item)
        elif isinstance(value, Mapping):
            self._enter(b"M", len(value))
            keys = [(_encoded(key), key) for key in value]
            for encoded, key in sorted(keys, key=itemgetter(0)):
                update(encoded)
                self._feed_under(key, value[key])
        else:
            raise self._refusal(type(value).__name__)

    def _enter(self, tag: bytes, length: int) -> None:
        self._num_entries += length
        if len(self._path) >= _MAX_DEPTH or self._num_entries > _MAX_ENTRIES:
            message = f"{self._where()}: nested too deep, or without end"
            raise ValueError(message)
        self._update(tag + struct.pack("<Q", length))

    def _feed_under(self, key: object, value: object) -> None:
        self._path.append(key)
        self.feed(value)
        self._path.pop()

    def _feed_tensor(self, tensor: torch.Tensor) -> None:
        if (
            type(tensor) not in (torch.Tensor, torch.nn.Parameter)
            or tensor.layout is not torch.strided
            or tensor.is_quantized
            or tensor.is_meta
        ):
            kind = type(tensor).__name__
            raise self._refusal(" ".join((kind, str(tensor.layout), str(tensor.device))))
        name = str(tensor.dtype).removeprefix("torch.").encode()
        shape = struct.pack(f"<{1 + tensor.dim()}Q", tensor.dim(), *tensor.shape)
        self._update(b"X" + _framed(b"S", name) + shape)
        for piece in _pieces(tensor.detach().resolve_conj().resolve_neg()):
            on_cpu = _lowest_first(piece.cpu())
            num_bytes = on_cpu.numel() * on_cpu.element_size()
            if num_bytes:
                self._update((ctypes.c_char * num_bytes).from_address(on_cpu.data_ptr()))

    def _where(self) -> str:
        deeper = ["..."] if len(self._path) > _MOST_TOLD else []
        return ".".join([str(key) for key in self._path[:_MOST_TOLD]] + deeper)

    def _refusal(self, kind: str) -> TypeError:
        needed = "a checkpoint holds plain data and dense tensors"
        return TypeError(f"{self._where()}: {needed}, not a {kind}")


def _framed(tag: bytes, data: bytes) -> bytes:
    return tag + struct.pack("<Q", len(data)) + data


def _encoded(key: object) -> bytes:
    pieces: list[bytes] = []
    _Encoder(pieces.append).feed(key)
    return b"".join(pieces)


def _pieces(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Give the elements of *tensor*, row-major, in pieces of one dimension.

    Only what is not contiguous is copied, a piece at a time.
    """
    width = tensor.element_size()
    if tensor.is_contiguous():
        flat, step = tensor.view(-1), max(1, _CHUNK_BYTES // width)
        for start in range(0, len(flat), step):
            yield flat[start : start + step]
    elif tensor[0].numel() * width > _CHUNK_BYTES:
        for row in range(len(tensor)):
            yield from _pieces(tensor[row])
    else:
        step = _CHUNK_BYTES // (tensor[0].numel() * width)
        for start in range(0, len(tensor), step):
            yield tensor[start : start + step].reshape(-1).contiguous()


def _lowest_first(tensor: torch.Tensor) -> torch.Tensor:
    """Return *tensor*, of one dimension, with the lowest byte of each number first."""
    if sys.byteorder == "little":
        return tensor
    width = tensor.element_size() // (2 if tensor.is_complex() else 1)
    return tensor.view(torch.uint8).view(-1, width).flip(1).reshape(-1)
