"""Real repositories, each in a folder of its own, away from the user's configuration."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest


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


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Give a folder in no repository: pytest's own may lie in that of this project."""
    with TemporaryDirectory(dir=Path(os.sep, "tmp"), prefix="mtf-") as name:
        yield Path(name).resolve()


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the configuration of whoever runs the tests out of them."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    for name in [name for name in os.environ if name.startswith("GIT_")]:
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
