"""What ``fit`` says at its end. Loads neither torch nor lightning."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

__all__ = ["FitResult", "StopReason"]


class StopReason(StrEnum):
    """Why ``fit`` returned."""

    COMPLETED = "completed"
    """All epochs that were asked for are done."""
    INTERRUPTED = "interrupted"
    """A signal asked to stop. Running again goes on from the last checkpoint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FitResult:
    """How a call of ``fit`` ended.

    Args:
        reason: Why it returned.
        epoch: Epochs finished, those of earlier calls and processes included.
        global_step: Optimizer steps taken, earlier ones included. After an
            interruption those of the unfinished epoch too, though they are repeated.
        metrics: Means over the last validation; over the last epoch's training when
            there is no validation; empty before the first epoch has ended.
        checkpoint: The newest checkpoint that was written or resumed from.
        resumed_from: The checkpoint that this call began with.
    """

    reason: StopReason
    epoch: int
    global_step: int
    metrics: dict[str, float]
    checkpoint: Path | None
    resumed_from: Path | None
