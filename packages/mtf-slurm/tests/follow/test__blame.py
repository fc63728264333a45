from __future__ import annotations

from pathlib import Path

import pytest

from mtf_slurm._answers import Answer
from mtf_slurm.command import Commands
from mtf_slurm.follow._blame import Blame
from mtf_slurm.follow._jobs import Followed
from mtf_slurm.follow.changes import NOT_LAUNCHED, Seen
from mtf_slurm.follow.nodes import failures_in
from mtf_slurm.query import Row
from mtf_slurm.states import JobState
from mtf_slurm.testing import FakeSlurm

COMMANDS = Commands(timeout_s=20, num_attempts=1)


def run(job_id: str, state: str, nodes: str = "n1", *, reason: str = "") -> Row:
    """Return a run of a job that has ended."""
    return Row(
        job_id=job_id,
        state=JobState(state),
        folder="",
        has_exit_code=True,
        reason=reason,
        nodes=nodes,
        end_s=50.0,
    )


@pytest.fixture
def jobs(tmp_path: Path) -> dict[str, Followed]:
    """Jobs of a folder, and one of none."""
    ids = ("1", "2", "3", "4_0.1")
    own = {i: Followed(job_id=i, experiment_name="e", folder=tmp_path) for i in ids}
    return {**own, "9": Followed(job_id="9")}


def test_failures_of_nodes_are_told_from_others(
    jobs: dict[str, Followed], tmp_path: Path, slurm: FakeSlurm
) -> None:
    """Of jobs that came back: by what accounting says, or by why Slurm holds them."""
    blame = Blame()
    for job_id in ("1", "2", "3", "4_0.1"):
        blame.suspect(job_id)
    held = run("3", "pending", "", reason=NOT_LAUNCHED)
    seen = {i: Seen(row=None) for i in jobs} | {"3": Seen(row=held)}
    earlier = (
        run("1", "node_failed", "n1"),
        run("2", "preempted", "n2"),
        run("3", "pending", "n3"),
        run("4_0", "node_failed", "n4"),
    )
    answer = Answer(asked=frozenset(jobs), earlier=earlier)
    blame.take(
        answer, ["9"], seen | {"9": Seen(row=run("9", "node_failed"))}, jobs, 60, COMMANDS
    )
    found = failures_in(tmp_path)
    assert [(f.job_id, f.node) for f in found] == [
        ("1", "n1"),
        ("3", "n3"),
        ("4_0.1", "n4"),
    ]
    assert {f.at_s for f in found} == {50.0}
    assert slurm.calls() == []


def test_accounting_is_asked_some_times(jobs: dict[str, Followed]) -> None:
    """It is late; then the job is no suspect any more."""
    blame = Blame()
    blame.suspect("1")
    blame.take(Answer(), [], {}, jobs, 0, COMMANDS)
    for left in (1, 1, 0):
        blame.take(Answer(asked=frozenset({"1"})), [], {}, jobs, 0, COMMANDS)
        assert len(blame.suspects) == left


def test_a_folder_that_cannot_be_written(
    jobs: dict[str, Followed], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """That is said in the log, and following goes on."""
    (tmp_path / ".slurm").write_text("", encoding="utf-8")
    seen = {"1": Seen(row=run("1", "node_failed"))}
    Blame().take(Answer(), ["1"], seen, jobs, 0, COMMANDS)
    assert "failed nodes are not noted" in caplog.text


def test_what_slurm_shows_nothing_of(jobs: dict[str, Followed], tmp_path: Path) -> None:
    """Without a row there is no node to blame."""
    Blame().take(Answer(), ["1"], {"1": Seen()}, jobs, 0, COMMANDS)
    assert failures_in(tmp_path) == []
