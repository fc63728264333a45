"""Notice that a training goes wrong, and say what is to be done about it.

`Guard` judges numbers; it knows nothing of models, and it does nothing itself. What it
remembers of the run is plain data and belongs to the run's exact state; what it remembers
of the process (its memory, how often it asked to roll back) does not.
"""

from __future__ import annotations

import math
import os
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from mtf_trainer.config import GuardSettings, Reaction

__all__ = ["Guard", "Verdict", "rss_bytes"]

_LINES = 20
_FEWEST_LINES = 5
_WARM_UP_STEPS = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What was found at a step, and what is to be done.

    Args:
        reaction: The reaction that is asked for.
        step: Optimizer steps taken.
        message: What is wrong, and how far.
    """

    reaction: Literal["stop", "skip", "rollback"]
    step: int
    message: str


class Guard:
    """Judges losses, gradient norms and memory in one call of ``fit``.

    With scaled fp16 gradients, hand it no norm: the scaler itself leaves out the steps
    whose gradients are not finite, and that is no fault.

    >>> guard = Guard(GuardSettings(on_explosion="stop"))
    >>> for step in range(1, 7):
    ...     verdict = guard.check_line(step, 2.0, grad_norm=1.0)
    >>> guard.check_line(7, 20.5, grad_norm=1.0).message
    'the loss is 20.5, more than 10 times 2, the median of the 6 lines before'
    """

    def __init__(self, settings: GuardSettings) -> None:
        self._settings = settings
        self._losses: deque[float] = deque(maxlen=_LINES)
        self._rollbacks = 0
        self._first_step = 0
        self._usual_bytes: int | None = None

    @property
    def wants_each_step(self) -> bool:
        """Whether `check_step` is to be asked before each optimizer step."""
        return self._settings.on_nonfinite == "skip"

    @property
    def wants_memory(self) -> bool:
        """Whether `memory` is to be asked."""
        return self._settings.on_memory_growth != "ignore"

    def begin(self, step: int) -> None:
        """Say that training begins at *step*, or goes on there after a roll-back."""
        self._first_step = step

    def check_step(
        self, step: int, loss: float, grad_norm: float | None
    ) -> Verdict | None:
        """Judge what optimizer step *step* is about to be made of."""
        for name, value in (("loss", loss), ("gradient norm", grad_norm)):
            if value is not None and not math.isfinite(value):
                message = f"the {name} is {value}"
                return self._verdict(self._settings.on_nonfinite, step, message)
        return None

    def check_line(
        self, step: int, loss: float, grad_norm: float | None
    ) -> Verdict | None:
        """Judge a line of training metrics; it counts among the lines for the next.

        Where single steps are judged (`wants_each_step`), a value that is not finite was
        seen there, and is passed over here.

        An explosion is a loss further above the median of the lines before, of 5 at
        least and 20 at most, than ``(factor - 1) * abs(median)``: for losses above 0 that
        is more than *factor* times the median. A median of 0 says nothing.
        """
        if not self.wants_each_step:
            verdict = self.check_step(step, loss, grad_norm)
            if verdict is not None:
                return verdict
        if not math.isfinite(loss):
            return None
        usual, factor = self._usual_loss(), self._settings.explosion_factor
        if (
            usual is not None
            and self._settings.on_explosion != "ignore"
            and loss > usual + (factor - 1) * abs(usual)
        ):
            message = (
                f"the loss is {loss:.6g}, more than {factor:g} times {usual:.6g}, the "
                f"median of the {len(self._losses)} lines before"
            )
            return self._verdict(self._settings.on_explosion, step, message)
        self._losses.append(loss)
        return None

    def memory(self, step: int, rss_bytes: int | None) -> Verdict | None:
        """Judge this process's memory at *step*; None, if not known, is no fault."""
        if rss_bytes is None or not self.wants_memory:
            return None
        if self._usual_bytes is None:
            if step - self._first_step >= _WARM_UP_STEPS:
                self._usual_bytes = rss_bytes
            return None
        factor = self._settings.memory_growth_factor
        if rss_bytes < factor * self._usual_bytes:
            return None
        message = (
            f"this process uses {rss_bytes / 2**20:.0f} MiB, at least {factor:g} times the "
            f"{self._usual_bytes / 2**20:.0f} MiB after its first {_WARM_UP_STEPS} steps"
        )
        return self._verdict(self._settings.on_memory_growth, step, message)

    def state_dict(self) -> dict[str, Any]:
        """Return what belongs to the run's exact state, as plain data."""
        return {"losses": list(self._losses)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave; rollbacks counted so far stay counted.

        Raises:
            ValueError: If *state* is not of that form.
        """
        losses = state.get("losses")
        if not isinstance(losses, list) or not all(_is_finite(loss) for loss in losses):
            message = f"not a state of the guard: losses are {losses!r}"
            raise ValueError(message)
        self._losses = deque(losses, maxlen=_LINES)

    def _usual_loss(self) -> float | None:
        """Return the median of the last lines; None if it says nothing."""
        if len(self._losses) < _FEWEST_LINES:
            return None
        return median(self._losses) or None

    def _verdict(self, reaction: Reaction, step: int, message: str) -> Verdict | None:
        if reaction == "ignore":
            return None
        if reaction == "rollback":
            if self._rollbacks >= self._settings.max_rollbacks:
                message += f"; it was rolled back {self._rollbacks} times already"
                reaction = "stop"
            else:
                self._rollbacks += 1
        return Verdict(reaction=reaction, step=step, message=message)


def _is_finite(value: object) -> bool:
    return type(value) is float and math.isfinite(value)


def rss_bytes(statm: Path = Path("/proc/self/statm")) -> int | None:
    """Return the resident memory of this process; None if the system does not say.

    Where there is no *statm* (macOS), it is the most that was ever resident.
    """
    try:
        return int(statm.read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        pass
    try:
        import resource  # noqa: PLC0415 - Windows has none
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
