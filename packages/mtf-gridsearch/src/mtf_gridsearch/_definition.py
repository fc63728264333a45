"""What defines a Bayesian search: see `mtf_gridsearch.bayes`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from optuna.study import StudyDirection

from mtf_gridsearch._combined import Grid
from mtf_gridsearch._progress import is_to_start
from mtf_gridsearch._samplers import PrunerSpec, SamplerSpec
from mtf_gridsearch._values import At, Mode
from mtf_gridsearch.records import GridExperiment, Status

__all__ = ["Definition"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Definition:
    """What `BayesianSearch` was given; *make* applies parameters of a number to the base."""

    name: str
    grid: Grid
    make: Callable[[int, Mapping[str, Any]], GridExperiment[Any]]
    metric: str
    mode: Mode
    at: At
    num_trials: int
    num_parallel: int
    in_order: bool
    sampler: SamplerSpec
    pruner: PrunerSpec
    storage: str | None
    seed: int
    only: Literal["failed"] | None

    @property
    def direction(self) -> StudyDirection:
        """The mode in Optuna's words."""
        is_low = self.mode == "min"
        return StudyDirection.MINIMIZE if is_low else StudyDirection.MAXIMIZE

    def starts(self, status: Status, *, has_failed: bool = False) -> bool:
        """Tell whether a run starts an experiment of *status*, if nothing runs it."""
        return is_to_start(status, has_failed=has_failed, only=self.only)
