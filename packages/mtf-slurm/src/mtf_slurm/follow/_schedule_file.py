"""What a schedule knows besides the jobs: its experiments, and how they ended.

It is one file, ``<experiments>/.slurm/schedule.json``, replaced as a whole under a lock.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mtf_slurm.arrays import JOBS_FOLDER
from mtf_slurm.errors import SubmissionError
from mtf_slurm.states import JobState

__all__ = ["Entry", "opened", "read"]


@dataclass(kw_only=True, slots=True)
class Entry:
    """One experiment of a schedule; it is an experiment for launchers, too.

    Attributes:
        experiment_name: Its name.
        values: Its config.
        after: For which others it waits, and for what of them.
        priority: The higher goes first.
        user: Whose it is, for quotas.
        ended: How its last job ended; None if it has not.
        job_id: Of the last job when that was noted; empty if there was none, or if it was
            given up for what it waited for.
        refusals: How often Slurm did not take it, since its last job.
    """

    experiment_name: str
    values: dict[str, Any] = field(default_factory=dict)
    after: dict[str, str] = field(default_factory=dict)
    priority: int = 0
    user: str = ""
    ended: JobState | None = None
    job_id: str = ""
    refusals: int = 0

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """Return the config; it holds nothing but what JSON has."""
        assert mode == "json"  # noqa: S101 -- as launchers call it
        return self.values

    @property
    def partition(self) -> str | None:
        """As its config has it."""
        return self._section.get("partition")

    @property
    def limits(self) -> tuple[str, ...]:
        """By what sites limit jobs, as its config has it."""
        return tuple(str(self._section.get(n)) for n in ("account", "partition", "qos"))

    @property
    def _section(self) -> dict[str, Any]:
        section = self.values.get("slurm")
        return section if isinstance(section, dict) else {}


def read(folder: Path) -> dict[str, Entry]:
    """Return the experiments of a schedule, by name, in the order in which they were added.

    Raises:
        SubmissionError: If the file is damaged.
    """
    path = _path(folder)
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["entries"]
        entries = [Entry(**row) for row in rows]
        for entry in entries:
            entry.ended = None if entry.ended is None else JobState(entry.ended)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = (
            f"it cannot be read: {error}; take it away, and add the experiments again"
        )
        raise SubmissionError(str(path), reason) from error
    return {entry.experiment_name: entry for entry in entries}


@contextmanager
def opened(folder: Path) -> Iterator[dict[str, Entry]]:
    """Yield the experiments of a schedule to one process at a time; write what changed.

    Raises:
        BlockingIOError: If another process has it.
        SubmissionError: If the file is damaged, or cannot be written.
    """
    path = _path(folder)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        fd = os.open(path.with_suffix(".lock"), flags, 0o666)
    except OSError as error:
        raise SubmissionError(str(path), f"cannot be written: {error}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        entries = read(folder)
        before = _text(entries)
        yield entries
        if (text := _text(entries)) != before:
            _write(path, text)
    finally:
        os.close(fd)


def _write(path: Path, text: str) -> None:
    aside = path.with_suffix(".part")
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        raise SubmissionError(str(path), f"cannot be written: {error}") from error


def _text(entries: dict[str, Entry]) -> str:
    return json.dumps({"entries": [asdict(entry) for entry in entries.values()]})


def _path(folder: Path) -> Path:
    return folder / JOBS_FOLDER / "schedule.json"
