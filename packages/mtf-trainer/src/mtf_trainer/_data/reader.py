"""Reads through the workers of a loader, as its caller configured them.

A fetcher answers requests, here or in worker processes; the answers come in the order of
the requests. A reader knows when workers are there and ends them.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from multiprocessing.util import Finalize
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, IterDataPipe, get_worker_info

from mtf_trainer.errors import DataError

__all__ = ["Fetcher", "Reader", "check_loader", "in_worker"]

_PATIENCE_S = 5.0
_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1")
_OVERRIDES = ("__iter__", "__len__", "_get_iterator", "_index_sampler", "_auto_collation")


class Fetcher(Protocol):
    """Answers requests. It is copied to each worker, so it and they must pickle."""

    dataset: Any

    def __getitem__(self, request: Any) -> Any:
        """Return the answer to *request*."""


def in_worker() -> bool:
    """Return whether this is a loader's worker process."""
    return get_worker_info() is not None


def check_loader(loader: DataLoader[Any]) -> None:
    """Raise if *loader* does something that a rebuilt one would not do.

    Raises:
        DataError: Naming what that is.
    """
    kind = type(loader)
    for name in _OVERRIDES:
        if getattr(kind, name) is not getattr(DataLoader, name):
            message = (
                f"{kind.__name__} overrides DataLoader.{name}, so its order cannot be "
                f"known: give the trainer a torch.utils.data.DataLoader with the same "
                f"dataset, sampler and collate_fn"
            )
            raise DataError(message)
    if isinstance(loader.dataset, IterDataPipe):
        message = (
            "data pipes shard and shuffle behind the loader's back: give the loader an "
            "IterableDataset or a map-style dataset"
        )
        raise DataError(message)


class Reader:
    """Runs *fetcher* as *loader* would its data set.

    Nothing is drawn from the streams of this process. A signal that asks a run to stop
    does nothing to the workers, who end when the reader says so, or is gone. Answers are
    in order, whatever the loader's ``in_order`` says.

    Args:
        loader: What was checked by `check_loader`. It is not used, only looked at.
        fetcher: What answers.
        num_workers: At most as many as the loader has.
    """

    def __init__(
        self, loader: DataLoader[Any], fetcher: Fetcher, *, num_workers: int
    ) -> None:
        self._fetcher = fetcher
        self._loader: _Loader | None = None
        self._persistent = loader.persistent_workers
        self._live: list[Any] = []
        pin_memory = loader.pin_memory and torch.accelerator.is_available()
        if num_workers or pin_memory:
            self._requests = _Requests()
            options: dict[str, Any] = {}
            if num_workers:
                options = {
                    "multiprocessing_context": loader.multiprocessing_context,
                    "persistent_workers": loader.persistent_workers,
                    "prefetch_factor": loader.prefetch_factor,
                    "timeout": loader.timeout,
                }
            self._loader = _Loader(
                fetcher,  # type: ignore[arg-type]
                batch_size=None,
                sampler=self._requests,
                collate_fn=_as_is,
                num_workers=num_workers,
                pin_memory=pin_memory,
                pin_memory_device=loader.pin_memory_device,
                worker_init_fn=_InitWorker(loader.worker_init_fn),
                generator=torch.Generator(),
                **options,
            )
            # Before multiprocessing, as the process exits, waits for its children.
            Finalize(self, _end, args=(self._live,), exitpriority=10)

    def read(self, requests: Callable[[], Iterator[Any]], seed: int) -> Iterator[Any]:
        """Return the answers to what *requests* gives; end what an earlier call began.

        *seed* is what workers' own streams begin with.
        """
        self.stop()
        if self._loader is None:
            return map(self._fetcher.__getitem__, requests())
        self._requests.make = requests
        self._loader.generator.manual_seed(seed)
        iterator = iter(self._loader)
        self._live[:] = [iterator]
        return iterator

    def stop(self) -> None:
        """End the workers that would not be used again."""
        if not self._persistent:
            _end(self._live)

    def close(self) -> None:
        """End all workers; a later `read` starts new ones."""
        _end(self._live)
        if self._loader is not None:
            self._loader._iterator = None  # noqa: SLF001


class _Loader(DataLoader[Any]):
    """The loader it is made from has warned already."""

    generator: torch.Generator

    def check_worker_number_rationality(self) -> None:
        """Say nothing."""


class _Requests:
    """A sampler; torch may begin it more than once for one iteration."""

    make: Callable[[], Iterator[Any]] = staticmethod(lambda: iter(()))

    def __iter__(self) -> Iterator[Any]:
        return self.make()


class _InitWorker:
    """Shows the caller's code in a worker the data set it knows."""

    def __init__(self, init: Callable[[int], None] | None) -> None:
        self._init = init

    def __call__(self, worker_id: int) -> None:
        # The handler is a function, for a program that a data set starts would inherit
        # SIG_IGN.
        for name in _SIGNALS:
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), _do_nothing)
        info: Any = get_worker_info()
        object.__setattr__(info, "dataset", info.dataset.dataset)
        if self._init is not None:
            self._init(worker_id)


def _as_is(value: Any) -> Any:
    return value


def _do_nothing(*_: object) -> None:
    """Stand in for a signal's handler."""


def _end(live: list[Any]) -> None:
    """End the workers of the iterators in *live*, and empty it."""
    while live:
        iterator = live.pop()
        workers = getattr(iterator, "_workers", ())
        if workers:
            iterator._shutdown_workers()  # noqa: SLF001
        for worker in workers:
            # One that hangs in the caller's code has not heeded SIGTERM.
            if worker.is_alive():
                worker.kill()
                worker.join()
        for requests in getattr(iterator, "_index_queues", ()):
            # Closed, its thread ends by itself; a fork meanwhile would copy what it locks.
            if (thread := requests._thread) is not None:  # noqa: SLF001
                thread.join(_PATIENCE_S)
