"""When the next checkpoint is due. Knows neither files nor torch."""

from __future__ import annotations

import time
from collections.abc import Callable

from mtf_trainer.config import CheckpointSettings

__all__ = ["SaveSchedule"]

_SECONDS_A_MINUTE = 60.0


class SaveSchedule:
    """Tells when checkpoints are due, by epochs, optimizer steps or minutes.

    Steps and epochs are counted from the beginning of the training, so that a run that
    was stopped saves at the same places; minutes from the last save of this process.
    Clocks differ: of several processes, one asks by time and tells the others.

    >>> from mtf_trainer.config import CheckpointSettings
    >>> schedule = SaveSchedule(CheckpointSettings(every_n_steps=10))
    >>> schedule.due_at_step(9), schedule.due_at_step(10)
    (False, True)
    >>> schedule.saved(10)
    >>> schedule.due_at_step(10)
    False

    Args:
        settings: See `CheckpointSettings.every_n_epochs` and the two after it.
        clock: Seconds that never run backwards.
    """

    def __init__(
        self, settings: CheckpointSettings, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._every_n_epochs = settings.every_n_epochs
        self._every_n_steps = settings.every_n_steps
        minutes = settings.every_n_minutes
        self._every_s = None if minutes is None else minutes * _SECONDS_A_MINUTE
        self._clock = clock
        self._saved_at_s = clock()
        self._saved_step: int | None = None
        self._saved_between_epochs = False

    def due_at_step(self, global_step: int, *, by_time: bool = True) -> bool:
        """Tell it inside an epoch, after optimizer step *global_step*.

        Without *by_time* the answer is the same in all processes.
        """
        if global_step == self._saved_step:
            return False
        every = self._every_n_steps
        if every is not None and global_step % every == 0:
            return True
        return by_time and self.due_by_time()

    def due_at_epoch_end(
        self, num_epochs: int, global_step: int, *, by_time: bool = True
    ) -> bool:
        """Tell it between two epochs, after *num_epochs* of them.

        What was saved inside the epoch, at its last step, does not stand for its end.
        """
        if global_step == self._saved_step and self._saved_between_epochs:
            return False
        every = self._every_n_epochs
        if every is not None and num_epochs % every == 0:
            return True
        return self.due_at_step(global_step, by_time=by_time)

    def due_by_time(self) -> bool:
        """Tell whether the last save of this process is long enough ago."""
        every_s = self._every_s
        return every_s is not None and self._clock() - self._saved_at_s >= every_s

    def saved(self, global_step: int, *, between_epochs: bool = False) -> None:
        """Take note that a checkpoint was taken, whatever was the reason."""
        self._saved_at_s = self._clock()
        self._saved_step = global_step
        self._saved_between_epochs = between_epochs
