"""Running means over samples, kept on the device and read only when asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from lightning.fabric import Fabric
from torch import Tensor

from mtf_trainer.metrics import RESERVED

__all__ = ["Average", "Means", "combine"]

Average = Literal["samples", "loaders", "separate"]


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

        A batch without samples counts for nothing, but its names are known then.

        Raises:
            TypeError: If another value is neither a number nor a tensor of one.
            ValueError: If another value's name is one that the stream of metrics uses.
        """
        # A filler's loss counts for nothing, and nothing times NaN would be NaN.
        if num_samples:
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
            if num_samples:
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
        self._clear()
        return means, dict(zip(names, num, strict=True))

    def is_finite(self) -> bool:
        """Tell whether this process's sum of losses is finite; waits for the device."""
        return bool(torch.isfinite(self._loss_sum))

    def state_dict(self) -> dict[str, Any]:
        """Return the sums and counts so far, as plain data and one tensor."""
        sums = torch.stack([self._loss_sum, *self._sums.values()])
        return {
            "num_samples": self.num_samples,
            "sums": sums,
            "counts": dict(self._counts),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave; an empty mapping is the beginning."""
        self._clear()
        self.add_state_dict(state)

    def add_state_dict(self, state: Mapping[str, Any]) -> None:
        """Count what another process's `state_dict` gave as well."""
        if not state:
            return
        loss_sum, *sums = state["sums"].to(self._fabric.device)
        self._loss_sum += loss_sum
        self.num_samples += state["num_samples"]
        for (name, count), total in zip(state["counts"].items(), sums, strict=True):
            self._sums[name] = self._sums.get(name, self._zero()) + total
            self._counts[name] = self._counts.get(name, 0) + count

    def _clear(self) -> None:
        self._loss_sum = self._zero()
        self._sums.clear()
        self._counts.clear()
        self.num_samples = 0

    def _zero(self) -> Tensor:
        return torch.zeros((), dtype=self._dtype, device=self._fabric.device)


def combine(
    means: Mapping[str, Means], average: Average = "samples"
) -> tuple[dict[str, float], int]:
    """Return the means over several loaders, and how many samples there are.

    Every process must call it, with means of the same names.

    Args:
        means: By loader.
        average: Whether each sample counts alike, or each loader; ``"separate"`` gives
            the former, and those of each loader as ``<loader>/<name>`` too.
    """
    taken = {loader: means[loader].take() for loader in sorted(means)}
    values: dict[str, float] = {}
    counts: dict[str, int] = {}
    for each, samples in taken.values():
        for name, mean in each.items():
            share = 1 if average == "loaders" else samples[name]
            values[name] = values.get(name, 0.0) + mean * share
            counts[name] = counts.get(name, 0) + share
    if len(taken) == 1:
        ((values, _),) = taken.values()
    else:
        values = {name: total / max(1, counts[name]) for name, total in values.items()}
    if average == "separate":
        for loader, (each, _) in taken.items():
            values |= {f"{loader}/{name}": mean for name, mean in each.items()}
    return values, sum(samples["loss"] for _, samples in taken.values())


def _check(name: object, value: object) -> None:
    if name in RESERVED:
        message = f"a step returned a metric named {name!r}, which every line has already"
        raise ValueError(message)
    is_scalar = isinstance(value, Tensor) and value.dim() == 0
    if not (is_scalar or isinstance(value, int | float)) or not isinstance(name, str):
        message = f"a step returned {name!r}: {value!r}; metrics are scalars by name"
        raise TypeError(message)
