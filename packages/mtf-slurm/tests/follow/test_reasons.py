from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtf_slurm.follow.reasons import explain

# All that the library of Slurm 22.05.8 has of these.
LIMITS = (
    "AssocGrpBB AssocGrpBBMinutes AssocGrpBBRunMinutes AssocGrpBilling AssocGrpBillingMinutes "
    "AssocGrpCPUMinutesLimit AssocGrpCPURunMinutesLimit AssocGrpCpuLimit AssocGrpEnergy "
    "AssocGrpGRES AssocGrpGRESMinutes AssocGrpJobsLimit AssocGrpLicense AssocGrpMemLimit "
    "AssocGrpMemRunMinutes AssocGrpNodeLimit AssocGrpSubmitJobsLimit AssocGrpUnknown "
    "AssocGrpWallLimit AssocMaxCpuMinutesPerJobLimit AssocMaxCpuPerJobLimit AssocMaxCpuPerNode "
    "AssocMaxGRESPerJob AssocMaxGRESPerNode AssocMaxJobsLimit AssocMaxMemPerJob "
    "AssocMaxNodePerJobLimit AssocMaxSubmitJobLimit AssocMaxWallDurationPerJobLimit QOSGrpCpuLimit "
    "QOSGrpGRES QOSGrpJobsLimit QOSGrpMemLimit QOSGrpMemoryMinutes QOSGrpWallLimit "
    "QOSMaxBBPerUser QOSMaxBillingMinutesPerJob QOSMaxCpuPerUserLimit QOSMaxGRESPerUser "
    "QOSMaxJobsPerUserLimit QOSMaxMemoryPerUser QOSMaxNodePerUserLimit QOSMaxSubmitJobPerUserLimit "
    "QOSMaxWallDurationPerJobLimit QOSMinCpuNotSatisfied QOSMinGRES QOSMinMemory QOSMinNode "
)
OTHERS = (
    "Priority Resources WaitingForScheduling SchedDefer Cleaning Prolog BeginTime Dependency "
    "DependencyNeverSatisfied JobArrayTaskLimit Licenses Reservation JobHeldUser JobHeldAdmin "
    "JobHoldMaxRequeue launch_failed_requeued_held JobLaunchFailure BadConstraints "
    "PartitionNodeLimit PartitionTimeLimit PartitionDown PartitionInactive InvalidAccount "
    "InvalidQOS AccountNotAllowed QOSNotAllowed NodeDown ReqNodeNotAvail FrontEndDown "
    "PowerNotAvail PowerReserved SystemFailure AssociationJobLimit AssociationResourceLimit "
    "AssociationTimeLimit QOSJobLimit QOSResourceLimit QOSTimeLimit QOSUsageThreshold "
    "NonZeroExitCode TimeLimit OutOfMemory InactiveLimit BurstBufferResources BurstBufferStageIn "
    "BurstBufferOperation "
)


@pytest.mark.parametrize("code", (LIMITS + OTHERS).split())
def test_each_code_has_a_sentence(code: str) -> None:
    """None of Slurm's own is handed on without words."""
    told = explain(code)
    assert told.code == code
    assert code not in told.sentence
    assert told.sentence


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("QOSMaxCpuPerUserLimit", "its QOS limits the CPUs of each user"),
        ("QOSMaxJobsPerUserLimit", "its QOS limits the running jobs of each user"),
        ("AssocMaxJobsLimit", "your account limits the running jobs of each user"),
        ("AssocGrpGRES", "your account limits the GPUs and other GRES of all its jobs"),
        ("AssocMaxMemPerJob", "more memory than your account allows each job"),
        ("QOSMaxWallDurationPerJobLimit", "more time than its QOS allows each job"),
        ("AssocGrpCPURunMinutesLimit", "minutes of CPUs that running jobs may still use"),
        ("QOSMinGRES", "less than its QOS demands of GPUs"),
        ("(Resources)", "it is next"),
        ("Nodes required for job are DOWN, DRAINED or so", "down, drained or kept"),
        ("Nodes_required_for_job_are_DOWN,_DRAINED", "down, drained or kept"),
        ("ReqNodeNotAvail, UnavailableNodes:n[1-3]", "a node that it needs"),
    ],
)
def test_limits_are_put_into_words(code: str, words: str) -> None:
    """Who limits what, and for whom."""
    assert words in explain(code).sentence


@given(st.text(max_size=40))
def test_whatever_slurm_says(code: str) -> None:
    """There is an answer for any text, and nothing for nothing."""
    told = explain(code)
    assert bool(str(told)) == bool(told.code)


def test_running_jobs_have_no_reason() -> None:
    """Slurm writes ``None``."""
    assert str(explain("None")) == str(explain("")) == ""


@pytest.mark.parametrize(
    "text", ["launch failed requeued held", "job requeued in held state"]
)
def test_a_hold_is_told_as_both_commands_write_it(text: str) -> None:
    """``squeue`` has blanks where ``scontrol`` has underscores."""
    for code in (text, text.replace(" ", "_")):
        assert "held" in explain(code).sentence
        assert "scontrol release" in explain(code).advice
