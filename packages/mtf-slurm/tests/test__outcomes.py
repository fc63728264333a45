from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtf_slurm import arrays
from mtf_slurm._outcomes import Outcomes, task_of
from mtf_slurm.arrays import Job, Planned, Work
from mtf_slurm.command import Commands
from mtf_slurm.query import Known, Row
from mtf_slurm.settings import SlurmSettings
from mtf_slurm.states import JobState, from_slurm
from mtf_slurm.testing import FakeSlurm

COMMANDS = Commands(timeout_s=20, num_attempts=1)


@pytest.fixture
def make_job(tmp_path: Path) -> Callable[..., Job]:
    """Make a submission of these tasks, which became that job."""

    def make(*tasks: tuple[str, ...], base: str, under: str = ".") -> Job:
        job = arrays.new_job(tmp_path / under, 1)
        planned = Planned(Work(SlurmSettings(), None), tasks)
        arrays.write_files(job, planned, "", "#!/bin/bash\n")
        job.claim(base)
        for name in planned.names:
            (tmp_path / under / name).mkdir()
        return job

    return make


def test_a_failure_is_told_from_a_wish_to_be_continued(
    make_job: Callable[..., Job], slurm: FakeSlurm, tmp_path: Path
) -> None:
    """The controller says no exit status; the experiment's file does."""
    job = make_job(("a",), ("b",), ("c",), base="7")
    for name, index, status in (("a", 0, "75"), ("b", 1, "3"), ("c", 2, "rubbish")):
        (tmp_path / name / f"7_{index}.exit").write_text(status, encoding="ascii")
    reply = "".join(
        f"7_{i}|FAILED|NonZeroExitCode|n1|N/A|{job.folder}|7_{i}\n" for i in range(3)
    )
    slurm.fail("squeue", "", status=0, stdout=reply)
    outcomes = Outcomes(COMMANDS, ["7_0", "7_1", "7_2"], [])
    states = [outcomes.state(f"7_{i}") for i in range(3)]
    assert states == ["preempted", "failed", "failed"]


def test_one_of_several_in_a_task(
    make_job: Callable[..., Job], slurm: FakeSlurm, tmp_path: Path
) -> None:
    """What has an end is known; what has none is as the task, unless that cannot be."""
    job = make_job(("a", "b"), base="7")
    (tmp_path / "a" / "7.0.exit").write_text("0\n", encoding="ascii")
    for word, second in (("RUNNING", "running"), ("COMPLETED", "unknown")):
        slurm.fail("squeue", "", status=0, stdout=f"7|{word}|None||N/A|{job.folder}|7\n")
        outcomes = Outcomes(COMMANDS, ["7.0", "7.1"], [])
        assert [outcomes.state(i) for i in ("7.0", "7.1")] == ["succeeded", second]
        assert outcomes.sharing("7.0") == ["7.1"]


def test_jobs_of_others(slurm: FakeSlurm, tmp_path: Path) -> None:
    """A job that is not of this package has Slurm's state, and shares nothing."""
    slurm.fail("squeue", "", status=0, stdout=f"7|FAILED|None||N/A|{tmp_path}|7\n")
    outcomes = Outcomes(COMMANDS, ["7", "../x"], [tmp_path])
    assert [outcomes.state(i) for i in ("7", "../x", "8")] == [
        "failed",
        "unknown",
        "unknown",
    ]
    assert [outcomes.sharing(i) for i in ("7", "../x")] == [["7"], ["../x"]]


def test_the_id_that_slurm_knows() -> None:
    """A place in a task is this package's own."""
    assert [task_of(i) for i in ("7", "7_1", "7_1.2")] == ["7", "7_1", "7_1"]


def outcomes_of(rows: Mapping[str, tuple[str, Path | str]], *folders: Path) -> Outcomes:
    """Return what is known where Slurm shows jobs with a word and a folder each."""
    known = {
        job_id: Row(
            job_id=job_id,
            state=from_slurm(word),
            folder=str(folder),
            has_exit_code=False,
        )
        for job_id, (word, folder) in rows.items()
    }
    return Outcomes(COMMANDS, [], folders, known=Known(known, is_whole=True))


@pytest.mark.parametrize("whose", ["a stranger", "a project", "the original"])
def test_a_row_of_another_says_nothing(
    whose: str, make_job: Callable[..., Job], tmp_path: Path
) -> None:
    """Where Slurm's job runs in another's folder, what the experiment left counts alone."""
    original = make_job(("a",), base="7", under="mine")
    folder = tmp_path / "mine"
    there: Path = original.folder
    if whose == "a stranger":
        there = tmp_path
    elif whose == "a project":
        there = make_job(("a",), base="7", under="theirs").folder
    else:
        folder = tmp_path / "copy"
        shutil.copytree(tmp_path / "mine", folder)
    outcomes = outcomes_of({"7": ("COMPLETED", there)}, folder)
    assert outcomes.state("7") is JobState.UNKNOWN
    assert outcomes.is_others("7")
    assert outcomes.sharing("7") == ["7"]
    (folder / "a" / "7.exit").write_text(f"3 {original.token}", encoding="ascii")
    assert outcomes.state("7") is JobState.FAILED


def test_a_folder_that_was_moved_is_the_same(
    make_job: Callable[..., Job], tmp_path: Path
) -> None:
    """Slurm still names the old place; so it does for one that is named by way of a link."""
    job = make_job(("a",), base="7", under="old")
    (tmp_path / "old").rename(tmp_path / "new")
    outcomes = outcomes_of({"7": ("COMPLETED", job.folder)}, tmp_path / "new")
    assert outcomes.state("7") is JobState.SUCCEEDED
    assert not outcomes.is_others("7")
    (tmp_path / "old").symlink_to("new")
    outcomes = outcomes_of({"7": ("COMPLETED", job.folder)}, tmp_path / "new")
    assert outcomes.state("7") is JobState.SUCCEEDED
    assert not outcomes.is_others("7")


def test_a_row_without_a_folder_is_ours(
    make_job: Callable[..., Job], tmp_path: Path
) -> None:
    """A site that does not say where jobs run is believed; what it does not show, unknown."""
    make_job(("a",), base="7")
    outcomes = outcomes_of({"7": ("COMPLETED", "")}, tmp_path)
    assert [outcomes.state(i) for i in ("7", "8")] == ["succeeded", "unknown"]
    assert not outcomes.is_others("8")


def test_of_two_projects_with_the_same_id_each_has_its_own(
    make_job: Callable[..., Job], tmp_path: Path
) -> None:
    """Whose job Slurm shows has its state; the other's experiment does not."""
    for name in ("one", "two"):
        job = make_job(("a",), base="7", under=name)
    rows = {"7": ("RUNNING", job.folder)}
    folders = (tmp_path / "one", tmp_path / "two")
    states = [outcomes_of(rows, folder).state("7") for folder in folders]
    assert states == ["unknown", "running"]
    assert outcomes_of(rows, *folders).state("7") is JobState.RUNNING


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0 {token}\n", "succeeded"),
        ("3 {token}\n", "failed"),
        ("75 {token}\n", "preempted"),
        ("75 {token} timeout\n", "timeout"),
        ("75 {token} cancelled\n", "cancelled"),
        ("75 {token} preempted\n", "preempted"),
        ("75\n", "preempted"),
        ("0\n", "succeeded"),
        ("0 0123456789abcdef\n", "unknown"),
        ("75 0123456789abcdef timeout\n", "unknown"),
        ("75 {token} bored\n", "unknown"),
        ("\n", "unknown"),
        ("x {token}\n", "unknown"),
    ],
)
def test_what_experiments_leave(
    text: str, expected: str, make_job: Callable[..., Job], tmp_path: Path
) -> None:
    """A word counts before a status; another submission's token makes both nothing."""
    job = make_job(("a",), base="7")
    path = tmp_path / "a" / "7.exit"
    path.write_text(text.format(token=job.token), encoding="ascii")
    assert outcomes_of({}, tmp_path).state("7") == expected


def test_what_an_earlier_job_of_the_same_id_left(
    make_job: Callable[..., Job], tmp_path: Path
) -> None:
    """Of several in a task that waits, a file of another submission ends none."""
    job = make_job(("a", "b"), base="1")
    for position, name, token in ((0, "a", job.token), (1, "b", "0123456789abcdef")):
        path = tmp_path / name / f"1.{position}.exit"
        path.write_text(f"0 {token}\n", encoding="ascii")
    outcomes = outcomes_of({"1": ("PENDING", job.folder)}, tmp_path)
    assert [outcomes.state(i) for i in ("1.0", "1.1")] == ["succeeded", "pending"]
    assert outcomes.sharing("1.1") == ["1.1"]


WORDS = (
    "COMPLETED",
    "FAILED",
    "PENDING",
    "RUNNING",
    "CANCELLED",
    "PREEMPTED",
    "NODE_FAIL",
)
WHOSE = ("mine", "moved", "copied", "theirs", "stranger")


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.sampled_from(WORDS),
    st.sampled_from(WHOSE),
    st.none() | st.tuples(st.sampled_from(("0", "3", "75")), st.booleans()),
    st.booleans(),
)
def test_success_is_the_experiments_own(
    make_job: Callable[..., Job],
    tmp_path: Path,
    word: str,
    whose: str,
    left: tuple[str, bool] | None,
    is_packed: bool,  # noqa: FBT001 -- hypothesis gives it
) -> None:
    """Whatever Slurm shows, none has succeeded but by its own row or its own file."""
    for path in tmp_path.glob("case*"):
        shutil.rmtree(path)
    job = make_job(("a", "b") if is_packed else ("a",), base="7", under="case")
    folder, there = tmp_path / "case", job.folder
    if whose == "moved":
        folder = folder.rename(tmp_path / "case2")
    elif whose == "copied":
        folder = Path(shutil.copytree(folder, tmp_path / "case2"))
    elif whose == "theirs":
        there = make_job(("a",), base="7", under="case3").folder
    elif whose == "stranger":
        there = tmp_path / "case"
    job_id = "7.0" if is_packed else "7"
    is_left = False
    if left is not None:
        status, is_own = left
        is_left = status == "0" and is_own
        text = f"{status} {job.token if is_own else '0' * 16}\n"
        (folder / "a" / f"{job_id}.exit").write_text(text, encoding="ascii")
    state = outcomes_of({"7": (word, there)}, folder).state(job_id)
    is_shown = word == "COMPLETED" and whose in {"mine", "moved"} and not is_packed
    may = is_left or is_shown
    assert may or state is not JobState.SUCCEEDED
    if is_shown or (is_left and whose in {"copied", "theirs", "stranger"}):
        assert state is JobState.SUCCEEDED
