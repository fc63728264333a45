"""What the loop asks of loaders and batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.wrappers import is_wrapped
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

__all__ = ["count_samples", "generators", "num_batches", "set_epoch", "set_up"]


def count_samples(batch: object) -> int:
    """Return the length of the first dimension of the first tensor in *batch*, or 1.

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


def num_batches(loader: Any) -> int | None:
    """Return how many batches *loader* says it has; None if it cannot say."""
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None


def set_up(fabric: Fabric, loader: Any, seed: int) -> Any:
    """Return *loader* as Fabric runs it; one that Fabric has set up is used as it is.

    A shuffled order that Fabric spreads over processes follows from *seed* and epoch.
    """
    if is_wrapped(loader):
        return loader
    had_distributed = isinstance(getattr(loader, "sampler", None), DistributedSampler)
    prepared = fabric.setup_dataloaders(loader)
    sampler = getattr(prepared, "sampler", None)
    if isinstance(sampler, DistributedSampler) and not had_distributed:
        sampler.seed = seed
    return prepared


def set_epoch(loader: Any, epoch: int) -> None:
    """Tell the samplers of *loader* which epoch comes, counted from 0."""
    # Fabric's loader calls set_epoch itself as an iteration begins, with a count of its
    # own that knows nothing of epochs before a restart.
    loader._num_iter_calls = epoch  # noqa: SLF001
    batch_sampler = getattr(loader, "batch_sampler", None)
    if callable(tell := getattr(batch_sampler, "set_epoch", None)):
        tell(epoch)


def generators(loader: DataLoader[Any]) -> list[torch.Generator]:
    """Return the generators that *loader* and its samplers draw from, each once."""
    owners = (
        loader,
        getattr(loader, "sampler", None),
        getattr(getattr(loader, "batch_sampler", None), "sampler", None),
    )
    found = (getattr(owner, "generator", None) for owner in owners)
    unique = {id(g): g for g in found if isinstance(g, torch.Generator)}
    return list(unique.values())
