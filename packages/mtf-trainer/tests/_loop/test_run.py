from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
from torch.utils.data import DataLoader

from mtf_trainer import DivergenceError, GenericTrainer, StopReason
from mtf_trainer._guards.guard import Verdict
from mtf_trainer._loop.run import RollBack


def test_first_reason_to_stop_counts(
    make_trainer: Callable[..., GenericTrainer], loader: DataLoader[Any]
) -> None:
    """A run that is asked twice stops for what came first, and is attended to."""
    trainer = make_trainer()
    with ExitStack() as stack:
        source = trainer._source(loader, training=True)
        run, _ = trainer._open(stack, source, None, 1, None)
        before = run.attention

        run.stop(StopReason.LIMIT)
        run.stop(StopReason.INTERRUPTED)

        assert (before, run.attention) == (False, True)
        assert run.stopping is StopReason.LIMIT
        with run.unwatched():
            pass
        run.react(3, None)
        with pytest.raises(RollBack, match="bad"):
            run.react(3, Verdict(reaction="rollback", step=3, message="bad"))
        with pytest.raises(DivergenceError, match="step 3: bad"):
            run.react(3, Verdict(reaction="stop", step=3, message="bad"))
