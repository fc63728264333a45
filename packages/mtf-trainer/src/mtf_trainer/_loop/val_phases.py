"""The phases of a validation, one method each; see `mtf_trainer._loop.phase_loop`."""

from __future__ import annotations

from typing import cast

import torch

from mtf_trainer._data.source import Batch, Source
from mtf_trainer._loop.loop_base import LoopBase, loss_of
from mtf_trainer._loop.means import Means
from mtf_trainer._loop.run import Run
from mtf_trainer.phases import Phase
from mtf_trainer.state import ValMicroState

__all__ = ["ValPhases"]


class ValPhases(LoopBase):
    """Evaluates the model, batch after batch, and gathers means by loader."""

    def _val_start_epoch(self, run: Run) -> Phase:
        self._at.val = ValMicroState()
        self._at.val_cursor = None
        self._val_batches = None
        self._at.val_means = {}
        self.model.eval()
        if self.ema is not None:
            self.ema.swap()
        self._show_validation(run)
        return Phase.VAL_BATCH_LOAD

    def _show_validation(self, run: Run) -> None:
        val, micro = cast(Source, run.val), cast(ValMicroState, self._at.val)
        label = f"epoch {self._at.epoch + 1}/{run.max_epochs} validation"
        run.begin(label, val.num_batches, micro.batch_idx)

    def _val_batch_load(self, run: Run) -> Phase:
        val = cast(Source, run.val)
        if self._val_batches is None:
            self._val_batches = val.batches(self._at.epoch, self._at.val_cursor)
        self._batch = self._next(run, val, self._val_batches, "validation")
        return Phase.VAL_BATCH_FORWARD

    def _val_batch_forward(self, run: Run) -> Phase:
        if self._batch is None:
            self._val_batch_load(run)
        batch, micro = cast(Batch, self._batch), cast(ValMicroState, self._at.val)
        self._evaluate(batch, micro.batch_idx, self._at.val_means)
        micro.batch_idx += 1
        micro.is_last = batch.is_last
        self._at.val_cursor = batch.cursor
        self._batch = None
        if run.progress is not None:
            run.progress.advance(batch.num_samples)
        return Phase.VAL_BATCH_END

    def _evaluate(self, batch: Batch, batch_idx: int, into: dict[str, Means]) -> None:
        """Take a validation step, and count what it returns under the batch's loader."""
        with torch.no_grad(), self._in_step(trains=False):
            loss, others = loss_of(self.validation_step(batch.data, batch_idx))
        means = into.get(batch.loader)
        if means is None:
            means = into[batch.loader] = Means(self.fabric)
        means.add(loss, others, batch.num_samples)

    def _val_batch_end(self, run: Run) -> Phase:
        run.after_batch()
        micro = cast(ValMicroState, self._at.val)
        return Phase.EPOCH_END if micro.is_last else Phase.VAL_BATCH_LOAD
