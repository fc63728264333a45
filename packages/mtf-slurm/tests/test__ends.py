from __future__ import annotations

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
    row = "{}|{}|1:0|7|5|2|1|00:02.187|500M|mem=500M|||\n"
    step = "{}.batch|COMPLETED|0:0|7||2|1|00:02.187|||12312K|1|mem=12312K\n"
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
    row = f"{job_id}|RUNNING|0:0|7|5|2|1|00:02.187|500M|mem=500M|||\n"
    slurm.fail("sacct", "", status=0, stdout=row)
    assert launcher.outcomes([job_id]) == [End("exit code 3")]
    slurm.fail("squeue")
    assert launcher.outcomes([job_id]) == [End()]
    slurm.configure(is_held=True)
    launcher.requeue([job_id])
    assert launcher.outcomes([job_id]) == [End()]
