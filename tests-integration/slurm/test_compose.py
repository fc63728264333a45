"""The compose file, run as a person without cluster.py would run it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from slurm.cluster import Cluster
from slurm.containers import Containers
from slurm.engine import HERE
from slurm.settings import ports_are_free

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
PORTS = range(18_817, 19_817, 4)


def test_compose_file_brings_up_a_cluster(cluster: Cluster) -> None:
    """`up` builds and starts all three roles, whose cluster runs a job; `down` ends them."""
    engine = cluster.engine
    if not isinstance(engine, Containers) or engine.name != "podman":
        pytest.skip("podman-compose is what is installed with the tests")
    old_cgroups = not Path("/sys/fs/cgroup/cgroup.controllers").exists()
    runtime = ("--podman-args=--runtime=runc",) if old_cgroups else ()
    compose = Path(sys.executable).with_name("podman-compose")
    file = HERE / "compose.yaml"
    # Short, as sockets need it; root in the containers writes there.
    with TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        environ = {
            **os.environ,
            "CONTAINERS_CONF": str(HERE / "containers.conf"),
            "MTF_SLURM_BASE": "localhost/{}:{}".format(*engine.distribution),
            "MTF_SLURM_PORT": str(next(filter(ports_are_free, PORTS))),
            "MTF_SLURM_STATE": folder,
            "SLURM_CONF": f"{folder}/slurm.conf",
        }

        def run(*argv: str | Path, may_fail: bool = False) -> str:
            done = subprocess.run(
                argv,
                cwd=HERE.parents[1],
                env=environ,
                capture_output=True,
                check=False,
                encoding="utf-8",
                timeout=300,
            )
            assert may_fail or done.returncode == 0, done.stderr
            return done.stdout

        try:
            run(compose, *runtime, f"--file={file}", "up", "--build", "--detach")
            cluster.wait_until(
                lambda: "idle" in run("sinfo", may_fail=True),
                what="up",
                deadline_s=120,
            )
            said = run("srun", "--nodes=2", "--ntasks-per-node=1", "hostname")
            assert sorted(said.split()) == ["n1", "n2"]
        finally:
            run(compose, *runtime, f"--file={file}", "down", "--timeout=0")
