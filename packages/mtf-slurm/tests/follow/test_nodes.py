from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtf_slurm.command import Commands
from mtf_slurm.follow.nodes import (
    FailingNodes,
    NodeFailure,
    blamed,
    failures_in,
    record,
)
from mtf_slurm.testing import FakeSlurm

COMMANDS = Commands(timeout_s=20, num_attempts=1)
HOUR_S = 3600.0
# As Slurm 22.05.8 writes it, shortened.
SHOWN = """\
NodeName=n1 Arch=x86_64 CPUAlloc=1 State=MIXED ThreadsPerCore=1 Comment=a b
NodeName=n2 Arch=x86_64 CPUAlloc=0 State=DOWN+NOT_RESPONDING Reason=Not responding
NodeName=n3 Arch=x86_64 CPUAlloc=0 State=IDLE+DRAIN ThreadsPerCore=1
NodeName=n4 Arch=x86_64 CPUAlloc=0 State=DOWN* ThreadsPerCore=1
"""


def failure(node: str = "n1", at_s: float = 0.0, job_id: str = "1") -> NodeFailure:
    """Return a failure."""
    return NodeFailure(node=node, at_s=at_s, job_id=job_id, reason="NodeDown")


def test_failures_count_within_a_window(tmp_path: Path) -> None:
    """Of each node so many have to lie in it; the same one counts once."""
    failures = [failure(at_s=i * HOUR_S, job_id=str(i)) for i in range(3)]
    record(tmp_path, [*failures, failure("n2", HOUR_S), *failures])
    record(tmp_path, failures)
    assert len(failures_in(tmp_path)) == 4
    rule = FailingNodes(num_failures=3, window=timedelta(hours=3))
    assert rule.excluded(tmp_path, now_s=2 * HOUR_S) == ("n1",)
    assert rule.excluded(tmp_path, now_s=1 * HOUR_S) == ()
    assert rule.excluded(tmp_path, now_s=4 * HOUR_S) == ()
    assert FailingNodes(num_failures=1).excluded(tmp_path, now_s=HOUR_S) == ("n1", "n2")
    assert rule.excluded(tmp_path) == ()


def test_what_is_a_month_old_is_forgotten(tmp_path: Path) -> None:
    """The file does not grow for ever."""
    record(tmp_path, [failure(at_s=0)])
    record(tmp_path, [failure(at_s=31 * 24 * HOUR_S)])
    assert [f.at_s for f in failures_in(tmp_path)] == [31 * 24 * HOUR_S]


def test_a_damaged_file_loses_its_damaged_lines_alone(tmp_path: Path) -> None:
    """A torn line, a strange one, and a name that is none do no harm."""
    record(tmp_path, [failure(job_id="1"), failure(job_id="2")])
    path = tmp_path / ".slurm" / "nodes.jsonl"
    hostile = {"node": "n1,$(reboot)", "at_s": 0, "job_id": "3", "reason": ""}
    lines = [json.dumps(hostile), json.dumps({**hostile, "node": "n1", "at_s": "x"})]
    more = ["[1]", "7", '{"node": "n1"', '{"node": 5}', "\x00"]
    with path.open("a", encoding="utf-8") as file:
        file.write("\n".join([*lines, *more]))
    assert [f.job_id for f in failures_in(tmp_path)] == ["1", "2"]
    assert FailingNodes(num_failures=2).excluded(tmp_path, now_s=1) == ("n1",)


@given(st.text(max_size=20))
def test_no_hostile_name_gets_out(node: str) -> None:
    """Whatever the file says, only plain names are left out."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        record(folder, [failure(node)])
        for found in FailingNodes(num_failures=1).excluded(folder, now_s=1):
            assert found == node
            assert found.replace("-", "").replace("_", "").replace(".", "").isalnum()


def _record(folder: Path, number: int) -> None:
    for index in range(10):
        record(folder, [failure(job_id=f"{number}_{index}")])


@pytest.mark.slow
def test_many_processes_write(tmp_path: Path) -> None:
    """Nothing that one notes is lost by another."""
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_record, args=(tmp_path, i)) for i in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    assert len(failures_in(tmp_path)) == 40


def test_of_several_nodes_those_that_are_down_are_to_blame(slurm: FakeSlurm) -> None:
    """Of one node, that one; if Slurm does not say which, none of several."""
    assert blamed(COMMANDS, "n1") == ("n1",)
    assert slurm.calls() == []
    slurm.fail("scontrol", "", status=0, stdout=SHOWN)
    assert blamed(COMMANDS, "n[1-4]") == ("n2", "n3", "n4")
    slurm.fail("scontrol", "error: no")
    assert blamed(COMMANDS, "n[1-2]") == ()
    assert [blamed(COMMANDS, nodes) for nodes in ("", "--help", "-a,b")] == [(), (), ()]


@pytest.mark.parametrize("wrong", [{"num_failures": 0}, {"window": timedelta(0)}])
def test_rules_that_make_no_sense(wrong: dict[str, object]) -> None:
    """They are refused at once."""
    with pytest.raises(ValueError, match="num_failures"):
        FailingNodes(**wrong)  # type: ignore[arg-type]


def test_a_folder_that_cannot_be_written(tmp_path: Path, slurm: FakeSlurm) -> None:
    """Whoever notes is told; whoever reads finds nothing."""
    (tmp_path / ".slurm").write_text("", encoding="utf-8")
    with pytest.raises(OSError, match="slurm"):
        record(tmp_path, [failure()])
    assert failures_in(tmp_path) == []
    assert slurm.calls() == []


def test_the_launchers_shape() -> None:
    """What a launcher takes is a function of the folder."""
    function: Callable[[Path], tuple[str, ...]] = FailingNodes().excluded
    assert function(Path("nowhere")) == ()
