from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtf_slurm import __main__ as cli
from mtf_slurm.follow.nodes import NodeFailure, record
from mtf_slurm.launcher import SLURMLauncher
from mtf_slurm.testing import FakeSlurm

MakeLauncher = Callable[..., SLURMLauncher]


@pytest.fixture
def folder(project: Path) -> Path:
    """The project's folder of experiments."""
    return project / "experiments"


@pytest.fixture
def submit(
    make_launcher: MakeLauncher, experiment: Callable[..., Any]
) -> Callable[..., list[str]]:
    """Submit experiments that do what their names say."""

    def submitted(*names: str) -> list[str]:
        experiments = [experiment(name, name.partition("_")[0]) for name in names]
        launcher = make_launcher(freeze_code=False)
        return launcher.submit_experiment_batch(experiments).job_ids

    return submitted


def test_status_says_how_many_and_why(
    folder: Path,
    submit: Callable[..., list[str]],
    slurm: FakeSlurm,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What waits for the same reason is one line; nodes that fail are named."""
    slurm.configure(num_slots=1)
    submit("wait_a", "wait_b", "wait_c")
    at_s = time.time()  # noqa: TID251 -- a date
    failures = [
        NodeFailure(node="n7", at_s=at_s - 90 * i, job_id=str(i), reason="")
        for i in range(3)
    ]
    record(folder, failures)
    assert cli.main(["status", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "2 pending, 1 running" in said
    assert "2 pending: it is next, and waits for nodes" in said
    assert "fail again and again: n7" in said
    assert cli.main(["status", str(folder), "--all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["wait_a", "wait_b", "wait_c"]
    assert len(slurm.calls("squeue")) == len({*map(tuple, slurm.calls("squeue"))})


@pytest.mark.slow
def test_wait_prints_changes_and_says_how_it_went(
    folder: Path, submit: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit code tells whether all have succeeded."""
    submit("succeed")
    assert cli.main(["wait", str(folder), "--interval", "0.1"]) == 0
    said = capsys.readouterr().out
    assert "succeed (1) succeeded" in said
    assert said.splitlines()[-1] == "1 succeeded"
    submit("fail")
    assert cli.main(["wait", str(folder), "--interval", "0.1"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "1 succeeded, 1 failed"
    assert cli.main(["status", str(folder), "--all"]) == 1


def test_waiting_in_vain(
    folder: Path, submit: Callable[..., list[str]], slurm: FakeSlurm
) -> None:
    """A time limit has an exit code of its own."""
    slurm.configure(is_held=True)
    submit("a")
    arguments = ["wait", str(folder), "--timeout", "0.2", "--interval", "0.1"]
    assert cli.main(arguments) == 3


@pytest.mark.slow
def test_cancel_ends_what_is_named(
    folder: Path,
    submit: Callable[..., list[str]],
    slurm: FakeSlurm,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Those, or all; never all by an oversight, and never what is not there."""
    slurm.configure(is_held=True)
    submit("a", "b", "c")
    assert cli.main(["cancel", str(folder)]) == 2
    assert cli.main(["cancel", str(folder), "a", "--all"]) == 2
    assert cli.main(["cancel", str(folder), "x"]) == 1
    assert "x: has no job" in capsys.readouterr().err
    assert slurm.calls("scancel") == []
    assert cli.main(["cancel", str(folder), "b"]) == 0
    assert capsys.readouterr().out == "asked 1 of 3 jobs to end\n"
    assert sorted(slurm.tasks()) == ["1_0", "1_2"]
    assert cli.main(["cancel", str(folder), "--all"]) == 0
    assert {task["state"] for task in slurm.tasks().values()} == {"CANCELLED"}


@pytest.mark.slow
def test_cancel_ends_what_is_to_come_back(
    folder: Path,
    make_launcher: MakeLauncher,
    experiment: Callable[..., Any],
    slurm: FakeSlurm,
) -> None:
    """What has ended is passed over, as one of several in a task that goes on."""
    slurm.configure(has_scontrol_on_nodes=False)
    first = make_launcher().submit_single_experiment(experiment("c", do="again"))
    packed = make_launcher(num_packed=2)
    batch = [experiment("a", do="fail"), experiment("b", do="wait")]
    ids = packed.submit_experiment_batch(batch).job_ids
    while packed.states([*ids, first]) != ["failed", "running", "preempted"]:
        pass
    assert cli.main(["cancel", str(folder), "a", "c"]) == 0
    assert not (folder / "c" / f"{first}.again").exists()
    assert packed.states(ids) == ["failed", "running"]
    assert cli.main(["cancel", str(folder), "--all"]) == 0


def test_efficiency_is_a_table(
    folder: Path,
    submit: Callable[..., list[str]],
    slurm: FakeSlurm,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With the names of the experiments."""
    slurm.configure(is_held=True)
    submit("a")
    line = "1|COMPLETED|0:0|7|5|2|1|00:02.187|500M|billing=2,cpu=2,mem=500M,node=1||||/runs|1\n"
    slurm.fail("sacct", "", status=0, stdout=line)
    assert cli.main(["efficiency", str(folder)]) == 0
    assert "1    a           succeeded  0:00:07 of 0:05:00 2%" in capsys.readouterr().out


def test_what_cannot_be_done(
    tmp_path: Path, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that is not there, one without jobs, and Slurm that does not answer."""
    assert cli.main(["status", str(tmp_path / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert cli.main(["status", str(tmp_path)]) == 0
    assert cli.main(["wait", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "no jobs\nno jobs\n"
    assert cli.main(["status", str(tmp_path), "--all"]) == 0
    assert cli.main(["efficiency", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "no jobs\n"
    assert slurm.calls() == []


@pytest.mark.parametrize("option", ["--interval", "--timeout"])
@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon"])
def test_a_time_that_is_none(
    tmp_path: Path, option: str, seconds: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The option is named, with what to give."""
    with pytest.raises(SystemExit, match="2"):
        cli.main(["wait", str(tmp_path), f"{option}={seconds}"])
    said = capsys.readouterr().err
    assert f"{option}: {seconds}: give a number of seconds above 0" in said


def test_slurm_that_does_not_answer(
    folder: Path,
    submit: Callable[..., list[str]],
    slurm: FakeSlurm,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is said, with what is known; a refusal is an error."""
    slurm.configure(is_held=True)
    submit("a")
    slurm.fail("squeue", "", status=0, stdout="slurm 22.05.8")
    slurm.fail("squeue")
    assert cli.main(["status", str(folder)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(
        "this may be old: no answer: squeue: error: Unable to contact"
    )
    assert said[1] == "1 unknown"
    (folder / ".slurm" / "follow.json").unlink()
    slurm.fail("squeue", "", status=0, stdout="slurm 22.05.8")
    slurm.fail("squeue", "error: Access denied")
    assert cli.main(["status", str(folder)]) == 1
    assert "Access denied" in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_and_help(
    folder: Path, submit: Callable[..., list[str]], slurm: FakeSlurm
) -> None:
    """The module runs: it teaches, and ends without a traceback when it is interrupted."""
    slurm.configure(is_held=True)
    submit("a")
    own = [sys.executable, "-m", "mtf_slurm"]
    told = subprocess.run(
        [*own, "--help"], capture_output=True, check=True, encoding="utf-8", timeout=60
    )
    assert "examples:" in told.stdout
    waits = subprocess.Popen(
        [*own, "wait", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert waits.stdout is not None
    assert "pending" in waits.stdout.readline()
    waits.send_signal(signal.SIGINT)
    _, said = waits.communicate(timeout=20)
    assert (waits.returncode, said) == (130, "")
    assert slurm.calls("scancel") == []
