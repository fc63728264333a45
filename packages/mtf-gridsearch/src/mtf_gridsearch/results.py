"""What came out of a search: every experiment, those without a result counted too.

Rows are the records of the journal, in the order in which they were planned; for an
experiment that still runs, the metrics that it has reported so far are read as well. Only
experiments of the grid that succeeded, or that a rule stopped early, take part in a ranking or a mean,
and whatever leaves some out says how many and why. Writes nothing but
``results_summary.json``, knows nothing of launchers, and may be used while a search runs.

``results_summary.json`` is strict JSON, and the same journal gives the same bytes:

* ``format``: 1
* ``search``: the name of the folder
* ``total``: how many experiments there are; ``counts``: how many of the grid have each
  status; ``counts_dropped``: the same of those that are no longer in the grid
* ``parameters``, ``metrics``: the names that occur, in the order of first appearance
* ``statistics``: by metric, ``mean``, ``std`` (None below two values), ``num_used``,
  ``num_stopped`` and ``left_out`` of the last values; ``left_out`` counts by reason
* ``experiments``: in planned order, objects of ``name``, ``identity``, ``status`` (a word of
  `Status`), ``dropped`` (true: no longer in the grid), ``parameters`` (by dotted key), ``job_id`` (a path in the folder begins with
  ``./``), ``attempts``, ``reason``,
  ``started_at``, ``ended_at`` (seconds since 1970), ``usage`` (``wall_s``, ``cpu_s``,
  ``max_rss_bytes``) and ``metrics``: by name, ``last``, ``last_step``, ``min``,
  ``min_step``, ``max``, ``max_step``

What is not known is ``null``. Numbers that JSON lacks are the words ``NaN``, ``Infinity``
and ``-Infinity``.
"""

from __future__ import annotations

import difflib
import operator
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtf_gridsearch import _yaml, metrics_file
from mtf_gridsearch._groups import ABSENT, value_key
from mtf_gridsearch._summary import plain_json, record_object, to_json
from mtf_gridsearch._tables import add_experiments, checked_limit, new_table, value_text
from mtf_gridsearch._values import (
    DROPPED,
    At,
    Mode,
    deviation_of,
    mean_of,
    reason_to_leave_out,
    value_of,
)
from mtf_gridsearch.errors import ResultsError, SearchFolderError
from mtf_gridsearch.journal import JOURNAL_NAME, read_records
from mtf_gridsearch.records import ExperimentRecord, Status

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["SUMMARY_NAME", "At", "Mode", "SearchResults", "Statistics", "value_of"]

SUMMARY_NAME = "results_summary.json"

_MAX_METRIC_COLUMNS = 4
_LIVE = frozenset({Status.PENDING, Status.RUNNING, Status.UNKNOWN})


@dataclass(frozen=True, kw_only=True, slots=True)
class Statistics:
    """A mean, and what is not in it.

    Attributes:
        mean: Over *num_used* experiments; None where there is none.
        std: Of a sample, so None below two.
        num_stopped: How many of those used were stopped early by a rule, with the value
            that they had come to.
        left_out: How many experiments are not in it, by reason; no reason has none.
    """

    metric: str
    mean: float | None
    std: float | None
    num_used: int
    num_stopped: int
    left_out: Mapping[str, int]

    def __str__(self) -> str:
        total = self.num_used + sum(self.left_out.values())
        mean = "no value" if self.mean is None else f"{self.mean:.6g}"
        spread = "" if self.std is None else f" ± {self.std:.2g}"
        notes = [f"{self.num_stopped} of them stopped early"] if self.num_stopped else []
        if without := ", ".join(f"{count} {why}" for why, count in self.left_out.items()):
            notes.append(f"without {without}")
        end = f" ({'; '.join(notes)})" if notes else ""
        return f"{self.metric}: {mean}{spread} over {self.num_used} of {total}{end}"


@dataclass(frozen=True)
class SearchResults:
    """The experiments of one search. Made by `read`; a snapshot, never changes.

    Attributes:
        folder: The folder of the search.
        records: All experiments, in planned order.
    """

    folder: Path
    records: tuple[ExperimentRecord, ...]

    @classmethod
    def read(cls, folder: Path | str) -> SearchResults:
        """Read what is known of the search in *folder*; it may be running.

        Raises:
            SearchFolderError: If there is no search, or its journal cannot be read.
            DamagedJournalError: If a line of the journal is not one that was written.
        """
        folder = Path(folder)
        if not (folder / JOURNAL_NAME).is_file():
            reason = f"holds no {JOURNAL_NAME}: not the folder of a search that has begun"
            raise SearchFolderError(folder, reason)
        records = read_records(folder).values()
        return cls(folder, tuple(_with_live_metrics(r, folder) for r in records))

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.resolve().name

    @cached_property
    def counts(self) -> dict[Status, int]:
        """How many experiments of the grid have each status that occurs, in its order."""
        return self._counts(is_dropped=False)

    @cached_property
    def counts_dropped(self) -> dict[Status, int]:
        """The same of those that were no longer in the grid when it was last run."""
        return self._counts(is_dropped=True)

    def _counts(self, *, is_dropped: bool) -> dict[Status, int]:
        records = self.records
        found = Counter(r.status for r in records if r.is_dropped is is_dropped)
        return {status: found[status] for status in Status if found[status]}

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """The keys that occur, in the order of first appearance."""
        return tuple(dict.fromkeys(k for r in self.records for k in r.parameters))

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that occur, in the order of first appearance."""
        return tuple(dict.fromkeys(k for r in self.records for k in r.metrics))

    def best(self, metric: str, mode: Mode, *, at: At = "best") -> ExperimentRecord:
        """Return the experiment with the best *metric*; where several tie, the first.

        Raises:
            ResultsError: If no experiment with a result reported it.
            ValueError: If *mode* or *at* is another word.
        """
        return self.top(1, metric, mode, at=at)[0]

    def top(
        self, k: int, metric: str, mode: Mode, *, at: At = "best"
    ) -> tuple[ExperimentRecord, ...]:
        """Return the *k* best, the best first; fewer where fewer have a result.

        Raises:
            ResultsError: If no experiment with a result reported *metric*.
            ValueError: If *k* is below one, or *mode* or *at* is another word.
        """
        if k < 1:
            msg = f"k counts experiments: at least 1, not {k}"
            raise ValueError(msg)
        return tuple(record for record, _ in self.ranking(metric, mode, at=at)[:k])

    def ranking(
        self, metric: str, mode: Mode, *, at: At = "best"
    ) -> list[tuple[ExperimentRecord, float]]:
        """Return every experiment with a result and its value, the best first.

        `left_out` says how many are missing from it.

        Raises:
            ResultsError: If no experiment with a result reported *metric*.
            ValueError: If *mode* or *at* is another word.
        """
        found = self._values(metric, mode, at)
        return sorted(found, key=lambda item: item[1] if mode == "min" else -item[1])

    def left_out(self, *metrics: str) -> dict[str, int]:
        """Count the experiments that no ranking by *metrics* holds, by reason.

        The reasons are ``no longer in the grid``, the statuses without a result, ``not
        reported`` and
        ``not a number`` or ``infinite``: it ended so, or never was anything else.
        """
        reasons = (reason_to_leave_out(record, metrics) for record in self.records)
        return dict(sorted(Counter(filter(None, reasons)).items()))

    def statistics(
        self, metric: str, mode: Mode = "min", *, at: At = "last"
    ) -> Statistics:
        """Return the mean of *metric*, and how many experiments are not in it.

        Raises:
            ResultsError: If no experiment with a result reported it.
            ValueError: If *mode* or *at* is another word.
        """
        self._values(metric, mode, at)  # or it says what there is
        return self._statistics(metric, mode, at)

    def pareto(
        self, objectives: Mapping[str, Mode], *, at: At = "best"
    ) -> tuple[ExperimentRecord, ...]:
        """Return the experiments that no other beats: the front, in planned order.

        One beats another if it is as good in every objective and better in one; equals
        are all kept. `left_out` counts those that lack an objective.

        Raises:
            ResultsError: If no experiment with a result reported all objectives.
            ValueError: If there is no objective, or *at* or a mode is another word.
        """
        if not objectives:
            msg = "a Pareto front needs objectives: {metric: 'min' or 'max'}"
            raise ValueError(msg)
        costs: dict[int, tuple[float, ...]] = {}
        per_metric = [
            {id(r): v if mode == "min" else -v for r, v in self._values(metric, mode, at)}
            for metric, mode in objectives.items()
        ]
        for record in self.records:
            if all(id(record) in values for values in per_metric):
                costs[id(record)] = tuple(values[id(record)] for values in per_metric)
        if not costs:
            msg = f"no experiment has a result for all of {', '.join(objectives)}"
            raise ResultsError(msg)
        front: list[tuple[float, ...]] = []
        # In sorted order nothing is beaten by what comes after it.
        for cost in sorted(set(costs.values())):
            if not any(all(map(operator.le, other, cost)) for other in front):
                front.append(cost)
        kept = set(front)
        return tuple(r for r in self.records if costs.get(id(r)) in kept)

    def table(
        self,
        metric: str | None = None,
        mode: Mode = "min",
        *,
        at: At = "best",
        limit: int | None = 20,
    ) -> Table:
        """Return a `rich` table: every status counted, and what is not shown said.

        Args:
            metric: Ranks the rows; those it cannot rank follow. Planned order without it.
            mode: Whether a low or a high value is good.
            at: Which value ranks.
            limit: How many rows at most; None for all.

        Raises:
            ResultsError: If no experiment with a result reported *metric*.
            ValueError: If *mode* or *at* is another word, or *limit* is negative.
        """
        limit = checked_limit(limit)
        records = self.records
        ranks = None
        metrics: dict[str, At] = {}
        if metric is not None:
            ranked = [record for record, _ in self.ranking(metric, mode, at=at)]
            ranks = {r.experiment_name: rank for rank, r in enumerate(ranked, 1)}
            rest = (r for r in records if r.experiment_name not in ranks)
            records = (*ranked, *rest)
            metrics[metric] = at
        for name in self.metrics:
            if len(metrics) < _MAX_METRIC_COLUMNS:
                metrics.setdefault(name, "last")
        shown = records[:limit]
        constant = self._constant()
        lines = [self._counted(), *self._not_shown(metric, len(shown), len(metrics))]
        if constant:
            shared = ", ".join(f"{k}={value_text(v)}" for k, v in constant.items())
            lines.append(f"all have {shared}")
        table = new_table(self.name, "\n".join(lines))
        add_experiments(
            table,
            shown,
            ranks=ranks,
            parameters=[key for key in self.parameters if key not in constant],
            metrics=metrics,
            mode=mode,
        )
        return table

    def write_summary(self, path: Path | str | None = None) -> Path:
        """Write ``results_summary.json``, whole or not at all; return its path.

        Args:
            path: Where to; in the folder of the search by default.

        Raises:
            OSError: If it cannot be written; the one that was there stays.
        """
        target = self.folder / SUMMARY_NAME if path is None else Path(path)
        _yaml.write_atomically(target, to_json(self._object()) + "\n")
        return target

    def to_plain(self) -> dict[str, Any]:
        """Return what ``results_summary.json`` holds: see the top of this module."""
        plain: dict[str, Any] = plain_json(self._object())
        return plain

    def _object(self) -> dict[str, Any]:
        folder = str(self.folder.absolute())
        return {
            "format": 1,
            "search": self.name,
            "total": len(self.records),
            "counts": {str(status): count for status, count in self.counts.items()},
            "counts_dropped": {str(s): count for s, count in self.counts_dropped.items()},
            "parameters": list(self.parameters),
            "metrics": list(self.metrics),
            "statistics": {
                metric: self._plain_statistics(metric) for metric in self.metrics
            },
            "experiments": [record_object(record, folder) for record in self.records],
        }

    def _constant(self) -> dict[str, Any]:
        """Return the parameters that are the same in all experiments, of several."""
        if len(self.records) < 2:  # noqa: PLR2004 -- of several
            return {}
        first = self.records[0].parameters
        return {
            key: value
            for key, value in first.items()
            if all(
                value_key(record.parameters.get(key, ABSENT)) == value_key(value)
                for record in self.records
            )
        }

    def _counted(self) -> str:
        counted = ", ".join(f"{n} {status}" for status, n in self.counts.items())
        dropped = ", ".join(f"{n} {status}" for status, n in self.counts_dropped.items())
        total = sum(self.counts.values())
        return (
            f"{total} experiment{'s' * (total != 1)}: {counted or 'none planned'}"
            + f"; {DROPPED}: {dropped}" * bool(dropped)
        )

    def _not_shown(
        self, metric: str | None, num_shown: int, num_metrics: int
    ) -> Iterator[str]:
        left_out = {} if metric is None else self.left_out(metric)
        if left_out:
            reasons = ", ".join(f"{n} {why}" for why, n in left_out.items())
            yield f"without a rank by {metric}: {reasons}"
        if hidden := len(self.records) - num_shown:
            yield f"{hidden} more not shown"
        if hidden := len(self.metrics) - num_metrics:
            yield f"{hidden} more metrics not shown"

    def _plain_statistics(self, metric: str) -> dict[str, Any]:
        found = asdict(self._statistics(metric, "min", "last"))
        del found["metric"]
        return found

    def _statistics(self, metric: str, mode: Mode, at: At) -> Statistics:
        values: list[float] = []
        num_stopped = 0
        left_out: Counter[str] = Counter()
        for record in self.records:
            reason = reason_to_leave_out(record, (metric,))
            value = None if reason else value_of(record, metric, mode, at)
            if value is None:
                left_out[str(reason)] += 1
            else:
                values.append(value)
                num_stopped += record.status is Status.STOPPED
        return Statistics(
            metric=metric,
            mean=mean_of(values) if values else None,
            std=deviation_of(values) if len(values) > 1 else None,
            num_used=len(values),
            num_stopped=num_stopped,
            left_out=dict(sorted(left_out.items())),
        )

    def _usable(
        self, metric: str, mode: Mode, at: At
    ) -> Iterator[tuple[ExperimentRecord, float]]:
        for record in self.records:
            value = value_of(record, metric, mode, at)
            if value is not None and reason_to_leave_out(record, (metric,)) is None:
                yield record, value

    def _values(
        self, metric: str, mode: Mode, at: At
    ) -> list[tuple[ExperimentRecord, float]]:
        if found := list(self._usable(metric, mode, at)):
            return found
        known = ", ".join(self.metrics) or "none"
        left_out = ", ".join(f"{n} {why}" for why, n in self.left_out(metric).items())
        near = difflib.get_close_matches(metric, self.metrics, 1)
        hint = f"; did you mean {near[0]}?" if near and near[0] != metric else ""
        msg = (
            f"{self.folder}: no experiment has a result for the metric {metric!r}{hint} "
            f"({self._counted()}; without a result: {left_out or 'none'}; metrics: {known})"
        )
        raise ResultsError(msg)


def _with_live_metrics(record: ExperimentRecord, folder: Path) -> ExperimentRecord:
    """Return *record* with what it has reported so far, if it still runs."""
    if record.status not in _LIVE:
        return record
    path = folder / record.experiment_name / metrics_file.METRICS_NAME
    curves = metrics_file.read_curves(path, record.failed_jobs)
    return replace(record, metrics=metrics_file.summarise(curves))
