"""What the loop asks of loaders and batches: a source, and how many samples there are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lightning.fabric import Fabric
from lightning.fabric.wrappers import is_wrapped
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from mtf_trainer._data.map_source import MapSource
from mtf_trainer._data.multi_source import MultiSource, PartSource
from mtf_trainer._data.reader import check_loader
from mtf_trainer._data.source import Source
from mtf_trainer._data.stream_source import StreamSource
from mtf_trainer.multi_loader import MultiLoader

__all__ = ["count_samples", "make_source"]


def make_source(  # noqa: PLR0913 - each is one choice
    fabric: Fabric,
    loader: Any,
    *,
    seed: int,
    accumulation: int,
    num_samples: Callable[[Any], int],
    skip_to_resume: bool = False,
    training: bool = True,
) -> Source:
    """Return the source of what *loader* reads in this process of *fabric*.

    The loader is looked at and not used; what Fabric did as it set it up is undone.

    Args:
        fabric: Launched.
        loader: A `torch.utils.data.DataLoader` or a `MultiLoader`.
        seed: With the epoch, it gives the order of samples; with epoch and index, what is
            drawn for a sample.
        accumulation: Batches of a process that make a window, which an optimizer step
            follows.
        num_samples: Counts the samples of a batch where the loader does not batch, so
            that its data set gives whole batches. Elsewhere they are known.
        skip_to_resume: Whether a stream that cannot say where it is is read again from
            its beginning, and passed over what was used.
        training: Whether a stream that cannot say where it is is refused otherwise.

    Raises:
        DataError: If the loader cannot be run exactly.
        TypeError: If it is not a loader.
    """
    may_skip = skip_to_resume or not training
    if isinstance(loader, MultiLoader):

        def make(each: Any, own_seed: int) -> PartSource:
            return _make_part(fabric, each, own_seed, 1, num_samples, may_skip=may_skip)

        return MultiSource(loader, make, seed=seed, accumulation=accumulation)
    return _make_part(fabric, loader, seed, accumulation, num_samples, may_skip=may_skip)


def _make_part(
    fabric: Fabric,
    loader: Any,
    seed: int,
    accumulation: int,
    num_samples: Callable[[Any], int],
    *,
    may_skip: bool,
) -> PartSource:
    if is_wrapped(loader):
        loader = loader._dataloader  # noqa: SLF001
    if not isinstance(loader, DataLoader):
        kinds = "a torch.utils.data.DataLoader or a MultiLoader"
        message = f"a loader must be {kinds}, not {type(loader).__name__}"
        raise TypeError(message)
    check_loader(loader)
    common: dict[str, Any] = {
        "seed": seed,
        "accumulation": accumulation,
        "num_samples": num_samples,
    }
    if isinstance(loader.dataset, IterableDataset):
        return StreamSource(fabric, loader, skip_to_resume=may_skip, **common)
    return MapSource(fabric, loader, **common)


def count_samples(batch: object) -> int:
    """Return the length of the first dimension of the first tensor in *batch*, or 1.

    >>> import torch
    >>> count_samples({"ids": ["a", "b"], "x_BD": torch.zeros(2, 5)})
    2
    """
    return _first_length(batch) or 1


def _first_length(value: object) -> int | None:
    if isinstance(value, Tensor):
        return value.size(0) if value.dim() else None
    items: Iterable[object] = ()
    if isinstance(value, Mapping):
        items = value.values()
    elif isinstance(value, list | tuple):
        items = value
    for item in items:
        length = _first_length(item)
        if length is not None:
            return length
    return None
