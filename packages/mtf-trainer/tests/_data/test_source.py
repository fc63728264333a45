from __future__ import annotations

from mtf_trainer._data.source import Batch


def test_batch_counts_fully_unless_told_otherwise() -> None:
    """A batch of one loader has no name, and its loss weighs once."""
    batch = Batch(
        data=None,
        num_samples=3,
        window_samples=None,
        closes_window=True,
        is_last=False,
        cursor={"samples": 3},
    )

    assert (batch.loader, batch.loss_weight) == ("", 1.0)
