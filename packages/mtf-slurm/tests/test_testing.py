from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mtf_slurm.command import Commands
from mtf_slurm.errors import SchedulerCommandError
from mtf_slurm.testing import FakeSlurm

COMMANDS = Commands(timeout_s=20, num_attempts=1)
WaitFor = Callable[[Callable[[], object]], None]


@pytest.fixture
def sbatch(tmp_path: Path, slurm: FakeSlurm) -> Callable[..., str]:
    """Submit lines of shell in a folder of their own; return the job's id."""
    assert slurm.folder.is_dir()

    def submit(script: str, *options: str) -> str:
        path = tmp_path / "job.sh"
        path.write_text(f"#!/bin/bash\n{script}\n", encoding="utf-8")
        argv = ["sbatch", "--parsable", f"--chdir={tmp_path}", *options, str(path)]
        return COMMANDS.once(argv).strip()

    return submit


def state(slurm: FakeSlurm, task_id: str) -> str:
    """Return Slurm's word for a task."""
    return str(slurm.tasks()[task_id]["state"])


def test_jobs_run_with_slurms_variables(
    sbatch: Callable[..., str], slurm: FakeSlurm, tmp_path: Path, wait_for: WaitFor
) -> None:
    """A task knows its array and index, and writes where its options say."""
    job = sbatch(
        '#SBATCH --output="%A_%a 100%%.txt"\necho $SLURM_ARRAY_JOB_ID $SLURM_ARRAY_TASK_ID',
        "--array=1,3",
    )
    wait_for(lambda: {state(slurm, f"{job}_{i}") for i in (1, 3)} == {"COMPLETED"})
    text = (tmp_path / f"{job}_3 100%.txt").read_text(encoding="utf-8")
    assert text == f"{job} 3\n"


def test_places_are_kept(
    sbatch: Callable[..., str], slurm: FakeSlurm, tmp_path: Path, wait_for: WaitFor
) -> None:
    """No more run than there are slots, and than the array's limit."""
    slurm.configure(num_slots=3)
    wait = "until [ -e go ]; do sleep 0.02; done"
    many = sbatch(wait, "--array=0-3%2")
    other = sbatch(wait, "--array=0-3")
    words = [state(slurm, f"{job}_{i}") for job in (many, other) for i in range(4)]
    assert words.count("RUNNING") == 3
    assert words[:4].count("RUNNING") == 2
    (tmp_path / "go").touch()
    wait_for(lambda: {t["state"] for t in slurm.tasks().values()} == {"COMPLETED"})


def test_dependencies(
    sbatch: Callable[..., str], slurm: FakeSlurm, wait_for: WaitFor
) -> None:
    """They wait, run, or are cancelled when they never can."""
    slurm.configure(is_held=True)
    bad = sbatch("exit 1")
    after = sbatch("true", f"--dependency=afterany:{bad}")
    never = sbatch("true", f"--dependency=afterok:{bad}", "--kill-on-invalid-dep=yes")
    reason = sbatch("true", f"--dependency=afternotok:{after}")
    slurm.configure(is_held=False)
    wait_for(lambda: state(slurm, after) == "COMPLETED")
    assert (state(slurm, bad), state(slurm, never)) == ("FAILED", "CANCELLED")
    assert slurm.tasks()[reason]["reason"] == "Dependency"


def test_what_ignores_its_warning_is_killed(
    sbatch: Callable[..., str], slurm: FakeSlurm, tmp_path: Path, wait_for: WaitFor
) -> None:
    """A time limit ends what does not end by itself; a preemption that may not requeue, too."""
    slurm.configure(grace_s=0.05, kill_wait_s=0.05)
    script = "trap '' TERM\ntouch up_$SLURM_JOB_ID\nwhile :; do sleep 0.02; done"
    jobs = [sbatch(script), sbatch(script, "--no-requeue")]
    wait_for(lambda: all((tmp_path / f"up_{job}").exists() for job in jobs))
    slurm.time_out(jobs[0])
    slurm.preempt(jobs[1])
    wait_for(lambda: [state(slurm, j) for j in jobs] == ["TIMEOUT", "PREEMPTED"])
    with pytest.raises(ValueError, match="not RUNNING"):
        slurm.preempt(jobs[0])


def test_a_signal_to_the_batch_shell(
    sbatch: Callable[..., str], slurm: FakeSlurm, tmp_path: Path, wait_for: WaitFor
) -> None:
    """With ``B:`` the shell is warned of the time limit."""
    script = "trap 'exit 4' USR1\ntouch up\nwhile :; do sleep 0.02; done"
    job = sbatch(script, "--signal=B:USR1@60")
    wait_for((tmp_path / "up").exists)
    slurm.time_out(job)
    wait_for(lambda: state(slurm, job) == "FAILED")
    assert slurm.tasks()[job]["exit_code"] == "4:0"


def test_a_folder_that_is_gone(
    sbatch: Callable[..., str], slurm: FakeSlurm, tmp_path: Path, wait_for: WaitFor
) -> None:
    """A job that cannot begin has failed."""
    job = sbatch("true", f"--chdir={tmp_path / 'gone'}")
    wait_for(lambda: state(slurm, job) == "FAILED")


def test_replies_as_json_and_text(sbatch: Callable[..., str], slurm: FakeSlurm) -> None:
    """What followers ask for is there, and what is not known is refused."""
    slurm.configure(is_held=True)
    job = sbatch("true", "--job-name=n", "--partition=p", "--array=0-1")
    ask = ["squeue", "--noheader", "--array", "--name=n", "--states=pending"]
    assert COMMANDS.run([*ask, "--format=%i %P %r"]).split()[0] == f"{job}_0"
    [first, _] = json.loads(COMMANDS.run(["squeue", "--json"]))["jobs"]
    assert (first["job_state"], first["array_task_id"]) == ("PENDING", 0)
    ask = ["sacct", "--parsable2", "--format=JobID,Start,Submit,ElapsedRaw,NodeList"]
    assert COMMANDS.run(ask).startswith(f"{job}_0|Unknown|2")
    assert "UP" in COMMANDS.run(["scontrol", "ping"])
    assert COMMANDS.run(["scancel", job]) == ""
    assert COMMANDS.run(["squeue"]) == ""


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["sbatch", "--nope", "x"], "unrecognized option"),
        (["sbatch", "--nodes"], "requires an argument"),
        (["sbatch"], "Batch script missing"),
        (["sbatch", "none"], "Unable to open"),
        (["sbatch", "slurm/lock"], "does not look like a batch script"),
        (["sbatch", "--array=x", "slurm/bin/srun"], "Invalid job array"),
        (["sbatch", "--array=0-2000", "slurm/bin/srun"], "Invalid job array"),
        (["squeue", "--jobs=9"], "Invalid job id"),
        (["scancel", "9"], "Invalid job id"),
        (["scontrol", "requeue", "9"], "Invalid job id"),
        (["scontrol", "reconfigure"], "invalid keyword"),
    ],
)
def test_what_is_refused(argv: list[str], said: str, slurm: FakeSlurm) -> None:
    """As Slurm refuses, in its words."""
    slurm.configure(is_held=True)
    with pytest.raises(SchedulerCommandError, match=said):
        COMMANDS.once(argv, cwd=str(slurm.folder.parent))


def test_unknown_fields_and_settings(
    sbatch: Callable[..., str], slurm: FakeSlurm
) -> None:
    """A field that nobody looked at is an error, not an empty text."""
    slurm.configure(is_held=True)
    sbatch("true")
    with pytest.raises(SchedulerCommandError, match="Invalid job format"):
        COMMANDS.once(["squeue", "--format=%Q"])
    with pytest.raises(SchedulerCommandError, match="Invalid field"):
        COMMANDS.once(["sacct", "--format=Nope"])
    with pytest.raises(ValueError, match="num_slots"):
        slurm.configure(slots=1)
    assert COMMANDS.once(["sbatch", str(slurm.folder / "bin" / "srun")]).startswith("Sub")
