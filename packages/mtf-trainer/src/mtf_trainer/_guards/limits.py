"""Know when a call of ``fit`` has used what it may use: time, or memory.

When a Slurm job ends stands in ``SLURM_JOB_END_TIME``, in seconds since 1970 ("Output
Environment Variables" in the manual page of sbatch).
"""

from __future__ import annotations

import math
import re
import time
import warnings
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from mtf_trainer._guards.guard import rss_bytes
from mtf_trainer.config import Limits
from mtf_trainer.progress import format_seconds

__all__ = ["END_TIME_VARIABLE", "Deadline"]

END_TIME_VARIABLE = "SLURM_JOB_END_TIME"

_END_TIME = re.compile(r"[0-9]{1,11}")
_MEMORY_EVERY_S = 1.0
_GIB = 2**30
_MIB = 2**20


class Deadline:
    """The limits of one call of ``fit``, which begins as this is made.

    What the environment says of the job's end is used where the limits are silent. A
    value that is no time, or is over already, is a warning and counts for nothing.

    >>> deadline = Deadline(Limits(max_time_s=60), {})
    >>> deadline.reached(expected_save_s=2.0), deadline.reason
    (False, '')

    Args:
        limits: What may be used.
        environ: The environment.
        clock: Returns seconds; only differences count.
        wall_clock: Returns seconds since 1970.
        memory: Returns the resident memory of this process in bytes, or None.
    """

    def __init__(
        self,
        limits: Limits,
        environ: Mapping[str, str],
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,  # noqa: TID251 - jobs end by it
        memory: Callable[[], int | None] = rss_bytes,
    ) -> None:
        self.reason = ""
        """Which limit was reached, in words; empty until then."""
        self._limits = limits
        self._clock = clock
        self._memory = memory
        now, wall_now = clock(), wall_clock()
        self._until = now + (limits.max_time_s or math.inf)
        self._told_by = "end_time"
        self._end_time = limits.end_time
        if self._end_time is None:
            self._told_by = END_TIME_VARIABLE
            self._end_time = _job_end_time(environ.get(END_TIME_VARIABLE), wall_now)
        self._end = math.inf
        if self._end_time is not None:
            self._end = now + self._end_time - wall_now - limits.grace_s
        self._look_at = math.inf if limits.max_memory_bytes is None else now

    def refuse_start(self) -> None:
        """See, before this process's first step, that there is memory for it.

        To save and stop would be no use: started again, it would be here again.

        Raises:
            ValueError: If it uses as much as it may already.
        """
        used, allowed = self._memory(), self._limits.max_memory_bytes
        if used is not None and allowed is not None and used >= allowed:
            message = (
                f"max_memory_bytes allows {allowed / _MIB:.0f} MiB ({allowed} bytes), and "
                f"this process uses {used / _MIB:.0f} MiB before its first step: allow "
                "more, or no start would get any further"
            )
            raise ValueError(message)

    def reached(self, expected_save_s: float = 0.0) -> bool:
        """Tell whether it is time to save and stop; once true, it stays so.

        Memory is looked at once a second at most.

        Args:
            expected_save_s: How long a save is expected to take, in seconds.
        """
        now = self._clock()
        if (
            now < self._until
            and now + expected_save_s < self._end
            and now < self._look_at
        ):
            return bool(self.reason)
        return bool(self.reason) or self._find_out(now, expected_save_s)

    def _find_out(self, now: float, expected_save_s: float) -> bool:
        limits = self._limits
        if now >= self._until:
            allowed = format_seconds(limits.max_time_s or 0.0)
            self.reason = f"max_time_s is reached: {allowed}"
        elif now + expected_save_s >= self._end:
            self.reason = (
                f"the job ends at {_words(self._end_time or 0.0)} ({self._told_by}), "
                f"{limits.grace_s:g} s are kept free, and a save takes "
                f"{format_seconds(expected_save_s)}"
            )
        else:
            self._look_at = now + _MEMORY_EVERY_S
            used, allowed_bytes = self._memory(), limits.max_memory_bytes
            if used is not None and allowed_bytes is not None and used >= allowed_bytes:
                self.reason = (
                    f"max_memory_bytes is reached: this process uses {used / _GIB:.2f} "
                    f"GiB of {allowed_bytes / _GIB:.2f} GiB"
                )
        return bool(self.reason)


def _job_end_time(text: str | None, now: float) -> float | None:
    """Return the time in *text*; None, with a warning, if it cannot be one."""
    if text is None:
        return None
    if not _END_TIME.fullmatch(text):
        problem = "is no number of seconds since 1970"
    elif float(text) <= now:
        problem = "is over already"
    else:
        return float(text)
    shown = ascii(text[:40])
    message = f"{END_TIME_VARIABLE}={shown} {problem}, and is not used"
    warnings.warn(message, UserWarning, stacklevel=3)
    return None


def _words(end_time: float) -> str:
    try:
        return datetime.fromtimestamp(end_time, UTC).isoformat(timespec="seconds")
    except (OverflowError, OSError, ValueError):
        return f"{end_time:g} s after 1970"
