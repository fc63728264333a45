"""Where the experiments of a run come from: what a search is asked, and a grid's answer."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from mtf_gridsearch import _sections
from mtf_gridsearch._progress import is_to_start
from mtf_gridsearch.early_stopping import EarlyStopping
from mtf_gridsearch.metrics_file import METRICS_NAME, read_curves
from mtf_gridsearch.records import (
    Curve,
    ExperimentRecord,
    GridExperiment,
    Status,
    Supply,
)
from mtf_gridsearch.search import ParameterGridSearch, text_of

__all__ = ["GridSearch", "GridSupply", "Only", "Search"]

Only = Literal["failed"]

_NUM_SHOWN = 5
_FINAL = frozenset({Status.SUCCEEDED, Status.STOPPED})
_FAILED = frozenset({Status.FAILED, Status.TIMEOUT})


class Search(Protocol):
    """What defines a search: all that an executor asks of a grid's or a Bayesian one."""

    @property
    def name(self) -> str:
        """Which search: a folder belongs to one."""

    @property
    def name_key(self) -> str:
        """The key in *base* that says how it is called, which may change."""

    @property
    def total(self) -> int | None:
        """How many experiments there will be in all; None where that is not known."""

    def to_plain(self) -> dict[str, Any]:
        """Return what is saved as ``search_config.yaml``.

        Has *name*, and is what `search_file.read` takes. A folder is refused if *base*,
        *base_class* or *bayesian* (but for its *num_trials* and, without *in_order*, *num_parallel*)
        differ, or *grids* where that is there; all else may change from run to run.
        """

    def plan(
        self, records: Mapping[str, ExperimentRecord]
    ) -> Sequence[GridExperiment[Any]]:
        """Return what is known beforehand to be run, under the names that *records* have.

        Writes nothing. Called without records before a folder is made, so that what does
        not fit fails then. A search that decides as it goes returns nothing.
        """

    def doubts(self) -> Sequence[str]:
        """Return what the user may want to know before anything starts; after `plan`."""

    def starts(self, status: Status, *, has_failed: bool = False) -> bool:
        """Tell whether this run starts an experiment of *status*, if nothing runs it.

        *has_failed* is the record's: whether an attempt failed or ran out of time.
        """

    def open(self, folder: Path, records: Mapping[str, ExperimentRecord]) -> Supply:
        """Return the experiments that this run of the search in *folder* starts.

        Called once a run, with the folder locked, after `plan` was noted. The supply may
        return experiments that have a record: what has succeeded or was stopped is passed
        over, what is running is watched and not started again, all else is started.
        `Supply.tell` is called for each record that has ended already.
        """


class GridSearch:
    """A `ParameterGridSearch` as executors see it.

    Args:
        search: With its grids.
        only: ``"failed"`` to start what failed or ran out of time, what such a run left
            unfinished, and nothing else.
        rule: Ends bad experiments early; each run uses a copy of it.
    """

    def __init__(
        self,
        search: ParameterGridSearch[Any],
        *,
        only: Only | None = None,
        rule: EarlyStopping | None = None,
    ) -> None:
        if only not in (None, "failed"):
            msg = f"only must be 'failed' or None, not {only!r}"
            raise ValueError(msg)
        self._search, self._only, self._rule = search, only, rule

    @property
    def name(self) -> str:
        """The search's."""
        return self._search.name

    @property
    def name_key(self) -> str:
        """The base's."""
        return self._search.name_key

    @property
    def total(self) -> int | None:
        """How many different combinations there are."""
        return len(self._search.plan())

    def to_plain(self) -> dict[str, Any]:
        """Return the base config, the grids, and a rule of this package's."""
        section = None if self._rule is None else _sections.rule_to_plain(self._rule)
        rule = {} if section is None else {"early_stopping": section}
        return {**self._search.to_plain(), **rule}

    def plan(
        self, records: Mapping[str, ExperimentRecord]
    ) -> Sequence[GridExperiment[Any]]:
        """Return every combination, under the name that it has had from the first.

        Raises:
            GridError: If a grid is wrong.
            InvalidExperimentsError: If an experiment does not fit the base.
        """
        return self._search.plan({r.identity: name for name, r in records.items()})

    def doubts(self) -> Sequence[str]:
        """Name what has the same config under different parameters, or is made again."""
        found = self._search.duplicates()
        doubts = [
            f"The same config is run {len(group)} times: "
            + " and ".join(
                f"{e.experiment_name} ({text_of(e.parameters)})" for e in group[:2]
            )
            for group in found[:_NUM_SHOWN]
        ]
        if (more := len(found) - _NUM_SHOWN) > 0:
            doubts.append(f"So are {more} more.")
        return doubts + self._search.made_again(self._search.plan())

    def starts(self, status: Status, *, has_failed: bool = False) -> bool:
        """Tell whether it is one that is missing; with *only*, that failed and not ended."""
        return is_to_start(status, has_failed=has_failed, only=self._only)

    def open(self, folder: Path, records: Mapping[str, ExperimentRecord]) -> GridSupply:
        """Return what this run starts, in planned order."""
        planned = self.plan(records)
        known = [records[experiment.experiment_name] for experiment in planned]
        wanted = [
            experiment
            for experiment, record in zip(planned, known, strict=True)
            if self.starts(record.status, has_failed=record.has_failed)
        ]
        names = {experiment.experiment_name for experiment in planned}
        # What is no longer in the grid counts if nothing is left to be done of it.
        kept = _FINAL | _FAILED | {Status.PENDING}
        total = sum(n in names or r.status in kept for n, r in records.items())
        # A copy: what a rule learnt from one search has no say in the next.
        return GridSupply(wanted, total, folder, copy.deepcopy(self._rule))


class GridSupply:
    """The experiments of a grid that this run starts; fits `Supply`."""

    def __init__(
        self,
        wanted: Iterable[GridExperiment[Any]],
        total: int,
        folder: Path,
        rule: EarlyStopping | None = None,
    ) -> None:
        self._queue = deque(wanted)
        self._total, self._folder, self._rule = total, folder, rule

    @property
    def total(self) -> int:
        """How many the search has, those of earlier grids included."""
        return self._total

    @property
    def metric(self) -> str | None:
        """The rule's, if it says which."""
        return getattr(self._rule, "metric", None)

    def take(self, most: int) -> Sequence[GridExperiment[Any]]:
        """Return the next ones, up to *most*."""
        return [self._queue.popleft() for _ in range(min(most, len(self._queue)))]

    @property
    def is_exhausted(self) -> bool:
        """Whether all were taken."""
        return not self._queue

    def observe(
        self, record: ExperimentRecord, curves: Mapping[str, Curve]
    ) -> str | None:
        """Ask the rule."""
        if self._rule is None:
            return None
        return self._rule.observe(record.experiment_name, curves)

    def tell(self, record: ExperimentRecord) -> None:
        """Show the rule how an experiment went."""
        if self._rule is not None and record.job_id is not None:
            name = record.experiment_name
            path = self._folder / name / METRICS_NAME
            curves = read_curves(path, record.failed_jobs)
            completed = record.status is Status.SUCCEEDED
            self._rule.tell(name, curves, completed=completed)
