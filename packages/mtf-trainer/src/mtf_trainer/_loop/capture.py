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
from mtf_trainer._loop.phase_loop import SchedulerSpec
from mtf_trainer._ranks.comm_hooks import CommState, ddp_state, load_ddp_state
from mtf_trainer._ranks.sharding import is_sharded
from mtf_trainer._saving.spread import Spread
from mtf_trainer.ema import WeightAverage
from mtf_trainer.errors import (
    CheckpointDamagedError,
    CheckpointMismatchError,
    CheckpointVersionError,
    CheckpointWarning,
)
from mtf_trainer.state import LocalState, ResumeState, UnknownVersionError
from mtf_trainer.trackers import Trackers

__all__ = ["Objects", "read_resume"]

_SHARED = (
    "resume",
    "model",
    "optimizers",
    "schedulers",
    "precision",
    "ema",
    "modes",
    "trained",
    "buffers",
    "callbacks",
    "trackers",
    "guard",
    "metrics",
    "metrics_bytes",
    "best",
    "ended",
    "layout",
    "world_size",
    "locals",
)


def read_resume(place: Any, content: Mapping[str, Any]) -> ResumeState:
    """Return where *content* stands, found at *place*.

    Raises:
        CheckpointVersionError: If it has a version that is not ours.
        CheckpointMismatchError: If an entry is missing.
        CheckpointDamagedError: If the resume state is malformed.
    """
    if not isinstance(content.get("resume"), Mapping):
        problem = "is missing; it is no checkpoint of mtf-trainer"
        raise CheckpointMismatchError(place, "resume", problem)
    try:
        resume = ResumeState.from_plain(content["resume"])
    except UnknownVersionError as error:
        raise CheckpointVersionError(place, str(error)) from error
    except ValueError as error:
        raise CheckpointDamagedError(place, str(error)) from error
    for key in _SHARED:
        if key not in content:
            problem = "is missing; it is no checkpoint of this mtf-trainer"
            raise CheckpointMismatchError(place, key, problem)
    return resume


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

    def state(self) -> dict[str, Any]:
        """Return their states, as plain data and live tensors."""
        ema = self.ema
        return {
            "model": self._weights(),
            "optimizers": [
                {"type": _kind(o), "state": o.state_dict()} for o in self.optimizers
            ],
            "schedulers": [
                {"type": _kind(s.scheduler), "state": _plain(s.scheduler.state_dict())}
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
        _check_tensors(place, "model", state["model"], self._weights())
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
            _check_groups(place, index, each["state"], optimizer.state_dict())
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
        _check_tensors(place, "buffers", state["buffers"], self._hidden_buffers())
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
        """Take over a *state* that was checked."""
        if self.ema is not None and self.ema.swapped:
            self.ema.swap()
        self.model.load_state_dict(state["model"])
        for each, optimizer in zip(state["optimizers"], self.optimizers, strict=True):
            optimizer.load_state_dict(each["state"])
        for each, spec in zip(state["schedulers"], self.schedulers, strict=True):
            spec.scheduler.load_state_dict(_like(spec.scheduler, each["state"]))
            # torch would warn that no optimizer stepped yet, in this process.
            spec.scheduler.optimizer._opt_called = True  # type: ignore[attr-defined]  # noqa: SLF001
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        if self.ema is not None:
            try:
                self.ema.load_state_dict(state["ema"])
            except ValueError as error:
                raise CheckpointMismatchError(place, "ema", str(error)) from error
        for module, mode in zip(self.inner.modules(), state["modes"], strict=True):
            module.training = mode
        for parameter, trained in zip(
            self.inner.parameters(), state["trained"], strict=True
        ):
            parameter.requires_grad_(trained)
        for name, buffer in self._hidden_buffers().items():
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
                self._load_own_buffers(local.ddp)
            else:
                same = load_ddp_state(self.model, local.ddp)
                if not same and self.fabric.world_size > 2 and self.fabric.is_global_zero:  # noqa: PLR2004 - the sum of two has one order
                    message = (
                        f"{place}: DDP's buckets are not those of then: the first step "
                        "may differ in its last bits"
                    )
                    warnings.warn(message, CheckpointWarning, stacklevel=5)
            if self.comm is not None:
                try:
                    self.comm.load_state_dict(local.comm or {"kind": "none"})
                except ValueError as error:
                    raise CheckpointMismatchError(place, "comm", str(error)) from error
        for name, parameter in self.inner.named_parameters():
            gradient = None if local.grads is None else local.grads.get(name)
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
            _scale_rates(spec.scheduler, factor)


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


def _scale_rates(scheduler: Any, factor: float) -> None:
    for name in ("base_lrs", "max_lrs", "_last_lr"):
        rates = getattr(scheduler, name, None)
        if rates is not None:
            setattr(scheduler, name, [rate * factor for rate in rates])
    for inner in getattr(scheduler, "_schedulers", ()):
        _scale_rates(inner, factor)


def _plain(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a scheduler's state without its functions, which it makes itself."""
    return {key: value for key, value in state.items() if not callable(value)}


def _like(scheduler: object, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return *state* with its mappings of the kinds that *scheduler* has, as Counter."""
    own = vars(scheduler)
    return {
        key: type(own[key])(value)
        if isinstance(value, dict) and isinstance(own.get(key), dict)
        else value
        for key, value in state.items()
    }


def _kind(value: object) -> str | None:
    """Return the name of the class that Fabric wrapped, or None for None."""
    inner = getattr(value, "optimizer", value) if is_wrapped(value) else value
    return None if inner is None else type(inner).__qualname__


def _check_tensors(
    place: Any, under: str, saved: Mapping[str, Any], own: Mapping[str, Any]
) -> None:
    for name, value in own.items():
        key = f"{under}.{name}"
        if name not in saved:
            raise CheckpointMismatchError(place, key, "is missing in the checkpoint")
        found = getattr(saved[name], "shape", None)
        if found != getattr(value, "shape", None):
            problem = f"has shape {_shape(saved[name])}, the model needs {_shape(value)}"
            raise CheckpointMismatchError(place, key, problem)
    for name in saved:
        if name not in own:
            key = f"{under}.{name}"
            raise CheckpointMismatchError(place, key, "is not in the model")


def _check_groups(
    place: Any, number: int, saved: Mapping[str, Any], own: Mapping[str, Any]
) -> None:
    groups, ours = saved["param_groups"], own["param_groups"]
    key = f"optimizers.{number}.param_groups"
    if len(groups) != len(ours):
        problem = f"the checkpoint has {len(groups)}, this run {len(ours)}"
        raise CheckpointMismatchError(place, key, problem)
    for index, (group, our) in enumerate(zip(groups, ours, strict=True)):
        if len(group["params"]) != len(our["params"]):
            problem = (
                f"the checkpoint has {len(group['params'])} parameters, "
                f"this run {len(our['params'])}"
            )
            raise CheckpointMismatchError(place, f"{key}.{index}", problem)


def _shape(value: object) -> object:
    if isinstance(value, Tensor | Spread):
        return tuple(value.shape)
    return "none (no tensor)"
