"""The content of a checkpoint: taking it from live objects, and putting it back.

Everything is checked against the live objects before the first of them is changed. What
is taken refers to live tensors: it must be copied or written before anything goes on.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric import Fabric
from lightning.fabric.wrappers import is_wrapped
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor import zeros as spread_zeros
from torch.optim import Optimizer

from mtf_trainer._hooks import Hooks
from mtf_trainer._loop.form import reading
from mtf_trainer._loop.match import check_groups, check_like, check_tensors
from mtf_trainer._loop.optimizer_step import restore_dtypes
from mtf_trainer._loop.schedulers import (
    SchedulerSpec,
    like_own,
    plain_state,
    scale_rates,
)
from mtf_trainer._ranks.comm_hooks import CommState, ddp_state, load_ddp_state
from mtf_trainer._ranks.sharding import is_sharded
from mtf_trainer._saving.spread import Spread
from mtf_trainer.ema import WeightAverage
from mtf_trainer.errors import CheckpointMismatchError, CheckpointWarning
from mtf_trainer.state import LocalState
from mtf_trainer.trackers import Trackers

__all__ = ["Objects"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Objects:
    """The live objects whose states make a checkpoint."""

    fabric: Fabric
    model: nn.Module
    optimizers: Sequence[Optimizer]
    schedulers: Sequence[SchedulerSpec]
    ema: WeightAverage | None
    hooks: Hooks
    trackers: Trackers
    comm: CommState | None

    @property
    def inner(self) -> nn.Module:
        """The module that was given, without what Fabric and DDP put around it."""
        model = self.model
        return cast(nn.Module, model.module) if is_wrapped(model) else model

    @property
    def state_bytes(self) -> int:
        """About how much there is to copy: weights, and twice that of an optimizer."""
        return 3 * sum(p.numel() * p.element_size() for p in self.model.parameters())

    def state(self) -> dict[str, Any]:
        """Return their states, as plain data and live tensors."""
        ema = self.ema
        return {
            "model": self._weights(),
            "optimizers": [
                {"type": _kind(o), "state": o.state_dict()} for o in self.optimizers
            ],
            "schedulers": [
                {
                    "type": _kind(s.scheduler),
                    "state": plain_state(s.scheduler.state_dict()),
                }
                for s in self.schedulers
            ],
            "precision": self.fabric.strategy.precision.state_dict(),
            "ema": None if ema is None else ema.state_dict(),
            "modes": [module.training for module in self.inner.modules()],
            "trained": [p.requires_grad for p in self.inner.parameters()],
            "buffers": self._hidden_buffers(),
            "callbacks": self.hooks.state_dict(),
            "trackers": self.trackers.state_dict(),
        }

    def _weights(self) -> dict[str, Any]:
        """Return what training goes on with, also while the model has the average."""
        ema = self.ema
        return dict(self.model.state_dict() if ema is None else ema.live_state_dict())

    @torch.no_grad()
    def are_finite(self) -> bool:
        """Tell whether all weights are; of a sharded model, this process's own."""
        weights = [
            p.to_local() if isinstance(p, DTensor) else p
            for p in self.inner.parameters()
            if p.is_floating_point() and p.numel()
        ]
        norm = nn.utils.get_total_norm([w for w in weights if w.numel()], math.inf)
        return bool(torch.isfinite(norm))

    def _hidden_buffers(self) -> dict[str, Tensor]:
        """Return the buffers that the model leaves out of its ``state_dict``."""
        named = dict(self.inner.named_buffers())
        shown = self.inner.state_dict().keys() if named else ()
        return {name: value for name, value in named.items() if name not in shown}

    def check(self, place: Any, state: Mapping[str, Any]) -> None:
        """Raise if *state*, found at *place*, does not fit.

        Raises:
            CheckpointMismatchError: Naming the first entry that does not.
        """
        check_tensors(place, "model", state["model"], self._weights())
        for key, ours in (
            ("optimizers", self.optimizers),
            ("schedulers", [spec.scheduler for spec in self.schedulers]),
        ):
            saved = state[key]
            if len(saved) != len(ours):
                problem = f"the checkpoint has {len(saved)}, this run {len(ours)}"
                raise CheckpointMismatchError(place, key, problem)
            for index, (each, our) in enumerate(zip(saved, ours, strict=True)):
                if each["type"] != _kind(our):
                    problem = f"the checkpoint has {each['type']}, this run {_kind(our)}"
                    raise CheckpointMismatchError(place, f"{key}.{index}", problem)
        for index, (each, optimizer) in enumerate(
            zip(state["optimizers"], self.optimizers, strict=True)
        ):
            check_groups(place, index, each["state"], optimizer.state_dict())
        for index, (each, spec) in enumerate(
            zip(state["schedulers"], self.schedulers, strict=True)
        ):
            key = f"schedulers.{index}.state"
            check_like(
                place, key, each["state"], plain_state(spec.scheduler.state_dict())
            )
        if (state["ema"] is None) != (self.ema is None):
            had = "no average" if state["ema"] is None else "an average"
            problem = (
                f"the checkpoint has {had} of the weights, this run is set otherwise"
            )
            raise CheckpointMismatchError(place, "ema", problem)
        num_modules = sum(1 for _ in self.inner.modules())
        if len(state["modes"]) != num_modules:
            problem = f"the checkpoint has {len(state['modes'])}, the model {num_modules}"
            raise CheckpointMismatchError(place, "modes", problem)
        num_parameters = sum(1 for _ in self.inner.parameters())
        if len(state["trained"]) != num_parameters:
            problem = (
                f"the checkpoint has {len(state['trained'])}, the model {num_parameters}"
            )
            raise CheckpointMismatchError(place, "trained", problem)
        check_tensors(place, "buffers", state["buffers"], self._hidden_buffers())
        self.hooks.check(state["callbacks"], place)

    def targets(self, place: Path, spread: Iterable[Spread]) -> dict[str, DTensor]:
        """Return tensors to load each *spread* one of a checked state into, by place.

        Those of model and average are the live ones, and there are all of these.

        Raises:
            CheckpointMismatchError: If one belongs to no parameter.
        """
        if self.ema is not None and self.ema.swapped:
            self.ema.swap()
        states = {"model": self._weights()}
        if self.ema is not None:
            states["ema"] = self.ema.state_dict()
        found = {
            f"/{key}/{name}": value
            for key, state in states.items()
            for name, value in state.items()
            if isinstance(value, DTensor)
        }
        for each in spread:
            if each.place not in found:
                try:
                    found[each.place] = _room_for(each, self._parameter_of(each.place))
                except LookupError as error:
                    key = each.place.strip("/")
                    problem = "is spread in the checkpoint, and belongs to no parameter"
                    raise CheckpointMismatchError(place, key, problem) from error
        return found

    def _parameter_of(self, place: str) -> DTensor:
        """Return the parameter that the optimizer's state, or gradient, at *place* is of.

        Raises:
            LookupError: If there is none.
        """
        _, key, *rest = place.split("/", 2)
        parameter: Any = None
        if key == "optimizers":
            optimizer, *_, index, _ = rest[0].split("/", 4)
            groups = self.optimizers[int(optimizer)].param_groups
            parameter = [p for group in groups for p in group["params"]][int(index)]
        elif key == "locals":
            named = dict(self.inner.named_parameters())
            parameter = named[rest[0].removeprefix("grads/")]
        if not isinstance(parameter, DTensor):
            raise KeyError(place)
        return parameter

    def load(self, state: Mapping[str, Any], place: Any) -> None:
        """Take over a *state* that was checked.

        Raises:
            CheckpointMismatchError: If an object does not take its own; some have taken
                over theirs then.
        """
        if self.ema is not None and self.ema.swapped:
            self.ema.swap()
        with reading(place, "model"):
            self.model.load_state_dict(state["model"])
        for index, optimizer in enumerate(self.optimizers):
            with reading(place, f"optimizers.{index}.state"):
                saved = state["optimizers"][index]["state"]
                optimizer.load_state_dict(saved)
                restore_dtypes(optimizer, saved)
        for index, spec in enumerate(self.schedulers):
            saved = state["schedulers"][index]["state"]
            with reading(place, f"schedulers.{index}.state"):
                spec.scheduler.load_state_dict(like_own(spec.scheduler, saved))
            # torch would warn that no optimizer stepped yet, in this process.
            spec.scheduler.optimizer._opt_called = True  # type: ignore[attr-defined]  # noqa: SLF001
        with reading(place, "precision"):
            self.fabric.strategy.precision.load_state_dict(state["precision"])
        if self.ema is not None:
            with reading(place, "ema"):
                self.ema.load_state_dict(state["ema"])
        for module, mode in zip(self.inner.modules(), state["modes"], strict=True):
            module.training = mode
        for parameter, trained in zip(
            self.inner.parameters(), state["trained"], strict=True
        ):
            parameter.requires_grad_(trained)
        for name, buffer in self._hidden_buffers().items():
            with reading(place, f"buffers.{name}"):
                buffer.copy_(state["buffers"][name])
        self.hooks.load_state_dict(state["callbacks"], place)
        if self.fabric.is_global_zero:
            self.trackers.load_state_dict(state["trackers"])

    def take_local(self, local: LocalState, *, in_window: bool) -> None:
        """Add to *local* what this process's model has for itself."""
        local.ddp = self._own_buffers() if is_sharded(self.fabric) else self._ddp_state()
        if self.comm is not None:
            local.comm = self.comm.state_dict()
        if in_window:
            local.grads = _gradients_of(self.inner)

    def _ddp_state(self) -> dict[str, Any] | None:
        """Return what DDP keeps, with the buffers that training goes on with."""
        ema = self.ema
        if ema is None or not ema.swapped:
            return ddp_state(self.model)
        ema.swap()
        state = ddp_state(self.model)
        if state is not None:
            state["buffers"] = {n: b.clone() for n, b in state["buffers"].items()}
        ema.swap()
        return state

    def _own_buffers(self) -> dict[str, Any]:
        """Return what is not sharded, and so each process's own; nothing exchanges it."""
        states = {"buffers": {**self._weights(), **self._hidden_buffers()}}
        if self.ema is not None:
            states["average"] = self.ema.state_dict()
        return {
            key: {n: v for n, v in state.items() if _is_whole(v)}
            for key, state in states.items()
        }

    @torch.no_grad()
    def _load_own_buffers(self, saved: Mapping[str, Any] | None) -> None:
        own = self._own_buffers()
        for key, tensors in (saved or {}).items():
            for name, value in tensors.items():
                own[key][name].copy_(value)

    def load_local(self, place: Any, local: LocalState, *, same_number: bool) -> None:
        """Put back what `take_local` took, after `load`.

        What belongs to one of a number of processes is dropped where that is not the same.

        Raises:
            CheckpointMismatchError: If it was made with another hook.
        """
        if same_number:
            if is_sharded(self.fabric):
                with reading(place, "locals.ddp"):
                    self._load_own_buffers(local.ddp)
            else:
                with reading(place, "locals.ddp"):
                    same = load_ddp_state(self.model, local.ddp)
                if not same and self.fabric.world_size > 2 and self.fabric.is_global_zero:  # noqa: PLR2004 - the sum of two has one order
                    message = (
                        f"{place}: DDP's buckets are not those of then: the first step "
                        "may differ in its last bits"
                    )
                    warnings.warn(message, CheckpointWarning, stacklevel=5)
            if self.comm is not None:
                with reading(place, "locals.comm"):
                    self.comm.load_state_dict(local.comm or {"kind": "none"})
        for name, parameter in self.inner.named_parameters():
            gradient = None if local.grads is None else local.grads.get(name)
            with reading(place, f"locals.grads.{name}"):
                if gradient is not None:
                    gradient = gradient.to(parameter.device).clone()
                parameter.grad = gradient

    def scale_learning_rates(self, factor: float) -> None:
        """Multiply every learning rate, also those that schedulers start from."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                for name in ("lr", "initial_lr", "max_lr", "min_lr"):
                    if name in group:
                        group[name] = group[name] * factor
        for spec in self.schedulers:
            scale_rates(spec.scheduler, factor)


def _gradients_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the gradients of *model*'s parameters that have one, by name."""
    return {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def _is_whole(value: object) -> bool:
    return isinstance(value, Tensor) and not isinstance(value, DTensor)


def _room_for(spread: Spread, parameter: DTensor) -> DTensor:
    """Return a tensor for what an optimizer, or a backward pass, made for *parameter*."""
    if spread.shape == parameter.shape:
        return cast(DTensor, torch.zeros_like(parameter, dtype=spread.dtype))
    mesh = parameter.device_mesh
    placements = [Replicate()] * mesh.ndim
    return spread_zeros(
        spread.shape, dtype=spread.dtype, device_mesh=mesh, placements=placements
    )


def _kind(value: object) -> str | None:
    """Return the name of the class that Fabric wrapped, or None for None."""
    inner = getattr(value, "optimizer", value) if is_wrapped(value) else value
    return None if inner is None else type(inner).__qualname__
