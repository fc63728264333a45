"""The content of a checkpoint: taking it from live objects, and putting it back.

Everything is checked against the live objects before the first of them is changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.wrappers import is_wrapped
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mtf_trainer.errors import (
    CheckpointDamagedError,
    CheckpointMismatchError,
    CheckpointVersionError,
)
from mtf_trainer.state import ResumeState, UnknownVersionError

__all__ = ["Objects", "Snapshot"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Objects:
    """The live objects whose states make a checkpoint."""

    fabric: Fabric
    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler | None

    def state(self) -> dict[str, Any]:
        """Return their states, as plain data."""
        scheduler = self.scheduler
        return {
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "optimizer_type": _kind(self.optimizer),
            "scheduler": None if scheduler is None else scheduler.state_dict(),
            "scheduler_type": _kind(scheduler),
            "precision": self.fabric.strategy.precision.state_dict(),
        }

    def check(self, path: Path, state: Mapping[str, Any]) -> None:
        """Raise if *state*, from the checkpoint *path*, does not fit.

        Raises:
            CheckpointMismatchError: Naming the first entry that does not.
        """
        _check_tensors(path, "model", state["model"], self.model.state_dict())
        for key, own in (("optimizer", self.optimizer), ("scheduler", self.scheduler)):
            saved, ours = state[f"{key}_type"], _kind(own)
            if saved != ours:
                problem = (
                    f"the checkpoint has {saved or 'none'}, this run {ours or 'none'}"
                )
                raise CheckpointMismatchError(path, key, problem)
        _check_groups(path, state["optimizer"], self.optimizer.state_dict())

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over a *state* that was checked."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """What a checkpoint holds.

    Args:
        resume: Where the run stands.
        objects: As `Objects.state` gives it.
        generators: States of the training loader's own generators, by rank.
        metrics: The last metrics.
        metrics_bytes: Size of the file of metrics.
    """

    resume: ResumeState
    objects: dict[str, Any]
    generators: Sequence[Sequence[torch.Tensor]]
    metrics: dict[str, float]
    metrics_bytes: int

    def to_plain(self) -> dict[str, Any]:
        """Return plain data that `from_plain` reads."""
        return {
            "resume": self.resume.to_plain(),
            **self.objects,
            "loader_generators": [list(states) for states in self.generators],
            "metrics": self.metrics,
            "metrics_bytes": self.metrics_bytes,
        }

    @classmethod
    def from_plain(cls, path: Path, plain: Mapping[str, Any]) -> Snapshot:
        """Rebuild what `to_plain` gave; *path* is named in errors.

        Raises:
            CheckpointVersionError: If it has a version that is not ours.
            CheckpointMismatchError: If an entry is missing.
            CheckpointDamagedError: If the resume state is malformed.
        """
        parts = ("model", "optimizer", "scheduler", "precision")
        kinds = ("optimizer_type", "scheduler_type")
        rest = ("resume", "loader_generators", "metrics", "metrics_bytes")
        for key in (*parts, *kinds, *rest):
            if key not in plain:
                problem = "is missing; it is no checkpoint of mtf-trainer"
                raise CheckpointMismatchError(path, key, problem)
        try:
            resume = ResumeState.from_plain(plain["resume"])
        except UnknownVersionError as error:
            raise CheckpointVersionError(path, str(error)) from error
        except ValueError as error:
            raise CheckpointDamagedError(path, str(error)) from error
        return cls(
            resume=resume,
            objects={key: plain[key] for key in (*parts, *kinds)},
            generators=plain["loader_generators"],
            metrics=plain["metrics"],
            metrics_bytes=plain["metrics_bytes"],
        )


def _kind(value: object) -> str | None:
    """Return the name of the class that Fabric wrapped, or None for None."""
    inner = getattr(value, "optimizer", value) if is_wrapped(value) else value
    return None if inner is None else type(inner).__qualname__


def _check_tensors(
    path: Path, under: str, saved: Mapping[str, Any], own: Mapping[str, Any]
) -> None:
    for name, value in own.items():
        key = f"{under}.{name}"
        if name not in saved:
            raise CheckpointMismatchError(path, key, "is missing in the checkpoint")
        found = getattr(saved[name], "shape", None)
        if found != getattr(value, "shape", None):
            problem = f"has shape {_shape(saved[name])}, the model needs {_shape(value)}"
            raise CheckpointMismatchError(path, key, problem)
    for name in saved:
        if name not in own:
            key = f"{under}.{name}"
            raise CheckpointMismatchError(path, key, "is not in the model")


def _check_groups(path: Path, saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    groups, ours = saved["param_groups"], own["param_groups"]
    if len(groups) != len(ours):
        problem = f"the checkpoint has {len(groups)}, this run {len(ours)}"
        raise CheckpointMismatchError(path, "optimizer.param_groups", problem)
    for index, (group, our) in enumerate(zip(groups, ours, strict=True)):
        if len(group["params"]) != len(our["params"]):
            problem = (
                f"the checkpoint has {len(group['params'])} parameters, "
                f"this run {len(our['params'])}"
            )
            raise CheckpointMismatchError(
                path, f"optimizer.param_groups.{index}", problem
            )


def _shape(value: object) -> object:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else "none (no tensor)"
