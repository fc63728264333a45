"""Ask a run to stop, by a signal, without doing anything inside the handler.

A first INT, TERM or USR1 is only noted, and so is each other one of them: Slurm sends
TERM some time after the USR1 that was asked for. The same one again stops at once: INT
raises KeyboardInterrupt, TERM and USR1 raise SystemExit, in the main thread, as soon as
it runs Python code again. TERM or USR1 within 2 s of the first is the same request once
more (Slurm and torchrun both pass it on), and is not counted.

Exit codes:

========  ========================================================================
75        `EXIT_RESUME`: stopped as asked, all saved; run again to go on
128 + n   stopped at once, by signal *n*: 143 for TERM, 138 for USR1 (on Linux)
130       likewise for INT, if the program lets KeyboardInterrupt end it
========  ========================================================================

A handler that was there before is called as well, and first, if it is a Python function
of the program's own; what was there is put back at the end. A signal that the process was
told to ignore stays ignored, as for a job started in the background of a shell.

Processes forked meanwhile, such as the workers of a data loader, inherit the handlers:
there INT and USR1 do nothing, since the parent decides, and TERM ends the process as if
no handler had been set.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

__all__ = ["EXIT_RESUME", "StopSignals"]

EXIT_RESUME = 75
"""Exit code for: stopped before the end, saved, to be run again (``EX_TEMPFAIL``)."""

_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")
_SAME_REQUEST_S = 2.0


class StopSignals:
    """Notes signals between ``with`` and its end; `received` is the first, or None.

    >>> with StopSignals(enabled=False) as signals:
    ...     signals.request()
    ...     signals.wanted, signals.received
    (True, None)

    Args:
        enabled: If false, or outside the main thread, no handler is set.
        clock: Seconds of a clock that never goes back.
    """

    def __init__(
        self, *, enabled: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.received: signal.Signals | None = None
        self.wanted = False
        self._enabled = enabled
        self._clock = clock
        self._first_at: dict[signal.Signals, float] = {}
        self._pid = -1
        self._previous: dict[signal.Signals, Callable[..., Any] | int] = {}

    def __enter__(self) -> Self:
        in_main = threading.current_thread() is threading.main_thread()
        if not (self._enabled and in_main):
            return self
        self._pid = os.getpid()
        for name in _NAMES:
            number = getattr(signal, name, None)
            if number is None:
                continue
            previous = signal.getsignal(number)
            # None: set by other than Python, so it could not be put back.
            if previous is not None and previous != signal.SIG_IGN:
                self._previous[number] = previous
                signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        self._previous.clear()

    def request(self) -> None:
        """Ask for a stop as a signal does; from any thread, any number of times."""
        self.wanted = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        which = signal.Signals(number)
        if os.getpid() != self._pid:
            _in_forked_child(which)
            return
        again = self._note(which)
        previous = self._previous.get(which)
        if callable(previous) and previous is not signal.default_int_handler:
            previous(number, frame)
        if again:
            if which is signal.SIGINT:
                raise KeyboardInterrupt
            raise SystemExit(128 + number)

    def _note(self, which: signal.Signals) -> bool:
        """Note *which*; tell whether it asks for the second time."""
        if self.received is None:
            self.received = which
        self.wanted = True
        now = self._clock()
        first_at = self._first_at.get(which)
        if first_at is None:
            self._first_at[which] = now
            return False
        return which is signal.SIGINT or now - first_at > _SAME_REQUEST_S


def _in_forked_child(which: signal.Signals) -> None:
    if which is signal.SIGTERM:
        signal.signal(which, signal.SIG_DFL)
        os.kill(os.getpid(), which)
