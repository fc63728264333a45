from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtf_slurm._before import Before
from mtf_slurm.command import Commands
from mtf_slurm.testing import FakeSlurm

Make = Callable[..., Any]
FILES = ("config.yaml", "code.json", "submission.json")


def test_files_are_put_back_as_they_were(tmp_path: Path) -> None:
    """Those that were there and are others now; what cannot be written stays."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.yaml").write_bytes(b"1")
    (tmp_path / "a" / "code.json").write_bytes(b"2")
    before = Before(tmp_path)
    before.note(["a", "b"])
    (tmp_path / "a" / "config.yaml").write_bytes(b"other")
    (tmp_path / "a" / "code.json").unlink()
    before.put_back(["a", "b", "c"])
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["config.yaml"]
    assert (tmp_path / "a" / "config.yaml").read_bytes() == b"1"


@pytest.mark.parametrize("is_lost", [False, True])
def test_what_slurm_refuses_leaves_the_last_jobs_files(
    is_lost: bool,  # noqa: FBT001
    make_launcher: Make,
    experiment: Make,
    slurm: FakeSlurm,
    project: Path,
) -> None:
    """Its config and its code's record, to which it may be requeued; unless it may be taken."""
    launcher = make_launcher(commands=Commands(timeout_s=20, num_attempts=1))
    job_id = launcher.submit_single_experiment(experiment("e", do="fail"))
    launcher.wait([job_id], timeout_s=60)
    folder = project / "experiments" / "e"
    before = {name: (folder / name).read_bytes() for name in FILES}
    (project / "train.py").write_text("raise SystemExit(4)\n", encoding="utf-8")
    if is_lost:
        slurm.fail("sbatch", is_after=True)
    else:
        slurm.fail("sbatch", "sbatch: error: Batch job submission failed: Invalid qos")
    [row] = launcher.submit_experiment_batch([experiment("e", do="again")])
    assert row.job_id is None
    changed = [n for n in FILES if (folder / n).read_bytes() != before[n]]
    assert changed == ([*FILES] if is_lost else [])
    do = json.loads((folder / "config.yaml").read_bytes())["do"]
    assert do == ("again" if is_lost else "fail")
