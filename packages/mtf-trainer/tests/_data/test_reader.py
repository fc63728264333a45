from __future__ import annotations

import gc
import multiprocessing
import os
import random
import signal
import textwrap
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterDataPipe, get_worker_info

from mtf_trainer._data.reader import Reader, check_loader, in_worker
from mtf_trainer.errors import DataError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

# Loader workers are forked; from Python 3.12 on that warns where threads are about.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*multi-threaded, use of fork:DeprecationWarning"
)


class Numbers(Dataset[int]):
    """Gives the index, and remembers what a worker was told."""

    told = 0

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        return index


class Twice:
    """Answers with twice the request, and what the data set was told."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, request: int) -> tuple[int, int, bool]:
        return 2 * request, self.dataset.told, in_worker()


def tell(worker_id: int) -> None:
    """Set the data set of a worker up, as a caller's code does."""
    info: Any = get_worker_info()
    assert isinstance(info.dataset, Numbers)
    info.dataset.told = 10 + worker_id


def reader(num_workers: int = 0, fetcher: Any = None, **options: Any) -> Reader:
    """Return a reader of a loader with *options*."""
    loader = DataLoader(Numbers(), num_workers=num_workers, **options)
    fetcher = Twice(loader.dataset) if fetcher is None else fetcher
    return Reader(loader, fetcher, num_workers=num_workers)


def test_requests_are_answered_in_their_order() -> None:
    """Here and in workers, who see the data set their caller knows."""
    here, there = reader(), reader(2, worker_init_fn=tell)

    try:
        assert list(here.read(lambda: iter(range(3)), 0)) == [
            (0, 0, False),
            (2, 0, False),
            (4, 0, False),
        ]
        assert list(there.read(lambda: iter(range(3)), 0)) == [
            (0, 10, True),
            (2, 11, True),
            (4, 10, True),
        ]
    finally:
        here.close()
        there.close()
    assert multiprocessing.active_children() == []


class Stream:
    """Answers with the first number of the worker's own stream."""

    dataset = None

    def __getitem__(self, request: int) -> tuple[int, float]:
        return request, random.random()  # noqa: S311


def test_streams_of_workers_follow_from_the_seed() -> None:
    """What no one seeds again is at least the same in the next run."""
    with_workers = reader(1, Stream())
    try:
        read = [list(with_workers.read(lambda: iter([0]), seed)) for seed in (1, 1, 2)]
    finally:
        with_workers.close()

    assert read[0] == read[1] != read[2]


def test_signals_do_nothing_to_workers() -> None:
    """A scheduler signals every process of a job; the workers must outlive the save."""
    with_workers = reader(1)
    try:
        answers = with_workers.read(lambda: iter(range(8)), 0)
        next(answers)
        (worker,) = multiprocessing.active_children()
        for number in SIGNALS:
            os.kill(worker.pid or 0, number)
        assert [answer for answer, *_ in answers] == list(range(2, 16, 2))
    finally:
        with_workers.close()


class Stuck:
    """Never answers."""

    dataset = None

    def __getitem__(self, request: int) -> None:
        threading.Event().wait()


def test_a_worker_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing does not wait for the caller's code to return."""
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.05)
    with_workers = reader(1, Stuck())
    with_workers.read(lambda: iter(range(3)), 0)
    (worker,) = multiprocessing.active_children()

    with_workers.close()

    assert not worker.is_alive()
    assert multiprocessing.active_children() == []


def test_workers_end_with_the_reader() -> None:
    """One that nobody closed takes its workers with it."""
    answers: Any
    with_workers: Any = reader(1, persistent_workers=True)
    answers = with_workers.read(lambda: iter(range(3)), 0)
    next(answers)
    assert len(multiprocessing.active_children()) == 1

    del with_workers, answers
    gc.collect()

    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_a_process_that_exits_leaves_no_worker(launch: Callable[..., Any]) -> None:
    """Even a worker that hangs in the caller's code does not keep its parent alive."""
    script = """
        import multiprocessing, threading
        from torch.utils.data import DataLoader
        from mtf_trainer._data.reader import Reader

        class Stuck:
            dataset = None

            def __getitem__(self, request):
                threading.Event().wait()

        loader = DataLoader([1], num_workers=1)
        reader = Reader(loader, Stuck(), num_workers=1)
        reader.read(lambda: iter(range(3)), 0)
        print(multiprocessing.active_children()[0].pid)
    """

    (told,) = launch("-c", textwrap.dedent(script), timeout_s=60)

    assert told.code == 0, told.err
    with pytest.raises(ProcessLookupError):
        os.kill(int(told.out), 0)


def test_what_the_loader_warned_of_is_not_said_again() -> None:
    """The caller was told of many workers as the loader was made."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loader = DataLoader(Numbers(), num_workers=64, pin_memory=True)
    with_workers = Reader(loader, Twice(loader.dataset), num_workers=1)
    try:
        assert len(list(with_workers.read(lambda: iter(range(2)), 0))) == 2
    finally:
        with_workers.close()


def test_options_of_the_loader_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that has to do with workers and memory is as the caller configured it."""
    loader = DataLoader(
        Numbers(),
        num_workers=2,
        pin_memory=True,
        pin_memory_device="cuda",
        timeout=9,
        multiprocessing_context="fork",
        prefetch_factor=3,
        persistent_workers=True,
    )
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)

    made: Any = Reader(loader, Twice(loader.dataset), num_workers=2)._loader
    alone: Any = Reader(loader, Twice(loader.dataset), num_workers=0)._loader

    for name in (
        "pin_memory",
        "pin_memory_device",
        "timeout",
        "multiprocessing_context",
        "prefetch_factor",
        "persistent_workers",
    ):
        assert getattr(made, name) == getattr(loader, name)
    assert alone.pin_memory
    assert alone.num_workers == 0


class Renamed(DataLoader[Any]):
    """Has nothing of its own."""


class Reversed(DataLoader[Any]):
    def __iter__(self) -> Any:
        return iter(list(super().__iter__())[::-1])


class Pipe(IterDataPipe[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(())


def test_a_loader_that_does_something_else_is_refused() -> None:
    """What a subclass changes would be lost without a word."""
    check_loader(Renamed(Numbers()))
    with pytest.raises(DataError, match=r"Reversed overrides DataLoader\.__iter__"):
        check_loader(Reversed(Numbers()))
    with pytest.raises(DataError, match="data pipes"):
        check_loader(DataLoader(Pipe()))
