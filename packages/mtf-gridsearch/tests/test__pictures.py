from __future__ import annotations

from pathlib import Path

from mtf_gridsearch._pictures import colours, missing_note, varying
from mtf_gridsearch.records import ExperimentRecord, MetricSummary, Status
from mtf_gridsearch.results import SearchResults


def test_dark_is_good_for_both_modes() -> None:
    """The map of one mode is that of the other, reversed."""
    assert colours("min") == "viridis"
    assert colours("max") == "viridis_r"


def test_what_is_missing_is_said_only_where_something_is() -> None:
    """A whole search needs no reasons."""
    loss = MetricSummary(last=1, last_step=0, min=1, min_step=0, max=1, max_step=0)
    good = ExperimentRecord(
        experiment_name="a",
        identity="a",
        parameters={"x": 1, "same": 1},
        status=Status.SUCCEEDED,
        metrics={"loss": loss},
    )
    bad = ExperimentRecord(experiment_name="b", identity="b", parameters={"same": 1})
    assert missing_note(SearchResults(Path(), (good,)), "loss", 1) == "1 of 1 experiment"
    both = SearchResults(Path(), (good, bad))
    assert missing_note(both, "loss", 1) == "1 of 2 experiments; without: 1 missing"
    assert varying(both) == ["x"]
