from __future__ import annotations

import json
import math
import os
import resource
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mtf_trainer._guards.guard import Guard, rss_bytes
from mtf_trainer.config import GuardSettings, Reaction


def told(guard: Guard, losses: list[float], *, first: int = 1) -> list[str | None]:
    """Return the reaction to each of *losses*, one line a step."""
    verdicts = [
        guard.check_line(step, loss, grad_norm=1.0)
        for step, loss in enumerate(losses, first)
    ]
    return [None if verdict is None else verdict.reaction for verdict in verdicts]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_found(value: float) -> None:
    """Loss and gradient norm are named with their value, and the step is told."""
    guard = Guard(GuardSettings())

    loss = guard.check_line(7, value, grad_norm=1.0)
    norm = guard.check_line(8, 1.0, grad_norm=value)

    assert loss is not None
    assert (loss.reaction, loss.step) == ("stop", 7)
    assert loss.message == f"the loss is {value}"
    assert norm is not None
    assert norm.message == f"the gradient norm is {value}"


def test_a_norm_that_is_not_known_is_no_fault() -> None:
    """Without clipping no norm is reported, and none is judged."""
    assert Guard(GuardSettings()).check_line(1, 1.0, grad_norm=None) is None


def test_what_is_to_be_ignored_is_ignored() -> None:
    """With ignore everywhere nothing is ever said."""
    guard = Guard(GuardSettings(on_nonfinite="ignore", on_explosion="ignore"))

    assert told(guard, [1.0] * 6 + [1e9, math.nan, 1.0]) == [None] * 9
    assert guard.memory(500, 10**12) is None
    assert not guard.wants_memory


def test_skip_judges_steps_and_passes_over_lines() -> None:
    """With skip a step is judged when asked, and a line that holds it is not."""
    guard = Guard(GuardSettings(on_nonfinite="skip"))

    verdict = guard.check_step(3, math.nan, grad_norm=None)

    assert guard.wants_each_step
    assert not Guard(GuardSettings()).wants_each_step
    assert verdict is not None
    assert verdict.reaction == "skip"
    assert guard.check_line(3, math.nan, grad_norm=None) is None
    assert guard.state_dict() == {"losses": []}


def test_explosion_needs_five_lines() -> None:
    """A leap among the first five lines is the beginning of a training, no explosion."""
    guard = Guard(GuardSettings(on_explosion="stop"))

    assert told(guard, [1.0, 1.0, 1.0, 1.0, 99.0, 1.0, 99.0]) == [None] * 6 + ["stop"]


def test_explosion_is_more_than_the_factor_times_the_median() -> None:
    """Exactly the factor is none; the median, unlike the mean, forgives one outlier."""
    guard = Guard(GuardSettings(on_explosion="rollback", explosion_factor=4.0))
    told(guard, [2.0, 2.0, 2.0, 2.0, 7.9])

    assert told(guard, [8.0]) == [None]
    assert told(guard, [8.1]) == ["rollback"]


def test_an_explosion_does_not_count_among_the_lines_before() -> None:
    """What was refused does not make the next one look usual."""
    guard = Guard(GuardSettings(on_explosion="stop"))

    assert told(guard, [1.0] * 5 + [99.0] * 20) == [None] * 5 + ["stop"] * 20


def test_only_the_last_twenty_lines_count() -> None:
    """A loss that was usual long ago is an explosion now."""
    guard = Guard(GuardSettings(on_explosion="stop"))
    told(guard, [100.0] * 20 + [50.0, 25.0] + [9.0] * 18)

    assert told(guard, [100.0]) == ["stop"]


@pytest.mark.parametrize(
    ("usual", "loss", "found"),
    [(-5.0, -4.0, False), (-5.0, 39.9, False), (-5.0, 40.1, True), (0.0, 1.0, False)],
)
def test_losses_at_and_below_zero(usual: float, loss: float, *, found: bool) -> None:
    """A loss below 0 may rise by factor - 1 times its size; a median of 0 says nothing."""
    guard = Guard(GuardSettings(on_explosion="stop"))
    told(guard, [usual] * 5)

    assert told(guard, [loss]) == ["stop" if found else None]


def test_after_too_many_rollbacks_it_stops() -> None:
    """The next one after max_rollbacks says stop and why, wherever it goes on from."""
    guard = Guard(GuardSettings(on_nonfinite="rollback", max_rollbacks=2))

    assert told(guard, [math.nan] * 2) == ["rollback"] * 2
    verdict = guard.check_line(3, math.nan, grad_norm=None)
    assert verdict is not None
    assert verdict.reaction == "stop"
    assert verdict.message == "the loss is nan; it was rolled back 2 times already"

    guard.begin(1)
    assert told(guard, [math.nan]) == ["stop"]


def test_rolling_back_does_not_take_back_the_count() -> None:
    """The state of a checkpoint, loaded, leaves the rollbacks counted so far."""
    guard = Guard(GuardSettings(on_nonfinite="rollback", max_rollbacks=1))
    saved = guard.state_dict()
    assert told(guard, [math.nan]) == ["rollback"]

    guard.load_state_dict(saved)

    assert told(guard, [math.nan]) == ["stop"]


@pytest.mark.parametrize("stop_at", range(12))
def test_a_guard_goes_on_from_its_state(stop_at: int) -> None:
    """Saved as plain data anywhere and loaded, it judges as if it was never stopped."""
    settings = GuardSettings(on_explosion="stop", explosion_factor=2.0)
    losses = [1.0, 1.5, 0.5, 1.0, 1.25, 2.4, 1.0, 2.6, 1.1, 3.0, 1.0, 2.01]
    straight = told(Guard(settings), losses)
    first, second = Guard(settings), Guard(settings)

    before = told(first, losses[:stop_at])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))

    assert before + told(second, losses[stop_at:], first=stop_at + 1) == straight
    assert "stop" in straight


@pytest.mark.parametrize(
    "losses", [None, "abc", ["1.0"], [math.nan], [1], (1.0,), {"1.0": 1}]
)
def test_a_state_of_another_form_is_refused(losses: object) -> None:
    """What is no list of finite numbers raises, and nothing is taken over."""
    guard = Guard(GuardSettings())
    told(guard, [1.0, 2.0])

    with pytest.raises(ValueError, match="not a state of the guard"):
        guard.load_state_dict({"losses": losses})

    assert guard.state_dict() == {"losses": [1.0, 2.0]}


def test_memory_is_compared_with_what_the_first_steps_left() -> None:
    """The usual is taken at the first look 100 steps into the fit, and never moves."""
    guard = Guard(GuardSettings(on_memory_growth="stop"))
    guard.begin(1000)
    mib = 2**20

    assert guard.memory(1050, 900 * mib) is None
    assert guard.memory(1100, 100 * mib) is None
    assert guard.memory(1150, 199 * mib) is None
    verdict = guard.memory(1200, 200 * mib)

    assert guard.wants_memory
    assert verdict is not None
    assert verdict.reaction == "stop"
    assert verdict.message == (
        "this process uses 200 MiB, at least 2 times the 100 MiB after its first 100 steps"
    )


def test_memory_that_is_not_known_is_no_fault() -> None:
    """Where the system does not say, nothing is judged and nothing is remembered."""
    guard = Guard(GuardSettings(on_memory_growth="stop"))

    assert guard.memory(100, None) is None
    assert guard.memory(200, 5) is None
    assert guard.memory(300, 10) is not None


@pytest.mark.parametrize("reaction", ["stop", "rollback"])
def test_each_reaction_to_an_explosion_is_given(reaction: Reaction) -> None:
    """What the settings say is what the verdict says."""
    guard = Guard(GuardSettings(on_explosion=reaction))
    told(guard, [1.0] * 5)

    assert told(guard, [100.0]) == [reaction]


def test_memory_of_this_process_is_measured() -> None:
    """Pages that are touched are counted."""
    before = rss_bytes()
    block = bytearray(b"x") * (64 * 2**20)
    after = rss_bytes()

    assert before is not None
    assert after is not None
    assert after - before > len(block) / 2


@pytest.mark.parametrize("content", [None, "", "12 notanumber 3"])
def test_memory_without_statm_is_the_peak(tmp_path: Path, content: str | None) -> None:
    """Where the file is missing or of another form, the most ever resident is told."""
    statm = tmp_path / "statm"
    if content is not None:
        statm.write_text(content, "utf-8")

    peak = rss_bytes(statm)

    assert peak is not None
    assert peak > os.sysconf("SC_PAGE_SIZE") * 256


@pytest.mark.parametrize(("system", "peak"), [("darwin", 7), ("linux", 7 * 1024)])
def test_unit_of_the_peak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str, peak: int
) -> None:
    """On macOS the peak comes in bytes; elsewhere in units of 1024."""
    usage = SimpleNamespace(ru_maxrss=7)
    monkeypatch.setattr(resource, "getrusage", lambda _: usage)
    monkeypatch.setattr(sys, "platform", system)

    assert rss_bytes(tmp_path / "missing") == peak


def test_memory_is_unknown_without_any_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With neither file nor module, the answer is None."""
    monkeypatch.setitem(sys.modules, "resource", None)

    assert rss_bytes(tmp_path / "missing") is None
