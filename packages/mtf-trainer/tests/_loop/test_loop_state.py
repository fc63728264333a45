from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.fabric import Fabric

from mtf_trainer._data.source import Batch
from mtf_trainer._loop.loop_state import LoopState, Window, local_for
from mtf_trainer._loop.means import Means
from mtf_trainer.phases import Phase
from mtf_trainer.state import LocalState, RNGState


def batch(num_samples: int, window_samples: int | None = None) -> Batch:
    """Return a batch of so many samples."""
    return Batch(
        data=None,
        num_samples=num_samples,
        window_samples=window_samples,
        closes_window=False,
        is_last=False,
        cursor={},
    )


@given(st.integers(1, 5), st.lists(st.integers(1, 1000), min_size=1, max_size=5))
def test_every_sample_of_a_window_weighs_the_same(full: int, sizes: list[int]) -> None:
    """Whatever the sizes, a batch counts by its share of the window's samples."""
    window = Window(full)

    weights = [window.weight(batch(size), 1) for size in sizes]
    factor = window.close()

    for weight, size in zip(weights, sizes, strict=True):
        assert math.isclose(weight * factor, size / sum(sizes))
    assert window.samples == 0


@given(st.integers(1, 8), st.integers(1, 1000))
def test_full_window_needs_no_correction(full: int, size: int) -> None:
    """With equal batches the factor is exactly one, so gradients are left alone."""
    window = Window(full)

    for _ in range(full):
        window.weight(batch(size), 1)

    assert window.close() == 1.0


@given(
    st.lists(
        st.lists(st.integers(0, 100), min_size=1, max_size=4), min_size=1, max_size=4
    )
)
def test_known_windows_weigh_samples_alike_over_processes(
    sizes: list[list[int]],
) -> None:
    """Averaged over processes, a batch counts by its share; a filler for nothing."""
    total = sum(map(sum, sizes))
    for own in sizes:
        window = Window(len(own))
        for size in own:
            weight = window.weight(batch(size, max(1, total)), len(sizes))
            assert math.isclose(weight / len(sizes), size / max(1, total))
        assert window.close() == 1.0


@given(
    st.lists(
        st.lists(st.integers(0, 100), min_size=2, max_size=2), min_size=1, max_size=4
    )
)
def test_unknown_windows_weigh_samples_alike_over_processes(
    sizes: list[list[int]],
) -> None:
    """Two processes with other numbers of samples correct by one factor, by their sum."""
    total = sum(map(sum, sizes))
    answers = {"max": max(2, 2 * max(sizes[0])) * 3, "sum": total}
    factors = []
    for rank in (0, 1):
        window = Window(3, over_all=lambda _, operation: answers[operation])
        weights = [window.weight(batch(pair[rank]), 2) for pair in sizes]
        factors.append(window.close())
        for pair, weight in zip(sizes, weights, strict=True):
            expected = pair[rank] / total if total else 0.0
            assert math.isclose(weight / 2 * factors[-1], expected)
    assert factors[0] == factors[1]


def local(value: float) -> LocalState:
    """Return the state of a process with a sum and a gradient of *value*."""
    sums = {"num_samples": 2, "sums": torch.tensor([value, 1.0]), "counts": {"a": 2}}
    return LocalState(
        rng=RNGState.capture(),
        train_means=sums,
        val_means={"": dict(sums)},
        grads={"w": torch.tensor([value])},
    )


def test_as_many_processes_take_their_own() -> None:
    """With as many processes as there were, nothing is changed."""
    states = [local(1.0), local(3.0)]

    assert local_for(states, 1, 2, seed=0) is states[1]


def test_other_number_of_processes_shares_what_there_was() -> None:
    """The first takes all sums, each takes the mean gradient; new ones get new streams."""
    states = [local(1.0), local(3.0)]

    three = [local_for(states, rank, 3, seed=5) for rank in range(3)]

    assert three[0].train_means["sums"].tolist() == [4.0, 2.0]
    assert three[0].train_means["num_samples"] == 4
    assert three[0].val_means[""]["counts"] == {"a": 4}
    assert three[1].train_means == three[2].val_means[""] == {}
    assert [each.grads["w"].item() for each in three if each.grads] == [2.0, 2.0, 2.0]
    assert three[1].rng is states[1].rng
    expected = RNGState.seeded(7).torch_cpu
    assert torch.equal(three[2].rng.torch_cpu, expected)
    states[1].grads = None
    assert local_for(states, 0, 1, seed=0).grads is None


def test_complete_run_is_saved_as_one_that_may_go_on(fabric: Fabric) -> None:
    """Where all epochs are done, what is saved says that another would begin."""
    state = LoopState(window=Window(1), train_means=Means(fabric))

    state.phase = Phase.TRAINING_COMPLETE
    assert state.shared()["resume"]["phase"] == "TRAIN_START_EPOCH"
    state.phase = Phase.EPOCH_END
    assert state.shared()["resume"]["phase"] == "EPOCH_END"
