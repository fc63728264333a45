"""One process's error ends all of a run, and each tells that process's traceback first.

A process that fails leaves the others in a collective that never ends. `RankErrors` is
put around what they do together. The one that fails posts its traceback to the store by
which the processes found each other (so it works however they were started: torchrun,
srun, Fabric itself), and waits a moment until the others have it. They look twice a
second, each in a thread of its own, and then

* where the collective ends by itself, as it does with gloo once a member is gone, raise
  `RankError` in its place, from the block;
* otherwise, a grace later, print the same to stderr and end the process with the exit
  code `EXIT_RANK_FAILED`: a thread that waits for a device cannot be made to raise.

Until then the training thread does nothing for it. An error that all processes raise
alike, as when a configuration is wrong, reaches each caller as it is.

A process that is killed posts nothing: the launcher ends the others (torchrun by itself,
``srun`` with ``--kill-on-bad-exit``), or gloo's own error does. Fabric, where it started
the processes, kills all of them up to 5 s after one ended with an error, and may be
faster than a grace.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import traceback
from itertools import count
from types import TracebackType
from typing import Self

import torch.distributed as dist
from lightning.fabric import Fabric
from torch._C._distributed_c10d import PrefixStore, Store

from mtf_trainer.errors import RankError

__all__ = ["EXIT_RANK_FAILED", "RankErrors"]

EXIT_RANK_FAILED = 70
"""Exit code of a process that hung because another one had failed."""

_HEAD_CHARS = 4_000
_TAIL_CHARS = 12_000
_TOLD_WITHIN_S = 3.0

# All processes enter the same blocks in the same order, so they count alike.
_blocks = count()


class RankErrors:
    """Ends all processes once one leaves the ``with`` block by an error.

    All processes enter it together. With one process it does nothing.

    Args:
        fabric: Launched.
        poll_s: Seconds between two looks.
        grace_s: Seconds that a process has to leave the block by itself once it is known
            that another failed.
    """

    def __init__(
        self, fabric: Fabric, *, poll_s: float = 0.5, grace_s: float = 2.0
    ) -> None:
        self._rank = fabric.global_rank
        self._num_others = fabric.world_size - 1
        self._poll_s = poll_s
        self._grace_s = grace_s
        self._left = threading.Event()
        self._failure: RankError | None = None
        self._store: Store | None = None

    def __enter__(self) -> Self:
        if self._num_others:
            prefix = f"mtf_trainer/errors/{next(_blocks)}"
            # A clone has a connection of its own: a wait on the other does not block it.
            shared = dist.distributed_c10d._get_default_store()  # noqa: SLF001
            self._store = PrefixStore(prefix, shared.clone())  # type: ignore[attr-defined]
            self._watcher = threading.Thread(
                target=self._watch,
                args=(self._store,),
                name="mtf-rank-errors",
                daemon=True,
            )
            self._watcher.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        store, self._store = self._store, None
        if store is None:
            return
        self._left.set()
        self._watcher.join(timeout=self._poll_s)
        if error is not None and self._failure is None:
            # The store is gone if the process that holds it is.
            with contextlib.suppress(RuntimeError):
                self._post(store, error)
        failure, self._failure = self._failure, None
        if failure is None or not (error is None or _may_follow(error)):
            return
        if error is not None:
            failure.add_note(f"in process {self._rank} it showed as: {error}")
        raise failure from None

    def _post(self, store: Store, error: BaseException) -> None:
        """Tell the others of *error*, unless one was faster: then learn of that one's."""
        store.set(f"told/{self._rank}", _bounded("".join(_lines(error))))
        first = int(store.compare_set("first", "", str(self._rank)))
        if first != self._rank:
            self._learn(store, first)
            return
        deadline = time.monotonic() + _TOLD_WITHIN_S
        while store.add("known", 0) < self._num_others and time.monotonic() < deadline:
            time.sleep(min(0.05, self._poll_s))

    def _watch(self, store: Store) -> None:
        while not self._left.wait(self._poll_s):
            try:
                if store.check(["first"]):
                    self._learn(store, int(store.get("first")))
                    break
            except RuntimeError:
                break
        if self._failure is None or self._left.wait(self._grace_s):
            return
        _end(self._rank, self._failure)

    def _learn(self, store: Store, rank: int) -> None:
        told = store.get(f"told/{rank}").decode("utf-8", errors="replace")
        self._failure = RankError(rank, told)
        store.add("known", 1)


def _lines(error: BaseException) -> list[str]:
    return traceback.format_exception(error)


def _bounded(text: str) -> str:
    """Return *text*, without its middle if it is long.

    >>> len(_bounded("x" * 10**6)) < 20_000
    True
    """
    left_out = len(text) - _HEAD_CHARS - _TAIL_CHARS
    if left_out <= 0:
        return text
    head, tail = text[:_HEAD_CHARS], text[-_TAIL_CHARS:]
    return f"{head}\n... {left_out} characters are left out here ...\n{tail}"


def _may_follow(error: BaseException) -> bool:
    """Tell whether *error* may be what a collective raises when a member is gone."""
    return type(error) is RuntimeError or isinstance(error, dist.DistError)


def _end(rank: int, failure: RankError) -> None:
    told = f"process {rank} stops since {failure}"
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"{told.rstrip()}\n")
        sys.stderr.flush()
        sys.stdout.flush()
    os._exit(EXIT_RANK_FAILED)
