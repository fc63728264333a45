"""Validation, test and prediction outside of `fit`: the model used, and left as it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any, cast

import torch
from torch import Tensor

from mtf_trainer._data import sources
from mtf_trainer._data.source import Batch, Source
from mtf_trainer._loop.means import Average, Means, combine
from mtf_trainer._loop.phase_loop import PhaseLoop
from mtf_trainer._ranks.sharding import is_sharded
from mtf_trainer.ema import WeightAverage
from mtf_trainer.errors import DataError
from mtf_trainer.multi_loader import MultiLoader
from mtf_trainer.trackers import Trackers

__all__ = ["Evaluation", "Loader", "average_of"]

Loader = Any  # a DataLoader, or a MultiLoader


class Evaluation(PhaseLoop):
    """Uses a model without training it. The subclass sets what is declared here."""

    _trackers: Trackers

    def validate(self, loader: Loader) -> dict[str, float]:
        """Return the means of what the validation step returns, weighted by samples.

        Each sample counts once, with several processes too. Weights are the averaged
        ones where ``config.ema_decay`` is set.

        Raises:
            DataError: If *loader* has no batches, or cannot be run.
            ValueError: If a step returns no loss.
            TypeError: If a step returns something else than tensors and numbers.
        """
        means: dict[str, Means] = {}
        with self._evaluating(loader) as batches:
            for batch_idx, batch in enumerate(batches):
                self._batch = batch
                self._evaluate(batch, batch_idx, means)
        if not means:
            message = "the loader has no batches"
            raise DataError(message)
        return combine(means, average_of(loader))[0]

    def test(self, loader: Loader) -> dict[str, float]:
        """Return what `validate` does, and tell the trackers, as ``test/...``.

        Raises:
            Exception: As `validate` does.
        """
        values = self.validate(loader)
        named = {f"test/{name}": value for name, value in values.items()}
        self._trackers.log_metrics(named, self._at.global_step)
        return values

    def predict(self, loader: Loader) -> list[Any]:
        """Return `predict_step` of each batch of this process, in order, on the CPU.

        Raises:
            DataError: If *loader* cannot be run.
        """
        found = []
        with self._evaluating(loader) as batches, torch.no_grad():
            for batch_idx, batch in enumerate(batches):
                self._batch = batch
                # All processes take part in a forward pass of a sharded model.
                if batch.num_samples or is_sharded(self.fabric):
                    value = self.predict_step(batch.data, batch_idx)
                    if batch.num_samples:
                        found.append(_to_cpu(value))
        return found

    @contextmanager
    def _evaluating(self, loader: Loader) -> Iterator[Iterator[Batch]]:
        """Give what *loader* reads to an evaluating model, and leave all as it was."""
        source, held = self._source(loader), self._batch
        modes = [module.training for module in self.model.modules()]
        swaps = self.ema is not None and not self.ema.swapped
        self.model.eval()
        if swaps:
            cast(WeightAverage, self.ema).swap()
        try:
            with closing(source):
                yield source.batches(0, None)
        finally:
            self._batch = held
            if swaps:
                cast(WeightAverage, self.ema).swap()
            for module, mode in zip(self.model.modules(), modes, strict=True):
                module.training = mode

    def predict_step(self, batch: Any, batch_idx: int) -> Any:  # noqa: ARG002
        """Return what `predict` is to gather; by default the model's output.

        A batch that is a sequence or a mapping gives its first value to the model.
        """
        if isinstance(batch, Mapping):
            batch = next(iter(batch.values()))
        elif isinstance(batch, list | tuple):
            batch = batch[0]
        return self.model(batch)

    def num_samples(self, batch: Any) -> int:
        """Return how many samples *batch* holds, where the loader makes no batches.

        A loader that puts samples together counts them; this is for data that come as
        whole batches.

        By default the length of the first dimension of the first tensor in it. Override
        this for batches of another form.
        """
        return sources.count_samples(batch)

    def _source(self, loader: Loader, *, training: bool = False) -> Source:
        """Return what *loader*'s batches are read from; the caller closes it."""
        return sources.make_source(
            self.fabric,
            loader,
            seed=self.config.seed,
            accumulation=self.config.gradient_accumulation_steps if training else 1,
            num_samples=self.num_samples,
            skip_to_resume=self.config.skip_to_resume,
            training=training,
        )


def average_of(loader: Loader) -> Average:
    """Return how the means of *loader*'s parts become one."""
    return loader.validation if isinstance(loader, MultiLoader) else "samples"


def _to_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {key: _to_cpu(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_to_cpu(each) for each in value]
    return value
