from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, model_validator

from mtf_gridsearch._supply import GridSearch, GridSupply, Search
from mtf_gridsearch.early_stopping import SuccessiveHalving
from mtf_gridsearch.grid import ParameterGrid
from mtf_gridsearch.naming import NamingStrategy
from mtf_gridsearch.records import ExperimentRecord, GridExperiment, Status, Supply
from mtf_gridsearch.search import ParameterGridSearch

MISSING = {s for s in Status if s not in {"succeeded", "stopped", "failed", "timeout"}}


def search(
    *values: int, naming: NamingStrategy = NamingStrategy.SEQUENTIAL, **options: Any
) -> GridSearch:
    """Return a search over *values* of one parameter."""
    whole = ParameterGridSearch({"experiment_name": "sweep", "n": 0}, naming=naming)
    whole.add_grid(ParameterGrid("g").add_parameter("n", list(values)))
    return GridSearch(whole, **options)


def recorded(
    experiment: GridExperiment[Any], status: Status = Status.MISSING
) -> ExperimentRecord:
    """Return what a journal says of *experiment*."""
    return ExperimentRecord(
        experiment_name=experiment.experiment_name,
        identity=experiment.identity,
        parameters=experiment.parameters,
        status=status,
        job_id="1",
    )


def records(of: GridSearch, *statuses: Status) -> dict[str, ExperimentRecord]:
    """Return a record for each experiment of *of*, with the given statuses."""
    pairs = zip(of.plan({}), statuses, strict=True)
    return {e.experiment_name: recorded(e, status) for e, status in pairs}


def test_it_fits_what_executors_ask() -> None:
    """A grid's search has the name, the definition and the size of what it is made of."""
    asked: Search = search(1, 2)
    assert (asked.name, asked.total) == ("sweep", 2)
    assert asked.to_plain()["base"] == {"experiment_name": "sweep", "n": 0}


def test_names_stay_when_a_search_grows() -> None:
    """What is planned keeps its name whatever comes before it; no name is used twice."""
    first = search(2, 3)
    known = records(first, Status.SUCCEEDED, Status.MISSING)
    names = {r.parameters["n"]: name for name, r in known.items()}

    grown = {e.parameters["n"]: e for e in search(1, 2, 3, 4).plan(known)}

    assert {n: grown[n].experiment_name for n in (2, 3)} == names
    assert len({e.experiment_name for e in grown.values()}) == 4
    assert all(e.config["experiment_name"] == e.experiment_name for e in grown.values())


@pytest.mark.parametrize("status", Status)
def test_what_is_missing_starts(status: Status) -> None:
    """By default all starts but what ended for good; with `only`, what failed alone."""
    assert search(1).starts(status) == (status in MISSING)
    failed = search(1, only="failed")
    assert failed.starts(status) == (status in {Status.FAILED, Status.TIMEOUT})
    is_over = status in {Status.SUCCEEDED, Status.STOPPED}
    assert failed.starts(status, has_failed=True) != is_over


def test_only_failed_is_the_only_word() -> None:
    """Another word for `only` is refused."""
    with pytest.raises(ValueError, match="only must be 'failed'"):
        search(1, only="missing")


def test_a_supply_hands_out_each_once_in_order(tmp_path: Path) -> None:
    """No more than asked for, in planned order, without what ended; then it is exhausted."""
    asked = search(1, 2, 3, 4)
    known = records(
        asked, Status.MISSING, Status.SUCCEEDED, Status.CANCELLED, Status.MISSING
    )
    supply: Supply = asked.open(tmp_path, known)

    assert supply.total == 4
    assert [e.parameters["n"] for e in supply.take(2)] == [1, 3]
    was_exhausted = supply.is_exhausted
    assert not was_exhausted
    assert [e.parameters["n"] for e in supply.take(9)] == [4]
    assert supply.is_exhausted
    assert supply.take(1) == []


def test_without_a_rule_nothing_is_stopped(tmp_path: Path) -> None:
    """Metrics are looked at by rules alone."""
    supply = GridSupply([], 0, tmp_path)
    record = records(search(1), Status.RUNNING).popitem()[1]
    assert supply.observe(record, {"loss": [(1, float("nan"))]}) is None
    supply.tell(record)


def test_a_rule_learns_from_files_of_what_has_ended(tmp_path: Path) -> None:
    """It is shown the curves of what ended earlier, and judges what runs by them."""
    rule = SuccessiveHalving("loss", "min", min_step=1, factor=2)
    asked = search(1, 2, rule=rule)
    known = records(asked, Status.SUCCEEDED, Status.RUNNING)
    done, running = known.values()
    (tmp_path / done.experiment_name).mkdir()
    line = json.dumps({"step": 1, "loss": 0.5}) + "\n"
    metrics = tmp_path / done.experiment_name / "metrics.jsonl"
    metrics.write_text(line, "utf-8")
    supply = asked.open(tmp_path, known)

    supply.tell(replace(done, job_id=None))  # was never started
    assert supply.observe(running, {"loss": [(1, 0.7)]}) is None
    supply.tell(done)
    other = replace(running, experiment_name="other")
    reason = supply.observe(other, {"loss": [(1, 0.7)]})
    assert reason is None  # among the best 2 of 3
    last = replace(running, experiment_name="last")
    assert supply.observe(last, {"loss": [(1, 0.9)]}) is not None


def test_each_run_begins_with_the_rule_as_it_was_given(tmp_path: Path) -> None:
    """What a rule saw in one search stops nothing in the next."""
    rule = SuccessiveHalving("loss", "min", min_step=1, factor=2)
    low, high = ({"loss": [(1, value)]} for value in (0.1, 9.0))
    for name, curves in (("a", low), ("b", high)):
        whole = ParameterGridSearch({"experiment_name": name, "n": 0})
        whole.add_grid(ParameterGrid("g").add_parameter("n", [1]))
        of = GridSearch(whole, rule=rule)
        known = records(of, Status.MISSING)
        (record,) = known.values()
        assert of.open(tmp_path, known).observe(record, curves) is None


class Filled(BaseModel):
    n: int = 1
    double: int | None = None

    @model_validator(mode="after")
    def _fill(self) -> Filled:
        if self.double is None:
            self.double = self.n * 2
        return self


def test_what_a_class_makes_again_is_told_before_it_runs() -> None:
    """A value that was set and follows from a parameter is a doubt."""
    whole = ParameterGridSearch(Filled(), "s")
    of = GridSearch(whole.add_grid(ParameterGrid("g").add_parameter("n", [1, 2])))
    of.plan({})
    (doubt,) = of.doubts()
    assert doubt.startswith(
        "double follows from other values: it is made again (4 instead"
    )
    assert of.name_key == "experiment_name"
