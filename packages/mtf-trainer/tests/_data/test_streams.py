from __future__ import annotations

import random
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtf_trainer._data.streams import (
    KeptStreams,
    keep_and_seed,
    mix,
    mix_in,
    seed_streams,
    word_of,
)

WORDS = st.integers(0, 2**64 - 1)


def draw() -> tuple[float, float, float]:
    """Return a number from each stream."""
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002, S311


def states() -> tuple[Any, ...]:
    """Return where each stream stands."""
    numpy_state: Any = np.random.get_state()  # noqa: NPY002
    name, words, *rest = numpy_state
    return random.getstate(), name, words.tolist(), rest, torch.get_rng_state().tolist()


@settings(deadline=None)
@given(WORDS, WORDS, st.integers(0, 63))
def test_each_bit_of_a_word_changes_about_half_of_the_mix(
    state: int, word: int, bit: int
) -> None:
    """Neighbouring epochs or indices give words that have nothing in common."""
    difference = mix_in(state, word) ^ mix_in(state, word ^ (1 << bit))

    assert 8 <= difference.bit_count() <= 56


def test_mixes_of_small_numbers_are_all_different() -> None:
    """No two of the places of a small run share a seed, nor either half of one."""
    words = {
        mix(seed, epoch, i) for seed in range(4) for epoch in range(4) for i in range(64)
    }

    assert len(words) == 4 * 4 * 64
    assert len({word >> 32 for word in words}) == len(words)
    assert len({word & 0xFFFFFFFF for word in words}) == len(words)


def test_mix_is_the_same_on_every_machine() -> None:
    """The first two numbers of SplitMix64 from seed 0, as its authors give them."""
    assert mix_in(0, 0) == 0xE220A8397B1DCDAF
    assert mix_in(0x9E3779B97F4A7C15, 0) == 0x6E789E6AA1B965F4
    assert mix(-1) == mix(2**64 - 1)


@pytest.mark.parametrize("key", [7, torch.tensor(7), np.int64(7)])
def test_integers_of_any_kind_are_the_same_key(key: object) -> None:
    """An index is its number, whoever made it."""
    assert word_of(key) == 7


def test_other_keys_are_known_by_how_they_are_written() -> None:
    """A sampler may give tuples or strings."""
    assert word_of(("a", 1)) == word_of(("a", 1)) != word_of(("a", 2))


def test_streams_follow_from_the_seed_and_differ() -> None:
    """The same word gives the same draws, another word others, in each stream."""
    with KeptStreams():
        seed_streams(mix(1))
        first = draw()
        seed_streams(mix(1))
        again = draw()
        seed_streams(mix(2))
        other = draw()

    assert first == again
    assert not set(first) & set(other)


def test_streams_are_put_back_even_after_an_error() -> None:
    """What is drawn within leaves no trace, half a pair of normal numbers included."""
    np.random.randn()  # noqa: NPY002
    before = states()

    def fail() -> None:
        with KeptStreams():
            seed_streams(5)
            draw()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()

    assert states() == before


def test_numpy_is_left_alone_where_nothing_imported_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without NumPy the other two streams work alike."""
    before = states()
    with KeptStreams():
        np.random.seed(3)  # noqa: NPY002
        there = states()
        monkeypatch.delitem(sys.modules, "numpy")
        with KeptStreams():
            seed_streams(1)
        assert keep_and_seed(np.random.default_rng(1), 1) is None
        monkeypatch.undo()
        assert states() == there
    assert states() == before


GENERATORS = [
    (torch.Generator(), lambda g: float(torch.rand((), generator=g))),
    (random.Random(1), lambda g: g.random()),  # noqa: S311
    (np.random.default_rng(1), lambda g: float(g.random())),
    (np.random.RandomState(1), lambda g: float(g.rand())),
]


@pytest.mark.parametrize(("generator", "take"), GENERATORS)
def test_a_generator_is_seeded_and_put_back(generator: Any, take: Any) -> None:
    """Draws follow from the word; afterwards the generator goes on where it stood."""
    drawn = []
    for _ in range(2):
        restore = keep_and_seed(generator, mix(9))
        assert restore is not None
        drawn.append(take(generator))
        restore()
    restore = keep_and_seed(generator, mix(10))
    assert restore is not None
    other = take(generator)
    restore()
    following = take(generator)

    assert drawn[0] == drawn[1] != other
    assert following not in {drawn[0], other}


def test_a_generator_goes_on_where_it_stood() -> None:
    """Its next number is the one it would have given."""
    for twin in (lambda: random.Random(4), lambda: np.random.default_rng(4)):  # noqa: S311
        generator, undisturbed = twin(), twin()
        restore = keep_and_seed(generator, 1)
        assert restore is not None
        generator.random()
        restore()
        assert generator.random() == undisturbed.random()


def test_what_is_no_generator_is_left_alone() -> None:
    """Any other attribute of a sampler is none of ours."""
    assert keep_and_seed([1, 2], 1) is None
