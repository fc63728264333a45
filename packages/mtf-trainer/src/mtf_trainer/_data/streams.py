"""Random streams that follow from numbers: Python's, NumPy's and torch's on the CPU.

A place in the data (seed, epoch, index) is mixed into 64 bits that seed all of them. What
is drawn for a sample then depends on nothing else, in whichever process it is drawn.
NumPy is left alone where nothing has imported it. Generators that a data set keeps for
itself, and those of other devices, are out of reach.
"""

from __future__ import annotations

import operator
import random
import sys
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import torch

__all__ = ["KeptStreams", "keep_and_seed", "mix", "mix_in", "seed_streams", "word_of"]

_WORD = (1 << 64) - 1


def mix_in(state: int, word: int) -> int:
    """Return 64 bits of which each depends on each bit of *state* and of *word*.

    The finalizer of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number
    Generators, 2014).
    """
    z = (state + word + 0x9E3779B97F4A7C15) & _WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _WORD
    return z ^ (z >> 31)


def mix(*words: int) -> int:
    """Return 64 bits that follow from *words* and their order.

    >>> mix(0, 1) == mix(1, 0)
    False
    """
    state = 0
    for word in words:
        state = mix_in(state, word)
    return state


def word_of(key: object) -> int:
    """Return a number for what a sampler gave: itself, or 64 bits of how it is written.

    >>> word_of(torch.tensor(3))
    3
    >>> word_of(("a", 224)) == word_of(("a", 256))
    False
    """
    try:
        return operator.index(key)  # type: ignore[arg-type]
    except TypeError:
        digest = blake2b(repr(key).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little")


def seed_streams(word: int) -> None:
    """Seed the three streams from 64 bits."""
    # torch and NumPy seed the same algorithm from 32 bits: each gets half of the word.
    random.seed(word)
    torch.default_generator.manual_seed(word)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(word >> 32)


class KeptStreams:
    """Within it the streams may be seeded and drawn from; afterwards they are as before.

    >>> with KeptStreams():
    ...     seed_streams(1)
    ...     first = random.random()
    >>> with KeptStreams():
    ...     seed_streams(1)
    ...     first == random.random()
    True
    """

    __slots__ = ("_numpy", "_python", "_torch")

    def __enter__(self) -> None:
        numpy = sys.modules.get("numpy")
        self._python = random.getstate()
        self._numpy = None if numpy is None else (numpy, numpy.random.get_state())
        self._torch = torch.default_generator.get_state()

    def __exit__(self, *_: object) -> None:
        random.setstate(self._python)
        if self._numpy is not None:
            numpy, state = self._numpy
            numpy.random.set_state(state)
        torch.default_generator.set_state(self._torch)


def keep_and_seed(generator: Any, word: int) -> Callable[[], None] | None:
    """Seed *generator*, and return what puts it back; None if it is no generator.

    It may be a `torch.Generator`, a `random.Random`, or NumPy's ``Generator`` or
    ``RandomState``.
    """
    if isinstance(generator, torch.Generator):
        state = generator.get_state()
        generator.manual_seed(word)
        return lambda: _drop(generator.set_state(state))
    if isinstance(generator, random.Random):
        kept = generator.getstate()
        generator.seed(word)
        return lambda: generator.setstate(kept)
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return None
    if isinstance(generator, numpy.random.Generator):
        bits = generator.bit_generator
        before, bits.state = bits.state, type(bits)(word).state
        return lambda: setattr(bits, "state", before)
    if isinstance(generator, numpy.random.RandomState):
        old = generator.get_state()
        generator.seed(word >> 32)
        return lambda: _drop(generator.set_state(old))
    return None


def _drop(_: object) -> None:
    """Make a call one that returns None."""
