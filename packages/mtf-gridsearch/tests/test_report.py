"""Reporting metrics from a script."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from mtf_gridsearch.metrics_file import read_curves
from mtf_gridsearch.report import report


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of an experiment that runs."""
    monkeypatch.setenv("MTF_EXPERIMENT_DIR", str(tmp_path))
    return tmp_path


def test_lines(folder: Path) -> None:
    """Each report is a line of plain JSON, readable by anyone."""
    report(0, loss=1, accuracy=0.25)
    report(10, **{"val/loss": Decimal("0.5")})
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    assert list(map(json.loads, lines)) == [
        {"step": 0, "loss": 1.0, "accuracy": 0.25},
        {"step": 10, "val/loss": 0.5},
    ]


def test_values_that_are_not_finite(folder: Path) -> None:
    """A loss that diverged is reported as such, in words that any JSON reader takes."""
    report(1, a=math.nan, b=math.inf, c=-math.inf)
    text = (folder / "metrics.jsonl").read_text("utf-8")
    expected = {"step": 1, "a": "NaN", "b": "Infinity", "c": "-Infinity"}
    assert json.loads(text) == expected
    curves = read_curves(folder / "metrics.jsonl")
    assert math.isnan(curves["a"][0][1])
    assert (curves["b"], curves["c"]) == ([(1, math.inf)], [(1, -math.inf)])


def test_by_hand(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script that no search runs prints what it reports."""
    monkeypatch.delenv("MTF_EXPERIMENT_DIR", raising=False)
    report(3, loss=0.5)
    assert capsys.readouterr().out == '{"step": 3, "loss": 0.5}\n'


@pytest.mark.parametrize(
    ("step", "metrics", "kind", "message"),
    [
        (1.5, {"a": 1}, TypeError, "integer"),
        (-1, {"a": 1}, ValueError, "step -1 is negative"),
        (1, {}, ValueError, "give at least one metric"),
        (1, {"step": 1}, ValueError, "name none of them"),
        (1, {"split": 1}, ValueError, "name none of them"),
        (1, {"job": 1}, ValueError, "name none of them"),
        (1, {"a": "0.5"}, TypeError, "metric 'a' is '0.5', not a number"),
        (1, {"a": b"1"}, TypeError, "not a number"),
        (1, {"a": None}, TypeError, "not a number"),
        (1, {"a": [1]}, TypeError, "not a number"),
    ],
)
def test_bad_reports(
    folder: Path, step: Any, metrics: Any, kind: type[Exception], message: str
) -> None:
    """What is no step or no number is refused, and nothing of it is written."""
    with pytest.raises(kind, match=message):
        report(step, **metrics)
    assert not list(folder.iterdir())


def test_behind_a_torn_line(folder: Path) -> None:
    """What a crash tore off does not take the next line along."""
    (folder / "metrics.jsonl").write_text('{"step": 1, "lo', encoding="utf-8")
    report(2, loss=0.5)
    report(3, loss=0.25)
    assert read_curves(folder / "metrics.jsonl") == {"loss": [(2, 0.5), (3, 0.25)]}


def test_a_full_disk(folder: Path) -> None:
    """A line that the disk has no room for is an error of the experiment, not silence."""
    (folder / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        report(1, loss=0.5)


CRAMPED = """
import resource
from mtf_gridsearch.report import report
report(1, loss=0.5)
resource.setrlimit(resource.RLIMIT_FSIZE, (40, 40))
try:
    report(2, loss=0.5)
except OSError as error:
    print(error)
"""


def test_a_part_of_a_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that takes less than the line is an error, whoever does it."""
    monkeypatch.setattr(os, "write", lambda _, data: len(data) - 1)
    with pytest.raises(OSError, match="only a part of a line"):
        report(1, loss=0.5)
    assert (folder / "metrics.jsonl").exists()


@pytest.mark.usefixtures("unmeasured")
def test_a_disk_that_becomes_full_within_a_line(folder: Path) -> None:
    """A part of a line is an error, and counts for nobody."""
    environ = {**os.environ, "MTF_EXPERIMENT_DIR": str(folder)}
    command = [sys.executable, "-c", CRAMPED]
    said = subprocess.run(
        command, env=environ, capture_output=True, encoding="utf-8", check=True
    ).stdout
    assert "only a part of a line" in said
    assert read_curves(folder / "metrics.jsonl") == {"loss": [(1, 0.5)]}


WRITER = """
import sys
from mtf_gridsearch.report import report
for step in range(300):
    report(step, **{"loss_" + sys.argv[1]: step / 3})
"""


def test_several_that_report_at_once(folder: Path) -> None:
    """Lines of several processes do not run into each other."""
    environ = {**os.environ, "MTF_EXPERIMENT_DIR": str(folder)}
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(n)], env=environ)
        for n in range(3)
    ]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    curves = read_curves(folder / "metrics.jsonl")
    expected = [(step, step / 3) for step in range(300)]
    assert curves == {f"loss_{n}": expected for n in range(3)}


def test_loads_little() -> None:
    """A script that reports loads neither pydantic nor yaml for it."""
    code = "import sys; from mtf_gridsearch.report import report; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True
    )
    assert not {"pydantic", "yaml", "rich", "numpy"} & set(loaded.stdout.split())
