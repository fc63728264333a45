"""The files that tell how an attempt goes, and locks; for the runner, so nothing heavy.

A file of an attempt, ``<job_id>.job``, is a line for each thing that happened: a word, then
``key=value``, parted by tabs. It is written in full length when it is made, so that the end
can be noted on a disk that has become full.
"""

from __future__ import annotations

import errno
import fcntl
import os

__all__ = ["append_line", "create_file", "parse_lines", "tail", "try_lock"]

_FILE_BYTES = 4096
_PARTLY = "only a part of it could be written: is the disk full?"


def create_file(path: str, word: str, fields: dict[str, object]) -> None:
    """Make the file of an attempt, with its first line and room for the others.

    Raises:
        OSError: If it is there, or cannot be written in full length; it is not there then.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        data = _line(word, fields).ljust(_FILE_BYTES)
        if os.write(fd, data) < len(data):
            raise OSError(errno.ENOSPC, _PARTLY)  # noqa: TRY301 -- to be taken back, too
    except OSError as error:
        error.filename = path  # which a write does not say
        os.unlink(path)  # noqa: PTH108 -- pathlib loads much
        raise
    finally:
        os.close(fd)


def append_line(path: str, word: str, fields: dict[str, object]) -> None:
    """Add a line to the file of an attempt; for who holds the experiment's lock.

    Raises:
        OSError: If it cannot be written.
    """
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        end = os.pread(fd, 1 << 20, 0).rfind(b"\n") + 1
        line = _line(word, fields)
        if os.pwrite(fd, line, end) < len(line):
            raise OSError(errno.ENOSPC, _PARTLY, path)
    finally:
        os.close(fd)


def parse_lines(data: bytes) -> dict[str, dict[str, str]]:
    """Return the fields of each line by its word; what has no newline is left out."""
    lines = {}
    for line in data.split(b"\n")[:-1]:
        word, *fields = line.decode("utf-8", "replace").split("\t")
        lines[word] = {key: value for key, _, value in (f.partition("=") for f in fields)}
    return lines


def try_lock(path: str) -> int | None:
    """Take the lock *path*; return what holds it until it is closed, None if others do.

    Raises:
        OSError: If there can be no such file.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except OSError:
        os.close(fd)
        raise
    return fd


def _line(word: str, fields: dict[str, object]) -> bytes:
    parts = [word]
    for key, value in fields.items():
        text = "".join(c if c.isprintable() else " " for c in str(value))
        parts.append(f"{key}={text}")
    return ("\t".join(parts) + "\n").encode("utf-8", "replace")


def tail(path: str) -> bytes:
    """Return the last of a file."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size_bytes = os.fstat(fd).st_size
        return os.pread(fd, _FILE_BYTES, max(0, size_bytes - _FILE_BYTES))
    finally:
        os.close(fd)
