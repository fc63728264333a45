"""Where a replayed run is to stop: the place of the checkpoint it is compared with.

``python -m mtf_trainer verify --replay`` sets `TARGET` before it calls the user's
function; the training loop, where it finds one set, asks it at each safe point, and
saves and stops as soon as it is reached. This module loads neither torch nor lightning.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Self

__all__ = ["TARGET", "Target"]


@dataclass(frozen=True, slots=True)
class Target:
    """A safe point, by the counts and names that tell it from every other.

    Measured values are no part of it: they may differ in a replay that is not exact, and
    must not keep it from stopping.

    >>> target = Target.at({"phase": "EPOCH_END", "epoch": 0, "global_step": 9})
    >>> target.reached({"phase": "TRAIN_BATCH_END", "epoch": 0, "global_step": 9})
    False
    >>> target.reached({"phase": "EPOCH_END", "epoch": 0, "global_step": 9})
    True

    Args:
        place: What `at` leaves of the plain form of a `ResumeState`.
    """

    place: Mapping[str, Any]

    @classmethod
    def at(cls, resume: Mapping[str, Any]) -> Self:
        """Return the place that *resume*, a `ResumeState` in plain form, describes.

        Raises:
            ValueError: If it has no phase, epoch or step.
        """
        for name, kind in (("phase", str), ("epoch", int), ("global_step", int)):
            if not isinstance(resume.get(name), kind):
                message = f"not a resume state: {name} is {resume.get(name)!r}"
                raise ValueError(message)  # noqa: TRY004 - what a file holds
        return cls(_counts(resume))

    def reached(self, resume: Mapping[str, Any]) -> bool:
        """Tell whether *resume* is this place, or one that can only come after it.

        Args:
            resume: As `at` takes it. Where ``global_step`` is too small, nothing else is
                looked at.
        """
        step, epoch = resume["global_step"], resume["epoch"]
        if step != self.place["global_step"] or epoch > self.place["epoch"]:
            return bool(step >= self.place["global_step"])
        same_phase = resume["phase"] == self.place["phase"]
        return bool(same_phase and _counts(resume) == self.place)


def _counts(value: Any) -> Any:
    """Return *value* without its time stamp and without any floats, as JSON gives it."""
    if isinstance(value, Mapping):
        return {
            key: _counts(each)
            for key, each in value.items()
            if key != "timestamp" and not isinstance(each, float)
        }
    if isinstance(value, list | tuple):
        return [_counts(each) for each in value if not isinstance(each, float)]
    return value


TARGET: ContextVar[Target | None] = ContextVar("TARGET", default=None)
