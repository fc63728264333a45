from __future__ import annotations

import errno
import json
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from mtf_slurm import _control, _once
from mtf_slurm._ends import End
from mtf_slurm.command import Commands
from mtf_slurm.errors import (
    SchedulerCommandError,
    SchedulerUnreachableError,
    SubmissionError,
)
from mtf_slurm.launcher import SLURMLauncher
from mtf_slurm.testing import FakeSlurm

Make = Callable[..., Any]
Pair = tuple[SLURMLauncher, list[Any], list[str]]
WaitFor = Callable[[Callable[[], object]], None]
QUICK = Commands(timeout_s=20, num_attempts=3, sleep=lambda _: None)


def test_what_has_succeeded_runs_again_if_it_is_asked_to(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm, project: Path
) -> None:
    """A refused requeue leaves it as it is; one that is taken runs it."""
    launcher = make_launcher()
    job_id = launcher.submit_single_experiment(experiment("e"))
    launcher.wait([job_id], timeout_s=60)
    end = project / "experiments" / "e" / f"{job_id}.exit"
    before = end.read_bytes()
    slurm.fail("scontrol", "error: Invalid job id specified")
    with pytest.raises(SchedulerCommandError):
        launcher.requeue([job_id])
    assert end.read_bytes() == before
    launcher.requeue([job_id])
    assert launcher.wait([job_id], timeout_s=60) == ["succeeded"]
    starts = project / "experiments" / "e" / "starts"
    assert starts.read_text(encoding="utf-8").split() == ["one"] * 2


def test_one_that_is_refused_keeps_no_other_from_running(
    make_launcher: Make, experiment: Make, project: Path
) -> None:
    """Slurm requeues the rest all the same: it runs, and the one that is not is told."""
    launcher = make_launcher()
    batch = [experiment("a"), experiment("b")]
    ids = [launcher.submit_single_experiment(each) for each in batch]
    launcher.wait(ids, timeout_s=60)
    with pytest.raises(SchedulerCommandError, match=r"Invalid job id .* for job 99"):
        launcher.requeue([ids[0], "99", ids[1]])
    assert launcher.wait(ids, timeout_s=60) == ["succeeded"] * 2
    for name in ("a", "b"):
        starts = project / "experiments" / name / "starts"
        assert len(starts.read_text(encoding="utf-8").split()) == 2


def test_a_requeue_whose_answer_is_lost_is_done(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm, project: Path
) -> None:
    """It is asked for again and refused, since the job waits already, and runs."""
    launcher = make_launcher(commands=QUICK)
    job_id = launcher.submit_single_experiment(experiment("e", do="fail"))
    launcher.wait([job_id], timeout_s=60)
    slurm.configure(is_held=True)
    slurm.fail("scontrol", is_after=True)
    launcher.requeue([job_id])
    assert launcher.states([job_id]) == ["pending"]
    with pytest.raises(SchedulerCommandError, match="pending execution"):
        launcher.requeue([job_id])
    slurm.configure(is_held=False)
    assert launcher.wait([job_id], timeout_s=60) == ["failed"]
    starts = project / "experiments" / "e" / "starts"
    assert len(starts.read_text(encoding="utf-8").split()) == 2


def test_what_has_run_by_the_time_of_the_next_question_is_requeued_once(
    make_launcher: Make,
    experiment: Make,
    slurm: FakeSlurm,
    project: Path,
    wait_for: WaitFor,
) -> None:
    """An answer is lost, and the job has failed again before Slurm is asked again."""
    starts = project / "experiments" / "e" / "starts"

    def until_it_has_failed(_: float) -> None:
        wait_for(lambda: starts.read_text(encoding="utf-8").count("one") == 2)
        wait_for(lambda: slurm.tasks()["1"]["state"] == "FAILED")

    patient = Commands(timeout_s=20, num_attempts=3, sleep=until_it_has_failed)
    launcher = make_launcher(commands=patient)
    job_id = launcher.submit_single_experiment(experiment("e", do="fail"))
    launcher.wait([job_id], timeout_s=60)
    slurm.fail("scontrol", is_after=True)
    launcher.requeue([job_id])
    assert launcher.wait([job_id], timeout_s=60) == ["failed"]
    assert slurm.tasks()[job_id]["restarts"] == 1


def test_a_requeue_without_any_answer_may_be_done(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm, project: Path
) -> None:
    """It is an error, and if Slurm took it in all the same, the job runs."""
    launcher = make_launcher(commands=Commands(timeout_s=20, num_attempts=1))
    job_id = launcher.submit_single_experiment(experiment("e"))
    launcher.wait([job_id], timeout_s=60)
    slurm.configure(is_held=True)
    slurm.fail("scontrol", is_after=True)
    with pytest.raises(SchedulerUnreachableError):
        launcher.requeue([job_id])
    slurm.configure(is_held=False)
    assert launcher.wait([job_id], timeout_s=60) == ["succeeded"]
    starts = project / "experiments" / "e" / "starts"
    assert starts.read_text(encoding="utf-8").count("one") == 2


def test_an_experiment_that_has_a_newer_job_is_not_requeued(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm
) -> None:
    """It would run twice at once; alone, or as one of several whose task would run again."""
    launcher = make_launcher(num_packed=2)
    first = [experiment("a", do="fail"), experiment("b")]
    old = launcher.submit_experiment_batch(first).job_ids
    launcher.wait(old, timeout_s=60)
    slurm.configure(is_held=True)
    new = launcher.submit_single_experiment(experiment("a", do="fail"))
    with pytest.raises(SubmissionError, match=f"a has job {new} since"):
        launcher.requeue(old[:1])
    launcher.requeue(old[1:])  # beside it, the failure does not run
    folder = old[0].partition(".")[0]
    assert slurm.tasks()[folder]["state"] == "PENDING"


def test_a_submission_whose_answer_was_lost_is_a_newer_job(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm
) -> None:
    """It is looked for before an older job is requeued, so that one of them runs."""
    launcher = make_launcher(commands=Commands(timeout_s=20, num_attempts=1))
    job_id = launcher.submit_single_experiment(experiment("e", do="fail"))
    launcher.wait([job_id], timeout_s=60)
    slurm.configure(is_held=True)
    slurm.fail("sbatch", is_after=True)
    launcher.submit_experiment_batch([experiment("e", do="fail")])
    with pytest.raises(SubmissionError, match="e has job 2 since"):
        launcher.requeue([job_id])


def test_the_id_of_a_whole_array_is_all_its_tasks(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm, project: Path
) -> None:
    """All are requeued; none is where one has a newer job."""
    launcher = make_launcher()
    batch = [experiment(name, do="fail") for name in "ab"]
    launcher.wait(launcher.submit_experiment_batch(batch).job_ids, timeout_s=60)
    slurm.configure(is_held=True)
    launcher.requeue(["1"])
    assert launcher.states(["1_0", "1_1"]) == ["pending"] * 2
    marks = [*(project / "experiments").glob("*/*.requeued")]
    assert len(marks) == 2
    launcher.cancel(["1"])
    assert not any(mark.exists() for mark in marks)
    newer = launcher.submit_single_experiment(batch[1])
    with pytest.raises(SubmissionError, match=f"b has job {newer} since"):
        launcher.requeue(["1"])


def test_what_was_cancelled_is_requeued_once(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm, wait_for: WaitFor
) -> None:
    """It left nothing; that it has failed by the next question shows that it ran."""

    def until_it_has_failed(_: float) -> None:
        slurm.configure(is_held=False)
        wait_for(lambda: slurm.tasks()["1"]["state"] == "FAILED")

    patient = Commands(timeout_s=20, num_attempts=3, sleep=until_it_has_failed)
    launcher = make_launcher(commands=patient)
    slurm.configure(is_held=True)
    job_id = launcher.submit_single_experiment(experiment("e", do="fail"))
    launcher.cancel([job_id])
    slurm.fail("scontrol", is_after=True)
    launcher.requeue([job_id])
    assert slurm.tasks()[job_id]["restarts"] == 1


def test_one_of_several_in_a_task_runs_again(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm, project: Path
) -> None:
    """It waits until it does; the others are as they ended, and run no more."""
    launcher = make_launcher(num_packed=3)
    batch = [experiment("a"), experiment("b", do="fail"), experiment("c", do="fail")]
    ids = launcher.submit_experiment_batch(batch).job_ids
    launcher.wait(ids, timeout_s=60)
    slurm.configure(is_held=True)
    launcher.requeue([ids[1]])
    assert launcher.states(ids) == ["succeeded", "pending", "failed"]
    assert launcher.outcomes(ids)[1] == End()
    slurm.configure(is_held=False)
    assert launcher.wait(ids, timeout_s=60) == ["succeeded", "failed", "failed"]
    folders = [project / "experiments" / name for name in "abc"]
    starts = [(f / "starts").read_text(encoding="utf-8").split() for f in folders]
    assert [len(each) for each in starts] == [1, 2, 1]


def test_a_requeue_that_was_killed_changes_nothing(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm, project: Path
) -> None:
    """Noted and never asked for, it leaves an experiment as it ended, also when Slurm forgets."""
    launcher = make_launcher()
    job_id = launcher.submit_single_experiment(experiment("e"))
    launcher.wait([job_id], timeout_s=60)
    (project / "experiments" / "e" / f"{job_id}.requeued").touch()
    for _ in range(2):
        assert launcher.states([job_id]) == ["succeeded"]
        slurm.configure(has_accounting=False)
        slurm.forget(job_id)


def test_a_folder_that_cannot_be_written_is_not_requeued(
    make_launcher: Make,
    experiment: Make,
    slurm: FakeSlurm,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Slurm is not asked, and the place is named."""
    launcher = make_launcher()
    job_id = launcher.submit_single_experiment(experiment("e"))
    launcher.wait([job_id], timeout_s=60)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "touch", full)
    with pytest.raises(SubmissionError, match=r"cannot be written: .* is not requeued"):
        launcher.requeue([job_id])
    assert not slurm.calls("scontrol")


def test_what_runs_is_requeued_once(
    make_launcher: Make,
    experiment: Make,
    slurm: FakeSlurm,
    project: Path,
    wait_for: WaitFor,
) -> None:
    """Where another is refused, too, which is the one that is told."""
    launcher = make_launcher()
    job_id = launcher.submit_single_experiment(experiment("e", do="wait"))
    starts = project / "experiments" / "e" / "starts"
    wait_for(starts.exists)
    with pytest.raises(SchedulerCommandError, match="for job 99"):
        launcher.requeue([job_id, "99"])
    assert launcher.wait([job_id], timeout_s=60) == ["succeeded"]
    assert slurm.tasks()[job_id]["restarts"] == 1


def test_what_is_refused_without_a_name_is_told(
    make_launcher: Make,
    experiment: Make,
    slurm: FakeSlurm,
    project: Path,
    wait_for: WaitFor,
) -> None:
    """Of several that run, and of one that ended in a task that runs."""
    launcher = make_launcher(num_packed=2)
    batch = [
        *(experiment("a", do="fail"), experiment("b", do="wait")),
        *(experiment("c", do="wait", nice=1), experiment("d", do="wait", nice=1)),
    ]
    ids = launcher.submit_experiment_batch(batch).job_ids
    for name in "abc":
        wait_for((project / "experiments" / name / "starts").exists)
    for asked in ([ids[1], ids[2]], [ids[0]]):
        slurm.fail("scontrol", "error: not allowed here")
        with pytest.raises(SchedulerCommandError, match="not allowed here"):
            launcher.requeue(asked)
    assert launcher.states(ids[:2]) == ["failed", "running"]
    for name in "bcd":
        (project / "experiments" / name / "go_on").touch()
    states = launcher.wait(ids, timeout_s=60)
    assert states == ["failed", "succeeded", "succeeded", "succeeded"]
    assert {task["restarts"] for task in slurm.tasks().values()} == {0}


def test_a_refused_requeue_leaves_no_mark(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm, project: Path
) -> None:
    """Neither a state nor what runs later changes; nor where it is cancelled again."""
    launcher = make_launcher(num_packed=3)
    batch = [experiment("a"), experiment("b", do="fail"), experiment("c", do="fail")]
    ids = launcher.submit_experiment_batch(batch).job_ids
    launcher.wait(ids, timeout_s=60)
    slurm.fail("scontrol", "error: Requested operation is disabled for job 1")
    with pytest.raises(SchedulerCommandError, match="disabled"):
        launcher.requeue(ids[:1])
    slurm.configure(is_held=True)
    launcher.requeue(ids[1:2])
    launcher.cancel(ids[1:2])
    launcher.requeue(ids[2:])
    assert launcher.states(ids) == ["succeeded", "failed", "pending"]
    slurm.configure(is_held=False)
    launcher.wait(ids, timeout_s=60)
    folders = [project / "experiments" / name for name in "abc"]
    starts = [(f / "starts").read_text(encoding="utf-8").split() for f in folders]
    assert [len(each) for each in starts] == [1, 1, 2]


@pytest.fixture
def pair(make_launcher: Make, experiment: Make, slurm: FakeSlurm) -> Pair:
    """Two in a task, of which one saved where there is no scontrol, and one has not begun."""
    slurm.configure(has_scontrol_on_nodes=False)
    launcher: SLURMLauncher = make_launcher(num_packed=2)
    batch = [experiment("a", do="again"), experiment("b")]
    ids = launcher.submit_experiment_batch(batch).job_ids
    while not launcher.outcomes(ids[:1])[0].reason:
        pass
    return launcher, batch, ids


def test_what_a_user_cancels_in_slurm_is_not_brought_back(
    pair: Pair, slurm: FakeSlurm, project: Path
) -> None:
    """Requeued by hand, it waits for nobody to bring it back."""
    launcher, _, ids = pair
    slurm.configure(is_held=True)
    launcher.requeue(ids[:1])
    QUICK.run(["scancel", "1"])
    assert launcher.wait(ids, timeout_s=60) == ["preempted", "cancelled"]
    starts = project / "experiments" / "a" / "starts"
    assert len(starts.read_text(encoding="utf-8").split()) == 1


def test_one_of_several_that_comes_back_waits(pair: Pair, slurm: FakeSlurm) -> None:
    """So it is not submitted again while its task waits to run it."""
    launcher, batch, ids = pair
    slurm.configure(is_held=True)
    assert launcher.bring_back(ids[:1]) == ids[:1]
    assert launcher.states(ids) == ["pending"] * 2
    assert launcher.submit_experiment_batch(batch).job_ids == ids
    assert len(slurm.tasks()) == 1


def test_one_that_has_not_begun_comes_back_with_its_task(
    pair: Pair, slurm: FakeSlurm
) -> None:
    """It has not failed; asked for alone, the task comes back; it is cancelled with it."""
    launcher, _, ids = pair
    assert launcher.states(ids) == ["preempted"] * 2
    slurm.configure(is_held=True)
    with pytest.raises(SubmissionError, match=f"its task runs {ids[0]}, too"):
        launcher.cancel(ids[1:])
    assert launcher.bring_back(ids[1:]) == ids[1:]
    assert launcher.states(ids) == ["pending"] * 2


def test_a_task_does_not_come_back_with_what_has_a_newer_job(
    pair: Pair, slurm: FakeSlurm
) -> None:
    """What was submitted again after it would run twice; the rest is submitted again, too."""
    launcher, batch, ids = pair
    slurm.configure(is_held=True)
    slurm.fail("scontrol", "error: Requested operation is disabled")
    newer = launcher.submit_single_experiment(batch[1])
    assert newer not in ids
    mark = launcher.generate_sbatch_script(batch[0]).parent / f"{ids[0]}.again"
    mark.touch()  # as of a job that could write it only now
    assert launcher.bring_back(ids[:1]) == []
    assert not mark.exists()
    assert launcher.submit_single_experiment(batch[0]) not in {*ids, newer}


def test_a_folder_that_cannot_be_written_is_only_looked_at(
    asks_to_come_back: tuple[SLURMLauncher, str], slurm: FakeSlurm, project: Path
) -> None:
    """Who may not requeue there sees the job as it ended."""
    launcher, job_id = asks_to_come_back
    lock = project / "experiments" / ".slurm" / "submit.lock"
    lock.unlink()
    lock.mkdir()
    assert launcher.wait([job_id], timeout_s=60) == ["preempted"]
    assert slurm.tasks()[job_id]["restarts"] == 0


def test_a_requeue_beyond_the_limit_leaves_a_success(
    make_launcher: Make, experiment: Make
) -> None:
    """The job ends at once, and what it had done stays done."""
    launcher = make_launcher()
    job_id = launcher.submit_single_experiment(experiment("e", max_requeues=0))
    launcher.wait([job_id], timeout_s=60)
    launcher.requeue([job_id])
    assert launcher.wait([job_id], timeout_s=60) == ["succeeded"]


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
    """The next submission requeues the same job, and nothing is new; begun, it has no mark."""
    launcher, job_id = asks_to_come_back
    folder = project / "experiments" / "e"
    assert (folder / f"{job_id}.again").is_file()
    said = (folder / f"{job_id}.err").read_text(encoding="utf-8")
    assert "cannot ask to come back from this node" in said
    slurm.configure(is_held=True)
    assert launcher.submit_single_experiment(experiment("e", do="again")) == job_id
    assert launcher.states([job_id]) == ["pending"]
    assert slurm.tasks()[job_id]["restarts"] == 1
    assert len(slurm.tasks()) == 1
    slurm.configure(is_held=False, has_scontrol_on_nodes=True)
    assert launcher.wait([job_id], timeout_s=60) == ["preempted"]
    assert not (folder / f"{job_id}.again").exists()


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
    """However many look at once, one requeues, and all see that it comes back."""
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
    assert found == [job_id] * 4
    assert slurm.tasks()[job_id]["restarts"] == 1


def test_many_are_brought_back_at_once(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm
) -> None:
    """One command is enough; where it fails for one, the others come back all the same."""
    slurm.configure(has_scontrol_on_nodes=False)
    launcher = make_launcher()
    batch = [experiment(f"e{i}", do="again", nice=i) for i in range(4)]
    ids = launcher.submit_experiment_batch(batch).job_ids
    while not all(state.is_final for state in launcher.states(ids)):
        pass
    slurm.configure(is_held=True)
    requeue = ["scontrol", "requeue"]
    assert launcher.bring_back(ids[:2]) == ids[:2]
    assert slurm.calls("scontrol")[-1:] == [[*requeue, ",".join(ids[:2])]]
    launcher.cancel([ids[0]])
    slurm.fail("scontrol", "error: Invalid job id specified", status=1)
    assert launcher.bring_back(ids[2:]) == ids[2:]
    assert slurm.calls("scontrol")[-2:] == [[*requeue, ids[2]], [*requeue, ids[3]]]
    assert [slurm.tasks()[i]["restarts"] for i in ids[1:]] == [1] * 3
    assert launcher.bring_back(ids) == ids[1:]
    assert slurm.calls("scontrol")[-1] == [*requeue, ids[3]]


def test_the_branch_of_what_is_to_come_back_is_not_pruned(
    asks_to_come_back: tuple[SLURMLauncher, str],
) -> None:
    """Its code is needed still, until it is cancelled."""
    launcher, job_id = asks_to_come_back
    assert launcher.prune_branches(older_than=timedelta(0)) == []
    launcher.cancel([job_id])
    assert len(launcher.prune_branches(older_than=timedelta(0))) == 1


def test_a_job_that_asks_again_meanwhile_is_heard(
    asks_to_come_back: tuple[SLURMLauncher, str],
    slurm: FakeSlurm,
    project: Path,
    wait_for: WaitFor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Begun and ended again before its mark is put away, it keeps its new one."""
    launcher, job_id = asks_to_come_back
    mark = project / "experiments" / "e" / f"{job_id}.again"
    once = Commands.once

    def slowly(self: Commands, argv: Sequence[str], **more: Any) -> str:
        said = once(self, argv, **more)
        if argv[:2] == ("scontrol", "requeue"):
            wait_for(lambda: mark.exists() and mark.read_text(encoding="ascii") == "1\n")
        return said

    monkeypatch.setattr(Commands, "once", slowly)
    assert launcher.bring_back([job_id]) == [job_id]
    assert mark.exists()
    assert slurm.tasks()[job_id]["restarts"] == 1


def test_what_fails_before_it_begins_is_brought_back_once(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm, tmp_path: Path
) -> None:
    """As where its environment is gone: then it is submitted again, and not forever the same."""
    needed = tmp_path / "needed"
    needed.touch()
    slurm.configure(has_scontrol_on_nodes=False)
    launcher = make_launcher(setup=[f"[ -e {needed} ] || exit 1"])
    job_id = launcher.submit_single_experiment(experiment("e", do="again"))
    while not launcher.states([job_id])[0].is_final:
        pass
    needed.unlink()
    assert launcher.wait([job_id], timeout_s=60) == ["preempted"]
    assert slurm.tasks()[job_id]["restarts"] == 1
    slurm.configure(is_held=True)
    assert launcher.submit_single_experiment(experiment("e", do="again")) == "2"


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


def test_what_is_cancelled_is_not_brought_back(
    asks_to_come_back: tuple[SLURMLauncher, str], slurm: FakeSlurm, project: Path
) -> None:
    """Its mark is gone, so it stays as it ended."""
    launcher, job_id = asks_to_come_back
    launcher.cancel([job_id])
    assert not (project / "experiments" / "e" / f"{job_id}.again").exists()
    assert launcher.bring_back([job_id]) == []
    assert launcher.wait([job_id], timeout_s=60) == ["preempted"]
    assert slurm.tasks()[job_id]["restarts"] == 0


def test_a_mark_that_was_used_is_gone(
    asks_to_come_back: tuple[SLURMLauncher, str], slurm: FakeSlurm, project: Path
) -> None:
    """Who requeues leaves it to the job, which begins and takes it away: nothing comes twice."""
    launcher, job_id = asks_to_come_back
    folder = project / "experiments" / "e"
    text = json.dumps({"do": "fail", "slurm": None})
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    QUICK.run(("scontrol", "requeue", job_id))
    assert launcher.wait([job_id], timeout_s=60) == ["failed"]
    assert launcher.bring_back([job_id]) == []
    assert slurm.tasks()[job_id]["restarts"] == 1


def test_what_has_succeeded_by_the_time_of_the_answer_is_not_submitted_again(
    asks_to_come_back: tuple[SLURMLauncher, str],
    experiment: Make,
    slurm: FakeSlurm,
    project: Path,
    wait_for: WaitFor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Brought back and ended while its submitter still waits, it keeps its job."""
    launcher, job_id = asks_to_come_back
    text = json.dumps({"do": "succeed", "slurm": None})
    (project / "experiments" / "e" / "config.yaml").write_text(text, encoding="utf-8")
    once = Commands.once

    def slowly(self: Commands, argv: Sequence[str], **more: Any) -> str:
        said = once(self, argv, **more)
        if argv[:2] == ("scontrol", "requeue"):
            wait_for(lambda: slurm.tasks()[job_id]["state"] == "COMPLETED")
        return said

    monkeypatch.setattr(Commands, "once", slowly)
    [row] = launcher.submit([experiment("e")], folder=project / "experiments").rows
    assert row.job_id == job_id
    assert launcher.wait([job_id], timeout_s=60) == ["succeeded"]


def test_a_job_that_another_brings_back_waits(
    asks_to_come_back: tuple[SLURMLauncher, str], slurm: FakeSlurm, project: Path
) -> None:
    """While one asks, no other does, nor says that it has ended, nor takes the mark away."""
    launcher, job_id = asks_to_come_back
    slurm.configure(is_held=True)
    with _once.lock(project / "experiments", timeout_s=0):
        assert launcher.bring_back([job_id]) == [job_id]
        assert launcher.wait([job_id], timeout_s=0) == ["pending"]
        with pytest.raises(SubmissionError, match="another process has submitted or req"):
            _control.cancel(QUICK, [job_id], [project / "experiments"], lock_timeout_s=0)
    assert slurm.tasks()[job_id]["restarts"] == 0
    assert launcher.bring_back([job_id]) == [job_id]
    assert slurm.tasks()[job_id]["restarts"] == 1


def test_a_command_that_cannot_be_started_leaves_the_mark(
    asks_to_come_back: tuple[SLURMLauncher, str],
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where this machine has no processes left, the error is that; the next goes on."""
    launcher, job_id = asks_to_come_back
    with monkeypatch.context() as patch:
        once = Commands.once

        def none_left(self: Commands, argv: Sequence[str], **more: Any) -> str:
            if argv[0] == "scontrol":
                raise BlockingIOError(11, "Resource temporarily unavailable")
            return once(self, argv, **more)

        patch.setattr(Commands, "once", none_left)
        with pytest.raises(BlockingIOError, match="temporarily"):
            launcher.bring_back([job_id])
    assert (project / "experiments" / "e" / f"{job_id}.again").exists()
    assert launcher.bring_back([job_id]) == [job_id]


def test_a_job_of_another_is_not_brought_back(
    asks_to_come_back: tuple[SLURMLauncher, str],
    experiment: Make,
    slurm: FakeSlurm,
    sbatch: Callable[..., str],
) -> None:
    """Where Slurm lost the job that asked for it, the one that has its id goes on."""
    launcher, job_id = asks_to_come_back
    slurm.configure(is_held=True)
    with slurm._store.open() as state:
        state |= {"next_id": 1, "tasks": {}}
    assert sbatch("true") == job_id
    assert launcher.wait([job_id], timeout_s=60) == ["preempted"]
    assert launcher.bring_back([job_id]) == []
    assert launcher.submit_single_experiment(experiment("e", do="again")) == "2"
    assert [c for c in slurm.calls("scontrol") if c[1] == "requeue"] == []
