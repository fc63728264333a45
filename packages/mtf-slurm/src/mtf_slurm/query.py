"""Ask Slurm how jobs are, and which jobs it has.

``squeue`` first: it tells what the controller knows, at once. What the controller has
forgotten, ``sacct`` may know; its rows come late, so what it does not show is ``unknown``.
Each is asked once for all jobs, as long as their ids fit one command line.

JSON is asked of ``squeue`` from Slurm 23.11 on. Before, it ignores which jobs are asked for and
tells of all that the cluster has, 3.4 kB each, where the text has 100 bytes. Accounting is
asked for text: its JSON has 9 kB a job, none of which is needed.

Source: Slurm 22.05.8, ``squeue(1)``, ``sacct(1)``, and what they write.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple, TypeAlias

from mtf_slurm import _replies
from mtf_slurm._replies import Row
from mtf_slurm.command import Commands, NoAnswerError
from mtf_slurm.errors import (
    SchedulerCommandError,
    SchedulerUnreachableError,
    UnreadableReplyError,
)

__all__ = [
    "JOB_ID",
    "Form",
    "Known",
    "Row",
    "accounted",
    "base_of",
    "chunks",
    "find",
    "folders",
    "form_of",
    "max_array_size",
    "queued",
    "rows",
    "run",
]

JOB_ID = re.compile(r"([1-9]\d{0,9})(?:_(\d{1,9}))?(?:\.(\d{1,9}))?", re.ASCII)
"""Of a job or of an array's task; with the place of one of several in that task."""

Form: TypeAlias = Literal["json", "text"]
"""In which ``squeue`` answers."""

_CHUNK_BYTES = 100_000  # of ids; Linux takes 131,072 bytes in one argument
_JSON_SINCE = (23, 11)
_SQUEUE = ("squeue", "--noheader", "--array", "--states=all")
_SACCT = ("sacct", "--noheader", "--allocations", "--parsable2")
# Else lists of an array's tasks end after 64 bytes, in dots.
_WHOLE = {"SLURM_BITSTR_LEN": "0"}


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
    found = queued(commands, ids)
    # Of an array that runs, the controller forgets tasks that ended long ago.
    missing = [base for base in ids if not tasks[base] <= found.keys()]
    try:
        told = {row.job_id: row for row in accounted(commands, missing)}
    except (SchedulerCommandError, SchedulerUnreachableError):
        return Known(found, is_whole=False)  # as at sites without accounting
    return Known({**told, **found}, is_whole=True)


def run(commands: Commands, argv: Sequence[str]) -> str:
    """Run a command that changes nothing, again while nobody answers.

    Raises:
        SchedulerUnreachableError: If it is not there, or gets no answer.
        SchedulerCommandError: If it was refused.
    """
    for attempt in range(commands.num_attempts - 1):
        try:
            return commands.once(argv, extra=_WHOLE)
        except NoAnswerError:
            commands.sleep(commands.wait_s(attempt))
    return commands.once(argv, extra=_WHOLE)


def form_of(commands: Commands) -> Form:
    """Return in which form ``squeue`` is to be asked here; no controller is.

    Raises:
        SchedulerUnreachableError: If there is no ``squeue``.
    """
    try:
        reply = commands.once(("squeue", "--version"))
    except SchedulerCommandError:
        return "text"
    match = re.search(r"(\d+)\.(\d+)", reply)
    is_new = match is not None and (int(match[1]), int(match[2])) >= _JSON_SINCE
    return "json" if is_new else "text"


def queued(
    commands: Commands, ids: Sequence[str], *, form: Form = "text"
) -> dict[str, Row]:
    """Return what the controller knows of whole jobs, and of all tasks of their arrays.

    Args:
        commands: What asks.
        ids: As of `base_of`.
        form: Of the answer.

    Raises:
        SchedulerUnreachableError: If the controller cannot be asked.
        SchedulerCommandError: If it refuses to answer.
        UnreadableReplyError: If its answer cannot be parsed.
    """
    found: dict[str, Row] = {}
    for part in chunks(ids):
        how = "--json" if form == "json" else f"--format={_replies.QUEUE_FORMAT}"
        argv = (*_SQUEUE, how, f"--jobs={part}")
        try:
            reply = run(commands, argv)
        except SchedulerCommandError as error:
            if "Invalid job id" in error.stderr:  # it knows none of them
                continue
            raise
        if form == "json":
            wanted = {*part.split(",")}
            told = _replies.rows_of_json(argv, reply)
            found |= {i: row for i, row in told.items() if base_of(i) in wanted}
        else:
            found |= _replies.rows_of_text(argv, reply)
    return found


def accounted(
    commands: Commands, ids: Sequence[str], *, with_earlier: bool = False
) -> list[Row]:
    """Return what accounting knows of jobs; of each, the last run comes last.

    Args:
        commands: What asks.
        ids: Of jobs or of tasks.
        with_earlier: Whether to list the runs, too, after which a job came back.

    Raises:
        SchedulerUnreachableError: If accounting cannot be asked.
        SchedulerCommandError: If there is none here, or it refuses to answer.
        UnreadableReplyError: If its answer cannot be parsed.
    """
    more = ("--duplicates",) if with_earlier else ()
    found: list[Row] = []
    for part in chunks(ids):
        argv = (*_SACCT, *more, f"--format={_replies.ACCOUNT_FORMAT}", f"--jobs={part}")
        found += _replies.rows_of_accounting(argv, run(commands, argv))
    return found


def chunks(ids: Iterable[str]) -> Iterator[str]:
    """Yield ids joined by commas, in parts that a command line can hold."""
    part: list[str] = []
    size = 0
    for job_id in ids:
        if size + len(job_id) >= _CHUNK_BYTES:
            yield ",".join(part)
            part, size = [], 0
        part.append(job_id)
        size += len(job_id) + 1
    if part:
        yield ",".join(part)


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
        UnreadableReplyError: If an answer cannot be parsed: it may be of one of the jobs.
    """
    wanted = set(tokens)
    found: dict[str, str] = {}
    # Of an array, the first is the id of a task alone, and the second the array's.
    argv = ("squeue", "--noheader", "--states=all", "--format=%A|%F|%Z|%k|%A", "--me")
    rows = _replies.cells_of(argv, commands.run(argv), 3)
    _collect(found, wanted, ((base, said) for _, base, said in rows))
    if wanted - found.keys():
        more = (
            *(*_SACCT, "--starttime=now-30days"),
            f"--name={','.join(sorted(set(names)))}",
            "--format=JobID,WorkDir,Comment,JobID",
        )
        try:
            reply = commands.run(more)
        except SchedulerCommandError as error:
            if "accounting" not in error.stderr.lower():
                raise  # it may know: asking it again may help
            reply = ""
        rows = _replies.cells_of(more, reply, 2)
        _collect(found, wanted, ((re.split(r"[_.+\[]", i)[0], said) for i, said in rows))
    return found


def _collect(
    found: dict[str, str], wanted: set[str], told: Iterable[tuple[str, str]]
) -> None:
    for base, said in told:
        for token in wanted:
            if token in said:
                found.setdefault(token, base)


def folders(commands: Commands) -> set[str]:
    """Return the working folders of all jobs that the controller knows, of all users.

    Raises:
        SchedulerUnreachableError: If it cannot be asked.
        SchedulerCommandError: If it refuses to answer.
        UnreadableReplyError: If its answer cannot be parsed.
    """
    argv = ("squeue", "--noheader", "--states=all", "--format=%A|%Z|%A")
    reply = run(commands, argv)
    return {folder for _, folder in _replies.cells_of(argv, reply, 2)} - {""}


def max_array_size(commands: Commands) -> int:
    """Return how many tasks an array may have; 1 where the site has no arrays.

    Raises:
        MtfSlurmError: If Slurm cannot be asked, or does not say.
    """
    argv = ("scontrol", "show", "config")
    reply = run(commands, argv)
    match = re.search(r"^\s*MaxArraySize\s*=\s*(\d+)", reply, re.MULTILINE)
    if match is None:
        raise UnreadableReplyError(argv, "no MaxArraySize in it")
    also = r"^\s*SchedulerParameters\s*=.*\bmax_array_tasks=(\d+)"
    most = re.search(also, reply, re.MULTILINE)
    sizes = [int(found[1]) for found in (match, most) if found]
    return max(1, min(sizes))  # indices lie below it
