r"""Nodes that fail again and again, to be left out when experiments are submitted again.

What was seen is a line each in ``<experiments>/.slurm/nodes.jsonl``; `JobMonitor` writes it.
A launcher is given `FailingNodes.excluded`; with *commands*, that looks into accounting, too, for
what happened while no monitor ran.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as name:
    ...     folder = Path(name)
    ...     for at_s in (100, 200, 300):
    ...         failure = NodeFailure(node="n7", at_s=at_s, job_id=str(at_s), reason="")
    ...         record(folder, [failure])
    ...     FailingNodes().excluded(folder, now_s=400)
    ('n7',)

One power loss under many jobs is one failure: what ended within a minute counts once, and so does
an end of one job that is told twice. Of a job on several nodes, only those count that are down
afterwards: see `blamed`.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

from mtf_slurm import arrays, query
from mtf_slurm.arrays import JOBS_FOLDER
from mtf_slurm.command import Commands
from mtf_slurm.errors import MtfSlurmError
from mtf_slurm.states import JobState

__all__ = ["FailingNodes", "NodeFailure", "blamed", "failures_in", "record"]

_log = logging.getLogger("mtf_slurm.follow")
_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")
_KEPT = timedelta(days=30)
_SAME_S = 60.0
_LATE_S = 360.0  # by which a monitor may note what accounting has the date of
_BAD = re.compile(r"^(?:DOWN|DRAIN|FAIL|ERROR|NOT_RESPONDING|UNKNOWN)")


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeFailure:
    """One failure of a node, under one run of one job.

    Attributes:
        node: Its name.
        at_s: When, in seconds since the epoch, by Slurm's clock.
        job_id: Of the job that it ended.
        reason: Slurm's word for it.
    """

    node: str
    at_s: float
    job_id: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class FailingNodes:
    """Which nodes fail too often.

    Attributes:
        num_failures: From how many on; those within a minute are one.
        window: Of time, up to now, in which they count.
        commands: Asks accounting how the folder's jobs ended, each time; None for what
            monitors have seen alone.
    """

    num_failures: int = 3
    window: timedelta = timedelta(hours=24)
    commands: Commands | None = None

    def __post_init__(self) -> None:
        if self.num_failures < 1 or self.window <= timedelta(0):
            msg = "num_failures must be 1 or more, and the window above 0"
            raise ValueError(msg)

    def excluded(self, folder: Path, *, now_s: float | None = None) -> tuple[str, ...]:
        """Return the names of the nodes to leave out, in order.

        Args:
            folder: Of experiments; one where nothing was seen has none.
            now_s: The end of the window, in seconds since the epoch; now by default.
        """
        if self.commands is not None:
            _note(self.commands, folder)
        now_s = time.time() if now_s is None else now_s  # noqa: TID251 -- a date
        since = now_s - self.window.total_seconds()
        begins: dict[str, list[float]] = {}
        lost_s: dict[tuple[str, str], float] = {}
        for failure in sorted(failures_in(folder), key=lambda f: f.at_s):
            run = (failure.node, failure.job_id)
            is_told = failure.at_s - lost_s.get(run, -math.inf) <= _LATE_S
            if is_told or not since <= failure.at_s <= now_s:
                continue
            lost_s[run] = failure.at_s
            own = begins.setdefault(failure.node, [])
            if not own or failure.at_s - own[-1] > _SAME_S:
                own.append(failure.at_s)
        return tuple(
            sorted(n for n, own in begins.items() if len(own) >= self.num_failures)
        )


def failures_in(folder: Path) -> list[NodeFailure]:
    """Return what was seen in a folder of experiments, each once; torn lines are left out."""
    try:
        text = _path(folder).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    found: dict[NodeFailure, None] = {}
    for line in text.splitlines():
        with suppress(ValueError, TypeError, AttributeError):
            failure = NodeFailure(**json.loads(line))
            if _NODE.fullmatch(failure.node) and isinstance(failure.at_s, int | float):
                found[failure] = None
    return list(found)


def record(folder: Path, failures: Iterable[NodeFailure]) -> None:
    """Add what was seen, unless it is there; forget what is a month old.

    Raises:
        OSError: If it cannot be written.
    """
    path = _path(folder)
    new = list(failures)
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        there = failures_in(folder)
        since = max((f.at_s for f in new), default=0.0) - _KEPT.total_seconds()
        kept = [f for f in dict.fromkeys([*there, *new]) if f.at_s >= since]
        if kept != there:
            aside = path.with_suffix(".part")
            lines = (json.dumps(asdict(failure)) + "\n" for failure in kept)
            aside.write_text("".join(lines), encoding="utf-8")
            aside.replace(path)
    finally:
        os.close(fd)


def _note(commands: Commands, folder: Path) -> None:
    """Note the failures that accounting knows of jobs of one node.

    Of several nodes, nobody can say any more which of them it was.
    """
    bases = {base for job in arrays.jobs_in(folder) if (base := job.base_id())}
    try:
        runs = query.accounted(commands, sorted(bases, key=int), with_earlier=True)
        failures = [
            NodeFailure(
                node=run.nodes, at_s=run.end_s, job_id=run.job_id, reason=run.state
            )
            for run in runs
            if run.state is JobState.NODE_FAILED and run.end_s is not None
        ]
        if single := [f for f in failures if _NODE.fullmatch(f.node)]:
            record(folder, single)
    except (MtfSlurmError, OSError) as error:
        _log.warning("%s: failed nodes are not looked up: %s", folder, error)


def blamed(commands: Commands, nodes: str) -> tuple[str, ...]:
    """Return which nodes of a job that a node's failure ended are to blame.

    Of one node, that one. Of several, Slurm is asked which are down or drained now; if it
    does not say, none is: a sound one must not be left out for another's fault.

    Args:
        commands: What asks.
        nodes: As Slurm writes them: ``n1``, ``n[1-2,7]``.
    """
    if _NODE.fullmatch(nodes):
        return (nodes,)
    if not nodes or nodes.startswith("-"):
        return ()
    try:
        reply = query.run(commands, ("scontrol", "--oneliner", "show", "node", nodes))
    except MtfSlurmError:
        return ()
    found = []
    for line in reply.splitlines():
        fields = dict(word.partition("=")[::2] for word in line.split() if "=" in word)
        words = re.split(r"[+*]", fields.get("State", ""))
        if any(map(_BAD.match, words)) and _NODE.fullmatch(fields.get("NodeName", "")):
            found.append(fields["NodeName"])
    return tuple(found)


def _path(folder: Path) -> Path:
    return folder / JOBS_FOLDER / "nodes.jsonl"
