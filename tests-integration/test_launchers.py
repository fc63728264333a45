"""Launchers of other packages against the conformance suite of mtf-gridsearch."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mtf_gridsearch.testing import LauncherConformance
from mtf_slurm.launcher import SLURMLauncher
from mtf_slurm.testing import FakeSlurm


@pytest.mark.slow
class TestOnTheFakeSlurm(LauncherConformance):
    """`SLURMLauncher`, on the Slurm of `mtf_slurm.testing`; see also `slurm/`."""

    @pytest.fixture
    def make_launcher(
        self, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[Callable[[Path], SLURMLauncher]]:
        """Return what makes launchers of one project on one Slurm."""
        root = tmp_path_factory.mktemp("project")
        user = ("-c", "user.name=U", "-c", "user.email=u@example.org")
        empty = (*user, "commit", "-q", "--allow-empty", "-m", "one")
        for args in (("init", "-q"), empty):
            subprocess.run(["git", *args], cwd=root, check=True, timeout=60)

        def make(script: Path) -> SLURMLauncher:
            return SLURMLauncher(
                project_root=root, entry_point=script, poll_interval_s=0.1
            )

        with FakeSlurm(tmp_path_factory.mktemp("slurm")) as slurm:
            monkeypatch.setenv("PATH", slurm.path)
            yield make
