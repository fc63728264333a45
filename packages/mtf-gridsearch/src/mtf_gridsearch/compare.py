"""Two searches side by side: the same combinations in both, and what only one of them has.

Experiments are the same if their identities are, so if their parameters are, whatever
their names, their searches and the order of keys. A pair that lacks a result on a side
takes no part in a difference, and is counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from mtf_gridsearch._tables import (
    checked_limit,
    new_table,
    number_text,
    plain_text,
    value_text,
)
from mtf_gridsearch._values import mean_of
from mtf_gridsearch.errors import ResultsError
from mtf_gridsearch.records import ExperimentRecord
from mtf_gridsearch.results import At, Mode, SearchResults

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Comparison", "Pair", "compare"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """One combination in both searches; a value is None where there is no result."""

    left: ExperimentRecord
    right: ExperimentRecord
    left_value: float | None
    right_value: float | None

    @property
    def difference(self) -> float | None:
        """Right less left; None where a side has no result."""
        if self.left_value is None or self.right_value is None:
            return None
        return self.right_value - self.left_value


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What `compare` found.

    Attributes:
        best_left: The best experiment of all that the left search ran, and its value; None
            without a result. *best_right* likewise.
        pairs: The combinations that both have, in planned order of the left.
        only_left: Experiments whose combination the right search does not have;
            *only_right* the reverse.
    """

    left: SearchResults
    right: SearchResults
    metric: str
    mode: Mode
    best_left: tuple[ExperimentRecord, float] | None
    best_right: tuple[ExperimentRecord, float] | None
    pairs: tuple[Pair, ...]
    only_left: tuple[ExperimentRecord, ...]
    only_right: tuple[ExperimentRecord, ...]

    @cached_property
    def differences(self) -> tuple[float, ...]:
        """Right less left, for each pair with two results."""
        found = (pair.difference for pair in self.pairs)
        return tuple(value for value in found if value is not None)

    @property
    def num_better(self) -> int:
        """In how many pairs the right one is better."""
        return sum(d < 0 if self.mode == "min" else d > 0 for d in self.differences)

    @property
    def num_equal(self) -> int:
        """In how many pairs both have the same value."""
        return sum(difference == 0 for difference in self.differences)

    @property
    def num_worse(self) -> int:
        """In how many pairs the right one is worse."""
        return len(self.differences) - self.num_better - self.num_equal

    @property
    def num_left_out(self) -> int:
        """How many pairs lack a result on a side, or a difference of the two."""
        return len(self.pairs) - len(self.differences)

    @property
    def mean_difference(self) -> float | None:
        """Right less left, over the pairs with two results; None without one."""
        return mean_of(self.differences) if self.differences else None

    def table(self, *, limit: int | None = 20) -> Table:
        """Return a `rich` table of the pairs, the largest difference first.

        Raises:
            ValueError: If *limit* is negative.
        """
        pairs = sorted(self.pairs, key=_size, reverse=True)
        shown = pairs[: checked_limit(limit)]
        lines = [*self.lines()]
        if hidden := len(pairs) - len(shown):
            lines.append(f"{hidden} more pairs not shown")
        table = new_table(f"{self.metric}: {self.mode} is best", "\n".join(lines))
        table.add_column("parameters", overflow="fold")
        for heading in (self.left.name, self.right.name, "difference"):
            table.add_column(plain_text(heading), justify="right", overflow="fold")
        for pair in shown:
            parameters = pair.left.parameters.items()
            table.add_row(
                plain_text(", ".join(f"{k}={value_text(v)}" for k, v in parameters)),
                _cell(pair.left, pair.left_value),
                _cell(pair.right, pair.right_value),
                number_text(pair.difference),
            )
        return table

    def lines(self) -> list[str]:
        """Return what the comparison says in words, one fact a line."""
        mean = number_text(self.mean_difference)
        return [
            _best_line("left", self.left, self.best_left),
            _best_line("right", self.right, self.best_right),
            f"{len(self.pairs)} combinations in both, {self.num_left_out} lack a result",
            f"right is better in {self.num_better}, worse in {self.num_worse}",
            f"mean difference, right less left: {mean} over {len(self.differences)}",
            f"{len(self.only_left)} only left, {len(self.only_right)} only right",
        ]


def compare(
    left: SearchResults,
    right: SearchResults,
    metric: str,
    mode: Mode,
    *,
    at: At = "best",
) -> Comparison:
    """Compare two searches by one metric.

    Raises:
        ResultsError: If no experiment of either has a result for *metric*.
        ValueError: If *mode* or *at* is another word.
    """
    rankings, first_error = [], None
    for results in (left, right):
        try:
            rankings.append(results.ranking(metric, mode, at=at))
        except ResultsError as error:
            if first_error is not None:
                raise first_error from None
            first_error = error
            rankings.append([])
    values = [{r.identity: value for r, value in ranking} for ranking in rankings]
    on_left = {record.identity: record for record in left.records}
    on_right = {record.identity: record for record in right.records}
    pairs = tuple(
        Pair(
            left=record,
            right=on_right[identity],
            left_value=values[0].get(identity),
            right_value=values[1].get(identity),
        )
        for identity, record in on_left.items()
        if identity in on_right
    )
    return Comparison(
        left=left,
        right=right,
        metric=metric,
        mode=mode,
        best_left=rankings[0][0] if rankings[0] else None,
        best_right=rankings[1][0] if rankings[1] else None,
        pairs=pairs,
        only_left=tuple(r for r in left.records if r.identity not in on_right),
        only_right=tuple(r for r in right.records if r.identity not in on_left),
    )


def _size(pair: Pair) -> float:
    return -1.0 if pair.difference is None else abs(pair.difference)


def _cell(record: ExperimentRecord, value: float | None) -> str:
    return str(record.status) if value is None else number_text(value)


def _best_line(
    side: str, results: SearchResults, best: tuple[ExperimentRecord, float] | None
) -> str:
    counted = ", ".join(f"{n} {status}" for status, n in results.counts.items())
    found = "no result" if best is None else f"{best[1]:.6g} ({best[0].experiment_name})"
    return (
        f"best {side}: {found}, of {len(results.records)} ({counted or 'none planned'})"
    )
