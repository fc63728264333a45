"""How much each parameter alone explains of a metric.

The measure is epsilon squared: of the variance of a metric over the experiments, the share
that lies between the groups which share a value of the parameter, less what chance alone
puts there. It is the correlation ratio of a one-way analysis of variance with the
correction of T. L. Kelley, "An unbiased correlation ratio measure", PNAS 21 (1935): with
*n* experiments in *g* groups,

    share = (between - (g - 1) * within / (n - g)) / total

of sums of squares, and 0 where that is negative. Groups are the values of the parameter;
numbers with more than eight values are cut into up to eight groups of equal size, by rank.
Experiments that do not have the parameter (``only_when``) are a group.

Says nothing of parameters that matter only together: what the shares leave of 1 is that,
and noise. A search that did not try all combinations evenly (early stopping, a Bayesian
one) has seen more of its good ones, and its shares are of what it has seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from mtf_gridsearch._groups import ABSENT, grouped
from mtf_gridsearch._values import mean_of
from mtf_gridsearch.errors import ResultsError
from mtf_gridsearch.results import At, Mode, SearchResults

__all__ = ["Importance", "Importances", "importance"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Importance:
    """One parameter's share.

    Attributes:
        share: Of the variance, 0 to 1; None where it cannot be told: every group has one
            experiment, or there is one group.
        num_groups: Of experiments that share a value.
        means: The metric's mean by group, in the order of the groups, and how many
            experiments are in each.
    """

    parameter: str
    share: float | None
    num_groups: int
    means: Mapping[str, tuple[float, int]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Importances(Sequence[Importance]):
    """All parameters' shares, the largest first; those that cannot be told at the end.

    Attributes:
        num_used: How many experiments they rest on.
        left_out: How many do not take part, by reason.
    """

    metric: str
    items: tuple[Importance, ...]
    num_used: int
    left_out: Mapping[str, int]

    def __getitem__(self, index: Any) -> Any:
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)


def importance(
    results: SearchResults, metric: str, mode: Mode = "min", *, at: At = "best"
) -> Importances:
    """Return the share of the variance of *metric* that each parameter alone explains.

    Raises:
        ResultsError: If fewer than three experiments have a result, or all of them
            have the same.
        ValueError: If *mode* or *at* is another word.
    """
    used = results.ranking(metric, mode, at=at)
    left_out = results.left_out(metric)
    values = [value for _, value in used]
    if len(set(values)) < 2 or len(values) < 3:  # noqa: PLR2004 -- no variance to share
        msg = (
            f"{results.folder}: importance needs three experiments whose {metric!r} is not "
            f"the same, and has {len(values)} with {len(set(values))} values"
        )
        raise ResultsError(msg)
    items = []
    for key in results.parameters:
        groups = grouped([record.parameters.get(key, ABSENT) for record, _ in used])
        items.append(_importance(key, groups, values))
    items.sort(
        key=lambda item: -math.inf if item.share is None else item.share, reverse=True
    )
    return Importances(
        metric=metric, items=tuple(items), num_used=len(used), left_out=left_out
    )


def _importance(
    key: str, groups: Sequence[tuple[str, Sequence[int]]], values: Sequence[float]
) -> Importance:
    # Numbers of a common size: squares of 1e200 would overflow, of 1e-200 vanish.
    low = min(values)
    scale = max(values) - low or 1.0
    if math.isinf(scale):
        scaled = [(value / 4 - low / 4) / (max(values) / 4 - low / 4) for value in values]
    else:
        scaled = [(value - low) / scale for value in values]
    mean = fmean(scaled)
    total = sum((value - mean) ** 2 for value in scaled)
    within = 0.0
    means = {}
    for label, members in groups:
        group_mean = fmean(scaled[i] for i in members)
        within += sum((scaled[i] - group_mean) ** 2 for i in members)
        means[label] = (mean_of([values[i] for i in members]), len(members))
    free = len(values) - len(groups)
    share = None
    if free and len(groups) > 1:
        chance = (len(groups) - 1) * within / free
        share = min(1.0, max(0.0, (total - within - chance) / total))
    return Importance(parameter=key, share=share, num_groups=len(groups), means=means)
