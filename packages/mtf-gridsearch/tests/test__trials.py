from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest

from mtf_gridsearch import _study
from mtf_gridsearch._trials import STORAGE_NAME, STUDY_NAME, BayesianSupply
from mtf_gridsearch.bayes import BayesianSearch
from mtf_gridsearch.distributions import int_uniform, loguniform, uniform
from mtf_gridsearch.errors import (
    GridError,
    InvalidExperimentsError,
    ResultsError,
    SearchFolderError,
)
from mtf_gridsearch.grid import ParameterGrid
from mtf_gridsearch.identity import identity_of
from mtf_gridsearch.records import (
    ExperimentRecord,
    GridExperiment,
    MetricSummary,
    Status,
)

BASE = {"experiment_name": "d", "lr": 0.1, "type": "mlp", "depth": 1}
Records = dict[str, ExperimentRecord]


def space() -> ParameterGrid:
    """Return a grid with a condition, a distribution of each kind and listed values."""
    return (
        ParameterGrid("space")
        .add_parameter("lr", loguniform(1e-5, 1e-1))
        .add_parameter("type", ["mlp", "linear"])
        .add_parameter("depth", int_uniform(1, 5), only_when="type == 'mlp'")
    )


def search(num_trials: int = 12, grid: Any = None, **options: Any) -> BayesianSearch:
    """Return a search for the least loss."""
    known: dict[str, Any] = {"metric": "loss", "mode": "min", "num_trials": num_trials}
    known["in_order"] = True
    return BayesianSearch(BASE, grid or space(), **(known | options))


def loss_of(parameters: Mapping[str, Any]) -> float:
    """Return what a training with *parameters* ends with."""
    depth = parameters.get("depth", 5)
    return float(abs(math.log10(parameters["lr"]) + 3) + abs(depth - 3) / 2)


def ended(
    experiment: GridExperiment[Any],
    status: Status = Status.SUCCEEDED,
    loss: float | None = 0.5,
    metric: str = "loss",
) -> ExperimentRecord:
    """Return how *experiment* ended."""
    metrics = {}
    if loss is not None:
        metrics[metric] = MetricSummary(
            last=loss, last_step=4, min=loss, min_step=4, max=loss + 1, max_step=0
        )
    return ExperimentRecord(
        experiment_name=experiment.experiment_name,
        identity=experiment.identity,
        parameters=experiment.parameters,
        status=status,
        metrics=metrics,
    )


class Run:
    """One process's run of a search, of which *records* is the journal."""

    def __init__(self, what: BayesianSearch, folder: Path, records: Records) -> None:
        self.supply: BayesianSupply = what.open(folder, records)
        self.records = records
        self.out: list[GridExperiment[Any]] = []

    def take(self, most: int) -> list[GridExperiment[Any]]:
        taken = self.supply.take(most)
        for experiment in taken:
            planned = ended(experiment, Status.PENDING, None)
            self.records.setdefault(experiment.experiment_name, planned)
        self.out += taken
        return list(taken)

    def end(self, index: int = 0, status: Status = Status.SUCCEEDED) -> None:
        experiment = self.out.pop(index)
        record = ended(experiment, status, loss_of(experiment.parameters))
        self.records[experiment.experiment_name] = record
        self.supply.tell(record)

    def is_over(self) -> bool:
        return self.supply.is_exhausted

    def finish(self, places: int = 3, pick: Callable[[int], int] | None = None) -> None:
        for _ in range(1000):
            self.take(places - len(self.out))
            if not self.out:
                break
            self.end(pick(len(self.out)) if pick else 0)
        assert self.supply.is_exhausted


def run_all(what: BayesianSearch, folder: Path, **options: Any) -> dict[str, Any]:
    """Run a whole search; return the parameters by name."""
    folder.mkdir(exist_ok=True)
    run = Run(what, folder, {})
    run.finish(**options)
    return {name: record.parameters for name, record in run.records.items()}


def stored(folder: Path) -> list[optuna.trial.FrozenTrial]:
    """Return the trials in the storage, as Optuna's own tools read them."""
    storage = _study.open_storage(folder / STORAGE_NAME, None)
    return optuna.load_study(study_name="d", storage=storage).trials


@pytest.mark.parametrize(
    "sampler", ["tpe", {"type": "tpe", "multivariate": True}, "random"]
)
def test_trials_are_the_same_however_many_run_and_in_which_order_they_end(
    tmp_path: Path, sampler: Any
) -> None:
    """One place or many, first in first out or not: the same names and parameters."""
    what = search(20, sampler=sampler, seed=3)
    rng = random.Random(0)  # noqa: S311 - no secret
    runs = [
        run_all(what, tmp_path / "one", places=1),
        run_all(what, tmp_path / "many", places=99),
        run_all(what, tmp_path / "last", places=3, pick=lambda n: n - 1),
        run_all(what, tmp_path / "any", places=4, pick=rng.randrange),
    ]
    assert len(runs[0]) == 20
    assert all(run == runs[0] for run in runs)


def test_another_seed_is_another_search(tmp_path: Path) -> None:
    """And other results are, from the trials on that could know them."""
    first = run_all(search(8, seed=1), tmp_path / "a")
    second = run_all(search(8, seed=2), tmp_path / "b")
    assert not set(first) & set(second)


def test_a_trial_waits_for_the_results_that_it_is_chosen_by(tmp_path: Path) -> None:
    """Trial n for those up to n - num_parallel, and for no others."""
    run = Run(search(6, num_parallel=2), tmp_path, {})
    assert len(run.take(9)) == 2
    run.end(1)
    assert run.take(9) == []
    assert not run.supply.is_exhausted
    run.end()
    assert len(run.take(9)) == 2
    assert run.supply.total == 6


def test_without_order_a_place_is_filled_at_once(tmp_path: Path) -> None:
    """Whatever ended; the number of open trials is bounded all the same."""
    run = Run(search(6, num_parallel=2, in_order=False), tmp_path, {})
    assert len(run.take(9)) == 2
    run.end(1)
    assert [e.experiment_name[:6] for e in run.take(9)] == ["d_0002"]
    run.finish()
    assert len(run.records) == 6


def test_there_is_no_barrier_unless_it_is_asked_for(tmp_path: Path) -> None:
    """By default the slowest trial of all keeps no other place empty."""
    what = BayesianSearch(BASE, space(), metric="loss", mode="min", num_trials=12)
    run = Run(what, tmp_path, {})
    assert len(run.take(4)) == 4
    for number in range(4, 12):  # trial 0 never ends meanwhile
        run.end(1)
        (taken,) = run.take(9)
        assert taken.experiment_name.startswith(f"d_{number:04d}__")
    run.finish()
    assert len(run.records) == 12
    assert what.doubts() == ()
    (said,) = search().doubts()
    assert "trial n waits for the results of trials 0 to n - 4" in said


def test_names_and_identities_follow_from_number_and_parameters(tmp_path: Path) -> None:
    """The identity is that of the parameters, so it is the same in any search."""
    run = Run(search(3), tmp_path, {})
    for number, experiment in enumerate(run.take(9)):
        identity = identity_of(experiment.parameters)
        assert experiment.identity == identity
        assert experiment.experiment_name == f"d_{number:04d}__{identity}"
        assert experiment.config["lr"] == experiment.parameters["lr"]
        assert experiment.config["experiment_name"] == experiment.experiment_name


def test_repeats_are_made_only_when_nothing_new_is_left(tmp_path: Path) -> None:
    """Then they are trials of their own, with identities of their own."""
    grid = (
        ParameterGrid("g").add_parameter("lr", [0.1, 0.01]).add_parameter("depth", [1, 2])
    )
    what = search(6, grid)
    run = Run(what, tmp_path, {})
    run.finish()
    records = list(run.records.values())
    contents = [identity_of(record.parameters) for record in records]
    assert len(set(contents[:4])) == 4
    assert set(contents[4:]) <= set(contents[:4])
    assert len({record.identity for record in records}) == 6
    for number in (4, 5):
        content = {"parameters": dict(records[number].parameters), "trial": number}
        assert records[number].identity == identity_of(content)
    again = Run(search(7, grid), tmp_path, dict(run.records))
    (more,) = again.take(9)
    assert more.identity not in {record.identity for record in records}


def test_constraints_hold_and_are_loose_enough_or_refused(tmp_path: Path) -> None:
    """What is forbidden is drawn again; if nothing is admitted the search says so."""
    grid = space().where("lr > 0.001").exclude({"type": "linear"})
    found = run_all(search(10, grid), tmp_path / "a")
    assert all(p["lr"] > 0.001 and p["type"] == "mlp" for p in found.values())
    narrow = ParameterGrid("g").add_parameter("lr", uniform(0, 1)).where("lr > 0.995")
    found = run_all(search(3, narrow), tmp_path / "b")
    assert all(p["lr"] > 0.995 for p in found.values())
    nothing = ParameterGrid("g").add_parameter("lr", uniform(0, 1)).where("lr > 2")
    with pytest.raises(GridError, match="gave nothing that its constraints admit"):
        run_all(search(3, nothing), tmp_path / "c")


def test_added_combinations_come_first(tmp_path: Path) -> None:
    """Also such as could not be drawn; what Optuna can know of them it is shown."""
    grid = space().include({"lr": 0.5, "type": "mlp", "depth": 2})
    run = Run(search(6, grid), tmp_path, {})
    run.finish()
    first = next(iter(run.records.values()))
    assert first.parameters == {"lr": 0.5, "type": "mlp", "depth": 2}
    assert stored(tmp_path)[0].params == {"type": "mlp", "depth": 2}


def test_what_is_stored_is_what_ended(tmp_path: Path) -> None:
    """Complete, pruned and failed trials, exactly as many as asked for."""
    run = Run(search(6, num_parallel=6), tmp_path, {})
    run.take(6)
    states = [Status.SUCCEEDED, Status.STOPPED, Status.FAILED, Status.TIMEOUT]
    for status in states:
        run.end(0, status)
    for loss in (None, math.nan):
        record = ended(run.out.pop(0), Status.SUCCEEDED, loss)
        run.supply.tell(record)
        run.supply.tell(record)  # twice is once
    trials = stored(tmp_path)
    names = ["COMPLETE", "PRUNED", "FAIL", "FAIL", "FAIL", "FAIL"]
    assert [trial.state.name for trial in trials] == names
    assert trials[0].value == loss_of(trials[0].params)
    assert trials[1].intermediate_values == {4: trials[1].value}
    assert [trial.user_attrs["number"] for trial in trials] == list(range(6))
    assert run.supply.is_exhausted
    assert run.supply.take(9) == []


def test_a_trial_whose_job_was_lost_is_given_back(tmp_path: Path) -> None:
    """The next process hands it out again with its number; none is failed meanwhile."""
    run = Run(search(4, num_parallel=2), tmp_path, {})
    first, _ = run.take(2)
    run.end(0, Status.NODE_FAILED)
    assert run.take(9) == []
    assert not run.is_over()  # the other may end yet
    run.end(0)
    assert run.take(9) == []
    assert run.is_over()  # until another run
    assert [trial.state.name for trial in stored(tmp_path)] == ["RUNNING", "COMPLETE"]
    again = Run(search(4, num_parallel=2), tmp_path, run.records)
    taken = again.take(1)
    assert taken == [first]
    again.end()
    again.finish()
    assert [trial.state.name for trial in stored(tmp_path)] == ["COMPLETE"] * 4


def test_a_lost_trial_that_is_started_again_in_the_same_run_goes_on(
    tmp_path: Path,
) -> None:
    """The executor tells of both ends; the second counts."""
    run = Run(search(3, num_parallel=1), tmp_path, {})
    (first,) = run.take(1)
    run.supply.tell(ended(first, Status.PREEMPTED, None))
    assert run.is_over()
    run.supply.tell(ended(first))
    assert not run.is_over()
    assert len(run.take(1)) == 1


def test_trials_of_which_the_journal_knows_nothing_are_handed_out_first(
    tmp_path: Path,
) -> None:
    """They were stored before a kill, so their parameters are settled."""
    first = Run(search(5), tmp_path, {}).take(3)
    assert Run(search(5), tmp_path, {}).take(3) == first
    assert len(stored(tmp_path)) == 3


def test_results_that_the_storage_lacks_are_told_to_it(tmp_path: Path) -> None:
    """As when a kill came between the journal and the storage."""
    run = Run(search(5), tmp_path, {})
    for experiment in run.take(2):
        run.records[experiment.experiment_name] = ended(experiment)
    search(5).open(tmp_path, run.records)
    assert [trial.state.name for trial in stored(tmp_path)] == ["COMPLETE"] * 2


@pytest.mark.parametrize("num_ended", [3, 7, 12])
def test_a_storage_that_is_gone_is_made_again_from_the_journal(
    tmp_path: Path, num_ended: int
) -> None:
    """With the same trials, so that the search goes on as if nothing had happened."""
    expected = run_all(search(12), tmp_path / "whole")
    run = Run(search(12), tmp_path, {})
    for _ in range(num_ended):
        run.take(2 - len(run.out))
        run.end()
    (tmp_path / STORAGE_NAME).unlink()
    again = Run(search(12), tmp_path, run.records)
    again.finish()
    assert {name: r.parameters for name, r in again.records.items()} == expected
    assert [trial.state.name for trial in stored(tmp_path)] == ["COMPLETE"] * 12


def test_a_number_that_the_journal_has_otherwise_is_the_journals(tmp_path: Path) -> None:
    """A storage copied from elsewhere does not change what was run."""
    run = Run(search(2), tmp_path, {})
    run.take(1)
    other = search(2).experiment(0, {"lr": 0.01, "type": "linear"})
    again = Run(search(2), tmp_path, {other.experiment_name: ended(other)})
    assert [e.experiment_name[:6] for e in again.take(9)] == ["d_0001"]
    again.supply.tell(ended(run.out[0]))
    assert again.supply.total == 2


def test_a_search_can_be_made_longer_and_not_shorter_than_it_is(tmp_path: Path) -> None:
    """More trials go on where it ended; fewer change nothing."""
    run = Run(search(4), tmp_path, {})
    run.finish()
    longer = Run(search(6), tmp_path, run.records)
    longer.finish()
    assert len(longer.records) == 6
    shorter = search(2).open(tmp_path, longer.records)
    assert shorter.is_exhausted
    assert shorter.total == 6
    expected = run_all(search(6), tmp_path / "whole")
    assert {name: r.parameters for name, r in longer.records.items()} == expected


def test_failed_trials_can_be_run_again_and_count_then(tmp_path: Path) -> None:
    """Nothing else is started, and the storage has the corrected result."""
    run = Run(search(4, num_parallel=4), tmp_path, {})
    run.take(4)
    for status in (Status.FAILED, Status.SUCCEEDED, Status.TIMEOUT, Status.CANCELLED):
        run.end(0, status)
    repair = search(9, num_parallel=4, only="failed")
    assert repair.starts(Status.TIMEOUT)
    assert not repair.starts(Status.CANCELLED)
    assert repair.starts(Status.CANCELLED, has_failed=True)
    again = Run(repair, tmp_path, run.records)
    assert [e.experiment_name[:6] for e in again.take(9)] == ["d_0000", "d_0002"]
    assert again.supply.is_exhausted
    again.end()
    again.end(0, Status.FAILED)
    numbers = [(t.user_attrs["number"], t.state.name) for t in stored(tmp_path)]
    assert numbers == [
        (0, "FAIL"),
        (1, "COMPLETE"),
        (2, "FAIL"),
        (3, "RUNNING"),
        (0, "COMPLETE"),
    ]
    whole = Run(search(4, num_parallel=4), tmp_path, again.records)
    assert [e.experiment_name[:6] for e in whole.take(9)] == ["d_0003"]


def test_a_metric_that_is_never_reported_is_refused_at_once(tmp_path: Path) -> None:
    """At the first trial that succeeds without it; later ones merely count as failed."""
    run = Run(search(3), tmp_path, {})
    first, second, _ = run.take(3)
    run.supply.tell(ended(first, Status.FAILED, None))
    with pytest.raises(ResultsError) as caught:
        run.supply.tell(ended(second, metric="val/loss"))
    assert str(caught.value).startswith(
        f"{second.experiment_name} succeeded and did not report the metric 'loss' that the "
        f"search is for; it reported: val/loss."
    )
    with pytest.raises(ResultsError, match="it reported: nothing"):
        run.supply.tell(ended(second, Status.SUCCEEDED, None))


def test_parameters_that_do_not_fit_are_not_stored(tmp_path: Path) -> None:
    """The error comes before the trial exists."""
    grid = ParameterGrid("g").add_parameter("lr", ["text"])
    run = Run(search(3, grid), tmp_path, {})
    with pytest.raises(InvalidExperimentsError, match="lr"):
        run.take(1)
    assert stored(tmp_path) == []


def curves(*losses: float) -> dict[str, list[tuple[int, float]]]:
    """Return the curve of a running experiment."""
    return {"loss": list(enumerate(losses)), "other": [(0, 9.9)]}


def test_a_pruner_stops_what_is_worse_than_those_before(tmp_path: Path) -> None:
    """Those before are read from their files, also by another process."""
    pruner = {"type": "median", "n_startup_trials": 2, "n_warmup_steps": 2}
    what = search(6, num_parallel=3, pruner=pruner)
    run = Run(what, tmp_path, {})
    for experiment in run.take(2):
        folder = tmp_path / experiment.experiment_name
        folder.mkdir()
        lines = (f'{{"step": {s}, "loss": {1 - s / 10}}}\n' for s in range(-1, 5))
        (folder / "metrics.jsonl").write_text("".join(lines), "utf-8")
    run.end()
    run.end()
    (third,) = run.take(1)
    record = ended(third, Status.RUNNING, None)
    for supply in (run.supply, Run(what, tmp_path, dict(run.records)).supply):
        assert supply.observe(record, {}) is None
        assert supply.observe(record, curves(2.0, 1.5)) is None
        reason = supply.observe(record, curves(2.0, 1.5, 2.0))
        assert reason == "MedianPruner gave it up at step 2"
    assert run.supply.observe(record, curves(2.0, 1.5, 2.0)) is None  # it said so
    run.end(0, Status.STOPPED)
    assert run.supply.observe(record, curves(3.0)) is None
    assert stored(tmp_path)[2].state.name == "PRUNED"
    unknown = ended(search(1).experiment(77, {"lr": 1e-3, "type": "linear"}))
    assert run.supply.observe(unknown, curves(3.0)) is None


def test_steps_that_no_database_keeps_are_not_pruned_by(tmp_path: Path) -> None:
    """A step beyond 32 bits stops neither the trial nor the search, and is told of once."""
    what = search(2, pruner="median", storage=f"sqlite:///{tmp_path}/study.db")
    run = Run(what, tmp_path, {})
    (first,) = run.take(1)
    folder = tmp_path / first.experiment_name
    folder.mkdir()
    (folder / "metrics.jsonl").write_text(f'{{"step": {2**31}, "loss": 1}}\n', "utf-8")
    big = {"loss": [(2**31 - 1, 1.0), (2**31, 1.0), (2**70, 1.0)]}
    for _ in range(2):
        assert run.supply.observe(ended(first, Status.RUNNING, None), big) is None
    run.end()
    assert [note.partition(" are")[0] for note in run.supply.notes] == [
        "Reports at steps beyond 2147483647"
    ]
    run.finish()
    assert len(run.records) == 2


def test_without_a_pruner_nothing_is_stopped(tmp_path: Path) -> None:
    """However bad it is."""
    run = Run(search(3), tmp_path, {})
    (first,) = run.take(1)
    assert run.supply.observe(ended(first), curves(math.inf)) is None


def test_a_database_has_a_study_of_its_own_for_each_folder(tmp_path: Path) -> None:
    """Searches of the same name share it without meeting."""
    url = f"sqlite:///{tmp_path}/study.db"
    found = [
        run_all(search(5, storage=url), tmp_path / name, places=2) for name in ("a", "b")
    ]
    assert found[0] == found[1] == run_all(search(5), tmp_path / "file")
    names = [
        json.loads((tmp_path / name / STUDY_NAME).read_text("utf-8"))["study_name"]
        for name in ("a", "b")
    ]
    assert len(set(names)) == 2
    assert not (tmp_path / "a" / STORAGE_NAME).exists()
    for name in names:
        trials = optuna.load_study(
            study_name=name, storage=_study.open_storage(tmp_path / "x", url)
        ).trials
        assert [trial.state.name for trial in trials] == ["COMPLETE"] * 5
    # Of which the journal knows nothing here, so they are handed out again.
    assert len(Run(search(6, storage=url), tmp_path / "a", {}).take(9)) == 5


def test_a_storage_that_fails_is_an_error_of_the_search(tmp_path: Path) -> None:
    """It says which file, and what to do; of a database it says no address."""
    run = Run(search(4), tmp_path, {})
    run.take(1)
    (tmp_path / STORAGE_NAME).write_text("no journal\n", "utf-8")
    with pytest.raises(SearchFolderError, match="the storage of its trials fails"):
        search(4).open(tmp_path, {})
    other = tmp_path / "other"
    other.mkdir()
    url = f"sqlite:///{tmp_path}/study.db"
    run = Run(search(4, storage=url), other, {})
    run.take(1)
    (tmp_path / "study.db").write_text(
        "no database at all, but long enough\n" * 99, "utf-8"
    )
    with pytest.raises(SearchFolderError) as caught:
        run.end()
    assert "study.db" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_an_experiment_that_is_none_of_the_search_is_left_alone(tmp_path: Path) -> None:
    """A record with a name that has no number is no trial."""
    stranger = ExperimentRecord(experiment_name="x", identity="x", parameters={})
    run = Run(search(2), tmp_path, {"x": stranger})
    run.supply.tell(stranger)
    assert len(run.take(9)) == 2


def numbers(experiments: Iterable[GridExperiment[Any]]) -> list[str]:
    """Return the beginnings of names."""
    return [experiment.experiment_name[:6] for experiment in experiments]


def test_a_gap_in_the_numbers_is_filled(tmp_path: Path) -> None:
    """As when the storage was lost with a trial that the journal did not have yet."""
    run = Run(search(4), tmp_path, {})
    _, second, _ = run.take(3)
    (tmp_path / STORAGE_NAME).unlink()
    again = Run(search(4), tmp_path, {second.experiment_name: ended(second)})
    assert numbers(again.take(9)) == ["d_0000", "d_0002", "d_0003"]
