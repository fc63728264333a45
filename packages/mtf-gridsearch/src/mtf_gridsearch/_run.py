"""What a run of a search does around its loop: takes up, listens, tells and sums up."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from mtf_gridsearch._progress import NOT_STARTED, is_settled
from mtf_gridsearch.errors import LauncherError, SearchFolderError
from mtf_gridsearch.journal import Journal
from mtf_gridsearch.launcher import Launcher
from mtf_gridsearch.records import ExperimentRecord, Status

__all__ = ["interrupts", "summarise", "take_up", "what_is_left"]

_BROKEN = (Status.FAILED, Status.TIMEOUT)
_INTERRUPTED = (
    *(Status.CANCELLED, Status.PREEMPTED),
    *(Status.NODE_FAILED, Status.UNKNOWN),
)


def take_up(journal: Journal, launcher: Launcher, folder: Path) -> None:
    """Note attempts that were started and, for a kill, not noted.

    Raises:
        LauncherError: If the launcher fails.
        SearchFolderError: If the journal or the folder cannot be used.
    """
    latest = getattr(launcher, "latest", None)
    if latest is None:
        return
    try:
        begun = set(os.listdir(folder))  # noqa: PTH208 -- names; made before a submit
    except OSError as error:
        raise SearchFolderError(folder, f"it cannot be read: {error}") from error
    known = {
        name: record.job_id
        for name, record in journal.records.items()
        if name in begun
        and not is_settled(record.status)
        and (record.job_id is None or record.ended_at is not None)
    }
    if not known:
        return
    try:
        found = list(latest(list(known), folder=folder))
    except Exception as error:
        msg = f"the launcher fails: {error}; repair that and run the command again"
        raise LauncherError(msg) from error
    pairs = zip(known, found, strict=True)
    if newer := {name: job for name, job in pairs if job and job != known[name]}:
        journal.submitted(newer)


def what_is_left(
    records: Mapping[str, ExperimentRecord], same: str, *, is_repair: bool
) -> Iterator[str]:
    """Say what did not succeed, and how to run it again.

    Args:
        records: Of the search.
        same: What starts again what is missing.
        is_repair: Whether this run was for what had failed.
    """
    of = records.values()
    if num := sum(record.status in _BROKEN for record in of):
        yield f'{num} failed; only="failed" (--only failed) runs those again.'
    if num := sum(record.reason.startswith(NOT_STARTED) for record in of):
        yield f"{num} {NOT_STARTED}; {same} tries those again."
    if num := sum(r.status in _INTERRUPTED and not r.is_dropped for r in of):
        how = 'the command without only="failed" (--only failed)' if is_repair else same
        yield f"{num} did not end; {how} starts those again."


def summarise(folder: Path) -> None:
    """Write the summary of the search in *folder*.

    Raises:
        SearchFolderError: If it cannot be written.
    """
    from mtf_gridsearch.results import SearchResults  # noqa: PLC0415 -- only at the end

    try:
        SearchResults.read(folder).write_summary()
    except OSError as error:
        reason = f"results_summary.json cannot be written: {error.strerror or error}"
        raise SearchFolderError(folder, reason) from error


@contextmanager
def interrupts(interrupt: Callable[[], None]) -> Iterator[None]:
    """Call *interrupt* at the first Ctrl-C; let the second raise. Main thread alone."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # another thread, or a program with its own idea of Ctrl-C
        return

    def handle(number: int, frame: FrameType | None) -> None:
        del number, frame
        signal.signal(signal.SIGINT, signal.default_int_handler)
        interrupt()

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
