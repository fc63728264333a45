from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from mtf_slurm import arrays
from mtf_slurm.after import After
from mtf_slurm.arrays import Planned, Work
from mtf_slurm.command import Commands, NoAnswerError, NoRoomError
from mtf_slurm.errors import (
    SchedulerCommandError,
    SchedulerUnreachableError,
    SubmissionError,
    UnreadableReplyError,
)
from mtf_slurm.experiments import BatchSubmissionResult, Experiment, Submission
from mtf_slurm.follow import _schedule_file
from mtf_slurm.follow.monitor import JobMonitor, StateChange
from mtf_slurm.follow.schedule import ExperimentSchedule, Quota
from mtf_slurm.launcher import SLURMLauncher
from mtf_slurm.settings import SlurmSettings
from mtf_slurm.states import JobState
from mtf_slurm.testing import FakeSlurm

COMMANDS = Commands(timeout_s=20, num_attempts=1)
MakeLauncher = Callable[..., SLURMLauncher]


@pytest.fixture
def make(make_launcher: MakeLauncher, project: Path) -> Callable[..., ExperimentSchedule]:
    """Make a schedule in the project's folder of experiments."""
    folder = project / "experiments"

    def made(**more: Any) -> ExperimentSchedule:
        launcher = more.pop("launcher", None) or make_launcher(freeze_code=False)
        monitor = JobMonitor(
            folder, interval_s=0.05, longest_interval_s=0.05, commands=COMMANDS
        )
        return ExperimentSchedule(launcher, folder, **{"monitor": monitor, **more})

    return made


class Refusing:
    """A launcher that says no."""

    def __init__(self, why: str | Exception) -> None:
        self.why = why
        self.count = 0

    def submit(
        self,
        experiments: Sequence[Experiment],
        *,
        folder: Path,
        after: After | None = None,
    ) -> BatchSubmissionResult:
        assert folder.is_dir()
        assert after is not None
        self.count += 1
        if isinstance(self.why, Exception):
            raise self.why
        rows = [
            Submission(experiment_name=e.experiment_name, error=self.why)
            for e in experiments
        ]
        return BatchSubmissionResult(tuple(rows))


@pytest.mark.slow
def test_a_graph_is_submitted_at_once_and_followed(
    make: Callable[..., ExperimentSchedule],
    experiment: Callable[..., Any],
    slurm: FakeSlurm,
) -> None:
    """Slurm itself knows who waits for whom; each end is told."""
    schedule = make()
    told: list[StateChange] = []
    schedule.subscribe(told.append)
    schedule.add(
        [experiment("prepare"), experiment("train", "fail"), experiment("report")],
        after={"train": {"prepare": "afterok"}, "report": {"train": "afternotok"}},
    )
    schedule.add([experiment("never")], after={"never": {"train": "afterok"}})
    states = schedule.run(timeout_s=60)
    assert states == {
        "prepare": "succeeded",
        "train": "failed",
        "report": "succeeded",
        "never": "cancelled",
    }
    tasks = slurm.tasks()
    assert len(tasks) == 4
    assert [t["options"].get("dependency") for t in tasks.values()].count(None) == 1
    ends = {c.experiment_name: c.after for c in told if c.after.is_final}
    assert ends == states


@pytest.mark.slow
def test_what_is_requeued_at_once_is_not_as_it_was_seen(
    make_launcher: MakeLauncher, experiment: Callable[..., Any], project: Path
) -> None:
    """An answer that is still fresh enough tells nothing of what was requeued since."""
    launcher, folder = make_launcher(), project / "experiments"

    def run() -> dict[str, JobState]:
        monitor = JobMonitor(folder, interval_s=3.0, commands=COMMANDS)
        schedule = ExperimentSchedule(launcher, folder, monitor=monitor)
        if not schedule.states():
            schedule.add([experiment("a", do="fail")])
        return schedule.run(timeout_s=60)

    assert run() == {"a": "failed"}
    (folder / "a" / "config.yaml").write_text('{"do": "succeed"}', encoding="utf-8")
    launcher.requeue(["1"])
    assert run() == {"a": "succeeded"}


@pytest.mark.slow
def test_a_finished_schedule_needs_no_answer(
    make: Callable[..., ExperimentSchedule],
    experiment: Callable[..., Any],
    slurm: FakeSlurm,
    project: Path,
) -> None:
    """How all ended is known, though nobody can be asked whether a job came back."""
    schedule = make()
    schedule.add([experiment("a"), experiment("b", nice=3)])
    ended = schedule.run(timeout_s=60)
    saved = project / "experiments" / ".slurm" / "follow.json"
    answer = json.loads(saved.read_text(encoding="utf-8"))
    first, second = sorted(answer["rows"] + answer["ended"])
    of_last = {"rows": [second], "asked": ["2"], "ended": [first]}
    saved.write_text(json.dumps({**answer, **of_last}), encoding="utf-8")
    for command in ("squeue", "sacct"):
        slurm.fail(command, times=1000)
    num_asked = len(slurm.calls("squeue"))
    assert make().run(timeout_s=20) == ended == {"a": "succeeded", "b": "succeeded"}
    assert len(slurm.calls("squeue")) - num_asked < 9


@pytest.mark.slow
def test_running_has_an_end_where_slurm_hangs(
    make: Callable[..., ExperimentSchedule],
    experiment: Callable[..., Any],
    slurm: FakeSlurm,
    project: Path,
) -> None:
    """A question gets what is left of the time."""
    slurm.configure(is_held=True)
    schedule = make()
    schedule.add([experiment("a")])
    assert schedule.step()
    slurm.fail("squeue", times=9, is_hanging=True)
    patient = JobMonitor(
        project / "experiments",
        interval_s=0.05,
        longest_interval_s=0.05,
        commands=Commands(timeout_s=600, num_attempts=5),
    )
    began_s = time.monotonic()
    assert make(monitor=patient).run(timeout_s=0.3) == {"a": "unknown"}
    assert time.monotonic() - began_s < 60


@pytest.mark.slow
def test_what_a_time_limit_ended_lets_others_go_on_when_it_is_repaired(
    make: Callable[..., ExperimentSchedule],
    make_launcher: MakeLauncher,
    experiment: Callable[..., Any],
    slurm: FakeSlurm,
    project: Path,
    wait_for: Callable[[Callable[[], object]], None],
) -> None:
    """Its end is sure only after Slurm has cancelled what waits for it."""
    launcher = make_launcher(freeze_code=False)
    batch = [experiment("a", "wait", max_requeues=0, time="1"), experiment("b")]
    schedule = make(launcher=launcher)
    schedule.add(batch, after={"b": {"a": "afterok"}})
    assert schedule.step()
    wait_for((project / "experiments" / "a" / "starts").exists)
    slurm.time_out("1")
    assert schedule.run(timeout_s=60) == {"a": "timeout", "b": "cancelled"}
    assert launcher.submit_experiment_batch(batch[:1]).job_ids == ["3"]
    again = make(launcher=launcher).run(timeout_s=60)
    assert again == {"a": "succeeded", "b": "succeeded"}


@pytest.mark.slow
def test_quotas_hold_back_and_let_go(
    make: Callable[..., ExperimentSchedule],
    experiment: Callable[..., Any],
    wait_for: Callable[[Callable[[], object]], None],
    project: Path,
) -> None:
    """No more wait or run than the quota says; what goes next has the highest priority."""
    schedule = make(quotas=[Quota(max_jobs=1, name="e*")])
    schedule.add([experiment("e_low", "wait"), experiment("other")], priority=1)
    schedule.add([experiment("e_last")], after={"e_last": {"e_low": "afterany"}})
    schedule.add([experiment("e_high", "wait")], priority=2)
    folder = project / "experiments"

    def submitted() -> list[str]:
        schedule.step()
        return [name for job in arrays.jobs_in(folder) for t in job.tasks for name in t]

    wait_for(lambda: len(submitted()) == 2)
    assert submitted() == ["e_high", "other"]
    assert schedule.states()["e_low"] is JobState.PENDING
    wait_for((folder / "e_high" / "starts").exists)
    (folder / "e_high" / "go_on").touch()
    wait_for(lambda: len(submitted()) == 3)
    assert submitted()[-1] == "e_low"
    wait_for((folder / "e_low" / "starts").exists)
    (folder / "e_low" / "go_on").touch()
    assert set(schedule.run(timeout_s=60).values()) == {JobState.SUCCEEDED}
    assert submitted()[-1] == "e_last"


@pytest.mark.slow
def test_after_a_kill_another_goes_on(
    make: Callable[..., ExperimentSchedule],
    experiment: Callable[..., Any],
    slurm: FakeSlurm,
    project: Path,
) -> None:
    """A runner that is killed at any call of sbatch leaves a schedule, and nothing twice."""
    schedule = make()
    schedule.add(
        [experiment(f"e{i}", nice=i) for i in range(4)],
        after={f"e{i}": {f"e{i - 1}": "afterok"} for i in range(1, 4)},
    )
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from mtf_slurm.follow.monitor import JobMonitor\n"
        "from mtf_slurm.follow.schedule import ExperimentSchedule\n"
        "from mtf_slurm.launcher import SLURMLauncher\n"
        "root = Path(sys.argv[1])\n"
        "folder = root / 'experiments'\n"
        "launcher = SLURMLauncher(project_root=root, entry_point='train.py',\n"
        "    freeze_code=False)\n"
        "monitor = JobMonitor(folder, interval_s=0.05, longest_interval_s=0.05)\n"
        "ExperimentSchedule(launcher, folder, monitor=monitor).run()\n"
    )
    for num_calls in (1, 2, 3):
        runner = subprocess.Popen([sys.executable, "-c", code, str(project)])
        deadline = time.monotonic() + 60
        while len(slurm.calls("sbatch")) < num_calls and time.monotonic() < deadline:
            time.sleep(0.001)
        runner.kill()
        runner.wait(20)
    assert set(make().run(timeout_s=60).values()) == {JobState.SUCCEEDED}
    starts = [
        (project / "experiments" / f"e{i}" / "starts").read_text(encoding="utf-8")
        for i in range(4)
    ]
    assert starts == ["one\n"] * 4


@pytest.mark.slow
def test_what_was_preempted_goes_on_and_so_does_what_waits_for_it(
    make: Callable[..., ExperimentSchedule],
    experiment: Callable[..., Any],
    slurm: FakeSlurm,
    wait_for: Callable[[Callable[[], object]], None],
) -> None:
    """A job that may not requeue is submitted again, and its dependents are, too."""
    slurm.configure(grace_s=5, kill_wait_s=0.05)
    schedule = make()
    schedule.add([experiment("a", "wait", requeue=False)])
    schedule.add([experiment("b")], after={"b": {"a": "afterok"}})

    def is_running() -> bool:
        schedule.step()
        tasks = slurm.tasks()
        return bool(tasks) and tasks["1"]["state"] == "RUNNING"

    wait_for(is_running)
    folder = Path(slurm.tasks()["1"]["folder"]).parents[1]
    wait_for((folder / "a" / "starts").exists)
    slurm.preempt("1")
    assert schedule.run(timeout_s=60) == {"a": "succeeded", "b": "succeeded"}
    assert (folder / "a" / "starts").read_text(encoding="utf-8") == "one\none\n"
    assert (folder / "b" / "starts").read_text(encoding="utf-8") == "one\n"


@pytest.mark.slow
@pytest.mark.parametrize("ended", [JobState.CANCELLED, JobState.TIMEOUT])
def test_what_was_ended_for_good_is_not_submitted_again(
    make: Callable[..., ExperimentSchedule],
    experiment: Callable[..., Any],
    slurm: FakeSlurm,
    wait_for: Callable[[Callable[[], object]], None],
    ended: JobState,
) -> None:
    """Cancelled, or at its time limit: also where it saved, and Slurm has forgotten it."""
    slurm.configure(has_accounting=False)
    schedule = make()
    limit = "1" if ended is JobState.TIMEOUT else "60"
    schedule.add([experiment("a", "wait", time=limit)])
    schedule.step()
    starts = Path(slurm.tasks()["1"]["folder"]).parents[1] / "a" / "starts"
    wait_for(starts.exists)
    if ended is JobState.TIMEOUT:
        slurm.time_out("1")
    else:
        COMMANDS.once(["scancel", "1"])
    wait_for(lambda: slurm.tasks()["1"]["state"] != "RUNNING")
    slurm.forget("1")
    assert make().run(timeout_s=60) == {"a": ended}
    assert starts.read_text(encoding="utf-8") == "one\n"
    assert len(slurm.calls("sbatch")) == 1


def test_what_slurm_does_not_take_has_failed_in_the_end(
    make: Callable[..., ExperimentSchedule],
    experiment: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After some attempts, that is told; what waits for it is cancelled."""
    monkeypatch.setattr("mtf_slurm.follow.schedule._WAIT_S", 0.0)
    said = "error: Requested time limit is invalid (missing or exceeds some limit)"
    argv = ("sbatch", "/speed-limit/QOSMaxSubmitJobPerUserLimit")
    launcher = Refusing(str(SchedulerCommandError(argv, 1, said)))
    schedule = make(launcher=launcher)
    told: list[StateChange] = []
    schedule.subscribe(told.append)
    schedule.subscribe(lambda _: 1 // 0)
    schedule.add([experiment("a"), experiment("b")], after={"b": {"a": "afterok"}})
    assert schedule.run(timeout_s=20) == {"a": "failed", "b": "cancelled"}
    assert launcher.count == 3
    assert [(c.experiment_name, c.job_id) for c in told] == [("a", ""), ("b", "")]
    assert "Requested time limit is invalid" in told[0].reason


@pytest.mark.parametrize(
    "why",
    [
        str(NoRoomError(("sbatch",), 1, "error: QOSMaxSubmitJobPerUserLimit")),
        f"{NoAnswerError(('sbatch',), 'it is away')}; submit again to go on",
        SchedulerUnreachableError(("squeue",), "it is away"),
        UnreadableReplyError(("squeue",), "*** maintenance ***"),
    ],
)
def test_no_room_and_no_answer_are_waited_out(
    make: Callable[..., ExperimentSchedule],
    experiment: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    why: str | Exception,
) -> None:
    """Neither is the experiment's fault, however long it lasts."""
    monkeypatch.setattr("mtf_slurm.follow.schedule._WAIT_S", 0.0)
    monkeypatch.setattr("mtf_slurm.follow._room._WAIT_S", 0.0)
    launcher = Refusing(why)
    schedule = make(launcher=launcher)
    schedule.add([experiment("a")])
    while launcher.count < 6:
        assert schedule.step()
        time.sleep(0.01)
    assert schedule.states() == {"a": JobState.PENDING}


@pytest.mark.slow
def test_sbatch_without_an_answer_is_waited_out(
    make: Callable[..., ExperimentSchedule],
    experiment: Callable[..., Any],
    slurm: FakeSlurm,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a real launcher tells of it: however often, no experiment has failed by that."""
    monkeypatch.setattr("mtf_slurm.follow.schedule._WAIT_S", 0.0)
    slurm.fail("sbatch", "error: Socket timed out on send/recv operation", times=12)
    schedule = make()
    schedule.add([experiment("a"), experiment("b", nice=1)])
    assert schedule.run(timeout_s=60) == {"a": "succeeded", "b": "succeeded"}
    assert len(slurm.tasks()) == 2


class Small:
    """A site's launcher, at which there is room for two jobs more at a time."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def submit(
        self,
        experiments: Sequence[Experiment],
        *,
        folder: Path,
        after: After | None = None,
    ) -> BatchSubmissionResult:
        names = [e.experiment_name for e in experiments]
        assert after is not None
        for name in names:  # with those for whom it waits, or after them
            done = [n for asked in self.asked if len(asked) <= 2 for n in asked]
            assert {*after[name]} <= {*done, *names[: names.index(name)]}
        self.asked.append(names)
        if len(names) > 2:
            error = NoRoomError(("sbatch",), 1, "QOSMaxSubmitJobPerUserLimit")
            rows = [Submission(experiment_name=n, error=str(error)) for n in names]
            return BatchSubmissionResult(tuple(rows))
        rows = []
        for name in names:
            job = arrays.new_job(folder, len(self.asked))
            planned = Planned(Work(SlurmSettings(), None), ((name,),))
            arrays.write_files(job, planned, "", "#!/bin/bash\n")
            base = str(900 + len(arrays.jobs_in(folder)))
            job.claim(base)
            rows.append(Submission(experiment_name=name, job_id=base))
        return BatchSubmissionResult(tuple(rows))


def test_fewer_are_submitted_where_there_is_no_room_for_all(
    make: Callable[..., ExperimentSchedule],
    experiment: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    wait_for: Callable[[Callable[[], object]], None],
) -> None:
    """Half as many until they are taken, then more; who waits for one goes not before it."""
    monkeypatch.setattr("mtf_slurm.follow._room._WAIT_S", 0.0)
    launcher = Small()
    schedule = make(launcher=launcher)
    after = {f"e{at}": {f"e{at + 1}": "afterok"} for at in range(9)}
    schedule.add([experiment(f"e{at}") for at in range(10)], after=after)
    taken: list[str] = []

    def are_all_taken() -> bool:
        schedule.step()
        taken[:] = [n for asked in launcher.asked if len(asked) <= 2 for n in asked]
        return len(taken) == 10

    wait_for(are_all_taken)
    assert [len(asked) for asked in launcher.asked[:5]] == [10, 5, 2, 4, 2]
    assert taken == [f"e{at}" for at in reversed(range(10))]


@pytest.mark.slow
def test_a_site_that_takes_few_jobs(
    make: Callable[..., ExperimentSchedule],
    experiment: Callable[..., Any],
    slurm: FakeSlurm,
) -> None:
    """More experiments than it takes of a user are run all the same, in few attempts."""
    slurm.configure(max_submit=2)
    schedule = make()
    schedule.add([experiment(f"e{at}") for at in range(5)])
    assert set(schedule.run(timeout_s=60).values()) == {JobState.SUCCEEDED}
    assert len(slurm.calls("sbatch")) <= 15


def test_what_one_is_too_many_is_tried_less_and_less_often(
    make: Callable[..., ExperimentSchedule],
    experiment: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A full queue is not asked again and again, and its fullness is told once."""
    clock_s = 0.0
    monkeypatch.setattr("mtf_slurm.follow.schedule.time.monotonic", lambda: clock_s)
    launcher = Refusing(str(NoRoomError(("sbatch",), 1, "AssocMaxSubmitJobLimit")))
    schedule = make(launcher=launcher)
    schedule.add([experiment("a")])
    tried: list[float] = []
    while len(tried) < 11:
        clock_s += 1.0
        schedule.step()
        if launcher.count > len(tried):
            tried.append(clock_s)
    waits = [after - before for before, after in itertools.pairwise(tried)]
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]
    assert caplog.text.count("AssocMaxSubmitJobLimit") == 1


@pytest.mark.slow
def test_ends_are_told_once(
    make: Callable[..., ExperimentSchedule], experiment: Callable[..., Any]
) -> None:
    """Who goes on with a schedule is told what is new, and not again what had ended."""
    schedule = make()
    schedule.add([experiment("a"), experiment("b", "fail")])
    first: list[StateChange] = []
    schedule.subscribe(first.append)
    schedule.run(timeout_s=60)
    assert {c.experiment_name for c in first if c.after.is_final} == {"a", "b"}
    again = make()
    told: list[StateChange] = []
    again.subscribe(told.append)
    again.add([experiment("c")])
    again.run(timeout_s=60)
    assert {c.experiment_name for c in told} == {"c"}


def test_adding_may_be_repeated(
    make: Callable[..., ExperimentSchedule], experiment: Callable[..., Any], project: Path
) -> None:
    """What is there stays as it is, so a script may be run again."""
    schedule = make()
    schedule.add([experiment("a")], priority=3, user="me")
    make().add([experiment("a"), experiment("b")])
    with pytest.raises(SubmissionError, match="a: it is here with another config"):
        make().add([experiment("c"), experiment("a", "fail")])
    entries = _schedule_file.read(project / "experiments")
    assert list(entries) == ["a", "b"]
    assert (entries["a"].values["do"], entries["a"].priority) == ("succeed", 3)
    assert (project / "experiments" / "b" / "config.yaml").is_file()


def test_a_job_keeps_its_config(
    make: Callable[..., ExperimentSchedule],
    make_launcher: MakeLauncher,
    experiment: Callable[..., Any],
    slurm: FakeSlurm,
    project: Path,
) -> None:
    """What was submitted is not changed by adding it; its own config may be added."""
    slurm.configure(is_held=True)
    make_launcher().submit_single_experiment(experiment("a"))
    schedule, path = make(), project / "experiments" / "a" / "config.yaml"
    before = path.read_bytes()
    with pytest.raises(SubmissionError, match="a: it has a job, 1, with another config"):
        schedule.add([experiment("new"), experiment("a", "again")])
    assert path.read_bytes() == before
    assert not (project / "experiments" / "new").exists()
    assert schedule.states() == {}
    slurm.configure(is_held=False)
    schedule.add([experiment("a")])
    assert schedule.run(timeout_s=60) == {"a": "succeeded"}
    assert len(slurm.tasks()) == 1


@pytest.mark.parametrize(
    ("after", "match"),
    [
        ({"a": {"b": "afterok"}, "b": {"a": "afterok"}}, "a -> b -> a|b -> a -> b"),
        ({"a": {"a": "afterok"}}, "a -> a"),
        ({"a": {"x": "afterok"}}, "a waits for x: add it"),
        ({"x": {"a": "afterok"}}, "x: in `after`"),
        ({"a": {"b": "later"}}, "one of afterany"),
    ],
)
def test_graphs_that_are_none(
    make: Callable[..., ExperimentSchedule],
    experiment: Callable[..., Any],
    after: Mapping[str, Mapping[str, str]],
    match: str,
) -> None:
    """They are refused, the cycle by name, and nothing is added."""
    schedule = make()
    with pytest.raises(ValueError, match=match):
        schedule.add([experiment("a"), experiment("b")], after=after)
    assert schedule.states() == {}


def test_hostile_names_are_refused(
    make: Callable[..., ExperimentSchedule], experiment: Callable[..., Any]
) -> None:
    """As launchers refuse them, before anything is written."""
    with pytest.raises(SubmissionError, match="name is refused"):
        make().add([experiment("../x")])
    with pytest.raises(ValueError, match="max_resubmissions"):
        make(max_resubmissions=-1)


def test_one_process_at_a_time(
    make: Callable[..., ExperimentSchedule], experiment: Callable[..., Any], project: Path
) -> None:
    """Who comes while another works does nothing, and who adds waits."""
    schedule = make()
    schedule.add([experiment("a")])
    with _schedule_file.opened(project / "experiments"):
        assert schedule.step()
        with pytest.raises(SubmissionError, match="another process"):
            schedule.add([experiment("b")], timeout_s=0.05)
    assert list(schedule.states()) == ["a"]


def test_a_run_can_be_stopped_and_ends_in_time(
    make: Callable[..., ExperimentSchedule],
    experiment: Callable[..., Any],
    slurm: FakeSlurm,
) -> None:
    """Its jobs go on; another run takes them up."""
    slurm.configure(is_held=True)
    schedule = make()
    assert schedule.run() == {}
    schedule.add([experiment("a")])
    assert schedule.run(timeout_s=0.3) == {"a": JobState.PENDING}
    threading.Timer(0.2, schedule.stop).start()
    assert schedule.run() == {"a": JobState.PENDING}
    assert len(slurm.tasks()) == 1
