"""A moving average of a model's weights, which can take the place of the weights.

After each optimizer step, ``average += (1 - decay) * (weight - average)``, from the
weights at the beginning on. Buffers, as the statistics of a batch norm, and parameters
that are not floating point are copied. See Polyak and Juditsky, "Acceleration of
Stochastic Approximation by Averaging", 1992.

It holds the model's tensors themselves: whoever replaces them (``load_state_dict`` with
``assign=True``) makes a new average.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["WeightAverage"]

_LOW_PRECISION = frozenset({torch.float16, torch.bfloat16})


class WeightAverage:
    """Averages the weights of *model*, which may be wrapped by Fabric, DDP or compile.

    Weights of 16 bits are averaged in 32, since a step of the average would be lost in
    their rounding; `swap` rounds.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.zeros_(model.weight)
    >>> ema = WeightAverage(model, decay=0.75)
    >>> _ = nn.init.constant_(model.weight, 8.0)
    >>> ema.update()
    >>> ema.state_dict()["weight"].item(), model.weight.item()
    (2.0, 8.0)
    >>> ema.swap()
    >>> ema.state_dict()["weight"].item(), model.weight.item()
    (2.0, 2.0)

    Args:
        model: On its device, with its precision.
        decay: At least 0 and below 1: the share of the old average in the new one.
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model = model
        self._weight = 1.0 - decay
        self._swapped = False
        self._aside: dict[int, Tensor] = {}
        own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
        live = {
            id(tensor): tensor
            for tensor in self._named().values()
            if isinstance(tensor, Tensor) and id(tensor) in own
        }
        self._live = live
        self._average = {
            key: tensor.float().clone() if _is_low(tensor) else tensor.detach().clone()
            for key, tensor in live.items()
        }
        self._low = dict.fromkeys(key for key, tensor in live.items() if _is_low(tensor))
        averaged = [key for key, t in live.items() if _is_averaged(t) and not _is_low(t)]
        copied = [key for key, t in live.items() if not _is_averaged(t)]
        self._averaged = self._pairs(averaged)
        self._copied = self._pairs(copied)

    @property
    def swapped(self) -> bool:
        """Whether the model has the average, and the weights are kept here."""
        return self._swapped

    @torch.no_grad()
    def update(self) -> None:
        """Let the average follow the weights by one step.

        Raises:
            RuntimeError: If they are swapped.
        """
        if self._swapped:
            message = "the average cannot follow weights that are swapped with it"
            raise RuntimeError(message)
        averages, weights = self._averaged
        if averages:
            # As torch's own optimizers do, tensors of one kind in one launch.
            torch._foreach_lerp_(averages, weights, self._weight)
        for key in self._low:
            self._average[key].lerp_(self._live[key].float(), self._weight)
        copies, others = self._copied
        if copies:
            torch._foreach_copy_(copies, others)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange weights and average in place; again, exchange them back.

        Needs memory for one more tensor at a time, of 16 bits for all while swapped.
        """
        for key, live in self._live.items():
            average = self._average[key]
            if key not in self._low:
                weights = live.detach().clone()
                live.copy_(average)
                average.copy_(weights)
            elif self._swapped:
                live.copy_(self._aside.pop(key))
            else:
                self._aside[key] = live.detach().clone()
                live.copy_(average)
        self._swapped = not self._swapped

    def state_dict(self) -> dict[str, Any]:
        """Return the average under the model's names, swapped or not.

        The tensors are no copies. What a model's state holds besides its parameters and
        buffers is as it is in the model.
        """
        return {name: self._averaged_of(value) for name, value in self._named().items()}

    def live_state_dict(self) -> dict[str, Any]:
        """Return the weights under the model's names, swapped or not; no copies."""
        return {name: self._weights_of(value) for name, value in self._named().items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over an average that `state_dict` gave; the weights stay, swapped or not.

        Raises:
            ValueError: If a name or shape does not fit the model; nothing is changed.
        """
        targets = {
            name: tensor
            for name, tensor in self.state_dict().items()
            if isinstance(tensor, Tensor)
        }
        for name, tensor in targets.items():
            found = getattr(state.get(name), "shape", None)
            if found != tensor.shape:
                had = "nothing" if found is None else f"shape {tuple(found)}"
                needs = tuple(tensor.shape)
                message = f"the average has {had} as {name}, the model needs {needs}"
                raise ValueError(message)
        unknown = sorted(set(state) - set(self._named()))
        if unknown:
            message = f"the average has {unknown[0]}, the model has not"
            raise ValueError(message)
        for name, tensor in targets.items():
            tensor.copy_(state[name])
        if self._swapped:
            for key in self._low:
                self._live[key].copy_(self._average[key])

    def _named(self) -> dict[str, Any]:
        """Return the model's own tensors by name; tied ones under each name."""
        return self._model.state_dict(keep_vars=True)

    def _pairs(self, keys: list[int]) -> tuple[list[Tensor], list[Tensor]]:
        averages = [self._average[key] for key in keys]
        return averages, [self._live[key] for key in keys]

    def _averaged_of(self, value: Any) -> Any:
        if id(value) not in self._live:
            return value
        key = id(value)
        in_model = self._swapped and key not in self._aside
        return value.detach() if in_model else self._average[key]

    def _weights_of(self, value: Any) -> Any:
        if id(value) not in self._live:
            return value
        key = id(value)
        if not self._swapped:
            return value.detach()
        return self._aside[key] if key in self._aside else self._average[key]


def _is_averaged(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter) and (
        tensor.is_floating_point() or tensor.is_complex()
    )


def _is_low(tensor: Tensor) -> bool:
    return _is_averaged(tensor) and tensor.dtype in _LOW_PRECISION
