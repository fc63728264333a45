"""What one call of ``fit`` holds besides the live objects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

from mtf_trainer._data.source import Source
from mtf_trainer._guards.guard import Guard, rss_bytes
from mtf_trainer._guards.limits import Deadline
from mtf_trainer._guards.signals import StopSignals
from mtf_trainer._guards.watchdog import Watchdog
from mtf_trainer._hooks import Hooks
from mtf_trainer._loop.means import Average
from mtf_trainer._ranks.agreement import StopAgreement
from mtf_trainer._saving.save_schedule import SaveSchedule
from mtf_trainer.errors import DivergenceError, MetricsFileError
from mtf_trainer.metrics import MetricsWriter
from mtf_trainer.phases import Phase
from mtf_trainer.progress import Progress
from mtf_trainer.result import StopReason
from mtf_trainer.trackers import Trackers

__all__ = ["RollBack", "Run"]

_REASONS = (StopReason.INTERRUPTED, StopReason.LIMIT)
_MEMORY_EVERY_STEPS = 100


class RollBack(Exception):  # noqa: N818 - not an error: the way out of the loop
    """Training went wrong, and is to go on from the last checkpoint."""


class Keeper(Protocol):
    """What saves the state and gives it back: `mtf_trainer._loop.keeper.Keeper`."""

    def start_streams(self) -> None:
        """Put this process's random streams where they belong: the last thing to do."""

    def snapshot_due(self, step: int) -> bool:
        """Count optimizer step *step*, and tell whether to take a snapshot behind it."""

    def take_snapshot(self, run: Run) -> None:
        """Keep this safe point in shared memory."""

    def save(self, run: Run, *, wait: bool) -> None:
        """Write a checkpoint of this safe point."""

    def look(self, run: Run) -> None:
        """See what the process that writes has finished."""

    def let_go(self, run: Run) -> bool:
        """Write no more metrics, if the folder is lost and the run is to go on."""

    def roll_back(self, run: Run, why: str) -> None:
        """Go back to the newest checkpoint."""


@dataclass(slots=True, kw_only=True)
class Run:
    """Outputs, clocks and requests of one call of ``fit``.

    Args:
        owner: The trainer, for its hooks.
        attention: Whether something is asked for at the next safe point.
        probe: Called at each safe point; true stops there. All processes get the same.
        average: How the means of several validation loaders become one.
        optimizers_of: Index of the optimizer for each loader, where that is set.
        scales: Whether losses are scaled (fp16): then gradients overflow now and then,
            and the scaler deals with that.
    """

    owner: Any
    signals: StopSignals
    agreement: StopAgreement
    hooks: Hooks
    guard: Guard
    deadline: Deadline
    watchdog: Watchdog | None
    schedule: SaveSchedule
    keeper: Keeper
    trackers: Trackers
    train: Source
    val: Source | None
    max_epochs: int
    max_steps: int | None
    average: Average = "samples"
    optimizers_of: Mapping[str, int] | None = None
    probe: Callable[[Phase], bool] | None = None
    metrics: MetricsWriter | None = None
    progress: Progress | None = None
    scales: bool = False
    distributed: bool = False
    attention: bool = False
    stopping: StopReason | None = None
    save_due: bool = False
    snapshot_due: bool = False
    expected_save_s: float = 0.0
    _saves: int = 0
    _stepped: bool = False

    def stop(self, reason: StopReason) -> None:
        """Stop at the next safe point. All processes call it after the same phase."""
        if self.stopping is None:
            self.stopping = reason
        self.attention = True

    def after_batch(self) -> None:
        """Look at clocks and requests, alike in all processes."""
        if self.watchdog is not None:
            self.watchdog.beat()
        if not self.distributed:
            if self._is_over():
                self.stop(StopReason.LIMIT)
            return
        wish = self._offer()
        self._obey(stop=self.agreement.reached(wanted=wish > 0))

    def check_start(self) -> None:
        """See that there is memory, as long as this call of ``fit`` has taken no step.

        Raises:
            ValueError: If not.
        """
        if not self._stepped:
            self.deadline.refuse_start()

    def after_step(self, step: int) -> None:
        """Count an optimizer step, and see what it makes due."""
        self._stepped = True
        if self.schedule.due_at_step(step, by_time=not self.distributed):
            self.save_due = self.attention = True
        if self.keeper.snapshot_due(step):
            self.snapshot_due = self.attention = True
        if self.guard.wants_memory and step % _MEMORY_EVERY_STEPS == 0:
            self.react(step, self.guard.memory(step, rss_bytes()))

    def after_epoch(self, epoch: int, step: int, *, is_last: bool) -> None:
        """See what the end of an epoch makes due, and settle what is asked for."""
        if self.distributed:
            wish = self._offer()
            self._obey(stop=self.agreement.agree_now(wish > 0))
        by_time = not self.distributed
        due = self.schedule.due_at_epoch_end(epoch, step, by_time=by_time)
        if due or is_last:
            self.save_due = self.attention = True

    def log(self, split: str, epoch: int, step: int, values: dict[str, float]) -> None:
        """Write a line of metrics, everywhere it goes.

        Raises:
            DivergenceError: If the guard says so.
            RollBack: Likewise.
            MetricsFileError: If the line cannot be written.
        """
        if self.metrics is not None:
            try:
                self.metrics.append(step=step, epoch=epoch, split=split, values=values)
            except MetricsFileError:
                if not self.keeper.let_go(self):
                    raise
        if self.progress is not None and split == "train":
            self.progress.loss = values["loss"]
        row = {"step": step, "epoch": epoch, "split": split, **values}
        named = {f"{split}/{name}": value for name, value in values.items()}
        self.trackers.log_metrics(named | {"epoch": epoch}, step)
        self.hooks.call("on_log", self.owner, row)
        self.keeper.look(self)
        if split == "train":
            norm = None if self.scales else values.get("grad_norm")
            self.react(step, self.guard.check_line(step, values["loss"], norm))

    def react(self, step: int, verdict: Any) -> None:
        """Do what the guard decided.

        Raises:
            DivergenceError: To end the run.
            RollBack: To go back.
        """
        if verdict is None:
            return
        if verdict.reaction == "rollback":
            raise RollBack(verdict.message)
        raise DivergenceError(step, verdict.message)

    def unwatched(self) -> AbstractContextManager[None]:
        """Let the watchdog rest: for what may rightly take long."""
        return nullcontext() if self.watchdog is None else self.watchdog.pause()

    def begin(self, label: str, num_batches: int | None, done: int = 0) -> None:
        """Start a part of an epoch, of which *done* batches are."""
        if self.progress is not None:
            self.progress.begin(label, num_batches, done)

    def end(self, means: Mapping[str, float]) -> None:
        """Finish a part of an epoch."""
        if self.progress is not None:
            told = (f"{name} {value:.4g}" for name, value in means.items())
            self.progress.end("  ".join(told))

    def _wish(self) -> int:
        """Return what this process wants, as the number of a reason; 0 for nothing."""
        if self.signals.wanted:
            return 1
        return 2 if self._is_over() else 0

    def _is_over(self) -> bool:
        """Tell whether a limit is reached.

        Raises:
            ValueError: If it is memory, and no step was taken.
        """
        over = self.deadline.reached(self.expected_save_s)
        if over:
            self.check_start()
        return over

    def _offer(self) -> int:
        """Tell the other processes what this one wants; return the number of its reason."""
        wish = self._wish()
        self.agreement.offer(wish, self._saves + int(self.schedule.due_by_time()))
        return wish

    def _obey(self, *, stop: bool) -> None:
        """Do what the processes agreed on."""
        reason, saves = self.agreement.values
        if stop:
            self.stop(_REASONS[max(1, reason) - 1])
        if saves > self._saves:
            self._saves = saves
            self.save_due = self.attention = True
