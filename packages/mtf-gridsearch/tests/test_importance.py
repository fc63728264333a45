from __future__ import annotations

import itertools
import math
import random
from pathlib import Path
from typing import Any

import pytest

from mtf_gridsearch.errors import ResultsError
from mtf_gridsearch.importance import importance
from mtf_gridsearch.records import ExperimentRecord, MetricSummary, Status
from mtf_gridsearch.results import SearchResults


def search(*rows: tuple[dict[str, Any], float], failed: int = 0) -> SearchResults:
    """Return results with parameters and a loss each, and some that failed."""
    records = [
        ExperimentRecord(
            experiment_name=str(number),
            identity=str(number),
            parameters=parameters,
            status=Status.SUCCEEDED,
            metrics={
                "loss": MetricSummary(
                    last=loss, last_step=0, min=loss, min_step=0, max=loss, max_step=0
                )
            },
        )
        for number, (parameters, loss) in enumerate(rows)
    ]
    records += [
        ExperimentRecord(
            experiment_name=f"f{number}",
            identity=f"f{number}",
            parameters={"a": 9},
            status=Status.FAILED,
        )
        for number in range(failed)
    ]
    return SearchResults(Path("search"), tuple(records))


def shares(found: Any) -> dict[str, float | None]:
    """Return the share by parameter."""
    return {item.parameter: item.share for item in found}


def test_what_alone_decides_has_all_and_what_does_nothing_has_none() -> None:
    """Over a full grid without noise, the one parameter's share is 1."""
    rows = [
        ({"a": a, "b": b, "c": c}, float(a))
        for a, b, c in itertools.product([1, 2, 3], "xyz", [True, False])
    ]
    found = importance(search(*rows, failed=2), "loss")
    assert shares(found) == {"a": pytest.approx(1.0), "b": 0.0, "c": 0.0}
    assert found[0].parameter == "a"
    assert found[0].means == {"1": (1.0, 6), "2": (2.0, 6), "3": (3.0, 6)}
    assert (len(found), found.num_used, found.left_out) == (3, 18, {"failed": 2})


def test_shares_are_those_of_the_formula() -> None:
    """Computed by hand from sums of squares for two groups of two."""
    found = importance(
        search(({"a": 0}, 1.0), ({"a": 0}, 2.0), ({"a": 1}, 4.0), ({"a": 1}, 7.0)), "loss"
    )
    total, within = 21.0, 0.5 + 4.5
    assert found[0].share == pytest.approx((total - within - within / 2) / total)


def test_chance_is_taken_off() -> None:
    """Of 20 random losses in 8 groups, plain correlation ratios average a third."""
    rng = random.Random(0)  # noqa: S311 - no secret
    found = [
        importance(search(*(({"a": i % 8}, rng.random()) for i in range(20))), "loss")[
            0
        ].share
        for _ in range(200)
    ]
    assert all(share is not None for share in found)
    assert sum(share or 0.0 for share in found) / len(found) < 0.12


def test_a_number_drawn_from_a_range_is_cut_into_groups() -> None:
    """A smooth effect is found, though no two experiments share a value."""
    rng = random.Random(1)  # noqa: S311 - no secret
    rows = [
        ({"lr": 10 ** rng.uniform(-5, -1), "b": rng.random()}, 0.0) for _ in range(80)
    ]
    rows = [(row, abs(math.log10(row["lr"]) + 3)) for row, _ in rows]
    found = importance(search(*rows), "loss")
    assert [item.parameter for item in found] == ["lr", "b"]
    assert found[0].num_groups == 8
    assert (found[0].share or 0) > 0.9
    assert (found[1].share or 0) < 0.2


def test_a_parameter_that_does_not_apply_is_a_group() -> None:
    """Experiments without it are not left out."""
    rows: list[tuple[dict[str, Any], float]] = [
        ({"a": 1}, 0.0),
        ({"a": 1}, 0.1),
        ({}, 1.0),
        ({}, 1.1),
    ]
    (item,) = importance(search(*rows), "loss")
    assert set(item.means) == {"1", "(absent)"}
    assert (item.share or 0) > 0.9


def test_what_cannot_be_told_is_none_and_comes_last() -> None:
    """One value for all, or one experiment a value, says nothing."""
    rows = [({"one": 0, "each": f"v{i}", "half": i % 2}, float(i % 2)) for i in range(4)]
    found = importance(search(*rows), "loss")
    assert [item.parameter for item in found] == ["half", "one", "each"]
    assert [item.share for item in found] == [pytest.approx(1.0), None, None]


def test_sizes_of_the_metric_do_not_matter() -> None:
    """Squares of huge and tiny values neither overflow nor vanish."""
    for size in (1e200, 1e-200):
        rows = [({"a": i % 2}, size * (i % 2)) for i in range(6)]
        assert importance(search(*rows), "loss")[0].share == pytest.approx(1.0)


def test_infinite_values_take_no_part_and_are_counted() -> None:
    """They are among those left out."""
    rows = [({"a": i % 2}, float(i)) for i in range(6)]
    found = importance(search(*rows, ({"a": 0}, math.inf)), "loss")
    assert (found.num_used, found.left_out) == (6, {"infinite": 1})


@pytest.mark.parametrize("losses", [[1.0, 2.0], [1.0, 1.0, 1.0], [0.0, 1.0, math.inf]])
def test_too_little_to_tell_is_refused(losses: list[float]) -> None:
    """Shares of no variance would be numbers without meaning."""
    with pytest.raises(ResultsError, match="importance needs three experiments"):
        importance(search(*(({"a": i}, loss) for i, loss in enumerate(losses))), "loss")


def test_values_whose_difference_no_float_holds() -> None:
    """Shares and means of huge numbers are as those of small ones."""
    rows = [({"a": n % 2}, 1.7e308 if n % 2 else -1.7e308) for n in range(4)]
    found = importance(search(*rows), "loss")
    assert found[0].share == 1.0
    assert {mean for mean, _ in found[0].means.values()} == {1.7e308, -1.7e308}
