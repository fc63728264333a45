from __future__ import annotations

import pytest

from mtf_trainer.result import EXIT_RESUME, FitResult, StopReason


def test_result_keeps_what_it_is_given() -> None:
    """A result compares by value, and its reason reads as a word."""
    result = FitResult(
        reason=StopReason.INTERRUPTED,
        epoch=2,
        global_step=7,
        metrics={"loss": 0.5},
        best_metric=None,
        checkpoint=None,
        resumed_from=None,
    )

    assert f"{result.reason}" == "interrupted"
    assert result.metrics == {"loss": 0.5}


@pytest.mark.parametrize("reason", list(StopReason))
def test_exit_code_says_whether_to_run_again(reason: StopReason) -> None:
    """What was stopped and saved is to be run again; all else is done."""
    result = FitResult(
        reason=reason,
        epoch=1,
        global_step=1,
        metrics={},
        best_metric=None,
        checkpoint=None,
        resumed_from=None,
    )

    again = reason in {StopReason.INTERRUPTED, StopReason.LIMIT}
    assert result.exit_code == (EXIT_RESUME if again else 0)
