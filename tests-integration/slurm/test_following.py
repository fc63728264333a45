"""Jobs of the real Slurm are followed: `mtf_slurm.follow`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from mtf_slurm.errors import SchedulerCommandError
from mtf_slurm.follow.efficiency import efficiency
from mtf_slurm.follow.monitor import JobMonitor
from mtf_slurm.follow.schedule import ExperimentSchedule
from mtf_slurm.states import JobState
from slurm.cluster import Cluster
from slurm.training import Plain, Project

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.usefixtures("timed")]
SOON_S = 120


@pytest.fixture
def project(client: Cluster, tmp_path: Path) -> Project:
    """Return a project of the test's own, whose launchers speak to the cluster."""
    assert client.conf.exists()
    return Project(tmp_path / "project")


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_monitor_tells_what_happens(
    client: Cluster, project: Project, form: Literal["text", "json"]
) -> None:
    """Each state is told once, in both forms of squeue; why a job waits, in words."""
    launcher = project.launcher("trivial.py")
    first = launcher.submit_single_experiment(Plain("first", {"do": "wait"}))
    slurm = {"dependencies": [f"afterok:{first}"]}
    launcher.submit_single_experiment(Plain("second", {"slurm": slurm}))
    launcher.submit_single_experiment(Plain("bad", {"do": "fail"}))
    client.wait_until(
        (project.experiments / "first" / "starts").exists,
        what="running",
        deadline_s=SOON_S,
    )
    monitor = JobMonitor(
        project.experiments, interval_s=0.5, longest_interval_s=1.0, form=form
    )
    told: dict[str, list[JobState]] = {"first": [], "second": [], "bad": []}
    nodes: dict[str, str] = {}
    for change in monitor.events(timeout_s=SOON_S):
        told[change.experiment_name].append(change.after)
        nodes[change.experiment_name] = change.node
        if change.experiment_name == "second" and change.after is JobState.PENDING:
            assert "another job" in change.reason
            (project.experiments / "first" / "go_on").touch()
    assert monitor.is_done, told
    assert told["first"] == [JobState.RUNNING, JobState.SUCCEEDED]
    assert told["second"][0] is JobState.PENDING
    assert told["second"][-1] is JobState.SUCCEEDED
    assert told["bad"][-1] is JobState.FAILED
    assert set(nodes.values()) <= {"n1", "n2"}
    assert not monitor.trouble


def test_a_monitor_outlasts_the_controller(client: Cluster, project: Project) -> None:
    """While the controller is away states are marked stale; then it goes on."""
    launcher = project.launcher("trivial.py")
    launcher.submit_single_experiment(Plain("waits", {"do": "wait"}))
    client.wait_until(
        (project.experiments / "waits" / "starts").exists,
        what="running",
        deadline_s=SOON_S,
    )
    monitor = JobMonitor(project.experiments, interval_s=0.1, longest_interval_s=0.5)
    assert [change.after for change in monitor.poll()] == [JobState.RUNNING]
    client.stop_controller()
    client.wait_until(
        lambda: not monitor.poll() and bool(monitor.trouble),
        what="in trouble",
        deadline_s=SOON_S,
    )
    [status] = monitor.statuses()
    assert (status.state, status.is_stale) == (JobState.RUNNING, True)
    client.start_controller()
    (project.experiments / "waits" / "go_on").touch()
    assert monitor.wait(timeout_s=SOON_S)
    [status] = monitor.statuses()
    assert (status.state, status.is_stale) == (JobState.SUCCEEDED, False)


def test_a_schedule_keeps_its_order(client: Cluster, project: Project) -> None:
    """A graph is submitted as its jobs allow, and what cannot come true is not."""
    schedule = ExperimentSchedule(
        project.launcher("trivial.py"),
        project.experiments,
        monitor=JobMonitor(project.experiments, interval_s=0.5, longest_interval_s=1.0),
    )
    does = {
        "prepare": "succeed",
        "train": "fail",
        "report": "succeed",
        "mourn": "succeed",
    }
    schedule.add(
        [Plain(name, {"do": do}) for name, do in does.items()],
        after={
            "train": {"prepare": "afterok"},
            "report": {"train": "afterok"},
            "mourn": {"train": "afternotok"},
        },
    )
    states = schedule.run(timeout_s=SOON_S)
    assert states == {
        "prepare": JobState.SUCCEEDED,
        "train": JobState.FAILED,
        "report": JobState.CANCELLED,
        "mourn": JobState.SUCCEEDED,
    }, client.logs()


def test_what_is_repaired_lets_others_go_on(client: Cluster, project: Project) -> None:
    """Requeued by hand it runs, though Slurm refuses another, and so does what it waited for."""
    launcher = project.launcher("trivial.py")
    batch = [Plain("train", {"do": "fail_once"}), Plain("report", {"do": "succeed"})]

    def run() -> list[JobState]:
        monitor = JobMonitor(project.experiments, interval_s=0.5, longest_interval_s=1.0)
        schedule = ExperimentSchedule(launcher, project.experiments, monitor=monitor)
        schedule.add(batch, after={"report": {"train": "afterok"}})
        return [*schedule.run(timeout_s=SOON_S).values()]

    assert run() == [JobState.FAILED, JobState.CANCELLED], client.logs()
    [train] = launcher.latest(["train"], folder=project.experiments)
    assert train is not None
    with pytest.raises(SchedulerCommandError, match=r"[Ii]nvalid job id"):
        launcher.requeue([train, "99999"])
    assert run() == [JobState.SUCCEEDED] * 2, client.logs()
    assert launcher.latest(["train"], folder=project.experiments) == [train]


def test_efficiency_is_what_accounting_has(client: Cluster, project: Project) -> None:
    """Time, CPU and memory of a finished job are told beside what it asked for."""
    launcher = project.launcher("trivial.py", defaults={"time": "5", "mem": "200M"})
    job_id = launcher.submit_single_experiment(Plain("worker", {"do": "work"}))
    assert launcher.wait([job_id], timeout_s=SOON_S) == [JobState.SUCCEEDED]
    # A row of accounting is there before it is whole.
    client.wait_until(
        lambda: any(job.time_limit_s for job in efficiency([job_id]).jobs),
        what="accounted",
        deadline_s=SOON_S,
    )
    report = efficiency([job_id])
    [job] = report.jobs
    assert (job.job_id, job.state, job.num_cpus) == (job_id, JobState.SUCCEEDED, 1)
    assert job.time_limit_s == 300
    assert job.mem_asked_bytes == 200 * 2**20
    assert job.elapsed_s >= 1
    assert job.cpu_used_s is not None
    assert job.cpu_used_s >= 1
    assert job_id in report.table()


def test_why_jobs_failed(client: Cluster, project: Project) -> None:
    """What a program said last is told, and not what srun and the shell say of it."""
    assert client.conf.exists()
    launcher = project.launcher("trivial.py")
    batch = [
        Plain(f"{do}-{launch}-{nodes}", {"do": do, "slurm": {"launch": launch, **how}})
        for do in ("raise", "die")
        for launch, nodes in (("srun", 1), ("srun", 2), ("none", 1))
        for how in [{"nodes": nodes}]
    ]
    job_ids = launcher.submit_experiment_batch(batch).job_ids
    assert set(launcher.wait(job_ids, timeout_s=SOON_S)) == {JobState.FAILED}
    reasons = {end.reason for end in launcher.outcomes(job_ids)}
    assert reasons == {
        "exit code 1: ValueError: the rate is negative",
        "killed by signal 9 (Killed)",
    }
