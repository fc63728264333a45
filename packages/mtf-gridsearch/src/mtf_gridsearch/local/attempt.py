"""The attempts to run an experiment, as they lie in its folder.

``<experiment>/<job_id>.job`` says what happened to an attempt (`mtf_gridsearch.local._files`
writes it), ``<experiment>/.lock`` is held while one runs. Together they are all that is known:
an attempt without an end whose lock is free has lost its _files.

A job's id is the path of these files without their ending,
``<folder>/<experiment_name>/<experiment_name>.<number>``, so that whoever has it finds them.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from mtf_gridsearch.launcher import JobState
from mtf_gridsearch.local import _files, _processes

__all__ = ["NAME", "Attempt", "Outcome", "boot_id", "lock_within", "newest"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

_NUMBER = re.compile("[1-9][0-9]{0,8}")
_SWEEP_S = 10.0
_POLL_S = 0.01


class Outcome(NamedTuple):
    """How a job ended: `mtf_gridsearch.launcher.Outcome`."""

    reason: str = ""
    wall_s: float | None = None
    cpu_s: float | None = None
    max_rss_bytes: int | None = None


class Attempt:
    """One attempt to run an experiment; reads its files anew with each question.

    Args:
        folder: Of the experiment, absolute.
        number: Of the attempt, from 1.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self.folder = folder
        self.number = number
        self.job_id = str(folder / f"{folder.name}.{number}")
        self._path = self.job_id + ".job"

    @classmethod
    def of(cls, job_id: str) -> Attempt | None:
        """Return the attempt whose job's id this is; None if it can be none."""
        folder, _, name = str(job_id).rpartition("/")
        stem, _, number = name.rpartition(".")
        is_name = NAME.fullmatch(stem) and os.path.basename(folder) == stem  # noqa: PTH119
        is_number = _NUMBER.fullmatch(number)
        if not (folder.startswith("/") and is_name and is_number):
            return None
        return cls(Path(folder), int(number))

    def create(self) -> None:
        """Make its file; for who holds the lock.

        Raises:
            OSError: If it cannot be written.
        """
        fields: dict[str, object] = {"boot": boot_id(), "at": int(time.time())}  # noqa: TID251 -- for people
        _files.create_file(self._path, "submitted", fields)

    def state(self) -> JobState:
        """Return how it is; settle it if its runner has died."""
        try:
            lines = self._read()
            if lines and "ended" not in lines:
                lines = self._settle(lines)
        except OSError:
            return JobState.UNKNOWN
        if not lines:
            return JobState.UNKNOWN
        if "ended" in lines:
            return _word(lines["ended"].get("status", ""))
        return JobState.RUNNING if "running" in lines else JobState.PENDING

    def outcome(self) -> Outcome:
        """Return how it ended; nothing is known before that."""
        try:
            end = self._read().get("ended", {})
        except OSError:
            end = {}
        rss = _number(end.get("max_rss_bytes"))
        return Outcome(
            reason=end.get("reason", ""),
            wall_s=_number(end.get("wall_s")),
            cpu_s=_number(end.get("cpu_s")),
            max_rss_bytes=None if rss is None else int(rss),
        )

    def cancel(self, patience_s: float) -> None:
        """Ask its runner to end it.

        Args:
            patience_s: How long to wait for a runner that has only just been started.
        """
        deadline = time.monotonic() + patience_s
        while not self.state().is_final:
            with suppress(OSError, KeyError, ValueError):
                process = self._read()["runner"]
                _terminate(int(process["pid"]), process["began"])
                return
            if time.monotonic() > deadline:
                return
            time.sleep(_POLL_S)

    def _read(self) -> dict[str, dict[str, str]]:
        with open(self._path, "rb") as file:  # noqa: PTH123 -- half the time, in a loop
            return _files.parse_lines(file.read(1 << 20))

    def _settle(self, lines: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
        """Return its lines, with an end if nothing is left that could write one."""
        if self.number < newest_number(self.folder):  # which was begun with the lock held
            return {**lines, "ended": _lost(lines)}
        fd = _files.try_lock(str(self.folder / ".lock"))
        if fd is None:
            return self._read()
        try:
            lines = self._read()  # it may have ended since they were read
            if "ended" in lines:
                return lines
            sweep(self.job_id)
            end = _lost(lines)
            with suppress(OSError):  # on a disk that is read-only it is said each time
                _files.append_line(self._path, "ended", dict(end))
            return {**lines, "ended": end}
        finally:
            os.close(fd)


def newest(folder: Path) -> Attempt | None:
    """Return the last attempt in the folder of an experiment, None if there was none."""
    number = newest_number(folder)
    return Attempt(folder, number) if number else None


def newest_number(folder: Path) -> int:
    """Return the number of the last attempt in *folder*, 0 if there was none."""
    pattern = re.compile(rf"{re.escape(folder.name)}\.({_NUMBER.pattern})\.job")
    found = (pattern.fullmatch(name) for name in os.listdir(folder))  # noqa: PTH208 -- names
    return max((int(match[1]) for match in found if match), default=0)


def boot_id() -> str:
    """Return what tells this run of this machine from others; empty where nothing does."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    return ""


def lock_within(path: Path, seconds: float) -> int | None:
    """Wait for a lock that others hold for moments; None if that takes too long.

    Raises:
        OSError: If there can be no such file.
    """
    deadline = time.monotonic() + seconds
    while (fd := _files.try_lock(str(path))) is None and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return fd


def sweep(job_id: str) -> None:
    """Kill what a job whose runner has died left behind, known by its environment."""
    deadline = time.monotonic() + _SWEEP_S
    while (pids := list(_left_by(job_id))) and time.monotonic() < deadline:
        for pid in pids:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_POLL_S)


def _left_by(job_id: str) -> Iterator[int]:
    mark = b"\0MTF_JOB_ID=" + os.fsencode(job_id) + b"\0"
    with suppress(OSError):  # where there is no /proc, nothing is known
        for name in os.listdir("/proc"):  # noqa: PTH208 -- names
            if name.isdecimal():
                with suppress(OSError), open(f"/proc/{name}/environ", "rb") as file:  # noqa: PTH123
                    if mark in b"\0" + file.read():
                        yield int(name)


def _lost(lines: dict[str, dict[str, str]]) -> dict[str, str]:
    """Return the end of an attempt whose runner is gone."""
    boot = lines.get("submitted", {}).get("boot", "")
    pid = lines.get("runner", {}).get("pid")
    if boot and boot != boot_id():
        reason = "the machine that ran it was restarted, or is another one"
    elif pid is None:
        reason = "its runner did not start: whoever submitted it was killed meanwhile"
    else:
        reason = f"its runner, process {pid}, was killed or could not go on"
    return {"status": JobState.NODE_FAILED, "reason": reason}


def _terminate(pid: int, began: str) -> None:
    """Send SIGTERM to a process, if it is the one that *began* then."""
    if not hasattr(os, "pidfd_open"):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        return
    with suppress(ProcessLookupError):
        fd = os.pidfd_open(pid)
        try:
            if _processes.began(pid) == began:
                signal.pidfd_send_signal(fd, signal.SIGTERM)
        finally:
            os.close(fd)


def _word(text: str) -> JobState:
    try:
        return JobState(text)
    except ValueError:
        return JobState.UNKNOWN


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
