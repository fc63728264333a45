from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtf_slurm import _control, arrays
from mtf_slurm._ends import End
from mtf_slurm.arrays import Planned, Work
from mtf_slurm.command import Commands
from mtf_slurm.errors import (
    SchedulerCommandError,
    SchedulerUnreachableError,
    SubmissionError,
)
from mtf_slurm.follow.monitor import JobMonitor
from mtf_slurm.launcher import SLURMLauncher
from mtf_slurm.settings import SlurmSettings
from mtf_slurm.testing import FakeSlurm

Make = Callable[..., Any]
WaitFor = Callable[[Callable[[], object]], None]
QUICK = Commands(timeout_s=20, num_attempts=3, sleep=lambda _: None)


def expanded(task_id: str) -> set[str]:
    """Return the tasks that an id of some means."""
    base, bracket, rest = task_id.partition("_[")
    if not bracket:
        return {task_id}
    spans = [part.partition("-") for part in rest.rstrip("]").split(",")]
    return {
        f"{base}_{i}"
        for first, _, last in spans
        for i in range(int(first), int(last or first) + 1)
    }


@given(
    st.sets(
        st.tuples(st.integers(1, 5), st.none() | st.integers(0, 40)).map(
            lambda pair: str(pair[0]) if pair[1] is None else f"{pair[0]}_{pair[1]}"
        )
    )
)
def test_ranges_are_the_tasks_that_they_stand_for(ids: set[str]) -> None:
    """No task is lost or added when many are written as few."""
    found = [expanded(i) for i in arrays.ranges(ids)]
    assert set().union(*found) == ids
    assert sum(map(len, found)) == len(ids)


def test_huge_numbers_of_ids_are_few_commands(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm
) -> None:
    """Ten thousand ids, known or not, are cancelled by a handful of calls."""
    slurm.configure(is_held=True)
    launcher = make_launcher()
    batch = [experiment(f"e{i}") for i in range(6)]
    ids = launcher.submit_experiment_batch(batch).job_ids
    others = [f"77_{2 * i}" for i in range(10_000)]
    launcher.cancel([*ids[:2], *others, *ids[4:], "no id"])
    assert len(slurm.calls("scancel")) == 1
    assert slurm.calls("scancel")[0][1] == "1_[0-1,4-5]"
    assert list(slurm.tasks()) == ids[2:4]


def test_a_refusal_among_what_is_passed_over(slurm: FakeSlurm) -> None:
    """What may be passed over hides no refusal of another job, and stops no other call."""
    said = "error: Invalid job id specified\nscancel: error: Access/permission denied"
    slurm.fail("scancel", said)
    ids = [str(1 + 2 * i) for i in range(300)]
    with pytest.raises(SchedulerCommandError, match="permission denied"):
        _control.cancel(QUICK, ids, [], lock_timeout_s=1)
    assert len(slurm.calls("scancel")) == 2
    slurm.fail("scancel", "")
    with pytest.raises(SchedulerCommandError):
        _control.cancel(QUICK, ["1"], [], lock_timeout_s=1)
    slurm.fail("scancel", "error: Kill job error on job id 1: Invalid job id specified")
    _control.cancel(QUICK, ["1"], [], lock_timeout_s=1)
    before = slurm.calls()
    _control.cancel(QUICK, ["no id"], [], lock_timeout_s=1)
    assert slurm.calls() == before


def test_branches_of_jobs_that_have_not_ended_stay(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm, tmp_path: Path, project: Path
) -> None:
    """Old branches go, but those that a waiting job still checks out."""
    launcher = make_launcher()
    done = launcher.submit_single_experiment(experiment("done"))
    launcher.wait([done], timeout_s=60)
    slurm.configure(is_held=True)
    launcher.submit_single_experiment(experiment("waits"))
    search = project / "experiments" / "search"
    for name in "ab":
        (search / name).mkdir(parents=True)
        (search / name / "config.yaml").write_text('{"do": "x"}', encoding="utf-8")
    make_launcher().submit([experiment("a"), experiment("b")], folder=search)
    gone = launcher.prune_branches(older_than=timedelta(0))
    assert [branch.experiment_name for branch in gone] == ["done"]
    assert launcher.prune_branches(older_than=timedelta(0)) == []
    plain = SLURMLauncher(project_root=tmp_path, freeze_code=False)
    with pytest.raises(ValueError, match="no branches"):
        plain.prune_branches(older_than=timedelta(0))


def test_the_last_of_a_task_is_cancelled_alone(
    make_launcher: Make,
    experiment: Make,
    slurm: FakeSlurm,
    project: Path,
    wait_for: WaitFor,
) -> None:
    """Where the others of its task have ended, none goes on that is to; they are passed over."""
    launcher = make_launcher(num_packed=3)
    batch = [experiment("a"), experiment("b", do="fail"), experiment("c", do="wait")]
    ids = launcher.submit_experiment_batch(batch).job_ids
    wait_for((project / "experiments" / "c" / "starts").exists)
    launcher.cancel(ids[:2])
    assert launcher.states(ids) == ["succeeded", "failed", "running"]
    launcher.cancel(ids[2:])
    wait_for(lambda: slurm.tasks()["1"]["state"] == "CANCELLED")
    assert launcher.states(ids) == ["succeeded", "failed", "cancelled"]


@pytest.fixture
def lost(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm, project: Path
) -> Callable[[str], tuple[SLURMLauncher, str]]:
    """Make a launcher, and the id of a job of its that is another's."""

    def make(whose: str) -> tuple[SLURMLauncher, str]:
        slurm.configure(is_held=True)
        launcher: SLURMLauncher = make_launcher()
        job_id = launcher.submit_single_experiment(experiment("a"))
        copy = project.with_name("copy")
        shutil.copytree(project, copy)
        of_copy = SLURMLauncher(project_root=copy, entry_point="train.py", commands=QUICK)
        if whose == "the original's":
            return of_copy, job_id
        with slurm._store.open() as state:
            state |= {"next_id": 1, "tasks": {}}
        if whose == "a project's":
            shutil.rmtree(copy / "experiments")
            assert of_copy.submit_single_experiment(experiment("a")) == job_id
        else:
            script = copy / "job.sh"
            script.write_text("#!/bin/sh\n", encoding="utf-8")
            said = QUICK.once(["sbatch", "--parsable", f"--chdir={copy}", str(script)])
            assert said.strip() == job_id
        return launcher, job_id

    return make


@pytest.mark.parametrize("whose", ["the original's", "a project's", "a stranger's"])
def test_jobs_of_others_are_left_alone(
    whose: str, lost: Callable[[str], tuple[SLURMLauncher, str]], slurm: FakeSlurm
) -> None:
    """An id that Slurm has given to another is neither cancelled nor requeued by it."""
    launcher, job_id = lost(whose)
    assert launcher.states([job_id]) == ["unknown"]
    launcher.cancel([job_id])
    assert slurm.calls("scancel") == []
    with pytest.raises(
        SubmissionError, match="lost this job, and gave its id to another"
    ):
        launcher.requeue([job_id])
    assert slurm.calls("scontrol") == []
    assert slurm.tasks()[job_id]["state"] == "PENDING"


@pytest.mark.parametrize("whose", ["the original's", "a project's", "a stranger's"])
def test_what_slurm_lost_is_nobodys(
    whose: str,
    lost: Callable[[str], tuple[SLURMLauncher, str]],
    experiment: Make,
    slurm: FakeSlurm,
    wait_for: WaitFor,
) -> None:
    """None waits for another's job, or is told of its end; it is submitted again."""
    launcher, job_id = lost(whose)
    waiting = {"b": {"a": "afterok"}}
    [row] = launcher.submit_experiment_batch([experiment("b")], after=waiting)
    assert "a" in (row.error or "")
    slurm.configure(is_held=False)
    wait_for(lambda: slurm.tasks()[job_id]["state"] not in {"PENDING", "RUNNING"})
    line = f"{job_id}|FAILED|1:0|7|5|2|1|00:02|500M|mem=500M||||/elsewhere|{job_id}\n"
    slurm.fail("sacct", "", status=0, stdout=line)
    assert launcher.outcomes([job_id]) == [End()]
    monitor = JobMonitor(launcher._experiments_folder, commands=QUICK)
    monitor.poll()
    [status] = monitor.statuses()
    assert (status.state, status.node, status.start) == ("unknown", "", None)
    assert launcher.submit_single_experiment(experiment("a")) != job_id


def test_the_last_job_is_none_that_slurm_lost(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm, project: Path
) -> None:
    """Where one folder has an id twice, it is the later one's alone."""
    slurm.configure(is_held=True)
    launcher = make_launcher()
    for name in "ab":
        assert launcher.submit_single_experiment(experiment(name)) == "1"
        with slurm._store.open() as state:
            state["next_id"] = 1
    folder = project / "experiments"
    assert launcher.latest(["a", "b"], folder=folder) == [None, "1"]


def test_branches_of_others_stay(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm, project: Path
) -> None:
    """What waits keeps its branch, wherever its experiments lie and whose project it is."""
    slurm.configure(is_held=True)
    (project / "sub").mkdir()
    shutil.copy(project / "train.py", project / "sub")
    deep = make_launcher(experiments_folder=project / "runs" / "deep" / "er")
    root = project / "sub"
    of_sub = SLURMLauncher(project_root=root, entry_point="train.py", commands=QUICK)
    ids = [
        launcher.submit_single_experiment(experiment(name))
        for launcher, name in ((deep, "deep"), (of_sub, "sub"))
    ]
    launcher = make_launcher()
    assert launcher.prune_branches(older_than=timedelta(0)) == []
    slurm.configure(is_held=False)
    deep.wait(ids[:1], timeout_s=60)
    of_sub.wait(ids[1:], timeout_s=60)
    slurm.fail("squeue", times=3)
    with pytest.raises(SchedulerUnreachableError):
        launcher.prune_branches(older_than=timedelta(0))
    gone = launcher.prune_branches(older_than=timedelta(0))
    assert [branch.experiment_name for branch in gone] == ["deep", "sub"]


def test_branches_of_jobs_whose_answer_was_lost_stay(
    slurm: FakeSlurm, tmp_path: Path
) -> None:
    """They have no id yet by which one would be told from another: all count."""
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        job = arrays.new_job(folder, 1)
        planned = Planned(Work(SlurmSettings(), None), (("e",),))
        arrays.write_files(job, planned, "", "#!/bin/bash\n")
        (folder / "e").mkdir()
        text = json.dumps({"branch": f"slurm-job/{folder.name}"})
        (folder / "e" / "submission.json").write_text(text, encoding="utf-8")
    used = _control.branches_in_use(QUICK, folders)
    assert used == {"slurm-job/a", "slurm-job/b"}
    assert slurm.calls("sbatch") == []


def test_folders_that_cannot_be_read(
    slurm: FakeSlurm, tmp_path: Path, sbatch: Callable[..., str]
) -> None:
    """One of another user is passed over; one of our own is an error."""
    slurm.configure(is_held=True)
    closed = tmp_path / ("x" * 300)  # no user may read that
    sbatch("true", f"--chdir={closed}/.slurm/000001.0123456789abcdef")
    assert _control.branches_in_use(QUICK, [tmp_path]) == set()
    with pytest.raises(OSError, match="too long"):
        _control.branches_in_use(QUICK, [closed])
