"""The cluster for tests marked `slurm`: started for the first of them, ended after the last.

Where none can be started they are skipped, and say why. With `MTF_SLURM_REQUIRED` set, as
in CI, they fail instead. `MTF_SLURM_ENGINE` chooses what runs the cluster.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from slurm.cluster import Cluster, ClusterUnavailableError
from slurm.settings import names
from slurm.training import Plain, Project, trained

PREFIX = "tests"
ENGINE = pytest.StashKey[str]()


def remove_abandoned() -> None:
    """End the clusters of test runs that were killed."""
    for name in names():
        prefix, _, pid = name.rpartition("-")
        if (
            prefix.startswith(PREFIX)
            and pid.isdecimal()
            and not psutil.pid_exists(int(pid))
        ):
            Cluster.load(name).down()


@pytest.fixture(scope="session")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[Cluster]:
    """Return a running cluster, whose jobs see the folders of `tmp_path`."""
    try:
        remove_abandoned()
        started = Cluster.up(
            f"{PREFIX}-{os.getpid()}",
            engine=os.environ.get("MTF_SLURM_ENGINE"),
            mounts=[tmp_path_factory.getbasetemp()],
        )
    except ClusterUnavailableError as error:
        if os.environ.get("MTF_SLURM_REQUIRED"):
            raise
        pytest.skip(f"no Slurm cluster on this machine: {error}")
    pytestconfig.stash[ENGINE] = started.engine.name
    yield started
    started.down()


@pytest.fixture
def client(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """Return the cluster, to which the commands of this process go."""
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    return cluster


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """Return what a training leaves that nobody interrupts, without Slurm."""
    return trained(Project(tmp_path_factory.mktemp("here") / "project").train_here("a"))


@dataclass(frozen=True, kw_only=True)
class Timed:
    """Two jobs that run into their time limits, which are counted in minutes.

    Attributes:
        shell_job: Of a script that notes its warning in *folder*.
        training_job: Of the experiment ``timed`` of *project*.
    """

    shell_job: str
    folder: Path
    training_job: str
    project: Project


@pytest.fixture(scope="session")
def timed(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Timed]:
    """Return jobs that take a minute or two, in which other tests run."""
    folder = tmp_path_factory.mktemp("timed")
    script = "trap 'echo warned >warned' USR1\nwhile true; do sleep 0.1; done"
    options = ("--time=1", "--signal=B:USR1@30", "--partition=high", "--nodelist=n2")
    shell_job = cluster.sbatch(script, *options, cwd=folder)
    project = Project(tmp_path_factory.mktemp("timed") / "project")
    slurm = {
        "time": "2",
        "signal_s": 30,
        "continue_on_timeout": True,
        "partition": "high",
        "nodelist": "n2",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(cluster.conf))
        training_job = project.launcher().submit_single_experiment(
            Plain("timed", {"gate": True, "slurm": slurm})
        )
    yield Timed(
        shell_job=shell_job, folder=folder, training_job=training_job, project=project
    )
    cluster.run("scancel", shell_job, training_job)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say what ran the cluster."""
    if ENGINE in config.stash:
        terminalreporter.write_line(f"the Slurm cluster ran in: {config.stash[ENGINE]}")
