from __future__ import annotations

import os
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from mtf_slurm.testing import FakeSlurm

Make = Callable[..., Any]
WaitFor = Callable[[Callable[[], object]], None]
pytestmark = pytest.mark.slow


@pytest.fixture
def killed(experiment: Make, slurm: FakeSlurm, wait_for: WaitFor, project: Path) -> Make:
    """Submit an experiment by a launcher, and kill the shell of its job."""

    def kill(launcher: Any) -> str:
        job_id = str(launcher.submit_single_experiment(experiment("e", do="wait")))
        wait_for((project / "experiments" / "e" / "starts").exists)
        shells = [
            int(path.name)
            for path in Path("/proc").glob("[0-9]*")
            if b"task.sh" in _words(path) and str(slurm.folder).encode() in _environ(path)
        ]
        for pid in shells:
            os.kill(pid, signal.SIGKILL)
        assert launcher.wait([job_id], timeout_s=60) == ["failed"]
        return job_id

    return kill


def _words(path: Path) -> bytes:
    try:
        return (path / "cmdline").read_bytes()
    except OSError:
        return b""


def _environ(path: Path) -> bytes:
    try:
        return (path / "environ").read_bytes()
    except OSError:
        return b""


def checkouts(project: Path) -> list[Path]:
    """Return the checkouts of jobs."""
    return [*(project / "experiments").glob(".slurm/*/code/[0-9]*")]


@pytest.mark.parametrize("does", ["submit", "prune"])
@pytest.mark.parametrize("cleanup", ["always", "success", "never"])
def test_what_a_killed_job_left_goes_as_it_would_have(  # noqa: PLR0913, PLR0917 -- fixtures
    does: str,
    cleanup: str,
    make_launcher: Make,
    experiment: Make,
    killed: Make,
    slurm: FakeSlurm,
    project: Path,
) -> None:
    """With the next submission of its experiment, or when branches are pruned."""
    launcher = make_launcher(cleanup=cleanup)
    killed(launcher)
    assert len(checkouts(project)) == 1
    slurm.configure(is_held=True)
    if does == "submit":
        launcher.submit_single_experiment(experiment("e", do="wait"))
    else:
        launcher.prune_branches(older_than=timedelta(0))
    assert len(checkouts(project)) == (cleanup != "always")


def test_a_job_that_runs_keeps_its_checkout(
    make_launcher: Make, experiment: Make, wait_for: WaitFor, project: Path
) -> None:
    """Also where another experiment of its task has ended, and is submitted again."""
    launcher = make_launcher(num_packed=2)
    batch = [experiment("a", do="fail"), experiment("b", do="wait")]
    ids = launcher.submit_experiment_batch(batch).job_ids
    wait_for((project / "experiments" / "b" / "starts").exists)
    [code] = checkouts(project)
    launcher.prune_branches(older_than=timedelta(0))
    launcher.wait([launcher.submit_single_experiment(batch[0])], timeout_s=60)
    assert code.is_dir()
    (project / "experiments" / "b" / "go_on").touch()
    assert launcher.wait(ids[1:], timeout_s=60) == ["succeeded"]


def test_a_lost_node_leaves_nothing_behind_what_replaces_its_job(
    make_launcher: Make,
    experiment: Make,
    slurm: FakeSlurm,
    wait_for: WaitFor,
    project: Path,
) -> None:
    """It may come back until there is another; then its checkout goes."""
    launcher = make_launcher(defaults={"requeue": False})
    job_id = launcher.submit_single_experiment(experiment("e", do="wait"))
    wait_for((project / "experiments" / "e" / "starts").exists)
    slurm.fail_node(job_id)
    assert launcher.wait([job_id], timeout_s=60) == ["node_failed"]
    launcher.prune_branches(older_than=timedelta(0))
    assert len(checkouts(project)) == 1
    slurm.configure(is_held=True)
    launcher.submit_single_experiment(experiment("e", do="wait"))
    assert checkouts(project) == []


def test_a_folder_that_cannot_be_written_is_left_alone(
    make_launcher: Make, killed: Make, project: Path
) -> None:
    """Its checkouts stay, and branches are pruned all the same."""
    launcher = make_launcher()
    killed(launcher)
    lock = project / "experiments" / ".slurm" / "submit.lock"
    lock.unlink()
    lock.mkdir()
    assert len(launcher.prune_branches(older_than=timedelta(0))) == 1
    assert len(checkouts(project)) == 1
