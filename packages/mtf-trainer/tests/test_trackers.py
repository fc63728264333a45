from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mtf_trainer.errors import CallbackError
from mtf_trainer.trackers import Tracker, Trackers, WandbTracker


class Memory:
    """A tracker that keeps what it is told."""

    def __init__(self, seen: list[Any] | None = None) -> None:
        self.seen: list[Any] = [] if seen is None else seen
        self.rows: dict[int, dict[str, float]] = {}

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        self.rows.setdefault(step, {}).update(values)
        self.seen.append((self, "metrics"))

    def log_params(self, params: Mapping[str, Any]) -> None:
        self.seen.append((self, "params", dict(params)))

    def log_artifact(self, path: Path) -> None:
        self.seen.append((self, "artifact", path))

    def rewind(self, step: int) -> None:
        self.rows = {at: row for at, row in self.rows.items() if at <= step}

    def close(self) -> None:
        self.seen.append((self, "closed"))


class Stateful(Memory):
    """Remembers a number."""

    def __init__(self, number: Any = 0) -> None:
        super().__init__()
        self.number = number

    def state_dict(self) -> dict[str, Any]:
        return {"number": self.number}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.number = state["number"]


class Failing:
    """Raises at everything."""

    def _fail(self, *_: object) -> None:
        message = "no network"
        raise ConnectionError(message)

    log_metrics = log_params = log_artifact = rewind = close = _fail


def test_every_tracker_is_told_in_order() -> None:
    """Each call reaches each tracker, with what was handed over."""
    seen: list[Any] = []
    first, second = Memory(seen), Memory(seen)
    trackers = Trackers([first, second])

    trackers.log_params({"lr": 0.1})
    trackers.log_metrics({"loss": 1.0}, 1)
    trackers.log_metrics({"loss": 2.0}, 2)
    trackers.log_artifact(Path("a.ckpt"))
    trackers.rewind(1)
    trackers.close()

    told: list[tuple[Any, ...]] = [("params", {"lr": 0.1}), ("metrics",), ("metrics",)]
    told += [("artifact", Path("a.ckpt")), ("closed",)]
    assert seen == [(tracker, *what) for what in told for tracker in (first, second)]
    assert first.rows == second.rows == {1: {"loss": 1.0}}
    assert len(trackers) == 2


def test_a_recording_tracker_fits_the_protocol() -> None:
    """A class that never heard of this package is a tracker, also to a type checker."""
    tracker: Tracker = Memory()

    Trackers([tracker]).log_metrics({"loss": 1.0}, 5)


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("log_metrics", ({}, 1)),
        ("log_params", ({},)),
        ("log_artifact", (Path("a"),)),
        ("rewind", (1,)),
    ],
)
def test_an_error_names_the_tracker_and_the_phase(
    method: str, arguments: tuple[Any, ...]
) -> None:
    """Whichever method fails, class and phase are data of the error."""
    trackers = Trackers([Memory(), Failing()], where=lambda: "TRAIN_BATCH_END")

    with pytest.raises(CallbackError) as caught:
        getattr(trackers, method)(*arguments)

    error = caught.value
    assert (error.callback, error.phase) == ("Failing", "TRAIN_BATCH_END")
    assert error.problem == "ConnectionError: no network"
    assert isinstance(error.__cause__, ConnectionError)


def test_all_are_closed_though_some_fail() -> None:
    """The first failure is raised, the second is told with it, the last is closed."""
    last = Memory()

    with pytest.raises(CallbackError, match="Failing failed in close") as caught:
        Trackers([Failing(), Failing(), last]).close()

    assert len(caught.value.__notes__) == 1
    assert last.seen == [(last, "closed")]


@pytest.mark.parametrize(
    ("tracker", "told"),
    [
        (Memory, "Memory is a class: pass an instance"),
        (object(), r"object is no tracker: it has no log_metrics\(\)"),
        (
            type("Half", (Memory,), {"rewind": None})(),
            r"no tracker: it has no rewind\(\)",
        ),
        (
            type("Saves", (Memory,), {"state_dict": lambda _: {}})(),
            "Saves has state_dict and no load_state_dict",
        ),
    ],
)
def test_what_is_no_tracker_is_refused(tracker: object, told: str) -> None:
    """What is missing is named when the trainer is made, not at the first line."""
    with pytest.raises(TypeError, match=told):
        Trackers([tracker])


def test_states_find_their_trackers() -> None:
    """By class and order, whatever came or went between; what has none begins anew."""
    saved = Trackers([Stateful(1), Memory(), Stateful(2)]).state_dict()
    saved = json.loads(json.dumps(saved))
    one, two, three = Stateful(), Stateful(), Stateful()

    Trackers([Failing(), one, Memory(), two, three]).load_state_dict(saved)

    assert (one.number, two.number, three.number) == (1, 2, 0)


@pytest.mark.parametrize("state", [[], None, "abc", [1], [{}]])
def test_without_a_state_all_begin_anew(state: object) -> None:
    """Another process, or another run, has nothing to give back."""
    tracker = Stateful(5)

    Trackers([tracker]).load_state_dict(state)
    Trackers([]).load_state_dict(Trackers([tracker]).state_dict())

    assert tracker.number == 5


def test_a_tracker_that_lost_its_state_is_left_alone() -> None:
    """A class that has no state any more is not handed one."""
    plain = type("Stateful", (Memory,), {})()
    plain.__class__.__qualname__ = "Stateful"

    Trackers([plain]).load_state_dict(Trackers([Stateful(1)]).state_dict())


def test_a_state_that_is_not_plain_names_the_tracker() -> None:
    """What a checkpoint cannot hold is told when it is saved."""
    with pytest.raises(CallbackError, match="Stateful failed in state_dict: TypeError"):
        Trackers([Stateful(object())]).state_dict()


def test_a_state_that_is_not_taken_names_the_tracker() -> None:
    """So is what a tracker does not load."""
    with pytest.raises(CallbackError, match="Stateful failed in load_state_dict: KeyErr"):
        Trackers([Stateful()]).load_state_dict([{"type": "Stateful", "state": {}}])


class Config(dict[str, Any]):
    """As wandb's: a changed value must be allowed."""

    def update(self, values: dict[str, Any], allow_val_change: bool = False) -> None:  # type: ignore[override] # noqa: FBT001, FBT002 - wandb's own signature
        changed = {k for k in self.keys() & values.keys() if self[k] != values[k]}
        assert allow_val_change or not changed
        super().update(values)


class Run:
    """What wandb.init returns, as its documentation describes it.

    Values of a step below the current one are ignored; those of the current one are
    merged into it.
    """

    def __init__(self, rows: dict[int, dict[str, float]] | None = None) -> None:
        self.rows = {} if rows is None else rows
        # A run that is resumed takes the step after its last.
        self.step = max(self.rows) + 1 if self.rows else 0
        self.ignored: list[int] = []
        self.config = Config()
        self.saved: list[tuple[str, str, str]] = []
        self.finished = 0

    def log(self, data: dict[str, Any], step: int) -> None:
        if step < self.step:
            self.ignored.append(step)
            return
        self.step = step
        self.rows.setdefault(step, {}).update(data)

    def save(self, glob_str: str, base_path: str, policy: str) -> None:
        self.saved.append((glob_str, base_path, policy))

    def finish(self) -> None:
        self.finished += 1


def log(tracker: WandbTracker, steps: range, loss: float = 1.0) -> None:
    """Log a line for each of *steps*."""
    for step in steps:
        tracker.log_metrics({"loss": loss}, step)


def test_wandb_is_told_everything() -> None:
    """Metrics, settings (changed ones as well) and files reach the run."""
    run = Run()
    tracker = WandbTracker(run)

    log(tracker, range(1, 3))
    tracker.log_metrics({"val/loss": 3.0}, 2)
    tracker.log_params({"lr": 0.1})
    tracker.log_params({"lr": 0.2, "seed": 0})
    tracker.log_artifact(Path("runs/a[1]/best.ckpt"))
    tracker.close()

    assert run.rows == {1: {"loss": 1.0}, 2: {"loss": 1.0, "val/loss": 3.0}}
    assert run.config == {"lr": 0.2, "seed": 0}
    assert run.saved == [("runs/a[[]1]/best.ckpt", "runs/a[1]", "now")]
    assert run.finished == 0
    assert tracker.run is run


def test_wandb_keeps_what_it_has_when_the_run_goes_back() -> None:
    """Without reopen: nothing is sent that would be ignored, and one warning says so."""
    run = Run()
    tracker = WandbTracker(run)
    log(tracker, range(1, 11))

    with pytest.warns(UserWarning, match="cannot be rewound to step 4.*step 10"):
        tracker.rewind(4)
    log(tracker, range(5, 9), loss=2.0)
    tracker.rewind(6)
    log(tracker, range(7, 12), loss=3.0)

    assert run.ignored == []
    losses = [run.rows[step]["loss"] for step in range(1, 12)]
    assert losses == [1.0] * 9 + [3.0] * 2


@pytest.mark.parametrize(("back_to", "tenth"), [(9, 2.0), (10, 1.0)])
def test_wandb_loses_nothing_by_going_back_one_step(back_to: int, tenth: float) -> None:
    """Going back to the last step or the one before needs no warning: it is replaced."""
    run = Run()
    tracker = WandbTracker(run)
    log(tracker, range(1, 11))

    tracker.rewind(back_to)
    log(tracker, range(back_to + 1, 12), loss=2.0)

    assert run.ignored == []
    assert [run.rows[step]["loss"] for step in (10, 11)] == [tenth, 2.0]


def test_wandb_in_a_new_process_knows_how_far_the_run_was() -> None:
    """A run resumed on the server says so itself; a clean end needs no warning."""
    first = Run()
    log(WandbTracker(first), range(1, 11))
    again = Run(first.rows)
    tracker = WandbTracker(again)

    tracker.rewind(10)
    with pytest.warns(UserWarning, match="cannot be rewound to step 7"):
        tracker.rewind(7)
    log(tracker, range(8, 13))

    assert again.ignored == []
    assert set(again.rows) == set(range(1, 13))


def test_wandb_rewinds_what_it_may_reopen() -> None:
    """With reopen the run is finished and cut off there, and what follows is sent."""
    run = Run()
    opened: list[Run] = []

    def reopen(step: int) -> Run:
        rows = {at: row for at, row in run.rows.items() if at <= step}
        opened.append(Run(rows))
        return opened[-1]

    tracker = WandbTracker(run, reopen=reopen)
    log(tracker, range(1, 11))

    tracker.rewind(4)
    log(tracker, range(5, 8), loss=2.0)
    tracker.rewind(7)
    tracker.close()
    tracker.close()

    (new,) = opened
    assert tracker.run is new
    assert run.finished == new.finished == 1
    assert [new.rows[step]["loss"] for step in range(1, 8)] == [1.0] * 4 + [2.0] * 3
    assert new.ignored == []


def test_a_run_that_does_not_say_its_step() -> None:
    """Where the run has no number of steps, what was sent here counts."""
    run = Run()
    run.step = None  # type: ignore[assignment]
    tracker = WandbTracker(run)

    tracker.rewind(3)

    assert tracker.run is run


def test_what_is_no_run_is_refused() -> None:
    """The module wandb itself, or a name, is told at once."""
    with pytest.raises(
        TypeError, match=r"'my-run' is no run of wandb: it has no log\(\)"
    ):
        WandbTracker("my-run")
