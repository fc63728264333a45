"""Ask Slurm how jobs are, and which jobs it has.

``squeue`` first: it tells what the controller knows, at once. What the controller has
forgotten, ``sacct`` may know; its rows come late, so what it does not show is ``unknown``.

Source: Slurm 22.05, ``squeue(1)``, ``sacct(1)``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mtf_slurm.command import Commands
from mtf_slurm.errors import (
    SchedulerCommandError,
    SchedulerUnreachableError,
    UnreadableReplyError,
)
from mtf_slurm.states import JobState, from_slurm

__all__ = ["JOB_ID", "Known", "Row", "base_of", "find", "max_array_size", "rows"]

JOB_ID = re.compile(r"([1-9]\d{0,9})(?:_(\d{1,9}))?(?:\.(\d{1,9}))?", re.ASCII)
"""Of a job or of an array's task; with the place of one of several in that task."""

_CHUNK = 500  # a command line has an end
_SQUEUE = ("squeue", "--noheader", "--array", "--states=all")
_SACCT = ("sacct", "--noheader", "--allocations", "--parsable2")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What Slurm says of one job, or of one task of an array.

    Attributes:
        job_id: ``123`` or ``123_4``.
        state: How it is.
        folder: Where it runs; empty if that is not said.
        has_exit_code: Whether *state* takes account of the exit status.
    """

    job_id: str
    state: JobState
    folder: str
    has_exit_code: bool


def base_of(job_id: str) -> str | None:
    """Return the id of the whole job; None if *job_id* can be none.

    >>> base_of("123_4.1"), base_of("../etc")
    ('123', None)
    """
    match = JOB_ID.fullmatch(job_id)
    return match[1] if match else None


class Known(NamedTuple):
    """What Slurm shows of jobs.

    Attributes:
        rows: By id.
        is_whole: Whether accounting was asked for what the controller does not know, and
            answered.
    """

    rows: dict[str, Row]
    is_whole: bool


def rows(commands: Commands, job_ids: Iterable[str]) -> Known:
    """Return what is known of jobs, and of all tasks of their arrays.

    Args:
        commands: What asks.
        job_ids: Of jobs or tasks; what can be no id is passed over.

    Raises:
        SchedulerUnreachableError: If the controller cannot be asked.
        SchedulerCommandError: If it refuses to answer.
        UnreadableReplyError: If its answer cannot be parsed.
    """
    tasks: dict[str, set[str]] = {}
    for job_id in job_ids:
        if base := base_of(job_id):
            tasks.setdefault(base, set()).add(job_id.partition(".")[0])
    ids = sorted(tasks, key=int)
    found: dict[str, Row] = {}
    for at in range(0, len(ids), _CHUNK):
        found |= _of_controller(commands, ids[at : at + _CHUNK])
    # Of an array that runs, the controller forgets tasks that ended long ago.
    missing = [base for base in ids if not tasks[base] <= found.keys()]
    try:
        for at in range(0, len(missing), _CHUNK):
            told = _of_accounting(commands, missing[at : at + _CHUNK])
            found = {**told, **found}
    except (SchedulerCommandError, SchedulerUnreachableError):
        return Known(found, is_whole=False)  # as at sites without accounting
    return Known(found, is_whole=True)


def _of_controller(commands: Commands, ids: Sequence[str]) -> dict[str, Row]:
    argv = (*_SQUEUE, "--format=%i|%T|%Z", f"--jobs={','.join(ids)}")
    try:
        reply = commands.run(argv)
    except SchedulerCommandError as error:
        if "Invalid job id" in error.stderr:  # it knows none of them
            return {}
        raise
    found = {}
    for cells in _cells(argv, reply, 3):
        row = Row(
            job_id=cells[0],
            state=from_slurm(cells[1]),
            folder=cells[2],
            has_exit_code=False,
        )
        found[row.job_id] = row
    return found


def _of_accounting(commands: Commands, ids: Sequence[str]) -> dict[str, Row]:
    argv = (*_SACCT, "--format=JobID,State,ExitCode,WorkDir", f"--jobs={','.join(ids)}")
    found = {}
    for job_id, state, exit_code, folder in _cells(argv, commands.run(argv), 4):
        for task_id in _expanded(job_id):
            found[task_id] = Row(
                job_id=task_id,
                state=from_slurm(state, exit_code),
                folder=folder,
                has_exit_code=True,
            )
    return found


def _expanded(job_id: str) -> Iterator[str]:
    """Yield the tasks of an array that never began, which are one row.

    >>> list(_expanded("12_[0-2,5%3]"))
    ['12_0', '12_1', '12_2', '12_5']
    """
    base, bracket, rest = job_id.partition("_[")
    if not bracket:
        yield job_id
        return
    for part in rest.rstrip("]").partition("%")[0].split(","):
        first, _, last = part.partition("-")
        if first.isdecimal() and (not last or last.isdecimal()):
            for index in range(int(first), int(last or first) + 1):
                yield f"{base}_{index}"


def _cells(argv: Sequence[str], reply: str, count: int) -> Iterator[list[str]]:
    for line in reply.splitlines():
        if not line.strip():
            continue
        cells = line.strip().split("|", count - 1)
        if len(cells) != count or not cells[0][:1].isdigit():
            raise UnreadableReplyError(argv, line)
        yield cells


def find(
    commands: Commands, tokens: Iterable[str], names: Iterable[str]
) -> dict[str, str]:
    """Return the ids of the jobs that were submitted with *tokens*, by token.

    A token is in a job's comment and in its working folder, of which each site keeps one
    at least.

    Args:
        commands: What asks.
        tokens: To be looked for.
        names: Of the jobs, by which accounting is asked.

    Raises:
        SchedulerUnreachableError: If the controller or accounting cannot be asked.
        SchedulerCommandError: If the controller refuses to answer.
    """
    wanted = set(tokens)
    argv = ("squeue", "--noheader", "--states=all", "--format=%A|%F|%k|%Z", "--me")
    found: dict[str, str] = {}
    _collect(found, wanted, commands.run(argv))
    if wanted - found.keys():
        more = (
            *(
                *_SACCT,
                "--starttime=now-30days",
                f"--name={','.join(sorted(set(names)))}",
            ),
            "--format=JobID,WorkDir,Comment",
        )
        try:
            reply = commands.run(more)
        except SchedulerCommandError as error:
            if "accounting" not in error.stderr.lower():
                raise  # it may know: asking it again may help
            reply = ""
        _collect(found, wanted, reply)
    return found


def _collect(found: dict[str, str], wanted: set[str], reply: str) -> None:
    for line in reply.splitlines():
        first, *cells = line.strip().split("|")
        for token in wanted:
            if any(token in cell for cell in cells):
                is_task = cells[0].isdecimal()  # squeue's %F: the array that it is of
                base = cells[0] if is_task else re.split(r"[_.+\[]", first)[0]
                found.setdefault(token, base)


def max_array_size(commands: Commands) -> int:
    """Return how many tasks an array may have; 1 where the site has no arrays.

    Raises:
        MtfSlurmError: If Slurm cannot be asked, or does not say.
    """
    argv = ("scontrol", "show", "config")
    match = re.search(r"^\s*MaxArraySize\s*=\s*(\d+)", commands.run(argv), re.MULTILINE)
    if match is None:
        raise UnreadableReplyError(argv, "no MaxArraySize in it")
    return max(1, int(match[1]))  # indices lie below it
