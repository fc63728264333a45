"""What Slurm says of many jobs, asked for all at once and not too often.

`Source` asks once in an interval, whoever wants to know what: threads share one, processes
share two files in ``<experiments>/.slurm`` of each folder that they follow. ``follow.wanted``
is the lock, and holds the ids that anybody wants to know of; ``follow.json`` is the last
answer. How old it is, is told by the clock of the file system alone, so clocks of machines may
differ. In a folder that cannot be written, and for ids without a folder, each source keeps
the interval by itself.

When nobody answers, or with something that cannot be parsed, the last answer stays, and says
what the trouble is: another question may get one.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import astuple, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from mtf_slurm import query
from mtf_slurm.arrays import JOBS_FOLDER
from mtf_slurm.command import Commands, NoAnswerError
from mtf_slurm.errors import (
    MtfSlurmError,
    SchedulerCommandError,
    SchedulerUnreachableError,
    UnreadableReplyError,
)
from mtf_slurm.query import Form, Row
from mtf_slurm.states import JobState

__all__ = ["Answer", "Source", "forget"]

_WANTED_INTERVALS = 20  # after which nobody wants to know of a job any more
_BUSY_S = 0.5  # after which to look whether another has got its answer
_LOCKED_S = 0.02  # after which to look whether it still is
_MANY_TASKS = 50  # of one array, from which on accounting is asked for all of it
_PASSING = (NoAnswerError, UnreadableReplyError)
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


class Source:
    """Asks Slurm, for one thread at a time.

    Args:
        folders: Of experiments, by which sources share their answers.
        interval_s: Between two questions.
        form: In which ``squeue`` answers; ``auto`` is `query.form_of`.
        clock: In seconds, for this source alone.

    Attributes:
        due_in_s: When a question may come, in seconds from the last call of `ask`.
    """

    def __init__(
        self,
        folders: Iterable[Path],
        *,
        interval_s: float,
        form: Form | Literal["auto"] = "auto",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._places = [folder / JOBS_FOLDER for folder in sorted({*folders})]
        self._interval_s = interval_s
        self._form = form
        self._clock = clock
        self._asked_s: float | None = None
        self._last = Answer()
        self._count = 0
        self.due_in_s = 0.0

    def ask(
        self, commands: Commands, ids: Collection[str], suspects: Collection[str] = ()
    ) -> Answer:
        """Return the last answer, or a new one if that is old enough; do not wait.

        Args:
            commands: What asks.
            ids: Of jobs and tasks, to be known of from the next question on.
            suspects: Those of them whose earlier runs are to be known, too.

        Raises:
            SchedulerUnreachableError: If there is no Slurm here at all.
            SchedulerCommandError: If it refuses to answer.
        """
        with ExitStack() as stack:
            try:
                shared = [_Place(place, stack) for place in self._places]
            except BlockingIOError:  # another asks at this moment
                self.due_in_s = _BUSY_S
                return self._last
            shared = [place for place in shared if place.is_open]
            last = self._newest(_saved(place.folder) for place in shared)
            wanted = self._wanted(shared, ids, suspects, last)
            self.due_in_s = self._interval_s - self._age_s(shared)
            if self.due_in_s > 0:
                return last
            self._asked_s = self._clock()
            error: MtfSlurmError | None = None
            try:
                answer = self._asked(commands, wanted)
            except MtfSlurmError as caught:
                error = caught
                answer = replace(last, trouble=str(error))
            self._count += 1
            before = {**last.ended, **last.rows}
            answer = replace(
                answer,
                ended={
                    job_id: row
                    for job_id, row in before.items()
                    if row.state.is_final and job_id not in answer.rows
                },
                stamp=f"{os.getpid()}.{id(self)}.{self._count}",
            )
            for place in shared:
                place.save(answer)
            self._last = answer
            if error is not None and not isinstance(error, _PASSING):
                raise error
            return answer

    def _newest(self, saved: Iterable[tuple[int, Answer]]) -> Answer:
        """Return the last answer of all; of this source's own, if there is no file."""
        newest = max(saved, key=lambda pair: pair[0], default=(0, Answer()))
        if newest[0]:
            self._last = newest[1]
        return self._last

    def _age_s(self, shared: Sequence[_Place]) -> float:
        own = float("inf") if self._asked_s is None else self._clock() - self._asked_s
        return min([own, *(place.age_s() for place in shared)])

    def _wanted(
        self,
        shared: Sequence[_Place],
        ids: Collection[str],
        suspects: Collection[str],
        last: Answer,
    ) -> dict[str, bool]:
        """Return all ids that anybody wants to know of; true for suspects."""
        suspects = {*suspects}
        wanted = {job_id: job_id in suspects for job_id in ids}
        others = [
            place.want(wanted, self._interval_s * _WANTED_INTERVALS) for place in shared
        ]
        for other in others:
            for job_id, is_suspect in other.items():
                row = last.rows.get(job_id.partition(".")[0])
                if row is None or not row.state.is_final:
                    wanted.setdefault(job_id, is_suspect)
        return wanted

    def _asked(self, commands: Commands, wanted: Mapping[str, bool]) -> Answer:
        """Ask the controller, and accounting for what it does not know."""
        if self._form == "auto":
            self._form = query.form_of(commands)
        tasks = {i.partition(".")[0]: base for i in wanted if (base := query.base_of(i))}
        bases = sorted(set(tasks.values()), key=int)
        try:
            rows = query.queued(commands, bases, form=self._form)
        except UnreadableReplyError:
            if self._form == "json":
                self._form = "text"  # from the next question on
            raise
        suspects = {i.partition(".")[0] for i, is_suspect in wanted.items() if is_suspect}
        need = [task for task in tasks if task not in rows or task in suspects]
        try:
            told = query.accounted(
                commands, _few(need, tasks), with_earlier=bool(suspects)
            )
        except (SchedulerCommandError, SchedulerUnreachableError):
            return Answer(rows=rows, asked=frozenset(wanted))
        runs: dict[str, Row] = {}
        earlier = []
        for row in told:
            if before := runs.get(row.job_id):
                earlier.append(before)
            runs[row.job_id] = row
        earlier += [row for i, row in runs.items() if i in rows and row.end_s is not None]
        return Answer(
            rows={**{i: row for i, row in runs.items() if i not in rows}, **rows},
            asked=frozenset(wanted),
            earlier=tuple(row for row in earlier if row.job_id in suspects),
            is_whole=True,
        )


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
                place = _Place(folder / JOBS_FOLDER, stack)
            except BlockingIOError:
                if time.monotonic() > deadline_s:
                    return
                time.sleep(_LOCKED_S)
                continue
            date_ns, last = _saved(place.folder)
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


def _few(need: Collection[str], tasks: Mapping[str, str]) -> list[str]:
    """Return what to ask for, in few words: arrays of which many tasks are needed."""
    by_base: dict[str, list[str]] = {}
    for task in need:
        by_base.setdefault(tasks[task], []).append(task)
    return [
        job_id
        for base, own in by_base.items()
        for job_id in (own if len(own) < _MANY_TASKS else [base])
    ]


class _Place:
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


def _saved(folder: Path) -> tuple[int, Answer]:
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
