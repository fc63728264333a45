from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from mtf_slurm.command import Commands
from mtf_slurm.errors import SchedulerCommandError
from mtf_slurm.testing import FakeSlurm

COMMANDS = Commands(timeout_s=20, num_attempts=1)
WaitFor = Callable[[Callable[[], object]], None]
State = Callable[[str], str]


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


def test_what_followers_ask_for(
    sbatch: Callable[..., str], slurm: FakeSlurm, state: State, wait_for: WaitFor
) -> None:
    """Versions, starts, resources, and the runs of a job that was requeued."""
    slurm.configure(is_held=True)
    job = sbatch("exit 3", "--time=1-2:03:04", "--cpus-per-task=3", "--nodes=2")
    short = sbatch("true", "--time=90:30")
    assert COMMANDS.run(["squeue", "--version"]) == "slurm 22.05.8\n"
    ask = ["squeue", "--noheader", "--start", f"--jobs={job},{short}", "--format=%i %S"]
    assert COMMANDS.run(ask) == f"{job} N/A\n{short} N/A\n"
    fields = "TimelimitRaw,AllocCPUS,NNodes,AllocTRES,ReqMem,MaxRSS,TotalCPU"
    rows = COMMANDS.run(["sacct", "--parsable2", f"--format={fields}"]).splitlines()
    assert rows == [
        "1564|6|2||||00:00:00",
        "91|1|1||||00:00:00",
    ]
    slurm.configure(is_held=False)
    wait_for(lambda: state(job) == "FAILED")
    ask = ["sacct", f"--jobs={job}", "--format=AllocTRES,JobID,JobID"]
    assert COMMANDS.run(ask) == f"billing=6,cpu=6,node=2|{job}|{job}\n"
    slurm.configure(is_held=True)
    COMMANDS.run(["scontrol", "requeue", job])
    ask = ["sacct", "--duplicates", f"--jobs={job}", "--format=State,ExitCode"]
    assert COMMANDS.run(ask) == "FAILED|3:0\nPENDING|0:0\n"
    assert "Restarts=1 " in COMMANDS.run(["scontrol", "show", "job", "--oneliner", job])
