"""Read what ``squeue`` and ``sacct`` write: rows, from text and from JSON.

Nothing here runs a command. What cannot be parsed is an `UnreadableReplyError` that shows it;
what is there and says nothing, such as a date of ``N/A``, is None or empty. Text is asked for with
the job's id at both ends of a row: one that was cut off, whatever its last cell is, has it once.

Source: Slurm 22.05.8, whose replies were looked at; ``squeue(1)`` of 23.11 and 24.05 for the
numbers and states that are objects and lists there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from mtf_slurm.errors import UnreadableReplyError
from mtf_slurm.states import JobState, from_slurm

__all__ = [
    "ACCOUNT_FORMAT",
    "QUEUE_FORMAT",
    "Row",
    "cells_of",
    "epoch_s",
    "expanded",
    "rows_of_accounting",
    "rows_of_json",
    "rows_of_text",
]

QUEUE_FORMAT = "%i|%T|%r|%N|%S|%Z|%i"
ACCOUNT_FORMAT = "JobID,State,ExitCode,NodeList,Start,End,WorkDir,JobID"
_NO_NODE = frozenset({"None assigned", "(null)", "N/A"})
# States that say what goes on while another is the main one.
_DURING = ("COMPLETING", "CONFIGURING", "STAGE_OUT", "SIGNALING", "RESIZING")
_END_S = 253_402_000_000  # of the year 9999
_MAX_INDEX = 4_000_000  # MaxArraySize is below it
_SHOWN_CHARS = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What Slurm says of one job, or of one task of an array.

    Attributes:
        job_id: ``123`` or ``123_4``.
        state: How it is.
        folder: Where it runs; empty if that is not said.
        has_exit_code: Whether *state* takes account of the exit status.
        reason: Slurm's code for why it waits or ended, such as ``Resources``; or empty.
        nodes: Where it runs or ran, as Slurm writes it: ``n[1-2]``; or empty.
        start_s: When it began, or is expected to, in seconds since the epoch.
        end_s: When it ended; of accounting alone.
    """

    job_id: str
    state: JobState
    folder: str
    has_exit_code: bool
    reason: str = ""
    nodes: str = ""
    start_s: float | None = None
    end_s: float | None = None


def expanded(job_id: str) -> Iterator[str]:
    """Yield the tasks of an array that never began, which are one row.

    >>> list(expanded("12_[0-2,5%3]")), list(expanded("12_[0-6:3]"))
    (['12_0', '12_1', '12_2', '12_5'], ['12_0', '12_3', '12_6'])
    """
    base, bracket, rest = job_id.partition("_[")
    if not bracket:
        yield job_id
        return
    for part in rest.rstrip("]").partition("%")[0].split(","):
        match = re.fullmatch(r"(\d{1,7})(?:-(\d{1,7})(?::(\d{1,7}))?)?", part, re.ASCII)
        if match is not None:  # a list that is too long ends in dots
            first, last, step = int(match[1]), int(match[2] or match[1]), match[3]
            for index in range(first, min(last, _MAX_INDEX) + 1, max(1, int(step or 1))):
                yield f"{base}_{index}"


def epoch_s(text: str) -> float | None:
    """Return a date of Slurm's, which is this machine's local time; None for none.

    >>> epoch_s("Unknown"), epoch_s("2026-01-02T03:04:05") is None
    (None, False)
    """
    try:
        return _date(datetime.fromisoformat(text).timestamp())
    except (ValueError, OverflowError):
        return None


def _date(seconds: float | None) -> float | None:
    """Return a date, if it can be one: Slurm has 0 for none."""
    return seconds if seconds and 0 < seconds < _END_S else None


def cells_of(argv: Sequence[str], reply: str, count: int) -> Iterator[list[str]]:
    r"""Yield the cells of each row, without the first one again, in which it ends.

    The last one may have bars and newlines in it.

    Raises:
        UnreadableReplyError: If a row has not so many, begins with no job, or is cut off.

    >>> list(cells_of([], "7|/a|b|7\n12|/c\nd|12\n", 2))
    [['7', '/a|b'], ['12', '/c\nd']]
    """
    lines: list[str] = []
    first = ""
    for line in reply.split("\n"):
        if not lines:
            if not line.strip():
                continue
            first = line.lstrip().partition("|")[0]
            if not re.match(r"[0-9]", first):
                raise UnreadableReplyError(argv, line)
        lines.append(line)
        _, bar, last = line.rstrip().rpartition("|")
        if not bar or last != first:
            continue
        row = "\n".join(lines)
        cells = row.strip().rpartition("|")[0].split("|", count - 1)
        if len(cells) != count or any("\n" in cell for cell in cells[:-1]):
            raise UnreadableReplyError(argv, row[:_SHOWN_CHARS])
        yield cells
        lines = []
    if lines:
        raise UnreadableReplyError(argv, "\n".join(lines)[:_SHOWN_CHARS])


def rows_of_text(argv: Sequence[str], reply: str) -> dict[str, Row]:
    """Read ``squeue --array --format=`` `QUEUE_FORMAT`.

    Raises:
        UnreadableReplyError: If a row is not of that format, or cut off.
    """
    found = {}
    for job_id, word, reason, nodes, start, folder in cells_of(argv, reply, 6):
        found[job_id] = Row(
            job_id=job_id,
            state=from_slurm(word),
            folder=folder,
            has_exit_code=False,
            reason=_said(reason),
            nodes=_nodes(nodes),
            start_s=epoch_s(start),
        )
    return found


def rows_of_accounting(argv: Sequence[str], reply: str) -> Iterator[Row]:
    """Read ``sacct --allocations --format=`` `ACCOUNT_FORMAT`; one row for each run.

    Raises:
        UnreadableReplyError: If a row is not of that format, or cut off.
    """
    for cells in cells_of(argv, reply, 7):
        job_id, word, exit_code, nodes, start, end, folder = cells
        for task_id in expanded(job_id):
            yield Row(
                job_id=task_id,
                state=from_slurm(word, exit_code),
                folder=folder,
                has_exit_code=True,
                nodes=_nodes(nodes),
                start_s=epoch_s(start),
                end_s=epoch_s(end),
            )


def rows_of_json(argv: Sequence[str], reply: str) -> dict[str, Row]:
    """Read ``squeue --json``.

    Raises:
        UnreadableReplyError: If it is not JSON, or has no jobs in it, or says errors.
    """
    try:
        told = json.loads(reply)
        jobs = told["jobs"]
        if told.get("errors"):
            raise UnreadableReplyError(argv, json.dumps(told["errors"])[:_SHOWN_CHARS])
        rows = [row for job in jobs for row in _of_job(job)]
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise UnreadableReplyError(argv, reply[:_SHOWN_CHARS]) from error
    return {row.job_id: row for row in rows}


def _of_job(job: Mapping[str, Any]) -> Iterator[Row]:
    base, index = _number(job.get("array_job_id")), _number(job.get("array_task_id"))
    if base and index is not None:
        ids = [f"{base}_{index}"]
    elif base and job.get("array_task_string"):
        ids = list(expanded(f"{base}_[{job['array_task_string']}]"))
    else:
        ids = [str(int(job["job_id"]))]
    state = from_slurm(_word(job["job_state"]), _exit_code(job.get("exit_code")))
    for job_id in ids:
        yield Row(
            job_id=job_id,
            state=state,
            folder=str(job.get("current_working_directory") or ""),
            has_exit_code=job.get("exit_code") is not None,
            reason=_said(str(job.get("state_reason") or "")),
            nodes=_nodes(str(job.get("nodes") or "")),
            start_s=_date(_number(job.get("start_time"))),
        )


def _word(state: str | list[str]) -> str:
    """Return one word of those that a job is in."""
    if isinstance(state, str):
        return state
    return next((word for word in _DURING if word in state), state[0])


def _number(value: Any) -> int | None:
    """Return a number, which may be an object that says whether it is one."""
    if isinstance(value, Mapping):
        value = value.get("number") if value.get("set", True) else None
    return None if value is None else int(value)


def _exit_code(value: Any) -> str:
    """Return an exit status as accounting writes it; empty if there is none.

    >>> _exit_code(768), _exit_code(15), _exit_code({"return_code": {"number": 3}})
    ('3:0', '0:15', '3:0')
    """
    if value is None:
        return ""
    if isinstance(value, Mapping) and "return_code" in value:
        signal = value.get("signal") or {}
        number = _number(signal.get("id", signal.get("signal_id")))
        return f"{_number(value['return_code']) or 0}:{number or 0}"
    status = _number(value) or 0
    return f"{status >> 8 & 255}:{status & 127}"


def _said(reason: str) -> str:
    """Return a reason as ``scontrol`` writes it, in one word; empty for none."""
    return "" if reason in {"None", "(null)", "N/A"} else reason.replace(" ", "_")


def _nodes(text: str) -> str:
    return "" if text in _NO_NODE else text
