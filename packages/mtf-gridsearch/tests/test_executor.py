from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from mtf_gridsearch import search_file
from mtf_gridsearch._live import SilentView
from mtf_gridsearch._progress import Progress
from mtf_gridsearch.early_stopping import SuccessiveHalving
from mtf_gridsearch.errors import (
    GridError,
    InvalidExperimentsError,
    LauncherError,
    SearchBusyError,
    SearchFolderError,
    SearchMismatchError,
)
from mtf_gridsearch.executor import ExecutionMode, GridSearchExecutor, GridSearchResult
from mtf_gridsearch.grid import Grid, ParameterGrid
from mtf_gridsearch.journal import Journal, read_records
from mtf_gridsearch.launcher import Experiment, Submission
from mtf_gridsearch.local.launcher import LocalLauncher
from mtf_gridsearch.metrics_file import METRICS_NAME, read_curves
from mtf_gridsearch.naming import NamingStrategy
from mtf_gridsearch.records import Status
from mtf_gridsearch.results import SearchResults
from mtf_gridsearch.search import ParameterGridSearch

WaitFor = Callable[[Callable[[], object]], None]
BASE = {"experiment_name": "sweep", "n": 0, "kind": "plain"}

# What an experiment does depends on its config; each attempt leaves a line in `runs`.
SCRIPT = """
import json, os, re, signal, sys, time
config = open(sys.argv[1], encoding="utf-8").read()
n = int(re.search(r"^n: (.*)$", config, re.M)[1])
kind = re.search(r"^kind: (.*)$", config, re.M)[1]
root = os.path.dirname(os.path.dirname(os.path.abspath(sys.argv[1])))
with open(os.path.join(root, "runs"), "a", encoding="utf-8") as file:
    file.write(f"{n}\\n")
def wait(path):
    deadline = time.monotonic() + 60
    while not os.path.exists(os.path.join(root, path)) and time.monotonic() < deadline:
        time.sleep(0.005)
def report(step, loss):
    with open("metrics.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, "loss": loss}) + "\\n")
if kind == "gate":
    wait("go")
elif kind == "first_is_last" and n == 0:
    wait("done3")
elif kind == "odd_fails" and n % 2 and not os.path.exists(os.path.join(root, "mended")):
    sys.exit("odd")
elif kind == "preempted_once" and not os.path.exists("again"):
    open("again", "w").close()
    sys.exit(75)
elif kind == "reports":
    report(1, n)
    if n:
        wait("go")
open(os.path.join(root, f"done{n}"), "w").close()
"""

REPORTING = """
import sys
from mtf_gridsearch.report import report
report({})
sys.exit({})
"""


class Acting(SilentView):
    """Calls a function at each look, and remembers what is said."""

    def __init__(
        self,
        act: Callable[[Progress], object] = lambda _: None,
        on_note: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.act, self.on_note = act, on_note
        self.notes: list[str] = []

    def update(self, progress: Progress) -> None:
        self.act(progress)

    def note(self, text: str) -> None:
        self.notes.append(text)
        self.on_note(text)


class Queue(LocalLauncher):
    """Stands for a launcher whose jobs go on without the executor."""


class _KilledError(Exception):
    """Stands for a kill."""


class Place:
    """A project with one script, and the searches that are run in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "search"
        self.script = root / "train.py"
        self.script.write_text(SCRIPT, "utf-8")

    def executor(self, **options: Any) -> GridSearchExecutor:
        launcher = Queue(self.script, max_running=2, grace_s=5)
        known: dict[str, Any] = {"folder": self.folder, "view": SilentView(), **options}
        return GridSearchExecutor(known.pop("launcher", launcher), **known)

    def run(
        self, *values: int, kind: str = "plain", only: Any = None, **options: Any
    ) -> GridSearchResult:
        mode = options.pop("mode", "local")
        return self.executor(**options).execute_grid_search(
            {**BASE, "kind": kind}, grid(*values), mode, only=only
        )

    def runs(self) -> Counter[int]:
        path = self.folder / "runs"
        return Counter(map(int, path.read_text("utf-8").split()) if path.exists() else ())

    def go(self) -> None:
        (self.folder / "go").touch()

    def statuses(self) -> dict[int, str]:
        records = read_records(self.folder).values()
        return {r.parameters["n"]: str(r.status) for r in records}


def grid(*values: int) -> ParameterGrid:
    """Return a grid over one parameter."""
    return ParameterGrid("g").add_parameter("n", list(values))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Return a project."""
    return Place(tmp_path)


def test_each_runs_once_and_is_summarised(place: Place) -> None:
    """All succeed, each once; config, output, usage and the summary are there."""
    result = place.run(1, 2, 3)

    assert place.runs() == {1: 1, 2: 1, 3: 1}
    assert (result.counts, result.is_complete) == ({Status.SUCCEEDED: 3}, True)
    assert result.records == read_records(place.folder)
    for name, record in result.records.items():
        config = (place.folder / name / "config.yaml").read_text("utf-8")
        assert f"experiment_name: {name}" in config
        assert record.usage.wall_s is not None
        assert record.attempts == 1
    summary = json.loads((place.folder / "results_summary.json").read_text("utf-8"))
    assert summary["counts"] == {"succeeded": 3}


def test_the_same_again_starts_nothing(place: Place) -> None:
    """A second run of the same command finds everything done."""
    place.run(1, 2)
    assert place.run(1, 2).is_complete
    assert place.run(2, 1).is_complete
    assert place.runs() == {1: 1, 2: 1}


def test_a_longer_grid_runs_what_is_new(place: Place) -> None:
    """Adding values runs the new combinations alone; what was left out stays on record."""
    place.run(1, 2)
    result = place.run(2, 3, 4)
    assert place.runs() == {1: 1, 2: 1, 3: 1, 4: 1}
    assert len(result.records) == 4


def test_failed_ones_run_again_when_asked(place: Place) -> None:
    """A failure stays until only="failed", which runs nothing else, new ones neither."""
    view = Acting()
    result = place.run(1, 2, 3, kind="odd_fails", view=view)
    assert not result.is_complete
    assert place.statuses() == {1: "failed", 2: "succeeded", 3: "failed"}
    assert {r.reason for r in result.records.values()} == {"", "exit code 1: odd"}
    assert any("only" in note and "2" in note for note in view.notes)
    place.run(1, 2, 3, kind="odd_fails")
    assert place.runs() == {1: 1, 2: 1, 3: 1}

    (place.folder / "mended").touch()
    place.run(1, 2, 3, 4, kind="odd_fails", only="failed")
    assert place.statuses() == {
        1: "succeeded",
        2: "succeeded",
        3: "succeeded",
        4: "missing",
    }
    assert place.runs() == {1: 2, 2: 1, 3: 2}


def test_another_base_never_mixes(place: Place, tmp_path: Path) -> None:
    """A changed base is refused and touches nothing; new=True gives it its own folder."""
    options: dict[str, Any] = {
        "folder": None,
        "experiments_dir": tmp_path / "experiments",
    }
    first = place.run(1, **options)
    before = (first.folder / "journal.jsonl").read_bytes()
    with pytest.raises(SearchMismatchError, match="kind was 'plain', is 'odd_fails'"):
        place.run(1, kind="odd_fails", **options)
    assert (first.folder / "journal.jsonl").read_bytes() == before
    second = place.run(2, kind="odd_fails", new=True, **options)
    assert second.folder != first.folder
    assert place.run(2, kind="odd_fails", **options).folder == second.folder


def left_running(place: Place) -> None:
    """Start two experiments, and leave them to themselves."""

    def act(_: Progress) -> None:
        if sum(place.runs().values()) == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        place.run(1, 2, kind="gate", view=Acting(act), mode="slurm")


def test_a_folder_may_be_moved(place: Place, tmp_path: Path) -> None:
    """Where nothing runs, results, failures and what is missing are found at its new place."""
    place.run(1, 2, kind="odd_fails")
    before = {r.identity: r for r in read_records(place.folder).values()}
    place.folder.rename(tmp_path / "elsewhere")
    place.folder = tmp_path / "elsewhere"
    for record in read_records(place.folder).values():
        assert record.metrics == before[record.identity].metrics
        assert record.job_id is not None
        assert Path(f"{record.job_id}.out").parent.parent == place.folder
    (place.folder / "mended").touch()
    result = place.run(1, 2, 3, kind="odd_fails")
    assert place.run(1, 2, 3, kind="odd_fails", only="failed").is_complete
    assert place.runs() == {1: 2, 2: 1, 3: 1}
    assert result.folder == tmp_path / "elsewhere"


def test_what_runs_is_found_in_a_folder_that_was_moved(
    place: Place, tmp_path: Path
) -> None:
    """The runners note the ends where the folder is now, and nothing is run again."""
    left_running(place)
    moved = place.folder.rename(tmp_path / "elsewhere")
    place.folder.mkdir()
    place.go()
    result = place.run(1, 2, kind="gate", folder=moved)
    assert result.is_complete
    assert {record.attempts for record in result.records.values()} == {1}


def test_a_copy_of_what_runs_is_refused(place: Place, tmp_path: Path) -> None:
    """Experiments that run where a folder was copied from are not run in the copy too."""
    left_running(place)
    copy = shutil.copytree(place.folder, tmp_path / "copy")
    for _ in range(2):
        with pytest.raises(SearchBusyError, match=r"a copy, made before 2 .* delete "):
            place.run(1, 2, kind="gate", folder=copy)
    place.go()
    assert place.run(1, 2, kind="gate").is_complete
    assert place.runs() == {1: 1, 2: 1}

    (copy / "go").touch()  # whoever knows that the other is gone says so
    (copy / ".lock").unlink()
    assert place.run(1, 2, kind="gate", folder=copy).is_complete


def test_a_copy_of_what_is_held_is_refused(place: Place, tmp_path: Path) -> None:
    """Between two experiments nothing runs, but their executor does."""
    copy = tmp_path / "copy"
    errors: list[str] = []

    def act(progress: Progress) -> None:
        if progress.ended and not errors:
            shutil.copytree(place.folder, copy)
            with pytest.raises(SearchBusyError) as caught:
                place.run(1, 2, folder=copy)
            errors.append(str(caught.value))

    assert place.run(1, 2, max_running=1, view=Acting(act)).is_complete
    assert f"process {os.getpid()} runs the search that was copied" in errors[0]


def test_a_copy_of_what_has_ended_is_a_search_of_its_own(
    place: Place, tmp_path: Path
) -> None:
    """Nothing can be run twice by it, so it goes on, and leaves the other alone."""
    place.run(1)
    copy = shutil.copytree(place.folder, tmp_path / "copy")
    assert place.run(1, 2, folder=copy).is_complete
    assert place.statuses() == {1: "succeeded"}


def test_what_a_failed_attempt_reported_counts_no_more(place: Place) -> None:
    """An attempt after a failure has a curve of its own, whatever it reports, and when."""
    place.script.write_text(REPORTING.format("1, loss=0.25, old=1", "1"), "utf-8")
    assert not place.run(1).is_complete
    (record,) = read_records(place.folder).values()
    assert set(record.metrics) == {"loss", "old"}
    place.script.write_text(REPORTING.format("5, loss=0.5", "0"), "utf-8")
    (record,) = place.run(1, only="failed").records.values()
    assert set(record.metrics) == {"loss"}
    assert (record.metrics["loss"].min, record.attempts) == (0.5, 2)
    curves = read_curves(place.folder / record.experiment_name / METRICS_NAME)
    assert curves["loss"] == [(1, 0.25), (5, 0.5)]  # which failed is not in the file


def test_what_a_grid_lost_need_not_run(place: Place) -> None:
    """Experiments that are no longer in the grid are counted apart; failures still count."""
    executor = place.executor(view=Acting(lambda _: signal.raise_signal(signal.SIGINT)))
    with pytest.raises(KeyboardInterrupt):
        executor.execute_grid_search({**BASE, "kind": "odd_fails"}, grid(2, 4, 6, 1))
    assert not place.run(1, 2, 4, 6, kind="odd_fails").is_complete
    (place.folder / "mended").touch()
    place.run(2, 3, 8, kind="odd_fails", mode="dry_run")
    longer = place.run(2, 8, kind="odd_fails")
    assert longer.counts == {Status.SUCCEEDED: 2}
    assert longer.counts_dropped == {Status.SUCCEEDED: 2, Status.FAILED: 1}
    assert not longer.is_complete
    assert place.run(1, kind="odd_fails", only="failed").is_complete


def test_what_a_grid_lost_before_it_ran_is_no_failure(place: Place) -> None:
    """A grid that was shrunk is complete when all that is in it has ended."""

    def act(_: Progress) -> None:
        if place.runs() and not view.notes:
            signal.raise_signal(signal.SIGINT)

    view = Acting(act)
    with pytest.raises(KeyboardInterrupt):
        place.run(1, 2, 3, kind="gate", max_running=1, view=view)
    place.go()
    totals: list[int | None] = []
    view = Acting(lambda progress: totals.append(progress.total))
    shrunk = place.run(2, kind="gate", view=view)
    assert (shrunk.is_complete, shrunk.counts) == (True, {Status.SUCCEEDED: 1})
    assert shrunk.counts_dropped == {Status.CANCELLED: 1, Status.MISSING: 1}
    assert set(totals) == {1}
    assert place.run(1, 2, 3, kind="gate").counts == {Status.SUCCEEDED: 3}


def test_another_entry_point_never_mixes(place: Place, tmp_path: Path) -> None:
    """A folder is refused to another script; one that was moved is the same."""
    place.run(1)
    other = tmp_path / "other.py"
    other.write_text(SCRIPT, "utf-8")
    for mode in ("local", "dry_run"):
        with pytest.raises(
            SearchMismatchError, match=r"runs .*train\.py, not .*other\.py"
        ):
            place.run(1, 2, launcher=LocalLauncher(other), mode=mode)
    assert place.runs() == {1: 1}
    (tmp_path / "link.py").symlink_to(place.script)
    place.run(1, 2, launcher=LocalLauncher(tmp_path / "link.py"))
    (tmp_path / "link.py").unlink()
    (tmp_path / "moved").mkdir()
    place.script = place.script.rename(tmp_path / "moved" / "link.py")
    assert place.run(1, 2, 3).is_complete
    assert place.runs() == {1: 1, 2: 1, 3: 1}


@pytest.mark.parametrize("naming", NamingStrategy)
def test_names_of_an_extended_search_are_read_back(
    place: Place, naming: NamingStrategy
) -> None:
    """The search that was run, and the one in its folder, know what the folder calls them."""
    first = ParameterGridSearch(BASE, naming=naming).add_grid(grid(1, 2))
    first._stamp = "20200101T000000"
    place.executor().execute_grid_search(first, [])
    second = ParameterGridSearch(BASE, naming=naming)
    second.add_grid(ParameterGrid("g").add_parameter("n", [0, 1.0, 2]))
    result = place.executor().execute_grid_search(second, [])
    saved = search_file.read(result.folder / "search_config.yaml").search()
    assert len(result.records) == 3
    for name, record in result.records.items():
        for search in (second, saved):
            assert search.parse_experiment_name(name).parameters == record.parameters
            assert search.get_experiment_name({**BASE, **record.parameters}) == name
            assert name in [e.experiment_name for e in search.plan()]


def test_what_is_added_to_a_grid_later_is_not_run(place: Place) -> None:
    """A search has a grid as it was when it was added, planned before or not."""
    for is_planned in (True, False):
        mine = grid(1, 2)
        search = ParameterGridSearch(BASE).add_grid(mine)
        if is_planned:
            search.plan()
        mine.add_parameter("kind", ["plain", "gate"]).exclude({"n": 1})
        (shown,) = search.grids
        assert isinstance(shown, ParameterGrid)
        shown.include({"n": 3})
        result = place.executor().execute_grid_search(search, [])
        assert result.counts == {Status.SUCCEEDED: 2}
        assert len(result.records) == 2


def test_a_caller_may_change_the_configs_it_gets(place: Place) -> None:
    """What generate_experiments returns is the caller's, and nothing that is run."""
    base: dict[str, Any] = {**BASE, "model": {"depth": 1}}
    search = ParameterGridSearch(base).add_grid(grid(1))
    (config,) = search.generate_experiments()
    config["model"]["depth"] = 777
    assert search.generate_experiments()[0]["model"] == {"depth": 1}
    (name,) = place.executor().execute_grid_search(search, []).records
    assert "depth: 1" in (place.folder / name / "config.yaml").read_text("utf-8")


def test_a_search_that_is_given_stays_as_it_is(place: Place) -> None:
    """Grids that are given with it are run, and not added to it."""
    search = ParameterGridSearch(BASE).add_grid(grid(1))
    for _ in range(2):
        result = place.executor().execute_grid_search(search, [grid(2)])
        assert len(result.records) == 2
    assert len(search.grids) == 1


def test_the_next_starts_as_soon_as_a_place_is_free(place: Place) -> None:
    """The first ends only after the last has run: in batches that would never be."""
    assert place.run(0, 1, 2, 3, kind="first_is_last").is_complete


def test_two_executors_do_not_share_a_folder(place: Place, wait_for: WaitFor) -> None:
    """The second is told who runs it, and starts nothing."""
    first = threading.Thread(target=place.run, args=(1, 2), kwargs={"kind": "gate"})
    first.start()
    try:
        wait_for(lambda: sum(place.runs().values()) == 2)
        with pytest.raises(SearchBusyError, match=f"process {os.getpid()} on "):
            place.run(1, 2, kind="gate")
    finally:
        place.go()
        first.join()
    assert place.runs() == {1: 1, 2: 1}
    assert set(place.statuses().values()) == {"succeeded"}


COMMAND = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_executor import Place
Place(Path(sys.argv[2])).run(1, 2, 3, kind="gate", mode=sys.argv[3], view=None)
"""


def started(place: Place, mode: str = "local") -> subprocess.Popen[str]:
    """Start an executor of three experiments, of which two fit, in its own process."""
    here = str(Path(__file__).parent)
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, here, str(place.root), mode],
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


@pytest.mark.slow
def test_a_killed_executor_is_gone_on_with(place: Place, wait_for: WaitFor) -> None:
    """After SIGKILL its experiments go on; the next takes them up and starts the rest."""
    with started(place) as first:
        wait_for(lambda: sum(place.runs().values()) == 2)
        first.kill()
        first.wait()
    place.go()
    result = place.run(1, 2, 3, kind="gate")
    assert result.is_complete
    assert place.runs() == {1: 1, 2: 1, 3: 1}
    assert {record.attempts for record in result.records.values()} == {1}


@pytest.mark.slow
def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(
    place: Place, wait_for: WaitFor
) -> None:
    """What runs is cancelled, noted and started by the next run; no process is left."""
    with started(place) as first:
        wait_for(lambda: sum(place.runs().values()) == 2)
        first.send_signal(signal.SIGINT)
        _, said = first.communicate(timeout=60)
    assert first.returncode == -signal.SIGINT
    assert "run the same command again" in said
    assert place.statuses() == {1: "cancelled", 2: "cancelled", 3: "missing"}
    assert (place.folder / "results_summary.json").exists()
    place.go()
    assert place.run(1, 2, 3, kind="gate").is_complete
    assert place.runs() == {1: 2, 2: 2, 3: 1}


def test_an_interrupt_cancels_what_runs_here(place: Place) -> None:
    """The first Ctrl-C ends experiments, and is a KeyboardInterrupt once they ended."""

    def act(_: Progress) -> None:
        if sum(place.runs().values()) == 2 and not view.notes:
            signal.raise_signal(signal.SIGINT)

    view = Acting(act)
    with pytest.raises(KeyboardInterrupt):
        place.run(1, 2, 3, kind="gate", view=view)
    assert place.statuses() == {1: "cancelled", 2: "cancelled", 3: "missing"}
    assert [note.split(";")[0] for note in view.notes] == [
        "Stopping what runs",
        "Stopped. To go on, run the same command again.",
    ]


def test_metrics_that_cannot_be_read_are_counted(place: Place) -> None:
    """What can be read counts, and the result says that it is not all."""
    lines = '{"step": 1, "loss": 5}\n{"step": 2, "lo\nwhat\n'
    place.script.write_text(f"open('metrics.jsonl', 'w').write({lines!r})\n", "utf-8")
    result = place.run(1)
    [record] = result.records.values()
    assert (record.status, record.metrics["loss"].last) == (Status.SUCCEEDED, 5.0)
    assert record.reason == "lines of metrics.jsonl that cannot be read: 2"


@pytest.mark.parametrize("mode", ["slurm", "kubernetes"])
def test_a_mode_is_not_another(mode: str, place: Place) -> None:
    """What is to run elsewhere does not run on this machine."""
    launcher = LocalLauncher(place.script)
    with pytest.raises(LauncherError, match=f"{mode} needs a launcher for it"):
        place.run(1, 2, launcher=launcher, mode=mode)
    assert not place.runs()


def test_an_interrupt_leaves_a_queue_its_jobs(place: Place) -> None:
    """Where jobs run elsewhere, Ctrl-C ends the watching, and they go on."""

    def act(_: Progress) -> None:
        if sum(place.runs().values()) == 2:
            signal.raise_signal(signal.SIGINT)

    view = Acting(act)
    with pytest.raises(KeyboardInterrupt):
        place.run(1, 2, 3, kind="gate", view=view, mode="slurm")
    assert view.notes[-1].startswith("Stopped; submitted jobs go on.")
    place.go()
    assert place.run(1, 2, 3, kind="gate", mode="slurm").is_complete
    assert place.runs() == {1: 1, 2: 1, 3: 1}


def test_a_repair_that_was_interrupted_is_gone_on_with(place: Place) -> None:
    """The same command starts what it left unfinished, and nothing else."""

    def act(_: Progress) -> None:
        if place.runs()[1] == 2 and not view.notes:
            signal.raise_signal(signal.SIGINT)

    place.run(1, 2, kind="odd_fails")
    place.script.write_text(SCRIPT.replace('sys.exit("odd")', 'wait("go")'), "utf-8")
    view = Acting(act)
    with pytest.raises(KeyboardInterrupt):
        place.run(1, 2, kind="odd_fails", only="failed", view=view)
    assert place.statuses() == {1: "cancelled", 2: "succeeded"}
    place.go()
    place.run(1, 2, 4, kind="odd_fails", only="failed")
    assert place.statuses() == {1: "succeeded", 2: "succeeded", 4: "missing"}


def test_a_new_search_says_how_to_go_on(place: Place) -> None:
    """new=True would begin another: before and after a Ctrl-C it is named as in the way."""

    def act(_: Progress) -> None:
        if len(view.notes) == 1:
            signal.raise_signal(signal.SIGINT)

    view = Acting(act)
    experiments = {"folder": None, "experiments_dir": place.root}
    with pytest.raises(KeyboardInterrupt):
        place.run(1, kind="gate", view=view, new=True, **experiments)
    assert view.notes[0].endswith(
        "is a new search; the same command without new=True (--new) goes on with it."
    )
    assert view.notes[-1].endswith("run the same command without new=True (--new) again.")
    (folder,) = place.root.glob("grid_search_*")
    (folder / "go").touch()
    assert place.run(1, kind="gate", **experiments).folder == folder
    assert str(folder) in view.notes[0]


def test_a_second_interrupt_leaves_at_once(place: Place) -> None:
    """Ctrl-C while it waits for what it cancels leaves what runs to end by itself."""

    def act(_: Progress) -> None:
        if sum(place.runs().values()) == 2:
            signal.raise_signal(signal.SIGINT)

    view = Acting(act, lambda _: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        place.run(1, 2, kind="gate", view=view)
    assert place.statuses() == {1: "pending", 2: "pending"}
    place.go()
    assert place.run(1, 2, kind="gate").is_complete
    assert place.runs() == {1: 1, 2: 1}


def test_a_handler_of_the_program_is_left_alone(place: Place) -> None:
    """A program with its own idea of Ctrl-C keeps it."""
    calls = []
    before = signal.signal(signal.SIGINT, lambda *_: calls.append(1))
    try:
        assert place.run(
            1, view=Acting(lambda _: signal.raise_signal(signal.SIGINT))
        ).is_complete
    finally:
        signal.signal(signal.SIGINT, before)
    assert calls


def test_a_rule_stops_what_is_bad(place: Place) -> None:
    """The worse of two, by what they report, is ended early; it is not started again."""
    rule = SuccessiveHalving("loss", "min", min_step=1, factor=2)
    result = place.run(0, 5, kind="reports", early_stopping=rule, max_running=1)
    assert place.statuses() == {0: "succeeded", 5: "stopped"}
    assert result.is_complete
    reasons = {r.reason for r in result.records.values()}
    assert reasons == {"", "loss 5 at step 1 is not among the best 1 of 2"}
    place.run(0, 5, kind="reports")
    assert place.runs() == {0: 1, 5: 1}


def test_what_is_preempted_is_continued(place: Place) -> None:
    """An experiment that asks to be continued is, within the same run."""
    result = place.run(1, kind="preempted_once")
    assert result.is_complete
    assert next(iter(result.records.values())).attempts == 2
    assert place.run(2, kind="preempted_once", retry={}).counts[Status.PREEMPTED] == 1


def test_the_base_may_name_what_runs(place: Place) -> None:
    """Without a launcher, LOCAL runs the base's entry point."""
    base = {**BASE, "entry_point": str(place.script)}
    executor = place.executor(launcher=None)
    assert executor.execute_grid_search(base, [grid(1), grid(2)]).is_complete
    assert place.runs() == {1: 1, 2: 1}


@pytest.mark.parametrize("mode", ["slurm", "kubernetes", "local"])
def test_a_mode_needs_its_launcher(place: Place, mode: str) -> None:
    """Without one nothing is made, and the error says what to give."""
    with pytest.raises(LauncherError, match="GridSearchExecutor"):
        place.run(1, launcher=None, mode=mode)
    assert not place.folder.exists()


def test_nothing_is_made_for_what_does_not_fit(place: Place) -> None:
    """All are checked before the first starts: an unknown key leaves no folder."""
    bad = ParameterGrid("g").add_parameter("m", [1, 2])
    with pytest.raises(InvalidExperimentsError, match=r"2 experiments .* n"):
        place.executor().execute_grid_search(BASE, bad)
    with pytest.raises(GridError):
        place.executor().execute_grid_search(BASE, ParameterGrid("empty"))
    assert not place.folder.exists()


@pytest.mark.parametrize("mode", ["local", "dry_run"])
def test_nothing_is_made_for_what_could_not_be_gone_on_with(
    place: Place, mode: str
) -> None:
    """A search whose file could not be read back is refused before there is a folder."""
    total: Grid = grid(0)
    for n in range(1, 30):
        total = (total + grid(n)) * ParameterGrid("c").add_parameter(f"k{n}", [1])
    base = BASE | {f"k{n}": 0 for n in range(1, 30)}
    with pytest.raises(GridError, match="48 levels deep: nest less"):
        place.executor().execute_grid_search(base, total, mode)
    assert not place.folder.exists()


def test_a_dry_run_touches_nothing(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """It tells names and folders, and leaves no trace, of a new search or a begun one."""
    result = place.run(1, 2, mode=ExecutionMode.DRY_RUN, view=None)
    assert sorted(p.name for p in place.root.iterdir()) == ["train.py"]
    assert result.dry_run is not None
    assert result.dry_run.num_to_start == 2
    assert not result.is_complete
    assert str(result.dry_run) in capsys.readouterr().err

    place.run(1)
    before = {p: p.stat().st_mtime_ns for p in sorted(place.root.rglob("*"))}
    result = place.run(1, 2, mode="dry_run")
    assert {p: p.stat().st_mtime_ns for p in sorted(place.root.rglob("*"))} == before
    assert result.counts == {Status.SUCCEEDED: 1, Status.MISSING: 1}


def test_a_config_manager_writes_configs(place: Place) -> None:
    """What saves configs elsewhere in a project saves them here, given their own type."""

    class Config(BaseModel):
        model_config = ConfigDict(frozen=True)
        experiment_name: str
        n: int = 0
        kind: str = "plain"

    class Manager:
        def __init__(self) -> None:
            self.saved: list[Config] = []

        def save(self, config: Config, path: Path) -> Path:
            self.saved.append(config)
            path.write_text(f"n: {config.n}\nkind: {config.kind}\n", "utf-8")
            return path

    manager = Manager()
    executor = place.executor(config_manager=manager)
    result = executor.execute_grid_search(Config(experiment_name="typed"), grid(1, 2))
    assert result.is_complete
    assert [config.n for config in manager.saved] == [1, 2]
    assert [config.experiment_name for config in manager.saved] == list(result.records)


def test_a_search_may_be_given_whole(place: Place) -> None:
    """A search with its own name and naming is run as it is, its grids included."""
    search = ParameterGridSearch(BASE, "other", NamingStrategy.PARAMETER_BASED)
    search.add_grid(grid(1))
    result = place.executor().execute_grid_search(search, [grid(2)])
    assert [name.startswith("other") for name in result.records] == [True, True]


def test_a_summary_that_cannot_be_written_is_told_of(place: Place) -> None:
    """The search is done all the same, and its journal complete."""
    (place.folder / "results_summary.json").mkdir(parents=True)
    (place.folder / "search_config.yaml").write_text("name: sweep\n", "utf-8")
    with pytest.raises(SearchMismatchError):
        place.run(1)
    (place.folder / "search_config.yaml").write_text(
        "name: sweep\nbase: {experiment_name: sweep, n: 0, kind: plain}\n", "utf-8"
    )
    with pytest.raises(
        SearchFolderError, match=r"results_summary\.json cannot be written"
    ):
        place.run(1)
    assert place.statuses() == {1: "succeeded"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"retry": {"succeeded": 1}}, "'succeeded' is none of"),
        ({"retry": {"failed": -1}}, "negative"),
        ({"max_running": 0}, "max_running"),
        ({"unknown_grace_s": -1}, "seconds"),
        ({"patience_s": float("nan")}, "seconds"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], said: str) -> None:
    """An executor that could not run is not made."""
    with pytest.raises(ValueError, match=said):
        GridSearchExecutor(**options)


def test_an_unknown_mode_is_refused(place: Place) -> None:
    """A word that is no mode starts nothing."""
    with pytest.raises(ValueError, match="moon"):
        place.run(1, mode="moon")
    assert not place.folder.exists()


def test_what_could_not_be_started_is_started_by_the_next_run(place: Place) -> None:
    """A refusal of the launcher is no failure; it is told of, and the same command goes on."""

    class Refusing(LocalLauncher):
        def submit(
            self, experiments: Sequence[Experiment], *, folder: Path
        ) -> list[Submission]:
            del folder
            names = [experiment.experiment_name for experiment in experiments]
            return [Submission(experiment_name=n, error="disk full") for n in names]

    view = Acting()
    result = place.run(1, 2, launcher=Refusing(place.script), view=view)
    assert not result.is_complete
    assert set(place.statuses().values()) == {"missing"}
    assert {r.reason for r in result.records.values()} == {
        "could not be started: disk full"
    }
    assert view.notes[-1].startswith("2 could not be started; the same command")
    assert place.run(1, 2).is_complete
    assert place.runs() == {1: 1, 2: 1}


def test_equal_configs_are_told_of_before_they_run(place: Place) -> None:
    """Both are named, in a run and in a dry run, and both are run."""
    kinds = ParameterGrid("k").add_parameter("kind", ["plain"])
    for mode in ("dry_run", "local"):
        view = Acting()
        result = place.executor(view=view).execute_grid_search(
            BASE, [grid(0), kinds], mode
        )
        note = next(n for n in view.notes if "The same config is run 2 times" in n)
        assert "(n=0) and " in note
        assert "(kind='plain')" in note
    assert result.counts == {Status.SUCCEEDED: 2}


def test_a_repair_that_a_kill_left_without_a_note_is_taken_up(place: Place) -> None:
    """The newest attempt at what had failed counts, in whatever run comes next."""
    place.run(1, 3, kind="odd_fails")
    (place.folder / "mended").touch()
    search = ParameterGridSearch({**BASE, "kind": "odd_fails"}).add_grid(grid(1, 3))
    LocalLauncher(place.script).submit(search.plan(), folder=place.folder)
    assert place.run(1, 3, kind="odd_fails").is_complete
    assert place.runs() == {1: 2, 3: 2}


@pytest.mark.parametrize("only", [None, "failed"])
def test_a_first_attempt_that_a_kill_left_without_a_note_is_taken_up(
    place: Place, wait_for: WaitFor, only: str | None
) -> None:
    """It counts as an attempt, and what it reported before it failed counts no more."""
    place.script.write_text(REPORTING.format("3, loss=0.001", "'boom'"), "utf-8")

    def kill(_: Any, job_ids: Any) -> None:
        raise _KilledError(job_ids)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "submitted", kill)
        with pytest.raises(_KilledError):
            place.run(1)
    assert place.statuses() == {1: "missing"}
    (file,) = place.folder.glob("*/*.1.job")
    wait_for(lambda: "ended" in file.read_text("utf-8"))
    (record,) = place.run(1, only=only).records.values()
    assert (record.status, record.attempts) == (Status.FAILED, 1)
    place.script.write_text(REPORTING.format("5, loss=1.0", "0"), "utf-8")
    (record,) = place.run(1, only="failed").records.values()
    assert (record.attempts, len(record.failed_jobs)) == (2, 1)
    assert record.metrics["loss"].min == 1.0


def test_a_launcher_that_cannot_tell_the_latest_job_fails(place: Place) -> None:
    """What it raises is told as its failure, and nothing is judged without it."""

    class Failing(LocalLauncher):
        def latest(self, names: Sequence[str], *, folder: Path) -> list[str | None]:
            msg = f"no answer for {names} in {folder.name}"
            raise RuntimeError(msg)

    place.run(1, kind="odd_fails")
    with pytest.raises(LauncherError, match="the launcher fails: no answer for"):
        place.run(1, kind="odd_fails", launcher=Failing(place.script))


def test_results_count_apart_what_the_grid_lost(place: Place) -> None:
    """The journal says what was dropped, and what came back."""
    place.run(1, 2, 3)
    place.run(2)
    found = SearchResults.read(place.folder)
    assert (found.counts, found.counts_dropped) == (
        {Status.SUCCEEDED: 1},
        {Status.SUCCEEDED: 2},
    )
    place.run(1, 2, 3)
    assert SearchResults.read(place.folder).counts_dropped == {}
