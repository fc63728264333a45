"""A process that writes checkpoints from shared memory while training goes on.

`WriterProcess` speaks with it over pipes: frames of a length and JSON. It has a session
of its own, so that what a terminal sends to the training does not reach it, and ignores
the signals that ask a job to end. Should the training die, it finishes what it has in
hand, and ends: it sees the pipe closed, or, where other children of the training hold
that open, that its parent has changed. Keys of encryption are never on its command line;
it has the environment of the training.

It finds its modules where the training does, and loads torch, never lightning.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, cast

from mtf_trainer._saving.frames import Unpacker, frame, receive, send
from mtf_trainer.config import CheckpointSettings
from mtf_trainer.errors import CheckpointWriteError, SnapshotError

if TYPE_CHECKING:
    from mtf_trainer._saving.saver import Saved

__all__ = ["Memory", "WriterProcess", "main"]

_PIPE_BYTES = 2**20
_TOLD_BYTES = 4096
_STDERR_BYTES = 2**16
_PARENT_EVERY_MS = 1000
_NICENESS = 10
_BOOT = "import sys; sys.path[:] = sys.argv[1:]; from mtf_trainer._saving.writer import main; main()"
_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
_NOT_FOR_US = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
)


class Memory(Protocol):
    """A content in shared memory; a segment of `SnapshotArea`'s is one."""

    path: Path
    sequence: int


class WriterProcess:
    """Writes one checkpoint at a time in a process of its own.

    The process is started by `start` or the first `submit`, and again by the next one
    after its death. No method but `wait` and `close` waits for it. Used from one thread.

    Args:
        folder: Where the checkpoints lie.
        settings: For the `Saver`.
        parent: Digest of the certificate that the first checkpoint descends from.
        saver_module: Where the process finds its ``Saver``.
    """

    def __init__(
        self,
        folder: Path,
        settings: CheckpointSettings,
        *,
        parent: str | None,
        saver_module: str = "mtf_trainer._saving.saver",
    ) -> None:
        self._folder = folder
        self._at = os.path.abspath(folder)  # noqa: PTH100 - keeps links as they are
        self._settings = settings
        self._parent = parent
        self._saver_module = saver_module
        self._child: _Child | None = None
        self._job = ""
        self._results: list[Saved | CheckpointWriteError] = []

    @property
    def busy(self) -> bool:
        """Whether a job is in hand."""
        self._look()
        return bool(self._job)

    def start(self) -> None:
        """Start the process, if it does not run; it takes a second or two to be ready.

        Raises:
            OSError: If it cannot be started.
        """
        self._look()
        if self._child is None:
            self._child = _Child(
                {
                    "trainer": os.getpid(),
                    "saver_module": self._saver_module,
                    "folder": self._at,
                    "settings": _settings_to_plain(self._settings),
                    "parent": self._parent,
                }
            )

    def submit(
        self,
        segment: Memory,
        *,
        epoch: int,
        global_step: int,
        metrics: Mapping[str, float],
    ) -> None:
        """Have *segment* written; it must stay as it is until `poll` tells the end.

        Raises:
            ValueError: If a job is in hand.
            TypeError: If *metrics* are not plain numbers by name.
        """
        if self.busy:
            message = f"{self._job} is still being written: wait first"
            raise ValueError(message)
        job = frame(
            {
                "path": os.fspath(segment.path),
                "sequence": segment.sequence,
                "epoch": epoch,
                "global_step": global_step,
                "metrics": dict(metrics),
            }
        )
        told = f"epoch {epoch}, step {global_step}"
        try:
            self.start()
        except OSError as error:
            problem = f"{told}: the process that writes cannot be started: {error}"
            self._results.append(CheckpointWriteError(self._folder, problem))
        if self._child is not None:
            self._child.send(job)
            self._job = told

    def poll(self) -> list[Saved | CheckpointWriteError]:
        """Return what came of the jobs that ended, each once; never waits."""
        self._look()
        results, self._results = self._results, []
        return results

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until no job is in hand, or *timeout_s* have passed; tell whether none is.

        `poll` tells what came of it.
        """
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while self.busy and self._child is not None:
            left_s = None if deadline_s is None else deadline_s - time.monotonic()
            if left_s is not None and left_s <= 0:
                return False
            self._child.wait(left_s)
        return True

    def close(self, timeout_s: float | None = None) -> None:
        """Wait for the job in hand and end the process; again is harmless.

        After *timeout_s* the job is given up. `poll` tells what came of it.
        """
        if not self.wait(timeout_s):
            self._fail(f"was not finished within {timeout_s} s, and was given up")
        if self._child is not None:
            self._child.end()
            self._child = None

    def _look(self) -> None:
        """Take what the process has said, and notice its death."""
        if self._child is None:
            return
        try:
            for reply in self._child.replies():
                self._take(reply)
        except (EOFError, OSError, ValueError) as error:
            why = "" if isinstance(error, EOFError) else f"sent {error}, and "
            how = self._child.end()
            self._child = None
            self._fail(f"the process that writes {why}{how}")

    def _take(self, reply: dict[str, Any]) -> None:
        if "saved" in reply:
            from mtf_trainer._saving.saver import Saved  # noqa: PLC0415 - loads torch

            saved = reply["saved"]
            saved["path"] = self._as_given(saved["path"])
            saved["warnings"] = tuple(saved["warnings"])
            self._results.append(result := Saved(**saved))
            self._parent = result.digest
        else:
            path = self._as_given(reply["path"])
            self._results.append(CheckpointWriteError(path, reply["problem"]))
        self._job = ""

    def _as_given(self, path: str) -> Path:
        """Return *path* as this process names it: below the folder that it was given."""
        return self._folder / os.path.relpath(path, self._at)

    def _fail(self, problem: str) -> None:
        if self._job:
            told = f"{self._job}: {problem}"
            self._results.append(CheckpointWriteError(self._folder, told))
            self._job = ""


class _Child:
    """The process, and the pipes to and from it."""

    def __init__(self, greeting: dict[str, Any]) -> None:
        self._unpacker = Unpacker()
        self._said = os.memfd_create("mtf-writer-stderr", os.MFD_CLOEXEC)
        fcntl.fcntl(self._said, fcntl.F_SETFL, os.O_APPEND)
        paths = [os.path.abspath(each) for each in sys.path]  # noqa: PTH100 - keeps links
        # A signal to all processes of a job must not end it before it ignores them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _NOT_FOR_US)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOT, *paths],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                start_new_session=True,
                bufsize=0,
            )
        except BaseException:
            os.close(self._said)
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._to = cast(IO[bytes], self._process.stdin)
        self._from = cast(IO[bytes], self._process.stdout)
        os.set_blocking(self._from.fileno(), False)
        # Room for a job while the process is still starting.
        with contextlib.suppress(OSError):
            fcntl.fcntl(self._to.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self.send(frame(greeting))

    def send(self, data: bytes) -> None:
        """Send *data*. A process that is gone is noticed by `replies`."""
        with contextlib.suppress(BrokenPipeError):
            send(self._to.fileno(), data)

    def replies(self) -> Iterator[dict[str, Any]]:
        """Yield what it has answered.

        Raises:
            EOFError: If it is gone.
            ValueError: If it said what it never should.
        """
        gone = False
        while not gone:
            try:
                data = os.read(self._from.fileno(), _PIPE_BYTES)
            except BlockingIOError:
                break
            self._unpacker.feed(data)
            gone = not data
        while (reply := self._unpacker.next()) is not None:
            yield reply
            if os.fstat(self._said).st_size > _STDERR_BYTES:
                os.ftruncate(self._said, 0)
        if gone:
            raise EOFError

    def wait(self, timeout_s: float | None) -> None:
        """Wait until it says something, or is gone."""
        ready = select.poll()
        ready.register(self._from, select.POLLIN)
        ready.poll(None if timeout_s is None else math.ceil(1000 * timeout_s))

    def end(self) -> str:
        """End it, and return how it ended, with the end of what it wrote to stderr."""
        self._process.kill()
        for pipe in (self._to, self._from):
            pipe.close()
        code = self._process.wait()
        size = os.fstat(self._said).st_size
        said = os.pread(self._said, _TOLD_BYTES, max(0, size - _TOLD_BYTES))
        os.close(self._said)
        how = f"ended with code {code}"
        if code < 0:
            how = f"was ended by signal {-code} ({signal.strsignal(-code)})"
        text = said.decode("utf-8", "replace").strip()
        return f"{how}; it wrote: {text}" if text else how


def main() -> None:
    """Be that process: read jobs from stdin until there are no more, and answer."""
    for each in _NOT_FOR_US:
        signal.signal(each, signal.SIG_IGN)
    # What a library prints must not come between the answers.
    answers = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    os.nice(_NICENESS)
    jobs = sys.stdin.fileno()
    greeting = receive(jobs)
    if greeting is None:
        return
    # With no job in hand there is nothing to finish for a training that is gone, and
    # loading torch takes seconds: many in a row that are killed would leave as many.
    _end_with_parent(wanted=True)
    if os.getppid() == greeting["trainer"]:
        import_module("torch")
    _end_with_parent(wanted=False)
    _serve(greeting, jobs, answers)


def _serve(greeting: dict[str, Any], jobs: int, answers: int) -> None:
    import torch  # noqa: PLC0415 - late, from where the training has it

    torch.set_num_threads(1)
    make = import_module(greeting["saver_module"]).Saver
    folder = Path(greeting["folder"])
    saver = None
    while (job := _next_job(jobs, greeting["trainer"])) is not None:
        try:
            if saver is None:
                settings = _settings_from_plain(greeting["settings"])
                saver = make(folder, settings, parent=greeting["parent"])
            answer: dict[str, Any] = {"saved": _save(saver, job)}
        except CheckpointWriteError as error:
            answer = {"path": os.fspath(error.path), "problem": error.problem}
        except Exception as error:  # noqa: BLE001 - told to the training, which decides
            problem = f"cannot be written: {type(error).__name__}: {error}"
            answer = {"path": os.fspath(folder), "problem": problem}
        try:
            send(answers, frame(answer))
        except BrokenPipeError:
            return


def _end_with_parent(*, wanted: bool) -> None:
    """Let the system kill this process with its parent, where it can (Linux)."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL if wanted else 0)


def _save(saver: Any, job: dict[str, Any]) -> dict[str, Any]:
    from mtf_trainer._memory.segment_file import read  # noqa: PLC0415 - loads torch

    path = Path(job["path"])
    committed = read(path)
    if committed.sequence != job["sequence"]:
        message = f"{path} was written again before it could be saved"
        raise SnapshotError(message)
    saved = saver.save(
        committed.content(),
        epoch=job["epoch"],
        global_step=job["global_step"],
        metrics=job["metrics"],
    )
    return {**asdict(saved), "path": os.fspath(saved.path)}


def _next_job(jobs: int, trainer: int) -> dict[str, Any] | None:
    """Return the next job; None at the end, or when process *trainer* is gone."""
    ready = select.poll()
    ready.register(jobs, select.POLLIN)
    while not ready.poll(_PARENT_EVERY_MS):
        if os.getppid() != trainer:
            return None
    return receive(jobs)


def _settings_to_plain(settings: CheckpointSettings) -> dict[str, Any]:
    return {
        name: {"path": os.path.abspath(value)} if isinstance(value, Path) else value  # noqa: PTH100
        for name, value in asdict(settings).items()
    }


def _settings_from_plain(plain: dict[str, Any]) -> CheckpointSettings:
    values: dict[str, Any] = {
        name: Path(value["path"]) if isinstance(value, dict) else value
        for name, value in plain.items()
    }
    return CheckpointSettings(**values)


if __name__ == "__main__":
    main()
