"""Say how far a run is: one line that rewrites itself on a terminal, plain lines elsewhere.

It knows counts and times, nothing of models. A stream that cannot be written to any
more is no reason to stop a training: reporting ends, silently.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from typing import TextIO

__all__ = ["Progress", "format_seconds"]

_REDRAW_S = 0.1
_PLAIN_S = 30.0
_BAR_CHARS = 20
_WHOLE_FROM = 100
_TENTHS_BELOW_S = 9.95


def format_seconds(seconds: float) -> str:
    """Return *seconds* as ``s.s s``, ``m:ss`` or ``h:mm:ss``.

    >>> format_seconds(2.34), format_seconds(75.4), format_seconds(3725)
    ('2.3 s', '1:15', '1:02:05')
    """
    if seconds < _TENTHS_BELOW_S:
        return f"{max(0.0, seconds):.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """Reports one part of a run after another: `begin`, `advance` for each batch, `end`.

    Args:
        stream: Where to write, usually stderr.
        clock: Returns seconds; only differences count.
        columns: Width of the terminal; None asks the system.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        clock: Callable[[], float] = time.monotonic,
        columns: int | None = None,
    ) -> None:
        self.loss: float | None = None
        self._stream: TextIO | None = stream
        self._clock = clock
        self._columns = columns
        self._in_place = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._interval = _REDRAW_S if self._in_place else _PLAIN_S
        self._open_line = False
        self.begin("", None)

    def begin(self, label: str, num_batches: int | None, done: int = 0) -> None:
        """Start a part of *num_batches*, None if not known, of which *done* are done."""
        self._label = label
        self._total = num_batches
        self._done = self._before = done
        self._samples = 0
        self._started = self._clock()
        self._due = self._started + self._interval

    def advance(self, num_samples: int) -> None:
        """Count one batch of *num_samples*; report if it is time to."""
        self._done += 1
        self._samples += num_samples
        now = self._clock()
        if now >= self._due:
            self._due = now + self._interval
            self._show(self._line(now - self._started))

    def end(self, summary: str) -> None:
        """Finish the part with a line that stays: its label, *summary* and its time."""
        elapsed = self._clock() - self._started
        parts = [self._label, summary, self._rate(elapsed), format_seconds(elapsed)]
        self.note("  ".join(part for part in parts if part))

    def note(self, text: str) -> None:
        """Write a line that stays."""
        if self._open_line:
            self._write("\r\x1b[K")
            self._open_line = False
        self._write(text + "\n")

    def close(self) -> None:
        """End a line left open, so that what follows starts on its own."""
        if self._open_line:
            self._open_line = False
            self._write("\n")

    def _line(self, elapsed: float) -> str:
        parts = [self._label]
        if self._total:
            filled = min(_BAR_CHARS, _BAR_CHARS * self._done // self._total)
            if self._in_place:
                parts.append("[" + "#" * filled + "-" * (_BAR_CHARS - filled) + "]")
            parts.append(f"{self._done}/{self._total}")
        else:
            parts.append(f"batch {self._done}")
        if self.loss is not None:
            parts.append(f"loss {self.loss:.4g}")
        parts.append(self._rate(elapsed))
        if self._total:
            per_batch = elapsed / (self._done - self._before)
            left = per_batch * max(0, self._total - self._done)
            parts.append(f"{format_seconds(left)} left")
        return "  ".join(part for part in parts if part)

    def _rate(self, elapsed: float) -> str:
        rate = self._samples / elapsed if elapsed > 0 else 0
        return f"{rate:.{0 if rate >= _WHOLE_FROM else 1}f} samples/s" if rate else ""

    def _show(self, line: str) -> None:
        if not self._in_place:
            self._write(line + "\n")
            return
        columns = self._columns or shutil.get_terminal_size().columns
        self._write("\r" + line[: columns - 1] + "\x1b[K")
        self._open_line = True

    def _write(self, text: str) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            self._stream = None
