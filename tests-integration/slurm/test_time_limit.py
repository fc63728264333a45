"""What was begun before all other tests of the cluster, as it takes a minute or two."""

from __future__ import annotations

import pytest

from mtf_slurm.states import JobState
from slurm.cluster import Cluster
from slurm.conftest import Timed
from slurm.training import trained

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
# A limit is looked at every 30 s; the last look comes up to a minute late.
LATE_S = 240


def test_time_limit_warns_and_ends_a_job(cluster: Cluster, timed: Timed) -> None:
    """The batch shell gets the signal it asked for, and later the job is in TIMEOUT."""
    cluster.wait_for(timed.shell_job, "TIMEOUT", LATE_S)
    assert (timed.folder / "warned").read_text("utf-8") == "warned\n"


def test_training_goes_on_behind_its_time_limit(
    client: Cluster, timed: Timed, undisturbed: tuple[bytes, bytes]
) -> None:
    """Warned of its limit a training saves, is requeued, and ends as one undisturbed."""
    [state] = timed.project.launcher().wait([timed.training_job], timeout_s=LATE_S)
    assert state is JobState.SUCCEEDED, client.logs()
    first, *others = timed.project.starts("timed")
    assert {first, *others} == {"n2"}
    assert others
    assert trained(timed.project.experiments / "timed") == undisturbed
