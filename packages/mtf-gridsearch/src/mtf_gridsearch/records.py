"""What is known of the experiments of a search: the data that its parts hand each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Generic, Protocol, TypeVar

from mtf_gridsearch._written import written

__all__ = [
    "Curve",
    "ExperimentRecord",
    "GridExperiment",
    "MetricSummary",
    "Status",
    "Supply",
    "Usage",
]

ConfigT = TypeVar("ConfigT")

Curve = Sequence[tuple[int, float]]
"""Step and value of one metric, in the order in which they were reported."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GridExperiment(Generic[ConfigT]):
    """One combination of a search: named, and applied to the base config.

    Fits `mtf_gridsearch.launcher.Experiment`.

    Attributes:
        experiment_name: Its name, unique within the search.
        identity: Of the parameters alone: see `mtf_gridsearch.identity`.
        parameters: By dotted key.
        config: Of the type of the base, validated; carries the name where the base has
            ``experiment_name``.
        by_alias: Whether it is written by the aliases of its fields.
    """

    experiment_name: str
    identity: str
    parameters: Mapping[str, Any]
    config: ConfigT
    by_alias: bool = False

    def model_dump(self, *, mode: str = "json") -> dict[str, Any]:
        """Return the config as plain values."""
        config: Any = self.config
        if hasattr(config, "model_dump"):
            return written(config, by_alias=self.by_alias, mode=mode)
        return dict(config)


class Status(StrEnum):
    """How an experiment is within its search: a job's word, or one of two more."""

    MISSING = "missing"  # has never been started
    STOPPED = "stopped"  # ended early by a rule, for good
    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    PREEMPTED = "preempted"
    TIMEOUT = "timeout"
    NODE_FAILED = "node_failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricSummary:
    """One metric over a whole run; where several steps tie, the first.

    *min* and *max* are of the finite values, unless there is none.
    """

    last: float
    last_step: int
    min: float
    min_step: int
    max: float
    max_step: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """What an attempt used; None where it is not known."""

    wall_s: float | None = None
    cpu_s: float | None = None
    max_rss_bytes: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperimentRecord:
    """All that the journal of a search holds of one experiment.

    Attributes:
        attempts: How often it was submitted.
        reason: Why it failed or was stopped, and what of its metrics cannot be read.
        started_at: When it was last submitted, and *ended_at* when it was seen to have
            ended: seconds since 1970.
        failed_jobs: Of earlier attempts, those that failed of themselves: the next began
            anew, and what they reported counts no more.
        is_dropped: Whether it was no longer in the grid when the search was last run.
        has_failed: Whether an attempt failed or ran out of time.
    """

    experiment_name: str
    identity: str
    parameters: Mapping[str, Any]
    status: Status = Status.MISSING
    job_id: str | None = None
    attempts: int = 0
    reason: str = ""
    metrics: Mapping[str, MetricSummary] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    started_at: float | None = None
    ended_at: float | None = None
    failed_jobs: tuple[str, ...] = ()
    is_dropped: bool = False
    has_failed: bool = False


class Supply(Protocol):
    """Where the experiments of a search come from, in the order in which they start."""

    @property
    def total(self) -> int | None:
        """How many there will be in all; None where that is not known."""

    @property
    def metric(self) -> str | None:
        """By which running experiments are stopped early; None if by no single one."""

    def take(self, most: int) -> Sequence[GridExperiment[Any]]:
        """Return up to *most* that were not taken before; none where none is ready now."""

    @property
    def is_exhausted(self) -> bool:
        """Whether `take` will never return one again."""

    def observe(
        self, record: ExperimentRecord, curves: Mapping[str, Curve]
    ) -> str | None:
        """Look at a running experiment; return why to stop it early, or None."""

    def tell(self, record: ExperimentRecord) -> None:
        """Take note that an experiment has ended. May come twice for the same one."""
