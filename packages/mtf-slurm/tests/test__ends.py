from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtf_slurm._ends import End
from mtf_slurm.command import Commands
from mtf_slurm.testing import FakeSlurm

Make = Callable[..., Any]


@pytest.mark.parametrize("launch", ["srun", "none"])
@pytest.mark.parametrize("do", ["fail", "killed"])
def test_a_reason_is_the_programs_last_word(
    launch: str, do: str, make_launcher: Make, experiment: Make, project: Path
) -> None:
    """What srun and the shell say of a program that failed is none."""
    script = project / "train.py"
    script.write_text(
        "import os, sys\n"
        "print('ValueError: the rate is negative', '', '-----', sep='\\n', file=sys.stderr)\n"
        "sys.stderr.flush()\n"
        f"{'sys.exit(7)' if do == 'fail' else 'os.kill(os.getpid(), 9)'}\n",
        encoding="utf-8",
    )
    launcher = make_launcher()
    job_id = launcher.submit_single_experiment(experiment("e", launch=launch))
    assert launcher.wait([job_id], timeout_s=60) == ["failed"]
    what = "exit code 7" if do == "fail" else "killed by signal 9 (Killed)"
    [end] = launcher.outcomes([job_id])
    assert end.reason == f"{what}: ValueError: the rate is negative"


def test_how_jobs_ended_is_told(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm, project: Path
) -> None:
    """Reasons come from what jobs left, else from Slurm; usage from accounting, or is None."""
    launcher = make_launcher()
    batch = [experiment("a"), experiment("b", do="fail"), experiment("c", do="again")]
    asked = [experiment(e.experiment_name, e.values["do"], requeue=False) for e in batch]
    ids = launcher.submit_experiment_batch(asked).job_ids
    launcher.wait(ids, timeout_s=60)
    err = project / "experiments" / "b" / f"{ids[1]}.err"
    err.write_text("Traceback\nValueError: oh\n\n", encoding="utf-8")
    row = "{0}|{1}|1:0|7|5|2|1|00:02.187|500M|mem=500M||||{0}\n"
    step = "{0}.batch|COMPLETED|0:0|7||2|1|00:02.187|||12312K|1|mem=12312K|{0}.batch\n"
    words = ("COMPLETED", "OUT_OF_MEMORY", "FAILED")
    rows = [
        text.format(i, w) for i, w in zip(ids, words, strict=True) for text in (row, step)
    ]
    slurm.fail("sacct", "", status=0, stdout="".join(rows))
    ends = launcher.outcomes(ids)
    assert [end.reason for end in ends] == [
        "",
        "exit code 3; Slurm says OUT_OF_MEMORY: ValueError: oh",
        "it asked to be continued, or was preempted, and did not come back",
    ]
    assert {end[1:] for end in ends} == {(7.0, 2.187, 12312 * 1024)}
    assert len(slurm.calls("sacct")) == 1
    slurm.configure(has_accounting=False)
    assert [end[1:] for end in launcher.outcomes(ids)] == [(None, None, None)] * 3


def test_what_other_ranks_were_ended_by_is_no_reason(
    make_launcher: Make, experiment: Make, project: Path
) -> None:
    """Slurm's word for a step that it killed comes last, and names the node."""
    launcher = make_launcher()
    job_id = launcher.submit_single_experiment(experiment("e", do="fail"))
    launcher.wait([job_id], timeout_s=60)
    err = project / "experiments" / "e" / f"{job_id}.err"
    err.write_text(
        "ValueError: loss is NaN\n"
        "srun: error: n2: task 0: Exited with exit code 1\n"
        "slurmstepd-n2: error: *** STEP 188.0 ON n2 CANCELLED AT 2026-01-01T00:00:00 ***\n"
        "slurmstepd[71]: error: *** STEP 188.0 ON n2 CANCELLED AT 2026-01-01T00:00:00 ***\n",
        encoding="utf-8",
    )
    [end] = launcher.outcomes([job_id])
    assert end.reason == "exit code 3: ValueError: loss is NaN"


def test_what_has_not_ended_has_no_end(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm
) -> None:
    """Neither where it waits again, nor where nobody answers, nor of accounting that is late."""
    launcher = make_launcher(commands=Commands(timeout_s=20, num_attempts=1))
    job_id = launcher.submit_single_experiment(experiment("e", do="fail"))
    launcher.wait([job_id], timeout_s=60)
    row = f"{job_id}|RUNNING|0:0|7|5|2|1|00:02.187|500M|mem=500M||||{job_id}\n"
    slurm.fail("sacct", "", status=0, stdout=row)
    assert launcher.outcomes([job_id]) == [End("exit code 3")]
    slurm.fail("squeue")
    assert launcher.outcomes([job_id]) == [End()]
    slurm.configure(is_held=True)
    launcher.requeue([job_id])
    assert launcher.outcomes([job_id]) == [End()]


def failed(launcher: Any, slurm: FakeSlurm, *experiments: Any) -> tuple[list[str], Path]:
    """Return the ids of experiments that have failed, and where their shell's output lies."""
    ids = launcher.submit_experiment_batch(experiments).job_ids
    slurm.configure(is_held=False)
    assert set(launcher.wait(ids, timeout_s=60)) == {"failed"}
    [task, *_] = slurm.tasks().values()
    return ids, Path(task["folder"]) / "slurm.log"


NO_VENV = (
    r"Slurm says FAILED, exit code 1: \S+: line \d+: /nope/bin/activate: No such file"
)
NO_CODE = "Slurm says FAILED, exit code 1: checkout.py: "


def test_a_script_that_fails_before_its_experiment(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm
) -> None:
    """Its last line is the reason, with Slurm's word for it, where there is accounting."""
    launcher = make_launcher()
    ids, _ = failed(launcher, slurm, experiment("e", venv="/nope"))
    [end] = launcher.outcomes(ids)
    assert re.match(NO_VENV, end.reason)
    assert end.wall_s is not None
    slurm.configure(has_accounting=False)
    [end] = launcher.outcomes(ids)
    assert end.reason.startswith("Slurm says that it failed: /")


def test_a_script_of_several_that_fails_before_them(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm
) -> None:
    """The output of a task that packs them is theirs alone."""
    launcher = make_launcher(num_packed=2)
    both = (experiment("a", venv="/nope"), experiment("b", venv="/nope"))
    ids, log = failed(launcher, slurm, *both)
    assert ids == ["1.0", "1.1"]
    for end in launcher.outcomes(ids):
        assert re.match(NO_VENV, end.reason)
    log.unlink()
    assert {e.reason for e in launcher.outcomes(ids)} == {
        "Slurm says FAILED, exit code 1"
    }


def test_a_script_of_an_array_that_fails_before_its_experiments(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm, project: Path
) -> None:
    """No line of the file that they share is one task's reason, unless it names the task."""
    launcher = make_launcher()
    both = (experiment("a", venv="/nope"), experiment("b", venv="/nope"))
    ids, log = failed(launcher, slurm, *both)
    assert "/nope" in log.read_text(encoding="utf-8")
    pointer = f"Slurm says FAILED, exit code 1; see {log}"
    assert [end.reason for end in launcher.outcomes(ids)] == [pointer] * 2
    with log.open("a", encoding="utf-8") as file:
        file.write(
            f"mtf-slurm: job {ids[0]}: cannot go on\n"
            f"mtf-slurm: job {ids[1]}1: is another\n"
            f"mtf-slurm: job {ids[1]}: asked to come back\n"
            "bash: nothing of anyone\n"
        )
    named = f"Slurm says FAILED, exit code 1: cannot go on (see {log})"
    assert [end.reason for end in launcher.outcomes(ids)] == [named, pointer]
    err = project / "experiments" / "b" / f"{ids[1]}.err"
    err.write_text("Killed\n", encoding="utf-8")
    began = "Slurm says FAILED, exit code 1: Killed"
    assert [end.reason for end in launcher.outcomes(ids)] == [named, began]
    os.utime(err, (1, 1))  # of an earlier run
    assert [end.reason for end in launcher.outcomes(ids)] == [named, pointer]
    log.unlink()
    assert {e.reason for e in launcher.outcomes(ids)} == {
        "Slurm says FAILED, exit code 1"
    }


@pytest.mark.parametrize(("count", "num_packed"), [(1, 1), (2, 2), (2, 1)])
def test_code_that_cannot_be_checked_out(
    count: int,
    num_packed: int,
    make_launcher: Make,
    experiment: Make,
    slurm: FakeSlurm,
    project: Path,
) -> None:
    """What git lacks is told; of tasks that share their output, that it was the code."""
    slurm.configure(is_held=True)
    launcher = make_launcher(num_packed=num_packed)
    batch = [experiment(name) for name in "ab"[:count]]
    launcher.submit_experiment_batch(batch)
    (project / ".git").rename(project / "away")
    ids = [f"{i}" for i in slurm.tasks()]
    if num_packed > 1:
        ids = [f"{ids[0]}.{at}" for at in range(count)]
    slurm.configure(is_held=False)
    assert set(launcher.wait(ids, timeout_s=60)) == {"failed"}
    for end in launcher.outcomes(ids):
        if num_packed < count:
            text = "exit code 1: the code that was submitted cannot be checked out (see /"
            assert text in end.reason
        else:
            assert end.reason.startswith(NO_CODE)


def test_a_node_that_fails_says_nothing_of_the_program(
    make_launcher: Make,
    experiment: Make,
    slurm: FakeSlurm,
    project: Path,
    wait_for: Callable[[Callable[[], object]], None],
) -> None:
    """What an experiment wrote last is no reason for what ended it from outside."""
    launcher = make_launcher()
    doing = experiment("e", do="wait", requeue=False)
    job_id = launcher.submit_single_experiment(doing)
    err = project / "experiments" / "e" / f"{job_id}.err"
    wait_for((err.parent / "starts").exists)
    err.write_text("a warning\n", encoding="utf-8")
    slurm.fail_node(job_id)
    assert launcher.wait([job_id], timeout_s=60) == ["node_failed"]
    assert launcher.outcomes([job_id])[0].reason == "Slurm says NODE_FAIL"
