"""Reading what experiments report, while they do."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtf_gridsearch.metrics_file import CurveReader, read_curves, summarise
from mtf_gridsearch.records import MetricSummary


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where metrics may be."""
    return tmp_path / "metrics.jsonl"


def add(path: Path, text: str) -> None:
    """Append to the file, as a writer does."""
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def test_grows(path: Path) -> None:
    """Each look takes what is new, and says whether there was anything."""
    reader = CurveReader(path)
    assert not reader.read()
    add(path, '{"step": 1, "loss": 0.5}\n')
    assert reader.read()
    assert not reader.read()
    add(path, '{"step": 2, "loss": 0.25, "accuracy": 1}\n{"step": 3, "lo')
    assert reader.read()
    assert reader.curves == {"loss": [(1, 0.5), (2, 0.25)], "accuracy": [(2, 1.0)]}
    assert not reader.read()
    add(path, 'ss": 0.125}\n')
    assert reader.read()
    assert reader.curves["loss"][-1] == (3, 0.125)


def test_lines_of_a_trainer(path: Path) -> None:
    """Metrics of a split carry its name; what only counts is no metric."""
    add(
        path,
        '{"step": 4, "epoch": 1, "split": "train", "samples": 64, "loss": 2.0,'
        ' "lr": 0.1, "grad_norm": "NaN"}\n'
        '{"step": 4, "epoch": 1, "split": "val", "samples": 10, "loss": 1.5}\n',
    )
    curves = read_curves(path)
    assert math.isnan(curves.pop("train/grad_norm")[0][1])
    assert curves == {
        "train/loss": [(4, 2.0)],
        "train/lr": [(4, 0.1)],
        "val/loss": [(4, 1.5)],
    }


def test_counts_are_metrics_of_who_reports_them(path: Path) -> None:
    """Without a split, ``epoch`` is a number as any other."""
    add(path, '{"step": 1, "epoch": 3, "note": "text", "flag": true, "none": null}\n')
    assert read_curves(path) == {"epoch": [(1, 3.0)]}


def test_started_again(path: Path) -> None:
    """A step that comes again takes the place of all from there on."""
    for step in (1, 2, 3, 4):
        add(path, f'{{"step": {step}, "loss": {step}, "other": 0}}\n')
    add(path, '{"step": 3, "loss": 30}\n{"step": 5, "loss": 50}\n')
    curves = read_curves(path)
    assert curves["loss"] == [(1, 1.0), (2, 2.0), (3, 30.0), (5, 50.0)]
    assert len(curves["other"]) == 4
    add(path, '{"step": 0, "loss": 7}\n')
    assert read_curves(path)["loss"] == [(0, 7.0)]


def test_replaced_or_cut(path: Path) -> None:
    """A file that is another, or became shorter, is read from its beginning."""
    add(path, '{"step": 1, "a": 1}\n{"step": 2, "a": 2}\n')
    reader = CurveReader(path)
    reader.read()
    path.write_text('{"step": 1, "a": 5}\n', encoding="utf-8")
    assert reader.read()
    assert reader.curves == {"a": [(1, 5.0)]}
    other = path.with_name("other")
    other.write_text('{"step": 1, "b": 6}\n{"step": 2, "b": 7}\n', encoding="utf-8")
    other.replace(path)
    assert reader.read()
    assert reader.curves == {"b": [(1, 6.0), (2, 7.0)]}


@pytest.mark.parametrize(
    "line",
    [
        *("garbage", "[1, 2]", "3", '"text"', "null", "{}", '{"loss": 1}'),
        *('{"step": "1", "loss": 1}', '{"step": 1.5, "loss": 1}', "[" * 100_000),
        *('{"step": true, "loss": 1}', '{"step": null, "loss": 1}', "\0"),
    ],
)
def test_damaged_lines(path: Path, line: str) -> None:
    """A line that is none is counted, and takes no other with it."""
    add(path, f'{{"step": 1, "a": 1}}\n\n{line}\n{{"step": 2, "a": 2}}\n')
    reader = CurveReader(path)
    assert reader.read()
    assert reader.curves == {"a": [(1, 1.0), (2, 2.0)]}
    assert reader.num_damaged == 1


def test_bytes_that_are_no_text(path: Path) -> None:
    """A damaged disk hinders nobody."""
    path.write_bytes(b'\xff\xfe{"step": 1}\n{"step": 1, "a": 1}\n')
    assert read_curves(path) == {"a": [(1, 1.0)]}


def test_numbers_too_large_for_a_float(path: Path) -> None:
    """An integer beyond all floats is no value; the others of its line are."""
    add(path, '{"step": 1, "a": 1' + "0" * 400 + ', "b": 2}\n')
    assert read_curves(path) == {"b": [(1, 2.0)]}


def test_unreadable(path: Path) -> None:
    """A folder in its place, or no file, is nothing yet."""
    path.mkdir()
    assert not CurveReader(path).read()
    assert read_curves(path / "none") == {}


def test_summary() -> None:
    """The last, least and greatest values; of equal ones the first."""
    curve = [(1, 3.0), (2, 1.0), (3, 5.0), (4, 1.0), (5, 5.0), (6, 2.0)]
    assert summarise({"loss": curve, "none": []}) == {
        "loss": MetricSummary(
            last=2.0, last_step=6, min=1.0, min_step=2, max=5.0, max_step=3
        )
    }


def test_summary_of_what_is_no_number() -> None:
    """NaN and infinity are neither least nor greatest, unless there is nothing else."""
    found = summarise({"a": [(1, math.nan), (2, 4.0), (3, math.nan)]})["a"]
    assert math.isnan(found.last)
    assert (found.min, found.max, found.min_step, found.max_step) == (4.0, 4.0, 2, 2)
    found = summarise({"a": [(1, math.inf), (2, 4.0), (3, -math.inf), (4, 3.0)]})["a"]
    assert (found.min, found.max, found.last) == (3.0, 4.0, 3.0)
    found = summarise({"a": [(1, math.nan), (2, math.nan)]})["a"]
    assert math.isnan(found.min)
    assert (found.min_step, found.max_step, found.last_step) == (1, 1, 2)


@given(
    steps=st.lists(st.integers(0, 20), min_size=1, max_size=30),
    pieces=st.lists(st.integers(1, 40), max_size=30),
)
def test_in_whatever_pieces(
    steps: list[int], pieces: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """However a file grows, it reads as it does at once, and steps only rise."""
    path = tmp_path_factory.mktemp("pieces") / "metrics.jsonl"
    text = "".join(f'{{"step": {s}, "a": {i}}}\n' for i, s in enumerate(steps))
    reader = CurveReader(path)
    done = 0
    for piece in [*pieces, len(text)]:
        add(path, text[done : done + piece])
        done += piece
        reader.read()
    assert reader.curves == read_curves(path)
    points = reader.curves["a"]
    assert [s for s, _ in points] == sorted({s for s, _ in points})
    assert points[-1] == (steps[-1], len(steps) - 1)


def test_attempts_that_failed_may_be_left_out(path: Path) -> None:
    """Their lines count for nobody; what others reported is one curve."""
    for job, step in (("a.1", 1), ("a.2", 1), ("a.2", 2), ("a.3", 3), ("a.3", 4)):
        add(path, f'{{"step": {step}, "loss": {step}, "{job}": 0, "job": "{job}"}}\n')
    found = read_curves(path, ["/search/a/a.1", "a.2"])
    assert found == {"loss": [(3, 3.0), (4, 4.0)], "a.3": [(3, 0.0), (4, 0.0)]}
