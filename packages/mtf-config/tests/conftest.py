"""Fixtures of every test here: config files in a folder, and a watch for what leaks."""

from __future__ import annotations

import os
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from mtf_config import ConfigurationManager, ExperimentConfig, MtfConfigError

# A busy machine is no reason to fail, and a test leaves no files in the tree.
settings.register_profile(
    "mtf", deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("mtf")

Write = Callable[[str, str | bytes], Path]


@pytest.fixture(autouse=True)
def _no_leak() -> Iterator[None]:
    """Fail a test that leaves an environment variable, a thread or an open file."""

    def state() -> tuple[dict[str, str], set[threading.Thread], int]:
        environ = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}
        files = Path("/proc/self/fd")
        num_files = len(list(files.iterdir())) if files.is_dir() else 0
        return environ, set(threading.enumerate()), num_files

    before = state()
    yield
    assert state() == before


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes a file, text dedented, below ``tmp_path``."""

    def _write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            content = textwrap.dedent(content).encode()
        path.write_bytes(content)
        return path

    return _write


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., ExperimentConfig]:
    """Return a function that loads ``name`` with overrides; no environment by default."""

    def _load(
        name: str, *overrides: str, environ: dict[str, str] | None = None
    ) -> ExperimentConfig:
        manager = ConfigurationManager(tmp_path, environ=environ or {})
        return manager.load(name, overrides)

    return _load


@pytest.fixture
def refusal(load: Callable[..., ExperimentConfig]) -> Callable[..., str]:
    """Return a function that loads, fails as it must, and gives the users' message."""

    def _refusal(
        name: str, *overrides: str, environ: dict[str, str] | None = None
    ) -> str:
        with pytest.raises(MtfConfigError) as caught:
            load(name, *overrides, environ=environ)
        return str(caught.value)

    return _refusal
