"""Submit a job once, whatever dies in between.

What keeps that promise:

* The job's folder, whose name has a token, is on the disk before ``sbatch`` runs; the token
  goes with the job, in its comment and its working folder.
* One lock for all submitters of a folder, which ``sbatch`` itself holds, too: a submitter that
  was killed leaves it locked until its ``sbatch`` has ended.
* Whoever comes next finds folders without a job's id, and asks Slurm for their tokens before
  anything else. So does `submit` when an answer was lost.
* A job begins by claiming its folder (``task.sh``): if Slurm took one in twice after all, the
  second ends without running anything.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from mtf_slurm import query
from mtf_slurm.arrays import JOBS_FOLDER, Job
from mtf_slurm.command import Commands, NoAnswerError
from mtf_slurm.errors import (
    MtfSlurmError,
    SchedulerCommandError,
    SubmissionError,
    UnreadableReplyError,
)

__all__ = ["BusyError", "lock", "recover", "submit"]

_POLL_S = 0.02
_REFUSED = re.compile("job submission failed", re.IGNORECASE)  # by the controller
_REPLY = re.compile(r"([1-9]\d*)(?:;\S+)?", re.ASCII)  # with its cluster, in a federation


class BusyError(SubmissionError):
    """Another process has a folder's lock."""


@contextmanager
def lock(experiments_folder: Path, *, timeout_s: float) -> Iterator[int]:
    """Let one submitter at a time into a folder; yield the file to be inherited.

    Raises:
        BusyError: If another has it for longer than *timeout_s* seconds.
        SubmissionError: If the folder cannot be written.
    """
    folder = experiments_folder / JOBS_FOLDER
    path = folder / "submit.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _ignored(folder)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        reason = f"cannot be written, so nothing is submitted: {error.strerror or error}"
        raise SubmissionError(str(path), reason) from error
    try:
        _take(fd, path, timeout_s)
        os.utime(path)  # by the file system's clock, to which ages are compared
        yield fd
    finally:
        os.close(fd)


def _ignored(folder: Path) -> None:
    """Have git pass over what jobs need, which may be secret, wherever the folder lies."""
    with (
        suppress(FileExistsError),
        (folder / ".gitignore").open("x", encoding="ascii") as file,
    ):
        file.write("*\n")


def _take(fd: int, path: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        with suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        if time.monotonic() > deadline:
            reason = (
                f"another process has submitted or requeued for longer than {timeout_s:g} "
                f"s, or its sbatch still waits for an answer: try again, or end it"
            )
            raise BusyError(str(path), reason)
        time.sleep(_POLL_S)


def recover(commands: Commands, jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs that were submitted; what was not, is removed.

    For who holds the lock.

    Raises:
        SchedulerUnreachableError: If Slurm cannot be asked; nothing has changed then.
        SchedulerCommandError: If it refuses to answer.
        UnreadableReplyError: If its answer cannot be parsed.
        SubmissionError: If an id cannot be written down.
    """
    ids = {job: job.base_id() for job in jobs}
    open_jobs = [job for job, base in ids.items() if base is None]
    whole = [job for job in open_jobs if job.tasks]
    found = {}
    if whole:
        names = [job.tasks[0][0] for job in whole]
        found = query.find(commands, [job.token for job in whole], names)
    for job in open_jobs:
        if job.token in found:
            _claimed(job, found[job.token])
        else:
            job.remove()
    return [job for job in jobs if ids[job] is not None or job.token in found]


def submit(commands: Commands, job: Job, *, array: str | None, lock_fd: int) -> str:
    """Submit a job whose files are written; return its id.

    Raises:
        SchedulerCommandError: If it was refused; it is removed then, if Slurm says so.
        SchedulerUnreachableError: If Slurm gave no answer; it stays, to be recovered.
        UnreadableReplyError: If the answer has no id in it; it stays, too.
    """
    name = job.tasks[0][0]
    argv = [
        # Whatever a template says: by these a job is found again, and keeps its output.
        *("sbatch", "--parsable", f"--comment={job.token}", f"--chdir={job.folder}"),
        *(f"--job-name={name}", "--open-mode=append"),
        *([f"--array={array}"] if array else []),
        str(job.folder / "job.sbatch"),
    ]
    for attempt in range(commands.num_attempts):
        try:
            reply = commands.once(argv, pass_fds=[lock_fd])
        except NoAnswerError:
            if attempt == commands.num_attempts - 1:
                raise
            commands.sleep(commands.wait_s(attempt))
            # It may have been accepted all the same.
            if base := query.find(commands, [job.token], [name]).get(job.token):
                return _owner(commands, job, base)
            continue
        except SchedulerCommandError as error:
            if _REFUSED.search(error.stderr):
                job.remove()
                raise
            # What goes around sbatch may fail behind it. If it is not found, it stays: it may
            # be on its way still.
            if base := query.find(commands, [job.token], [name]).get(job.token):
                return _owner(commands, job, base)
            raise
        match = _REPLY.fullmatch(reply.strip().rpartition("\n")[2])
        if match is not None and reply.endswith("\n"):
            return _owner(commands, job, match[1])
        # What is cut may be another's id.
        if base := query.find(commands, [job.token], [name]).get(job.token):
            return _owner(commands, job, base)
        raise UnreadableReplyError(argv, reply)
    raise AssertionError  # pragma: no cover -- there is one attempt at least


def _owner(commands: Commands, job: Job, base: str) -> str:
    """Write down whose folder it is; if it is another's, this one was taken in twice."""
    owner = _claimed(job, base)
    if owner != base:
        with suppress(MtfSlurmError):  # it ends by itself as soon as it begins
            commands.once(("scancel", base))
    return owner


def _claimed(job: Job, base: str) -> str:
    """Write down the id of the job that a submission became, if nobody has; return whose it is.

    Raises:
        SubmissionError: If it cannot be written; it is found again by its token.
    """
    try:
        return job.claim(base)
    except OSError as error:
        reason = (
            f"Slurm has taken it as job {base}, which cannot be written down: "
            f"{error.strerror or error}; make room there, or see to its rights, and submit "
            f"again: nothing is done twice"
        )
        raise SubmissionError(str(job.folder), reason) from error
