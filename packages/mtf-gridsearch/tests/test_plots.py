"""Pictures are checked by what is in them, read out of SVG, which keeps text as text."""

from __future__ import annotations

import io
import math
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest

with warnings.catch_warnings():
    # Its cache of fonts, made at the first import, is written without an encoding.
    warnings.simplefilter("ignore", EncodingWarning)
    import matplotlib.figure

from mtf_gridsearch.errors import ResultsError
from mtf_gridsearch.plots import (
    plot_curves,
    plot_heat_map,
    plot_parallel,
    plot_parameters,
)
from mtf_gridsearch.records import ExperimentRecord, MetricSummary, Status
from mtf_gridsearch.results import SearchResults


@pytest.fixture(scope="module", autouse=True)
def _fonts() -> None:
    """Let Matplotlib open its fonts, which it keeps open from then on."""
    figure = matplotlib.figure.Figure()
    figure.text(0, 0, "a$b^2$")
    for kind in ("png", "svg", "pdf"):
        figure.savefig(io.BytesIO(), format=kind)


@pytest.fixture(autouse=True)
def _text_in_svg() -> Iterator[None]:
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        yield


def words(path: Path) -> list[str]:
    """Return every text in a picture."""
    return [
        unescape(re.sub(r"<[^>]*>", "", text)).strip()
        for text in re.findall(r"<text.*?</text>", path.read_text("utf-8"), re.DOTALL)
    ]


def run(
    number: int, status: Status, loss: float | None, **parameters: Any
) -> ExperimentRecord:
    """Return an experiment whose loss was *loss* at last and at best."""
    metrics = {}
    if loss is not None:
        metrics["val/loss"] = MetricSummary(
            last=loss, last_step=3, min=loss, min_step=3, max=loss, max_step=3
        )
    return ExperimentRecord(
        experiment_name=f"e{number}",
        identity=f"{number}",
        parameters=parameters,
        status=status,
        metrics=metrics,
    )


@pytest.fixture
def search(tmp_path: Path) -> SearchResults:
    """Return a search with experiments of each kind; those that ran have curves."""
    records = [
        run(
            number,
            Status.SUCCEEDED,
            1 + number / 10,
            **{"optimizer.lr": 10.0 ** (-number / 4), "model.type": "ab$"[number % 3]},
            **({"model.depth": number % 2 + 1} if number % 3 else {}),
        )
        for number in range(12)
    ]
    records += [
        run(12, Status.STOPPED, 3.0, **{"optimizer.lr": 0.5, "model.type": "a"}),
        run(13, Status.FAILED, 9.0, **{"optimizer.lr": 1.0, "model.type": "b"}),
        run(14, Status.RUNNING, 2.0, **{"optimizer.lr": 1.0, "model.type": "c_only"}),
        run(15, Status.MISSING, None, **{"optimizer.lr": 1.0, "model.type": "a"}),
        run(16, Status.SUCCEEDED, math.inf, **{"optimizer.lr": 1.0, "model.type": "a"}),
    ]
    for record in records:
        if record.status is not Status.MISSING:
            (tmp_path / record.experiment_name).mkdir()
            file = tmp_path / record.experiment_name / "metrics.jsonl"
            last = record.metrics["val/loss"].last if record.metrics else 0
            lines = [f'{{"step": {s}, "val/loss": {last + 3 - s}}}' for s in range(4)]
            file.write_text("\n".join(lines).replace("inf", "1") + "\n", "utf-8")
    return SearchResults(tmp_path, tuple(records))


MISSING = "13 of 17 experiments; without: 1 failed, 1 infinite, 1 missing, 1 running"


def test_a_metric_is_drawn_against_each_parameter_that_varies(
    search: SearchResults, tmp_path: Path
) -> None:
    """Axes are labelled, every kind of experiment is in the legend, the rest counted."""
    path = plot_parameters(search, "val/loss", "min", tmp_path / "p.svg")
    found = words(path)
    for word in ("optimizer.lr", "model.type", "model.depth", "val/loss, best"):
        assert word in found
    for word in ("succeeded", "stopped early", "no result", "not ended", "best", "mean"):
        assert word in found
    assert "(absent)" in found
    assert "$" in found
    assert MISSING in found
    assert f"val/loss by parameter: {search.name[:39]}" in " ".join(found)


def test_few_numbers_have_ticks_where_they_are(tmp_path: Path) -> None:
    """Not at round numbers that nobody tried."""
    records = [
        run(i, Status.SUCCEEDED, 10.0**i, size=size, name="x" * i)
        for i, size in enumerate((16, 48, 768))
    ]
    search = SearchResults(tmp_path, tuple(records))
    found = words(
        plot_parameters(search, "val/loss", "max", tmp_path / "p.svg", at="last")
    )
    assert {"16", "48", "768", "val/loss, last"} <= set(found)
    assert "mean" not in found


def test_parallel_coordinates_name_each_axis_and_its_values(
    search: SearchResults, tmp_path: Path
) -> None:
    """The metric is the last axis; what has no value is in the legend."""
    found = words(plot_parallel(search, "val/loss", "min", tmp_path / "p.svg"))
    for word in ("optimizer.lr", "model.type", "model.depth", "val/loss, best"):
        assert word in found
    assert {"0.1", "0.01", "c_only", "(absent)", "no result", "not ended"} <= set(found)
    assert MISSING in found


def test_parallel_coordinates_of_a_search_without_failures_need_no_legend(
    tmp_path: Path,
) -> None:
    """Two experiments are enough for a picture."""
    records = [run(i, Status.SUCCEEDED, float(i), a=i) for i in range(2)]
    search = SearchResults(tmp_path, tuple(records))
    found = words(plot_parallel(search, "val/loss", "max", tmp_path / "p.svg"))
    assert "2 of 2 experiments" in found
    assert "no result" not in found


def test_a_heat_map_says_of_how_many_a_mean_is(
    search: SearchResults, tmp_path: Path
) -> None:
    """Cells count experiments with and without a value; axes say which parameters."""
    path = plot_heat_map(
        search, "model.type", "model.depth", "val/loss", "min", tmp_path / "p.svg"
    )
    found = words(path)
    assert {"model.type", "model.depth", "mean of val/loss, best", "(absent)"} <= set(
        found
    )
    assert {"1.7", "1.4", "of 2", "2 without", "1 without", MISSING} <= set(found)


def test_a_heat_map_of_many_cells_has_ranges_and_no_text_in_cells(
    tmp_path: Path,
) -> None:
    """Numbers are cut into ranges; labels that are long are turned."""
    records = [
        run(i, Status.SUCCEEDED, float(i), a=i / 7, b=f"a long label {i % 15}")
        for i in range(60)
    ]
    search = SearchResults(tmp_path, tuple(records))
    path = plot_heat_map(search, "a", "b", "val/loss", "max", tmp_path / "p.svg")
    found = words(path)
    assert "0 to 1" in found
    assert not any(word.startswith("of ") for word in found)


def test_learning_curves_name_the_best_and_mark_the_others(
    search: SearchResults, tmp_path: Path
) -> None:
    """Ranks and values are in the legend, and what has no curve is counted."""
    path = plot_curves(search, "val/loss", "min", tmp_path / "p.svg", num_named=2)
    found = words(path)
    assert {"1. e0 (1)", "2. e1 (1.1)", "step", "val/loss"} <= set(found)
    assert {"succeeded", "stopped early", "no result", "not ended"} <= set(found)
    assert "3. e2 (1.2)" not in found
    assert "16 of 17 experiments; 1 without a curve" in found


def test_curves_can_be_drawn_before_anything_has_ended(tmp_path: Path) -> None:
    """A search whose first experiments run has no best yet, and wide values a log axis."""
    (tmp_path / "e1").mkdir()
    lines = '{"step": 0, "val/loss": 1000}\n{"step": 1, "val/loss": 0.5}\n'
    (tmp_path / "e1" / "metrics.jsonl").write_text(lines, "utf-8")
    search = SearchResults(tmp_path, (run(1, Status.RUNNING, None, a=1),))
    found = words(plot_curves(search, "val/loss", "max", tmp_path / "p.svg", num_named=0))
    assert "not ended" in found
    assert "1 of 1 experiment; 0 without a curve" in found


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda s, p: plot_parameters(s, "acc", "min", p), "no experiment has a result"),
        (
            lambda s, p: plot_curves(s, "acc", "min", p),
            "no experiment has a curve of 'acc'",
        ),
        (
            lambda s, p: plot_heat_map(s, "model.type", "y", "val/loss", "min", p),
            "no parameter 'y'; there are: optimizer.lr, model.type, model.depth",
        ),
    ],
)
def test_what_is_not_there_is_refused(
    search: SearchResults,
    tmp_path: Path,
    draw: Callable[[SearchResults, Path], object],
    message: str,
) -> None:
    """No empty picture is made."""
    with pytest.raises(ResultsError, match=re.escape(message)):
        draw(search, tmp_path / "p.svg")
    assert not (tmp_path / "p.svg").exists()


def test_numbers_near_the_largest_are_drawn_around(tmp_path: Path) -> None:
    """Huge results lie with those without one, and a huge parameter has labels."""
    huge = [run(n, Status.SUCCEEDED, (-1) ** n * 1.7e308, x=n, y=1) for n in range(4)]
    for large in (2**1024 - 1, -1.7e308):
        rows = [run(9, Status.SUCCEEDED, 0.5, x=large, y=2), *huge]
        results = SearchResults(tmp_path, tuple(rows))
        for draw in (plot_parameters, plot_parallel):
            draw(results, "val/loss", "min", tmp_path / "a.svg")
        assert any(
            "17976931348" in w or "-1.7e+308" in w for w in words(tmp_path / "a.svg")
        )
        plot_heat_map(results, "x", "y", "val/loss", "min", tmp_path / "h.svg")
        assert "1 without" in words(tmp_path / "h.svg")
    (tmp_path / "e9").mkdir()
    lines = [
        f'{{"step": {s}, "val/loss": {v}}}'
        for s, v in enumerate((1, 1.7e308, -1.7e308, 2))
    ]
    (tmp_path / "e9" / "metrics.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    plot_curves(results, "val/loss", "min", tmp_path / "c.svg")
    with pytest.raises(ResultsError, match="all results of 'val/loss' are too large"):
        plot_parallel(
            SearchResults(tmp_path, tuple(huge)), "val/loss", "min", tmp_path / "b.svg"
        )


def test_nothing_to_compare_is_refused(tmp_path: Path) -> None:
    """A search of one value each, or of infinite ones alone, has no picture."""
    same = SearchResults(tmp_path, (run(1, Status.SUCCEEDED, 1.0, a=1),))
    with pytest.raises(ResultsError, match="no parameter has two values"):
        plot_parallel(same, "val/loss", "min", tmp_path / "p.svg")
    endless = SearchResults(tmp_path, (run(1, Status.SUCCEEDED, math.inf, a=1),))
    with pytest.raises(ResultsError, match="1 infinite"):
        plot_parameters(endless, "val/loss", "min", tmp_path / "p.svg")


def test_the_suffix_chooses_the_format(search: SearchResults, tmp_path: Path) -> None:
    """PNG and PDF begin as such files do; another suffix is refused before drawing."""
    png = plot_curves(search, "val/loss", "min", tmp_path / "p.png")
    assert png.read_bytes().startswith(b"\x89PNG")
    pdf = plot_curves(search, "val/loss", "min", tmp_path / "p.PDF")
    assert pdf.read_bytes().startswith(b"%PDF")
    with pytest.raises(ValueError, match=r"ends in one of \.pdf, \.png, \.svg"):
        plot_curves(search, "val/loss", "min", tmp_path / "p.gif")
    with pytest.raises(ValueError, match="at least 0, not -1"):
        plot_curves(search, "val/loss", "min", tmp_path / "p.png", num_named=-1)


def test_a_picture_that_cannot_be_written_leaves_nothing_beside_it(
    search: SearchResults, tmp_path: Path
) -> None:
    """Nor does it touch what is there."""
    (tmp_path / "p.svg").mkdir()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OSError, match=r"p\.svg"):
        plot_curves(search, "val/loss", "min", tmp_path / "p.svg")
    assert sorted(tmp_path.iterdir()) == before


def test_without_matplotlib_the_extra_is_named(
    search: SearchResults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says what to install."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"pip install 'mtf-gridsearch\[plot\]'"
    ):
        plot_curves(search, "val/loss", "min", tmp_path / "p.png")
