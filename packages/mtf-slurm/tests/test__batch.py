from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtf_slurm.errors import SnapshotError, TemplateError
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


def test_a_config_that_cannot_be_written_stops_one(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm, project: Path
) -> None:
    """A folder that cannot be made, or values that JSON has not, touch no other row."""
    slurm.configure(is_held=True)
    (project / "experiments").mkdir()
    (project / "experiments" / "b").touch()
    odd = experiment("c")
    odd.values["lr"] = float("nan")
    result = make_launcher().submit_experiment_batch(
        [experiment("a"), experiment("b"), odd]
    )
    assert [row.job_id for row in result] == ["1", None, None]
    assert all("config.yaml" in (row.error or "") for row in result.failed)


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


def test_nodes_that_are_left_out(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm, project: Path
) -> None:
    """They join those that an experiment leaves out; a name that is none is refused."""
    slurm.configure(is_held=True)
    asked: list[Path] = []

    def bad_nodes(folder: Path) -> list[str]:
        asked.append(folder)
        return ["n2", "n1", "n2"]

    launcher = make_launcher(excluded_nodes=bad_nodes)
    batch = [experiment("a"), experiment("b", exclude="n[7-9]")]
    assert launcher.submit_experiment_batch(batch).failed == []
    options = [task["options"]["exclude"] for task in slurm.tasks().values()]
    assert options == ["n1,n2", "n[7-9],n1,n2"]
    assert asked == [project / "experiments"]
    with pytest.raises(ValueError, match="no name of a node"):
        make_launcher(excluded_nodes=lambda _: ["n1;x"]).submit_experiment_batch(batch)


def test_what_a_template_passes_over_is_refused(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm, tmp_path: Path
) -> None:
    """A setting that the script would not have is an error, not silently lost."""
    slurm.configure(is_held=True)
    path = tmp_path / "mine.sbatch"
    path.write_text("#!/bin/bash\n#SBATCH --job-name=x\n{{ run }}\n", encoding="utf-8")
    launcher = make_launcher(template_path=path)
    batch = [experiment("a", qos="high"), experiment("b"), experiment("c")]
    result = launcher.submit_experiment_batch(batch, after={"c": {"b": "afterok"}})
    assert [row.job_id for row in result] == [None, "1", None]
    said = [row.error or "" for row in result.failed]
    assert "slurm.qos is set, and the template does not write {{ qos }}" in said[0]
    assert "slurm.dependencies is set" in said[1]
    assert slurm.tasks()["1"]["name"] == "b"
    with pytest.raises(TemplateError, match=r"slurm\.gpus_per_node .*{{ gpus }} or"):
        launcher.generate_sbatch_script(experiment("d", gpus_per_node=1))


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


def test_experiments_within_the_project_are_not_frozen(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm, project: Path
) -> None:
    """Wherever they lie, a snapshot has the code, and not what experiments made."""
    slurm.configure(is_held=True)
    launcher = make_launcher(experiments_folder=project / "runs[1]")
    launcher.submit_single_experiment(experiment("a"))
    launcher.submit_single_experiment(experiment("b"))
    said = json.loads((project / "runs[1]/b/code.json").read_text(encoding="utf-8"))
    assert said["dirty"] == []


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
