"""Run Slurm's commands: as lists, with a time limit, again while nobody answers.

`Commands` tells apart what the controller refused (`SchedulerCommandError`), what it has no
room for now (`NoRoomError`), and what it could not be asked (`SchedulerUnreachableError`). It
goes by Slurm's own words alone, and knows nothing of jobs.

Only what changes nothing is repeated here. A submission whose answer was lost may have been
accepted: see `mtf_slurm.launcher`.

Source: Slurm 22.05.8, the texts of ``slurm_strerror(3)``, and what its commands write.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from mtf_slurm.errors import SchedulerCommandError, SchedulerUnreachableError

__all__ = ["Commands", "NoAnswerError", "NoRoomError", "environ"]

# What Slurm's commands say when they got no answer, and another attempt may get one.
_NO_ANSWER = re.compile(
    r"Unable to contact slurm|Socket timed out|Connection (?:refused|reset|timed out)"
    r"|Zero Bytes were transmitted|Transport endpoint is not connected"
    r"|Communication (?:connection|shutdown) failure|Unable to connect|Connect failure"
    r"|Message (?:send|receive) failure|Unexpected message received|Insane message length"
    r"|Received zero length message|(?:Munge (?:en|de)code failed|Protocol authentication"
    r" error|Failed to connect to authentication agent|authentication credential)"
    r"|DB index is being set"
    # Of a submission, that is how a site's own rules refuse it.
    r"|(?<!submission failed: )Unspecified error"
    r"|Unable to establish (?:control|controller)|Resource temporarily unavailable"
    r"|No route to host|Problem talking to the database|slurmdbd: .*(?:failure|error)"
    r"|controller (?:is )?in standby mode|controller .* is (?:booting|shutting)",
    re.IGNORECASE,
)
# What they say of a job for which there may be room later. Slurm has one text for all limits;
# it names the limit before that, of which those of jobs alone are ever freed by others' ends.
_LIMIT = re.compile(r"\b(?:QOS|Assoc)(?:Grp|Max|Min)(\w+)")
_NO_ROOM = re.compile(
    r"Job violates accounting/QOS policy|Unable to create job record, try again"
    r"|System submissions disabled|Reached max(?:imum)? number of jobs",
    re.IGNORECASE,
)
# What sbatch says while it waits for room, for minutes.
_SLEEPS = re.compile(r"sleeping and retrying", re.IGNORECASE)
_NO_CONFIG = re.compile(
    r"Could not establish a configuration source|failed to fetch config"
    r"|Unable to process configuration file|No such file or directory.*slurm\.conf",
    re.IGNORECASE,
)
_LEAST_S = 1.0
# Variables by which these commands take options that nobody wrote; `SLURM_CONF` and what
# names the cluster stay.
_OPTIONS = ("SACCT_", "SBATCH_", "SCANCEL_", "SCONTROL_", "SINFO_", "SLURM_", "SQUEUE_")
_KEPT = frozenset({"SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT"})


class NoAnswerError(SchedulerUnreachableError):
    """A command got no answer: another may get one, and this may have been done."""


class NoRoomError(SchedulerCommandError):
    """A submission was refused for the jobs that there are: later there may be room."""

    prefix = "no room now: "


def environ() -> dict[str, str]:
    """Return this process's environment without what would change Slurm's commands.

    Where a job submits another, the first one's variables are gone, too.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if name in _KEPT or not name.startswith(_OPTIONS)
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Commands:
    """Runs Slurm's commands, which are found on ``PATH``.

    Attributes:
        timeout_s: After which a command is killed, in seconds.
        num_attempts: How often one is run while the controller gives no answer.
        first_wait_s: Before the second attempt, in seconds; doubled before each further.
        longest_wait_s: Between two attempts, in seconds.
        deadline_s: By `time.monotonic`; after it a command has one second.
        sleep: What waits; for tests.
    """

    timeout_s: float = 60.0
    num_attempts: int = 5
    first_wait_s: float = 1.0
    longest_wait_s: float = 30.0
    deadline_s: float = math.inf
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False)

    def __post_init__(self) -> None:
        if not (self.timeout_s > 0 and self.num_attempts >= 1):
            msg = "timeout_s must be above 0, num_attempts at least 1"
            raise ValueError(msg)
        if not (self.first_wait_s >= 0 and self.longest_wait_s >= 0):
            msg = "first_wait_s and longest_wait_s cannot be below 0"
            raise ValueError(msg)

    def wait_s(self, attempt: int) -> float:
        """Return how long to wait after the attempt of that number, from 0, in seconds."""
        return min(self.longest_wait_s, self.first_wait_s * 2.0 ** min(attempt, 30))

    def within(self, left_s: float) -> Commands:
        """Return the same, each tried once, and none for long after *left_s* seconds."""
        deadline_s = time.monotonic() + left_s
        return replace(self, num_attempts=1, deadline_s=deadline_s)

    def run(self, argv: Sequence[str]) -> str:
        """Run a command that changes nothing when it is repeated; return what it wrote.

        Raises:
            SchedulerCommandError: If it was refused.
            SchedulerUnreachableError: If it is not there, or gets no answer.
        """
        for attempt in range(self.num_attempts - 1):
            try:
                return self.once(argv)
            except NoAnswerError:
                self.sleep(self.wait_s(attempt))
        return self.once(argv)

    def once(
        self,
        argv: Sequence[str],
        *,
        cwd: str | None = None,
        extra: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> str:
        """Run a command one time; return what it wrote.

        Args:
            argv: The command.
            cwd: Where it runs.
            extra: Variables for it.
            pass_fds: Open files that it keeps until it ends.

        Raises:
            SchedulerCommandError: If it was refused.
            NoAnswerError: If it got no answer; it may have been accepted all the same.
            SchedulerUnreachableError: If it is not there, or has no configuration.
        """
        left_s = max(_LEAST_S, self.deadline_s - time.monotonic())
        limit_s = min(self.timeout_s, left_s)
        try:
            done = subprocess.run(
                argv,
                cwd=cwd,
                env={**environ(), **(extra or {})},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                encoding="utf-8",
                errors="backslashreplace",
                timeout=limit_s,
                pass_fds=pass_fds,
            )
        except FileNotFoundError as error:
            reason = (
                f"there is no {argv[0]} on PATH: run this where Slurm's commands are, or "
                f"load the site's module for them"
            )
            raise SchedulerUnreachableError(argv, reason) from error
        except PermissionError as error:
            reason = f"{argv[0]} on PATH cannot be run: {error.strerror}"
            raise SchedulerUnreachableError(argv, reason) from error
        except subprocess.TimeoutExpired as error:
            said = error.stderr or ""
            told = said.decode("utf-8", "replace") if isinstance(said, bytes) else said
            if _SLEEPS.search(told):
                raise NoRoomError(argv, -1, told) from error
            reason = f"none within {limit_s:.4g} s: try again, or ask `scontrol ping`"
            raise NoAnswerError(argv, reason) from error
        if done.returncode == 0:
            return done.stdout
        said = done.stderr.strip() or done.stdout.strip()
        if _NO_CONFIG.search(said):
            reason = f"it finds no slurm.conf; set SLURM_CONF to its path: {said}"
            raise SchedulerUnreachableError(argv, reason)
        if _NO_ANSWER.search(said):
            reason = f"{said}; try again, or ask `scontrol ping`"
            raise NoAnswerError(argv, reason)
        kind = NoRoomError if _is_no_room(said) else SchedulerCommandError
        raise kind(argv, done.returncode, said)


def _is_no_room(said: str) -> bool:
    """Return whether what refused a job is gone when others have ended.

    >>> (
    ...     _is_no_room("error: QOSMaxSubmitJobPerUserLimit"),
    ...     _is_no_room("error: QOSMaxWallLimit"),
    ... )
    (True, False)
    """
    if limits := _LIMIT.findall(said):
        return any(limit.startswith("Submit") for limit in limits)
    return _NO_ROOM.search(said) is not None
