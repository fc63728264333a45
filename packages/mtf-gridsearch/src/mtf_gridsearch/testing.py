"""What every launcher must do, as tests that its author inherits.

`LauncherConformance` runs real experiments of a script of its own, so it holds for local
processes as for a cluster. Give it one fixture, which makes launchers of that script::

    class TestMine(LauncherConformance):
        @pytest.fixture
        def make_launcher(self):
            return lambda script: MyLauncher(script)

Each call must return a new object for the same place. Where jobs do not see the temporary
folders of pytest, override the fixture ``tmp_path`` too.
"""

# Assertions are how these tests speak.
# ruff: noqa: S101

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtf_gridsearch.launcher import JobState, Launcher, Submitted

__all__ = ["HOSTILE_NAMES", "LauncherConformance", "PlainExperiment", "write_experiment"]

HOSTILE_NAMES = (
    *("", ".", "..", "../escaped", "a/b", "/absolute", ".hidden", "-option"),
    *("a b", "a\nb", "a\0b", "$(touch escaped)", "a;b", "a'b", "é", "x" * 129),
)

SCRIPT = '''\
"""Do what the config says: succeed, fail, or wait until a file says to go on."""

import json
import os
import sys
import time
from pathlib import Path

config = Path(sys.argv[1])
do = json.loads(config.read_text(encoding="utf-8"))["do"]
with open("starts.txt", "a", encoding="utf-8") as file:
    file.write(os.getcwd() + "\\n")
deadline = time.monotonic() + 300
while do == "wait" and not Path("go_on").exists() and time.monotonic() < deadline:
    time.sleep(0.01)
sys.exit(3 if do == "fail" else 0)
'''

MakeLauncher = Callable[[Path], Launcher]


@dataclass(frozen=True, slots=True)
class PlainExperiment:
    """An experiment of plain values; fits `mtf_gridsearch.launcher.Experiment`."""

    experiment_name: str
    values: dict[str, Any] = field(default_factory=dict)

    def model_dump(self, *, mode: str = "json") -> dict[str, Any]:  # noqa: ARG002
        """Return the values."""
        return dict(self.values)


def write_experiment(folder: Path, name: str, **values: Any) -> PlainExperiment:
    """Make an experiment and its config, as a search does before it submits."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    text = json.dumps(values)  # which is YAML, too
    (folder / name / "config.yaml").write_text(text, encoding="utf-8")
    return PlainExperiment(name, values)


class LauncherConformance:
    """Tests of `mtf_gridsearch.launcher.Launcher`; inherit, and give ``make_launcher``.

    Attributes:
        timeout_s: How long jobs may take to become what they must, in seconds.
    """

    timeout_s: float = 120.0

    def test_one_entry_for_each_experiment_in_order(
        self, make_launcher: MakeLauncher, tmp_path: Path
    ) -> None:
        """Whatever becomes of it, each experiment has its entry, and each job its id."""
        launcher = self.launcher(make_launcher, tmp_path)
        first = write_experiment(tmp_path, "first", do="succeed")
        last = write_experiment(tmp_path, "last", do="succeed")
        batch = [first, PlainExperiment("no/name"), last]
        entries = list(launcher.submit(batch, folder=tmp_path))
        assert [entry.experiment_name for entry in entries] == [
            "first",
            "no/name",
            "last",
        ]
        assert [entry.job_id is None for entry in entries] == [False, True, False]
        assert [entry.error is None for entry in entries] == [True, False, True]
        ids = job_ids([entries[0], entries[2]])
        assert ids[0] != ids[1]
        self.wait(launcher, ids, JobState.SUCCEEDED)

    def test_nothing_submitted(self, make_launcher: MakeLauncher, tmp_path: Path) -> None:
        """Of nothing, nothing becomes: no entry, no state."""
        launcher = self.launcher(make_launcher, tmp_path)
        assert list(launcher.submit([], folder=tmp_path)) == []
        assert list(launcher.states([])) == []
        launcher.cancel([])

    def test_says_how_many_and_how_often(
        self, make_launcher: MakeLauncher, tmp_path: Path
    ) -> None:
        """There is a place at least, and a time between two questions."""
        launcher = self.launcher(make_launcher, tmp_path)
        assert launcher.max_running is None or launcher.max_running >= 1
        assert launcher.poll_interval_s > 0

    def test_hostile_names_are_refused(
        self, make_launcher: MakeLauncher, tmp_path: Path
    ) -> None:
        """A name that is none starts nothing and writes nothing; its neighbours run."""
        folder = tmp_path / "search"
        good = write_experiment(folder, "good", do="succeed")
        launcher = self.launcher(make_launcher, tmp_path)
        before = {path.name for path in tmp_path.iterdir()}
        batch = [*map(PlainExperiment, HOSTILE_NAMES), good]
        *refused, started = launcher.submit(batch, folder=folder)
        assert [entry.job_id for entry in refused] == [None] * len(HOSTILE_NAMES)
        assert all(entry.error for entry in refused)
        self.wait(launcher, job_ids([started]), JobState.SUCCEEDED)
        assert {path.name for path in tmp_path.iterdir()} == before
        written = {
            path.name for path in folder.iterdir() if not path.name.startswith(".")
        }
        assert written == {"good"}

    def test_an_experiment_without_a_config_is_refused(
        self, make_launcher: MakeLauncher, tmp_path: Path
    ) -> None:
        """What was not written cannot be run, and its neighbours can."""
        launcher = self.launcher(make_launcher, tmp_path)
        good = write_experiment(tmp_path, "good", do="succeed")
        entries = list(launcher.submit([PlainExperiment("bare"), good], folder=tmp_path))
        assert entries[0].job_id is None
        assert entries[0].error
        self.wait(launcher, job_ids(entries[1:]), JobState.SUCCEEDED)

    def test_a_folder_that_is_missing_raises(
        self, make_launcher: MakeLauncher, tmp_path: Path
    ) -> None:
        """Where nothing can be started, no entries pretend that something was."""
        launcher = self.launcher(make_launcher, tmp_path)
        try:
            list(launcher.submit([PlainExperiment("a")], folder=tmp_path / "missing"))
        except Exception:  # noqa: BLE001 -- each launcher has its own
            return
        msg = "submit returned although there is no folder"
        raise AssertionError(msg)

    def test_runs_in_its_folder(
        self, make_launcher: MakeLauncher, tmp_path: Path
    ) -> None:
        """The experiment's folder is its working folder."""
        launcher = self.launcher(make_launcher, tmp_path)
        [job_id] = self.submit(launcher, tmp_path, do="succeed")
        self.wait(launcher, [job_id], JobState.SUCCEEDED)
        [folder] = starts(tmp_path / "wait_0")
        assert Path(folder).resolve() == (tmp_path / "wait_0").resolve()

    def test_a_failure_touches_no_other(
        self, make_launcher: MakeLauncher, tmp_path: Path
    ) -> None:
        """One experiment fails, those beside it succeed."""
        launcher = self.launcher(make_launcher, tmp_path)
        names = ("a", "b", "c")
        batch = [
            write_experiment(tmp_path, name, do="fail" if name == "b" else "succeed")
            for name in names
        ]
        ids = job_ids(launcher.submit(batch, folder=tmp_path))
        self.wait(launcher, [ids[0], ids[2]], JobState.SUCCEEDED)
        self.wait(launcher, [ids[1]], JobState.FAILED)
        assert [len(starts(tmp_path / name)) for name in names] == [1, 1, 1]

    def test_what_runs_is_not_started_again(
        self, make_launcher: MakeLauncher, tmp_path: Path
    ) -> None:
        """Submitting a running experiment gives its job, also from another object."""
        launcher = self.launcher(make_launcher, tmp_path)
        [job_id] = self.submit(launcher, tmp_path, do="wait")
        self.wait(launcher, [job_id], JobState.RUNNING)
        other = self.launcher(make_launcher, tmp_path)
        assert self.submit(other, tmp_path, do="wait") == [job_id]
        go_on(tmp_path / "wait_0")
        self.wait(launcher, [job_id], JobState.SUCCEEDED)
        assert len(starts(tmp_path / "wait_0")) == 1

    def test_twice_in_a_batch_is_started_once(
        self, make_launcher: MakeLauncher, tmp_path: Path
    ) -> None:
        """An experiment that comes twice has two entries and one job."""
        launcher = self.launcher(make_launcher, tmp_path)
        experiment = write_experiment(tmp_path, "twin", do="wait")
        ids = job_ids(launcher.submit([experiment, experiment], folder=tmp_path))
        assert len(ids) == 2  # noqa: PLR2004 -- as many as were submitted
        assert len(set(ids)) == 1
        go_on(tmp_path / "twin")
        self.wait(launcher, ids, JobState.SUCCEEDED)
        assert len(starts(tmp_path / "twin")) == 1

    def test_submitted_by_two_at_once_is_started_once(
        self, make_launcher: MakeLauncher, tmp_path: Path
    ) -> None:
        """Several objects submit one experiment at the same time: it has one job."""
        launchers = [self.launcher(make_launcher, tmp_path) for _ in range(4)]
        experiment = write_experiment(tmp_path, "wanted", do="wait")

        def submit(launcher: Launcher) -> list[str]:
            return job_ids(launcher.submit([experiment], folder=tmp_path))

        with ThreadPoolExecutor(len(launchers)) as pool:
            ids = [job_id for found in pool.map(submit, launchers) for job_id in found]
        assert len(ids) == len(launchers)
        assert len(set(ids)) == 1
        go_on(tmp_path / "wanted")
        self.wait(launchers[0], ids[:1], JobState.SUCCEEDED)
        assert len(starts(tmp_path / "wanted")) == 1

    def test_another_object_gives_the_same_answers(
        self, make_launcher: MakeLauncher, tmp_path: Path
    ) -> None:
        """State lies where jobs run: one object submits, others watch, cancel, see."""
        first = self.launcher(make_launcher, tmp_path)
        ids = self.submit(first, tmp_path, do="wait")
        second = self.launcher(make_launcher, tmp_path)
        self.wait(second, ids, JobState.RUNNING)
        second.cancel(ids)
        self.wait(self.launcher(make_launcher, tmp_path), ids, JobState.CANCELLED)
        self.wait(first, ids, JobState.CANCELLED)

    def test_states_are_in_order(
        self, make_launcher: MakeLauncher, tmp_path: Path
    ) -> None:
        """There is one state for each id, however they are mixed, known or not."""
        launcher = self.launcher(make_launcher, tmp_path)
        good = write_experiment(tmp_path, "good", do="succeed")
        bad = write_experiment(tmp_path, "bad", do="fail")
        ok, failed = job_ids(launcher.submit([good, bad], folder=tmp_path))
        self.wait(launcher, [ok], JobState.SUCCEEDED)
        self.wait(launcher, [failed], JobState.FAILED)
        asked = [failed, "no such job", ok, "../../etc/passwd", failed, ""]
        words = [JobState(word) for word in launcher.states(asked)]
        unknown = JobState.UNKNOWN
        expected = [JobState.FAILED, unknown, JobState.SUCCEEDED]
        assert words == [*expected, unknown, JobState.FAILED, unknown]

    def test_cancel_spares_others(
        self, make_launcher: MakeLauncher, tmp_path: Path
    ) -> None:
        """What is cancelled ends as cancelled; unknown ids are passed over."""
        launcher = self.launcher(make_launcher, tmp_path)
        doomed = write_experiment(tmp_path, "doomed", do="wait")
        spared = write_experiment(tmp_path, "spared", do="wait")
        first, second = job_ids(launcher.submit([doomed, spared], folder=tmp_path))
        launcher.cancel(["no such job", first])
        self.wait(launcher, [first], JobState.CANCELLED)
        assert not JobState(launcher.states([second])[0]).is_final
        go_on(tmp_path / "spared")
        self.wait(launcher, [second], JobState.SUCCEEDED)

    def test_what_has_ended_stays_as_it_is(
        self, make_launcher: MakeLauncher, tmp_path: Path
    ) -> None:
        """Cancelling a job that has ended changes nothing."""
        launcher = self.launcher(make_launcher, tmp_path)
        ids = self.submit(launcher, tmp_path, do="succeed")
        self.wait(launcher, ids, JobState.SUCCEEDED)
        launcher.cancel(ids)
        assert [JobState(word) for word in launcher.states(ids)] == [JobState.SUCCEEDED]

    def test_what_was_cancelled_can_be_run_again(
        self, make_launcher: MakeLauncher, tmp_path: Path
    ) -> None:
        """A new attempt is a new job; the old one stays cancelled."""
        launcher = self.launcher(make_launcher, tmp_path)
        [before] = self.submit(launcher, tmp_path, do="wait")
        launcher.cancel([before])
        self.wait(launcher, [before], JobState.CANCELLED)
        go_on(tmp_path / "wait_0")
        [after] = self.submit(launcher, tmp_path, do="wait")
        assert after != before
        self.wait(launcher, [after], JobState.SUCCEEDED)
        assert JobState(launcher.states([before])[0]) is JobState.CANCELLED

    def test_no_more_run_at_once_than_it_says(
        self, make_launcher: MakeLauncher, tmp_path: Path
    ) -> None:
        """What is submitted beyond the places waits for one, and gets it."""
        launcher = self.launcher(make_launcher, tmp_path)
        places = min(launcher.max_running or 4, 4)
        num = places + 2
        ids = self.submit(launcher, tmp_path, num=num, do="wait")
        if places == launcher.max_running:
            self.wait_for(lambda: running(launcher, ids) == places)
        left = set(range(num))
        while left:
            started = [i for i in left if starts(tmp_path / f"wait_{i}")]
            if launcher.max_running is not None:
                assert running(launcher, ids) <= launcher.max_running
                assert len(started) <= launcher.max_running
            for index in started[:1]:
                go_on(tmp_path / f"wait_{index}")
                self.wait(launcher, [ids[index]], JobState.SUCCEEDED)
                left.remove(index)
            self.wait_for(lambda: not left or any_started(tmp_path, left))

    def launcher(self, make_launcher: MakeLauncher, tmp_path: Path) -> Launcher:
        """Return a new launcher of the suite's script."""
        script = tmp_path / "script.py"
        if not script.exists():  # jobs of an earlier one may be about to read it
            script.write_text(SCRIPT, encoding="utf-8")
        return make_launcher(script)

    def submit(
        self, launcher: Launcher, folder: Path, *, num: int = 1, do: str
    ) -> list[str]:
        """Submit experiments ``wait_0`` and on; return their jobs' ids."""
        batch = [write_experiment(folder, f"wait_{i}", do=do) for i in range(num)]
        return job_ids(launcher.submit(batch, folder=folder))

    def wait(self, launcher: Launcher, ids: Sequence[str], state: JobState) -> None:
        """Wait until all jobs are in *state*; fail if one ends in another."""

        def is_reached() -> bool:
            words = [JobState(word) for word in launcher.states(ids)]
            wrong = [word for word in words if word.is_final and word is not state]
            assert not wrong, f"{words}, not {state}"
            return all(word is state for word in words)

        self.wait_for(is_reached, launcher.poll_interval_s)

    def wait_for(self, condition: Callable[[], bool], interval_s: float = 0.05) -> None:
        """Wait until *condition* holds."""
        deadline = time.monotonic() + self.timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"waited for {self.timeout_s} s"
            time.sleep(interval_s)


def job_ids(entries: Iterable[Submitted]) -> list[str]:
    """Return the jobs of *entries*; fail if one was not started."""
    ids = []
    for entry in entries:
        assert entry.error is None, f"{entry.experiment_name}: {entry.error}"
        assert entry.job_id, f"{entry.experiment_name}: neither a job nor an error"
        ids.append(entry.job_id)
    return ids


def starts(folder: Path) -> list[str]:
    """Return the working folder of each time that the experiment was started."""
    path = folder / "starts.txt"
    return path.read_text("utf-8").splitlines() if path.exists() else []


def any_started(folder: Path, indices: set[int]) -> bool:
    """Tell whether one of the experiments ``wait_<index>`` has been started."""
    return any(starts(folder / f"wait_{index}") for index in indices)


def go_on(folder: Path) -> None:
    """Let a waiting experiment succeed."""
    (folder / "go_on").touch()


def running(launcher: Launcher, ids: Sequence[str]) -> int:
    """Return how many jobs run."""
    return [JobState(word) for word in launcher.states(ids)].count(JobState.RUNNING)
