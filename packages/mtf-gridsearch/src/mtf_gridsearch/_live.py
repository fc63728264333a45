"""Shows how a search goes: a live table on a terminal, plain lines elsewhere.

What experiments report is shown without the characters that a terminal would obey.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from mtf_gridsearch._progress import Progress, Running
from mtf_gridsearch.records import Curve, ExperimentRecord, Status

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = ["PlainView", "SilentView", "TableView", "clean", "duration", "make_view"]

REFRESH_S = 0.25
NUM_METRICS = 3
NUM_CHARACTERS = 200

_SHOWN = [status for status in Status if status is not Status.MISSING]


def clean(text: str) -> str:
    r"""Return *text* on one line, of bounded length, with nothing a terminal obeys.

    Example:
        >>> clean("loss\x1b[2J\nnan")
        'loss?[2J nan'
    """
    words = " ".join(text[: 2 * NUM_CHARACTERS].split())
    shown = "".join(c if c.isprintable() else "?" for c in words)
    return shown if len(shown) <= NUM_CHARACTERS else shown[: NUM_CHARACTERS - 1] + "…"


def duration(seconds: float) -> str:
    """Return *seconds* for people, by their two largest units.

    Example:
        >>> duration(5), duration(75), duration(7380), duration(200_000)
        ('5 s', '1 min 15 s', '2 h 3 min', '2 d 7 h')
    """
    whole = round(seconds)
    for unit_s, unit, lower_s, lower in (
        (86_400, "d", 3_600, "h"),
        (3_600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= unit_s:
            return f"{whole // unit_s} {unit} {whole % unit_s // lower_s} {lower}"
    return f"{whole} s"


def headline(progress: Progress) -> str:
    """Return how far the search is, on one line."""
    total = "" if progress.total is None else f" of {progress.total}"
    parts = [f"{progress.num_done}{total} done"]
    parts += [f"{n} {s}" for s in _SHOWN if (n := progress.counts.get(s, 0))]
    if (left_s := progress.left_s) is not None and progress.running:
        parts.append(f"about {duration(left_s)} left")
    return ", ".join(parts)


def last_values(curves: Mapping[str, Curve]) -> str:
    """Return the newest value of the first few metrics."""
    shown = [(n, c[-1]) for n, c in list(curves.items())[:NUM_METRICS] if c]
    step = f"step {max(point[0] for _, point in shown)}: " if shown else ""
    return step + ", ".join(f"{clean(name)} {value:.4g}" for name, (_, value) in shown)


class SilentView:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the terminal as it was."""

    def update(self, progress: Progress) -> None:
        """Show the state after one look."""

    def note(self, text: str) -> None:
        """Tell the user something that matters now."""


class PlainView(SilentView):
    """Writes a line for each experiment that ends."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def update(self, progress: Progress) -> None:
        """Write what ended since the last time."""
        for record in progress.has_ended:
            self._line(f"{ending(record)} ({headline(progress)})")

    def note(self, text: str) -> None:
        """Write *text*."""
        self._line(text)

    def _line(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class TableView(SilentView):
    """A table of what runs, drawn anew a few times a second."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live  # noqa: PLC0415 -- only where there is a terminal

        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._drawn_s: float | None = None
        self._last: Progress | None = None

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the table away, and leave one line."""
        self._live.stop()
        if self._last is not None:
            self._console.print(headline(self._last), markup=False, highlight=False)

    def update(self, progress: Progress) -> None:
        """Draw the table, if the last drawing is old enough."""
        now = time.monotonic()
        self._last = progress
        for record in progress.has_ended:
            if record.status not in (Status.SUCCEEDED, Status.STOPPED):
                self.note(ending(record))
        if self._drawn_s is None or now - self._drawn_s >= REFRESH_S:
            self._drawn_s = now
            self._live.update(table(progress, self._console.height), refresh=True)

    def note(self, text: str) -> None:
        """Write *text* above the table."""
        self._console.print(text, markup=False, highlight=False)


def ending(record: ExperimentRecord) -> str:
    """Return how an experiment ended, on one line."""
    reason = f": {clean(record.reason)}" if record.reason else ""
    return f"{record.experiment_name} {record.status}{reason}"


def table(progress: Progress, height: int) -> RenderableType:
    """Return the experiments that run, as many as fit *height* lines."""
    from rich.table import Table  # noqa: PLC0415 -- only where there is a terminal
    from rich.text import Text  # noqa: PLC0415

    shown = Table(title=headline(progress), title_justify="left", expand=False)
    for column in ("experiment", "state", "for", "reported"):
        shown.add_column(column, no_wrap=True, overflow="ellipsis")
    now = time.monotonic()
    most = max(1, height - 8)
    rows: list[tuple[str, Running]] = list(progress.running.items())
    for name, running in rows[:most]:
        cells = (
            name,
            str(running.state),
            duration(now - running.since_s),
            last_values(running.reader.curves),
        )
        shown.add_row(*map(Text, cells))
    if len(rows) > most:
        shown.add_row(f"and {len(rows) - most} more")
    return shown


def make_view(stream: TextIO | None = None) -> SilentView:
    """Return what suits *stream*, by default standard error."""
    stream = sys.stderr if stream is None else stream
    if not stream.isatty():
        return PlainView(stream)
    from rich.console import Console  # noqa: PLC0415 -- only where there is a terminal

    return TableView(Console(file=stream))
