"""``task.sh``, by way of jobs that run it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtf_slurm import arrays
from mtf_slurm.testing import FakeSlurm

Make = Callable[..., Any]
WaitFor = Callable[[Callable[[], object]], None]
pytestmark = pytest.mark.slow


def starts(folder: Path) -> int:
    """Return how often an experiment was started."""
    path = folder / "starts"
    return len(path.read_text(encoding="utf-8").split()) if path.exists() else 0


@pytest.mark.parametrize("do", ["plain", "stubborn"])
def test_programs_that_do_not_save_come_back(
    do: str,
    make_launcher: Make,
    experiment: Make,
    slurm: FakeSlurm,
    project: Path,
    wait_for: WaitFor,
) -> None:
    """Preempted, one dies of the signal and one must be killed: neither is a success."""
    slurm.configure(grace_s=0.5 if do == "stubborn" else 30.0, kill_wait_s=0.5)
    launcher = make_launcher()
    job_id = launcher.submit_single_experiment(experiment("e", do=do))
    folder = project / "experiments" / "e"
    wait_for(lambda: starts(folder) == 1)
    slurm.preempt(job_id)
    wait_for(lambda: starts(folder) == 2)
    assert launcher.wait([job_id], timeout_s=60) == ["succeeded"]
    assert slurm.tasks()[job_id]["restarts"] == 1


@pytest.mark.parametrize("count", [1, 2])
def test_what_a_job_runs_on_is_what_its_interpreter_says(
    count: int, make_launcher: Make, experiment: Make, project: Path
) -> None:
    """Not what submits it; of several in a task, each has the same file."""
    venv = project.parent / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    launcher = make_launcher(num_packed=count, defaults={"venv": str(venv)})
    ids = launcher.submit_experiment_batch([*map(experiment, "ab"[:count])]).job_ids
    assert launcher.wait(ids, timeout_s=60) == ["succeeded"] * count
    folder = project / "experiments"
    files = [
        folder / name / f"{job_id}.environment.json"
        for name, job_id in zip("ab", ids, strict=False)
    ]
    said = json.loads(files[0].read_text(encoding="utf-8"))
    assert (said["executable"], said["packages"]) == (f"{venv}/bin/python", [])
    assert len({path.stat().st_ino for path in files}) == 1


def test_what_an_interpreter_leaves_behind_is_not_waited_for(
    make_launcher: Make, experiment: Make, project: Path, wait_for: WaitFor
) -> None:
    """A process that keeps its output open holds up no job."""
    python = project.parent / "python"
    pids = project.parent / "pids"
    python.write_text(
        f'#!/bin/bash\nif [ "$1" = -E ]; then sleep 300 & echo $! >>{pids}; exit 0; fi\n'
        f'exec {sys.executable} "$@"\n',
        encoding="utf-8",
    )
    python.chmod(0o700)
    launcher = make_launcher(python=str(python), freeze_code=False)
    launcher.submit_single_experiment(experiment("e"))
    wait_for((project / "experiments" / "e" / "starts").exists)
    for pid in pids.read_text(encoding="ascii").split():
        os.kill(int(pid), signal.SIGKILL)


def test_a_record_that_cannot_be_written_ends_no_job(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm, project: Path
) -> None:
    """It is missing, which is said, and the experiment runs."""
    slurm.configure(is_held=True)
    launcher = make_launcher()
    job_id = launcher.submit_single_experiment(experiment("e"))
    folder = project / "experiments" / "e"
    (folder / f"{job_id}.environment.json" / "in the way").mkdir(parents=True)
    slurm.configure(is_held=False)
    assert launcher.wait([job_id], timeout_s=60) == ["succeeded"]
    said = (folder / f"{job_id}.err").read_text(encoding="utf-8")
    assert "it runs on is not recorded: environment.py: IsADirectory" in said


def test_a_short_job_that_is_preempted_comes_back(
    make_launcher: Make,
    experiment: Make,
    slurm: FakeSlurm,
    project: Path,
    wait_for: WaitFor,
) -> None:
    """However short its time limit is, a preemption is not taken for its end."""
    slurm.configure(grace_s=30.0)
    launcher = make_launcher()
    job_id = launcher.submit_single_experiment(experiment("e", do="wait", time="1"))
    folder = project / "experiments" / "e"
    wait_for(lambda: starts(folder) == 1)
    slurm.preempt(job_id)
    wait_for(lambda: starts(folder) == 2)
    assert launcher.wait([job_id], timeout_s=60) == ["succeeded"]


def test_of_several_in_a_task_only_the_interrupted_one_runs_again(
    make_launcher: Make,
    experiment: Make,
    slurm: FakeSlurm,
    project: Path,
    wait_for: WaitFor,
) -> None:
    """What succeeded or failed before the task came back has ended."""
    launcher = make_launcher(num_packed=4)
    batch = [
        experiment("a"),
        experiment("b", do="fail"),
        experiment("c", do="wait"),
        experiment("d"),
    ]
    ids = launcher.submit_experiment_batch(batch).job_ids
    folder = project / "experiments"
    wait_for(lambda: starts(folder / "c") == 1)
    slurm.preempt("1")
    wait_for(lambda: starts(folder / "c") == 2)
    ended = ["succeeded", "failed", "succeeded", "succeeded"]
    assert launcher.wait(ids, timeout_s=60) == ended
    assert [starts(folder / name) for name in "abcd"] == [1, 1, 2, 1]
    launcher.requeue([ids[1]])
    wait_for(lambda: starts(folder / "b") == 2)
    assert launcher.wait(ids, timeout_s=60) == ended
    assert [starts(folder / name) for name in "abcd"] == [1, 2, 2, 1]


def test_code_that_is_gone_when_a_job_comes_back_is_a_failure(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm, project: Path
) -> None:
    """It asks to be continued no more, and is not brought back again and again."""
    slurm.configure(has_scontrol_on_nodes=False)
    launcher = make_launcher()
    job_id = launcher.submit_single_experiment(experiment("e", do="again"))
    while not launcher.states([job_id])[0].is_final:
        pass
    (project / ".git").rename(project / "gone")
    assert launcher.wait([job_id], timeout_s=60) == ["failed"]
    assert slurm.tasks()[job_id]["restarts"] == 1
    assert launcher.bring_back([job_id]) == []


def test_several_in_a_task_are_cancelled(
    make_launcher: Make,
    experiment: Make,
    slurm: FakeSlurm,
    project: Path,
    wait_for: WaitFor,
) -> None:
    """The one that ran and those behind it are cancelled, and run no more."""
    launcher = make_launcher(num_packed=3)
    batch = [experiment("a"), experiment("b", do="wait"), experiment("c")]
    ids = launcher.submit_experiment_batch(batch).job_ids
    folder = project / "experiments"
    wait_for(lambda: starts(folder / "b") == 1)
    launcher.cancel(ids)
    wait_for(lambda: slurm.tasks()["1"]["state"] == "CANCELLED")
    assert launcher.states(ids) == ["succeeded", "cancelled", "cancelled"]
    assert starts(folder / "c") == 0


def test_an_id_that_was_another_jobs(
    make_launcher: Make,
    experiment: Make,
    slurm: FakeSlurm,
    project: Path,
) -> None:
    """A file of an earlier job with this id, of a cluster made anew, ends nothing."""
    folder = project / "experiments" / "e"
    folder.mkdir(parents=True)
    (folder / "1.exit").write_text("0\n", encoding="utf-8")
    assert slurm.calls() == []
    launcher = make_launcher()
    job_id = launcher.submit_single_experiment(experiment("e", do="fail"))
    assert job_id == "1"
    assert launcher.wait([job_id], timeout_s=60) == ["failed"]
    assert starts(folder) == 1


@pytest.mark.parametrize("launch", ["srun", "none"])
@pytest.mark.parametrize(
    ("event", "asked", "word"),
    [
        ("time_out", {"time": "1"}, "timeout"),
        ("time_out", {"time": "1", "continue_on_timeout": True}, "timeout"),
        ("preempt", {"time": "1-0"}, "preempted"),
        ("cancel", {"time": "1-0"}, "cancelled"),
    ],
)
def test_why_what_saved_was_ended(  # noqa: PLR0913 -- fixtures
    event: str,
    asked: dict[str, Any],
    word: str,
    launch: str,
    *,
    make_launcher: Make,
    experiment: Make,
    slurm: FakeSlurm,
    project: Path,
    wait_for: WaitFor,
) -> None:
    """It is told by what the job left, also when Slurm has forgotten it."""
    # Without steps, the first that comes of a preemption is the end of its grace.
    is_late = (event, launch) == ("preempt", "none")
    slurm.configure(grace_s=0.1 if is_late else 30.0, kill_wait_s=30.0)
    launcher = make_launcher()
    saves = experiment("e", do="wait", requeue=False, launch=launch, **asked)
    job_id = launcher.submit_single_experiment(saves)
    folder = project / "experiments" / "e"
    wait_for(lambda: starts(folder) == 1)
    if event == "cancel":
        launcher.cancel([job_id])
    else:
        getattr(slurm, event)(job_id)
    assert launcher.wait([job_id], timeout_s=60) == [word]
    [job] = arrays.jobs_in(project / "experiments")
    text = (folder / f"{job_id}.exit").read_text(encoding="ascii")
    assert text == f"75 {job.token} {word}\n"
    slurm.configure(has_accounting=False)
    slurm.forget(job_id)
    assert launcher.states([job_id]) == [word]
    assert starts(folder) == 1


def test_what_asks_to_be_continued_by_itself_was_not_ended(
    make_launcher: Make, experiment: Make, project: Path
) -> None:
    """Of one that may not come back, the file has no word, and the status tells."""
    launcher = make_launcher()
    asked = experiment("e", do="again", requeue=False, time="1-0")
    job_id = launcher.submit_single_experiment(asked)
    assert launcher.wait([job_id], timeout_s=60) == ["preempted"]
    [job] = arrays.jobs_in(project / "experiments")
    text = (project / "experiments" / "e" / f"{job_id}.exit").read_text(encoding="ascii")
    assert text.split() == ["75", job.token]


@pytest.mark.parametrize("left", ["0 0123456789abcdef", "0"])
def test_of_several_in_a_task_a_file_of_another_job_ends_none(
    left: str,
    make_launcher: Make,
    experiment: Make,
    slurm: FakeSlurm,
    project: Path,
    wait_for: WaitFor,
) -> None:
    """When the task comes back, what has not run yet does, whatever lies in its folder."""
    launcher = make_launcher(num_packed=2)
    batch = [experiment("a", do="wait"), experiment("b")]
    ids = launcher.submit_experiment_batch(batch).job_ids
    folder = project / "experiments"
    wait_for(lambda: starts(folder / "a") == 1)
    (folder / "b" / f"{ids[1]}.exit").write_text(f"{left}\n", encoding="ascii")
    slurm.preempt("1")
    wait_for(lambda: starts(folder / "a") == 2)
    wait_for(lambda: slurm.tasks()["1"]["state"] == "COMPLETED")
    assert [starts(folder / name) for name in "ab"] == [2, 1]
    assert launcher.states(ids) == ["succeeded", "succeeded"]


SHOWS = """\
import json, os, sys
names = ("MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MINE")
said = {name: os.environ.get(name) for name in names} | {"prefix": sys.prefix}
rank = os.environ.get("SLURM_PROCID", "0")
with open(f"said{rank}", "w", encoding="utf-8") as file:
    json.dump(said, file)
"""


def said_by(folder: Path, rank: int = 0) -> dict[str, Any]:
    """Return what a process saw."""
    return dict(json.loads((folder / f"said{rank}").read_text(encoding="utf-8")))


def test_two_processes_meet(
    make_launcher: Make,
    experiment: Make,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each has its rank, one address and a port where nobody listens; none is inherited."""
    (project / "shows.py").write_text(SHOWS, encoding="utf-8")
    monkeypatch.setenv("MASTER_ADDR", "elsewhere")
    monkeypatch.setenv("RANK", "7")
    launcher = make_launcher(entry_point="shows.py")
    with socket.create_server(("127.0.0.1", 12001), reuse_port=True):
        job_id = launcher.submit_single_experiment(experiment("e", ntasks_per_node=2))
        assert launcher.wait([job_id], timeout_s=60) == ["succeeded"]
    folder = project / "experiments" / "e"
    seen = [said_by(folder, rank) for rank in (0, 1)]
    assert [said["RANK"] for said in seen] == ["0", "1"]
    assert {said["MASTER_ADDR"] for said in seen} == {"127.0.0.1"}
    [port] = {int(said["MASTER_PORT"]) for said in seen}
    assert 12001 < port < 12100
    alone = launcher.submit_single_experiment(experiment("alone"))
    assert launcher.wait([alone], timeout_s=60) == ["succeeded"]
    assert said_by(project / "experiments" / "alone")["RANK"] is None


def test_a_virtual_environment(
    make_launcher: Make, experiment: Make, project: Path, tmp_path: Path
) -> None:
    """Its interpreter runs the experiment; one that is not there stops the job, and says so."""
    venv = tmp_path / "an env"
    argv = [sys.executable, "-m", "venv", "--without-pip", "--symlinks", str(venv)]
    subprocess.run(argv, check=True, timeout=120)
    (project / "shows.py").write_text(SHOWS, encoding="utf-8")
    launcher = make_launcher(entry_point="shows.py", setup=["export MINE=1"])
    batch = [experiment("good", venv=str(venv)), experiment("bad", venv="/none")]
    ids = launcher.submit_experiment_batch(batch).job_ids
    assert launcher.wait(ids, timeout_s=60) == ["succeeded", "failed"]
    folder = project / "experiments"
    said = said_by(folder / "good")
    assert (Path(said["prefix"]), said["MINE"]) == (venv, "1")
    err = (folder / "bad" / f"{ids[1]}.err").read_text(encoding="utf-8")
    assert "/none/bin/activate: No such file" in err
    assert not (folder / "bad" / "said0").exists()


def test_modules_conda_and_containers_are_called(
    make_launcher: Make,
    experiment: Make,
    project: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their commands get what was asked for, word for word; a failure stops the job.

    Each is a stand-in that writes down how it was called: none of them is on this machine.
    """
    tools = tmp_path / "tools"
    tools.mkdir()
    note = f'printf "%s\\n" "$*" >>{tools}/calls'
    activate = 'conda() { [ "$2" = "my env" ] && export MINE=conda; }'
    hook = f"{note}; [ \"$1\" != shell.bash ] || echo '{activate}'"
    for name, does in (
        (
            "apptainer",
            f'{note}; while [ "$1" != "my image" ]; do shift; done; shift; "$@"',
        ),
        ("conda", hook),
        ("module", f'{note}; [ "$2" != missing ]'),
    ):
        path = tools / name
        path.write_text(f"#!/bin/bash\n{does}\n", encoding="utf-8")
        path.chmod(0o700)
    (project / "shows.py").write_text(SHOWS, encoding="utf-8")
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    launcher = make_launcher(entry_point="shows.py", python=sys.executable)
    batch = [
        experiment("a", modules=["gcc", "cuda/12 4"], conda="my env"),
        experiment("b", container="my image", gpus_per_node=1),
        experiment("c", modules=["missing"]),
        experiment("d", conda="other"),
    ]
    ids = launcher.submit_experiment_batch(batch).job_ids
    states = launcher.wait(ids, timeout_s=60)
    assert states == ["succeeded", "succeeded", "failed", "failed"]
    folder = project / "experiments"
    assert said_by(folder / "a")["MINE"] == "conda"
    calls = (tools / "calls").read_text(encoding="utf-8").splitlines()
    assert "load gcc cuda/12 4" in calls
    inside = next(call for call in calls if call.startswith("exec"))
    assert inside.startswith(f"exec --nv --bind={folder} my image {sys.executable} ")
    assert [starts.exists() for starts in (folder / n / "said0" for n in "abcd")] == [
        *(True, True, False, False)
    ]


@pytest.mark.parametrize("entry", ["lib", "{root}/../project/lib", "{root}/lib/"])
def test_folders_that_are_imported_from(
    entry: str,
    make_launcher: Make,
    experiment: Make,
    project: Path,
    slurm: FakeSlurm,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However PYTHONPATH names a folder of the project, it is the frozen one."""
    (project / "lib").mkdir()
    (project / "lib" / "mine.py").write_text("", encoding="utf-8")
    (project / "train.py").write_text("import mine; print(mine.__file__)", "utf-8")
    monkeypatch.chdir(project)
    monkeypatch.setenv("PYTHONPATH", entry.format(root=project))
    launcher = make_launcher()
    job_id = launcher.submit_single_experiment(experiment("e"))
    assert launcher.wait([job_id], timeout_s=60) == ["succeeded"]
    [job] = arrays.jobs_in(project / "experiments")
    said = (project / "experiments" / "e" / "1.out").read_text(encoding="utf-8")
    assert Path(said.strip()).is_relative_to(job.folder / "code")
    assert slurm.tasks()["1"]["state"] == "COMPLETED"


def test_a_script_by_its_absolute_path(
    make_launcher: Make, experiment: Make, project: Path, slurm: FakeSlurm
) -> None:
    """The job runs what it was at submission, and not what lies there since."""
    slurm.configure(is_held=True)
    launcher = make_launcher(entry_point=project / "train.py")
    job_id = launcher.submit_single_experiment(experiment("e"))
    (project / "train.py").write_text("raise SystemExit(3)\n", encoding="utf-8")
    slurm.configure(is_held=False)
    assert launcher.wait([job_id], timeout_s=60) == ["succeeded"]
