from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from mtf_trainer._guards.watchdog import EXIT_HANG, Watchdog

LONG_S = 1000.0


def watchdog(describe: Callable[[], str] = str) -> Watchdog:
    """Return one that ends nothing."""
    return Watchdog(LONG_S, describe=describe, end=lambda _: None)


def look(dog: Watchdog, times: int, *, every_s: float = LONG_S / 20) -> bool:
    """Let *dog* look so often; tell whether it found a hang."""
    return any(dog._hangs(dog._looked_at + every_s) for _ in range(times))


def run(code: str) -> subprocess.CompletedProcess[str]:
    """Run *code* in a process of its own to its end."""
    return subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        timeout=60,
        capture_output=True,
        encoding="utf-8",
    )


def is_gone(pid: int) -> bool:
    """Tell whether no process *pid* runs; one that waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2][1] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_silence_as_long_as_the_deadline_is_a_hang() -> None:
    """One look before the deadline finds nothing, the look at the deadline does."""
    dog = watchdog()

    assert not look(dog, 19)
    assert look(dog, 1)


def test_a_beat_starts_the_deadline_anew() -> None:
    """After a beat the whole deadline has to pass again."""
    dog = watchdog()
    assert not look(dog, 19)

    dog.beat()

    assert not look(dog, 20)
    assert look(dog, 1)


def test_a_paused_watch_finds_nothing() -> None:
    """Inside pause, nested as well, no silence is too long; afterwards it counts anew."""
    dog = watchdog()

    with dog.pause():
        with dog.pause():
            assert not look(dog, 50)
        assert not look(dog, 50)

    assert not look(dog, 20)
    assert look(dog, 1)


def test_a_process_that_was_stopped_does_not_hang() -> None:
    """A look that comes very late, as after SIGSTOP, counts for two looks only."""
    dog = watchdog()

    assert not look(dog, 9, every_s=100 * LONG_S)
    assert look(dog, 1, every_s=100 * LONG_S)


def test_ending_tells_where_and_every_stack(capfd: pytest.CaptureFixture[str]) -> None:
    """What is written names the place, this process and where each thread stands."""
    ended: list[int] = []
    entered, release = threading.Event(), threading.Event()

    def stands_here() -> None:
        entered.set()
        release.wait()

    other = threading.Thread(target=stands_here)
    other.start()
    entered.wait()
    try:
        with Watchdog(LONG_S, describe=lambda: "epoch 2", end=ended.append) as dog:
            dog._end_process()
    finally:
        release.set()
        other.join()

    told = capfd.readouterr().err
    assert ended == [EXIT_HANG]
    assert "no step for 1000 s (epoch 2)" in told
    assert f"process {os.getpid()}; worker processes: none" in told
    assert "stands_here" in told
    assert "test_ending_tells_where_and_every_stack" in told


def test_ending_goes_on_when_the_description_fails(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """An error in describe is told in its place, with the stacks."""

    def fail() -> str:
        message = "no phase"
        raise ValueError(message)

    with watchdog(fail) as dog:
        dog._end_process()

    told = capfd.readouterr().err
    assert "where, is not known: ValueError('no phase')" in told
    assert "_tell" in told


def test_stderr_without_a_file_is_replaced_by_the_process_own(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where sys.stderr is no file, as in a notebook, what is told goes to file 2."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())

    with watchdog() as dog:
        dog._end_process()

    assert "no step for 1000 s" in capfd.readouterr().err


def test_watching_leaves_nothing_behind() -> None:
    """A run that ends in time ends the thread too, by whichever way it leaves."""
    before = set(threading.enumerate())
    with watchdog() as dog:
        assert len(set(threading.enumerate()) - before) == 1
        dog.beat()
    with suppress(RuntimeError), watchdog():
        raise RuntimeError

    assert set(threading.enumerate()) == before


WORKERS = """
import multiprocessing, threading, time
from mtf_trainer._guards import watchdog
watchdog._LOOKS = 10**6
watchdog.Watchdog._hangs = lambda *_: True
fork = multiprocessing.get_context("fork")
workers = [fork.Process(target=time.sleep, args=(60,), daemon=daemon, name=name)
    for name, daemon in (("loader", True), ("other", False))]
for worker in workers:
    worker.start()
ended = threading.Event()
with watchdog.Watchdog(1000, describe=str, end=lambda code: ended.set()):
    print(ended.wait(60))
workers[0].join(60)
print(workers[0].exitcode, workers[1].is_alive(), workers[0].pid)
workers[1].kill()
"""


def test_the_thread_ends_the_process_with_its_workers() -> None:
    """As soon as a look finds a hang, daemon workers are killed; other children stay."""
    done = run(WORKERS)

    found, killed = done.stdout.splitlines()
    assert found == "True"
    code, other_lives, pid = killed.split()
    assert (code, other_lives) == ("-9", "True")
    assert f"loader is {pid}" in done.stderr
    assert "other is" in done.stderr


HANG = """
import multiprocessing, sys, threading, time
from mtf_trainer._guards.watchdog import Watchdog
worker = multiprocessing.get_context("fork").Process(
    target=time.sleep, args=(60,), daemon=True, name="loader")
worker.start()
print("worker", worker.pid)
with Watchdog(0.5, describe=lambda: "TRAIN_BATCH_LOAD, epoch 3, step 7") as dog:
    for _ in range(100):
        dog.beat()
    threading.Lock().acquire()
    never = threading.Lock()
    never.acquire()
    never.acquire()
"""


def test_a_process_that_hangs_is_ended() -> None:
    """A main thread waiting in C code for ever ends with the code, stacks and output."""
    done = run(HANG)

    assert done.returncode == EXIT_HANG
    assert "TRAIN_BATCH_LOAD, epoch 3, step 7" in done.stderr
    assert 'File "<string>", line 14 in <module>' in done.stderr
    worker = int(done.stdout.removeprefix("worker "))
    assert f"loader is {worker}" in done.stderr
    until = time.monotonic() + 30
    while not is_gone(worker):
        assert time.monotonic() < until, "a worker outlived the process"
        threading.Event().wait(0.01)


KEEPS_THE_LOCK = """
import ctypes
from mtf_trainer._guards.watchdog import Watchdog
with Watchdog(0.3, describe=lambda: "unused"):
    ctypes.PyDLL(None).sleep(600)
"""


def test_a_process_that_keeps_the_lock_of_python_is_ended() -> None:
    """Where no other thread of Python can run, the stacks come and the process ends."""
    done = run(KEEPS_THE_LOCK)

    assert done.returncode == 1
    assert 'File "<string>", line 5 in <module>' in done.stderr


ENDS_WELL = """
import signal
from mtf_trainer._guards.watchdog import Watchdog
with Watchdog(0.2, describe=str) as dog:
    with dog.pause():
        signal.sigtimedwait([], 1.0)
"""


def test_a_pause_longer_than_the_deadline_is_no_hang() -> None:
    """Known long work passes both the thread and the timer, and the process ends well."""
    done = run(ENDS_WELL)

    assert (done.returncode, done.stderr) == (0, "")


FULL_PIPE = """
import os, threading
from mtf_trainer._guards.watchdog import Watchdog
import mtf_trainer._guards.watchdog as module
module._TELL_S = 0.2
read, write = os.pipe()
os.set_blocking(write, False)
try:
    while True:
        os.write(write, bytes(4096))
except BlockingIOError:
    os.set_blocking(write, True)
os.dup2(write, 2)
with Watchdog(0.2, describe=str):
    threading.Event().wait()
"""


def test_a_stderr_that_nobody_reads_does_not_keep_it() -> None:
    """Where writing to stderr blocks for ever, the process ends all the same."""
    assert run(FULL_PIPE).returncode == EXIT_HANG
