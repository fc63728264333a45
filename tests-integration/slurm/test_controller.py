"""The controller of the cluster is restarted, and killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from slurm.cluster import Cluster, ClusterError
from slurm.conftest import Timed

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
SOON_S = 30
LATE_S = 120


@pytest.mark.parametrize("kill", [False, True], ids=["term", "kill"])
def test_controller_restarts_while_jobs_run(
    cluster: Cluster, timed: Timed, tmp_path: Path, *, kill: bool
) -> None:
    """A running job outlives its controller, and ends as it would have."""
    # A warning that is on its way is lost with the controller, as it is anywhere.
    cluster.wait_until((timed.folder / "warned").exists, what="warned", deadline_s=LATE_S)
    script = "touch started; until [ -e go ]; do sleep 0.1; done"
    job = cluster.sbatch(script, cwd=tmp_path)
    cluster.wait_until((tmp_path / "started").exists, what="running", deadline_s=SOON_S)
    state = cluster.settings.folder / "controller" / "job_state"
    # What was submitted in the last seconds before a SIGKILL is lost, as it is anywhere.
    cluster.wait_until(
        lambda: (
            state.exists()
            and state.stat().st_mtime > (tmp_path / "started").stat().st_mtime
        ),
        what="written",
        deadline_s=SOON_S,
    )
    cluster.stop_controller(kill=kill)
    with pytest.raises(ClusterError, match="Unable to contact slurm controller"):
        cluster.sbatch("true")
    cluster.start_controller()
    assert cluster.states(job) == ["RUNNING"]
    (tmp_path / "go").touch()
    cluster.wait_for(job, "COMPLETED", SOON_S)
