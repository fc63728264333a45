from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mtf_slurm import arrays
from mtf_slurm.follow._jobs import Jobs
from mtf_slurm.testing import FakeSlurm


def test_the_last_job_of_each_experiment(
    experiments: Path, submit: Callable[..., str], slurm: FakeSlurm
) -> None:
    """Of folders that grow, with more ids; what has no id yet is not there."""
    slurm.configure(is_held=True)
    first = submit("a", "b")
    jobs = Jobs([experiments, experiments], ["77", f"{first}_0"])
    assert list(jobs.now()) == [f"{first}_0", f"{first}_1", "77"]
    again = submit("a")
    arrays.new_job(experiments, 9)
    now = jobs.now()
    assert [(j.job_id, j.experiment_name) for j in now.values()] == [
        (again, "a"),
        (f"{first}_1", "b"),
        ("77", ""),
        (f"{first}_0", ""),
    ]
    assert (now[again].folder, now["77"].folder) == (experiments, None)
    assert jobs.ids_in(experiments) == {"a": [f"{first}_0", again], "b": [f"{first}_1"]}


@pytest.mark.parametrize("wrong", ["", "0", "-1", "12;x", "1_", "../x"])
def test_what_is_no_id(wrong: str) -> None:
    """It is refused before anything is asked."""
    with pytest.raises(ValueError, match="no job's id"):
        Jobs([], [wrong])
