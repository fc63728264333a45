"""The run around the phases: opened, driven to its end or to a stop, rolled back, left."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack

from mtf_trainer._data.source import Source
from mtf_trainer._guards.guard import Guard
from mtf_trainer._guards.limits import Deadline
from mtf_trainer._guards.signals import StopSignals
from mtf_trainer._guards.watchdog import Watchdog
from mtf_trainer._hooks import Hooks
from mtf_trainer._loop.capture import Objects
from mtf_trainer._loop.keeper import Keeper
from mtf_trainer._loop.phase_loop import PhaseLoop, Stopped
from mtf_trainer._loop.run import RollBack, Run
from mtf_trainer._ranks.agreement import StopAgreement
from mtf_trainer._ranks.rank_errors import RankErrors
from mtf_trainer._saving.save_schedule import SaveSchedule
from mtf_trainer._verify.replay import TARGET
from mtf_trainer.phases import Phase
from mtf_trainer.progress import Progress
from mtf_trainer.result import StopReason
from mtf_trainer.trackers import Trackers

__all__ = ["Fitting"]


class Fitting(PhaseLoop):
    """Drives one run. The subclass sets what is declared here."""

    _hooks: Hooks
    _trackers: Trackers
    _objects: Objects
    _run: Run | None
    probe: Callable[[Phase], bool] | None

    def _open(
        self,
        stack: ExitStack,
        train: Source,
        val: Source | None,
        max_epochs: int,
        max_steps: int | None,
    ) -> tuple[Run, Keeper]:
        """Open what a call of `fit` needs, to be closed with *stack*."""
        config, fabric = self.config, self.fabric
        distributed = fabric.world_size > 1
        self._at = self._new_state()
        agreement = StopAgreement(fabric, values=(0, 0))
        stack.callback(agreement.close)
        keeper = Keeper(config, fabric, self._at, self._objects, agreement.max_of)
        stack.enter_context(keeper)
        for source in (train, val):
            if source is not None:
                stack.callback(source.close)
        if distributed:
            stack.enter_context(RankErrors(fabric))
        probe = self.probe or self._replay_probe()
        guard = Guard(config.guard)
        deadline = config.guard.step_deadline_s
        watchdog = None
        if deadline is not None:
            watchdog = stack.enter_context(Watchdog(deadline, describe=self._describe))
        progress = None
        if config.show_progress and fabric.is_global_zero:
            progress = Progress(sys.stderr)
            stack.callback(progress.close)
        run = Run(
            owner=self,
            signals=stack.enter_context(StopSignals(enabled=config.handle_signals)),
            agreement=agreement,
            hooks=self._hooks,
            guard=guard,
            deadline=Deadline(config.limits, os.environ),
            watchdog=watchdog,
            schedule=SaveSchedule(config.checkpoint),
            keeper=keeper,
            trackers=self._trackers,
            train=train,
            val=val,
            max_epochs=max_epochs,
            max_steps=max_steps,
            probe=probe,
            progress=progress,
            scales=self._scaler is not None,
            distributed=distributed,
            attention=probe is not None,
        )
        self._run = run
        stack.callback(setattr, self, "_run", None)
        return run, keeper

    def _resume_loop(self, run: Run) -> None:
        """Bring what is not saved into the state that belongs to where the loop stands."""
        self._batch = self._train_batches = self._val_batches = None
        if self._at.val is not None:
            if self.ema is not None:
                self.ema.swap()
            self._show_validation(run)
        elif self._at.train.batch_idx:
            self._show_training(run)
        run.guard.begin(self._at.global_step)

    def _replay_probe(self) -> Callable[[Phase], bool] | None:
        """Return what stops a replay where the run it repeats had its checkpoint."""
        target = TARGET.get()
        if target is None:
            return None
        return lambda _: target.reached(self._at.shared()["resume"])

    def _leave(self) -> None:
        """Leave the model with its own weights, and no data open, wherever the run was."""
        self._batch = self._train_batches = self._val_batches = None
        if self.ema is not None and self.ema.swapped:
            self.ema.swap()

    def _describe(self) -> str:
        at = self._at
        return f"{at.phase}, epoch {at.epoch + 1}, step {at.global_step}"

    def _train(self, run: Run) -> StopReason:
        """Drive the phases to their end, or to where the run is to stop."""
        while True:
            try:
                if self._at.phase is Phase.TRAIN_START_EPOCH and self._is_done(run):
                    self._at.phase = Phase.TRAINING_COMPLETE
                elif self._has_enough_steps(run) and not self._ends_step():
                    return StopReason.MAX_STEPS
                if self._at.phase is not Phase.TRAINING_COMPLETE:
                    run.check_start()
                    run.keeper.start_streams()
                self._drive(run)
            except Stopped:
                self._save_stop(run)
                if run.stopping is not None:
                    return run.stopping
            except RollBack as error:
                self._roll_back(run, error)
            else:
                if self._is_ended(run):
                    return StopReason.ENDED
                enough = self._at.epoch >= run.max_epochs
                return StopReason.COMPLETED if enough else StopReason.MAX_STEPS

    def _save_stop(self, run: Run) -> None:
        """Save where the run is to stop; if it had to go back, it may not be there yet."""
        try:
            run.keeper.save(run, wait=True)
        except RollBack as error:
            self._roll_back(run, error)
            if run.stopping is StopReason.MAX_STEPS:
                run.stopping = None

    def _roll_back(self, run: Run, error: RollBack) -> None:
        """Go back to the last checkpoint, which is saved once more."""
        with run.unwatched():
            run.keeper.roll_back(run, str(error))
        self._resume_loop(run)

    def _attend(self, run: Run, phase: Phase) -> None:
        if not run.distributed and run.signals.wanted:
            run.stop(StopReason.INTERRUPTED)
        if run.probe is not None and run.probe(phase):
            run.stop(StopReason.INTERRUPTED)
        if phase is Phase.TRAIN_BATCH_BACKWARD:
            return
        if run.stopping is not None and phase is not Phase.TRAINING_COMPLETE:
            raise Stopped
        if run.save_due:
            run.save_due = False
            run.keeper.save(run, wait=False)
        if run.snapshot_due:
            run.snapshot_due = False
            run.keeper.take_snapshot(run)
        run.attention = run.probe is not None
