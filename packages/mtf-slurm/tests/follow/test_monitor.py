from __future__ import annotations

import itertools
import logging
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mtf_slurm.arrays import jobs_in
from mtf_slurm.command import Commands
from mtf_slurm.errors import (
    SchedulerCommandError,
    SchedulerUnreachableError,
)
from mtf_slurm.follow.monitor import JobMonitor, StateChange
from mtf_slurm.follow.nodes import FailingNodes, failures_in
from mtf_slurm.follow.reasons import explain
from mtf_slurm.states import JobState
from mtf_slurm.testing import FakeSlurm

Submit = Callable[..., str]
WaitFor = Callable[[Callable[[], object]], None]
UNTIL_GO = "until [ -e go ]; do sleep 0.02; done"
COMMANDS = Commands(timeout_s=20, num_attempts=1)


class Clock:
    """Time that goes on when it is told to."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def quick(*folders: Path, **more: object) -> JobMonitor:
    """Make a monitor that asks often."""
    given = {"interval_s": 0.05, "longest_interval_s": 0.1, "commands": COMMANDS, **more}
    return JobMonitor(folders, **given)  # type: ignore[arg-type]


def words(changes: list[StateChange]) -> list[tuple[str, str, str]]:
    """Return what changed, without dates."""
    return sorted((c.experiment_name, c.before, c.after) for c in changes)


@pytest.mark.slow
def test_changes_are_yielded_until_all_jobs_have_ended(
    experiments: Path, submit: Submit, go: Callable[[], None]
) -> None:
    """Each job's way is told once, with its node, and why it ended."""
    submit("a", "b", script=f"{UNTIL_GO}; exit $SLURM_ARRAY_TASK_ID")
    submit("c", script="exit 0")
    changes = []
    for change in quick(experiments).events(timeout_s=60):
        changes.append(change)
        if (
            sum(c.after is JobState.RUNNING for c in changes if c.experiment_name < "c")
            > 1
        ):
            go()
    last = {c.experiment_name: c.after for c in changes}
    assert last == {"a": "succeeded", "b": "failed", "c": "succeeded"}
    ways = words(changes)
    assert ("a", "running", "succeeded") in ways
    assert len(ways) == len(set(ways))
    running = next(c for c in changes if c.after is JobState.RUNNING)
    assert running.node == "n1"
    assert "running on n1" in str(running)


def test_one_question_tells_of_all_jobs(
    experiments: Path, submit: Submit, slurm: FakeSlurm
) -> None:
    """However many jobs there are, squeue runs once; accounting only for what it forgot."""
    slurm.configure(is_held=True)
    many = [submit(*(f"e{k}_{i}" for i in range(40))) for k in range(5)]
    monitor = quick(experiments, interval_s=30, longest_interval_s=30)
    assert len(monitor.poll()) == 200
    assert len(slurm.calls("squeue")) - len(_versions(slurm)) == 1
    assert slurm.calls("sacct") == []
    slurm.forget(f"{many[0]}_3", f"{many[4]}_7")
    other = quick(job_ids=[f"{base}_{i}" for base in many for i in range(40)])
    assert len(other.poll()) == 200
    assert len(slurm.calls("sacct")) == 1


def _versions(slurm: FakeSlurm) -> list[list[str]]:
    return [call for call in slurm.calls("squeue") if "--version" in call]


def test_slurm_is_asked_once_in_an_interval(slurm: FakeSlurm, submit: Submit) -> None:
    """However often somebody polls; and less often while nothing changes."""
    slurm.configure(is_held=True)
    job_id = submit("a")
    clock = Clock()
    monitor = JobMonitor(job_ids=[job_id], commands=COMMANDS, clock=clock)

    def questions_until(end_s: float) -> list[float]:
        asked = []
        while clock.now_s < end_s:
            before = len(slurm.calls("squeue"))
            for _ in range(3):
                monitor.poll()
            if len(slurm.calls("squeue")) > before:
                asked.append(clock.now_s)
            clock.now_s += 10
        return asked

    asked = questions_until(1200)
    gaps = [b - a for a, b in itertools.pairwise(asked)]
    assert min(gaps) >= 30
    assert gaps == sorted(gaps)
    assert gaps[-1] == 300
    slurm.configure(is_held=False)
    asked = questions_until(2400)
    assert monitor.is_done


@pytest.mark.slow
def test_threads_share_a_monitor(
    experiments: Path, submit: Submit, slurm: FakeSlurm, go: Callable[[], None]
) -> None:
    """Each iterator gets all changes, and no more questions are asked."""
    submit("a", "b", script=UNTIL_GO)
    monitor = quick(experiments, interval_s=0.3, longest_interval_s=0.3)
    told: list[list[StateChange]] = [[], [], [], []]

    def follow(mine: list[StateChange]) -> None:
        mine.extend(monitor.events(timeout_s=60))

    threads = [threading.Thread(target=follow, args=(mine,)) for mine in told]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    go()
    for thread in threads:
        thread.join(60)
    elapsed_s = time.monotonic() - start
    assert len(slurm.calls("squeue")) - 1 <= elapsed_s / 0.3 + 1
    finals = [{c.experiment_name: c.after for c in mine} for mine in told]
    assert finals == [{"a": "succeeded", "b": "succeeded"}] * 4


@pytest.mark.slow
def test_processes_share_a_folder(
    experiments: Path, submit: Submit, slurm: FakeSlurm, go: Callable[[], None]
) -> None:
    """Four followers of one folder ask as often as one does, and all see the end."""
    submit("a", "b", script=UNTIL_GO)
    code = (
        "import sys\n"
        "from mtf_slurm.follow.monitor import JobMonitor\n"
        "m = JobMonitor(sys.argv[1], interval_s=0.5, longest_interval_s=0.5)\n"
        "print('go', flush=True)\n"
        "for c in m.events(timeout_s=60): print(c.experiment_name, c.after, flush=True)\n"
        "print(m.is_done)\n"
    )
    start = time.monotonic()
    followers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(experiments)],
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        for _ in range(4)
    ]
    deadline = start + 60
    while len(slurm.calls("squeue")) < 8 and time.monotonic() < deadline:
        time.sleep(0.02)
    go()
    texts = [follower.communicate(timeout=60)[0] for follower in followers]
    elapsed_s = time.monotonic() - start
    questions = [call for call in slurm.calls("squeue") if "--version" not in call]
    assert len(questions) <= elapsed_s / 0.5 + 1
    for text in texts:
        assert text.splitlines()[-1] == "True"
        assert "a succeeded" in text
        assert "b succeeded" in text


def test_callbacks_fail_alone(
    experiments: Path,
    submit: Submit,
    slurm: FakeSlurm,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An error in one is written to the log; others, and the monitor, go on."""
    slurm.configure(is_held=True)
    submit("a")
    monitor = quick(experiments)
    told: list[StateChange] = []

    def wrong(_: StateChange) -> None:
        message = "not ours"
        raise RuntimeError(message)

    monitor.subscribe(wrong)
    monitor.subscribe(told.append)
    assert len(monitor.poll()) == len(told) == 1
    assert "not ours" in caplog.text


def test_what_accounting_does_not_show_is_unknown(
    experiments: Path, submit: Submit, slurm: FakeSlurm
) -> None:
    """It is never failed; and given up only after a time."""
    slurm.configure(is_held=True, accounting_lag_s=1000)
    slurm.forget(submit("a"))
    clock = Clock()
    monitor = JobMonitor(experiments, commands=COMMANDS, clock=clock, interval_s=0.001)
    assert monitor.poll() == []
    [status] = monitor.statuses()
    assert (status.state, status.is_stale) == (JobState.UNKNOWN, False)
    ends = [monitor.is_done]
    clock.now_s = 901
    ends.append(monitor.is_done)
    assert ends == [False, True]
    assert [s.state for s in monitor.statuses()] == [JobState.UNKNOWN]


def test_while_nobody_answers_the_states_stay(
    experiments: Path,
    submit: Submit,
    slurm: FakeSlurm,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """They are stale, it is said once, and said when there is an answer again."""
    caplog.set_level(logging.WARNING, "mtf_slurm.follow")
    slurm.configure(is_held=True)
    submit("a")
    clock = Clock()
    monitor = JobMonitor(
        experiments,
        interval_s=0.001,
        longest_interval_s=0.001,
        commands=COMMANDS,
        clock=clock,
    )

    def poll() -> list[StateChange]:
        asked = len(slurm.calls("squeue"))
        while True:  # until the folder's answer is older than the interval
            clock.now_s += 1
            changes = monitor.poll()
            if len(slurm.calls("squeue")) > asked + (not asked):
                return changes

    assert len(poll()) == 1
    slurm.fail("squeue", times=3)
    for _ in range(3):
        assert poll() == []
        assert [s.is_stale for s in monitor.statuses()] == [True]
        assert monitor.trouble
    assert [s.state for s in monitor.statuses()] == [JobState.PENDING]
    assert poll() == []
    assert [s.is_stale for s in monitor.statuses()] == [False]
    said = [record.message for record in caplog.records]
    assert len(said) == 2
    assert "no answer" in said[0]
    assert "answers again" in said[1]


@pytest.mark.parametrize(
    ("stderr", "error"),
    [
        ("error: Access denied", SchedulerCommandError),
        ("fatal: Could not establish a configuration source", SchedulerUnreachableError),
    ],
)
def test_what_another_question_does_not_heal_is_an_error(
    submit: Submit, slurm: FakeSlurm, stderr: str, error: type[Exception]
) -> None:
    """A refusal, and a Slurm without configuration, end the following, and say why."""
    slurm.configure(is_held=True)
    job_id = submit("a")
    slurm.fail("squeue", stderr)
    monitor = quick(job_ids=[job_id], form="text")
    with pytest.raises(error):
        monitor.poll()


@pytest.mark.parametrize(
    ("stderr", "stdout", "said"),
    [
        ("error: Protocol authentication error", "", "Protocol authentication error"),
        ("slurm_load_jobs error: Unspecified error", "", "Unspecified error"),
        ("error: Unexpected message received", "", "Unexpected message received"),
        ("", "*** maintenance on Sunday ***\n", "'*** maintenance on Sunday ***'"),
    ],
)
def test_passing_troubles_are_waited_out(
    submit: Submit, slurm: FakeSlurm, stderr: str, stdout: str, said: str
) -> None:
    """They are told, the states are stale meanwhile, and the next answer is taken."""
    slurm.configure(is_held=True)
    clock = Clock()
    monitor = JobMonitor(
        job_ids=[submit("a")], form="text", commands=COMMANDS, clock=clock
    )
    slurm.fail("squeue", stderr, status=0 if stdout else 1, stdout=stdout)
    assert monitor.poll() == []
    assert said in monitor.trouble
    assert [s.is_stale for s in monitor.statuses()] == [True]
    clock.now_s += 100
    assert [c.after for c in monitor.poll()] == [JobState.PENDING]
    assert monitor.trouble == ""


def test_json_is_read_and_a_broken_one_gives_way_to_text(
    submit: Submit, slurm: FakeSlurm
) -> None:
    """Both tell the same; what is not JSON is trouble, once."""
    slurm.configure(is_held=True)
    base = submit("a", "b")
    ids = [f"{base}_0", f"{base}_1"]
    assert [c.after for c in quick(job_ids=ids, form="json").poll()] == ["pending"] * 2
    clock = Clock()
    monitor = JobMonitor(job_ids=ids, form="json", commands=COMMANDS, clock=clock)
    slurm.fail("squeue", "", status=0, stdout='{"jobs": [')
    assert monitor.poll() == []
    assert monitor.trouble
    clock.now_s += 100
    assert len(monitor.poll()) == 2
    assert "--json" not in slurm.calls("squeue")[-1]


@pytest.mark.slow
def test_nodes_that_fail_are_noted(
    experiments: Path, submit: Submit, slurm: FakeSlurm, wait_for: WaitFor
) -> None:
    """Of jobs that come back, too; what one loss of a node ended is one failure of it."""
    slurm.configure(num_slots=4)
    jobs = [
        submit(f"e{i}", script="sleep 60", options=("--no-requeue",)) for i in range(2)
    ]
    jobs.append(submit("back", script="sleep 60", options=("--requeue",)))
    monitor = quick(experiments)
    wait_for(lambda: {t["state"] for t in slurm.tasks().values()} == {"RUNNING"})
    monitor.poll()
    slurm.configure(is_held=True)  # dates are whole seconds: it comes back later
    for job_id in jobs:
        slurm.fail_node(job_id)

    def is_noted() -> bool:
        monitor.poll()
        return {f.job_id for f in failures_in(experiments)} == {*jobs}

    wait_for(is_noted)
    assert len(failures_in(experiments)) == 3
    assert FailingNodes(num_failures=1).excluded(experiments) == ("n1",)
    assert FailingNodes(num_failures=2).excluded(experiments) == ()


@pytest.mark.slow
def test_a_job_that_comes_back_is_told(
    submit: Submit, slurm: FakeSlurm, wait_for: WaitFor
) -> None:
    """Also when it runs again by the next answer."""
    job_id = submit("a", script="sleep 60", options=("--requeue",))
    clock = Clock()
    monitor = JobMonitor(job_ids=[job_id], commands=COMMANDS, clock=clock)
    wait_for(lambda: slurm.tasks()[job_id]["state"] == "RUNNING")
    monitor.poll()
    first = slurm.tasks()[job_id]["started"]
    wait_for(lambda: time.time() > first + 1.1)  # noqa: TID251 -- Slurm tells whole seconds
    slurm.configure(grace_s=0.01, kill_wait_s=0.01)
    slurm.preempt(job_id)
    wait_for(lambda: slurm.tasks()[job_id]["restarts"] == 1)
    wait_for(lambda: slurm.tasks()[job_id]["state"] == "RUNNING")
    clock.now_s += 100
    [change] = monitor.poll()
    assert (change.before, change.after) == (JobState.RUNNING, JobState.RUNNING)
    assert change.reason == "it came back"


@pytest.fixture
def asks_to_come_back(
    experiments: Path, submit: Submit, slurm: FakeSlurm, wait_for: WaitFor
) -> str:
    """A job that saved where there is no scontrol, and left a mark."""
    job_id = submit("a", script="[ -e go ] && exit 0; touch go; exit 75")
    wait_for(lambda: slurm.tasks()[job_id]["state"] == "FAILED")
    (experiments / "a" / f"{job_id}.exit").write_text("75\n", encoding="ascii")
    (experiments / "a" / f"{job_id}.again").touch()
    return job_id


def test_jobs_that_ask_for_it_are_brought_back(
    asks_to_come_back: str, experiments: Path, slurm: FakeSlurm, wait_for: WaitFor
) -> None:
    """Who follows requeues them if told to."""
    assert [c.after for c in quick(experiments, interval_s=0.001).poll()] == ["preempted"]
    monitor = quick(experiments, interval_s=0.001, brings_back=True)
    assert [c.after for c in monitor.poll()] == ["pending"]
    wait_for(lambda: slurm.tasks()[asks_to_come_back]["state"] == "COMPLETED")
    assert monitor.wait(timeout_s=20)
    assert [s.state for s in monitor.statuses()] == [JobState.SUCCEEDED]


def test_a_copy_of_a_folder_brings_nothing_back(
    asks_to_come_back: str, experiments: Path, slurm: FakeSlurm, tmp_path: Path
) -> None:
    """A mark counts where the job runs, and for its own experiment."""
    backup = shutil.copytree(experiments, tmp_path / "backup")
    (experiments / "a" / f"{asks_to_come_back}.again").unlink()
    monitor = JobMonitor(
        [experiments, backup], interval_s=0.001, brings_back=True, commands=COMMANDS
    )
    assert monitor.wait(timeout_s=20)
    assert slurm.tasks()[asks_to_come_back]["restarts"] == 0


@pytest.mark.usefixtures("asks_to_come_back")
def test_what_cannot_be_brought_back_now_is_asked_for_again(
    experiments: Path, slurm: FakeSlurm
) -> None:
    """While nobody answers it has not ended, and says what the trouble is."""
    monitor = quick(experiments, interval_s=0.001, brings_back=True)
    slurm.fail("scontrol")
    assert monitor.poll() == []
    assert monitor.trouble
    assert not monitor.is_done
    assert monitor.wait(timeout_s=20)
    assert [s.state for s in monitor.statuses()] == [JobState.SUCCEEDED]


@pytest.mark.slow
def test_ctrl_c_leaves_nothing(
    experiments: Path, submit: Submit, slurm: FakeSlurm
) -> None:
    """A follower that is interrupted ends at once, and the next one follows on."""
    slurm.configure(is_held=True)
    submit("a")
    code = (
        "import sys\n"
        "from mtf_slurm.follow.monitor import JobMonitor\n"
        "for c in JobMonitor(sys.argv[1]).events(): print(c, flush=True)\n"
    )
    follower = subprocess.Popen(
        [sys.executable, "-c", code, str(experiments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    assert follower.stdout is not None
    assert "pending" in follower.stdout.readline()
    follower.send_signal(2)
    _, said = follower.communicate(timeout=20)
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert len(quick(experiments, interval_s=0.001).poll()) == 1


def test_stop_ends_iterators(experiments: Path, submit: Submit, slurm: FakeSlurm) -> None:
    """In whatever thread they are, and although they would wait for long."""
    slurm.configure(is_held=True)
    submit("a")
    monitor = quick(experiments, interval_s=600, longest_interval_s=600)
    ended = threading.Event()

    def follow() -> None:
        assert not monitor.wait()
        ended.set()

    thread = threading.Thread(target=follow)
    thread.start()
    while not monitor.statuses() or monitor.statuses()[0].state is JobState.UNKNOWN:
        time.sleep(0.01)
    late = monitor.events()
    assert next(late).after is JobState.PENDING
    del late
    monitor.stop()
    thread.join(20)
    assert ended.is_set()


def test_waiting_has_an_end(experiments: Path, submit: Submit, slurm: FakeSlurm) -> None:
    """With a time limit it says that jobs have not ended."""
    slurm.configure(is_held=True)
    submit("a")
    assert not quick(experiments).wait(timeout_s=0.3)


def test_waiting_has_an_end_where_slurm_hangs(
    experiments: Path, submit: Submit, slurm: FakeSlurm
) -> None:
    """A command gets what is left of the time, and not all that commands may take."""
    slurm.configure(is_held=True)
    submit("a")
    slurm.fail("squeue", times=9, is_hanging=True)
    began_s = time.monotonic()
    patient = Commands(timeout_s=600, num_attempts=5)
    assert not quick(experiments, commands=patient).wait(timeout_s=0.3)
    assert time.monotonic() - began_s < 60


def test_a_reason_does_not_contradict_the_state(
    experiments: Path, submit: Submit, slurm: FakeSlurm
) -> None:
    """Of what says itself that its time was over, Slurm's word for its status is none."""
    slurm.configure(is_held=True)
    job_id = submit("a")
    [job] = jobs_in(experiments)
    end = experiments / "a" / f"{job_id}.exit"
    end.write_text(f"75 {job.token} timeout", encoding="ascii")
    row = (
        f"{job_id}|FAILED|NonZeroExitCode|n1|2026-01-01T00:00:00|{job.folder}|{job_id}\n"
    )
    slurm.fail("squeue", "", status=0, stdout=row)
    [change] = quick(experiments, form="text").poll()
    assert (change.after, change.reason) == ("timeout", str(explain("TimeLimit")))


def test_no_jobs_are_done_at_once(experiments: Path, slurm: FakeSlurm) -> None:
    """Slurm is not asked at all."""
    assert quick(experiments).wait()
    assert slurm.calls() == []


def test_a_folder_that_cannot_be_written(
    experiments: Path, submit: Submit, slurm: FakeSlurm
) -> None:
    """It is followed all the same; only its answers are not shared."""
    slurm.configure(is_held=True)
    submit("a")
    (experiments / ".slurm" / "follow.wanted").mkdir()
    assert len(quick(experiments).poll()) == 1
    assert not (experiments / ".slurm" / "follow.json").exists()


def test_ends_that_another_saw_are_known_at_once(
    experiments: Path, submit: Submit, slurm: FakeSlurm, wait_for: WaitFor
) -> None:
    """They are not unknown until the next question; and that is asked, since they may change."""
    job_id = submit("a", script="exit 3")
    wait_for(lambda: slurm.tasks()[job_id]["state"] == "FAILED")
    slurm.configure(is_held=True)
    submit("b")
    first = quick(experiments, interval_s=0.001, longest_interval_s=0.001)
    while [s.state for s in first.statuses()] != ["failed", "pending"]:
        first.poll()

    def asks_for_the_other_alone() -> bool:
        first.poll()
        return "--jobs=2" in slurm.calls("squeue")[-1]

    wait_for(asks_for_the_other_alone)
    second = quick(experiments, interval_s=60, longest_interval_s=60)
    assert [c.experiment_name for c in second.poll()] == ["b"]
    assert [s.state for s in second.statuses()] == ["failed", "pending"]
    assert [s.is_over for s in second.statuses()] == [False, False]


@pytest.mark.parametrize(
    "wrong",
    [
        {"interval_s": 0},
        {"interval_s": 10, "longest_interval_s": 5},
        {"unknown_s": -1},
        {"job_ids": ["12;reboot"]},
        {"job_ids": ["--help"]},
    ],
)
def test_what_cannot_be_followed(wrong: dict[str, object]) -> None:
    """Numbers and ids that are none are refused at once."""
    with pytest.raises(ValueError, match=r"give|no job"):
        JobMonitor(**wrong)  # type: ignore[arg-type]
