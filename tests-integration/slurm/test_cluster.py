"""The cluster itself: that it does what Slurm does, with real jobs and real faults.

The loss of a node takes half a minute to be noticed: it is shown in `test_scenarios`.
"""

from __future__ import annotations

import getpass
import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from slurm.cluster import Cluster, ClusterError
from slurm.settings import ports_are_free

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.usefixtures("timed")]
SOON_S = 30
WAIT = "while true; do sleep 0.1; done"


def cancel_all(cluster: Cluster) -> None:
    """Leave no job of a test to the next."""
    cluster.run("scancel", f"--user={getpass.getuser()}", "--partition=low")


def test_partitions_and_roles(cluster: Cluster) -> None:
    """There are three partitions, and every role runs."""
    shown = cluster.run("sinfo", "--noheader", "--format=%P").stdout.split()
    assert shown == ["low*", "high", "short"]
    assert cluster.engine.running() == {"ctl", "n1", "n2"}


def test_two_clusters_and_one_leaves_nothing(cluster: Cluster) -> None:
    """A person starts another cluster from the command line; ended, it leaves nothing."""
    script = (sys.executable, str(Path(__file__).with_name("cluster.py")))
    name = f"--name=tests-second-{os.getpid()}"
    engine = f"--engine={cluster.engine.name}"
    told = subprocess.run(
        (*script, "up", name, engine), check=True, capture_output=True, encoding="utf-8"
    ).stdout
    second = Cluster.load(name.partition("=")[2])
    try:
        assert f"export SLURM_CONF={second.conf}\n" in told
        assert f": {cluster.engine.name}, running: ctl n1 n2\n" in told
        assert second.sbatch("true", "--output=/dev/null") == "1"
        listed = subprocess.check_output((*script, "status"), encoding="utf-8")
        assert {str(second.conf), str(cluster.conf)} <= set(re.split(r"[=\n]", listed))
        again = subprocess.run(
            (*script, "up", name), check=False, capture_output=True, encoding="utf-8"
        )
        assert again.returncode == 1
        assert "take that cluster down first" in again.stderr
    finally:
        subprocess.run((*script, "down", name), check=True)
    folder = second.settings.folder
    assert not folder.exists()
    assert not second.engine.running()
    assert str(folder) not in Path("/proc/self/mountinfo").read_text("utf-8")
    assert not [
        process.info["cmdline"]
        for process in psutil.process_iter(["cmdline"])
        if str(folder) in " ".join(process.info["cmdline"] or ())
    ]
    assert ports_are_free(second.settings.port)


def test_listens_on_the_loopback_alone(cluster: Cluster) -> None:
    """No daemon accepts a connection from another machine."""
    wanted = {
        f"{port:04X}" for port in range(cluster.settings.port, cluster.settings.port + 4)
    }
    rows = Path("/proc/net/tcp").read_text("utf-8").splitlines()[1:]
    listening = [row.split()[1].split(":") for row in rows if row.split()[3] == "0A"]
    found = {port: address for address, port in listening if port in wanted}
    assert found == dict.fromkeys(wanted, "0100007F")


def test_job_from_the_host_runs_and_is_accounted(
    cluster: Cluster, tmp_path: Path
) -> None:
    """A job submitted by the host's sbatch writes to the host, and sacct says COMPLETED."""
    job = cluster.sbatch("hostname >out; echo $SLURM_JOB_ID >>out", cwd=tmp_path)
    cluster.wait_for(job, "COMPLETED", SOON_S)
    node, written = (tmp_path / "out").read_text("utf-8").split()
    assert node in {"n1", "n2"}
    assert written == job
    cluster.wait_until(
        lambda: cluster.accounted(job) == ["COMPLETED"],
        what="COMPLETED in accounting",
        deadline_s=SOON_S,
    )


def test_failure_is_told_with_the_job(cluster: Cluster, tmp_path: Path) -> None:
    """Waiting for success ends at once when the job fails, with what Slurm knows of it."""
    job = cluster.sbatch("exit 3", cwd=tmp_path)
    with pytest.raises(ClusterError, match=r"FAILED(?s:.)*ExitCode=3:0"):
        cluster.wait_for(job, "COMPLETED", SOON_S)


def test_array_runs_each_task(cluster: Cluster, tmp_path: Path) -> None:
    """Every task of an array runs once, with its own index."""
    options = ("--array=1-20%8", "--output=/dev/null")
    job = cluster.sbatch('echo >"$SLURM_ARRAY_TASK_ID.done"', *options, cwd=tmp_path)
    cluster.wait_for(job, "COMPLETED", SOON_S)
    assert {file.stem for file in tmp_path.iterdir()} == set(map(str, range(1, 21)))


def test_preempted_job_comes_back(cluster: Cluster, tmp_path: Path) -> None:
    """A job of the high partition takes a node; the low one is requeued, once, and told."""
    script = f'echo "${{SLURM_RESTART_COUNT-unset}}" >>runs\n{WAIT}'
    where = ("--nodelist=n1", "--exclusive")
    low = cluster.sbatch(script, "--requeue", *where, cwd=tmp_path)
    runs = tmp_path / "runs"
    cluster.wait_until(runs.exists, what="running", deadline_s=SOON_S)
    high = cluster.sbatch("true", "--partition=high", *where, cwd=tmp_path)
    cluster.wait_for(high, "COMPLETED", SOON_S)
    cluster.wait_until(
        lambda: runs.read_text("utf-8").split() == ["unset", "1"],
        what="running again",
        deadline_s=SOON_S,
    )
    assert cluster.job(low)["Restarts"] == "1"
    cancel_all(cluster)
    cluster.wait_for(low, "CANCELLED", SOON_S)
    assert "PREEMPTED" in cluster.accounted(low, duplicates=True)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--partition=nowhere",), "invalid partition"),
        (("--qos=nonsense",), "Invalid qos"),
        (("--partition=short", "--time=60"), "time limit"),
        (("--array=0-20001",), "Invalid job array"),
        (("--gres=gpu:b200:1",), "node configuration is not available"),
        (("--nodes=3",), "[Nn]ode count"),
    ],
    ids=["partition", "qos", "time", "array", "gpu", "nodes"],
)
def test_sbatch_refuses(cluster: Cluster, options: tuple[str, ...], reason: str) -> None:
    """What the site does not offer is refused when it is submitted."""
    with pytest.raises(ClusterError, match=reason):
        cluster.sbatch("true", "--output=/dev/null", *options)


def test_qos_limits_the_jobs_of_a_user(cluster: Cluster, tmp_path: Path) -> None:
    """The QOS `tiny` takes two jobs and refuses the third."""
    jobs = [cluster.sbatch(WAIT, "--qos=tiny", cwd=tmp_path) for _ in range(2)]
    with pytest.raises(ClusterError, match="QOSMaxSubmitJobPerUserLimit"):
        cluster.sbatch(WAIT, "--qos=tiny", cwd=tmp_path)
    cancel_all(cluster)
    for job in jobs:
        cluster.wait_for(job, "CANCELLED", SOON_S)


def test_srun_over_two_nodes(cluster: Cluster, tmp_path: Path) -> None:
    """A step has a task on each node, from a job and from the host alike."""
    argv = ("--nodes=2", "--ntasks=2", "--ntasks-per-node=1")
    job = cluster.sbatch("srun hostname >out", *argv, cwd=tmp_path)
    cluster.wait_for(job, "COMPLETED", SOON_S)
    assert sorted((tmp_path / "out").read_text("utf-8").split()) == ["n1", "n2"]
    told = cluster.run("srun", *argv, "hostname", cwd=tmp_path).stdout
    assert sorted(told.split()) == ["n1", "n2"]


def test_node_finds_another_by_name(cluster: Cluster, tmp_path: Path) -> None:
    """One node connects to a port of the other, by the name that scontrol lists."""
    code = """
import os, socket, subprocess
nodes = subprocess.check_output(
    ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]], text=True
).split()
if os.environ["SLURM_PROCID"] == "0":
    with socket.create_server((nodes[0], 0)) as server:
        with open("port.new", "w", encoding="utf-8") as file:
            file.write(str(server.getsockname()[1]))
        os.rename("port.new", "port")
        assert server.accept()[0].recv(9) == b"n2"
else:
    while not os.path.exists("port"):
        pass
    with open("port", encoding="utf-8") as file:
        address = (nodes[0], int(file.read()))
    socket.create_connection(address).sendall(os.uname().nodename.encode())
"""
    (tmp_path / "meet.py").write_text(code, "utf-8")
    options = ("--nodes=2", "--ntasks-per-node=1")
    job = cluster.sbatch("srun python3 meet.py", *options, cwd=tmp_path)
    cluster.wait_for(job, "COMPLETED", SOON_S)


def test_virtual_environment_of_the_host_works_in_jobs(
    cluster: Cluster, tmp_path: Path
) -> None:
    """A job runs this very Python, at the same path, with what is installed for it."""
    code = (
        "import os, psutil, sys; print(sys.prefix, psutil.__file__, os.uname().nodename)"
    )
    job = cluster.sbatch(f"{sys.executable} -c '{code}' >out", cwd=tmp_path)
    cluster.wait_for(job, "COMPLETED", SOON_S)
    prefix, module, node = (tmp_path / "out").read_text("utf-8").split()
    assert prefix == sys.prefix
    assert Path(module).is_relative_to(sys.prefix)
    assert node in {"n1", "n2"}


def test_gpus_are_counted(cluster: Cluster, tmp_path: Path) -> None:
    """A job that asks for a type of GPU gets the node that has it, and the indices."""
    script = 'echo "$(hostname) $CUDA_VISIBLE_DEVICES" >out'
    job = cluster.sbatch(script, "--gres=gpu:h100:2", cwd=tmp_path)
    cluster.wait_for(job, "COMPLETED", SOON_S)
    assert (tmp_path / "out").read_text("utf-8").split() == ["n2", "0,1"]
