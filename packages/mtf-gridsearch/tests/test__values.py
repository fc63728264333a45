from __future__ import annotations

import math

import pytest

from mtf_gridsearch._values import deviation_of, mean_of, reason_to_leave_out
from mtf_gridsearch.records import ExperimentRecord, MetricSummary, Status


def run(status: Status, last: float = 1.0, low: float = 1.0) -> ExperimentRecord:
    """Return an experiment that reported a loss."""
    loss = MetricSummary(last=last, last_step=1, min=low, min_step=0, max=2, max_step=0)
    return ExperimentRecord(
        experiment_name="a",
        identity="a",
        parameters={},
        status=status,
        metrics={"loss": loss},
    )


@pytest.mark.parametrize("status", Status)
def test_only_what_succeeded_or_was_stopped_by_a_rule_has_a_result(
    status: Status,
) -> None:
    """All other statuses are their own reason."""
    has_result = status in (Status.SUCCEEDED, Status.STOPPED)
    assert reason_to_leave_out(run(status), ["loss"]) == (None if has_result else status)


def test_a_run_that_diverged_has_no_result() -> None:
    """A value that is no number says so, and an infinite one."""
    assert (
        reason_to_leave_out(run(Status.SUCCEEDED, math.nan), ["loss"]) == "not a number"
    )
    endless = run(Status.SUCCEEDED, math.inf, -math.inf)
    assert reason_to_leave_out(endless, ["loss"]) == "infinite"
    assert reason_to_leave_out(run(Status.SUCCEEDED), ["loss", "acc"]) == "not reported"


def test_means_of_huge_numbers() -> None:
    """A sum that no float holds has a mean all the same, and a deviation may be infinite."""
    huge = 1.7e308
    assert mean_of([huge, huge, huge]) == huge
    assert mean_of([1.0, 2.0]) == 1.5
    assert mean_of([math.inf, 1.0]) == math.inf
    assert deviation_of([huge, -huge]) == math.inf
    assert deviation_of([1.0, 1.0]) == 0.0


def test_what_is_no_longer_in_the_grid_has_no_value() -> None:
    """It is counted apart, whatever came out of it."""
    dropped = ExperimentRecord(
        experiment_name="a",
        identity="a",
        parameters={},
        status=Status.SUCCEEDED,
        is_dropped=True,
    )
    assert reason_to_leave_out(dropped, ()) == "no longer in the grid"
