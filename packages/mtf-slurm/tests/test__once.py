from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtf_slurm import _once, arrays
from mtf_slurm.arrays import Job, Planned, Work
from mtf_slurm.command import Commands
from mtf_slurm.errors import (
    SchedulerCommandError,
    SchedulerUnreachableError,
    SubmissionError,
    UnreadableReplyError,
)
from mtf_slurm.settings import SlurmSettings
from mtf_slurm.testing import FakeSlurm

COMMANDS = Commands(timeout_s=20, num_attempts=3, sleep=lambda _: None)

# Submits two jobs, and dies at its second sbatch: before it, or when that has answered.
KILLED = """\
import os, signal, sys
from pathlib import Path
from mtf_slurm.command import Commands
from mtf_slurm.launcher import SLURMLauncher

when, root, folder = sys.argv[1:]

class Mortal(Commands):
    count = 0
    def once(self, argv, **more):
        Mortal.count += argv[0] == "sbatch"
        is_second = argv[0] == "sbatch" and Mortal.count == 2
        if is_second and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        reply = Commands.once(self, argv, **more)
        if is_second and when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return reply

class Plain:
    def __init__(self, name, **slurm):
        self.experiment_name, self.slurm = name, slurm
    def model_dump(self, *, mode):
        return {"slurm": self.slurm}

launcher = SLURMLauncher(project_root=root, entry_point="train.py", commands=Mortal())
launcher.submit([Plain("a"), Plain("b", qos="q")], folder=Path(folder))
"""


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A job that is ready to be submitted; it does nothing."""
    made = arrays.new_job(tmp_path, 1)
    planned = Planned(Work(SlurmSettings(), None), (("a",),))
    arrays.write_files(made, planned, "", "#!/bin/bash\n")
    return made


def submit(job: Job, commands: Commands = COMMANDS) -> str:
    """Submit it, as who holds the lock."""
    with _once.lock(job.experiments_folder, timeout_s=5) as lock_fd:
        return _once.submit(commands, job, array=None, lock_fd=lock_fd)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_between_two_submissions(
    when: str,
    slurm: FakeSlurm,
    project: Path,
    tmp_path: Path,
    make_launcher: Callable[..., Any],
    experiment: Callable[..., Any],
) -> None:
    """SIGKILL before or after the second sbatch: each is found, submitted once, and runs."""
    slurm.configure(is_held=True)
    for name in "ab":
        (tmp_path / "exps" / name).mkdir(parents=True)
        text = '{"do": "succeed"}'
        (tmp_path / "exps" / name / "config.yaml").write_text(text, encoding="utf-8")
    argv = [sys.executable, "-c", KILLED, when, str(project), str(tmp_path / "exps")]
    done = subprocess.run(argv, check=False, timeout=60)
    assert done.returncode == -9
    assert len(slurm.tasks()) == (1 if when == "before" else 2)
    launcher = make_launcher()
    ids = [*slurm.tasks(), None, None]
    assert launcher.latest(["a", "b", "c"], folder=tmp_path / "exps") == ids[:3]
    batch = [experiment("a"), experiment("b", qos="q")]
    result = launcher.submit(batch, folder=tmp_path / "exps")
    assert result.failed == []
    assert sorted(result.job_ids) == sorted(slurm.tasks())
    assert len(slurm.tasks()) == 2
    slurm.configure(is_held=False)
    assert set(launcher.wait(result.job_ids, timeout_s=60)) == {"succeeded"}
    for name in "ab":
        text = (tmp_path / "exps" / name / "starts").read_text(encoding="utf-8")
        assert text == "one\n"


def test_a_lost_answer_is_looked_up(job: Job, slurm: FakeSlurm) -> None:
    """A job that was accepted without an answer is found by its token, not repeated."""
    slurm.fail("sbatch", is_after=True)
    assert submit(job) == "1"
    assert list(slurm.tasks()) == ["1"]
    assert job.base_id() == "1"


def test_no_answer_and_not_accepted(job: Job, slurm: FakeSlurm) -> None:
    """A job that was not accepted is submitted again."""
    slurm.fail("sbatch", times=2)
    assert submit(job) == "1"
    assert len(slurm.calls("sbatch")) == 3


def test_never_an_answer(job: Job, slurm: FakeSlurm) -> None:
    """The job stays to be recovered; if it was accepted after all, it is not lost."""
    slurm.fail("sbatch", times=2)
    slurm.fail("sbatch", is_after=True)
    with pytest.raises(SchedulerUnreachableError):
        submit(job)
    assert job.base_id() is None
    [found] = _once.recover(COMMANDS, [job])
    assert found.base_id() == "1"


def test_what_is_refused_is_removed(job: Job, slurm: FakeSlurm) -> None:
    """A refusal is final: nothing of the job stays."""
    slurm.configure(max_submit=0)
    with pytest.raises(SchedulerCommandError, match="QOSMaxSubmitJobPerUserLimit"):
        submit(job)
    assert arrays.jobs_in(job.experiments_folder) == []


def test_an_answer_without_an_id(job: Job, slurm: FakeSlurm) -> None:
    """The job is looked for, as it may have been accepted."""
    slurm.fail("sbatch", "", status=0, stdout="welcome\n", is_after=True)
    assert submit(job) == "1"


def test_the_id_behind_a_banner_and_before_a_cluster(job: Job, slurm: FakeSlurm) -> None:
    """The last line counts, up to the name of a cluster."""
    slurm.fail("sbatch", "", status=0, stdout="note\n12;north\n")
    assert submit(job) == "12"


def test_what_was_never_submitted_is_removed(job: Job, slurm: FakeSlurm) -> None:
    """Slurm is asked first; what is half written cannot have been submitted."""
    half = arrays.new_job(job.experiments_folder, 2)
    slurm.fail("squeue", times=3)
    with pytest.raises(SchedulerUnreachableError):
        _once.recover(COMMANDS, [job, half])
    assert job.folder.is_dir()
    assert _once.recover(COMMANDS, [job, half]) == []
    assert arrays.jobs_in(job.experiments_folder) == []


def test_taken_in_twice(job: Job, slurm: FakeSlurm) -> None:
    """If another job has claimed the folder already, it is its; the second is ended."""
    slurm.configure(is_held=True)
    other = job.claim("77")
    assert submit(job) == other == "77"
    assert slurm.tasks()["1"]["state"] == "CANCELLED"


def test_one_submitter_at_a_time(tmp_path: Path) -> None:
    """The next waits, and says for what it waited; a file that stays open is a lock."""
    with _once.lock(tmp_path, timeout_s=5) as lock_fd:
        sleeper = subprocess.Popen(["sleep", "60"], pass_fds=[lock_fd])
        with (
            pytest.raises(SubmissionError, match="another process has submitted"),
            _once.lock(tmp_path, timeout_s=0.05),
        ):
            pass
    try:
        with (
            pytest.raises(SubmissionError, match="its sbatch still waits"),
            _once.lock(tmp_path, timeout_s=0.05),
        ):
            pass
    finally:
        sleeper.kill()
        sleeper.wait()
    with _once.lock(tmp_path, timeout_s=5):
        pass


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """It is named, and nothing is submitted."""
    (tmp_path / ".slurm").touch()
    with (
        pytest.raises(SubmissionError, match=r"\.slurm.*cannot be written"),
        _once.lock(tmp_path, timeout_s=5),
    ):
        pass


FILTER = "error: site filter failed"


def test_what_fails_behind_sbatch(job: Job, slurm: FakeSlurm) -> None:
    """A job that Slurm took is found, whatever the command ended with; there is one."""
    slurm.configure(is_held=True)
    slurm.fail("sbatch", FILTER, is_after=True)
    assert submit(job) == job.base_id() == "1"
    assert len(slurm.calls("sbatch")) == len(slurm.tasks()) == 1


def test_what_fails_before_sbatch(
    job: Job, slurm: FakeSlurm, make_launcher: Callable[..., Any]
) -> None:
    """A job that is not found is an error; it may be late, so what it needs stays there."""
    slurm.configure(is_held=True)
    slurm.fail("sbatch", FILTER)
    with pytest.raises(SchedulerCommandError, match="site filter failed"):
        submit(job)
    assert arrays.jobs_in(job.experiments_folder)[0].token == job.token
    argv = ["sbatch", f"--chdir={job.folder}", str(job.folder / "job.sbatch")]
    COMMANDS.once(argv)  # its answer is on its way
    [found] = _once.recover(COMMANDS, arrays.jobs_in(job.experiments_folder))
    assert (found.token, found.base_id()) == (job.token, "1")
    assert make_launcher().latest(["a"], folder=job.experiments_folder) == ["1"]


def test_what_fails_and_cannot_be_looked_up(job: Job, slurm: FakeSlurm) -> None:
    """Whether it was taken is asked by the next; nothing is removed before that."""
    slurm.configure(is_held=True)
    slurm.fail("sbatch", FILTER, is_after=True)
    slurm.fail("squeue", times=3)
    with pytest.raises(SchedulerUnreachableError):
        submit(job)
    [found] = _once.recover(COMMANDS, arrays.jobs_in(job.experiments_folder))
    assert found.base_id() == "1"


def test_a_failure_is_an_error_row_and_no_second_job(
    make_launcher: Callable[..., Any], experiment: Callable[..., Any], slurm: FakeSlurm
) -> None:
    """The next submission submits what was not taken, once, and leaves one folder of it."""
    slurm.configure(is_held=True)
    slurm.fail("sbatch", FILTER)
    launcher = make_launcher()
    [row] = launcher.submit_experiment_batch([experiment("a")])
    assert row.job_id is None
    assert "site filter failed" in (row.error or "")
    for _ in range(2):
        assert launcher.submit_single_experiment(experiment("a")) == "1"
    assert list(slurm.tasks()) == ["1"]
    assert len(arrays.jobs_in(launcher._experiments_folder)) == 1


def test_what_the_controller_refuses_is_not_looked_up(job: Job, slurm: FakeSlurm) -> None:
    """Its own words are an answer: what belongs to the job is removed at once."""
    slurm.fail("sbatch", "error: Batch job submission failed: Invalid qos specification")
    with pytest.raises(SchedulerCommandError, match="Invalid qos"):
        submit(job)
    assert arrays.jobs_in(job.experiments_folder) == []
    assert slurm.calls("squeue") == []


def test_a_reply_that_is_cut_is_looked_up(job: Job, slurm: FakeSlurm) -> None:
    """Of 12 without its line's end there may be 123: the token tells; else it is an error."""
    slurm.configure(is_held=True)
    slurm.fail("sbatch", "", status=0, stdout="12")
    with pytest.raises(UnreadableReplyError, match="12"):
        submit(job)
    assert submit(job) == "1"
    slurm.fail("sbatch", "", status=0, stdout="12")
    again = Job(job.folder)
    (job.folder / "job_id").unlink()
    assert submit(again) == "1"


def test_an_id_that_cannot_be_written_down_is_told(
    job: Job, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm has the job: the message says so, and what to do; it is found then."""
    slurm.configure(is_held=True)
    with monkeypatch.context() as patch:

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(Job, "claim", full)
        with pytest.raises(SubmissionError, match=r"taken it as job 1, .* No space left"):
            submit(job)
    assert [each.base_id() for each in _once.recover(COMMANDS, [job])] == ["1"]


def test_git_passes_over_what_jobs_need(job: Job) -> None:
    """Also in a folder that a repository does not ignore."""
    submitted = job.folder.parent
    with _once.lock(job.experiments_folder, timeout_s=5):
        assert (submitted / ".gitignore").read_text(encoding="ascii") == "*\n"
