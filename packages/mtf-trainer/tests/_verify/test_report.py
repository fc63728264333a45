from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtf_trainer._verify.report import as_json, as_text
from mtf_trainer._verify.rerun import Replay
from mtf_trainer._verify.verify import Report, Row


def row(number: int | None, **changes: Any) -> Row:
    """Return a save after ten times *number* steps, trained from the line before it."""
    step = 10 * (number or 0)
    defaults: dict[str, Any] = {
        "number": number,
        "name": f"epoch_001_step_{step:06d}.ckpt",
        "global_step": step,
        "parent": None if number is None or number == 1 else number - 1,
        "state": "whole",
    }
    return Row(**defaults | changes)


def report(*rows: Row) -> Report:
    """Return what was found of a run with *rows* and 123 bytes of metrics."""
    return Report(rows=list(rows), metrics_checked=123)


EQUAL = Replay(start="a", end="b", num_steps=10, seconds=1.25)
DIFFERENT = Replay(
    start="a",
    end="b",
    num_steps=10,
    seconds=1.25,
    differing=("weights",),
    differences=("model.w: 1 of 3 numbers, by up to 0.5", "and more"),
)
FAILED = Replay(start="a", end="b", num_steps=10, problem="no checkpoint")


def test_whole_run_is_a_table_and_a_verdict() -> None:
    """Each save has a line; the verdict says what was checked."""
    text = as_text(report(row(1, state="gone"), row(2)), [])

    assert text.splitlines() == [
        " line  checkpoint                       step  parent  state",
        "    1  epoch_001_step_000010.ckpt         10       -  not on disk",
        "    2  epoch_001_step_000020.ckpt         20       1  whole",
        "",
        "WHOLE: 2 saves, each from its parent; 1 checkpoint on disk, as written; 123",
        "  bytes of metrics as they were then.",
    ]


def test_problems_are_named_where_they_are() -> None:
    """What differs stands in the table, what is wrong below it, and the verdict."""
    found = report(
        row(1, state="bad", differing=("weights", "optimizer", "rng", "data")),
        row(None, state="bad", global_step=None),
    )
    found.add("x.ckpt", "is empty")
    found.add("metrics.jsonl", "is missing")

    text = as_text(found, [])

    assert "-  DIFFERS\n       weights, optimizer, rng, data\n" in text
    assert "    -  epoch_001_step_000000.ckpt          ?       -  BAD\n" in text
    assert "\nPROBLEM: x.ckpt: is empty.\n" in text
    assert text.endswith("\nNOT WHOLE: 2 problems, named above.")


def test_many_that_are_gone_are_one_line() -> None:
    """A thousand deleted checkpoints in order do not push the others off the screen."""
    gone = [row(number, state="gone") for number in range(1, 1001)]

    lines = as_text(report(*gone, row(1001)), []).splitlines()

    assert [line[:5].strip() for line in lines[:5]] == [
        "line",
        "1",
        "...",
        "1000",
        "1001",
    ]
    assert "998 more that are not on disk, in order" in lines[2]


def test_few_and_branches_are_shown() -> None:
    """Up to four that are gone are all shown, and where a branch begins is too."""
    gone = [row(number, state="gone") for number in range(1, 12)]
    gone[6].parent = 2

    lines = as_text(report(*gone), []).splitlines()
    few = as_text(report(*gone[:4]), []).splitlines()

    begun = [line[:5].strip() for line in lines[1:7]]
    assert begun == ["1", "...", "6", "7", "...", "11"]
    assert [line[:5].strip() for line in few[1:5]] == ["1", "2", "3", "4"]


def test_notes_are_told_but_not_a_hundred() -> None:
    """Ten notes are shown; of the others, where they are."""
    found = report(row(1))
    found.notes = [f"line {n} goes on from line 1" for n in range(100)]

    text = as_text(found, [])

    assert text.count("Note:") == 11
    assert "Note: and 90 more, which --json tells." in text


def test_replays_are_told() -> None:
    """Equal, different and failed ones, each with its steps, and all in the verdict."""
    text = as_text(report(row(1)), [EQUAL, DIFFERENT, FAILED])

    assert (
        "Replay of a to b: equal, bit for bit, in weights, optimizer, rng, data" in text
    )
    assert "Replay of a to b: DIFFERS in weights; 10 steps in 1.2 s.\n" in text
    assert "    model.w: 1 of 3 numbers, by up to 0.5\n    and more\n" in text
    assert "Replay of a to b: FAILED: no checkpoint." in text
    assert " ".join(text.split()).endswith("2 of 3 replays NOT EQUAL.")
    assert "1 replay equal, bit for bit." in as_text(report(row(1)), [EQUAL])
    unnamed = Replay(start="a", end="b", num_steps=1, differing=("metrics",))
    assert "as it was saved" not in as_text(report(row(1)), [unnamed])


def test_text_fits_a_terminal_and_does_nothing_to_it() -> None:
    """No line is longer than 80 columns, and no control characters get through."""
    found = report(*[row(n) for n in (1, 2, 3)])
    found.add("chain.jsonl, line 4", "is \x1b[2J damaged " * 20)
    forged = "x" * 100 + "\nWHOLE: all is well"
    hostile = replace(DIFFERENT, differences=(forged,))

    text = as_text(found, [EQUAL, hostile])

    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    assert "\nWHOLE" not in text


def test_json_has_everything() -> None:
    """What a program needs is there, without anything cut."""
    found = report(row(1, differing=("rng",)), row(2))
    found.notes = ["a note"] * 20

    plain = json.loads(as_json(Path("run"), found, [EQUAL, DIFFERENT]))

    assert plain["whole"] is False
    assert json.loads(as_json(Path("run"), found, [EQUAL]))["whole"] is True
    assert plain["saves"][0]["differing"] == ["rng"]
    assert len(plain["notes"]) == 20
    assert plain["metrics_bytes_checked"] == 123
    assert [each["equal"] for each in plain["replays"]] == [True, False]
    found.add("x", "is bad")
    plain = json.loads(as_json(Path("run"), found, []))
    assert plain["whole"] is False
    assert plain["problems"] == [{"place": "x", "what": "is bad"}]
