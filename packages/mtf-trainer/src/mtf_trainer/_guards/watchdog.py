"""End a process whose training no longer moves.

A thread looks at a counter that the loop moves on with each step. If it has stood still
for the deadline, the stack of every thread goes to stderr and the process ends with
`EXIT_HANG`, without asking the main thread, which may never come back from C code.

If a thread keeps even Python's own lock (the GIL) for twice the deadline, so that nothing
of Python can run, the timer of `faulthandler` writes the stacks and ends the process with
exit code 1. There is one such timer in a process: it belongs to the watchdog meanwhile.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

__all__ = ["EXIT_HANG", "Watchdog"]

EXIT_HANG = 70
"""Exit code of a process that its watchdog ended; EX_SOFTWARE of ``sysexits.h``."""

_LOOKS = 20
_TELL_S = 5.0
_LAST_RESORT_S = 60.0


class Watchdog:
    """Watches between ``with`` and its end that `beat` is called often enough.

    A process that is stopped and continued (SIGSTOP, a suspended job) for less than twice
    the deadline is not taken for one that hangs.

    Args:
        deadline_s: Seconds without a beat after which the process is ended; at most a
            tenth more pass.
        describe: Says where the run is, as phase, epoch and step. Called in another
            thread, once; it must not wait for a device.
        end: What ends the process, for tests.
    """

    def __init__(
        self,
        deadline_s: float,
        *,
        describe: Callable[[], str],
        end: Callable[[int], object] = os._exit,
    ) -> None:
        self._deadline_s = deadline_s
        self._describe = describe
        self._end = end
        self._beats = 0
        self._pauses = 0
        self._seen = 0
        self._silent_s = 0.0
        self._looked_at = 0.0
        self._fd = 2
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._fd = _stderr_fd()
        self._looked_at = time.monotonic()
        self._thread = threading.Thread(
            target=self._watch, name="mtf-watchdog", daemon=True
        )
        self._arm()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        faulthandler.cancel_dump_traceback_later()

    def beat(self) -> None:
        """Say that the run moves. Costs one addition; for one thread."""
        self._beats += 1

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Do not watch inside ``with``: for work that may rightly take long."""
        with self._lock:
            self._pauses += 1
            faulthandler.cancel_dump_traceback_later()
        try:
            yield
        finally:
            self._beats += 1
            with self._lock:
                self._pauses -= 1
            self._arm()

    def _arm(self) -> None:
        """Start the timer that needs no Python anew, unless nothing is watched."""
        with self._lock:
            if self._thread is not None and not self._pauses:
                faulthandler.dump_traceback_later(
                    2 * self._deadline_s, exit=True, file=self._fd
                )

    def _watch(self) -> None:
        while not self._closing.wait(self._deadline_s / _LOOKS):
            if self._hangs(time.monotonic()):
                self._end_process()
                return
            self._arm()

    def _hangs(self, now_s: float) -> bool:
        """Look at the counter; tell whether it has stood still for the deadline."""
        # A look that comes late says that this whole process was not running.
        elapsed_s = min(now_s - self._looked_at, 2 * self._deadline_s / _LOOKS)
        self._looked_at = now_s
        if self._beats != self._seen or self._pauses:
            self._seen = self._beats
            self._silent_s = 0.0
            return False
        self._silent_s += elapsed_s
        return self._silent_s >= self._deadline_s

    def _end_process(self) -> None:
        faulthandler.dump_traceback_later(_LAST_RESORT_S, exit=True, file=self._fd)
        # Nobody may be reading stderr, and a lock of a stream may be held for ever.
        telling = threading.Thread(target=self._tell, daemon=True)
        telling.start()
        telling.join(_TELL_S)
        for worker in multiprocessing.active_children():
            if worker.daemon:
                worker.kill()
        self._end(EXIT_HANG)

    def _tell(self) -> None:
        try:
            where = self._describe()
        except Exception as error:  # noqa: BLE001 - the stacks are what counts
            where = f"where, is not known: {error!r}"
        workers = multiprocessing.active_children()
        pids = ", ".join(f"{worker.name} is {worker.pid}" for worker in workers)
        text = (
            f"\nmtf-trainer: no step for {self._deadline_s:g} s ({where}).\n"
            f"This is process {os.getpid()}; worker processes: {pids or 'none'}.\n"
            f"It ends with exit code {EXIT_HANG}. The stack of every thread:\n"
        )
        with suppress(OSError):
            os.write(self._fd, text.encode(errors="backslashreplace"))
            faulthandler.dump_traceback(self._fd, all_threads=True)
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):
                stream.flush()


def _stderr_fd() -> int:
    try:
        return sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):
        return 2
