"""Ask a run to stop, by a signal, without doing anything inside the handler.

A first INT, TERM or USR1 is only noted. A second INT raises KeyboardInterrupt at once.
A handler that was there before is called as well, if it is a Python function of the
program's own; what was there is put back at the end. A signal that the process was told
to ignore stays ignored, as for a job started in the background of a shell.

Processes forked meanwhile, such as the workers of a data loader, inherit the handlers:
there INT and USR1 do nothing, since the parent decides, and TERM ends the process as if
no handler had been set.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

__all__ = ["StopSignals"]

_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")


class StopSignals:
    """Notes signals between ``with`` and its end; `received` is the first, or None.

    Args:
        enabled: If false, or outside the main thread, no handler is set.
    """

    def __init__(self, *, enabled: bool = True) -> None:
        self.received: signal.Signals | None = None
        self._enabled = enabled
        self._interrupts = 0
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

    def _handle(self, number: int, frame: FrameType | None) -> None:
        which = signal.Signals(number)
        if os.getpid() != self._pid:
            _in_forked_child(which)
            return
        if self.received is None:
            self.received = which
        previous = self._previous.get(which)
        if callable(previous) and previous is not signal.default_int_handler:
            previous(number, frame)
        if which is signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                raise KeyboardInterrupt


def _in_forked_child(which: signal.Signals) -> None:
    if which is signal.SIGTERM:
        signal.signal(which, signal.SIG_DFL)
        os.kill(os.getpid(), which)
