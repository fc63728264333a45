"""``python -m mtf_slurm``: look at, wait for and cancel the jobs of a folder of experiments.

Exit codes: 0 all is well, 1 jobs have not all succeeded or Slurm cannot be asked, 2 the
command line is wrong, 3 jobs have not ended in the time given.
"""

# ruff: noqa: T201 - a command prints

from __future__ import annotations

import argparse
import io
import logging
import math
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from mtf_slurm import _again, _control
from mtf_slurm.command import Commands
from mtf_slurm.errors import MtfSlurmError, SubmissionError
from mtf_slurm.follow.efficiency import efficiency
from mtf_slurm.follow.monitor import JobMonitor, JobStatus
from mtf_slurm.follow.nodes import FailingNodes
from mtf_slurm.states import JobState

__all__ = ["main"]

_EXAMPLES = """\
FOLDER is where experiments lie: FOLDER/<experiment>/config.yaml. Of each experiment the last
job counts.

examples:
  python -m mtf_slurm status experiments           how many, and why the others wait
  python -m mtf_slurm status experiments --all     one line for each experiment
  python -m mtf_slurm wait experiments && make report
  python -m mtf_slurm wait experiments --timeout 3600
  python -m mtf_slurm cancel experiments exp_007 exp_008
  python -m mtf_slurm cancel experiments --all     all that have not ended
  python -m mtf_slurm efficiency experiments       CPU, memory, GPUs, time: asked and used

Slurm is asked at most every 30 seconds for one folder, by all who ask together: an answer may
be so old. Ctrl-C leaves the jobs alone.
"""
_SHOWN = 20
_LOCK_TIMEOUT_S = 60.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    if not options.folder.is_dir():
        print(f"{options.folder}: there is no such folder", file=sys.stderr)
        return 2
    try:
        return _run(options)
    except (MtfSlurmError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _run(options: argparse.Namespace) -> int:
    folder: Path = options.folder
    if options.command == "status":
        return _status(folder, shows_all=options.all)
    if options.command == "wait":
        return _wait(folder, options.timeout, options.interval)
    if options.command == "cancel":
        return _cancel(folder, options.names, is_all=options.all)
    return _efficiency(folder)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mtf_slurm",
        description="Look at, wait for and cancel the jobs of a folder of experiments.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    status = commands.add_parser("status", help="say how the jobs are, and why they wait")
    wait = commands.add_parser("wait", help="print what changes until all have ended")
    cancel = commands.add_parser("cancel", help="end jobs that have not ended")
    used = commands.add_parser("efficiency", help="say what jobs asked for and used")
    for command in (status, wait, cancel, used):
        command.add_argument("folder", type=Path, metavar="FOLDER")
    status.add_argument("--all", action="store_true", help="one line for each experiment")
    wait.add_argument(
        "--timeout", type=_seconds, metavar="SECONDS", help="give up after so long"
    )
    wait.add_argument(
        "--interval",
        type=_seconds,
        default=30.0,
        metavar="SECONDS",
        help="between two questions to Slurm, at least (default: %(default)s)",
    )
    cancel.add_argument("names", nargs="*", metavar="EXPERIMENT")
    cancel.add_argument("--all", action="store_true", help="all that have not ended")
    return parser


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        msg = f"{text}: give a number of seconds above 0"
        raise argparse.ArgumentTypeError(msg)
    return seconds


def _status(folder: Path, *, shows_all: bool) -> int:
    monitor = JobMonitor(folder)
    monitor.poll()
    statuses = monitor.statuses()
    if monitor.trouble:
        print(f"this may be old: {monitor.trouble}")
    if shows_all:
        for line in _table([_cells(status) for status in statuses]):
            print(line)
        return _code(statuses)
    counts = Counter(status.state for status in statuses)
    print(", ".join(f"{counts[s]} {s}" for s in JobState if counts[s]) or "no jobs")
    whys = Counter(
        (status.state, str(status.why))
        for status in statuses
        if status.why.sentence and status.state is not JobState.RUNNING
    )
    for (state, why), count in whys.most_common(_SHOWN):
        print(f"  {count} {state}: {why}")
    starts = [s.start for s in statuses if s.state is JobState.PENDING and s.start]
    if starts:
        print(f"  the next is expected to start at {_date(min(starts))}")
    if nodes := FailingNodes().excluded(folder):
        print(f"  nodes that fail again and again: {', '.join(nodes)}")
    return _code(statuses)


def _wait(folder: Path, timeout_s: float | None, interval_s: float) -> int:
    monitor = JobMonitor(
        folder,
        interval_s=interval_s,
        longest_interval_s=max(300.0, interval_s),
        brings_back=True,
    )
    for change in monitor.events(timeout_s=timeout_s):
        print(f"{_date(change.at)}  {change}", flush=True)
    statuses = monitor.statuses()
    counts = Counter(status.state for status in statuses)
    print(", ".join(f"{counts[s]} {s}" for s in JobState if counts[s]) or "no jobs")
    if not monitor.is_done:
        return 3
    return int(any(status.state is not JobState.SUCCEEDED for status in statuses))


def _cancel(folder: Path, names: Sequence[str], *, is_all: bool) -> int:
    if bool(names) == is_all:
        print("name experiments, or give --all", file=sys.stderr)
        return 2
    monitor = JobMonitor(folder)
    monitor.poll()
    statuses = monitor.statuses()
    known = {status.experiment_name for status in statuses}
    if missing := [name for name in names if name not in known]:
        raise SubmissionError(", ".join(missing), f"has no job in {folder}")
    chosen = [s for s in statuses if is_all or s.experiment_name in names]
    live = [status.job_id for status in chosen if not status.state.is_final]
    # What has ended may wait for somebody to bring it back.
    ended = [s.job_id for s in chosen if s.state in _again.MAY_COME_BACK]
    _control.cancel(Commands(), live + ended, [folder], lock_timeout_s=_LOCK_TIMEOUT_S)
    print(f"asked {len(live)} of {len(statuses)} jobs to end")
    return 0


def _efficiency(folder: Path) -> int:
    monitor = JobMonitor(folder)
    monitor.poll()
    names = {status.job_id: status.experiment_name for status in monitor.statuses()}
    if not names:
        print("no jobs")
        return 0
    print(efficiency(names, names=names).table())
    return 0


def _cells(status: JobStatus) -> list[str]:
    start = "" if status.start is None else _date(status.start)
    return [
        status.experiment_name,
        status.job_id,
        str(status.state),
        status.node,
        start,
        str(status.why) if status.state is not JobState.RUNNING else "",
    ]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]


def _code(statuses: Sequence[JobStatus]) -> int:
    """Return 1 if a job has ended in another way than by success."""
    bad = [s for s in statuses if s.state.is_final and s.state is not JobState.SUCCEEDED]
    return 1 if bad else 0


def _date(at: datetime) -> str:
    return at.astimezone().isoformat(sep=" ", timespec="seconds")[:19]


if __name__ == "__main__":
    sys.exit(main())
