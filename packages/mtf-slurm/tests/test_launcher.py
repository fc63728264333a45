from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mtf_slurm.command import Commands
from mtf_slurm.errors import (
    SchedulerCommandError,
    SchedulerUnreachableError,
    SnapshotError,
    SubmissionError,
    TemplateError,
    UnreadableReplyError,
)
from mtf_slurm.launcher import SLURMLauncher
from mtf_slurm.states import JobState
from mtf_slurm.testing import FakeSlurm

Make = Callable[..., Any]
WaitFor = Callable[[Callable[[], object]], None]


def starts(folder: Path) -> list[str]:
    """Return which code ran, for each time that the experiment was started."""
    path = folder / "starts"
    return path.read_text(encoding="utf-8").split() if path.exists() else []


def test_one_experiment(make_launcher: Make, experiment: Make, project: Path) -> None:
    """It runs the frozen code in its own folder, and leaves what it wrote there."""
    launcher = make_launcher()
    job_id = launcher.submit_single_experiment(experiment("exp"))
    assert launcher.wait([job_id], timeout_s=60) == [JobState.SUCCEEDED]
    folder = project / "experiments" / "exp"
    assert (folder / f"{job_id}.out").read_text(encoding="utf-8") == "hello\n"
    assert (folder / f"{job_id}.err").read_text(encoding="utf-8") == ""
    assert (folder / f"{job_id}.sbatch").is_file()
    assert json.loads((folder / "code.json").read_text(encoding="utf-8"))["commit"]
    assert list((project / "experiments" / ".slurm").glob("*/code/*")) == []


def test_code_that_is_edited_after_submission(
    make_launcher: Make, experiment: Make, project: Path, slurm: FakeSlurm
) -> None:
    """The job runs what was there when it was submitted, committed or not."""
    script = project / "train.py"
    text = script.read_text(encoding="utf-8")
    slurm.configure(is_held=True)
    script.write_text(text.replace("one", "two"), encoding="utf-8")
    launcher = make_launcher()
    job_id = launcher.submit_single_experiment(experiment("exp"))
    script.write_text(text.replace("one", "three"), encoding="utf-8")
    slurm.configure(is_held=False)
    assert launcher.wait([job_id], timeout_s=60) == [JobState.SUCCEEDED]
    assert starts(project / "experiments" / "exp") == ["two"]


def test_a_batch_is_one_array_and_a_row_each(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm, project: Path
) -> None:
    """A failure and a refusal in the middle touch no other; all is in order."""
    batch = [
        experiment("a"),
        experiment("b", do="fail"),
        experiment("no/name"),
        experiment("c", nodes=0),
        experiment("d"),
    ]
    launcher = make_launcher()
    result = launcher.submit_experiment_batch(batch)
    assert [row.experiment_name for row in result] == ["a", "b", "no/name", "c", "d"]
    assert [row.job_id for row in result] == ["1_0", "1_1", None, None, "1_2"]
    assert [row.experiment_name for row in result.failed] == ["no/name", "c"]
    assert (result.failed[1].error or "").startswith("slurm.nodes is 0")
    assert len(result) == 5
    states = launcher.wait(result.job_ids, timeout_s=60)
    assert states == ["succeeded", "failed", "succeeded"]
    assert len(slurm.calls("sbatch")) == 1
    out = project / "experiments" / "a" / "1_0.out"
    assert out.read_text(encoding="utf-8") == "hello\n"


def test_arrays_are_split_and_limited(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm
) -> None:
    """No index reaches the site's limit; so many run at once as the section says."""
    slurm.configure(max_array_size=2, is_held=True)
    launcher = make_launcher()
    batch = [experiment(f"e{i}", max_running=1) for i in range(5)]
    result = launcher.submit_experiment_batch(batch)
    assert result.job_ids == ["1_0", "1_1", "3_0", "3_1", "5"]
    tasks = slurm.tasks()
    assert [tasks[i]["limit"] for i in result.job_ids] == [1, 1, 1, 1, None]


def test_a_refused_part_is_continued(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm
) -> None:
    """What the site refuses is said in its rows; the same batch again goes on with them."""
    slurm.configure(partitions=["p"], is_held=True)
    batch = [experiment("a"), experiment("b", partition="new"), experiment("c", nodes=2)]
    launcher = make_launcher()
    first = launcher.submit_experiment_batch(batch)
    assert [row.job_id is None for row in first] == [False, True, False]
    assert "invalid partition specified: new" in (first.failed[0].error or "")
    slurm.configure(partitions=["p", "new"])
    second = launcher.submit_experiment_batch(batch)
    assert second.failed == []
    assert [second.rows[i].job_id for i in (0, 2)] == first.job_ids
    assert len(slurm.tasks()) == 3


def test_a_controller_that_goes_away_in_the_middle(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm
) -> None:
    """The rest is not tried one by one, says so, and is submitted by the next call."""
    slurm.configure(is_held=True)
    batch = [experiment(f"e{i}", nodes=i + 1) for i in range(3)]
    launcher = make_launcher(max_array_size=10)
    slurm.fail("sbatch", times=3)
    first = launcher.submit_experiment_batch(batch)
    assert first.job_ids == []
    assert all("submit again to go on" in (row.error or "") for row in first)
    assert len(slurm.calls("sbatch")) == 3
    assert launcher.submit_experiment_batch(batch).failed == []
    assert len(slurm.tasks()) == 3


def test_nothing_is_submitted_while_slurm_cannot_be_asked(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm
) -> None:
    """Whether an experiment runs already is asked first; no answer is an error."""
    launcher = make_launcher()
    job_id = launcher.submit_single_experiment(experiment("a"))
    slurm.fail("squeue", times=3)
    with pytest.raises(SchedulerUnreachableError):
        launcher.submit_experiment_batch([experiment("a"), experiment("b")])
    assert list(slurm.tasks()) == [job_id]


def test_what_nobody_knows_any_more_is_no_latest_job(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm, project: Path
) -> None:
    """A search may go on from the job it is told; one that Slurm forgot is none."""
    slurm.configure(is_held=True, has_accounting=False)
    launcher = make_launcher()
    folder = project / "experiments"
    assert launcher.latest(["a"], folder=folder) == [None]
    job_id = launcher.submit_single_experiment(experiment("a"))
    assert launcher.latest(["b", "a"], folder=folder) == [None, job_id]
    launcher.cancel([job_id])
    slurm.forget(job_id)
    assert launcher.latest(["a"], folder=folder) == [None]


def test_what_nobody_knows_yet_is_not_submitted_again(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm
) -> None:
    """A job without a row is unknown; for a while it counts as one that is late."""
    slurm.configure(is_held=True, has_accounting=False)
    launcher = make_launcher()
    job_id = launcher.submit_single_experiment(experiment("a"))
    slurm.forget(job_id)
    assert launcher.states([job_id]) == [JobState.UNKNOWN]
    assert launcher.submit_single_experiment(experiment("a")) == job_id
    [path] = launcher._experiments_folder.glob(".slurm/*/job_id")
    os.utime(path, (1, 1))
    assert launcher.submit_single_experiment(experiment("a")) != job_id


def test_a_site_without_accounting(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm
) -> None:
    """When the controller has forgotten a job, what it left behind tells how it ended."""
    launcher = make_launcher()
    batch = [experiment("a"), experiment("b", do="fail"), experiment("c", do="again")]
    asked = [experiment(e.experiment_name, e.values["do"], requeue=False) for e in batch]
    ids = launcher.submit_experiment_batch(asked).job_ids
    expected = ["succeeded", "failed", "preempted"]
    assert launcher.wait(ids, timeout_s=60) == expected
    slurm.configure(has_accounting=False)
    slurm.forget(*ids)
    assert make_launcher().states([*ids, "999"]) == [*expected, "unknown"]


def test_exit_status_75_comes_back_until_the_limit(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm, project: Path
) -> None:
    """An experiment that asks to be continued is, in the same job, so often and no more."""
    launcher = make_launcher()
    asked = experiment("e", do="again", max_requeues=2, time="10:00")
    job_id = launcher.submit_single_experiment(asked)
    assert launcher.wait([job_id], timeout_s=60) == [JobState.PREEMPTED]
    assert starts(project / "experiments" / "e") == ["one"] * 3
    assert slurm.tasks()[job_id]["restarts"] == 2
    err = (project / "experiments" / "e" / f"{job_id}.err").read_text(encoding="utf-8")
    assert "max_requeues" in err


def test_a_failure_is_never_requeued(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm
) -> None:
    """What fails by itself has failed; submitted again, it is a new job."""
    launcher = make_launcher()
    job_id = launcher.submit_single_experiment(experiment("e", do="fail"))
    assert launcher.wait([job_id], timeout_s=60) == [JobState.FAILED]
    assert slurm.tasks()[job_id]["restarts"] == 0
    assert launcher.submit_single_experiment(experiment("e", do="fail")) != job_id


@pytest.mark.parametrize("event", ["preempt", "fail_node"])
def test_preempted_and_lost_experiments_come_back(
    event: str,
    make_launcher: Make,
    experiment: Make,
    slurm: FakeSlurm,
    project: Path,
    wait_for: WaitFor,
) -> None:
    """An array's task whose place or node is gone runs again, once, and finishes."""
    launcher = make_launcher()
    batch = [experiment("a", do="wait"), experiment("b", do="wait")]
    ids = launcher.submit_experiment_batch(batch).job_ids
    folder = project / "experiments"
    wait_for(lambda: all(starts(folder / name) for name in "ab"))
    getattr(slurm, event)(ids[1])
    wait_for(lambda: len(starts(folder / "b")) == 2)
    (folder / "a" / "go_on").touch()
    assert launcher.wait(ids, timeout_s=60) == ["succeeded", "succeeded"]
    assert [slurm.tasks()[i]["restarts"] for i in ids] == [0, 1]
    assert starts(folder / "a") == ["one"]


@pytest.mark.parametrize("continues", [True, False])
def test_the_time_limit(
    *,
    continues: bool,
    make_launcher: Make,
    experiment: Make,
    slurm: FakeSlurm,
    project: Path,
    wait_for: WaitFor,
) -> None:
    """An experiment that saves when it is warned comes back only if that was asked for."""
    launcher = make_launcher()
    asked = experiment("e", do="wait", time="1", continue_on_timeout=continues)
    job_id = launcher.submit_single_experiment(asked)
    folder = project / "experiments" / "e"
    wait_for(lambda: starts(folder))
    slurm.time_out(job_id)
    if continues:
        wait_for(lambda: len(starts(folder)) == 2)
        assert launcher.wait([job_id], timeout_s=60) == ["succeeded"]
    else:
        wait_for(lambda: launcher.states([job_id])[0].is_final)
        assert slurm.tasks()[job_id]["restarts"] == 0


def test_what_is_cancelled_does_not_come_back(
    make_launcher: Make,
    experiment: Make,
    slurm: FakeSlurm,
    project: Path,
    wait_for: WaitFor,
) -> None:
    """An experiment that saves and exits with 75 when it is cancelled stays cancelled."""
    launcher = make_launcher()
    job_id = launcher.submit_single_experiment(experiment("e", do="wait", time="1-0"))
    wait_for(lambda: starts(project / "experiments" / "e"))
    launcher.cancel([job_id, "no id", "999"])
    assert launcher.wait([job_id], timeout_s=60) == [JobState.CANCELLED]
    assert slurm.tasks()[job_id]["restarts"] == 0
    assert ["requeue", job_id] not in [call[1:] for call in slurm.calls("scontrol")]


def test_cancelled_before_it_began(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm
) -> None:
    """Such a task of an array leaves no trace in Slurm; its siblings show what became of it."""
    slurm.configure(is_held=True)
    launcher = make_launcher()
    ids = launcher.submit_experiment_batch([experiment("a"), experiment("b")]).job_ids
    launcher.cancel(ids[:1])
    assert list(slurm.tasks()) == ids[1:]
    assert launcher.states([*ids, "1_2"]) == ["cancelled", "pending", "unknown"]
    slurm.configure(has_accounting=False)
    assert launcher.states(ids) == ["unknown", "pending"]


def test_requeue_by_hand(make_launcher: Make, experiment: Make, project: Path) -> None:
    """A job that has ended runs again under its id; what is no id is refused."""
    launcher = make_launcher()
    job_id = launcher.submit_single_experiment(experiment("e", do="fail"))
    launcher.wait([job_id], timeout_s=60)
    launcher.requeue([job_id])
    assert launcher.wait([job_id], timeout_s=60) == [JobState.FAILED]
    assert len(starts(project / "experiments" / "e")) == 2
    with pytest.raises(SubmissionError, match="no job's id"):
        launcher.requeue(["; reboot"])


def test_packed_experiments(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm, project: Path
) -> None:
    """Several share a task, each with its own state, folder and output."""
    launcher = make_launcher(num_packed=2)
    batch = [experiment("a"), experiment("b", do="fail"), experiment("c")]
    result = launcher.submit_experiment_batch(batch)
    assert result.job_ids == ["1_0.0", "1_0.1", "1_1"]
    states = launcher.wait(result.job_ids, timeout_s=60)
    assert states == ["succeeded", "failed", "succeeded"]
    assert len(slurm.tasks()) == 2
    assert (project / "experiments" / "a" / "1_0.0.out").is_file()
    again = launcher.submit_experiment_batch(batch)
    assert [again.job_ids[0], again.job_ids[2]] == ["1_0.0", "1_1"]
    assert again.job_ids[1] not in result.job_ids


def test_cancelling_some_of_a_task(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm
) -> None:
    """A task is ended as a whole: some of its experiments alone cannot be."""
    slurm.configure(is_held=True)
    launcher = make_launcher(num_packed=2)
    ids = launcher.submit_experiment_batch([experiment("a"), experiment("b")]).job_ids
    with pytest.raises(SubmissionError, match=r"1\.0: its task runs 1\.1, too"):
        launcher.cancel(ids[:1])
    launcher.cancel(ids)
    assert launcher.states(ids) == ["cancelled", "cancelled"]


def test_submitted_twice_runs_once(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm, project: Path
) -> None:
    """A second job of one submission ends without running anything."""
    slurm.configure(is_held=True)
    launcher = make_launcher()
    job_id = launcher.submit_single_experiment(experiment("e"))
    [script] = (project / "experiments").glob(".slurm/*/job.sbatch")
    twin = Commands().once(["sbatch", "--parsable", str(script)]).strip()
    slurm.configure(is_held=False)
    launcher.wait([job_id, twin], timeout_s=60)
    assert starts(project / "experiments" / "e") == ["one"]
    err = project / "experiments" / "e" / f"{twin}.err"
    assert f"job {job_id} runs" in err.read_text(encoding="utf-8")


def test_functions_as_entry_points(
    make_launcher: Make, experiment: Make, project: Path
) -> None:
    """A function of the project is called with the config's path, from the checkout."""
    text = "def run(path):\n    open(path + '.seen', 'w', encoding='utf-8').close()\n"
    (project / "pkg").mkdir()
    (project / "pkg" / "work.py").write_text(text, encoding="utf-8")
    user = ("-c", "user.name=U", "-c", "user.email=u@example.org")
    for args in (("add", "."), (*user, "commit", "-qm", "two")):
        subprocess.run(["git", *args], cwd=project, check=True, timeout=60)
    launcher = make_launcher(entry_point="pkg.work:run")
    job_id = launcher.submit_single_experiment(experiment("e"))
    assert launcher.wait([job_id], timeout_s=60) == [JobState.SUCCEEDED]
    assert (project / "experiments" / "e" / "config.yaml.seen").is_file()


def test_tampered_code_does_not_run(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm, project: Path
) -> None:
    """A job that cannot prove its code fails, and runs none."""
    slurm.configure(is_held=True)
    launcher = make_launcher()
    job_id = launcher.submit_single_experiment(experiment("e"))
    [path] = (project / "experiments").glob(".slurm/*/settings.sh")
    text = path.read_text(encoding="utf-8")
    commit = text.partition("--commit ")[2].partition(")")[0]
    path.write_text(text.replace(commit, "0" * 40), encoding="utf-8")
    slurm.configure(is_held=False)
    assert launcher.wait([job_id], timeout_s=60) == [JobState.FAILED]
    assert starts(project / "experiments" / "e") == []


def test_scripts_to_look_at(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm, project: Path
) -> None:
    """It has the context's values and is its owner's alone, and nothing is submitted."""
    launcher = make_launcher(setup=["export A=1"])
    path = launcher.generate_sbatch_script(experiment("e", qos="q"), {"partition": "p x"})
    assert path == project / "experiments" / "e" / "e.sbatch"
    text = path.read_text(encoding="utf-8")
    assert '#SBATCH --partition="p x"\n#SBATCH --qos=q\n' in text
    assert "\nexport A=1\n" in text
    path.chmod(0o644)
    launcher.generate_sbatch_script(experiment("e", qos="r"))
    assert path.stat().st_mode & 0o777 == 0o600
    assert "#SBATCH --qos=r\n" in path.read_text(encoding="utf-8")
    assert [left.name for left in path.parent.iterdir()] == ["e.sbatch"]
    assert slurm.calls() == []
    with pytest.raises(TemplateError, match="nope: unknown"):
        launcher.generate_sbatch_script(experiment("e"), {"nope": 1})
    (path.parents[1] / "file").touch()
    with pytest.raises(
        SubmissionError, match=r"file\.sbatch: cannot be written: .* rights"
    ):
        launcher.generate_sbatch_script(experiment("file"))


def test_configs_are_written_where_jobs_are_submitted(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm, project: Path
) -> None:
    """What lay there is replaced, whoever wrote it; and a script to look at writes none."""
    slurm.configure(is_held=True)
    folder = project / "experiments"
    (folder / "mine").mkdir(parents=True)
    (folder / "mine" / "config.yaml").write_text("do: wait\n", encoding="utf-8")
    launcher = make_launcher()
    launcher.submit_experiment_batch([experiment("mine", do="fail")])
    launcher.generate_sbatch_script(experiment("mine", do="again"))
    launcher.generate_sbatch_script(experiment("new"))
    text = (folder / "mine" / "config.yaml").read_text(encoding="utf-8")
    assert json.loads(text)["do"] == "fail"
    assert [path.name for path in (folder / "new").iterdir()] == ["new.sbatch"]


def test_wait_tells_how_it_goes(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm
) -> None:
    """Counts come when they change; waiting ends at its limit."""
    slurm.configure(is_held=True)
    launcher = make_launcher()
    job_id = launcher.submit_single_experiment(experiment("e"))
    seen: list[dict[JobState, int]] = []
    assert launcher.wait([job_id], timeout_s=0.2, on_progress=seen.append) == ["pending"]
    assert seen == [{JobState.PENDING: 1}]
    assert launcher.wait([]) == []
    assert launcher.submit_experiment_batch([]).rows == ()


@pytest.mark.parametrize(
    "trouble",
    [
        {"stderr": "slurm_load_jobs error: Unable to contact slurm controller"},
        {"stderr": "", "status": 0, "stdout": "welcome\n"},
    ],
)
def test_wait_outlasts_what_passes(
    trouble: dict[str, Any],
    make_launcher: Make,
    experiment: Make,
    slurm: FakeSlurm,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No controller, or noise in its answers, ends no waiting before the patience ends."""
    launcher = make_launcher(commands=Commands(num_attempts=1))
    job_id = launcher.submit_single_experiment(experiment("e"))
    slurm.fail("squeue", times=3, **trouble)
    assert launcher.wait([job_id], timeout_s=60) == ["succeeded"]
    assert "states stay as they were" in caplog.text
    assert caplog.text.count("Slurm answers again") == 1
    slurm.fail("squeue", times=99, **trouble)
    assert launcher.wait([job_id], timeout_s=0) == ["unknown"]
    with pytest.raises((SchedulerUnreachableError, UnreadableReplyError)):
        launcher.wait([job_id], patience_s=0)


def test_wait_ends_when_it_is_to(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm
) -> None:
    """Its limit holds where Slurm hangs: no command is waited for much longer."""
    slurm.configure(is_held=True)
    launcher = make_launcher(commands=Commands(timeout_s=60))
    job_id = launcher.submit_single_experiment(experiment("e"))
    slurm.fail("squeue", times=9, is_hanging=True)
    began_s = time.monotonic()
    assert launcher.wait([job_id], timeout_s=0.5) == ["unknown"]
    assert time.monotonic() - began_s < 30


def test_what_comes_back_too_often_was_preempted(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm, project: Path
) -> None:
    """The last time it is not run, and says so."""
    launcher = make_launcher()
    asked = experiment("e", do="stubborn", max_requeues=0, time="10:00")
    slurm.configure(is_held=True)
    job_id = launcher.submit_single_experiment(asked)
    with slurm._store.open() as state:
        state["tasks"][job_id]["restarts"] = 1
    slurm.configure(is_held=False)
    assert launcher.wait([job_id], timeout_s=60) == ["preempted"]
    assert launcher.outcomes([job_id])[0].reason.endswith("did not come back")
    assert starts(project / "experiments" / "e") == []


def test_folders_that_cannot_be_used(make_launcher: Make, tmp_path: Path) -> None:
    """A folder that is not there, or that Slurm would read otherwise, is an error."""
    launcher = make_launcher()
    with pytest.raises(SubmissionError, match="no such folder"):
        launcher.submit([], folder=tmp_path / "none")
    for name in ("a\\b", "a%20b"):
        (tmp_path / name).mkdir()
        with pytest.raises(SubmissionError, match="without backslash, '%' and newline"):
            launcher.submit([], folder=tmp_path / name)


def test_what_can_be_read_once_is_read_once(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm
) -> None:
    """Of iterators nothing is lost."""
    slurm.configure(is_held=True)
    launcher = make_launcher()
    ids = launcher.submit_experiment_batch(
        iter([experiment("a"), experiment("b")])
    ).job_ids
    assert len(ids) == 2
    assert launcher.states(iter(ids)) == ["pending"] * 2
    assert launcher.wait(iter(ids), timeout_s=0) == ["pending"] * 2
    launcher.cancel(iter(ids))
    assert launcher.states(iter(ids)) == ["cancelled"] * 2
    launcher.requeue(iter(ids))
    assert launcher.states(iter(ids)) == ["pending"] * 2


def test_what_the_constructor_refuses(project: Path, tmp_path: Path) -> None:
    """Wrong settings of the launcher are said before anything is submitted."""
    wrong: list[tuple[type[Exception], dict[str, Any]]] = [
        (ValueError, {"num_packed": 0}),
        (ValueError, {"max_array_size": 0}),
        (ValueError, {"poll_interval_s": 0}),
        (ValueError, {"cleanup": "sometimes"}),
        (SubmissionError, {"defaults": {"nodes": 0}}),
        (SubmissionError, {"entry_point": "../x.py"}),
        (TemplateError, {"template_path": tmp_path / "none"}),
    ]
    for error, given in wrong:
        with pytest.raises(error):
            SLURMLauncher(project_root=project, **given)
    with pytest.raises(SnapshotError, match="no git repository"):
        SLURMLauncher(project_root=tmp_path)
    SLURMLauncher(project_root=tmp_path, freeze_code=False)


def test_single_refusals(make_launcher: Make, experiment: Make, slurm: FakeSlurm) -> None:
    """One experiment that is refused is an error with the reason."""
    slurm.configure(max_submit=0)
    with pytest.raises(SubmissionError, match="QOSMaxSubmitJobPerUserLimit"):
        make_launcher().submit_single_experiment(experiment("e"))


def test_the_same_experiment_twice_in_a_batch(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm
) -> None:
    """It has two rows and one job."""
    slurm.configure(is_held=True)
    result = make_launcher().submit_experiment_batch([experiment("a"), experiment("a")])
    assert result.job_ids == ["1", "1"]


def test_a_full_disk(
    make_launcher: Make,
    experiment: Make,
    slurm: FakeSlurm,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What cannot be written is not submitted, and leaves nothing; it can be continued."""
    slurm.configure(is_held=True)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    launcher = make_launcher()
    with monkeypatch.context() as patch:
        patch.setattr("mtf_slurm.arrays.write_files", full)
        [row] = launcher.submit_experiment_batch([experiment("a")])
    assert "No space left" in (row.error or "")
    assert slurm.tasks() == {}
    assert list(launcher._experiments_folder.glob(".slurm/0*")) == []
    assert launcher.submit_single_experiment(experiment("a")) == "1"


def test_a_copy_that_cannot_be_written_is_no_failure(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm, project: Path
) -> None:
    """A job that was accepted has its row, whatever becomes of the copy of its script."""
    slurm.configure(is_held=True)
    (project / "experiments" / "a" / "1.sbatch").mkdir(parents=True)
    assert make_launcher().submit_single_experiment(experiment("a")) == "1"


def test_a_refused_cancellation(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm
) -> None:
    """Only what has ended or is unknown is passed over."""
    slurm.configure(is_held=True)
    launcher = make_launcher()
    job_id = launcher.submit_single_experiment(experiment("a"))
    slurm.fail("scancel", "error: Access/permission denied")
    with pytest.raises(SchedulerCommandError, match="permission denied"):
        launcher.cancel([job_id])


def test_a_project_that_is_in_no_repository(
    tmp_path: Path, experiment: Make, slurm: FakeSlurm
) -> None:
    """Its code is not frozen: the job runs what lies in the folder when it runs."""
    assert slurm.calls() == []
    root = tmp_path / "plain"
    root.mkdir()
    (root / "t.py").write_text("open('ran', 'w').close()", encoding="utf-8")
    launcher = SLURMLauncher(
        project_root=root, entry_point="t.py", freeze_code=False, poll_interval_s=0.05
    )
    job_id = launcher.submit_single_experiment(experiment("e"))
    assert launcher.wait([job_id], timeout_s=60) == [JobState.SUCCEEDED]
    assert (root / "experiments" / "e" / "ran").is_file()


@pytest.mark.slow
def test_fifty_submitters_at_once(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm, project: Path
) -> None:
    """Fifty that submit at the same time get a job and the right branch each."""
    slurm.configure(is_held=True)
    names = [f"e{i}" for i in range(50)]

    def submit(name: str) -> str:
        return str(make_launcher().submit_single_experiment(experiment(name)))

    with ThreadPoolExecutor(len(names)) as pool:
        ids = list(pool.map(submit, names))
    tasks = slurm.tasks()
    assert [tasks[job_id]["name"] for job_id in ids] == names
    assert len(tasks) == len(names)
    for name in names:
        folder = project / "experiments" / name
        said = json.loads((folder / "submission.json").read_text(encoding="utf-8"))
        assert said["branch"].startswith(f"slurm-job/{name}/")


def test_a_disk_that_is_full_when_the_answer_comes(
    make_launcher: Make,
    experiment: Make,
    slurm: FakeSlurm,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A job whose id could not be written down is found again, and not submitted twice."""
    slurm.configure(is_held=True)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    launcher = make_launcher()
    with monkeypatch.context() as patch:
        patch.setattr("mtf_slurm.arrays.Job.claim", full)
        [row] = launcher.submit_experiment_batch([experiment("a")])
    assert "No space left" in (row.error or "")
    assert launcher.submit_single_experiment(experiment("a")) == "1"
    assert list(slurm.tasks()) == ["1"]


@pytest.mark.parametrize("skew_s", [-86400, 86400])
def test_clocks_that_differ(
    skew_s: int,
    make_launcher: Make,
    experiment: Make,
    slurm: FakeSlurm,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A submitter whose clock is a day off submits nothing twice: files' dates are compared."""
    slurm.configure(is_held=True, has_accounting=False)
    launcher = make_launcher()
    job_id = launcher.submit_single_experiment(experiment("a"))
    slurm.forget(job_id)
    now = time.time  # noqa: TID251 -- a date
    monkeypatch.setattr(time, "time", lambda: now() + skew_s)
    assert make_launcher().submit_single_experiment(experiment("a")) == job_id
    assert list(slurm.tasks()) == [job_id]


@pytest.mark.parametrize(
    ("command", "reply"),
    [
        ("squeue", "something else\n"),
        ("squeue", "1|RUNNING\n"),
        ("sacct", "<html>busy</html>\n"),
        ("scontrol", "MaxArraySize = many\n"),
        ("sbatch", "Submitted\n"),
    ],
)
def test_replies_that_cannot_be_read(
    command: str, reply: str, make_launcher: Make, experiment: Make, slurm: FakeSlurm
) -> None:
    """Nothing is guessed from them; when Slurm talks sense again, all goes on, once."""
    launcher = make_launcher()
    first = launcher.submit_single_experiment(experiment("a"))
    launcher.wait([first], timeout_s=60)
    slurm.forget(first)
    slurm.configure(is_held=True)
    slurm.fail(command, "", times=2, status=0, stdout=reply, is_after=True)
    batch = [experiment(name) for name in "abc"]
    said = []
    for _ in range(4):
        try:
            result = launcher.submit_experiment_batch(batch)
        except UnreadableReplyError as error:
            said.append(str(error))
        else:
            said += [row.error for row in result.failed]
    assert bool(said) is (command != "sbatch")  # what that has submitted is looked up
    assert all("cannot parse the reply of" in (text or "") for text in said)
    assert result.failed == []
    assert result.job_ids[0] == first
    assert len(slurm.tasks()) == 3


def test_no_slurm_at_all(
    make_launcher: Make,
    experiment: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without Slurm's commands on PATH the error says where to run this."""
    launcher = make_launcher()
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "git").symlink_to(str(shutil.which("git")))
    monkeypatch.setenv("PATH", str(tools))
    with pytest.raises(
        SchedulerUnreachableError, match=r"there is no s\w+ on PATH: run this"
    ):
        launcher.submit_experiment_batch([experiment("a"), experiment("b")])


def test_a_locked_index(
    make_launcher: Make,
    experiment: Make,
    slurm: FakeSlurm,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While another git command is at work nothing is submitted; the error names the file."""
    monkeypatch.setattr("mtf_slurm.git.freeze._INDEX_LOCK_WAIT_S", 0.05)
    lock = project / ".git" / "index.lock"
    lock.touch()
    with pytest.raises(SnapshotError, match=r"index\.lock.*delete this file"):
        make_launcher().submit_single_experiment(experiment("e"))
    assert slurm.calls("sbatch") == []
    lock.unlink()
    make_launcher().submit_single_experiment(experiment("e"))


def test_templates_and_choices_that_do_not_go_together(project: Path) -> None:
    """What is for frozen code is refused where code is not frozen."""
    with pytest.raises(ValueError, match="for frozen code"):
        SLURMLauncher(project_root=project, freeze_code=False, push_to="origin")


@pytest.mark.parametrize("call", ["states", "cancel", "requeue", "bring_back", "wait"])
def test_one_id_is_no_list_of_ids(call: str, make_launcher: Make) -> None:
    """An id as a text would be asked for letter by letter: it is refused."""
    with pytest.raises(
        TypeError, match=r"job_ids is one id, '12': give a list, \['12'\]"
    ):
        getattr(make_launcher(), call)("12")


def test_one_line_is_no_list_of_lines(make_launcher: Make) -> None:
    """A setup as a text would be run letter by letter: it is refused."""
    with pytest.raises(TypeError, match=r"setup is one text, 'export A=1': give a list"):
        make_launcher(setup="export A=1")


IMPORTS = """\
import json, sys
import edited, ignored
with open("seen", "w", encoding="utf-8") as file:
    json.dump({"value": edited.VALUE, "ignored": ignored.__file__, "path": sys.path}, file)
"""


@pytest.fixture
def importing(project: Path) -> Path:
    """A project whose script imports a module of `lib`, and one that git ignores."""
    (project / "imports.py").write_text(IMPORTS, encoding="utf-8")
    for name, text in (("lib/edited.py", "VALUE = 1\n"), ("built/ignored.py", "")):
        (project / name).parent.mkdir()
        (project / name).write_text(text, encoding="utf-8")
    (project / ".gitignore").write_text("experiments\nbuilt\n", encoding="utf-8")
    return project


@pytest.mark.parametrize("is_link", [False, True])
def test_folders_of_the_project_that_are_imported_from(
    *,
    is_link: bool,
    importing: Path,
    make_launcher: Make,
    experiment: Make,
    slurm: FakeSlurm,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those in PYTHONPATH are the checkout's in the job, however they are named there.

    What git ignores is not frozen, and stays where it is; so does what is not the project's.
    """
    tmp_path = importing.parent
    (tmp_path / "link").symlink_to(importing)
    named = tmp_path / "link" if is_link else importing
    entries = [f"{named}/lib", f"{named}/built", "", str(tmp_path), "relative"]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(entries))
    slurm.configure(is_held=True)
    launcher = make_launcher(entry_point="imports.py")
    job_id = launcher.submit_single_experiment(experiment("e"))
    (importing / "lib" / "edited.py").write_text("VALUE = 2\n", encoding="utf-8")
    slurm.configure(is_held=False)
    assert launcher.wait([job_id], timeout_s=60) == ["succeeded"]
    text = (importing / "experiments" / "e" / "seen").read_text(encoding="utf-8")
    seen = json.loads(text)
    assert seen["value"] == 1
    assert seen["ignored"] == f"{named}/built/ignored.py"
    assert str(tmp_path) in seen["path"]
    assert f"{named}/lib" not in seen["path"]


def test_code_that_is_installed_to_be_edited(
    importing: Path,
    make_launcher: Make,
    experiment: Make,
    slurm: FakeSlurm,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A folder of the project that a `.pth` file names is the checkout's in the job."""
    packages = tmp_path / "packages"
    packages.mkdir()
    lines = f"{importing}/lib\n{importing}/built\n/none\n"
    (packages / "mine.pth").write_text(lines, encoding="utf-8")
    monkeypatch.setattr("site.getsitepackages", lambda: [str(packages)])
    # As that `.pth` would, were it one of the interpreter's own.
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}/more")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "sitecustomize.py").write_text(
        f"import site\nsite.addsitedir({str(packages)!r})\n", encoding="utf-8"
    )
    slurm.configure(is_held=True)
    launcher = make_launcher(entry_point="imports.py")
    job_id = launcher.submit_single_experiment(experiment("e"))
    (importing / "lib" / "edited.py").write_text("VALUE = 2\n", encoding="utf-8")
    slurm.configure(is_held=False)
    assert launcher.wait([job_id], timeout_s=60) == ["succeeded"]
    text = (importing / "experiments" / "e" / "seen").read_text(encoding="utf-8")
    seen = json.loads(text)
    assert seen["value"] == 1
    assert seen["ignored"] == f"{importing}/built/ignored.py"
    assert f"{importing}/lib" in seen["path"]


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_reply_that_is_cut_off(
    *, is_lost: bool, make_launcher: Make, experiment: Make, slurm: FakeSlurm
) -> None:
    """It makes no waiting job another's, nor one whose answer was lost none: none runs twice."""
    slurm.configure(is_held=True)
    launcher = make_launcher()
    batch = [experiment("a"), experiment("b", do="fail")]
    if is_lost:
        slurm.fail("sbatch", times=1, is_after=True)
    else:
        job_ids = launcher.submit_experiment_batch(batch).job_ids
    squeue = slurm.folder / "bin" / "squeue"
    text = squeue.read_text(encoding="utf-8")
    assert text.count("\nexec ") == 1
    cut = text.replace("\nexec ", "\n").rstrip() + " | head -c -5\n"
    squeue.write_text(cut, encoding="utf-8")
    if is_lost:
        result = launcher.submit_experiment_batch(batch)
        assert {row.job_id for row in result} == {None}
        assert all("cannot parse the reply of" in (row.error or "") for row in result)
    for _ in range(2):
        with pytest.raises(UnreadableReplyError, match="squeue"):
            launcher.submit_experiment_batch(batch)
    squeue.write_text(text, encoding="utf-8")
    again = launcher.submit_experiment_batch(batch)
    assert again.failed == []
    assert is_lost or again.job_ids == job_ids
    assert sorted(slurm.tasks()) == sorted(again.job_ids)
