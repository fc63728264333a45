"""Running means over samples, kept on the device and read only when asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from lightning.fabric import Fabric
from torch import Tensor

from mtf_trainer.metrics import RESERVED

__all__ = ["Means"]


class Means:
    """Means of a loss and of further values, weighted by samples, over all processes.

    Adding starts no transfer and waits for nothing; `take` does both.
    """

    def __init__(self, fabric: Fabric) -> None:
        self.num_samples = 0
        self._fabric = fabric
        # Sums of many batches need the room; Apple's devices have no float64.
        is_mps = fabric.device.type == "mps"
        self._dtype = torch.float32 if is_mps else torch.float64
        self._loss_sum = self._zero()
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(
        self, loss: Tensor, others: Mapping[str, Tensor | float] | None, num_samples: int
    ) -> None:
        """Count a batch; *others* may hold ``loss`` too, which is passed over.

        Raises:
            TypeError: If another value is neither a number nor a tensor of one.
            ValueError: If another value's name is one that the stream of metrics uses.
        """
        self._loss_sum.add_(loss.detach(), alpha=num_samples)
        self.num_samples += num_samples
        if others is None:
            return
        for name, value in others.items():
            if name == "loss":
                continue
            if name not in self._sums:
                _check(name, value)
                self._sums[name] = self._zero()
                self._counts[name] = 0
            number = value.detach() if isinstance(value, Tensor) else value
            self._sums[name].add_(number, alpha=num_samples)
            self._counts[name] += num_samples

    def take(self) -> tuple[dict[str, float], dict[str, int]]:
        """Return means and sample counts by name, ``loss`` first, and start anew.

        Every process must call it, having added values of the same names.
        """
        names = sorted(self._sums)
        sums = torch.stack([self._loss_sum, *(self._sums[name] for name in names)])
        num = [self.num_samples, *(self._counts[name] for name in names)]
        if self._fabric.world_size > 1:
            counts = torch.tensor(num, dtype=self._dtype, device=sums.device)
            both = torch.cat([sums, counts])
            reduced = cast(Tensor, self._fabric.all_reduce(both, reduce_op="sum"))
            totals = reduced.tolist()
            num = [int(count) for count in totals[len(num) :]]
        else:
            totals = sums.tolist()
        names = ["loss", *names]
        means = {
            name: total / max(1, count)
            for name, total, count in zip(names, totals, num, strict=False)
        }
        self._loss_sum = self._zero()
        self._sums.clear()
        self._counts.clear()
        self.num_samples = 0
        return means, dict(zip(names, num, strict=True))

    def _zero(self) -> Tensor:
        return torch.zeros((), dtype=self._dtype, device=self._fabric.device)


def _check(name: object, value: object) -> None:
    if name in RESERVED:
        message = f"a step returned a metric named {name!r}, which every line has already"
        raise ValueError(message)
    is_scalar = isinstance(value, Tensor) and value.dim() == 0
    if not (is_scalar or isinstance(value, int | float)) or not isinstance(name, str):
        message = f"a step returned {name!r}: {value!r}; metrics are scalars by name"
        raise TypeError(message)
