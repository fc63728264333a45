from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch.distributed as dist
from lightning.fabric import Fabric
from torch._C._distributed_c10d import HashStore, PrefixStore

from mtf_trainer._ranks import rank_errors
from mtf_trainer._ranks.rank_errors import EXIT_RANK_FAILED, RankErrors
from mtf_trainer.errors import RankError

RunPair = Callable[..., list[tuple[int, str]]]


@pytest.fixture(scope="module")
def run_pair(launch: Callable[..., Any]) -> RunPair:
    """Return what runs a scenario in two processes."""
    spec = spec_from_file_location("ranks", Path(__file__).parents[1] / "run_ranks.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return partial(module.run_pair, launch)


@pytest.mark.slow
def test_collective_that_ends_raises_the_first_error(
    run_pair: RunPair, tmp_path: Path
) -> None:
    """With gloo both end by an exception, and the traceback is that of process 1."""
    (code, told), (failed, _) = run_pair("lost", tmp_path, "gloo", check=False)

    assert (code, failed) == (1, 1)
    assert "RankError: process 1 failed:" in told
    assert "ValueError: planted in process 1!!!" in told
    assert "in step\n" in told
    first_line = next(line for line in told.splitlines() if "Error" in line)
    assert "RankError" in first_line
    assert "it showed as: " in told
    assert len(told) < 30_000


@pytest.mark.slow
def test_process_that_hangs_is_ended(run_pair: RunPair, tmp_path: Path) -> None:
    """One that never comes back prints the traceback of process 1 and is gone."""
    (code, told), (failed, _) = run_pair("lost", tmp_path, "hang", check=False)

    assert (code, failed) == (EXIT_RANK_FAILED, 1)
    assert "process 0 stops since process 1 failed:\nTraceback" in told
    assert "ValueError: planted in process 1" in told


@pytest.mark.slow
def test_holder_of_the_store_is_heard_too(run_pair: RunPair, tmp_path: Path) -> None:
    """Process 0, with which the store goes, waits until the other has its traceback."""
    (failed, _), (code, told) = run_pair("lost", tmp_path, "first", check=False)

    assert (failed, code) == (1, 1)
    assert "RankError: process 0 failed:" in told
    assert "ValueError: planted in process 0" in told


@pytest.mark.slow
def test_error_of_all_reaches_all(run_pair: RunPair, tmp_path: Path) -> None:
    """What every process raises alike is not replaced by another's."""
    for code, told in run_pair("lost", tmp_path, "alike", check=False):
        assert code == 1
        assert "CheckpointWriteError: " in told
        assert "RankError" not in told


class Pair:
    """Two sides of a block in one process, over a store that threads can share."""

    def __init__(self) -> None:
        self.store = HashStore()

    def side(self, rank: int, **settings: float) -> RankErrors:
        fabric = cast(Fabric, SimpleNamespace(global_rank=rank, world_size=2))
        return RankErrors(fabric, poll_s=0.01, **settings)


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    """Give the real store that `Pair` uses; each side counts the same block."""
    pair = Pair()
    clones = SimpleNamespace(clone=lambda: pair.store)
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: clones)
    monkeypatch.setattr(rank_errors, "_blocks", repeat(0))
    monkeypatch.setattr(rank_errors, "_TOLD_WITHIN_S", 0.1)
    yield pair
    assert not [t for t in threading.enumerate() if t.name == "mtf-rank-errors"]


def wait_until(condition: Callable[[], Any]) -> None:
    """Wait for *condition*, or fail."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        os.sched_yield()


def fail_in(block: RankErrors, error: BaseException) -> None:
    """Leave *block* by *error*."""
    with block:
        raise error


def fail(pair: Pair, rank: int) -> None:
    """Leave a block in process *rank* by an error."""
    with pytest.raises(ValueError, match="planted"):
        fail_in(pair.side(rank), ValueError("planted"))


def test_block_that_ends_well_leaves_nothing(pair: Pair) -> None:
    """The thread ends with the block, and nothing was posted."""
    with pair.side(0), pair.side(1):
        assert [t.name for t in threading.enumerate()].count("mtf-rank-errors") == 2

    assert not pair.store.check(["mtf_trainer/errors/0/first"])


def test_last_one_to_leave_raises_as_well(pair: Pair) -> None:
    """A process that would go on alone hears of the failure as it leaves its block."""
    side = pair.side(0, grace_s=60)

    def leave() -> None:
        with side:
            fail(pair, 1)
            wait_until(lambda: side._failure)

    with pytest.raises(RankError, match="planted") as caught:
        leave()

    assert caught.value.rank == 1
    assert caught.value.__suppress_context__


def test_error_of_its_own_stays(pair: Pair) -> None:
    """What cannot have come from a collective is raised as it is, failure or not."""
    fail(pair, 1)

    with pytest.raises(KeyError):
        fail_in(pair.side(0), KeyError())


def test_error_of_a_collective_is_replaced(pair: Pair) -> None:
    """What gloo raises when a member is gone gives way to that member's error."""
    fail(pair, 1)

    with pytest.raises(RankError, match="planted") as caught:
        fail_in(pair.side(0), RuntimeError("connection closed by peer"))

    assert caught.value.__notes__ == [
        "in process 0 it showed as: connection closed by peer"
    ]


def test_one_that_does_not_leave_is_ended(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After the grace the process ends with the documented code, having said why."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)

    def hang() -> None:
        with pair.side(0, grace_s=0.01):
            fail(pair, 1)
            wait_until(lambda: codes)

    with pytest.raises(RankError):
        hang()

    assert codes == [EXIT_RANK_FAILED] == [70]
    told = capsys.readouterr().err
    assert told.startswith("process 0 stops since process 1 failed:\nTraceback")
    assert told.endswith("ValueError: planted\n")


def test_lost_store_is_no_error(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the process that holds the store is gone, one's own error is what counts."""

    def gone(*_: object) -> bool:
        message = "gone"
        raise dist.DistNetworkError(message)

    monkeypatch.setattr(PrefixStore, "check", gone)
    monkeypatch.setattr(PrefixStore, "set", gone)
    side = pair.side(0)

    def fail_late() -> None:
        with side:
            wait_until(lambda: not side._watcher.is_alive())
            message = "planted"
            raise ValueError(message)

    with pytest.raises(ValueError, match="planted"):
        fail_late()


def test_one_process_does_nothing() -> None:
    """Alone there is no thread, and an error is what it is."""
    threads = threading.active_count()
    errors = RankErrors(Fabric(accelerator="cpu", devices=1))

    with errors:
        assert threading.active_count() == threads
    with pytest.raises(RuntimeError, match="planted"):
        fail_in(errors, RuntimeError("planted"))


def test_long_traceback_keeps_its_ends() -> None:
    """The store holds a bounded text: where it began, and the error itself."""
    text = rank_errors._bounded("a" * 10_000 + "b" * 10_000 + "c" * 10_000)

    assert text.startswith("a" * 4_000)
    assert text.endswith("c" * 10_000)
    assert "14000 characters are left out" in text
    assert rank_errors._bounded("short") == "short"
