from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mtf_slurm.command import Commands
from mtf_slurm.errors import SnapshotError
from mtf_slurm.git import GitManager
from mtf_slurm.launcher import SLURMLauncher
from mtf_slurm.testing import FakeSlurm

Make = Callable[..., Any]


def dependencies(slurm: FakeSlurm) -> dict[str, str]:
    """Return what each task waits for."""
    tasks = slurm.tasks()
    return {i: task["options"].get("dependency", "") for i, task in tasks.items()}


def git(folder: Path, *args: str) -> str:
    """Run git as a user does."""
    user = ("-c", "user.name=U", "-c", "user.email=u@example.org")
    done = subprocess.run(
        ["git", *user, *args],
        cwd=folder,
        check=True,
        timeout=60,
        capture_output=True,
        encoding="utf-8",
    )
    return done.stdout.strip()


def test_experiments_that_wait_for_others(
    make_launcher: Make,
    experiment: Make,
    slurm: FakeSlurm,
) -> None:
    """They begin when what they wait for has come true, and are cancelled if it cannot."""
    launcher = make_launcher()
    batch = [
        experiment("train"),
        experiment("prepare"),
        experiment("broken", do="fail"),
        experiment("never"),
        experiment("mend"),
        experiment("clean"),
    ]
    after = {
        "train": {"prepare": "afterok"},
        "never": {"broken": "afterok"},
        "mend": {"broken": "afternotok"},
        "clean": {"train": "afterany", "never": "afterany"},
    }
    result = launcher.submit_experiment_batch(batch, after=after)
    assert result.failed == []
    states = launcher.wait(result.job_ids, timeout_s=60)
    ok, bad, off = "succeeded", "failed", "cancelled"
    assert states == [ok, ok, bad, off, ok, ok]
    ids = dict(zip([e.experiment_name for e in batch], result.job_ids, strict=True))
    runs = slurm.tasks()
    assert runs[ids["train"]]["started"] >= runs[ids["prepare"]]["ended"]
    assert runs[ids["clean"]]["started"] >= runs[ids["train"]]["ended"]


def test_an_array_that_waits_for_another_one_for_one(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm
) -> None:
    """As many experiments that wait for as many others are an array with `aftercorr`."""
    slurm.configure(is_held=True)
    launcher = make_launcher()
    firsts = [experiment(f"a{i}", do="fail" if i == 1 else "succeed") for i in range(3)]
    seconds = [experiment(f"b{i}") for i in range(3)]
    after = {f"b{i}": {f"a{i}": "afterok"} for i in range(3)}
    result = launcher.submit_experiment_batch([*seconds, *firsts], after=after)
    assert result.job_ids == ["4_0", "4_1", "4_2", "1_0", "1_1", "1_2"]
    assert dependencies(slurm)["4_0"] == "aftercorr:1"
    slurm.configure(is_held=False)
    states = launcher.wait(result.job_ids, timeout_s=60)
    assert states[:3] == ["succeeded", "cancelled", "succeeded"]
    # Of an array that is there already, in part: each waits for its own task.
    slurm.configure(is_held=True)
    again = launcher.submit_experiment_batch([*firsts, *seconds], after=after)
    rerun = again.job_ids[1]
    assert dependencies(slurm)[again.job_ids[4]] == f"afterok:{rerun}"


def test_experiments_that_wait_for_earlier_ones(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm
) -> None:
    """Those have jobs already, or have ended: what came true is not waited for."""
    launcher = make_launcher()
    done, failed = (
        launcher.submit_single_experiment(experiment(name, do=do))
        for name, do in (("done", "succeed"), ("failed", "fail"))
    )
    launcher.wait([done, failed], timeout_s=60)
    slurm.configure(is_held=True)
    waits = launcher.submit_single_experiment(experiment("waits"))
    batch = [experiment(name) for name in "abcd"]
    after = {
        "a": {"done": "afterok", "waits": "afterany"},
        "b": {"failed": "afterok"},
        "c": {"nobody": "afterok"},
        "d": {"b": "afterok"},
    }
    result = launcher.submit_experiment_batch(batch, after=after)
    assert dependencies(slurm)[result.job_ids[0]] == f"afterany:{waits}"
    errors = [row.error or "" for row in result.failed]
    assert f"failed (afterok), which has failed: job {failed}" in errors[0]
    assert "nobody, which has no job here" in errors[1]
    assert "b, which was not submitted: it waits for failed" in errors[2]


def test_one_that_is_waited_for_is_not_packed(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm
) -> None:
    """Slurm knows tasks, so an experiment that others wait for has one of its own."""
    slurm.configure(is_held=True)
    batch = [experiment(name) for name in ("a", "b", "c", "d")]
    result = make_launcher(num_packed=2).submit_experiment_batch(
        batch, after={"d": {"c": "afterok"}}
    )
    assert result.job_ids == ["2.0", "2.1", "1", "3"]


def test_max_running_holds_for_split_batches(
    make_launcher: Make,
    experiment: Make,
    slurm: FakeSlurm,
) -> None:
    """Arrays share the limit, or wait for each other; no more ever run at once."""
    slurm.configure(max_array_size=2)
    launcher = make_launcher()
    batch = [experiment(f"e{i}", max_running=2) for i in range(5)]
    result = launcher.submit_experiment_batch(batch)
    tasks = slurm.tasks()
    assert [tasks[i]["limit"] for i in result.job_ids] == [1, 1, 1, 1, None]
    assert list(dependencies(slurm).values()) == ["", "", "", "", "afterany:1"]
    assert set(launcher.wait(result.job_ids, timeout_s=60)) == {"succeeded"}
    runs = list(slurm.tasks().values())
    for run in runs:
        others = [r for r in runs if r["started"] <= run["started"] < r["ended"]]
        assert len(others) <= 2


def test_packed_experiments_have_the_time_of_all(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm, project: Path
) -> None:
    """A task that runs three asks for three times the time limit of one."""
    slurm.configure(is_held=True)
    batch = [experiment(name, time="20:00:30") for name in "abc"]
    make_launcher(num_packed=3).submit_experiment_batch(batch)
    assert slurm.tasks()["1"]["options"]["time"] == "2-12:01:30"
    [path] = (project / "experiments").glob(".slurm/*/settings.sh")
    assert f"time_s={60 * 3600 + 90}\n" in path.read_text(encoding="utf-8")


def test_what_ran_is_recorded(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm, project: Path
) -> None:
    """An experiment's folder has its branch and its command."""
    slurm.configure(is_held=True)
    make_launcher(python="python3").submit_single_experiment(experiment("e"))
    folder = project / "experiments" / "e"
    said = json.loads((folder / "submission.json").read_text(encoding="utf-8"))
    config = str(folder / "config.yaml")
    assert said["command"] == ["python3", "$MTF_CODE_DIR/train.py", config]
    assert said["branch"] in git(project, "branch", "--list", "slurm-job/*")


def test_a_record_that_cannot_be_written_stops_one(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm, project: Path
) -> None:
    """An experiment whose folder takes no record is refused; the others are submitted."""
    slurm.configure(is_held=True)
    (project / "experiments" / "b" / "submission.json").mkdir(parents=True)
    batch = [experiment(name) for name in "abc"]
    result = make_launcher().submit_experiment_batch(batch)
    assert [row.job_id for row in result] == ["1_0", None, "1_1"]
    assert "cannot be recorded" in (result.failed[0].error or "")
    assert make_launcher().submit_experiment_batch([experiment("b")]).job_ids == []
    assert len(slurm.calls("sbatch")) == 1


def config_of(project: Path, name: str) -> dict[str, Any]:
    """Return the config that lies in an experiment's folder."""
    path = project / "experiments" / name / "config.yaml"
    return dict(json.loads(path.read_text(encoding="utf-8")))


def test_a_first_submission_whose_config_is_refused(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm, project: Path
) -> None:
    """The reason is the true one, also where no folder of experiments is there yet."""
    odd = experiment("odd")
    odd.values["lr"] = float("nan")
    [row] = make_launcher().submit_experiment_batch([odd])
    assert "its config is not what JSON can hold: Out of range float" in row.error
    assert not (project / "experiments").exists()
    assert slurm.calls() == []


@pytest.mark.parametrize("fault", ["nan", "full", "folder", "None", "raises"])
def test_a_config_that_cannot_be_written_stops_one(
    fault: str, make_launcher: Make, experiment: Make, slurm: FakeSlurm, project: Path
) -> None:
    """It is not run with the config that it had before; no other row is touched."""
    launcher = make_launcher()
    first = launcher.submit_single_experiment(experiment("b", do="fail"))
    assert launcher.wait([first], timeout_s=60) == ["failed"]
    slurm.configure(is_held=True)
    odd, folder = experiment("b"), project / "experiments" / "b"
    if fault == "nan":
        odd.values["lr"] = float("nan")
    elif fault == "full":
        (folder / f".config.{os.getpid()}").symlink_to("/dev/full")
    elif fault == "folder":
        (folder / "config.yaml").unlink()
        (folder / "config.yaml" / "x").mkdir(parents=True)
    else:
        odd = Broken(fault)
    result = launcher.submit_experiment_batch([experiment("a"), odd, experiment("c")])
    said = {
        "nan": "not what JSON can hold",
        "full": "config.yaml cannot be written: No space left on device",
        "folder": "config.yaml cannot be written: Is a directory",
        "None": "its config is dumped as NoneType, which is no mapping",
        "raises": "its config cannot be dumped: ZeroDivisionError: division by zero",
    }
    assert [row.job_id for row in result] == ["2_0", None, "2_1"]
    assert said[fault] in (result.rows[1].error or "")
    assert [task["name"] for task in slurm.tasks().values()] == ["b", "a", "a"]


class Broken:
    """An experiment whose config cannot be had."""

    experiment_name = "b"

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def model_dump(self, *, mode: str) -> object:
        assert mode == "json"
        return None if self.fault == "None" else 1 / 0


def test_a_job_that_is_kept_has_the_config_that_was_given(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm, project: Path, wait_for: Make
) -> None:
    """Pending, running or succeeded: with another config an experiment is refused.

    What it runs with stays, no other row is touched, and who waits for it is refused, too.
    """
    launcher = make_launcher()
    done, runs = launcher.submit_experiment_batch(
        [experiment("done"), experiment("runs", do="wait")]
    ).job_ids
    wait_for(lambda: launcher.states([done, runs]) == ["succeeded", "running"])
    slurm.configure(is_held=True)
    waits = launcher.submit_single_experiment(experiment("waits"))
    same = [experiment("done"), experiment("runs", do="wait"), experiment("waits")]
    assert launcher.submit_experiment_batch(same).job_ids == [done, runs, waits]
    changed = [experiment(one.experiment_name, do="fail") for one in same]
    result = launcher.submit_experiment_batch(
        [*changed, experiment("other"), experiment("behind")],
        after={"behind": {"done": "afterok"}},
    )
    assert [row.job_id for row in result] == [None, None, None, "4", None]
    for row, job_id, state in zip(
        result, (done, runs, waits), ("succeeded", "running", "pending"), strict=False
    ):
        assert f"its job {job_id} is {state} with another config" in (row.error or "")
    assert "it waits for done, which was not submitted" in (result.rows[4].error or "")
    dos = [config_of(project, one.experiment_name)["do"] for one in same]
    assert dos == ["succeed", "wait", "succeed"]
    assert len(slurm.tasks()) == 4


def test_a_failed_experiment_that_is_repaired(
    make_launcher: Make, experiment: Make, project: Path
) -> None:
    """Submitted again with another config, it runs with that one."""
    launcher = make_launcher()
    for do, state in (("fail", "failed"), ("succeed", "succeeded")):
        job_id = launcher.submit_single_experiment(experiment("e", do=do))
        assert config_of(project, "e")["do"] == do
        assert launcher.wait([job_id], timeout_s=60) == [state]


def test_one_name_with_two_configs_is_refused(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm, project: Path
) -> None:
    """Neither is run, nor written: which of them is meant is not guessed."""
    slurm.configure(is_held=True)
    odd = experiment("b")
    odd.values["lr"] = float("inf")
    batch = [experiment("a"), experiment("a", do="fail"), odd, experiment("b")]
    result = make_launcher().submit_experiment_batch([*batch, experiment("c")])
    assert [row.job_id for row in result] == [None, None, None, None, "1"]
    assert "it comes twice, with different configs" in (result.rows[0].error or "")
    assert not (project / "experiments" / "a").exists()
    assert not (project / "experiments" / "b").exists()


def test_a_config_that_was_not_written_stops_one(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm, tmp_path: Path
) -> None:
    """Whom `submit` finds without a config, it refuses; no other row is touched."""
    slurm.configure(is_held=True)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "config.yaml").write_text("{}", encoding="utf-8")
    batch = [experiment("there"), experiment("none")]
    result = make_launcher().submit(batch, folder=tmp_path)
    assert [row.job_id for row in result] == ["1", None]
    assert "none/config.yaml is not there: write it first" in (result.rows[1].error or "")


def lose_state(slurm: FakeSlurm) -> None:
    """Restart the controller without its last state: ids begin anew."""
    with slurm._store.open() as state:
        state |= {"next_id": 1, "tasks": {}}


def test_an_id_that_is_given_twice_in_a_batch(
    make_launcher: Make,
    experiment: Make,
    slurm: FakeSlurm,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whose job was lost for it says so, those behind it too, and is submitted again."""
    slurm.configure(is_held=True)
    once = Commands.once

    def losing(self: Commands, argv: Sequence[str], **more: Any) -> str:
        if argv[0] == "sbatch":
            lose_state(slurm)
        return once(self, argv, **more)

    batch = [experiment("a"), experiment("b", nodes=2)]
    with monkeypatch.context() as patch:
        patch.setattr(Commands, "once", losing)
        result = make_launcher().submit_experiment_batch(batch)
    assert [row.job_id for row in result] == [None, "1"]
    assert "Slurm lost its job, and gave the id to another" in (
        result.rows[0].error or ""
    )
    assert make_launcher().submit_experiment_batch(batch).job_ids == ["2", "1"]
    assert make_launcher().submit_experiment_batch(batch).job_ids == ["2", "1"]
    assert [task["name"] for task in slurm.tasks().values()] == ["b", "a"]


def test_an_answer_with_the_id_of_another(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm
) -> None:
    """The first that had it is no more taken for submitted."""
    slurm.configure(is_held=True)
    launcher = make_launcher()
    [kept] = launcher.submit_experiment_batch([experiment("kept")]).job_ids
    slurm.fail("sbatch", "", status=0, stdout=f"{kept}\n")
    result = launcher.submit_experiment_batch([experiment("kept"), experiment("b")])
    assert [row.job_id for row in result] == [None, kept]
    assert "Slurm lost its job" in (result.rows[0].error or "")


@pytest.mark.parametrize("is_ended", [False, True])
@pytest.mark.parametrize("where", ["experiments", "others"])
def test_an_id_that_is_given_again_later(
    where: str,
    *,
    is_ended: bool,
    make_launcher: Make,
    experiment: Make,
    slurm: FakeSlurm,
    project: Path,
) -> None:
    """The state of the later job is not the earlier one's, wherever each lies.

    One that had ended keeps its job by what it left; one that had not is submitted again.
    """
    for folder in {project / "experiments" / "a", project / where / "b"}:
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text('{"do": "succeed"}', encoding="utf-8")
    launcher, first = make_launcher(), project / "experiments"
    slurm.configure(is_held=not is_ended)
    assert launcher.submit([experiment("a")], folder=first).job_ids == ["1"]
    if is_ended:
        launcher.wait(["1"], timeout_s=60)
    lose_state(slurm)
    slurm.configure(is_held=False)
    later = launcher.submit([experiment("b")], folder=project / where)
    assert later.job_ids == ["1"]
    launcher.wait(["1"], timeout_s=60)
    for path in first.glob(".slurm/*/job_id"):
        os.utime(path, (1, 1))  # long ago: not one that is late
    slurm.configure(is_held=True)
    again = launcher.submit([experiment("a")], folder=first)
    assert again.job_ids == ["1" if is_ended else "2"]
    count = [len(list(first.glob(".slurm/0*"))), len(slurm.tasks())]
    assert count == [1 + (where == "experiments") + (not is_ended), 1 + (not is_ended)]


def test_branches_are_pushed_before_jobs_are_submitted(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm, project: Path, tmp_path: Path
) -> None:
    """By choice; if the remote cannot be reached, nothing is submitted."""
    slurm.configure(is_held=True)
    with pytest.raises(SnapshotError, match="nowhere"):
        make_launcher(push_to="nowhere").submit_single_experiment(experiment("e"))
    assert slurm.calls("sbatch") == []
    git(tmp_path, "init", "--quiet", "--bare", "remote.git")
    git(project, "remote", "add", "there", str(tmp_path / "remote.git"))
    make_launcher(push_to="there").submit_single_experiment(experiment("e"))
    assert "slurm-job/e/" in git(tmp_path / "remote.git", "branch", "--list")
    assert len(slurm.tasks()) == 1


def test_a_template_that_writes_no_paths(
    make_launcher: Make, experiment: Make, tmp_path: Path, project: Path
) -> None:
    """What an experiment writes is in its folder all the same."""
    path = tmp_path / "mine.sbatch"
    path.write_text("#!/bin/bash\n{{ run }}\n", encoding="utf-8")
    launcher = make_launcher(template_path=path)
    job_id = launcher.submit_single_experiment(experiment("e"))
    assert launcher.wait([job_id], timeout_s=60) == ["succeeded"]
    out = project / "experiments" / "e" / f"{job_id}.out"
    assert out.read_text(encoding="utf-8") == "hello\n"


def test_a_folder_in_no_repository_is_archived_by_choice(
    experiment: Make, slurm: FakeSlurm, tmp_path: Path
) -> None:
    """Its code is frozen in a repository of its own, and the job runs that."""
    assert slurm.calls() == []
    root = tmp_path / "plain"
    root.mkdir()
    script = root / "t.py"
    script.write_text("open('one', 'w').close()", encoding="utf-8")
    slurm.configure(is_held=True)
    launcher = SLURMLauncher(
        project_root=root,
        entry_point="t.py",
        git=GitManager(root, archive=tmp_path / "archive"),
        poll_interval_s=0.05,
    )
    job_id = launcher.submit_single_experiment(experiment("e"))
    script.write_text("open('two', 'w').close()", encoding="utf-8")
    slurm.configure(is_held=False)
    assert launcher.wait([job_id], timeout_s=60) == ["succeeded"]
    assert (root / "experiments" / "e" / "one").is_file()


def test_a_repository_that_cannot_be_frozen(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm, project: Path
) -> None:
    """In the middle of a merge nothing is submitted, and the error says what to do."""
    (project / "train.py").write_text("one = 1\n", encoding="utf-8")
    git(project, "checkout", "-qb", "other")
    git(project, "commit", "-qam", "one")
    git(project, "checkout", "-q", "-")
    (project / "train.py").write_text("two = 2\n", encoding="utf-8")
    git(project, "commit", "-qam", "two")
    with pytest.raises(subprocess.CalledProcessError):
        git(project, "merge", "other")
    with pytest.raises(SnapshotError, match=r"middle of a merge.*git merge --abort"):
        make_launcher().submit_single_experiment(experiment("e"))
    assert slurm.calls("sbatch") == []
