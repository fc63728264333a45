from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mtf_slurm.command import Commands
from mtf_slurm.testing import FakeSlurm

COMMANDS = Commands(timeout_s=20, num_attempts=1)


def test_settings_are_known(slurm: FakeSlurm) -> None:
    """A setting that does not exist is refused, and named with those that do."""
    with pytest.raises(ValueError, match="num_slots"):
        slurm.configure(slots=1)


def test_two_of_them_know_nothing_of_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has its own jobs, with the same ids; the end of one leaves the other's running."""
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/bash\ntouch up_$1\nsleep 60\n", encoding="utf-8")
    path = os.environ["PATH"]
    with FakeSlurm(tmp_path / "one") as one:
        with FakeSlurm(tmp_path / "two") as two:
            for slurm in (one, two):
                monkeypatch.setenv("PATH", f"{slurm.folder / 'bin'}{os.pathsep}{path}")
                argv = ["sbatch", "--parsable", f"--chdir={tmp_path}", str(script)]
                assert COMMANDS.once(argv) == "1\n"
        pid = one.tasks()["1"]["supervisor"]
        assert Path(f"/proc/{pid}").is_dir()
        assert one.tasks()["1"]["state"] == "RUNNING"
    assert one.tasks()["1"]["state"] != "RUNNING"


def test_what_happens_to_jobs_that_do_not_run(
    slurm: FakeSlurm,
    experiment: Callable[..., object],
    make_launcher: Callable[..., object],
) -> None:
    """A preemption of what does not run is a mistake of the test."""
    slurm.configure(is_held=True)
    launcher = make_launcher()
    job_id = launcher.submit_single_experiment(experiment("e"))  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="PENDING, not RUNNING"):
        slurm.preempt(job_id)
