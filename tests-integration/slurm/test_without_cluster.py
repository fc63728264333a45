"""What can be known without starting a cluster."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from slurm.cluster import Cluster, ClusterError, ClusterUnavailableError, main
from slurm.containers import Containers
from slurm.engine import HERE, ROLES, EngineError, run
from slurm.namespaces import Namespaces
from slurm.settings import Settings, job_folders, names, ports_are_free

pytest_plugins = ["pytester"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder for clusters, which is not the one that others use."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path / f"mtf-slurm-{os.getuid()}"


def settings(tmp_path: Path) -> Settings:
    """Return what compose.yaml says by default, with *tmp_path* as the state."""
    return Settings(
        name="mtf-slurm", folder=tmp_path, port=16817, users=(), mounts=(Path("/jobs"),)
    )


def compose_arguments(service: dict[str, Any]) -> list[str]:
    """Return a service of compose.yaml in the words of `docker run`."""
    listed = {"extra_hosts": "add-host", "volumes": "volume"}
    single = {
        "container_name": "name",
        "hostname": "hostname",
        "network_mode": "network",
        "pids_limit": "pids-limit",
        "shm_size": "shm-size",
    }
    other = {"build", "command", "depends_on", "environment", "image"}
    assert service.keys() <= {*listed, *single, *other}
    found = [f"--{single[key]}={service[key]}" for key in single]
    found += [f"--{listed[key]}={item}" for key in listed for item in service[key]]
    found += [f"--env={key}={value}" for key, value in service["environment"].items()]
    return [*found, *service["command"]]


@pytest.mark.parametrize("role", ROLES)
def test_compose_starts_the_same_containers(tmp_path: Path, role: str) -> None:
    """Docker alone, with compose.yaml, starts what cluster.py starts."""
    text = (HERE / "compose.yaml").read_text("utf-8")
    text = re.sub(r"\$\{MTF_SLURM_STATE:-.*?\}", str(tmp_path), text)
    text = text.replace("${PWD}", "/jobs")
    text = re.sub(r"\$\{\w+:-(.*?)\}", r"\1", text)
    service = yaml.safe_load(text)["services"][role]
    service["environment"] = {k: v or "" for k, v in service["environment"].items()}
    engine = Containers(settings(tmp_path), "docker")
    ours = [
        argument
        for argument in engine.arguments(role)
        if not argument.startswith("--label=") and argument != engine.image
    ]
    assert sorted(compose_arguments(service)) == sorted(ours)


def test_image_is_named_after_what_it_is_built_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another entrypoint, or another distribution, makes another image."""
    before = Containers(settings(tmp_path), "docker").image
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("Containerfile", "entrypoint.sh", "slurm.conf.in", "slurmdbd.conf.in"):
        (copy / name).write_bytes((HERE / name).read_bytes())
    monkeypatch.setattr("slurm.containers.HERE", copy)
    assert Containers(settings(tmp_path), "docker").image == before
    (copy / "entrypoint.sh").write_text("exit", "utf-8")
    assert Containers(settings(tmp_path), "docker").image != before


def test_jobs_see_the_repository_and_this_python() -> None:
    """What jobs need is mounted once, and nothing that the image has itself."""
    folders = job_folders([HERE, Path("/usr")])
    assert any(HERE.is_relative_to(folder) for folder in folders)
    assert any(Path(sys.prefix).resolve().is_relative_to(folder) for folder in folders)
    assert Path("/usr") not in folders
    assert len(folders) == len(set(folders))


def test_clusters_have_ports_of_their_own(folder: Path) -> None:
    """Two clusters that were chosen, and do not listen yet, share no port."""
    first = Settings.choose("first", [], engine="podman")
    second = Settings.choose("second", [], engine="docker")
    assert abs(first.port - second.port) >= 4
    assert ports_are_free(second.port)
    assert names() == ["first", "second"]
    assert Settings.load("second") == ("docker", second)
    assert second.folder == folder / "second"
    with pytest.raises(FileExistsError):
        Settings.choose("first", [], engine="podman")


@pytest.mark.parametrize("name", ["", "../up", "-x", "a b", "x" * 33])
def test_name_that_is_no_folder_is_refused(folder: Path, name: str) -> None:
    """A cluster's name is short and simple; nothing is made for another."""
    with pytest.raises(ValueError, match="does not match"):
        Settings.choose(name, [], engine="podman")
    assert not folder.exists()


def test_missing_commands_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Slurm's commands on the host, the package that has them is named."""
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ClusterUnavailableError, match=r"sbatch.*install.*slurm-client"):
        Cluster.up()


def test_every_engine_says_why_not(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing can run a cluster each engine's reason is told, and no file stays."""
    for command in ("sacct", "sbatch", "scancel", "scontrol", "sinfo", "squeue", "srun"):
        (tmp_path / command).write_text("#!/bin/false\n", "utf-8")
        (tmp_path / command).chmod(0o755)
    (tmp_path / "docker").write_text("#!/bin/sh\necho no daemon >&2; exit 1\n", "utf-8")
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterUnavailableError) as caught:
        Cluster.up()
    podman, docker, namespaces = str(caught.value).split("; ")
    assert podman == "podman: podman is not installed"
    assert docker.endswith("exited 1: no daemon")
    assert re.match("namespaces: .*(install the packages|only root)", namespaces)
    assert not [*folder.glob("*/*")]


def test_unknown_engine_and_cluster_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong word is an error that lists the right ones, and leaves nothing."""
    with pytest.raises(ValueError, match="'lxc' is none of podman, docker, namespaces"):
        Cluster.up(engine="lxc")
    with pytest.raises(ClusterError, match="there is no cluster 'main'"):
        Cluster.load()
    assert main(["down"]) == 1
    assert "there is no cluster 'main'" in capsys.readouterr().err
    assert main(["status"]) == 0
    assert capsys.readouterr().out == "no cluster\n"
    assert not [*folder.glob("*/*")]


def test_commands_get_no_options_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a shell has set for Slurm's commands does not reach those of the tests."""
    monkeypatch.setenv("SBATCH_PARTITION", "nowhere")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    environment = Cluster(Namespaces(settings(tmp_path))).sbatch_env
    assert environment["SLURM_CONF"] == str(tmp_path / "slurm.conf")
    assert not environment.keys() & {"SBATCH_PARTITION", "SLURM_JOB_ID"}
    assert environment["PATH"] == os.environ["PATH"]


def test_failed_command_is_told_with_what_it_said() -> None:
    """An engine's command that fails, or is missing, is an error with its words."""
    with pytest.raises(EngineError, match=r"`sh -c .*` exited 3: no"):
        run(("sh", "-c", "echo no >&2; exit 3"))
    with pytest.raises(EngineError, match="nothing-of-this-name"):
        run(("nothing-of-this-name",))


def test_entrypoint_refuses_a_role_it_does_not_know() -> None:
    """The entrypoint is told one of its roles, or says which there are."""
    done = subprocess.run(
        (HERE / "entrypoint.sh", "client"),
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "usage: entrypoint.sh controller | node NAME | image\n"


@pytest.mark.slow
@pytest.mark.parametrize("required", [False, True], ids=["here", "in-ci"])
def test_skip_says_why_and_is_a_failure_in_ci(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, *, required: bool
) -> None:
    """Where no cluster can start its tests are skipped; where it has to, they fail."""
    monkeypatch.setenv("PYTHONPATH", str(HERE.parent))
    monkeypatch.setenv("MTF_SLURM_REQUIRED", "1" if required else "")
    pytester.makeconftest((HERE / "conftest.py").read_text("utf-8"))
    pytester.makepyfile("def test_it(cluster): pass")
    monkeypatch.setenv("PATH", "")
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-rs")
    result.assert_outcomes(errors=int(required), skipped=int(not required))
    assert "install the package slurm-client" in result.stdout.str()
