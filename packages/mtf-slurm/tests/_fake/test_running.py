from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mtf_slurm.command import Commands
from mtf_slurm.testing import FakeSlurm

COMMANDS = Commands(timeout_s=20, num_attempts=1)
WaitFor = Callable[[Callable[[], object]], None]
State = Callable[[str], str]


def test_jobs_run_with_slurms_variables(
    sbatch: Callable[..., str],
    state: State,
    tmp_path: Path,
    wait_for: WaitFor,
) -> None:
    """A task knows its array and index, and writes where its options say."""
    job = sbatch(
        '#SBATCH --output="%A_%a 100%%.txt"\necho $SLURM_ARRAY_JOB_ID $SLURM_ARRAY_TASK_ID',
        "--array=1,3",
    )
    wait_for(lambda: {state(f"{job}_{i}") for i in (1, 3)} == {"COMPLETED"})
    text = (tmp_path / f"{job}_3 100%.txt").read_text(encoding="utf-8")
    assert text == f"{job} 3\n"


def test_what_ignores_its_warning_is_killed(
    sbatch: Callable[..., str],
    slurm: FakeSlurm,
    state: State,
    tmp_path: Path,
    wait_for: WaitFor,
) -> None:
    """A time limit ends what does not end by itself; a preemption that may not requeue, too."""
    slurm.configure(grace_s=0.05, kill_wait_s=0.05)
    script = "trap '' TERM\ntouch up_$SLURM_JOB_ID\nwhile :; do sleep 0.02; done"
    jobs = [sbatch(script), sbatch(script, "--no-requeue")]
    wait_for(lambda: all((tmp_path / f"up_{job}").exists() for job in jobs))
    slurm.time_out(jobs[0])
    slurm.preempt(jobs[1])
    wait_for(lambda: [state(j) for j in jobs] == ["TIMEOUT", "PREEMPTED"])
    with pytest.raises(ValueError, match="not RUNNING"):
        slurm.preempt(jobs[0])


def test_a_signal_to_the_batch_shell(
    sbatch: Callable[..., str],
    slurm: FakeSlurm,
    state: State,
    tmp_path: Path,
    wait_for: WaitFor,
) -> None:
    """With ``B:`` the shell is warned of the time limit."""
    script = "trap 'exit 4' USR1\ntouch up\nwhile :; do sleep 0.02; done"
    job = sbatch(script, "--signal=B:USR1@60")
    wait_for((tmp_path / "up").exists)
    slurm.time_out(job)
    wait_for(lambda: state(job) == "FAILED")
    assert slurm.tasks()[job]["exit_code"] == "4:0"


def test_a_folder_that_is_gone(
    sbatch: Callable[..., str],
    state: State,
    tmp_path: Path,
    wait_for: WaitFor,
) -> None:
    """A job that cannot begin has failed."""
    job = sbatch("true", f"--chdir={tmp_path / 'gone'}")
    wait_for(lambda: state(job) == "FAILED")


def test_a_step_that_had_to_be_killed(
    sbatch: Callable[..., str],
    slurm: FakeSlurm,
    tmp_path: Path,
    wait_for: WaitFor,
) -> None:
    """Its srun says 0, as Slurm's does, and the batch shell gets to know of the signal."""
    slurm.configure(grace_s=0.05, kill_wait_s=0.5)
    step = "trap '' TERM; touch up; while :; do sleep 0.02; done"
    script = f"""trap 'got=TERM' TERM
srun --ntasks=1 /bin/bash -c "{step}" &
until wait $!; status=$?; [ $status = 0 ] || [ $status = 127 ]; do :; done
echo $got $status >said"""
    job = sbatch(script)
    wait_for((tmp_path / "up").exists)
    slurm.preempt(job)
    wait_for(lambda: slurm.tasks()[job]["restarts"] == 1)
    assert (tmp_path / "said").read_text(encoding="utf-8") == "TERM 0\n"


def test_nodes_without_scontrol(
    sbatch: Callable[..., str],
    slurm: FakeSlurm,
    state: State,
    tmp_path: Path,
    wait_for: WaitFor,
) -> None:
    """Jobs find the other commands there, and a login node all of them."""
    slurm.configure(has_scontrol_on_nodes=False)
    job = sbatch("squeue --version >found; scontrol ping")
    wait_for(lambda: state(job) == "FAILED")
    assert slurm.tasks()[job]["exit_code"] == "127:0"
    assert (tmp_path / "found").read_text(encoding="utf-8").startswith("slurm ")
    assert "UP" in COMMANDS.run(["scontrol", "ping"])
