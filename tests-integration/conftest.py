"""Fixtures of every test here: the repository's files, and a watch for what leaks."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[1]
# pytest's note of the running test, and what torch and scikit-learn set when imported.
SET_BY_OTHERS = {
    "KMP_DUPLICATE_LIB_OK",
    "KMP_INIT_AT_FORK",
    "PYTEST_CURRENT_TEST",
    "PYTORCH_NVML_BASED_CUDA_CHECK",
    "TORCHINDUCTOR_CACHE_DIR",
}
GRACE_S = 2  # for what is ending when its test ends


@pytest.fixture
def root() -> Path:
    """Return the folder of the repository."""
    return ROOT


def repository_files(pattern: str) -> list[Path]:
    """Return the files matching git's *pattern* that are, or would be, committed."""
    argv = (
        "git",
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
        "--",
        pattern,
    )
    done = subprocess.run(argv, cwd=ROOT, check=True, stdout=subprocess.PIPE, timeout=60)
    paths = (ROOT / name for name in done.stdout.decode().splitlines())
    return sorted(path for path in paths if path.is_file())


@pytest.fixture
def files() -> list[Path]:
    """Return every file of the repository."""
    return repository_files("*")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test once for each `document` or `package`, if it asks for one."""
    if "document" in metafunc.fixturenames:
        paths = repository_files("*.md")
        ids = [str(path.relative_to(ROOT)) for path in paths]
        metafunc.parametrize("document", paths, ids=ids)
    if "package" in metafunc.fixturenames:
        paths = sorted(path.parent for path in ROOT.glob("packages/*/pyproject.toml"))
        metafunc.parametrize("package", paths, ids=[path.name for path in paths])


@pytest.fixture(autouse=True)
def _no_leaked_environment() -> Iterator[None]:
    """Fail a test that leaves an environment variable set, changed or gone."""
    before = dict(os.environ)
    yield
    changed = {name for name, _ in before.items() ^ os.environ.items()}
    leaked = sorted(changed - SET_BY_OTHERS)
    assert not leaked, f"environment variables leaked: {leaked}"


@pytest.fixture(autouse=True)
def _no_leaked_thread() -> Iterator[None]:
    """Fail a test that leaves a thread running after a grace."""
    before = set(threading.enumerate())
    yield
    leaked = set(threading.enumerate()) - before
    for thread in leaked:
        thread.join(timeout=GRACE_S)
    alive = sorted(thread.name for thread in leaked if thread.is_alive())
    assert not alive, f"threads leaked: {alive}"


@pytest.fixture(autouse=True)
def _no_leaked_process() -> Iterator[None]:
    """Fail a test that leaves a child process running after a grace, and end it."""
    before = set(psutil.Process().children(recursive=True))
    yield
    leaked = set(psutil.Process().children(recursive=True)) - before
    _, alive = psutil.wait_procs(leaked, timeout=GRACE_S)
    commands = [process.cmdline() for process in alive]
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=GRACE_S)
    assert not commands, f"child processes leaked: {commands}"
