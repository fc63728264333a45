"""Where a stream begins: the state that each of its epochs goes back to.

One data set may be read by several sources of a process, one after the other or by turns.
What it said before the first of them read it is remembered as long as it lives, for one
that was read and put back need not say again where it was before.
"""

from __future__ import annotations

import weakref
from collections.abc import MutableMapping
from copy import deepcopy
from typing import Any, Protocol

from torch.utils.weak import WeakIdKeyDictionary

from mtf_trainer._canonical import digest_of

__all__ = ["Beginning", "StreamReader"]

_KNOWN: MutableMapping[Any, Beginning] = WeakIdKeyDictionary()


class StreamReader(Protocol):
    """Who reads a data set."""

    def vacate(self) -> None:
        """Note where the data set stands, before another takes it."""


class Beginning:
    """The state that one data set begins from, and who reads it in this process."""

    def __init__(self, state: Any) -> None:
        self._state = state
        self._reader: weakref.ref[StreamReader] | None = None
        self._told: str | None = None

    @classmethod
    def known(cls, dataset: Any) -> Beginning | None:
        """Return what is remembered of *dataset*, unless another has moved it since."""
        found = _KNOWN.get(dataset)
        return None if found is None or found._is_moved(dataset) else found  # noqa: SLF001

    @classmethod
    def of(cls, dataset: Any) -> Beginning:
        """Return what is remembered of *dataset*; else it begins where it stands."""
        found = cls.known(dataset)
        if found is None:
            found = _KNOWN[dataset] = cls(deepcopy(dataset.state_dict()))
        return found

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the reader, which stays in its process."""
        return {**vars(self), "_reader": None}

    def vacate(self, reader: StreamReader) -> None:
        """Let who reads the data set note where it stands, unless that is *reader*."""
        other = self._reader() if self._reader is not None else None
        if other is not None and other is not reader:
            other.vacate()

    def take(self, dataset: Any, reader: StreamReader) -> None:
        """Put *dataset* to its beginning, to be read by *reader* and by no other."""
        dataset.load_state_dict(deepcopy(self._state))
        self._reader = weakref.ref(reader)

    def is_taken_by(self, reader: StreamReader) -> bool:
        """Tell whether *reader* was the last to take the data set."""
        return self._reader is not None and self._reader() is reader

    def give_back(self, dataset: Any) -> None:
        """Put *dataset* to its beginning, to be read by anyone."""
        dataset.load_state_dict(deepcopy(self._state))
        self._reader, self._told = None, _digest(dataset)

    def _is_moved(self, dataset: Any) -> bool:
        if self._reader is not None:
            return False
        return self._told is None or self._told != _digest(dataset)


def _digest(dataset: Any) -> str | None:
    """Return a digest of what *dataset* says; None if that is no plain data."""
    try:
        return digest_of(dataset.state_dict())
    except (TypeError, ValueError):
        return None
