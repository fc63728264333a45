"""What keeps a run's state: where `fit` begins, saves, rolls back and ends.

A `Keeper` holds the run's folder, its checkpoints and its snapshots in shared memory. It
moves state between them and the trainer's live objects, in all processes at once: every
method is called by all of them, at the same safe point. The first one writes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lightning.fabric import Fabric

from mtf_trainer._loop.capture import Objects
from mtf_trainer._loop.form import locals_of, read_resume
from mtf_trainer._loop.ground import Ground
from mtf_trainer._loop.loop_state import LoopState
from mtf_trainer._loop.parts import settings_of
from mtf_trainer._loop.restoring import Restoring, layout_of
from mtf_trainer._loop.run import Run
from mtf_trainer._loop.run_dir import RunDir, memory_id
from mtf_trainer._loop.storage import storage_for
from mtf_trainer._memory.snapshots import Moment, Snapshots
from mtf_trainer._ranks.collectives import gather, on_rank_zero
from mtf_trainer._saving.files import age
from mtf_trainer.config import GenericTrainerConfig
from mtf_trainer.errors import (
    CheckpointWarning,
    CheckpointWriteError,
    DivergenceError,
    MtfTrainerError,
    NothingToResumeError,
)
from mtf_trainer.metrics import MetricsWriter
from mtf_trainer.phases import Phase
from mtf_trainer.state import LocalState, RNGState

__all__ = ["Keeper"]

Agree = Callable[..., Any]


class Keeper:
    """Keeps one run between ``with`` and its end.

    Args:
        config: The settings.
        fabric: Launched.
        at: Where the loop stands.
        objects: Whose states are kept as well.
        agree: The largest of each number over all processes.
    """

    def __init__(
        self,
        config: GenericTrainerConfig,
        fabric: Fabric,
        at: LoopState,
        objects: Objects,
        agree: Agree,
    ) -> None:
        self.resumed_from: Path | None = None
        self.checkpoint: Path | None = None
        self.steps_lost = 0
        self.snapshots: Snapshots | None = None
        self._config = config
        self._fabric = fabric
        self._at = at
        self._objects = objects
        self._agree = agree
        self._storage = storage_for(
            config.run_dir / "checkpoints", config.checkpoint, fabric, objects
        )
        self._ground = Ground(config.checkpoint)
        self._restoring = Restoring(config, fabric, at, objects)
        self._streams: RNGState | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        config, fabric = self._config, self._fabric

        def open_folder() -> str:
            folder = self._stack.enter_context(RunDir(config.run_dir))
            self._ground.folder = folder
            self._stack.callback(self._storage.close)
            self._storage.prepare()
            return folder.run_id

        try:
            run_id = on_rank_zero(fabric, open_folder)
            if config.snapshot.enabled:
                name = memory_id(config.run_dir, run_id)
                self.snapshots = Snapshots(
                    config.snapshot, name, fabric, self._agree, self._objects.state_bytes
                )
                self._stack.callback(self.snapshots.close)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            # On the way out by KeyboardInterrupt there is no time: the memory stays.
            if isinstance(error, Exception) and self.snapshots is not None:
                self._rescue(error)
        finally:
            self._stack.close()

    def _durable(self) -> Moment | None:
        """Return the newest moment that is proven to be on the disk."""
        return None if self.checkpoint is None else age(self.checkpoint)

    def _rescue(self, error: Exception) -> None:
        """Bring the snapshot to the disk, if it is ahead of what is there; free memory."""
        snapshots = self.snapshots
        if snapshots is None:
            return
        kept = snapshots.kept()
        if isinstance(error, DivergenceError):
            # What led to it is not worth keeping; the last checkpoint is there.
            kept = None
            snapshots.moment = None
        if kept is not None and not snapshots.give_back(self._durable()):
            try:
                if self._config.run_dir.exists():
                    self._ground.check()
                self._storage.rescue(kept.content())
                for saved in self._storage.finished(wait=False):
                    self.checkpoint = saved.path
            except MtfTrainerError as problem:
                error.add_note(
                    "the last snapshot could not be saved; it stays in shared memory for "
                    f"the next start: {problem}"
                )
        snapshots.give_back(self._durable())

    def begin(self, run: Run, *, trained: bool) -> None:
        """Take up the newest good state, or begin anew; open what `fit` writes to.

        Raises:
            CheckpointError: If what is there cannot be used.
            DataError: If the data cannot go on from it.
            NothingToResumeError: If the model is *trained*, and nothing is there.
        """
        self._objects.hooks.state_dict()
        run.trackers.state_dict()
        found = self._newest()
        keep_bytes = 0
        if found is not None:
            self.resumed_from, content, local = found
            keep_bytes, self._streams = self._restoring.restore(
                run, self.resumed_from, content, local
            )
        elif trained:
            message = (
                f"this trainer has trained before, and {self._config.run_dir} holds no "
                "checkpoint to go on from: make a new model and a new trainer"
            )
            raise NothingToResumeError(message)
        else:
            rank = self._fabric.global_rank
            self._streams = RNGState.seeded((self._config.seed + rank) % 2**32)
            run.trackers.log_params(settings_of(self._config))
        if self.snapshots is not None:
            done = self.snapshots.steps_done()
            self.steps_lost = max(0, done - self._at.global_step)

        def open_metrics() -> None:
            path = self._config.run_dir / "metrics.jsonl"
            writer = MetricsWriter(path, keep_bytes=keep_bytes)
            self._ground.metrics = run.metrics = self._stack.enter_context(writer)
            if writer.missing_bytes:
                message = (
                    f"{path} lacks {writer.missing_bytes} bytes that it had at "
                    f"{self.resumed_from}: lines of metrics are lost"
                )
                warnings.warn(message, CheckpointWarning, stacklevel=5)

        on_rank_zero(self._fabric, open_metrics)
        lost = f", {self.steps_lost} steps were lost" if self.steps_lost else ""
        if run.progress is not None and self.resumed_from is not None:
            run.progress.note(
                f"going on from {self.resumed_from.name}, step {self._at.global_step}{lost}"
            )
        elif run.progress is not None and lost:
            run.progress.note(f"beginning anew{lost}")

    def start_streams(self) -> None:
        """Put this process's random streams where they belong: the last thing to do."""
        if self._streams is not None:
            self._streams.restore()
            self._streams = None

    def _newest(self) -> tuple[Path, dict[str, Any], LocalState | None] | None:
        """Return the newest good state, where it was, and this process's own part.

        The part is None where it is among those of the state.
        """
        checkpoint = self._storage.newest()
        newer_than = None
        if checkpoint is not None:
            self.checkpoint = checkpoint[0]
            on_rank_zero(self._fabric, lambda: self._ground.look_at_chain(*checkpoint))
            resume = read_resume(*checkpoint)
            newer_than = resume.epoch, resume.global_step
        if self.snapshots is not None:
            snapshot = self.snapshots.newest(newer_than)
            if snapshot is not None:
                packed, path = snapshot
                content = self._storage.unpack(path, packed)
                if content is not None:
                    read_resume(path, content)
                    return path, content, locals_of(path, content, 1)[0]
        if checkpoint is None:
            return None
        return *checkpoint, None

    def save(self, run: Run, *, wait: bool) -> None:
        """Write a checkpoint of this safe point; *wait* until it is proven.

        Raises:
            CheckpointWriteError: If it cannot be written, or an earlier one could not; if
                the run's folder was deleted or replaced; and that is to stop.
            MetricsFileError: If the file of metrics was.
            DivergenceError: If the state is one that the guard would stop.
        """
        at = self._at
        if on_rank_zero(self._fabric, self._ground.is_owned):
            self._refuse_diverged(run)
            content = self._content(run)
            with run.unwatched():
                self._storage.save(
                    content,
                    epoch=at.epoch,
                    global_step=at.global_step,
                    metrics=at.metrics,
                    wait=wait,
                )
                self.checkpoint = on_rank_zero(self._fabric, lambda: self._take_note(run))
            if self.snapshots is not None:
                self.snapshots.relieve(self._durable())
        between = at.phase in {Phase.TRAIN_START_EPOCH, Phase.TRAINING_COMPLETE}
        run.schedule.saved(at.global_step, between_epochs=between)

    def let_go(self, run: Run) -> bool:
        """Write no more metrics, if the folder is lost and the run is to go on.

        Called in the first process; tells whether it is so.
        """
        if self._ground.let_go():
            run.metrics = None
            return True
        return False

    def look(self, run: Run) -> None:
        """See what the process that writes has finished, in the first process.

        Raises:
            CheckpointWriteError: If a checkpoint could not be written.
        """
        if self._fabric.is_global_zero:
            self._take_note(run)

    def _take_note(self, run: Run, *, wait: bool = False) -> Path | None:
        """Return the newest checkpoint, having told callbacks of those that are new."""
        for saved in self._storage.finished(wait=wait):
            self.checkpoint = saved.path
            run.expected_save_s = max(run.expected_save_s, saved.seconds)
            if self.snapshots is not None:
                self.snapshots.relieve(self._durable())
            run.hooks.call("on_checkpoint", run.owner, saved.path)
        return self.checkpoint

    def _refuse_diverged(self, run: Run) -> None:
        """Let no state onto the disk that the next start would not want."""
        step = self._at.global_step
        if self._config.guard.on_nonfinite in {"ignore", "skip"}:
            return
        bad = not (self._at.train_means.is_finite() and self._objects.are_finite())
        if any(gather(self._fabric, bad)):
            run.react(step, run.guard.check_step(step, float("nan"), None))

    def snapshot_due(self, step: int) -> bool:
        """Count optimizer step *step*, and tell whether to take a snapshot behind it."""
        return self.snapshots is not None and self.snapshots.due(step)

    def take_snapshot(self, run: Run) -> None:
        """Keep this safe point in shared memory."""
        snapshots, storage = self.snapshots, self._storage
        if snapshots is not None:
            at, leads = self._at, snapshots.is_leader
            whole = leads or storage.needs_all

            def capture() -> dict[str, Any]:
                packed = storage.pack(self._content(run, whole=whole))
                return packed if leads else {"locals": packed["locals"]}

            snapshots.take(capture, epoch=at.epoch, step=at.global_step)

    def _content(self, run: Run, *, whole: bool = True) -> dict[str, Any]:
        """Return this safe point, with this process's own part; or that part alone."""
        at, fabric = self._at, self._fabric
        local = at.local()
        if self._streams is not None:
            local.rng = self._streams
        self._objects.take_local(local, in_window=at.in_window)
        plain = local.to_plain()
        if not whole:
            return {"locals": plain}
        writer = self._ground.metrics
        return {
            **self._objects.state(),
            **at.shared(),
            "guard": run.guard.state_dict(),
            "metrics_bytes": 0 if writer is None else writer.size(),
            "layout": layout_of(run, self._config.seed),
            "world_size": fabric.world_size,
            "locals": plain,
        }

    def roll_back(self, run: Run, why: str) -> None:
        """Go back to the newest checkpoint, with lower learning rates.

        Raises:
            DivergenceError: If there is none.
            CheckpointError: If it cannot be used.
        """
        on_rank_zero(self._fabric, lambda: self._take_note(run, wait=True))
        step = self._at.global_step
        found = self._storage.newest()
        if found is None:
            raise DivergenceError(step, f"{why}; there is no checkpoint to go back to")
        keep_bytes, self._streams = self._restoring.restore(run, *found, None)
        self._objects.scale_learning_rates(self._config.guard.rollback_lr_factor)
        if self._ground.metrics is not None:
            self._ground.metrics.cut(keep_bytes)
        if self.snapshots is not None:
            self.snapshots.remove()
        # The lower rates must outlive a kill; the same place is written once more.
        self.save(run, wait=True)
        if run.progress is not None:
            run.progress.note(f"{why}: back to {found[0].name} with lower learning rates")

    def end(self, run: Run, *, complete: bool) -> None:
        """Wait for what is being written, and give shared memory back.

        A state that the disk does not have, or no longer, is saved once more.

        Raises:
            CheckpointWriteError: If a checkpoint could not be written, or the run's
                folder was deleted or replaced; and that is to stop.
            MetricsFileError: If the file of metrics was.
        """

        def settle() -> Path | None:
            self._take_note(run, wait=True)
            return self._ground.newest_left(self.checkpoint)

        with run.unwatched():
            self.checkpoint = on_rank_zero(self._fabric, settle)
            if self._is_ahead():
                # From a snapshot, with nothing left to do; or the last save was deleted.
                self.save(run, wait=True)
                self.checkpoint = on_rank_zero(self._fabric, settle)
        if not complete and self._is_ahead():
            problem = "the run was to stop, and could not be saved"
            place = self._config.run_dir / "checkpoints"
            raise CheckpointWriteError(place, problem)
        if self.snapshots is not None:
            if complete and on_rank_zero(self._fabric, lambda: self._ground.is_lost):
                # Their name is made of the folder's: no start would find them.
                self.snapshots.remove()
            self.snapshots.give_back(self._durable())
        if run.progress is not None and not complete:
            name = "the beginning" if self.checkpoint is None else self.checkpoint.name
            run.progress.note(
                f"stopped after step {self._at.global_step}; run again to go on from {name}"
            )

    def _is_ahead(self) -> bool:
        """Tell whether the run has come further than what is on the disk."""
        durable = self._durable()
        return durable is None or durable[1] < self._at.global_step
