"""Whole searches with real Optuna, real executors, real processes, and real kills."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from pydantic import BaseModel, ConfigDict, model_validator

import mtf_gridsearch
from mtf_gridsearch import _study, _yaml, search_file
from mtf_gridsearch.__main__ import main
from mtf_gridsearch._live import SilentView
from mtf_gridsearch.bayes import STORAGE_NAME, BayesianSearch
from mtf_gridsearch.distributions import int_uniform, loguniform, uniform
from mtf_gridsearch.errors import (
    GridError,
    InvalidExperimentsError,
    NamingError,
    SearchMismatchError,
)
from mtf_gridsearch.executor import GridSearchExecutor
from mtf_gridsearch.grid import ParameterGrid
from mtf_gridsearch.journal import read_records
from mtf_gridsearch.local.launcher import LocalLauncher
from mtf_gridsearch.records import ExperimentRecord, Status
from mtf_gridsearch.search import ParameterGridSearch

WaitFor = Callable[[Callable[[], object]], None]
BASE = {"experiment_name": "d", "lr": 0.1, "depth": 1}

# What is run: it reports a loss, and leaves a line when it has ended.
SCRIPT = """
import json, math, os, re, sys
text = open(sys.argv[1], encoding="utf-8").read()
lr = float(re.search(r"^lr: (.*)$", text, re.M)[1])
depth = int(re.search(r"^depth: (.*)$", text, re.M)[1])
here = os.path.dirname(os.path.abspath(sys.argv[1]))
with open(os.path.join(here, "metrics.jsonl"), "a", encoding="utf-8") as file:
    for step in range(3):
        loss = abs(math.log10(lr) + 3) + depth / 10 + 1 / (step + 1)
        file.write(json.dumps({"step": step, "loss": loss}) + "\\n")
with open(os.path.join(here, "..", "runs"), "a", encoding="utf-8") as file:
    file.write(os.path.basename(here) + "\\n")
"""

# What runs it: an executor, killed before or after a call of one of its parts.
DRIVER = """
import importlib, os, signal, sys
from pathlib import Path
from mtf_gridsearch._live import SilentView
from mtf_gridsearch.bayes import BayesianSearch
from mtf_gridsearch.distributions import int_uniform, loguniform
from mtf_gridsearch.executor import GridSearchExecutor
from mtf_gridsearch.grid import ParameterGrid
from mtf_gridsearch.local.launcher import LocalLauncher

folder, script, place, count = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
if place:
    path, moment = place.split(" ")
    module, owner, name = path.rsplit(".", 2)
    owner = getattr(importlib.import_module(f"mtf_gridsearch.{module}"), owner)
    whole = getattr(owner, name)
    calls = 0

    def killed(*arguments, **options):
        global calls
        # The executor also calls with nothing to say.
        calls += 1 if name not in ("ended", "submitted", "planned") or arguments[1] else 0
        if calls == count and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = whole(*arguments, **options)
        if calls == count and moment == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, killed)
grid = (
    ParameterGrid("g")
    .add_parameter("lr", loguniform(1e-5, 1e-1))
    .add_parameter("depth", int_uniform(1, 4))
)
search = BayesianSearch(
    {"experiment_name": "d", "lr": 0.1, "depth": 1}, grid, metric="loss", mode="min",
    num_trials=6, num_parallel=2, in_order=True, sampler={"type": "tpe", "n_startup_trials": 2},
)
launcher = LocalLauncher(script, max_running=2, grace_s=5)
executor = GridSearchExecutor(launcher, folder=folder, view=SilentView())
print("begun", flush=True)
executor.execute(search)
"""


def grid() -> ParameterGrid:
    """Return the grid of the driver."""
    return (
        ParameterGrid("g")
        .add_parameter("lr", loguniform(1e-5, 1e-1))
        .add_parameter("depth", int_uniform(1, 4))
    )


def search(base: Any = None, space: Any = None, **options: Any) -> BayesianSearch:
    """Return a search for the least loss."""
    known: dict[str, Any] = {"metric": "loss", "mode": "min", "num_trials": 6}
    known["in_order"] = True
    return BayesianSearch(base or BASE, space or grid(), **(known | options))


class Project:
    """A folder with a script to run and a driver that runs it."""

    def __init__(self, root: Path) -> None:
        self.root, self.folder = root, root / "search"
        self.script = root / "train.py"
        self.script.write_text(SCRIPT, "utf-8")
        self.driver = root / "driver.py"
        self.driver.write_text(DRIVER, "utf-8")

    def start(self, place: str = "", count: int = 0) -> subprocess.Popen[bytes]:
        """Start an executor as a process of its own."""
        source = Path(mtf_gridsearch.__file__).parent.parent
        argv = (sys.executable, self.driver, self.folder, self.script, place, str(count))
        environ = {**os.environ, "PYTHONPATH": str(source)}
        return subprocess.Popen(argv, env=environ, stdout=subprocess.PIPE)

    def run(self, place: str = "", count: int = 0) -> int:
        """Run an executor to its end, its own or not; return the exit code."""
        with self.start(place, count) as process:
            return process.wait(120)

    def execute(
        self, what: BayesianSearch, **options: Any
    ) -> dict[str, ExperimentRecord]:
        """Run *what* in this process; return the records."""
        launcher = LocalLauncher(self.script, max_running=3, grace_s=5)
        known: dict[str, Any] = {"folder": self.folder, "view": SilentView()} | options
        GridSearchExecutor(launcher, **known).execute(what)
        return read_records(self.folder)

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """Return what Optuna has stored."""
        storage = _study.open_storage(self.folder / STORAGE_NAME, None)
        return optuna.load_study(study_name="d", storage=storage).trials

    def check(self, num_trials: int) -> dict[str, Any]:
        """Check that each trial was run to success once; return parameters by name."""
        records = read_records(self.folder)
        ends = [(record.status, record.reason) for record in records.values()]
        assert ends == [(Status.SUCCEEDED, "")] * num_trials
        runs = Counter((self.folder / "runs").read_text("utf-8").split())
        assert runs == dict.fromkeys(records, 1)
        trials = self.trials()
        assert [trial.state.name for trial in trials] == ["COMPLETE"] * num_trials
        assert [trial.user_attrs["experiment_name"] for trial in trials] == list(records)
        losses = [record.metrics["loss"].min for record in records.values()]
        assert [trial.value for trial in trials] == losses
        return {name: record.parameters for name, record in records.items()}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Return a project of its own."""
    return Project(tmp_path)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the trials of a search that nobody killed."""
    project = Project(tmp_path_factory.mktemp("undisturbed"))
    assert project.run() == 0
    return project.check(6)


@pytest.mark.slow
def test_a_search_runs_exactly_its_trials(project: Project) -> None:
    """Each once, with its results in the journal, the storage and the summary."""
    records = project.execute(search(num_parallel=3))
    found = project.check(6)
    assert [name[:6] for name in found] == [f"d_{n:04d}" for n in range(6)]
    assert all(record.attempts == 1 for record in records.values())
    summary = json.loads((project.folder / "results_summary.json").read_text("utf-8"))
    assert summary["counts"] == {"succeeded": 6}


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    "place",
    [
        "_study.Store.add before",
        "_study.Store.add after",
        "journal.Journal.planned before",
        "journal.Journal.planned after",
        "journal.Journal.submitted before",
        "journal.Journal.submitted after",
        "journal.Journal.ended before",
        "journal.Journal.ended after",
        "_study.Store.finish before",
        "_study.Store.finish after",
    ],
)
def test_killed_at_any_place_it_ends_with_the_same_trials(
    project: Project, undisturbed: dict[str, Any], place: str, count: int
) -> None:
    """Between asking, noting, starting and telling: none twice, none lost, none other."""
    assert project.run(place, count) == -signal.SIGKILL
    assert project.run() == 0
    assert project.check(6) == undisturbed


@pytest.mark.slow
def test_killed_at_any_time_it_ends_with_the_same_trials(
    project: Project, undisturbed: dict[str, Any], wait_for: WaitFor
) -> None:
    """Five kills, each some way further through the search."""
    rng = random.Random(1)  # noqa: S311 - no secret
    for _ in range(5):
        with project.start() as process:
            assert process.stdout is not None
            process.stdout.readline()
            until = time.monotonic() + rng.uniform(0, 1.5)
            wait_for(lambda: time.monotonic() > until or process.poll() is not None)  # noqa: B023 - waited for here
            process.kill()
            process.wait()
    assert project.run() == 0
    assert project.check(6) == undisturbed


@pytest.mark.slow
def test_a_pruner_ends_runs_for_good(project: Project) -> None:
    """They count as trials, and are told to Optuna as pruned."""
    project.script.write_text(
        SCRIPT.replace("for step in range(3):", "for step in range(1):")
        + "import time\nif depth > 2: time.sleep(60)\n",
        "utf-8",
    )
    pruner = {"type": "threshold", "upper": 1.25}
    space = (
        ParameterGrid("g").add_parameter("depth", [1, 3, 4]).add_parameter("lr", [1e-3])
    )
    records = project.execute(search(space=space, num_trials=3, pruner=pruner))
    by_depth = {r.parameters["depth"]: r for r in records.values()}
    assert {d: r.status for d, r in by_depth.items()} == {
        1: "succeeded",
        3: "stopped",
        4: "stopped",
    }
    assert by_depth[3].reason == "ThresholdPruner gave it up at step 0"
    states = Counter(trial.state.name for trial in project.trials())
    assert states == {"COMPLETE": 1, "PRUNED": 2}


@pytest.mark.slow
def test_a_definition_that_changes_is_refused_in_its_folder(project: Project) -> None:
    """Another seed is another search; more trials are not."""
    project.execute(search(num_trials=1))
    with pytest.raises(SearchMismatchError, match="seed"):
        project.execute(search(num_trials=1, seed=1))
    with pytest.raises(SearchMismatchError, match="base"):
        project.execute(search(BASE | {"lr": 0.2}, num_trials=1))
    assert len(project.execute(search(num_trials=2))) == 2


@pytest.mark.slow
def test_more_may_run_at_once_unless_trials_are_in_order(project: Project) -> None:
    """A larger machine goes on with a search; where it decides what trials are, it does not."""
    project.execute(search(num_trials=1, num_parallel=1, in_order=False))
    more = search(num_trials=3, num_parallel=3, in_order=False)
    assert len(project.execute(more)) == 3
    with pytest.raises(SearchMismatchError, match="in_order"):
        project.execute(search(num_trials=3, num_parallel=3))
    project.folder = project.root / "in_order"
    project.execute(search(num_trials=1, num_parallel=1))
    with pytest.raises(SearchMismatchError, match="num_parallel was 1, is 2"):
        project.execute(search(num_trials=1, num_parallel=2))


@pytest.mark.slow
def test_a_grid_of_added_combinations_is_chosen_from(project: Project) -> None:
    """A sum with one has no trial without parameters, and each added one comes first."""
    added = ParameterGrid("added").include({"lr": 0.01, "depth": 2}, {"lr": 0.02})
    whole = added + ParameterGrid("b").add_parameter("lr", loguniform(1e-5, 1e-1))
    records = project.execute(search(space=whole, num_trials=6))
    parameters = [dict(r.parameters) for r in records.values()]
    assert parameters[:2] == list(added)
    assert all(parameters)
    assert len({str(each) for each in parameters}) == 6
    added.include({"lr": 0.03})
    assert len(whole.included) == 2


def test_the_definition_is_saved_as_plain_values() -> None:
    """It reads back equal, and an address of a database is no part of it."""
    what = search(
        sampler={"type": "tpe", "multivariate": True},
        pruner="median",
        storage="postgresql://user:hunter2@host/name",
        seed=3,
    )
    text = _yaml.dump(what.to_plain())
    assert "hunter2" not in text
    assert _yaml.parse(text.encode(), "text") == what.to_plain()
    assert what.to_plain()["grids"] == [grid().to_plain()]
    assert what.to_plain()["bayesian"] == {
        "num_trials": 6,
        "metric": "loss",
        "mode": "min",
        "at": "best",
        "num_parallel": 4,
        "in_order": True,
        "sampler": {"type": "tpe", "multivariate": True},
        "pruner": "median",
        "seed": 3,
    }
    assert (what.name, what.total) == ("d", 6)
    assert what.base_digest == ParameterGridSearch(BASE).base_digest


def test_what_does_not_fit_fails_before_anything_is_made() -> None:
    """Both ends of ranges and every listed value are tried on the base."""

    class Model(BaseModel):
        model_config = ConfigDict(extra="forbid")
        experiment_name: str = "d"
        lr: float = 0.1
        depth: int = 1

    assert search(Model()).plan({}) == ()
    space = ParameterGrid("g").add_parameter("depth", [1, 2, "three", 4, 5.5])
    with pytest.raises(InvalidExperimentsError) as caught:
        search(Model(), space).plan({})
    assert caught.value.num_invalid == 2
    misspelt = grid().add_parameter("dept", uniform(0, 1))
    with pytest.raises(InvalidExperimentsError, match="did you mean 'depth'"):
        search(Model(), misspelt).plan({})
    several = grid() + ParameterGrid("h").add_parameter("lr", ["x"])
    with pytest.raises(InvalidExperimentsError, match="lr"):
        search(Model(), several).plan({})
    added = grid().include({"lr": "x", "depth": 1})
    with pytest.raises(InvalidExperimentsError, match="lr"):
        search(Model(), added).plan({})


def test_an_empty_grid_is_refused() -> None:
    """Without parameters, or with constraints that leave nothing."""
    with pytest.raises(GridError, match="is empty: give it parameters"):
        search(space=ParameterGrid("g")).plan({})
    nothing = ParameterGrid("g").add_parameter("depth", [1, 2]).where("depth > 3")
    with pytest.raises(GridError, match="constraints and exclusions leave nothing"):
        search(space=nothing).plan({})
    some = ParameterGrid("g").add_parameter("depth", [1, 2]).where("depth > 1")
    assert search(space=some).plan({}) == ()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"space": {"lr": [1]}}, TypeError, "grid is a ParameterGrid, not dict"),
        ({"mode": "low"}, ValueError, "mode is 'min' or 'max', not 'low'"),
        ({"at": "end"}, ValueError, "at is 'best' or 'last', not 'end'"),
        ({"only": "lost"}, ValueError, "only is None or 'failed', not 'lost'"),
        ({"num_trials": 0}, ValueError, "num_trials must be at least 1, not 0"),
        ({"num_parallel": 0}, ValueError, "num_parallel must be at least 1, not 0"),
        ({"sampler": "best"}, ValueError, "'best' is none of gp, nsgaii, random, tpe"),
        ({"pruner": "best"}, ValueError, "pruner: 'best' is none of"),
        ({"name": "x" * 97}, NamingError, "at most 96 characters"),
        ({"base": {"lr": 1}}, NamingError, "has no experiment_name"),
    ],
)
def test_what_a_search_cannot_be_is_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    """A mistake of the caller is said where it was made."""
    with pytest.raises(error, match=message):
        search(**options)


def test_only_what_is_missing_is_started() -> None:
    """A failed trial has been run; it is started again when that is asked for."""
    started = {status for status in Status if search().starts(status)}
    ended = {Status.SUCCEEDED, Status.STOPPED, Status.FAILED, Status.TIMEOUT}
    assert started == set(Status) - ended
    repair = search(only="failed")
    assert {s for s in Status if repair.starts(s)} == {Status.FAILED, Status.TIMEOUT}


def test_a_search_with_trials_left_is_not_complete(tmp_path: Path) -> None:
    """only="failed" chooses none, and the result says how many are not begun."""
    project = Project(tmp_path)
    executor = GridSearchExecutor(
        LocalLauncher(project.script), folder=project.folder, view=SilentView()
    )
    assert executor.execute(search(num_trials=1)).is_complete
    result = executor.execute(search(num_trials=3, only="failed"))
    assert (result.is_complete, result.num_not_begun) == (False, 2)


def test_the_definition_that_is_saved_goes_on(tmp_path: Path) -> None:
    """It is read as the same search, and the command line goes on with it."""
    project = Project(tmp_path)
    project.execute(search(num_trials=2, pruner="median"))
    path = project.folder / "search_config.yaml"
    again = search_file.read(path).bayesian_search()
    assert again.to_plain() == search(num_trials=2, pruner="median").to_plain()
    assert main(["run", str(path), "--folder", str(project.folder)]) == 0
    assert len((project.folder / "runs").read_text("utf-8").split()) == 2


def test_places_that_stay_empty_are_told_of(tmp_path: Path) -> None:
    """More places than trials may be open at once are of no use, and a note says so."""
    notes: list[str] = []

    class Noting(SilentView):
        def note(self, text: str) -> None:
            notes.append(text)

    project = Project(tmp_path)
    project.execute(search(num_trials=1, num_parallel=2), view=Noting())
    assert notes[1:] == ["1 of 3 places stay empty: num_parallel is 2"]
    assert notes[0].startswith("in_order=True: trial n waits")


def test_without_optuna_the_extra_is_named() -> None:
    """The rest of the package works without it."""
    code = (
        "import sys\n"
        "sys.modules['optuna'] = None\n"
        "import mtf_gridsearch, mtf_gridsearch.results\n"
        "try:\n"
        "    import mtf_gridsearch.bayes\n"
        "except ModuleNotFoundError as error:\n"
        "    print(error)\n"
    )
    source = Path(mtf_gridsearch.__file__).parent.parent
    environ = {**os.environ, "PYTHONPATH": str(source)}
    argv = (sys.executable, "-c", code)
    done = subprocess.run(argv, env=environ, capture_output=True, check=True)
    said = "a Bayesian search needs Optuna: pip install 'mtf-gridsearch[bayes]'\n"
    assert done.stdout.decode() == said


def test_a_base_that_is_changed_later_changes_no_trial() -> None:
    """The base is what it was when it was given."""
    base: dict[str, Any] = {**BASE, "kind": {"of": "mlp"}}
    what = search(base)
    base["kind"]["of"] = "cnn"
    config = what.experiment(0, {"lr": 0.5}).config
    assert config["kind"] == what.to_plain()["base"]["kind"] == {"of": "mlp"}


class Filled(BaseModel):
    model_config = ConfigDict(validate_default=True)

    experiment_name: str = "d"
    lr: float = 0.1
    depth: int = 1
    last: float | None = None

    @model_validator(mode="after")
    def _fill(self) -> Filled:
        if self.last is None:
            self.last = self.lr / 10
        return self


@pytest.mark.parametrize("in_order", [True, False])
def test_what_a_class_makes_again_is_told(in_order: bool) -> None:  # noqa: FBT001
    """By the ends of ranges, before anything runs."""
    what = search(Filled(), in_order=in_order)
    what.plan({})
    *others, doubt = what.doubts()
    assert doubt.startswith("last follows from other values: it is made again (")
    assert len(others) == in_order
    assert what.name_key == "experiment_name"
