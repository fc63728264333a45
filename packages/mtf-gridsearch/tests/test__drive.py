from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mtf_gridsearch._drive import Drive
from mtf_gridsearch._progress import Progress, Settings
from mtf_gridsearch.errors import LauncherError, SearchFolderError
from mtf_gridsearch.journal import Journal, read_records
from mtf_gridsearch.launcher import Experiment, Submission
from mtf_gridsearch.records import Curve, ExperimentRecord, GridExperiment, Status


class Scripted:
    """A launcher whose jobs go through given states, one a look, and stay in the last."""

    poll_interval_s = 0.0

    def __init__(
        self, scripts: Mapping[str, Sequence[str]], max_running: int | None = 2
    ) -> None:
        self.max_running = max_running
        self.scripts = {name: deque(states) for name, states in scripts.items()}
        self.jobs: dict[str, deque[str]] = {}
        self.submitted: list[str] = []
        self.cancelled: list[str] = []
        self.most_at_once = 0
        self.failures: deque[Exception] = deque()

    def submit(
        self, experiments: Sequence[Experiment], *, folder: Path
    ) -> Iterable[Submission]:
        self._fail()
        entries = []
        for experiment in experiments:
            name = experiment.experiment_name
            assert (folder / name / "config.yaml").read_text("utf-8") == name
            self.submitted.append(name)
            script = self.scripts.get(name, deque(["running", "succeeded"]))
            if not script:
                entries.append(Submission(experiment_name=name, error="no room"))
                continue
            job_id = f"{name}.{self.submitted.count(name)}"
            states = [script.popleft()]
            while script and states[-1] not in {"preempted", "failed", "node_failed"}:
                states.append(script.popleft())
            self.jobs[job_id] = deque(states)
            entries.append(Submission(experiment_name=name, job_id=job_id))
        return entries

    def states(self, job_ids: Sequence[str]) -> Sequence[str]:
        self._fail()
        self.most_at_once = max(self.most_at_once, len(job_ids))
        return [self._next(job_id) for job_id in job_ids]

    def cancel(self, job_ids: Sequence[str]) -> None:
        self._fail()
        self.cancelled += job_ids
        for job_id in job_ids:
            self.jobs[job_id] = deque(["cancelled"])

    def _next(self, job_id: str) -> str:
        if job_id not in self.jobs:
            return "unknown"
        states = self.jobs[job_id]
        return states.popleft() if len(states) > 1 else states[0]

    def _fail(self) -> None:
        if self.failures:
            raise self.failures.popleft()


class Listed:
    """A supply of given experiments."""

    def __init__(
        self, names: Iterable[str], stop: Mapping[str, str] | None = None
    ) -> None:
        self.queue = deque(names)
        self.total: int | None = len(self.queue)
        self.stop = stop or {}
        self.metric: str | None = None
        self.seen: list[Mapping[str, Curve]] = []
        self.told: list[tuple[str, Status]] = []

    def take(self, most: int) -> Sequence[GridExperiment[Any]]:
        assert most > 0
        number = min(most, len(self.queue))
        return [experiment(self.queue.popleft()) for _ in range(number)]

    @property
    def is_exhausted(self) -> bool:
        return not self.queue

    def observe(
        self, record: ExperimentRecord, curves: Mapping[str, Curve]
    ) -> str | None:
        assert record.status is Status.RUNNING
        self.seen.append({name: list(curve) for name, curve in curves.items()})
        return self.stop.get(record.experiment_name)

    def tell(self, record: ExperimentRecord) -> None:
        self.told.append((record.experiment_name, record.status))


class Watching:
    """A view that remembers, and may act at a look."""

    def __init__(self) -> None:
        self.progress: list[Progress] = []
        self.notes: list[str] = []

    def update(self, progress: Progress) -> None:
        self.progress.append(progress)

    def note(self, text: str) -> None:
        self.notes.append(text)


def experiment(name: str) -> GridExperiment[Any]:
    """Return an experiment of that name."""
    return GridExperiment(
        experiment_name=name, identity=f"id-{name}", parameters={"n": name}, config={}
    )


def save(planned: GridExperiment[Any], path: Path) -> None:
    """Write a config that a launcher can check."""
    path.write_text(planned.experiment_name, "utf-8")


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """Return a new journal."""
    made = Journal(tmp_path)
    yield made
    made.close()


def drive(
    journal: Journal,
    launcher: Scripted,
    supply: Listed,
    view: Watching | None = None,
    **settings: Any,
) -> Drive:
    """Return a loop over *supply* in the journal's folder."""
    return Drive(
        journal._folder,
        journal,
        launcher,
        supply,
        save=save,
        view=view or Watching(),
        settings=Settings(**settings),
    )


def statuses(folder: Path) -> dict[str, str]:
    """Return what the journal says of each experiment."""
    return {name: str(record.status) for name, record in read_records(folder).items()}


def report(folder: Path, name: str, *losses: float) -> None:
    """Write what an experiment reports."""
    (folder / name).mkdir(exist_ok=True)
    with (folder / name / "metrics.jsonl").open("a", encoding="utf-8") as file:
        for step, loss in enumerate(losses, 1):
            file.write(json.dumps({"step": step, "loss": loss}) + "\n")


def test_all_run_once_as_places_come_free(journal: Journal, tmp_path: Path) -> None:
    """Five experiments in two places: never three at once, each submitted once."""
    scripts = {"a": ["pending", *["running"] * 20, "succeeded"]}
    launcher, supply = Scripted(scripts), Listed("abcde")

    assert drive(journal, launcher, supply).run()

    assert launcher.submitted == list("abcde")
    assert launcher.most_at_once == 2
    assert set(statuses(tmp_path).values()) == {"succeeded"}
    assert supply.told[-1] == ("a", Status.SUCCEEDED)  # the others passed it by
    assert len(supply.told) == 5


def test_the_fewest_places_count(journal: Journal) -> None:
    """A limit of the run holds besides the launcher's, and where a queue takes any number."""
    one = Scripted({}, max_running=None)
    assert drive(journal, one, Listed("abc"), max_running=1).run()
    assert one.most_at_once == 1


def test_a_queue_takes_all_at_once(journal: Journal) -> None:
    """Without a limit all are submitted before the first look."""
    launcher = Scripted({}, max_running=None)
    assert drive(journal, launcher, Listed(f"e{n}" for n in range(250))).run()
    assert launcher.most_at_once == 250


def test_what_cannot_be_started_waits_alone(journal: Journal, tmp_path: Path) -> None:
    """A refused experiment did not fail: it says why, the rest runs, the next run starts it."""
    view, supply = Watching(), Listed("abc")
    assert drive(journal, Scripted({"b": []}), supply, view).run()
    records = read_records(tmp_path)
    assert statuses(tmp_path) == {"a": "succeeded", "b": "missing", "c": "succeeded"}
    assert records["b"].reason == "could not be started: no room"
    assert (records["b"].job_id, records["b"].attempts) == (None, 0)
    assert ("b", Status.MISSING) in supply.told
    assert view.progress[-1].counts == {Status.SUCCEEDED: 2, Status.MISSING: 1}
    assert drive(journal, Scripted({}), Listed("abc")).run()
    assert statuses(tmp_path) == dict.fromkeys("abc", "succeeded")
    assert read_records(tmp_path)["b"].reason == ""


def test_a_refused_repair_leaves_the_failure(journal: Journal, tmp_path: Path) -> None:
    """What failed and cannot be started again has failed as before."""
    assert drive(journal, Scripted({"a": ["failed"]}), Listed("a")).run()
    assert drive(journal, Scripted({"a": []}), Listed("a")).run()
    record = read_records(tmp_path)["a"]
    assert (record.status, record.job_id, record.attempts) == (Status.FAILED, "a.1", 1)
    assert record.reason == "could not be started: no room"


def test_a_launcher_that_forgets_one_is_told_of(journal: Journal, tmp_path: Path) -> None:
    """An experiment without an entry counts as not started."""

    class Forgetful(Scripted):
        def submit(
            self, experiments: Sequence[Experiment], *, folder: Path
        ) -> Iterable[Submission]:
            return list(super().submit(experiments, folder=folder))[1:]

    assert drive(journal, Forgetful({}), Listed("ab")).run()
    assert read_records(tmp_path)["a"].reason.endswith("the launcher said nothing of it")


def test_metrics_are_kept_with_the_end(journal: Journal, tmp_path: Path) -> None:
    """What was reported until the very end is summarised in the journal."""
    report(tmp_path, "a", 0.5, 0.25, 0.75)
    assert drive(journal, Scripted({}), Listed("a")).run()
    summary = read_records(tmp_path)["a"].metrics["loss"]
    assert (summary.last, summary.min, summary.min_step) == (0.75, 0.25, 2)


def test_a_rule_stops_an_experiment(journal: Journal, tmp_path: Path) -> None:
    """It is noted why, cancelled once, and ends as stopped for good."""
    report(tmp_path, "a", 0.5)
    launcher = Scripted({"a": ["running"]})
    supply = Listed("ab", stop={"a": "worse than others"})

    assert drive(journal, launcher, supply).run()

    assert launcher.cancelled == ["a.1"]
    record = read_records(tmp_path)["a"]
    assert (record.status, record.reason) == (Status.STOPPED, "worse than others")
    assert supply.seen == [{"loss": [(1, 0.5)]}]
    again = Scripted({})
    assert drive(journal, again, Listed("ab")).run()
    assert again.submitted == []


def test_what_fails_while_it_is_watched_is_not_started_again(
    journal: Journal, tmp_path: Path
) -> None:
    """A job adopted from a loop that was killed fails: that is its end, as for any other."""
    launcher = Scripted({"a": ["running", "failed"]})
    journal.planned([experiment("a")])
    (tmp_path / "a").mkdir()
    save(experiment("a"), tmp_path / "a" / "config.yaml")
    list(launcher.submit([experiment("a")], folder=tmp_path))
    journal.submitted({"a": "a.1"})

    assert drive(journal, launcher, Listed("a")).run()
    assert launcher.submitted == ["a"]
    assert statuses(tmp_path) == {"a": "failed"}


def test_success_before_the_cancel_counts(journal: Journal, tmp_path: Path) -> None:
    """An experiment that succeeds while it is being stopped has succeeded."""

    class Late(Scripted):
        def cancel(self, job_ids: Sequence[str]) -> None:
            self.jobs.update((job_id, deque(["succeeded"])) for job_id in job_ids)

    report(tmp_path, "a", 0.5)
    supply = Listed("a", stop={"a": "bad"})
    assert drive(journal, Late({"a": ["running"]}), supply).run()
    assert statuses(tmp_path) == {"a": "succeeded"}
    assert read_records(tmp_path)["a"].reason == ""


def test_a_stop_decided_before_a_kill_is_carried_out(
    journal: Journal, tmp_path: Path
) -> None:
    """The next loop cancels what the journal says was to be stopped."""
    launcher = Scripted({"a": ["running"]})
    journal.planned([experiment("a")])
    (tmp_path / "a").mkdir()
    save(experiment("a"), tmp_path / "a" / "config.yaml")
    list(launcher.submit([experiment("a")], folder=tmp_path))
    journal.submitted({"a": "a.1"})
    journal.stopping("a", "bad")

    assert drive(journal, launcher, Listed("a")).run()
    assert statuses(tmp_path) == {"a": "stopped"}
    assert launcher.submitted == ["a"]


@pytest.mark.parametrize("word", ["preempted", "node_failed", "failed"])
def test_retries_are_counted_by_how_it_ended(
    journal: Journal, tmp_path: Path, word: str
) -> None:
    """It is started again as often as is allowed for that word, and no more."""
    launcher = Scripted({"a": [word, word, word, "succeeded"]})
    assert drive(journal, launcher, Listed("a"), retries={word: 2}).run()
    assert launcher.submitted == ["a"] * 3
    assert statuses(tmp_path) == {"a": word}
    assert read_records(tmp_path)["a"].attempts == 3


def test_what_is_begun_again_is_shown_without_its_failure(
    journal: Journal, tmp_path: Path
) -> None:
    """A rule sees at once that nothing counts of what an attempt that failed reported."""
    (tmp_path / "a").mkdir()
    line = json.dumps({"step": 1, "loss": 0.5, "job": "a.1"}) + "\n"
    (tmp_path / "a" / "metrics.jsonl").write_text(line, "utf-8")
    supply = Listed("a")
    launcher = Scripted({"a": ["running", "failed", "running", "preempted", "succeeded"]})
    assert drive(journal, launcher, supply, retries={"failed": 1, "preempted": 1}).run()
    assert launcher.submitted == ["a"] * 3
    assert supply.seen == [{"loss": [(1, 0.5)]}, {}]


def test_a_retry_may_succeed(journal: Journal, tmp_path: Path) -> None:
    """What is preempted goes on until it succeeds."""
    launcher = Scripted({"a": ["preempted", "succeeded"]})
    view = Watching()
    assert drive(journal, launcher, Listed("ab"), view, retries={"preempted": 9}).run()
    assert statuses(tmp_path) == {"a": "succeeded", "b": "succeeded"}
    assert view.progress[-1].counts == {Status.SUCCEEDED: 2}


def test_what_runs_is_watched_and_not_started_again(
    journal: Journal, tmp_path: Path
) -> None:
    """After a kill, a job that runs keeps its place; the rest comes behind it."""
    launcher = Scripted(
        {"b": ["running"] * 3 + ["preempted", "succeeded"]}, max_running=1
    )
    journal.planned(map(experiment, "ab"))
    (tmp_path / "b").mkdir()
    save(experiment("b"), tmp_path / "b" / "config.yaml")
    list(launcher.submit([experiment("b")], folder=tmp_path))
    journal.submitted({"b": "b.1"})

    assert drive(journal, launcher, Listed("ab")).run()
    assert launcher.submitted == ["b", "a", "b"]  # preempted: missing once it is taken
    assert launcher.most_at_once == 1
    assert set(statuses(tmp_path).values()) == {"succeeded"}


def test_a_job_taken_up_is_retried_once_handed_out(
    journal: Journal, tmp_path: Path
) -> None:
    """A running job that the supply has handed out again may be started again."""
    launcher = Scripted({"a": ["running"] * 3 + ["node_failed", "succeeded"]})
    journal.planned([experiment("a")])
    (tmp_path / "a").mkdir()
    save(experiment("a"), tmp_path / "a" / "config.yaml")
    list(launcher.submit([experiment("a")], folder=tmp_path))
    journal.submitted({"a": "a.1"})

    assert drive(journal, launcher, Listed("a"), retries={"node_failed": 1}).run()
    assert launcher.submitted == ["a", "a"]


def test_what_ended_earlier_is_told_to_the_supply(journal: Journal) -> None:
    """A supply learns of each record that has ended, and of none that was never run."""
    journal.planned(map(experiment, "abc"))
    journal.submitted({"a": "a.1", "b": "b.1"})
    for name, status in (("a", Status.SUCCEEDED), ("b", Status.FAILED)):
        record = journal.record(name)
        assert record is not None
        journal.ended([replace(record, status=status)])
    supply = Listed("")
    assert drive(journal, Scripted({}), supply).run()
    assert supply.told == [("a", Status.SUCCEEDED), ("b", Status.FAILED)]


def test_an_unknown_job_ends_after_a_grace(journal: Journal, tmp_path: Path) -> None:
    """A job that its launcher does not know for that long is given up, and restarted."""
    journal.planned([experiment("a")])
    journal.submitted({"a": "lost.1"})
    launcher = Scripted({})
    settings: dict[str, Any] = {"unknown_grace_s": 0.0, "retries": {"unknown": 1}}
    assert drive(journal, launcher, Listed("a"), **settings).run()
    assert launcher.submitted == ["a"]
    assert statuses(tmp_path) == {"a": "succeeded"}


def test_a_job_unknown_for_a_moment_is_waited_for(
    journal: Journal, tmp_path: Path
) -> None:
    """A queue that lags says unknown first; nothing ends by that."""
    launcher = Scripted({"a": ["unknown", "unknown", "running", "unknown", "succeeded"]})
    assert drive(journal, launcher, Listed("a")).run()
    assert launcher.submitted == ["a"]
    assert statuses(tmp_path) == {"a": "succeeded"}


def test_a_launcher_that_never_worked_fails_at_once(journal: Journal) -> None:
    """The first failure of a run is an error that says what the launcher said."""
    launcher = Scripted({})
    launcher.failures.append(OSError("no sbatch"))
    with pytest.raises(LauncherError, match="no sbatch"):
        drive(journal, launcher, Listed("a")).run()


def test_a_launcher_that_worked_is_asked_again(journal: Journal, tmp_path: Path) -> None:
    """A queue that does not answer for a while costs nothing: states, submit, cancel."""
    report(tmp_path, "a", 0.5)
    launcher = Scripted({"a": ["running"] * 9})
    view = Watching()

    class Failing(Listed):
        def take(self, most: int) -> Sequence[GridExperiment[Any]]:
            if len(self.queue) == 1:
                launcher.failures.append(OSError("submit down"))
            return super().take(most)

        def observe(
            self, record: ExperimentRecord, curves: Mapping[str, Curve]
        ) -> str | None:
            launcher.failures.append(OSError("cancel down"))
            return super().observe(record, curves)

        def tell(self, record: ExperimentRecord) -> None:
            if record.experiment_name == "b":
                launcher.failures.append(OSError("states down"))
            super().tell(record)

    supply = Failing("abc", stop={"a": "bad"})
    assert drive(journal, launcher, supply, view).run()
    assert statuses(tmp_path) == {"a": "stopped", "b": "succeeded", "c": "succeeded"}
    assert sorted(launcher.submitted) == ["a", "b", "c"]
    assert {note.rpartition(": ")[2] for note in view.notes} <= {
        "submit down",
        "cancel down",
        "states down",
    }
    assert view.notes


def test_patience_with_a_launcher_ends(journal: Journal, tmp_path: Path) -> None:
    """One that fails for too long is an error, and what runs stays noted as running."""

    class Dying(Scripted):
        def states(self, job_ids: Sequence[str]) -> Sequence[str]:
            self.failures.extend([OSError("down")] * bool(self.most_at_once))
            return super().states(job_ids)

    with pytest.raises(LauncherError, match=r"down; .* run the command again"):
        drive(journal, Dying({"a": ["running"]}), Listed("a"), patience_s=0.01).run()
    assert statuses(tmp_path) == {"a": "pending"}


def test_an_interrupt_leaves_jobs_as_they_are(journal: Journal, tmp_path: Path) -> None:
    """It returns within a wait; what was submitted is noted, the rest is missing."""
    launcher = Scripted({"a": ["running"], "b": ["running"]})
    launcher.poll_interval_s = 3600.0
    running = drive(journal, launcher, Listed("abc"))
    timer = threading.Timer(0.2, running.interrupt)
    timer.start()
    assert not running.run()
    timer.join()
    assert launcher.cancelled == []
    assert statuses(tmp_path) == {"a": "pending", "b": "pending"}


def test_cancelling_all_waits_until_they_have_ended(
    journal: Journal, tmp_path: Path
) -> None:
    """Each job is asked to end, and is noted as cancelled: to be run again, not as stopped."""

    class Slow(Scripted):
        def cancel(self, job_ids: Sequence[str]) -> None:
            for job_id in set(job_ids) - set(self.cancelled):
                self.jobs[job_id] = deque(["running", "running", "cancelled"])
            self.cancelled += job_ids

    launcher = Slow({"a": ["running"], "b": ["running"]})

    class Interrupting(Listed):
        def take(self, most: int) -> Sequence[GridExperiment[Any]]:
            running.interrupt()
            return super().take(most)

    supply = Interrupting("abc")
    running = drive(journal, launcher, supply, retries={"cancelled": 1})
    assert not running.run()
    running.cancel_all()
    assert set(launcher.cancelled) == {"a.1", "b.1"}
    assert statuses(tmp_path) == {"a": "cancelled", "b": "cancelled"}


def test_a_config_that_cannot_be_written_is_an_error_of_the_folder(
    journal: Journal, tmp_path: Path
) -> None:
    """Nothing is submitted without its config."""
    (tmp_path / "a").write_text("a file where the folder should be", "utf-8")
    launcher = Scripted({})
    with pytest.raises(SearchFolderError, match=r"config\.yaml cannot be written"):
        drive(journal, launcher, Listed("a")).run()
    assert launcher.submitted == []


def test_progress_is_shown_at_each_look(journal: Journal) -> None:
    """Counts are of all that is planned; each end is shown once."""
    journal.planned(map(experiment, "abc"))
    view = Watching()
    scripts = {"b": ["running", "failed"], "c": ["running"] * 3 + ["succeeded"]}
    assert drive(journal, Scripted(scripts), Listed("abc"), view).run()
    first, last = view.progress[0], view.progress[-1]
    assert first.counts == {Status.MISSING: 1, Status.RUNNING: 2}
    assert (first.total, first.ended) == (3, 0)
    assert last.counts == {Status.SUCCEEDED: 2, Status.FAILED: 1}
    assert (last.ended, last.left_s) == (3, 0.0)
    endings = [r.experiment_name for p in view.progress for r in p.has_ended]
    assert sorted(endings) == ["a", "b", "c"]


def test_a_metric_that_nobody_reports_is_told_of_once(
    journal: Journal, tmp_path: Path
) -> None:
    """A rule by a misspelt metric does nothing, and the view says so with the nearest name."""
    view, supply = Watching(), Listed("abc")
    supply.metric = "los"
    for name in "bc":
        report(tmp_path, name, 0.5)
    assert drive(journal, Scripted({}), supply, view).run()
    (note,) = view.notes
    assert "'los', which was not reported: b reported loss; did you mean 'loss'?" in note

    supply, right = Listed("d"), Watching()
    supply.metric = "loss"
    report(tmp_path, "d", 0.5)
    assert drive(journal, Scripted({}), supply, right).run()
    assert right.notes == []
