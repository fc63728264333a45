"""Errors of ``mtf-slurm``.

* MtfSlurmError
  * SchedulerCommandError      the scheduler refused; `NoRoomError` of `mtf_slurm.command`
                               where it may have room later
  * SchedulerUnreachableError  no Slurm here, or it could not be asked; `NoAnswerError` of
                               `mtf_slurm.command` where it may have heard
  * UnreadableReplyError       it answered, with something that cannot be parsed
  * TemplateError              a script cannot be made of a template and its values
  * SubmissionError            an experiment cannot be submitted
  * SnapshotError              the code cannot be frozen, found again or checked
    * GitLockTimeoutError      another process holds the repository for too long

A bad argument is a plain `ValueError` or `TypeError`: the caller's bug.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

__all__ = [
    "GitLockTimeoutError",
    "MtfSlurmError",
    "SchedulerCommandError",
    "SchedulerUnreachableError",
    "SnapshotError",
    "SubmissionError",
    "TemplateError",
    "UnreadableReplyError",
]


_SHOWN = 80  # letters of a command
_SHOWN_REPLY = 500


class MtfSlurmError(Exception):
    """Base of every error this package raises on purpose; ``str()`` is for users."""


class SchedulerCommandError(MtfSlurmError):
    """A command of Slurm exited non-zero.

    Attributes:
        argv: The command.
        returncode: Its exit status.
        stderr: What it said, unshortened.
        prefix: With which the text of this kind begins.
    """

    prefix = ""

    def __init__(self, argv: Sequence[str], returncode: int, stderr: str) -> None:
        said = _in_a_line(stderr) or "nothing was said"
        super().__init__(f"{self.prefix}{said} ({_short(argv)} exited {returncode})")
        self.argv = tuple(argv)
        self.returncode = returncode
        self.stderr = stderr


class SchedulerUnreachableError(MtfSlurmError):
    """A command of Slurm is missing, or got no answer from the controller.

    Attributes:
        argv: The command.
        reason: What happened, and what to do.
        prefix: With which the text begins.
    """

    prefix = "no answer: "

    def __init__(self, argv: Sequence[str], reason: str) -> None:
        super().__init__(f"{self.prefix}{_in_a_line(reason)} ({_short(argv)})")
        self.argv = tuple(argv)
        self.reason = reason


class UnreadableReplyError(MtfSlurmError):
    """A command of Slurm succeeded, with output that cannot be parsed.

    Attributes:
        argv: The command.
        reply: What it wrote.
    """

    def __init__(self, argv: Sequence[str], reply: str) -> None:
        shown = repr(reply[:_SHOWN_REPLY]) + "..." * (len(reply) > _SHOWN_REPLY)
        super().__init__(f"cannot parse the reply of {_short(argv)}: {shown}")
        self.argv = tuple(argv)
        self.reply = reply


class TemplateError(MtfSlurmError):
    """A script cannot be made of a template and its values.

    Attributes:
        place: The template and line, or the value's key.
        reason: What is wrong, and what would be right.
    """

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(f"{place}: {reason}")
        self.place = place
        self.reason = reason


class SubmissionError(MtfSlurmError):
    """An experiment cannot be submitted.

    Attributes:
        experiment_name: Which.
        reason: Why, and what to do.
    """

    def __init__(self, experiment_name: str, reason: str) -> None:
        reason = reason.removeprefix(f"{experiment_name}: ")  # as in others' rows
        super().__init__(f"{experiment_name}: {reason}")
        self.experiment_name = experiment_name
        self.reason = reason


class SnapshotError(MtfSlurmError):
    """The code of a project cannot be frozen, found again or checked.

    Attributes:
        place: The repository, a file in it, or a ref.
        reason: Why, and what to do.
    """

    def __init__(self, place: Path | str, reason: str) -> None:
        super().__init__(f"{place}: {reason}")
        self.place = place
        self.reason = reason


class GitLockTimeoutError(SnapshotError):
    """Another process holds the repository's lock for too long; *reason* names it."""


def _in_a_line(text: str) -> str:
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())


def _short(argv: Sequence[str]) -> str:
    """Return a command as people see it.

    >>> _short(["squeue", "--jobs=" + "1," * 99])
    '`squeue --jobs=1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1 ...`'
    """
    text = shlex.join(argv)
    return f"`{text}`" if len(text) <= _SHOWN else f"`{text[:_SHOWN].rstrip(',')} ...`"
