from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from mtf_gridsearch.compare import compare
from mtf_gridsearch.errors import ResultsError
from mtf_gridsearch.records import ExperimentRecord, MetricSummary, Status
from mtf_gridsearch.results import SearchResults


def search(name: str, losses: dict[int, float | None]) -> SearchResults:
    """Return results with a loss by seed; None is an experiment that failed."""
    records = []
    for seed, loss in losses.items():
        metrics = {}
        if loss is not None:
            metrics["loss"] = MetricSummary(
                last=loss + 1, last_step=1, min=loss, min_step=0, max=loss + 1, max_step=1
            )
        records.append(
            ExperimentRecord(
                experiment_name=f"{name}_{seed}",
                identity=f"{seed:016x}",
                parameters={"seed": seed},
                status=Status.FAILED if loss is None else Status.SUCCEEDED,
                metrics=metrics,
            )
        )
    return SearchResults(Path(name), tuple(records))


OLD = search("old", {1: 0.5, 2: 0.4, 3: 0.3, 4: None, 5: 0.9, 7: 0.01})
NEW = search("new", {5: 0.9, 4: 0.1, 3: 0.4, 2: 0.1, 1: 0.4, 6: 0.05})


def test_experiments_are_paired_by_their_parameters() -> None:
    """Whatever their names and order; what one side lacks is listed."""
    found = compare(OLD, NEW, "loss", "min")
    assert [(p.left.experiment_name, p.right.experiment_name) for p in found.pairs] == [
        (f"old_{seed}", f"new_{seed}") for seed in (1, 2, 3, 4, 5)
    ]
    assert [r.experiment_name for r in found.only_left] == ["old_7"]
    assert [r.experiment_name for r in found.only_right] == ["new_6"]
    assert found.best_left == (OLD.records[5], 0.01)
    assert found.best_right == (NEW.records[5], 0.05)


def test_pairs_are_counted_by_which_side_is_better() -> None:
    """A pair without a result on a side is in no mean, and counted as such."""
    found = compare(OLD, NEW, "loss", "min")
    assert (found.num_better, found.num_worse, found.num_equal) == (2, 1, 1)
    assert found.num_left_out == 1
    assert found.mean_difference == pytest.approx((-0.1 - 0.3 + 0.1 + 0) / 4)
    other = compare(OLD, NEW, "loss", "max")
    assert (other.num_better, other.num_worse) == (1, 2)
    last = compare(OLD, NEW, "loss", "max", at="last")
    assert last.best_left == (OLD.records[4], 1.9)


def test_the_table_shows_the_largest_difference_first_and_what_failed() -> None:
    """A side without a result shows its status; rows beyond the limit are counted."""

    def shown(limit: int | None) -> str:
        console = Console(file=io.StringIO(), width=120)
        console.print(compare(OLD, NEW, "loss", "min").table(limit=limit))
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()

    rows = [line.split() for line in shown(None).splitlines()]
    order = [row[0] for row in rows if row and row[0].startswith("seed=")]
    assert order[0] == "seed=2"
    assert order[-1] == "seed=4"
    assert ["seed=4", "failed", "0.1", "-"] in rows
    text = " ".join(shown(2).split())
    assert "3 more pairs not shown" in text
    assert "best left: 0.01 (old_7), of 6 (5 succeeded, 1 failed)" in text
    assert "5 combinations in both, 1 lack a result" in text
    assert "right is better in 2, worse in 1" in text
    assert "1 only left, 1 only right" in text


def test_one_side_may_lack_the_metric_but_not_both() -> None:
    """Then there is no difference to speak of, and the other side's best stands."""
    empty = search("empty", {1: None})
    found = compare(OLD, empty, "loss", "min")
    assert found.best_right is None
    assert found.mean_difference is None
    assert "best right: no result, of 1 (1 failed)" in found.lines()
    assert compare(empty, OLD, "loss", "min").best_left is None
    with pytest.raises(ResultsError, match="empty: no experiment has a result"):
        compare(empty, search("none", {}), "loss", "min")
    assert "none planned" in compare(OLD, search("none", {}), "loss", "min").lines()[1]
