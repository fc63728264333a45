from __future__ import annotations

from collections.abc import Callable

import pytest

from mtf_slurm.command import Commands
from mtf_slurm.errors import SchedulerCommandError, UnreadableReplyError
from mtf_slurm.follow.efficiency import EfficiencyReport, efficiency
from mtf_slurm.states import JobState
from mtf_slurm.testing import FakeSlurm

COMMANDS = Commands(timeout_s=20, num_attempts=1)

# As a cluster of Slurm 22.05.8 wrote them; and one with GPUs that are accounted.
REPLY = """\
1|COMPLETED|0:0|7|5|2|1|00:02.187|500M|billing=2,cpu=2,mem=500M,node=1||||1
1.batch|COMPLETED|0:0|7||2|1|00:00.015||cpu=2,mem=500M,node=1|12312K|1|cpu=00:00:00,energy=0,fs/disk=34582,mem=12312K,pages=0,vmem=221244K|1.batch
1.0|COMPLETED|0:0|5||2|1|00:02.172||cpu=2,mem=500M,node=1|435228K|2|cpu=00:00:01,energy=0,fs/disk=66434,mem=717572K,pages=3,vmem=735260K|1.0
2_0|FAILED|3:0|4|1440|1|1|00:00.004|100M|billing=1,cpu=1,mem=100M,node=1||||2_0
2_0.batch|FAILED|3:0|4||1|1|00:00.004||cpu=1,mem=100M,node=1|4620K|1|cpu=00:00:00,energy=0,mem=4620K|2_0.batch
2_[1-3%2]|PENDING|0:0|0|1440|1|1|00:00:00|100M|||||2_[1-3%2]
4|COMPLETED|0:0|0|1440|1|1|00:00.002|100M|billing=1,cpu=1,mem=100M,node=1||||4
4.batch|COMPLETED|0:0|0||1|1|00:00.002||cpu=1,mem=100M,node=1||1|energy=0|4.batch
8|COMPLETED|0:0|20|1440|64|2|10:40|6400M|billing=64,cpu=64,gres/gpu=8,mem=6400M,node=2||||8
8.batch|COMPLETED|0:0|20||32|1|00:00.004||cpu=32,gres/gpu=4,mem=3200M|4740K|1|cpu=00:00:00,mem=4740K|8.batch
8.0|COMPLETED|0:0|10||64|2|10:40||cpu=64,gres/gpu=8,mem=6400M|1G|2|gres/gpumem=10G,gres/gpuutil=400|8.0
9|RUNNING|0:0|3600|UNLIMITED|4|2|00:00:00|2Gn|||||9
"""


def report(slurm: FakeSlurm, *ids: str, reply: str = REPLY) -> EfficiencyReport:
    """Return what follows from this reply of sacct."""
    slurm.fail("sacct", "", status=0, stdout=reply)
    return efficiency(ids, commands=COMMANDS)


def test_steps_are_summed(slurm: FakeSlurm) -> None:
    """CPU time is the job's; memory the most of one step, all its tasks together."""
    [job] = report(slurm, "1").jobs
    assert (job.elapsed_s, job.time_limit_s, job.num_cpus) == (7, 300, 2)
    assert (job.cpu_asked_s, job.cpu_used_s) == (14, 2.187)
    assert job.mem_asked_bytes == 500 * 2**20
    assert job.mem_used_bytes == 717572 * 2**10
    assert (job.num_gpus, job.gpu, job.state) == (0, None, JobState.SUCCEEDED)


def test_what_did_not_begin_is_missing(slurm: FakeSlurm) -> None:
    """So are tasks that wait, and what nobody knows: none is zero."""
    told = report(slurm, "2_0", "2_1", "77.1", "no id")
    assert [job.job_id for job in told.jobs] == ["2_0"]
    assert told.missing == ("2_1", "77")
    assert (told.jobs[0].state, told.jobs[0].exit_code) == (JobState.FAILED, "3:0")


def test_what_took_no_second_has_begun(slurm: FakeSlurm) -> None:
    """How it ended is known, and no part of anything is made of no time."""
    [job] = report(slurm, "4").jobs
    assert (job.state, job.said, job.elapsed_s) == (JobState.SUCCEEDED, "COMPLETED", 0)
    assert (job.time, job.cpu, job.gpu) == (0, None, None)
    assert "0:00:00 of 24:00:00 0%" in report(slurm, "4").table()


def test_gpus_that_are_accounted(slurm: FakeSlurm) -> None:
    """Half of eight were busy in half of the time."""
    [job] = report(slurm, "8").jobs
    assert (job.num_gpus, job.gpu_asked_s, job.gpu_used_s, job.gpu) == (8, 160, 40, 0.25)
    assert job.mem_used_bytes == 2 * 2**30
    assert job.cpu == 0.5


def test_a_job_that_runs_has_used_nothing_yet(slurm: FakeSlurm) -> None:
    """No step has ended, so use is not known; memory of a node counts for each."""
    [job] = report(slurm, "9").jobs
    assert (job.cpu_used_s, job.mem_used_bytes, job.time, job.cpu) == (None,) * 4
    assert job.mem_asked_bytes == 2 * 2 * 2**30


def test_all_jobs_together(slurm: FakeSlurm) -> None:
    """Times are sums of what is known; of memory, that which is nearest to its limit."""
    told = report(slurm, "1", "2_0", "8", "9")
    total = told.total
    assert total.elapsed_s == 7 + 4 + 20 + 3600
    assert total.time_limit_s is None
    assert total.cpu_asked_s == 14 + 4 + 20 * 64
    assert total.mem_used_bytes == 717572 * 2**10
    assert total.gpu == 0.25
    none = EfficiencyReport(jobs=()).total
    assert (none.elapsed_s, none.cpu_used_s, none.mem) == (0, None, None)


def test_the_table(slurm: FakeSlurm) -> None:
    """It has a column for what any job has, a sum, and says what is missing."""
    slurm.fail("sacct", "", status=0, stdout=REPLY)
    names = {"1": "small", "8": "large"}
    told = efficiency(
        ["1", "8", "9", *map(str, range(50, 65))], names=names, commands=COMMANDS
    )
    head, small, large, runs, total, missing = told.table().splitlines()
    assert head.split() == ["job", "experiment", "state", "time", "CPU", "memory", "GPU"]
    assert "0:00:07 of 0:05:00 2%" in small
    assert "700.8M of 500.0M 140%" in small
    assert "0:00:40 of 0:02:40 25%" in large
    assert "? of 4.0G" in runs
    assert total.startswith("all")
    assert missing.startswith("15 not accounted")
    assert missing.endswith("59, ...")
    assert "GPU" not in report(slurm, "1").table()
    assert report(slurm, "77", reply="").table().splitlines()[1].startswith("1 not acc")


def test_no_accounting_is_an_error(slurm: FakeSlurm) -> None:
    """There is nothing that could be told then; and nothing is guessed from rubbish."""
    slurm.configure(has_accounting=False)
    with pytest.raises(SchedulerCommandError, match="accounting"):
        efficiency(["1"], commands=COMMANDS)
    with pytest.raises(UnreadableReplyError, match="many"):
        report(slurm, "1", reply=REPLY.replace("|7|5|2|", "|7|5|many|"))
    with pytest.raises(UnreadableReplyError, match="welcome"):
        report(slurm, "1", reply="welcome\n")


def test_jobs_of_the_fake(slurm: FakeSlurm, submit: Callable[..., str]) -> None:
    """The question is one that Slurm's fake takes, too: no field is unknown."""
    slurm.configure(is_held=True)
    job_id = submit("a")
    assert efficiency([job_id], commands=COMMANDS).missing == (job_id,)


def test_gpus_by_type_alone(slurm: FakeSlurm) -> None:
    """Sites may account types only; memory may be asked for each CPU."""
    line = "5|COMPLETED|0:0|10|Partition_Limit|4|1|00:20|1Gc|cpu=4,gres/gpu:a100=2||||5\n"
    [job] = report(slurm, "5", reply=line).jobs
    assert (job.num_gpus, job.gpu_asked_s, job.gpu_used_s) == (2, 20, None)
    assert job.mem_asked_bytes == 4 * 2**30
    assert job.time_limit_s is None
