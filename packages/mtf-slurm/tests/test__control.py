from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtf_slurm import _control, arrays
from mtf_slurm.command import Commands
from mtf_slurm.errors import SchedulerCommandError, SchedulerUnreachableError
from mtf_slurm.launcher import SLURMLauncher
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
        _control.cancel(QUICK, ids, [])
    assert len(slurm.calls("scancel")) == 2
    slurm.fail("scancel", "error: Kill job error on job id 1: Invalid job id specified")
    _control.cancel(QUICK, ["1"], [])


def test_many_are_requeued_at_once(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm
) -> None:
    """One command requeues many jobs."""
    launcher = make_launcher()
    batch = [experiment(f"e{i}", do="fail") for i in range(3)]
    ids = launcher.submit_experiment_batch(batch).job_ids
    launcher.wait(ids, timeout_s=60)
    slurm.configure(is_held=True)
    launcher.requeue(ids)
    calls = [call for call in slurm.calls("scontrol") if call[1] == "requeue"]
    assert calls == [["scontrol", "requeue", ",".join(ids)]]
    assert launcher.states(ids) == ["pending"] * 3


@pytest.fixture
def asks_to_come_back(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm
) -> tuple[SLURMLauncher, str]:
    """A job that saved where there is no scontrol, and has ended."""
    slurm.configure(has_scontrol_on_nodes=False)
    launcher: SLURMLauncher = make_launcher()
    job_id = launcher.submit_single_experiment(experiment("e", do="again"))
    while not launcher.states([job_id])[0].is_final:
        pass
    return launcher, job_id


def test_a_node_without_scontrol(
    asks_to_come_back: tuple[SLURMLauncher, str],
    experiment: Make,
    slurm: FakeSlurm,
    project: Path,
) -> None:
    """The next submission requeues the same job; its mark is gone, and nothing is new."""
    launcher, job_id = asks_to_come_back
    folder = project / "experiments" / "e"
    assert (folder / f"{job_id}.again").is_file()
    said = (folder / f"{job_id}.err").read_text(encoding="utf-8")
    assert "cannot be requeued from this node" in said
    slurm.configure(is_held=True)
    assert launcher.submit_single_experiment(experiment("e", do="again")) == job_id
    assert launcher.states([job_id]) == ["pending"]
    assert not list(folder.glob("*.again")) + list(folder.glob(".*.again"))
    assert slurm.tasks()[job_id]["restarts"] == 1
    assert len(slurm.tasks()) == 1


def test_waiting_brings_back_until_the_limit(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm, project: Path
) -> None:
    """Who waits on a login node requeues what cannot do it itself, so often and no more."""
    slurm.configure(has_scontrol_on_nodes=False)
    launcher = make_launcher()
    asked = experiment("e", do="again", max_requeues=2, time="10:00")
    job_id = launcher.submit_single_experiment(asked)
    assert launcher.wait([job_id], timeout_s=60) == ["preempted"]
    starts = project / "experiments" / "e" / "starts"
    assert starts.read_text(encoding="utf-8").split() == ["one"] * 3


def test_one_of_many_brings_it_back(
    asks_to_come_back: tuple[SLURMLauncher, str], slurm: FakeSlurm
) -> None:
    """However many look at once, one requeues."""
    launcher, job_id = asks_to_come_back
    slurm.configure(is_held=True)
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.extend(launcher.bring_back([job_id])))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [job_id]
    assert slurm.tasks()[job_id]["restarts"] == 1


def test_what_cannot_be_brought_back(
    asks_to_come_back: tuple[SLURMLauncher, str], experiment: Make, slurm: FakeSlurm
) -> None:
    """No answer leaves the mark; a job that Slurm has forgotten is submitted anew."""
    launcher, job_id = asks_to_come_back
    slurm.configure(is_held=True)
    slurm.fail("scontrol", times=3)
    with pytest.raises(SchedulerUnreachableError):
        launcher.bring_back([job_id])
    slurm.forget(job_id)
    assert launcher.bring_back([job_id]) == []
    assert launcher.submit_single_experiment(experiment("e", do="again")) != job_id


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
