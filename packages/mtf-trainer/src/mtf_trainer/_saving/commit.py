"""The marker of a checkpoint that is a folder: that all of it is there, and what it is.

``commit.json`` holds the number of processes that wrote, the id of the moment that all of
the files are of, and the sha256 of each. It is written last. What has no marker is no
checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtf_trainer.errors import CheckpointDamagedError

__all__ = [
    "MARKER",
    "SHARED",
    "Marker",
    "check_files",
    "is_committed",
    "own_name",
    "read_marker",
]

MARKER = "commit.json"
SHARED = "shared.pt"

_VERSION = 2
_FILE = re.compile(r"\.metadata|shared\.pt|rank_\d{5}\.pt|__\d+_\d+\.distcp")
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Marker:
    """What ``commit.json`` says.

    Args:
        moment: Id of the moment, which the files repeat.
        world_size: How many processes wrote.
        files: The sha256 of each, by name.
    """

    moment: str
    world_size: int
    files: Mapping[str, str]

    def to_json(self) -> str:
        """Return the text of the file."""
        plain = {
            "version": _VERSION,
            "moment": self.moment,
            "world_size": self.world_size,
            "files": dict(self.files),
        }
        return json.dumps(plain, indent=1) + "\n"


def own_name(rank: int) -> str:
    """Return the name of the file for what process *rank* has for itself."""
    return f"rank_{rank:05}.pt"


def is_committed(path: Path) -> bool:
    """Tell whether *path* is a folder that was written to its end."""
    return os.path.isfile(path / MARKER)  # noqa: PTH113 - no name is an error to it


def read_marker(path: Path) -> Marker:
    """Return the marker of the checkpoint *path*.

    Raises:
        CheckpointDamagedError: If there is none, or it is not what was written.
        OSError: If it cannot be read.
    """
    if not is_committed(path):
        raise CheckpointDamagedError(path, f"was not committed: no {MARKER}")
    try:
        plain = json.loads((path / MARKER).read_text("utf-8"))
        marker = _marker_of(plain)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        marker = None
    if marker is None:
        raise CheckpointDamagedError(path / MARKER, "is damaged, or of another version")
    return marker


def _marker_of(plain: Mapping[str, Any]) -> Marker | None:
    files, moment, world_size = plain["files"], plain["moment"], plain["world_size"]
    whole = (
        plain["version"] == _VERSION
        and isinstance(moment, str)
        and type(world_size) is int
        and 0 < world_size <= len(files)
        and all(_FILE.fullmatch(f) and _HEX.fullmatch(d) for f, d in files.items())
        and {SHARED, *map(own_name, range(world_size))} <= set(files)
    )
    return Marker(moment=moment, world_size=world_size, files=files) if whole else None


def check_files(path: Path, marker: Marker, names: Iterable[str] | None = None) -> None:
    """Accept *names*, by default all files of *path*, if they are what was written.

    Raises:
        CheckpointDamagedError: Naming the first that is not.
        OSError: If one cannot be read.
    """
    for name in sorted(marker.files) if names is None else names:
        recorded = marker.files[name]
        if not (path / name).is_file():
            raise CheckpointDamagedError(path / name, "is missing, or not a file")
        with (path / name).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != recorded:
            problem = f"its sha256 is {found}, and {MARKER} says {recorded}"
            raise CheckpointDamagedError(path / name, problem)
