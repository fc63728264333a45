from __future__ import annotations

import io
import math

from hypothesis import given
from hypothesis import strategies as st
from lightning.fabric import Fabric

from mtf_trainer._distributed import StopAgreement
from mtf_trainer._means import Means
from mtf_trainer._run import Run, Window
from mtf_trainer._signals import StopSignals
from mtf_trainer.progress import Progress


@given(st.integers(1, 5), st.lists(st.integers(1, 1000), min_size=1, max_size=5))
def test_every_sample_of_a_window_weighs_the_same(full: int, sizes: list[int]) -> None:
    """Whatever the sizes, a batch counts by its share of the window's samples."""
    window = Window(full)

    weights = [window.weight(size) for size in sizes]
    factor = window.close()

    for weight, size in zip(weights, sizes, strict=True):
        assert math.isclose(weight * factor, size / sum(sizes))
    assert window.batches == 0


@given(st.integers(1, 8), st.integers(1, 1000))
def test_full_window_needs_no_correction(full: int, size: int) -> None:
    """With equal batches the factor is exactly one, so gradients are left alone."""
    window = Window(full)

    for _ in range(full):
        window.weight(size)

    assert window.close() == 1.0


def make_run(fabric: Fabric, progress: Progress | None = None) -> Run:
    """Return a run of one process."""
    return Run(
        signals=StopSignals(enabled=False),
        agreement=StopAgreement(fabric),
        means=Means(fabric),
        window=Window(1),
        progress=progress,
    )


def test_epoch_means_weigh_parts_by_samples(fabric: Fabric) -> None:
    """Means of parts of an epoch become its mean; the next epoch begins at nothing."""
    run = make_run(fabric)
    run.add_to_epoch({"loss": 1.0}, {"loss": 3})
    run.add_to_epoch({"loss": 5.0, "top5": 0.5}, {"loss": 1, "top5": 1})

    assert run.epoch_means() == {"loss": 2.0, "top5": 0.5}
    assert run.epoch_means() == {}


def test_parts_are_reported(fabric: Fabric) -> None:
    """The end of a part tells its means by name."""
    stream = io.StringIO()
    run = make_run(fabric, Progress(stream, clock=lambda: 0.0))

    run.begin("epoch 1/1", 4)
    run.end({"loss": 0.123456, "accuracy": 1.0})

    assert run.num_batches == 4
    assert stream.getvalue() == "epoch 1/1  loss 0.1235  accuracy 1  0.0 s\n"
