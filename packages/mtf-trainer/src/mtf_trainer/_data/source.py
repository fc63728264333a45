"""What the loop reads batches from: the contract between loaders and the loop.

A source gives the batches of one process, in an order that follows from seed and epoch
alone. Each batch says where the source stands just behind it, so that the loop, which
keeps the cursor of the last batch it has used up, can have the rest again in another
process. A source never touches the random streams of the training process.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["Batch", "Cursor", "Source"]

Cursor = dict[str, Any]


@dataclass(slots=True, kw_only=True)
class Batch:
    """One micro-batch of one process.

    Args:
        data: What the loader's collate function made, on the device.
        num_samples: Samples of this process that count. 0 for a filler: where the end of
            an epoch does not give every process a sample, those without get one that was
            used already, so that all take part in the step; it must weigh nothing.
        window_samples: Samples of all processes in the optimizer step this batch belongs
            to; None where that is not known before the window closes.
        closes_window: Whether an optimizer step follows.
        is_last: Whether the epoch ends with it.
        cursor: The place behind it: plain data (numbers, strings, lists, dictionaries,
            tensors), the same for the same place however it was reached.
        loader: The loader it came from, where there are several.
        loss_weight: Factor for its loss.
    """

    data: Any
    num_samples: int
    window_samples: int | None
    closes_window: bool
    is_last: bool
    cursor: Cursor
    loader: str = ""
    loss_weight: float = 1.0


class Source(Protocol):
    """Batches of one process, epoch after epoch."""

    @property
    def num_batches(self) -> int | None:
        """Micro-batches of a whole epoch in this process; None if not known."""

    def batches(self, epoch: int, cursor: Cursor | None) -> Iterator[Batch]:
        """Return what follows *cursor* in *epoch* (from 0); None is its beginning.

        Nothing that is asked for changes another call's answer. Only the newest iterator
        is used; it may be given up before its end.
        """

    def adopt(self, cursors: Sequence[Cursor]) -> Cursor:
        """Return this process's cursor among those that were saved, by rank.

        With another number of processes, or another micro-batch, than saved them, the
        global order goes on where it stopped.

        Raises:
            DataError: If that is not possible; it says why and what to do.
        """

    def layout(self) -> Mapping[str, int | str]:
        """Return what must not differ between two runs of one training, by name."""

    def close(self) -> None:
        """End loader workers that are still there, and leave the data as they were found.

        Again is harmless.
        """
