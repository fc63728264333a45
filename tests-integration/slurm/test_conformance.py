"""`SLURMLauncher` against the conformance suite of mtf-gridsearch, on the real Slurm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mtf_gridsearch.testing import LauncherConformance
from mtf_slurm.launcher import SLURMLauncher
from slurm.training import Project

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


@pytest.mark.usefixtures("client", "timed")
class TestOnTheRealSlurm(LauncherConformance):
    """Every test of the suite."""

    @pytest.fixture
    def make_launcher(
        self, tmp_path_factory: pytest.TempPathFactory
    ) -> Callable[[Path], SLURMLauncher]:
        """Return what makes launchers of one project."""
        project = Project(tmp_path_factory.mktemp("conformance") / "project")
        return lambda script: project.launcher(str(script))
