from __future__ import annotations

import io

import pytest

from mtf_trainer.progress import Progress


class Clock:
    """A clock that goes on only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock() -> Clock:
    """Stand still at first."""
    return Clock()


def test_terminal_line_rewrites_itself(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal one line holds epoch, bar, loss, rate and time left."""
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    progress = Progress(stream, clock=clock, columns=90)
    progress.begin("epoch 1/2", 4)
    progress.loss = 0.51234
    progress.advance(32)
    assert stream.getvalue() == ""

    clock.now += 2
    progress.advance(32)

    line = (
        "epoch 1/2  [##########----------]  2/4  loss 0.5123  32.0 samples/s  2.0 s left"
    )
    assert stream.getvalue() == f"\r{line}\x1b[K"


def test_terminal_redraws_ten_times_a_second(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many batches a second, the line is drawn at most ten times."""
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    progress = Progress(stream, clock=clock, columns=90)
    progress.begin("epoch 1/1", 1000)

    for _ in range(1000):
        clock.now += 0.001
        progress.advance(1)

    assert 5 <= stream.getvalue().count("\r") <= 10


def test_line_never_wraps(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A narrow terminal cuts the line, so that it stays one line."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "20")
    stream = Terminal()
    progress = Progress(stream, clock=clock)
    progress.begin("epoch 1/100", 1000)

    clock.now += 1
    progress.advance(8)

    assert stream.getvalue() == "\repoch 1/100  [-----\x1b[K"


def test_end_and_close_leave_whole_lines(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A summary replaces the open line; closing ends one that is left open, once."""
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    progress = Progress(stream, clock=clock, columns=90)
    progress.begin("epoch 1/1", 2)
    clock.now += 1
    progress.advance(3)
    progress.end("loss 0.5")
    assert stream.getvalue().endswith(
        "\r\x1b[Kepoch 1/1  loss 0.5  3.0 samples/s  1.0 s\n"
    )

    clock.now += 1
    progress.advance(3)
    progress.close()
    progress.close()

    assert stream.getvalue().endswith("0.0 s left\x1b[K\n")


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_plain_lines_are_rare(
    clock: Clock, stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a file or on a dumb terminal there is a plain line every 30 s, no control code."""
    monkeypatch.setenv("TERM", "dumb")
    progress = Progress(stream, clock=clock)
    progress.begin("epoch 1/1", 600)

    for _ in range(65):
        clock.now += 1
        progress.advance(200)
    progress.close()

    assert stream.getvalue().splitlines() == [
        "epoch 1/1  30/600  200 samples/s  9:30 left",
        "epoch 1/1  60/600  200 samples/s  9:00 left",
    ]


def test_unknown_length_counts_batches(clock: Clock) -> None:
    """Without a length there is a count, and no time left is made up."""
    stream = io.StringIO()
    progress = Progress(stream, clock=clock)
    progress.begin("epoch 1/1", None)

    clock.now += 31
    progress.advance(31)

    assert stream.getvalue() == "epoch 1/1  batch 1  1.0 samples/s\n"


def test_no_time_gone_gives_no_rate(clock: Clock) -> None:
    """A part that took no measurable time is reported without a rate."""
    stream = io.StringIO()
    progress = Progress(stream, clock=clock)
    progress.begin("epoch 1/1", 1)
    progress.advance(8)

    progress.end("loss 1")

    assert stream.getvalue() == "epoch 1/1  loss 1  0.0 s\n"


def test_dead_stream_ends_reporting_only(clock: Clock) -> None:
    """A stream that was closed stops the reports and raises nothing."""
    stream = io.StringIO()
    progress = Progress(stream, clock=clock)
    stream.close()

    progress.note("a")
    progress.note("b")
