"""What Slurm said last, for all who follow the same experiments.

Two files in ``<experiments>/.slurm``: ``follow.wanted`` is the lock, and holds the ids that
anybody wants to know of; ``follow.json`` is the last answer. How old it is, is told by the
clock of the file system alone, so clocks of machines may differ.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import astuple, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mtf_slurm import query
from mtf_slurm.arrays import JOBS_FOLDER
from mtf_slurm.query import Row
from mtf_slurm.states import JobState

__all__ = ["Answer", "Place", "forget", "saved"]

_LOCKED_S = 0.02  # after which to look whether it still is
_FIELDS = [part.name for part in fields(Row)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What Slurm said, at one moment.

    Attributes:
        rows: By id, of jobs and tasks.
        asked: The ids that were asked for: of others, nothing follows.
        ended: Rows of jobs that had ended before, and were not asked for any more.
        earlier: Runs that have ended, of jobs that came back.
        is_whole: Whether accounting was asked for what the controller does not know, and
            answered.
        trouble: Why the last question got no answer; what is here is older then.
        stamp: Another one for each question.
    """

    rows: Mapping[str, Row] = field(default_factory=dict)
    asked: frozenset[str] = frozenset()
    ended: Mapping[str, Row] = field(default_factory=dict)
    earlier: tuple[Row, ...] = ()
    is_whole: bool = False
    trouble: str = ""
    stamp: str = ""


def forget(folder: Path, job_ids: Iterable[str], *, timeout_s: float) -> None:
    """Have nobody take what was said of jobs, that were requeued since, for how they are.

    They are asked for with the next question.

    Args:
        folder: Of experiments.
        job_ids: Which.
        timeout_s: How long to wait for a question under way, in seconds; then it is left.
    """
    ids = {*job_ids}
    tasks = {job_id.partition(".")[0] for job_id in ids}
    deadline_s = time.monotonic() + timeout_s
    while True:
        with ExitStack() as stack:
            try:
                place = Place(folder / JOBS_FOLDER, stack)
            except BlockingIOError:
                if time.monotonic() > deadline_s:
                    return
                time.sleep(_LOCKED_S)
                continue
            date_ns, last = saved(place.folder)
            if place.is_open and date_ns:
                rows = {i: row for i, row in last.rows.items() if i not in tasks}
                others = {i: row for i, row in last.rows.items() if i in tasks}
                ended = {i: row for i, row in others.items() if row.state.is_final}
                left = replace(
                    last, rows=rows, asked=last.asked - ids, ended={**last.ended, **ended}
                )
                place.save(left)
                with suppress(OSError):  # it is as old as it was
                    os.utime(place.folder / "follow.json", ns=(date_ns, date_ns))
            return


class Place:
    """The files of one folder, locked until *stack* ends."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self._fd = -1
        with suppress(OSError):
            folder.mkdir(exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._fd = os.open(folder / "follow.wanted", flags, 0o666)
            stack.callback(os.close, self._fd)
        if self._fd >= 0:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    @property
    def is_open(self) -> bool:
        return self._fd >= 0

    def _now_s(self) -> float:
        os.utime(self._fd)
        return os.fstat(self._fd).st_mtime

    def age_s(self) -> float:
        """Return how old the answer is; one from the future is not believed for long."""
        try:
            return abs(self._now_s() - (self.folder / "follow.json").stat().st_mtime)
        except OSError:
            return float("inf")

    def want(self, wanted: Mapping[str, bool], kept_s: float) -> dict[str, bool]:
        """Note what is wanted; return what others wanted not long ago."""
        now_s = self._now_s()
        others: dict[str, tuple[float, bool]] = {}
        with suppress(ValueError, TypeError, AttributeError):
            data = os.pread(self._fd, os.fstat(self._fd).st_size, 0)
            for job_id, (at_s, is_suspect) in json.loads(data).items():
                if query.base_of(job_id) and now_s - at_s < kept_s:
                    others[job_id] = (float(at_s), bool(is_suspect))
        fresh = {i for i, (at_s, _) in others.items() if now_s - at_s < kept_s / 2}
        if any(i not in fresh or others[i][1] != s for i, s in wanted.items()):
            noted = others | {i: (now_s, s) for i, s in wanted.items()}
            with suppress(OSError):
                os.ftruncate(self._fd, 0)
                os.pwrite(self._fd, json.dumps(noted).encode(), 0)
        return {job_id: is_suspect for job_id, (_, is_suspect) in others.items()}

    def save(self, answer: Answer) -> None:
        """Leave an answer to others, unless the disk is full."""
        values = {
            "rows": [astuple(row) for row in answer.rows.values()],
            "asked": sorted(answer.asked),
            "ended": [astuple(row) for row in answer.ended.values()],
            "earlier": [astuple(row) for row in answer.earlier],
            "is_whole": answer.is_whole,
            "trouble": answer.trouble,
            "stamp": answer.stamp,
        }
        aside = self.folder / ".follow.part"
        with suppress(OSError):
            aside.write_text(json.dumps(values), encoding="utf-8")
            aside.replace(self.folder / "follow.json")


def saved(folder: Path) -> tuple[int, Answer]:
    """Return the answer that lies in a folder, and its date; 0 for none."""
    path = folder / "follow.json"
    try:
        date = path.stat().st_mtime_ns
        values = json.loads(path.read_text(encoding="utf-8"))
        rows = [_row(cells) for cells in values["rows"]]
        answer = Answer(
            rows={row.job_id: row for row in rows},
            asked=frozenset(values["asked"]),
            ended={row.job_id: row for row in map(_row, values["ended"])},
            earlier=tuple(_row(cells) for cells in values["earlier"]),
            is_whole=bool(values["is_whole"]),
            trouble=str(values["trouble"]),
            stamp=str(values["stamp"]),
        )
    except (OSError, ValueError, TypeError, KeyError):
        return 0, Answer()
    return date, answer


def _row(cells: Sequence[Any]) -> Row:
    values = dict(zip(_FIELDS, cells, strict=True))
    return Row(**{**values, "state": JobState(values["state"])})
