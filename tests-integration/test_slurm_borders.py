"""Where mtf-slurm meets the configs of mtf-config, searches, and torch's own launcher."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mtf_gridsearch
import mtf_slurm
from mtf_config import ConfigurationManager, ConfigValidationError, SLURMConfig
from mtf_slurm.git import GitManager
from mtf_slurm.testing import FakeSlurm

BASE = {
    "experiment_name": "e",
    "model": {"type": "mlp"},
    "data": {"dataset_name": "random"},
}
FULL = {
    "account": "lab",
    "partition": "gpu,long",
    "qos": "high",
    "constraint": "a100&nvlink",
    "nodes": 2,
    "ntasks_per_node": 4,
    "cpus_per_task": 8,
    "gpus_per_node": 4,
    "gpu_type": "a100",
    "mem": "64G",
    "time": "2-00:00:00",
    "requeue": False,
}

# Two workers add up their ranks; at the first warning each saves and asks to be continued.
DISTRIBUTED = """
import os, signal, sys, time
from pathlib import Path
import torch
import torch.distributed as dist

warned = []
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda *_: warned.append(1))
dist.init_process_group("gloo")
sum_ = torch.tensor([dist.get_rank() + 1])
dist.all_reduce(sum_)
rank = dist.get_rank()
first = not Path(f"saved{rank}").exists()
with open(f"sums{rank}", "a", encoding="utf-8") as file:
    print(int(sum_), file=file)
while first and not warned:
    time.sleep(0.01)
Path(f"saved{rank}").touch()
dist.destroy_process_group()
sys.exit(75 if first else 0)
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSlurm]:
    """The fake's commands on PATH."""
    with FakeSlurm(tmp_path / "slurm", grace_s=60.0) as fake:
        monkeypatch.setenv("PATH", fake.path)
        yield fake


def launcher_of(root: Path, script: str, **more: Any) -> mtf_slurm.SLURMLauncher:
    """Return a launcher of a script that lies in *root*."""
    root.mkdir()
    (root / "train.py").write_text(script, "utf-8")
    for args in (("init", "-q"), ("add", ".")):
        subprocess.run(["git", *args], cwd=root, check=True, timeout=60)
    return mtf_slurm.SLURMLauncher(
        project_root=root,
        entry_point="train.py",
        poll_interval_s=0.1,
        git=GitManager(root),
        **more,
    )


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until *condition* holds."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited for 60 s"
        time.sleep(0.05)


def test_the_launcher_fits_what_searches_ask(tmp_path: Path) -> None:
    """It is a `Launcher`, and its words are those of searches."""
    launcher: mtf_gridsearch.Launcher = launcher_of(tmp_path / "p", "")
    assert launcher.max_running is None
    ours = {state.value: state.is_final for state in mtf_slurm.JobState}
    theirs = {state.value: state.is_final for state in mtf_gridsearch.JobState}
    assert ours == theirs


def test_each_key_of_a_config_is_one_of_the_launcher() -> None:
    """With the same default; so a config asks for the same wherever it is read."""
    ours = mtf_slurm.SlurmSettings.model_fields
    for key, field in SLURMConfig.model_fields.items():
        assert key in ours
        assert ours[key].default == field.default


@pytest.mark.parametrize("section", [None, {}, FULL])
def test_configs_are_submitted_as_they_stand(
    section: dict[str, Any] | None, tmp_path: Path, slurm: FakeSlurm
) -> None:
    """What `slurm` says arrives at sbatch, and the config is read back equal."""
    slurm.configure(is_held=True)
    launcher = launcher_of(tmp_path / "p", "")
    manager = ConfigurationManager(tmp_path)
    config = manager.create_config(BASE if section is None else BASE | {"slurm": section})
    job_id = launcher.submit_single_experiment(config)
    options = slurm.tasks()[job_id]["options"]
    wanted = {"nodes": "1", "time": "01:00:00"}
    if section:
        wanted = {"nodes": "2", "time": "2-00:00:00", "gpus-per-node": "a100:4"}
        wanted |= {"mem": "64G", "partition": "gpu,long", "constraint": "a100&nvlink"}
        wanted |= {"account": "lab", "qos": "high", "ntasks-per-node": "4"}
        wanted |= {"cpus-per-task": "8", "no-requeue": ""}
    assert options.items() >= wanted.items()
    saved = tmp_path / "p" / "experiments" / "e" / "config.yaml"
    assert ConfigurationManager(tmp_path).load(saved) == config


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("partition", "a\n#SBATCH --uid=0"),
        ("partition", "-x"),
        ("account", " x"),
        ("gpu_type", "a:b"),
        ("mem", "lots"),
        ("time", "0"),
        ("nodes", 0),
        ("constraint", "$(reboot)"),
        ("qos", "a;b"),
    ],
)
def test_hostile_values_are_refused_by_name_or_stay_values(
    key: str, value: Any, tmp_path: Path, slurm: FakeSlurm
) -> None:
    """What a config takes is either one option's value, or an error that names its key."""
    slurm.configure(is_held=True)
    section = {"gpus_per_node": 1, key: value}
    said = ""
    try:
        config = ConfigurationManager(tmp_path).create_config(BASE | {"slurm": section})
    except ConfigValidationError as error:
        said = str(error)
    else:
        launcher = launcher_of(tmp_path / "p", "")
        [row] = launcher.submit_experiment_batch([config])
        said = row.error or ""
    found = [task["options"].get(key) for task in slurm.tasks().values()]
    assert f"slurm.{key}" in said if said else found == [value]


@pytest.mark.slow
def test_torchrun_saves_and_comes_back(tmp_path: Path, slurm: FakeSlurm) -> None:
    """Preempted, the workers of the real torchrun save; the job comes back and finishes."""
    slurm_section = {"launch": "torchrun", "ntasks_per_node": 2, "time": "00:10:00"}
    launcher = launcher_of(tmp_path / "p", DISTRIBUTED, defaults=slurm_section)
    config = ConfigurationManager(tmp_path).create_config(BASE)
    job_id = launcher.submit_single_experiment(config)
    folder = tmp_path / "p" / "experiments" / "e"
    sums = [folder / "sums0", folder / "sums1"]
    wait_for(lambda: all(path.is_file() and path.read_text("utf-8") for path in sums))
    slurm.preempt(job_id)
    states = launcher.wait([job_id], timeout_s=120)
    said = (folder / f"{job_id}.err").read_text("utf-8")
    assert states == ["succeeded"], said
    assert [path.read_text("utf-8").split() for path in sums] == [["3", "3"]] * 2
    assert slurm.tasks()[job_id]["restarts"] == 1
