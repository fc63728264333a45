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
    record(tmp_path, [failure(job_id="1"), failure(job_id="2", at_s=90)])
    path = tmp_path / ".slurm" / "nodes.jsonl"
    hostile = {"node": "n1,$(reboot)", "at_s": 0, "job_id": "3", "reason": ""}
    lines = [json.dumps(hostile), json.dumps({**hostile, "node": "n1", "at_s": "x"})]
    more = ["[1]", "7", '{"node": "n1"', '{"node": 5}', "\x00"]
    with path.open("a", encoding="utf-8") as file:
        file.write("\n".join([*lines, *more]))
    assert [f.job_id for f in failures_in(tmp_path)] == ["1", "2"]
    assert FailingNodes(num_failures=2).excluded(tmp_path, now_s=99) == ("n1",)


def test_one_power_loss_is_one_failure(tmp_path: Path) -> None:
    """However many jobs it ends: of those within a minute of the first, one counts."""
    lost = [failure(at_s=at_s, job_id=str(at_s)) for at_s in (100, 101, 130, 160)]
    record(tmp_path, [*lost, failure("n2", 100)])
    assert FailingNodes(num_failures=2).excluded(tmp_path, now_s=200) == ()
    record(tmp_path, [failure(at_s=161, job_id="1")])
    assert FailingNodes(num_failures=2).excluded(tmp_path, now_s=200) == ("n1",)
    assert FailingNodes(num_failures=3).excluded(tmp_path, now_s=200) == ()


ENDED = "NODE_FAIL|0:0|n7|2026-11-22T11:22:34|2026-11-22T11:{:02}:49|/x|{}\n"


def test_one_end_that_is_told_twice_counts_once(
    experiments: Path,
) -> None:
    """A monitor may note an end minutes after the date that accounting has for it."""
    experiments.mkdir(parents=True, exist_ok=True)
    told = [("1", 1000.0), ("1", 1300.0), ("2", 1000.0), ("1", 5000.0)]
    record(
        experiments,
        [NodeFailure(node="n1", at_s=s, job_id=i, reason="x") for i, s in told],
    )
    assert FailingNodes(num_failures=2).excluded(experiments, now_s=6000) == ("n1",)
    assert FailingNodes(num_failures=3).excluded(experiments, now_s=6000) == ()


def test_accounting_knows_what_no_monitor_saw(
    experiments: Path, slurm: FakeSlurm, submit: Callable[..., str]
) -> None:
    """Whoever asks for it need not have followed; of several nodes, nobody can say which."""
    slurm.configure(is_held=True)
    one, array = submit("a"), submit("b", "c")
    reply = (
        f"{one}|{ENDED.format(10, one)}{one}|{ENDED.format(20, one)}"
        f"{array}_1|{ENDED.format(30, f'{array}_1')}"
        f"{array}_0|{ENDED.format(40, f'{array}_0').replace('n7', 'n[1-3]')}"
        f"{array}_0|PREEMPTED|0:0|n8|2026-11-22T11:22:34|2026-11-22T11:22:49|/x|{array}_0\n"
        f"{one}|PENDING|0:0|None assigned|Unknown|Unknown|/x|{one}\n"
    )
    slurm.fail("sacct", "", times=2, status=0, stdout=reply)
    rule = FailingNodes(commands=COMMANDS, window=timedelta(days=9999))
    for _ in range(2):
        assert rule.excluded(experiments) == ("n7",)
        assert len(failures_in(experiments)) == 3
    assert slurm.calls("sacct")[0][-1] == f"--jobs={one},{array}"
    assert slurm.calls("scontrol") == []


def test_a_node_that_fails_is_left_out_without_a_monitor(
    experiments: Path,
    slurm: FakeSlurm,
    sbatch: Callable[..., str],
    submit: Callable[..., str],
    wait_for: Callable[[Callable[[], object]], None],
) -> None:
    """As real jobs fail, and come back; a job of another folder is none of it."""
    ids = [
        submit("a", script="sleep 60", options=("--requeue",)),
        sbatch("sleep 60", "--no-requeue"),
    ]
    wait_for(lambda: all(slurm.tasks()[i]["state"] == "RUNNING" for i in ids))
    slurm.configure(is_held=True)
    for job_id in ids:
        slurm.fail_node(job_id)
    rule = FailingNodes(num_failures=1, commands=COMMANDS)
    wait_for(lambda: rule.excluded(experiments) == ("n1",))
    assert {f.job_id for f in failures_in(experiments)} == {ids[0]}


def test_accounting_that_does_not_answer_stops_nothing(
    experiments: Path,
    slurm: FakeSlurm,
    submit: Callable[..., str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What is known is left out, and the trouble is told."""
    slurm.configure(is_held=True, has_accounting=False)
    submit("a")
    record(experiments, [failure()])
    rule = FailingNodes(num_failures=1, commands=COMMANDS)
    assert rule.excluded(experiments, now_s=1) == ("n1",)
    assert "not looked up: sacct: error: Slurm accounting storage is" in caplog.text


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
