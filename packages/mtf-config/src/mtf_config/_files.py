"""Read and write config files: bounded, atomic, with errors that name the path."""

from __future__ import annotations

import os
import secrets
import stat
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from mtf_config import _yaml
from mtf_config.errors import ConfigFileError
from mtf_config.origin import KeyPath, Origin, Origins

__all__ = ["parse", "read", "read_bytes", "write_atomically"]

_CACHED_BYTES = 1 << 13


def read(path: Path, source: str, at: KeyPath = ()) -> tuple[dict[str, Any], Origins]:
    """Read the YAML mapping in *path*; the caller must not change what it gets.

    Args:
        path: The file.
        source: Its name in messages.
        at: Where the values will hang.

    Raises:
        ConfigFileError: If it cannot be read, or is not one YAML mapping.
    """
    return parse(read_bytes(path, source), source, at)


def parse(raw: bytes, source: str, at: KeyPath = ()) -> tuple[dict[str, Any], Origins]:
    """Do as `read` with the bytes of a file.

    Raises:
        ConfigFileError: If they are not one YAML mapping.
    """
    parser = _parse_cached if len(raw) <= _CACHED_BYTES else _yaml.parse
    values, origins = parser(raw, source, at)
    if not isinstance(values, dict):
        message = "the document is not a mapping: write `key: value` lines"
        raise ConfigFileError(origins[at], message)
    return values, origins


# By content, so that a file rewritten within the clock's resolution is read anew. Few:
# what is kept of files read once is walked by the garbage collector, again and again.
_parse_cached = lru_cache(maxsize=64)(_yaml.parse)


def read_bytes(path: Path | str, source: str) -> bytes:
    """Return what is in *path*, and not much more than the limit.

    Raises:
        ConfigFileError: If it cannot be read.
    """
    place = Origin(source)
    try:
        # Non-blocking, or a named pipe would wait for its writer. Unbuffered, since a
        # buffer costs more than the reading.
        with open(path, "rb", buffering=0, opener=_open_at_once) as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise ConfigFileError(place, "is a pipe or a device, not a file")
            if info.st_size > _yaml.MAX_BYTES:
                size = f"{info.st_size} bytes, more than {_yaml.MAX_BYTES}"
                raise ConfigFileError(place, f"{size}: this is no config")
            raw = file.read(info.st_size + 1)
            # One read may give less than there is; or the file grew, or has no size.
            while len(raw) != info.st_size and len(raw) <= _yaml.MAX_BYTES:
                if not (more := file.read(_yaml.MAX_BYTES)):
                    break
                raw += more
            return raw
    except FileNotFoundError:
        near = _near(Path(path), source)
        raise ConfigFileError(place, f"no such file{near}") from None
    except IsADirectoryError:
        message = "is a folder; name the YAML file in it"
        raise ConfigFileError(place, message) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigFileError(place, f"cannot be read: {reason}") from None


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _near(path: Path, source: str) -> str:
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return f": there is no folder {path.parent}"
    near = get_close_matches(path.name, sorted(names), n=1)
    if near:
        return f"; did you mean {Path(source).parent / near[0]}?"
    return f" in {path.parent.absolute()}"


def write_atomically(path: Path, text: str) -> None:
    """Write *text* aside, flush it and rename it: *path* is old or new, never torn.

    Raises:
        OSError: If the folder cannot be made or the file not be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        with aside.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
