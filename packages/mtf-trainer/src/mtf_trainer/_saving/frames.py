"""Messages between two processes: a length, then JSON, over a pipe."""

from __future__ import annotations

import json
import os
import struct
from typing import Any

__all__ = ["Unpacker", "frame", "receive", "send"]

_LENGTH = struct.Struct("<I")
_MOST_BYTES = 2**24


def frame(message: dict[str, Any]) -> bytes:
    """Return *message* as bytes to send.

    Raises:
        TypeError: If it is not plain data.
    """
    body = json.dumps(message).encode()
    return _LENGTH.pack(len(body)) + body


def send(fd: int, data: bytes) -> None:
    """Write all of *data*."""
    while data:
        data = data[os.write(fd, data) :]


def receive(fd: int) -> dict[str, Any] | None:
    """Return the next message; None at the end.

    Raises:
        ValueError: If it is no message.
    """
    unpacker = Unpacker()
    while (message := unpacker.next()) is None:
        data = os.read(fd, unpacker.missing())
        if not data:
            return None
        unpacker.feed(data)
    return message


class Unpacker:
    """Finds messages in bytes that come piece by piece."""

    def __init__(self) -> None:
        self._data = b""

    def feed(self, data: bytes) -> None:
        """Add what came."""
        self._data += data

    def missing(self) -> int:
        """Return how many bytes of the next message are known to be missing."""
        have = len(self._data)
        return (_LENGTH.size if have < _LENGTH.size else self._end()) - have

    def next(self) -> dict[str, Any] | None:
        """Return the next message, if it is complete.

        Raises:
            ValueError: If it is no message.
        """
        if len(self._data) < _LENGTH.size or len(self._data) < (end := self._end()):
            return None
        body, self._data = self._data[_LENGTH.size : end], self._data[end:]
        message = json.loads(body)
        if not isinstance(message, dict):
            problem = "a message that is no object"
            raise ValueError(problem)  # noqa: TRY004 - a broken message, not an argument
        return message

    def _end(self) -> int:
        length: int = _LENGTH.unpack_from(self._data)[0]
        if length > _MOST_BYTES:
            problem = f"a message of {length:,} bytes"
            raise ValueError(problem)
        return _LENGTH.size + length
