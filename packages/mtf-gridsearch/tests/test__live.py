from __future__ import annotations

import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mtf_gridsearch._live import (
    PlainView,
    SilentView,
    TableView,
    clean,
    duration,
    headline,
    last_values,
    make_view,
    table,
)
from mtf_gridsearch._progress import Progress, Running
from mtf_gridsearch.launcher import JobState
from mtf_gridsearch.metrics_file import CurveReader
from mtf_gridsearch.records import ExperimentRecord, Status


def running(folder: Path, text: str = "") -> Running:
    """Return an experiment that has reported *text*."""
    path = folder / "metrics.jsonl"
    path.write_text(text, "utf-8")
    reader = CurveReader(path)
    reader.read()
    return Running("job", reader, None, time.monotonic() - 75, JobState.RUNNING)


def record(name: str, status: Status, reason: str = "") -> ExperimentRecord:
    """Return what is known of an experiment that has ended."""
    return ExperimentRecord(
        experiment_name=name, identity="x", parameters={}, status=status, reason=reason
    )


def progress(**changes: Any) -> Progress:
    """Return a search in the midst of its work."""
    known: dict[str, Any] = {
        "counts": {Status.SUCCEEDED: 2, Status.FAILED: 1, Status.MISSING: 6},
        "total": 9,
        "running": {},
        "ended": 3,
        "elapsed_s": 30.0,
        "has_ended": (),
    }
    return Progress(**{**known, **changes})


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def drawn(renderable: Any, width: int = 100) -> str:
    """Return what a terminal would show."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\nb\t c", "a b c"), ("\x1b[31mred\x07", "?[31mred?"), ("é—字", "é—字")],
)
def test_nothing_a_terminal_obeys_is_shown(text: str, shown: str) -> None:
    """Control characters are replaced, line ends are spaces, letters stay."""
    assert clean(text) == shown


def test_long_texts_are_cut() -> None:
    """A reason of a million characters takes one line of bounded length."""
    assert len(clean("x" * 1_000_000)) == 200
    assert clean("x" * 1_000_000).endswith("…")


def test_durations_are_for_people() -> None:
    """Two units at most, without decimals."""
    shown = [duration(s) for s in (0.4, 59.6, 3600, 86_399, 90_000)]
    assert shown == ["0 s", "1 min 0 s", "1 h 0 min", "23 h 59 min", "1 d 1 h"]


def test_the_headline_counts_and_foresees(tmp_path: Path) -> None:
    """It says how many of how many, each status, and at what pace the rest will end."""
    some = {"a": running(tmp_path)}
    counts = {Status.SUCCEEDED: 2, Status.FAILED: 1, Status.RUNNING: 1, Status.MISSING: 5}
    assert headline(progress(counts=counts, running=some)) == (
        "3 of 9 done, 1 running, 2 succeeded, 1 failed, about 1 min 0 s left"
    )
    assert headline(progress(total=None)) == "3 done, 2 succeeded, 1 failed"


def test_the_newest_values_are_shown(tmp_path: Path) -> None:
    """The first three metrics with their newest values, and the step."""
    lines = '{"step": 1, "a": 1, "b": 2}\n{"step": 7, "b": 0.123456, "c": 1, "d": 4}\n'
    assert last_values(running(tmp_path, lines).reader.curves) == (
        "step 7: a 1, b 0.1235, c 1"
    )
    assert last_values({}) == ""


def test_lines_are_written_where_there_is_no_terminal() -> None:
    """One line for each end, with why, and notes as they are; nothing else."""
    stream = io.StringIO()
    with make_view(stream) as view:
        view.update(progress())
        ended = (
            record("a", Status.SUCCEEDED),
            record("b", Status.FAILED, "exit\ncode 1"),
        )
        view.update(progress(has_ended=ended))
        view.note("hello")
    assert isinstance(view, PlainView)
    assert stream.getvalue().splitlines() == [
        "a succeeded (3 of 9 done, 2 succeeded, 1 failed)",
        "b failed: exit code 1 (3 of 9 done, 2 succeeded, 1 failed)",
        "hello",
    ]


def test_silence_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    """A program that shows progress itself can have none."""
    with SilentView() as view:
        view.update(progress(has_ended=(record("a", Status.FAILED),)))
        view.note("hello")
    assert capsys.readouterr() == ("", "")


def test_the_table_shows_what_runs(tmp_path: Path) -> None:
    """A row each: name, state, for how long, what was reported, as plain text."""
    lines = '{"step": 3, "[red]loss": 0.5}\n'
    shown = drawn(table(progress(running={"exp_1": running(tmp_path, lines)}), 40))
    for part in (
        "exp_1",
        "running",
        "1 min 15 s",
        "step 3: [red]loss 0.5",
        "3 of 9 done",
    ):
        assert part in shown


def test_the_table_fits_the_terminal(tmp_path: Path) -> None:
    """Rows that do not fit are counted."""
    one = running(tmp_path)
    many = {f"exp_{n}": one for n in range(30)}
    shown = drawn(table(progress(running=many), 20))
    assert len(shown.splitlines()) <= 20
    assert "and 18 more" in shown


def test_a_terminal_gets_a_table_that_goes_away(tmp_path: Path) -> None:
    """It is drawn at once, not at every look; what failed stays, and one last line."""
    stream = Terminal()
    view = make_view(stream)
    assert isinstance(view, TableView)
    some = {"exp_1": running(tmp_path)}
    ends: Sequence[ExperimentRecord] = (
        record("bad", Status.FAILED, "[bold]exit code 1"),
        record("good", Status.SUCCEEDED),
    )
    with view:
        view.update(progress(running=some))
        size = len(stream.getvalue())
        assert "exp_1" in stream.getvalue()
        view.update(progress(running=some))
        assert len(stream.getvalue()) == size
        view._drawn_s = -1e9
        view.update(progress(running=some, has_ended=ends))
        assert len(stream.getvalue()) > size
        view.note("[green]note")
    text = stream.getvalue()
    assert "bad failed: [bold]exit code 1" in text
    assert "[green]note" in text
    assert "good succeeded" not in text
    assert (
        text.rstrip()
        .splitlines()[-1]
        .endswith("3 of 9 done, 2 succeeded, 1 failed, about 1 min 0 s left")
    )


def test_a_table_that_never_was_says_nothing() -> None:
    """A run that fails before its first look leaves no line about progress."""
    stream = Terminal()
    with make_view(stream):
        pass
    assert "done" not in stream.getvalue()


def test_standard_error_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    """Progress does not mix with what a program prints."""
    make_view().note("hello")
    assert capsys.readouterr() == ("", "hello\n")
