from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtf_slurm import _batch
from mtf_slurm._before import Before
from mtf_slurm.command import Commands
from mtf_slurm.experiments import write_text
from mtf_slurm.testing import FakeSlurm

Make = Callable[..., Any]
FILES = ("config.yaml", "code.json", "submission.json")


def test_files_are_put_back_as_they_were(tmp_path: Path) -> None:
    """Those that were written over; what a user wrote meanwhile, or removed, is theirs."""
    before = Before(tmp_path)
    for name in "ab":
        (tmp_path / name).mkdir()
        for file in FILES:
            (tmp_path / name / file).write_bytes(b"1")
    before.note("abc")
    before.wrote({"a": "2", "b": "2"})
    for name in "ab":
        for file in FILES[:2]:
            (tmp_path / name / file).write_bytes(b"2")
        (tmp_path / name / FILES[2]).unlink()
    (tmp_path / "b" / "config.yaml").write_bytes(b"edited")
    before.put_back("abcd")
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()} == {
        "config.yaml": b"1",
        "code.json": b"1",
    }
    assert (tmp_path / "b" / "config.yaml").read_bytes() == b"edited"


def test_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be put back stays as it is."""
    before = Before(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "code.json").write_bytes(b"1")
    before.note("a")
    (tmp_path / "a" / "code.json").write_bytes(b"2")

    def full(path: Path, _: bytes) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    before.put_back("a")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["code.json"]
    assert (tmp_path / "a" / "code.json").read_bytes() == b"2"


def test_an_interruption_leaves_the_last_jobs_files(
    make_launcher: Make,
    experiment: Make,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ctrl-C while configs are written submits nothing, and loses none."""
    launcher = make_launcher()
    batch = [experiment(name, do="fail") for name in "ab"]
    launcher.wait(launcher.submit_experiment_batch(batch).job_ids, timeout_s=60)
    folder = project / "experiments"
    before = {name: (folder / name / "config.yaml").read_bytes() for name in "ab"}
    with monkeypatch.context() as patch:

        def interrupted(place: Path, name: str, text: str) -> None:
            write_text(place, name, text)
            raise KeyboardInterrupt

        patch.setattr(_batch, "write_text", interrupted)
        with pytest.raises(KeyboardInterrupt):
            launcher.submit_experiment_batch([*map(experiment, "ab")])
    assert {n: (folder / n / "config.yaml").read_bytes() for n in "ab"} == before


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
