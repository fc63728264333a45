from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mtf_gridsearch.errors import DamagedJournalError, ResultsError, SearchFolderError
from mtf_gridsearch.journal import Journal
from mtf_gridsearch.records import (
    ExperimentRecord,
    GridExperiment,
    MetricSummary,
    Status,
    Usage,
)
from mtf_gridsearch.results import SearchResults, value_of


def summary(*values: float) -> MetricSummary:
    """Return the summary of a run that reported *values* at steps 0, 1, ..."""
    numbers = [value for value in values if not math.isnan(value)] or list(values)
    low, high = min(numbers), max(numbers)
    return MetricSummary(
        last=values[-1],
        last_step=len(values) - 1,
        min=low,
        min_step=values.index(low),
        max=high,
        max_step=values.index(high),
    )


def record(
    name: str, status: Status = Status.SUCCEEDED, **metrics: tuple[float, ...]
) -> ExperimentRecord:
    """Return an experiment that reported *metrics*."""
    return ExperimentRecord(
        experiment_name=name,
        identity=name,
        parameters={"n": name},
        status=status,
        metrics={key: summary(*values) for key, values in metrics.items()},
    )


def results(*records: ExperimentRecord) -> SearchResults:
    """Return the results of a search of *records*."""
    return SearchResults(Path("search"), records)


WRONG: Any = "wrong"
MIXED = results(
    record("a", loss=(0.5, 0.3, 0.4), acc=(0.6,)),
    record("b", loss=(0.9, 0.2), acc=(0.7,)),
    record("failed", Status.FAILED, loss=(0.0,), acc=(1.0,)),
    record("stopped", Status.STOPPED, loss=(0.8,), acc=(0.1,)),
    record("diverged", loss=(0.1, math.nan), acc=(0.9,)),
    record("silent"),
    record("missing", Status.MISSING),
)


def names(records: Any) -> list[str]:
    """Return what experiments are called."""
    return [each.experiment_name for each in records]


def shown(found: SearchResults, *arguments: Any, width: int = 160, **options: Any) -> str:
    """Return the table as a terminal has it."""
    console = Console(file=io.StringIO(), width=width)
    console.print(found.table(*arguments, **options))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture
def journaled(tmp_path: Path) -> Callable[..., Path]:
    """Write a search with a real journal: parameters and how each ended, by name."""

    def write(ends: Mapping[str, ExperimentRecord | None]) -> Path:
        journal = Journal(tmp_path)
        try:
            experiments: list[GridExperiment[Any]] = [
                GridExperiment(
                    experiment_name=name,
                    identity=name,
                    parameters={"n": number},
                    config={},
                )
                for number, name in enumerate(ends)
            ]
            journal.planned(experiments)
            journal.submitted({name: f"{name}.1" for name in ends if name != "planned"})
            journal.ended([end for end in ends.values() if end is not None])
        finally:
            journal.close()
        return tmp_path

    return write


def ended(name: str, status: Status = Status.SUCCEEDED, *loss: float) -> ExperimentRecord:
    """Return how a submitted experiment ended."""
    return ExperimentRecord(
        experiment_name=name,
        identity=name,
        parameters={},
        job_id=f"{name}.1",
        status=status,
        reason="out of memory" if status is Status.FAILED else "",
        metrics={"loss": summary(*loss)} if loss else {},
        usage=Usage(wall_s=61.0, cpu_s=2.0, max_rss_bytes=3),
    )


def test_every_experiment_of_the_journal_is_a_row(
    journaled: Callable[..., Path],
) -> None:
    """Whatever its status, in planned order, and counted."""
    folder = journaled(
        {
            "a": ended("a", Status.SUCCEEDED, 0.5, 0.25),
            "b": ended("b", Status.FAILED),
            "running": None,
            "planned": None,
        }
    )
    found = SearchResults.read(str(folder))
    assert names(found.records) == ["a", "b", "running", "planned"]
    assert found.counts == {"missing": 1, "pending": 1, "succeeded": 1, "failed": 1}
    assert list(found.counts) == ["missing", "pending", "succeeded", "failed"]
    assert found.parameters == ("n",)
    assert found.metrics == ("loss",)
    assert found.best("loss", "min").parameters == {"n": 0}
    assert found.name == folder.name


def test_a_running_experiment_shows_what_it_reported_so_far(
    journaled: Callable[..., Path],
) -> None:
    """Its metrics file is read, and it takes part in no ranking yet."""
    folder = journaled({"a": ended("a", Status.SUCCEEDED, 0.5), "running": None})
    (folder / "running").mkdir()
    lines = '{"step": 3, "loss": 0.125}\n{"step": 4, "lo'
    (folder / "running" / "metrics.jsonl").write_text(lines, "utf-8")
    found = SearchResults.read(folder)
    assert found.records[1].metrics["loss"].last == 0.125
    assert found.best("loss", "min").experiment_name == "a"
    assert found.left_out("loss") == {"pending": 1}


def test_a_folder_without_a_search_is_refused(tmp_path: Path) -> None:
    """Missing, empty or damaged, it is not shown as a search without experiments."""
    with pytest.raises(SearchFolderError, match=r"holds no journal\.jsonl"):
        SearchResults.read(tmp_path)
    with pytest.raises(SearchFolderError, match=r"holds no journal\.jsonl"):
        SearchResults.read(tmp_path / "nowhere")
    (tmp_path / "journal.jsonl").write_text("{}\n", "utf-8")
    with pytest.raises(DamagedJournalError):
        SearchResults.read(tmp_path)


def test_best_and_top_go_by_the_best_value_of_a_run_or_its_last() -> None:
    """Either word of either kind gives the order that it says."""
    assert MIXED.best("loss", "min").experiment_name == "b"
    assert names(MIXED.top(9, "loss", "min")) == ["b", "a", "stopped"]
    assert names(MIXED.top(2, "loss", "max")) == ["b", "stopped"]
    assert names(MIXED.top(9, "loss", "max", at="last")) == ["stopped", "a", "b"]
    assert names(MIXED.top(1, "acc", "max")) == ["diverged"]


def test_where_several_tie_the_first_planned_is_first() -> None:
    """The order of equals is that of the search, for both modes."""
    tied = results(record("x", loss=(1.0,)), record("y", loss=(1.0,)))
    assert names(tied.top(2, "loss", "min")) == ["x", "y"]
    assert names(tied.top(2, "loss", "max")) == ["x", "y"]


def test_what_a_ranking_leaves_out_is_counted_by_reason() -> None:
    """Failed, unfinished, silent and diverged runs each have a word, and none is lost."""
    left_out = MIXED.left_out("loss")
    assert left_out == {"failed": 1, "missing": 1, "not a number": 1, "not reported": 1}
    ranked = MIXED.ranking("loss", "min")
    assert len(ranked) + sum(left_out.values()) == len(MIXED.records)


def test_a_mean_says_what_is_not_in_it() -> None:
    """Its text names the number of experiments with and without a value."""
    found = MIXED.statistics("loss")
    assert found.mean == pytest.approx((0.4 + 0.2 + 0.8) / 3)
    assert found.std == pytest.approx(0.305505, abs=1e-6)
    assert (found.num_used, found.num_stopped) == (3, 1)
    assert str(found) == (
        "loss: 0.466667 ± 0.31 over 3 of 7 "
        "(1 of them stopped early; without 1 failed, 1 missing, 1 not a number, 1 not reported)"
    )
    assert MIXED.statistics("loss", "max", at="best").mean == pytest.approx(2.2 / 3)


def test_a_mean_of_one_has_no_spread() -> None:
    """A single value is no error."""
    one = results(record("a", loss=(1.0,)))
    assert str(one.statistics("loss")) == "loss: 1 over 1 of 1"
    assert one.statistics("loss").std is None


@pytest.mark.parametrize(("mode", "endless"), [("min", -math.inf), ("max", math.inf)])
def test_what_is_infinite_is_never_best(mode: Any, endless: float) -> None:
    """It has no rank and is in no mean, and is counted, for both modes."""
    found = results(record("a", loss=(endless,)), record("b", loss=(1.0,)))
    assert names(found.top(2, "loss", mode)) == ["b"]
    assert names(found.pareto({"loss": mode})) == ["b"]
    assert str(found.statistics("loss")) == "loss: 1 over 1 of 2 (without 1 infinite)"
    with pytest.raises(ResultsError, match="without a result: 1 infinite"):
        results(record("a", loss=(endless,))).best("loss", mode)


def test_a_metric_that_nobody_has_is_refused_with_the_nearest_name() -> None:
    """The message counts experiments and names metrics, so that the fix can be seen."""
    with pytest.raises(ResultsError) as caught:
        MIXED.best("los", "min")
    assert str(caught.value) == (
        "search: no experiment has a result for the metric 'los'; did you mean loss? "
        "(7 experiments: 1 missing, 1 stopped, 4 succeeded, 1 failed; without a result: 1 failed, "
        "1 missing, 5 not reported; metrics: loss, acc)"
    )
    with pytest.raises(
        ResultsError,
        match=r"0 experiments: none planned; without a result: none; metrics: none",
    ):
        results().statistics("loss")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MIXED.best("loss", WRONG), "mode is 'min' or 'max', not 'wrong'"),
        (lambda: MIXED.best("loss", "min", at=WRONG), "at is 'best' or 'last'"),
        (lambda: MIXED.top(0, "loss", "min"), "at least 1, not 0"),
        (lambda: MIXED.pareto({}), "needs objectives"),
        (lambda: MIXED.table(limit=-1), "at least 0"),
    ],
)
def test_other_words_and_numbers_are_refused(
    call: Callable[[], object], message: str
) -> None:
    """A caller's mistake is said as one."""
    with pytest.raises(ValueError, match=message):
        call()


def test_the_pareto_front_is_what_no_other_beats() -> None:
    """Against a check of every pair, on points with ties in one objective and in all."""
    points = [(1, 5), (2, 4), (2, 4), (3, 3), (3, 5), (4, 1), (5, 1), (0, 9), (1, 6)]
    search = results(*(record(str(i), a=(x,), b=(y,)) for i, (x, y) in enumerate(points)))

    def beats(p: tuple[int, int], q: tuple[int, int]) -> bool:
        return p != q and p[0] <= q[0] and p[1] >= q[1]

    expected = [
        str(i) for i, q in enumerate(points) if not any(beats(p, q) for p in points)
    ]
    assert names(search.pareto({"a": "min", "b": "max"})) == expected
    assert names(search.pareto({"a": "min", "b": "min"})) == [
        "0",
        "1",
        "2",
        "3",
        "5",
        "7",
    ]


def test_a_front_of_what_lacks_an_objective_is_refused() -> None:
    """Experiments that have one objective each make no front of two."""
    search = results(record("x", a=(1.0,)), record("y", b=(1.0,)))
    with pytest.raises(ResultsError, match="no experiment has a result for all of a, b"):
        search.pareto({"a": "min", "b": "min"})
    assert names(search.pareto({"a": "min"})) == ["x"]


def test_the_summary_is_the_documented_one(journaled: Callable[..., Path]) -> None:
    """Every key of the schema is there, with the numbers of the journal."""
    folder = journaled(
        {
            "a": ended("a", Status.SUCCEEDED, 0.5, 0.25),
            "b": ended("b", Status.FAILED),
            "planned": None,
        }
    )
    path = SearchResults.read(folder).write_summary()
    assert path == folder / "results_summary.json"
    found = json.loads(path.read_text("utf-8"))
    started_at, ended_at = (
        found["experiments"][0].pop(k) for k in ("started_at", "ended_at")
    )
    assert started_at <= ended_at
    first, second, third = found.pop("experiments")
    assert found == {
        "format": 1,
        "search": folder.name,
        "total": 3,
        "counts": {"missing": 1, "succeeded": 1, "failed": 1},
        "counts_dropped": {},
        "parameters": ["n"],
        "metrics": ["loss"],
        "statistics": {
            "loss": {
                "mean": 0.25,
                "std": None,
                "num_used": 1,
                "num_stopped": 0,
                "left_out": {"failed": 1, "missing": 1},
            }
        },
    }
    assert first == {
        "name": "a",
        "identity": "a",
        "status": "succeeded",
        "parameters": {"n": 0},
        "job_id": "a.1",
        "dropped": False,
        "attempts": 1,
        "reason": "",
        "usage": {"wall_s": 61.0, "cpu_s": 2.0, "max_rss_bytes": 3},
        "metrics": {
            "loss": {
                "last": 0.25,
                "last_step": 1,
                "min": 0.25,
                "min_step": 1,
                "max": 0.5,
                "max_step": 0,
            }
        },
    }
    assert (second["status"], second["reason"]) == ("failed", "out of memory")
    assert (third["status"], third["job_id"], third["metrics"]) == ("missing", None, {})


def test_the_same_journal_gives_the_same_bytes(journaled: Callable[..., Path]) -> None:
    """No clock and no path of a machine goes into the summary."""
    folder = journaled({"a": ended("a", Status.SUCCEEDED, 0.5)})
    first = SearchResults.read(folder).write_summary().read_bytes()
    other = SearchResults.read(folder).write_summary(folder / "sub" / "other.json")
    assert other.read_bytes() == first


def test_a_summary_with_numbers_that_json_lacks_is_strict_json(tmp_path: Path) -> None:
    """They are words, in metrics, statistics and parameters."""
    odd = ExperimentRecord(
        experiment_name="a",
        identity="a",
        parameters={"cap": math.inf},
        status=Status.SUCCEEDED,
        metrics={"loss": summary(-math.inf), "nan": summary(math.nan)},
    )
    search = SearchResults(tmp_path, (odd,))
    text = search.write_summary().read_text("utf-8")

    def refuse(word: str) -> None:
        raise AssertionError(word)

    found = json.loads(text, parse_constant=refuse)
    assert found["experiments"][0]["parameters"] == {"cap": "Infinity"}
    assert found["experiments"][0]["metrics"]["nan"]["last"] == "NaN"
    assert found["experiments"][0]["metrics"]["loss"]["min"] == "-Infinity"
    assert found["statistics"]["loss"]["left_out"] == {"infinite": 1}
    assert found["statistics"]["nan"]["left_out"] == {"not a number": 1}
    assert found == search.to_plain()


def test_a_table_ranks_and_shows_what_has_no_rank() -> None:
    """Rows without a rank follow, and a line counts them by reason."""
    text = shown(MIXED, "loss")
    rows = [
        line.split()[:3] for line in text.splitlines() if " a " in line or "b " in line
    ]
    assert ["1", "b", "succeeded"] in rows
    assert ["2", "a", "succeeded"] in rows
    assert "-  failed" in text
    below = " ".join(text.split())  # it is as wide as the table
    assert "7 experiments: 1 missing, 1 stopped, 4 succeeded, 1 failed" in below
    assert "without a rank by loss: 1 failed, 1 missing, 1 not a number" in below
    assert "not shown" not in text


def test_a_table_says_what_it_does_not_show() -> None:
    """Rows and metrics beyond the limits are counted; all have their row without one."""
    many = results(
        *(record(f"e{i}", a=(1,), b=(1,), c=(1,), d=(1,), e=(1,)) for i in "abc")
    )
    text = shown(many, limit=2)
    assert "1 more not shown" in text
    assert "1 more metrics not shown" in text
    assert "ec" not in text
    assert "ec" in shown(many, limit=None)


def test_a_parameter_that_all_share_stands_below_the_table() -> None:
    """It needs no column; one experiment alone keeps all of its."""
    shared = [
        ExperimentRecord(experiment_name=n, identity=n, parameters={"x": [1], "y": n})
        for n in "ab"
    ]
    text = shown(results(*shared))
    assert "all have x=[1]" in text
    assert " y " in text
    assert "all have" not in shown(results(shared[0]))


def test_values_are_taken_from_the_side_that_is_good() -> None:
    """The best value is the least for one mode and the greatest for the other."""
    run = record("a", loss=(3.0, 1.0, 2.0))
    assert value_of(run, "loss") == 1.0
    assert value_of(run, "loss", "max") == 3.0
    assert value_of(run, "loss", "max", "last") == 2.0
    assert value_of(run, "acc") is None


def test_sums_that_no_float_holds() -> None:
    """Losses that exploded and stayed finite have a mean, and the summary is written."""
    found = results(*(record(name, loss=(1.7e308,)) for name in "abc"))
    assert found.statistics("loss").mean == 1.7e308
    assert found.to_plain()["statistics"]["loss"]["mean"] == 1.7e308


def test_what_is_no_longer_in_the_grid_is_counted_apart() -> None:
    """It is in no ranking, mean or count of the grid, and every table says so."""
    gone = [replace(record(n, loss=(0.1,)), is_dropped=True) for n in "cd"]
    never = replace(record("e", Status.MISSING), is_dropped=True)
    found = results(record("a", loss=(0.5,)), record("b", loss=(0.7,)), *gone, never)
    assert found.counts == {Status.SUCCEEDED: 2}
    assert found.counts_dropped == {Status.MISSING: 1, Status.SUCCEEDED: 2}
    assert found.best("loss", "min").experiment_name == "a"
    assert found.statistics("loss").num_used == 2
    assert found.left_out("loss") == {"no longer in the grid": 3}
    assert [e["dropped"] for e in found.to_plain()["experiments"]].count(True) == 3
    said = "2 experiments: 2 succeeded; no longer in the grid: 1 missing, 2 succeeded"
    assert said in str(found.table("loss").caption)
