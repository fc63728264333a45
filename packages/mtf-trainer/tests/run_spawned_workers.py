"""Compares what spawned workers read with what this process reads; run by tests."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from torch.utils.data import DataLoader, Dataset

from mtf_trainer._data.sources import count_samples, make_source


def sample(index: int) -> torch.Tensor:
    """Return the index and a number from each stream."""
    values = (index, random.random(), np.random.rand(), float(torch.rand(())))  # noqa: NPY002, S311
    return torch.tensor(values, dtype=torch.float64)


class Table(Dataset[torch.Tensor]):
    """Map-style."""

    def __len__(self) -> int:
        """Return 11."""
        return 11

    def __getitem__(self, index: int) -> torch.Tensor:
        """Return a sample."""
        return sample(index)


def main() -> None:
    """Print whether it is the same."""
    fabric = Fabric(accelerator="cpu", devices=1)
    read = []
    for options in ({}, {"num_workers": 1, "multiprocessing_context": "spawn"}):
        loader: DataLoader[Any] = DataLoader(Table(), 4, shuffle=True, **options)  # type: ignore[arg-type]
        source = make_source(
            fabric, loader, seed=1, accumulation=1, num_samples=count_samples
        )
        read.append([batch.data.tolist() for batch in source.batches(2, None)])
        source.close()
    print("the same" if read[0] == read[1] else read)  # noqa: T201


if __name__ == "__main__":
    main()
