"""What ``fit`` says at its end. Loads neither torch nor lightning."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

__all__ = ["EXIT_RESUME", "FitResult", "StopReason"]

EXIT_RESUME = 75
"""Exit code for "saved; run the same command again": EX_TEMPFAIL of sysexits.h."""


class StopReason(StrEnum):
    """Why ``fit`` returned."""

    COMPLETED = "completed"
    """All epochs that were asked for are done."""
    MAX_STEPS = "max_steps"
    """As many optimizer steps as were asked for are done."""
    ENDED = "ended"
    """A callback ended the training, as `EarlyStopping` does."""
    INTERRUPTED = "interrupted"
    """A signal, or `GenericTrainer.stop`, asked to stop. Running again goes on."""
    LIMIT = "limit"
    """The time or the memory allowed is used up. Running again goes on."""


_RESUMABLE = {StopReason.INTERRUPTED, StopReason.LIMIT}


@dataclass(frozen=True, kw_only=True, slots=True)
class FitResult:
    """How a call of ``fit`` ended.

    Args:
        reason: Why it returned.
        epoch: Epochs finished, those of earlier calls and processes included.
        global_step: Optimizer steps taken, earlier ones included.
        metrics: Means over the last validation; over the last epoch's training when
            there is no validation; empty before the first epoch has ended.
        best_metric: The best so far of the metric that ``checkpoint.monitor`` names;
            None before an epoch with it has ended.
        checkpoint: The newest checkpoint that was written or resumed from.
        resumed_from: The checkpoint or snapshot that this call began with.
        steps_lost: Optimizer steps that an earlier process had done beyond what this
            call began with, as far as a counter in shared memory shows.
    """

    reason: StopReason
    epoch: int
    global_step: int
    metrics: dict[str, float]
    best_metric: float | None
    checkpoint: Path | None
    resumed_from: Path | None
    steps_lost: int = 0

    @property
    def exit_code(self) -> int:
        """What a script should exit with: 0 when done, `EXIT_RESUME` to be run again."""
        return EXIT_RESUME if self.reason in _RESUMABLE else 0
