from __future__ import annotations

from mtf_trainer.result import FitResult, StopReason


def test_result_keeps_what_it_is_given() -> None:
    """A result compares by value, and its reason reads as a word."""
    result = FitResult(
        reason=StopReason.INTERRUPTED,
        epoch=2,
        global_step=7,
        metrics={"loss": 0.5},
        checkpoint=None,
        resumed_from=None,
    )

    assert f"{result.reason}" == "interrupted"
    assert result.metrics == {"loss": 0.5}
