"""The cluster for tests marked `slurm`: started for the first of them, ended after the last.

Where none can be started they are skipped, and say why. With `MTF_SLURM_REQUIRED` set, as
in CI, they fail instead. `MTF_SLURM_ENGINE` chooses what runs the cluster.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import psutil
import pytest

from slurm.cluster import Cluster, ClusterUnavailableError
from slurm.settings import names

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


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say what ran the cluster."""
    if ENGINE in config.stash:
        terminalreporter.write_line(f"the Slurm cluster ran in: {config.stash[ENGINE]}")
