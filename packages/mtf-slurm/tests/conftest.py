"""Real repositories away from the user's configuration, and a Slurm of this machine's own."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from mtf_slurm import arrays
from mtf_slurm.arrays import Planned, Work
from mtf_slurm.command import Commands
from mtf_slurm.launcher import SLURMLauncher
from mtf_slurm.settings import SlurmSettings
from mtf_slurm.testing import FakeSlurm

TRAIN = """\
import json, os, signal, sys, time
from pathlib import Path

def on_signal(*_):
    sys.exit(75)

do = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["do"]
does = {"stubborn": signal.SIG_IGN, "plain": signal.SIG_DFL}.get(do, on_signal)
signal.signal(signal.SIGTERM, does)
signal.signal(signal.SIGUSR1, does)
with open("starts", "a", encoding="utf-8") as file:
    file.write("VERSION\\n")
print("hello", flush=True)
if do in {"wait", "stubborn", "plain"} and Path("starts").read_text(encoding="utf-8").count("\\n") == 1:
    while not Path("go_on").exists():
        time.sleep(0.01)
sys.exit(3 if do == "fail" else 75 if do == "again" else 0)
"""


class Repo:
    """A repository, and git as its user runs it."""

    def __init__(self, path: Path, *init: str) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self.git("init", "--quiet", "--initial-branch=main", *init)

    def git(self, *args: str, stdin: str = "", check: bool = True) -> str:
        environ = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
        done = subprocess.run(
            ["git", "-c", "user.name=U", "-c", "user.email=u@example.org", *args],
            cwd=self.path,
            env=environ,
            input=os.fsencode(stdin),
            capture_output=True,
            check=False,
            timeout=60,
        )
        assert not check or done.returncode == 0, done.stderr
        return os.fsdecode(done.stdout).strip()

    def write(self, name: str, data: str | bytes = "") -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return path

    def commit(self, message: str = "work") -> str:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", message)
        return self.git("rev-parse", "HEAD")

    def show(self, commit: str, name: str) -> str:
        return self.git("cat-file", "blob", f"{commit}:{name}")

    def names(self, commit: str) -> set[str]:
        return set(
            self.git("ls-tree", "-r", "-z", "--name-only", commit).split("\0")[:-1]
        )

    def fingerprint(self) -> dict[str, object]:
        """Return all that a snapshot must not touch: bytes and dates, of what is there."""
        found: dict[str, object] = {}
        for where, folders, files in os.walk(self.path):
            if where == str(self.path / ".git"):
                folders.remove("objects")
            for name in files:
                path = Path(where, name)
                known = str(path.relative_to(self.path))
                if known.startswith(".git/refs/heads/slurm-job/"):
                    continue
                status = path.lstat()
                data = path.readlink() if path.is_symlink() else path.read_bytes()
                found[known] = (data, status.st_mtime_ns, status.st_mode, status.st_ino)
        return found


@dataclass(frozen=True)
class Plain:
    """An experiment of plain values."""

    experiment_name: str
    values: dict[str, Any] = field(default_factory=dict)

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        assert mode == "json"
        return dict(self.values)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Give a folder in no repository: pytest's own may lie in that of this project."""
    with TemporaryDirectory(dir=Path(os.sep, "tmp"), prefix="mtf-") as name:
        yield Path(name).resolve()


@pytest.fixture(autouse=True, scope="session")
def _interruptible() -> Iterator[None]:
    """Let SIGINT count in what tests start: a shell has its background jobs ignore it."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the configuration of whoever runs the tests out of them."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    for name in [
        name for name in os.environ if name.startswith(("GIT_", "SLURM_", "SBATCH_"))
    ]:
        monkeypatch.delenv(name)


@pytest.fixture
def make_repo(tmp_path: Path) -> Callable[..., Repo]:
    """Make an empty repository in the folder of that name."""
    return lambda name, *init: Repo(tmp_path / name, *init)


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    """A repository with one commit of two files."""
    made = Repo(tmp_path / "repo")
    made.write("train.py", "print('one')\n")
    made.write("pkg/util.py", "value = 1\n")
    made.commit()
    return made


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSlurm]:
    """The fake's commands on PATH."""
    # What measures coverage is loaded by site-packages.
    flags = ("-I",) if "COVERAGE_PROCESS_CONFIG" in os.environ else ("-I", "-S")
    with FakeSlurm(tmp_path / "slurm", python_flags=flags) as fake:
        monkeypatch.setenv("PATH", fake.path)
        yield fake


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository with a script that does what its config says."""
    root = tmp_path / "project"
    root.mkdir()
    (root / "train.py").write_text(TRAIN.replace("VERSION", "one"), encoding="utf-8")
    (root / ".gitignore").write_text("experiments\n", encoding="utf-8")
    user = ("-c", "user.name=U", "-c", "user.email=u@example.org")
    for args in (("init", "-q"), ("add", "."), (*user, "commit", "-qm", "one")):
        subprocess.run(["git", *args], cwd=root, check=True, timeout=60)
    return root


@pytest.fixture
def experiment() -> Callable[..., Plain]:
    """Make an experiment: its name, what it does, its ``slurm`` section."""

    def make(name: str = "exp", do: str = "succeed", **slurm: Any) -> Plain:
        return Plain(name, {"do": do, "slurm": slurm or None})

    return make


@pytest.fixture
def make_launcher(project: Path, slurm: FakeSlurm) -> Callable[..., SLURMLauncher]:
    """Make a launcher of the project, on the fake Slurm."""
    assert slurm.folder.is_dir()

    def make(**more: Any) -> SLURMLauncher:
        quick = Commands(timeout_s=20, num_attempts=3, sleep=lambda _: None)
        given = {"entry_point": "train.py", "poll_interval_s": 0.05, "commands": quick}
        return SLURMLauncher(project_root=project, **{**given, **more})

    return make


@pytest.fixture
def wait_for() -> Callable[[Callable[[], object]], None]:
    """Wait until something is true."""

    def wait(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, "waited for 60 s"
            time.sleep(0.02)

    return wait


@pytest.fixture
def sbatch(tmp_path: Path, slurm: FakeSlurm) -> Callable[..., str]:
    """Submit lines of shell in a folder of their own; return the job's id."""
    assert slurm.folder.is_dir()

    def submit(script: str, *options: str) -> str:
        path = tmp_path / "job.sh"
        path.write_text(f"#!/bin/bash\n{script}\n", encoding="utf-8")
        argv = ["sbatch", "--parsable", f"--chdir={tmp_path}", *options, str(path)]
        return Commands(timeout_s=20, num_attempts=1).once(argv).strip()

    return submit


@pytest.fixture
def state(slurm: FakeSlurm) -> Callable[[str], str]:
    """Return Slurm's word for a task."""
    return lambda task_id: str(slurm.tasks()[task_id]["state"])


@pytest.fixture
def experiments(tmp_path: Path) -> Path:
    """An empty folder of experiments."""
    folder = tmp_path / "experiments"
    folder.mkdir()
    return folder


@pytest.fixture
def submit(experiments: Path, slurm: FakeSlurm) -> Callable[..., str]:
    """Submit lines of shell for these experiments, as a launcher does; return the job's id."""
    assert slurm.folder.is_dir()

    def submitted(
        *names: str, script: str = "true", options: tuple[str, ...] = ()
    ) -> str:
        number = len(arrays.jobs_in(experiments)) + 1
        job = arrays.new_job(experiments, number)
        planned = Planned(Work(SlurmSettings(), None), tuple((name,) for name in names))
        arrays.write_files(job, planned, "", f"#!/bin/bash\n{script}\n")
        for name in names:
            (experiments / name).mkdir(exist_ok=True)
        more = (f"--array=0-{len(names) - 1}",) if len(names) > 1 else ()
        argv = ["sbatch", "--parsable", f"--chdir={job.folder}", *more, *options]
        base = (
            Commands(timeout_s=20, num_attempts=1)
            .once([*argv, str(job.folder / "job.sbatch")])
            .strip()
        )
        job.claim(base)
        return base

    return submitted


@pytest.fixture
def go(experiments: Path) -> Callable[[], None]:
    """Let all jobs that wait for a file named ``go`` in their folder end."""

    def touch() -> None:
        for job in arrays.jobs_in(experiments):
            (job.folder / "go").touch()

    return touch
