from __future__ import annotations

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
from mtf_slurm.command import Commands
from mtf_slurm.errors import SchedulerUnreachableError, SubmissionError
from mtf_slurm.experiments import BatchSubmissionResult, Experiment, Submission
from mtf_slurm.follow import _schedule_file
from mtf_slurm.follow.monitor import JobMonitor, StateChange
from mtf_slurm.follow.schedule import ExperimentSchedule, Quota
from mtf_slurm.launcher import SLURMLauncher
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
        return ExperimentSchedule(launcher, folder, monitor=monitor, **more)

    return made


class Refusing:
    """A launcher that says no."""

    def __init__(self, why: str) -> None:
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
        if not self.why:
            raise SchedulerUnreachableError(("sbatch",), "no answer")
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


def test_what_slurm_does_not_take_has_failed_in_the_end(
    make: Callable[..., ExperimentSchedule],
    experiment: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After some attempts, that is told; what waits for it is cancelled."""
    monkeypatch.setattr("mtf_slurm.follow.schedule._WAIT_S", 0.0)
    launcher = Refusing("sbatch: error: invalid partition")
    schedule = make(launcher=launcher)
    told: list[StateChange] = []
    schedule.subscribe(told.append)
    schedule.subscribe(lambda _: 1 // 0)
    schedule.add([experiment("a"), experiment("b")], after={"b": {"a": "afterok"}})
    assert schedule.run(timeout_s=20) == {"a": "failed", "b": "cancelled"}
    assert launcher.count == 3
    assert [(c.experiment_name, c.job_id) for c in told] == [("a", ""), ("b", "")]
    assert "invalid partition" in told[0].reason


@pytest.mark.parametrize("why", ["QOSMaxSubmitJobPerUserLimit", ""])
def test_no_room_and_no_answer_are_waited_out(
    make: Callable[..., ExperimentSchedule],
    experiment: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    why: str,
) -> None:
    """Neither is the experiment's fault, however long it lasts."""
    monkeypatch.setattr("mtf_slurm.follow.schedule._WAIT_S", 0.0)
    launcher = Refusing(why)
    schedule = make(launcher=launcher)
    schedule.add([experiment("a")])
    while launcher.count < 6:
        assert schedule.step()
        time.sleep(0.01)
    assert schedule.states() == {"a": JobState.PENDING}


def test_adding_may_be_repeated(
    make: Callable[..., ExperimentSchedule], experiment: Callable[..., Any], project: Path
) -> None:
    """What is there stays as it is, so a script may be run again."""
    schedule = make()
    schedule.add([experiment("a")], priority=3, user="me")
    make().add([experiment("a", "fail"), experiment("b")])
    entries = _schedule_file.read(project / "experiments")
    assert list(entries) == ["a", "b"]
    assert (entries["a"].values["do"], entries["a"].priority) == ("succeed", 3)
    assert (project / "experiments" / "b" / "config.yaml").is_file()


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
