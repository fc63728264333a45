"""All processes of a run stop at the same step, without waiting for one another.

A reduction (the largest of everyone's numbers) is launched at one call of `reached`, and
its result is looked at a fixed number of calls later, when it has long arrived; there the
next one is launched. It has a process group of its own on the CPU, so it neither waits
for gradients nor holds them up.

Why no process can miss the step: all make the same calls in the same order. How many
calls lie between a launch and its look is 1 at first, and afterwards follows from the
result of the reduction before alone, which is the same number in all processes. So, by
induction, all launch and look at the same calls, see the same results, and act upon them
at the same call. How long anything takes, in whichever process, changes only the numbers
that are sent, never who sees them when. What one process wants between two launches
travels with the next.

That number of calls is what the slowest process can make in a quarter of a second, at most
64. So a wish is known to all after at most two such spans, half a second; where a step
takes longer than a quarter, with the second call after it was made. If steps become
slower all at once, that takes up to 128 of them: call `agree_now` where they are expected
to, as between training and validation, after which the number is 1 again.

A reduction that is on its way as an epoch ends is waited for by `agree_now`, in all
processes alike, and its answer counts. `reached` leaves none behind when it says stop.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
import torch.distributed as dist
from lightning.fabric import Fabric

__all__ = ["StopAgreement"]

_SPAN_US = 250_000
_MOST_CALLS = 64


class StopAgreement:
    """Makes all processes stop at the same step once any of them wants to.

    Every process makes one, and then the same calls in the same order, none of them in a
    thread of its own. With one process each answer is its own, and nothing is sent.

    Args:
        fabric: Launched.
        values: What `values` is at first; see there.
    """

    def __init__(self, fabric: Fabric, *, values: Sequence[int] = ()) -> None:
        self._alone = fabric.world_size == 1
        self._offered = self._values = tuple(values)
        self._step_us = 0
        self._in_flight: tuple[dist.Work, torch.Tensor] | None = None
        self._group: dist.ProcessGroup | None = None
        if not self._alone:
            self._group = dist.new_group(backend="gloo")
        self._begin(every=1)

    @property
    def values(self) -> tuple[int, ...]:
        """The largest, over all processes, of each number that they offer.

        It changes only in `reached` and `agree_now`, in all processes at the same call,
        up to two spans after it was offered.
        """
        return self._offered if self._alone else self._values

    @property
    def step_us(self) -> int:
        """Microseconds between two calls in the slowest process; 0 if not known."""
        return self._step_us

    def offer(self, *values: int) -> None:
        """Let *values* be this process's numbers, from the next reduction on.

        Raises:
            ValueError: If there are not as many as the object was made with.
        """
        if len(values) != len(self._offered):
            message = f"offer takes {len(self._offered)} values, not {len(values)}"
            raise ValueError(message)
        self._offered = values

    def reached(self, *, wanted: bool) -> bool:
        """Tell whether to stop now. Every process calls it after each of its batches.

        Raises:
            RuntimeError: If another process is gone.
        """
        if self._alone:
            return wanted
        self._calls += 1
        if self._calls < self._every:
            return False
        elapsed_us = int(1e6 * (time.monotonic() - self._since)) // self._calls
        every = 1
        if self._in_flight is not None:
            if self._look():
                self._begin(every=1)
                return True
            every = max(1, min(_MOST_CALLS, _SPAN_US // max(1, self._step_us)))
        self._in_flight = self._launch(wanted, elapsed_us, *self._offered)
        self._begin(every=every)
        return False

    def agree_now(self, wanted: bool) -> bool:  # noqa: FBT001 - its one argument
        """Ask all at once, and wait for the answer: at the edge of an epoch.

        What is on its way is waited for as well, and counts.

        Raises:
            RuntimeError: If another process is gone.
        """
        if self._alone:
            return wanted
        stop = self._in_flight is not None and self._look()
        self._in_flight = self._launch(wanted, self._step_us, *self._offered)
        stop = self._look() or stop
        self._begin(every=1)
        return stop

    def max_of(self, *numbers: int) -> list[int]:
        """Return the largest of each number over all processes; waits for them.

        Raises:
            RuntimeError: If another process is gone.
        """
        if self._alone:
            return list(numbers)
        work, largest = self._launch(*numbers)
        work.wait()
        found: list[int] = largest.tolist()
        return found

    def close(self) -> None:
        """Give back the process group: its connections and threads; again is harmless."""
        group, self._group, self._in_flight = self._group, None, None
        # The caller may have ended all groups at once, and this one with them.
        if group is not None and dist.is_initialized():
            dist.destroy_process_group(group)

    def _begin(self, *, every: int) -> None:
        self._every = every
        self._calls = 0
        self._since = time.monotonic()

    def _launch(self, *numbers: int) -> tuple[dist.Work, torch.Tensor]:
        largest = torch.tensor(numbers, dtype=torch.int64)
        work = dist.all_reduce(
            largest, op=dist.ReduceOp.MAX, group=self._group, async_op=True
        )
        return work, largest

    def _look(self) -> bool:
        """Take in the result that is on its way; tell whether to stop."""
        work, largest = self._in_flight  # type: ignore[misc]
        self._in_flight = None
        work.wait()
        stop, self._step_us, *values = largest.tolist()
        self._values = tuple(values)
        return bool(stop)
