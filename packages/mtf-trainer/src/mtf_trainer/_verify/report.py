"""What ``verify`` and ``show`` print: plain text in 80 columns, or JSON."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from mtf_trainer._verify.rerun import Replay
from mtf_trainer._verify.verify import Report, Row

__all__ = ["as_json", "as_text", "printable"]

_WIDTH = 80
_MOST_NOTES = 10
_MOST_GONE = 4


def printable(text: str) -> str:
    r"""Return *text*, which a file may hold, without what a terminal would act on.

    >>> printable("a\x1b[31m")
    'a?[31m'
    """
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def as_json(run_dir: Path, report: Report, replays: Sequence[Replay]) -> str:
    """Return all that was found, as one JSON object."""
    plain = {
        "run_dir": str(run_dir),
        "whole": report.is_whole and all(each.is_equal for each in replays),
        "saves": [asdict(row) for row in report.rows],
        "problems": [asdict(problem) for problem in report.problems],
        "notes": report.notes,
        "metrics_bytes_checked": report.metrics_checked,
        "replays": [asdict(each) | {"equal": each.is_equal} for each in replays],
    }
    return json.dumps(plain, indent=2)


def as_text(report: Report, replays: Sequence[Replay]) -> str:
    """Return a table of the saves, what was found, and a verdict."""
    lines = list(_table(report.rows))
    for number, note in enumerate(report.notes):
        if number == _MOST_NOTES:
            left = len(report.notes) - _MOST_NOTES
            lines += _paragraph(f"Note: and {left} more, which --json tells.")
            break
        lines += _paragraph(f"Note: {note}.")
    for problem in report.problems:
        lines += _paragraph(f"PROBLEM: {problem.place}: {problem.what}.")
    for each in replays:
        lines += _replay(each)
    lines += ["", *_paragraph(_verdict(report, replays))]
    return printable("\n".join(lines))


def _table(rows: Sequence[Row]) -> Iterator[str]:
    yield f"{'line':>5}  {'checkpoint':<26}  {'step':>9}  {'parent':>6}  state"
    for row in _shown(rows):
        if isinstance(row, int):
            yield f"{'...':>5}  {row} more that are not on disk, in order"
            continue
        state = {"whole": "whole", "gone": "not on disk", "bad": "BAD"}[row.state]
        if row.differing:
            state = "DIFFERS"
        step = "?" if row.global_step is None else str(row.global_step)
        parent = "-" if row.parent is None else str(row.parent)
        number = "-" if row.number is None else str(row.number)
        yield f"{number:>5}  {row.name:<26}  {step:>9}  {parent:>6}  {state}"
        for part in textwrap.wrap(", ".join(row.differing), _WIDTH - 9):
            yield f"{'':>7}{part}"


def _shown(rows: Sequence[Row]) -> Iterator[Row | int]:
    """Give the rows; a number in place of many on end that are gone, one from the other."""
    run: list[Row] = []
    for row in rows:
        follows = not run or row.parent == run[-1].number
        if row.state != "gone" or not follows:
            yield from _folded(run)
            run = []
        if row.state == "gone":
            run.append(row)
        else:
            yield row
    yield from _folded(run)


def _folded(run: Sequence[Row]) -> list[Row | int]:
    if len(run) <= _MOST_GONE:
        return list(run)
    return [run[0], len(run) - 2, run[-1]]


def _replay(replay: Replay) -> list[str]:
    begin = f"Replay of {replay.start} to {replay.end}: "
    took = f"{replay.num_steps} steps in {replay.seconds:.1f} s"
    if replay.problem is not None:
        return _paragraph(f"{begin}FAILED: {replay.problem}.")
    if replay.is_equal:
        parts = "weights, optimizer, rng, data and metrics"
        return _paragraph(f"{begin}equal, bit for bit, in {parts}; {took}.")
    lines = _paragraph(f"{begin}DIFFERS in {', '.join(replay.differing)}; {took}.")
    if replay.differences:
        lines.append("  replayed, and as it was saved:")
        for each in replay.differences:
            wrapped = textwrap.wrap(each, _WIDTH - 6)
            lines += [("      " if n else "    ") + x for n, x in enumerate(wrapped)]
    return lines


def _verdict(report: Report, replays: Sequence[Replay]) -> str:
    failed = sum(1 for each in replays if not each.is_equal)
    if not report.is_whole:
        count = len(report.problems)
        told = "1 problem" if count == 1 else f"{count} problems"
        verdict = f"NOT WHOLE: {told}, named above."
    else:
        num_lines, num_here = len(report.rows), len(report.on_disk)
        verdict = (
            f"WHOLE: {_count(num_lines, 'save')}, each from its parent; "
            f"{_count(num_here, 'checkpoint')} on disk, as written; "
            f"{report.metrics_checked} bytes of metrics as they were then."
        )
    if failed:
        return f"{verdict} {failed} of {_count(len(replays), 'replay')} NOT EQUAL."
    if replays:
        return f"{verdict} {_count(len(replays), 'replay')} equal, bit for bit."
    return verdict


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _paragraph(text: str) -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()),
        _WIDTH,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
