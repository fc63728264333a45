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

import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Literal

from mtf_slurm import query
from mtf_slurm._answers import Answer, Place, saved
from mtf_slurm.arrays import JOBS_FOLDER
from mtf_slurm.command import Commands, NoAnswerError
from mtf_slurm.errors import (
    MtfSlurmError,
    SchedulerCommandError,
    SchedulerUnreachableError,
    UnreadableReplyError,
)
from mtf_slurm.query import Form, Row

__all__ = ["Source"]

_WANTED_INTERVALS = 20  # after which nobody wants to know of a job any more
_BUSY_S = 0.5  # after which to look whether another has got its answer
_MANY_TASKS = 50  # of one array, from which on accounting is asked for all of it
_PASSING = (NoAnswerError, UnreadableReplyError)


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
                shared = [Place(place, stack) for place in self._places]
            except BlockingIOError:  # another asks at this moment
                self.due_in_s = _BUSY_S
                return self._last
            shared = [place for place in shared if place.is_open]
            last = self._newest(saved(place.folder) for place in shared)
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

    def _newest(self, kept: Iterable[tuple[int, Answer]]) -> Answer:
        """Return the last answer of all; of this source's own, if there is no file."""
        kept = [*kept]
        date, newest = max(kept, key=lambda pair: pair[0], default=(0, Answer()))
        if date:
            # Of each folder, what was requeued since is left out there.
            for _, same in kept:
                if same.stamp == newest.stamp:
                    newest = replace(
                        newest,
                        rows={i: r for i, r in newest.rows.items() if i in same.rows},
                        asked=newest.asked & same.asked,
                        ended={**newest.ended, **same.ended},
                    )
            self._last = newest
        return self._last

    def _age_s(self, shared: Sequence[Place]) -> float:
        own = float("inf") if self._asked_s is None else self._clock() - self._asked_s
        return min([own, *(place.age_s() for place in shared)])

    def _wanted(
        self,
        shared: Sequence[Place],
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
