"""The step of optimizers: what is between gathered gradients and changed weights.

Gradients are corrected, clipped and looked at; then the optimizers whose gradients are
wanted step, by the scaler where losses are scaled (fp16).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["OptimizerStep", "restore_dtypes"]


class OptimizerStep:
    """Takes steps of *optimizers*, over parameters of *model*.

    Args:
        fabric: Launched.
        model: Set up by *fabric*.
        optimizers: Set up by *fabric*.
        max_norm: To which the gradients of each are clipped; None for not.
        scaler: What scales losses; None where they are not.
    """

    def __init__(
        self,
        fabric: Fabric,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        *,
        max_norm: float | None,
        scaler: Any,
    ) -> None:
        self._fabric = fabric
        self._model = model
        self._optimizers = optimizers
        self._max_norm = max_norm
        self._scaler = scaler
        self._scales_several = scaler is not None and len(optimizers) > 1

    def take(
        self, chosen: Iterable[int], factor: float, *, skips: bool
    ) -> tuple[Tensor | None, bool]:
        """Step the *chosen* optimizers; their gradients stay.

        Args:
            chosen: Their indices.
            factor: For the gathered gradients.
            skips: Whether to leave out one whose gradients are not finite; waits for the
                device.

        Returns:
            The norm of all gradients before they were clipped, if that is on, and
            whether an optimizer was left out.
        """
        norms: list[Tensor] = []
        skipped = False
        for index in chosen:
            optimizer = self._optimizers[index]
            if factor != 1.0:
                _scale_gradients(optimizer, factor)
            if self._max_norm is not None:
                norms.append(self._clip(optimizer, self._max_norm))
            if skips:
                found = norms[-1] if norms else _norm_of(optimizer)
                if not torch.isfinite(found):
                    skipped = True
                    continue
            self._step(optimizer)
        if self._scales_several:
            self._scaler.update()
        if len(norms) > 1:
            return torch.stack(norms).norm(), skipped
        return (norms[0] if norms else None), skipped

    def _clip(self, optimizer: Optimizer, max_norm: float) -> Tensor:
        # What is not finite is looked for where the device is waited for anyway.
        norm = self._fabric.clip_gradients(
            self._model, optimizer, max_norm=max_norm, error_if_nonfinite=False
        )
        return cast(Tensor, norm)

    def _step(self, optimizer: Optimizer) -> None:
        if self._scales_several:
            # Fabric's own call would change the scale before the next optimizer's turn.
            self._scaler.step(cast(Any, optimizer).optimizer)
        else:
            optimizer.step()


def restore_dtypes(optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
    """Give *optimizer*, which has loaded *saved*, its state in the dtypes that it had.

    torch makes all of it but ``step`` of the parameter's, which rounds what was kept in
    more precision.

    Raises:
        ValueError: If that cannot be done, as its ``state_dict`` is a copy.
    """
    for _ in range(2):
        changed: list[Tensor] = []
        # It holds the live entries: what is replaced in it is replaced there.
        _as_saved(optimizer.state_dict()["state"], saved["state"], changed)
    if changed:
        message = f"it makes a {changed[0].dtype} another dtype, which is not exact"
        raise ValueError(message)


def _as_saved(own: Any, saved: Any, changed: list[Tensor]) -> Any:
    """Return *own* with the tensors of *saved* in place of those of another dtype."""
    if isinstance(own, Tensor) and isinstance(saved, Tensor):
        if own.dtype != saved.dtype:
            changed.append(saved)
            return saved.to(own.device)
    elif isinstance(own, dict) and isinstance(saved, Mapping):
        for key in [key for key in own if key in saved]:
            own[key] = _as_saved(own[key], saved[key], changed)
    elif isinstance(own, list | tuple) and isinstance(saved, list | tuple):
        pairs = zip(own, saved, strict=False)
        return type(own)(_as_saved(*pair, changed) for pair in pairs)
    return own


def _scale_gradients(optimizer: Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)


def _norm_of(optimizer: Optimizer) -> Tensor:
    gradients = [
        p.grad
        for group in optimizer.param_groups
        for p in group["params"]
        if p.grad is not None
    ]
    return nn.utils.get_total_norm(gradients)
