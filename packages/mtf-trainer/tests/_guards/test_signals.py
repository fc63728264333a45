from __future__ import annotations

import signal
import subprocess
import sys
import threading
from types import FrameType

import pytest

from mtf_trainer._guards.signals import EXIT_RESUME, StopSignals


class Clock:
    """Says what it is told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signal_is_only_noted(number: signal.Signals) -> None:
    """The first signal is kept, does nothing else, and the old handler is put back."""
    before = signal.getsignal(number)

    with StopSignals() as signals:
        signal.raise_signal(number)
        signal.raise_signal(signal.SIGTERM)
        assert signals.received == number
        assert signals.wanted

    assert signal.getsignal(number) == before


def test_second_interrupt_raises_at_once() -> None:
    """A user who presses Ctrl-C twice is not kept waiting."""
    with StopSignals():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_second_of_the_same_exits_at_once(number: signal.Signals) -> None:
    """The same signal again ends the process with 128 and its number."""
    clock = Clock()
    with StopSignals(clock=clock):
        signal.raise_signal(number)
        clock.now += 3
        with pytest.raises(SystemExit) as caught:
            signal.raise_signal(number)

    assert caught.value.code == 128 + number


def test_same_request_by_two_ways_counts_once() -> None:
    """Slurm and torchrun both pass TERM on: two within 2 s are one."""
    clock = Clock()
    with StopSignals(clock=clock) as signals:
        signal.raise_signal(signal.SIGTERM)
        clock.now += 1.9
        signal.raise_signal(signal.SIGTERM)
        assert signals.received == signal.SIGTERM


def test_other_signal_is_not_a_second_one() -> None:
    """TERM after USR1, as Slurm sends them, is noted; so is the first INT after both."""
    clock = Clock()
    with StopSignals(clock=clock) as signals:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)
            clock.now += 60
        assert signals.received == signal.SIGUSR1


def test_program_can_ask_too() -> None:
    """A request stops like a signal, names none, and needs no handler."""
    with StopSignals(enabled=False) as signals:
        before = signals.wanted
        signals.request()
        assert (before, signals.wanted) == (False, True)
        assert signals.received is None
    assert EXIT_RESUME == 75


def test_previous_handler_runs_too() -> None:
    """A handler of the program's own hears each signal, and stays its own."""
    seen: list[int] = []
    clock = Clock()

    def own(number: int, _: FrameType | None) -> None:
        seen.append(number)

    before = signal.signal(signal.SIGUSR1, own)
    try:
        with StopSignals(clock=clock) as signals:
            signal.raise_signal(signal.SIGUSR1)
            clock.now += 3
            with pytest.raises(SystemExit):
                signal.raise_signal(signal.SIGUSR1)
        assert signals.received == signal.SIGUSR1
        assert seen == [signal.SIGUSR1] * 2
        assert signal.getsignal(signal.SIGUSR1) is own
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_ignored_signal_stays_ignored() -> None:
    """What the process was told to ignore does not stop it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            signal.raise_signal(signal.SIGINT)
            assert signals.received is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_missing_signal_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a system has no USR1, the others are handled all the same."""
    monkeypatch.delattr(signal, "SIGUSR1")

    with StopSignals() as signals:
        signal.raise_signal(signal.SIGTERM)

    assert signals.received == signal.SIGTERM


def test_disabled_or_in_a_thread_nothing_is_set() -> None:
    """Switched off, or outside the main thread, no handler is touched."""
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def in_thread() -> None:
        with StopSignals():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    with StopSignals(enabled=False):
        seen.append(signal.getsignal(signal.SIGTERM))

    assert seen == [before, before]


FORK = """
import os, signal, sys
from mtf_trainer._guards.signals import StopSignals
with StopSignals() as signals:
    child = os.fork()
    if child == 0:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGUSR1)
        os.write(1, b"alive")
        signal.raise_signal(signal.SIGTERM)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGTERM, status
    assert signals.received is None
"""


def test_forked_workers_leave_the_decision_to_their_parent() -> None:
    """In a forked child INT and USR1 do nothing, and TERM ends it as ever."""
    done = subprocess.run(
        [sys.executable, "-c", FORK], check=True, timeout=60, capture_output=True
    )

    assert done.stdout == b"alive"


def test_another_process_only_inherits(monkeypatch: pytest.MonkeyPatch) -> None:
    """With another process id than that of the ``with`` block, nothing is noted."""
    with StopSignals() as signals:
        monkeypatch.setattr(signals, "_pid", -2)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert not signals.wanted
