from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest
import torch

from mtf_trainer._hooks import Hooks
from mtf_trainer.callbacks import EarlyStopping
from mtf_trainer.errors import CallbackError, CheckpointMismatchError
from mtf_trainer.phases import Phase

PATH = Path("run/checkpoints/epoch_001_step_000010.ckpt")


class Trainer:
    """Stands in a phase."""

    def __init__(self, phase: Phase = Phase.INIT) -> None:
        self.phase = phase


class Recorder:
    """Notes what it is called with."""

    def __init__(self, seen: list[Any]) -> None:
        self.seen = seen

    def on_train_batch_end(self, trainer: Trainer) -> None:
        self.seen.append((self, trainer.phase))

    def on_log(self, trainer: Trainer, row: dict[str, float]) -> None:
        self.seen.append((self, trainer.phase, row))


class Counter:
    """Remembers a tensor, and what else it is given."""

    def __init__(self, extra: Any = None) -> None:
        self.count = torch.zeros(2)
        self.extra = extra

    def on_train_batch_end(self, _trainer: Trainer) -> None:
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "extra": self.extra}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, self.extra = state["count"], state["extra"]


class Failing:
    """Raises what it is given."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_train_batch_backward(self, _trainer: Trainer) -> None:
        raise self.error

    def on_exception(self, _trainer: Trainer, _error: BaseException) -> None:
        raise self.error


def test_callbacks_are_called_in_their_order() -> None:
    """Each that listens to a phase gets the trainer, one after the other."""
    seen: list[Any] = []
    first, second = Recorder(seen), Recorder(seen)
    hooks = Hooks([first, Counter(), second])

    for phase in Phase:
        for hook in hooks.by_phase[phase]:
            hook(Trainer(phase))
    hooks.call("on_log", Trainer(Phase.EPOCH_END), {"loss": 1.0})

    assert seen == [
        (first, "TRAIN_BATCH_END"),
        (second, "TRAIN_BATCH_END"),
        (first, "EPOCH_END", {"loss": 1.0}),
        (second, "EPOCH_END", {"loss": 1.0}),
    ]


def test_a_phase_that_nobody_listens_to_has_nothing_to_call() -> None:
    """Every phase has an entry, and it is empty without a listener."""
    hooks = Hooks([Recorder([])])

    assert hooks.by_phase.keys() == set(Phase)
    assert [phase for phase, found in hooks.by_phase.items() if found] == [
        Phase.TRAIN_BATCH_END
    ]
    assert not any(Hooks([]).by_phase.values())


def test_an_error_names_the_callback_and_the_phase() -> None:
    """The error has both as data, and what was raised as its cause."""
    cause = ZeroDivisionError("by zero")
    (hook,) = Hooks([Failing(cause)]).by_phase[Phase.TRAIN_BATCH_BACKWARD]

    with pytest.raises(CallbackError) as caught:
        hook(Trainer(Phase.TRAIN_BATCH_BACKWARD))

    error = caught.value
    assert (error.callback, error.phase) == ("Failing", "TRAIN_BATCH_BACKWARD")
    assert error.problem == "on_train_batch_backward raised ZeroDivisionError: by zero"
    assert error.__cause__ is cause


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_a_request_to_end_passes(error: BaseException) -> None:
    """What ends a process is no failure of a callback."""
    (hook,) = Hooks([Failing(error)]).by_phase[Phase.TRAIN_BATCH_BACKWARD]

    with pytest.raises(type(error)) as caught:
        hook(Trainer())

    assert caught.value is error


def test_an_error_of_a_callback_further_inside_stays() -> None:
    """One that was named already keeps its name."""
    inner = CallbackError("Inner", "INIT", "told")
    (hook,) = Hooks([Failing(inner)]).by_phase[Phase.TRAIN_BATCH_BACKWARD]

    with pytest.raises(CallbackError) as caught:
        hook(Trainer())

    assert caught.value is inner


def test_failing_at_a_failure_does_not_hide_it() -> None:
    """What on_exception raises becomes a note of the error, and all are called."""
    failure = RuntimeError("the real one")
    hooks = Hooks([Failing(ValueError("one")), Failing(ValueError("two"))])

    hooks.call("on_exception", Trainer(Phase.INIT), failure)

    assert failure.__notes__ == [
        f"callback Failing failed in INIT: on_exception raised ValueError: {which}"
        for which in ("one", "two")
    ]


class Nested(Counter):
    """Holds callbacks of its own, one of which has a state that is not plain."""

    def on_fit_start(self, trainer: Trainer) -> None:
        Hooks([Failing(ValueError("inside"))]).by_phase[Phase.TRAIN_BATCH_BACKWARD][0](
            trainer
        )

    def state_dict(self) -> dict[str, Any]:
        return {"inside": Hooks([Counter(object())]).state_dict()}


def test_the_innermost_callback_is_named() -> None:
    """Where a callback holds callbacks, the one that failed is told."""
    hooks = Hooks([Nested()])

    with pytest.raises(CallbackError) as called:
        hooks.call("on_fit_start", Trainer())
    with pytest.raises(CallbackError) as saved:
        hooks.state_dict()

    assert called.value.callback == "Failing"
    assert saved.value.callback == "Counter"


def callback_with(**methods: Any) -> object:
    """Return an instance of a class ``Made`` with *methods*."""
    return type("Made", (), methods)()


def one(_self: object, _trainer: object) -> None:
    """Take what most hooks are given."""


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("on_train_batch_ends", "on_train_batch_end"),
        ("on_epoch_ended", "on_epoch_end"),
        ("on_batch_backward", "on_train_batch_backward"),
        ("on_fit_started", "on_fit_start"),
        ("on_", "on_"),
    ],
)
def test_a_name_that_is_no_hook_is_refused(name: str, near: str) -> None:
    """A slip of the pen is told, with the name that was meant."""
    with pytest.raises(TypeError, match=rf"Made\.{name} is no hook.*mean {near}"):
        Hooks([callback_with(**{name: one, "on_epoch_end": one})])


@pytest.mark.parametrize("kind", [staticmethod, classmethod])
def test_other_kinds_of_methods_are_found_too(kind: Any) -> None:
    """Static and class methods are called as methods are, and checked like them."""
    seen: list[Any] = []
    right = kind(lambda *args: seen.append(args[-1]))
    trainer = Trainer()

    Hooks([callback_with(on_fit_start=right)]).call("on_fit_start", trainer)

    assert seen == [trainer]
    with pytest.raises(TypeError, match="on_start is no hook"):
        Hooks([callback_with(on_start=kind(lambda *_: None))])


def two(_self: object, _trainer: object, _other: object) -> None:
    """Take one argument more."""


def named(_self: object, *, trainer: object) -> None:
    """Take it by name only."""


@pytest.mark.parametrize(
    ("name", "method", "told"),
    [
        ("on_epoch_end", two, r"must take \(trainer\), and takes \(_trainer"),
        ("on_epoch_end", named, r"must take \(trainer\), and takes \(\*, trainer"),
        ("on_log", one, r"must take \(trainer, row\), and takes \(_trainer"),
        ("on_checkpoint", one, r"must take \(trainer, path\)"),
    ],
)
def test_a_hook_with_other_arguments_is_refused(
    name: str, method: Any, told: str
) -> None:
    """It would fail at its first call, perhaps hours later: it is told at once."""
    with pytest.raises(TypeError, match=rf"Made\.{name} {told}"):
        Hooks([callback_with(**{name: method})])


def test_further_arguments_with_defaults_are_fine() -> None:
    """What can be called as documented is a hook, written in Python or not."""

    def on_log(_self: object, *args: object, **_: object) -> None:
        seen.append(args[-1])

    def on_fit_start(_self: object, trainer: object, more: int = 3) -> None:
        seen.append((trainer, more))

    seen: list[Any] = []
    callback: Any = callback_with(on_log=on_log, on_fit_start=on_fit_start)
    callback.on_epoch_end = seen.append
    callback.on_checkpoint = max
    hooks, trainer = Hooks([callback]), Trainer()

    hooks.call("on_fit_start", trainer)
    hooks.call("on_log", trainer, {"loss": 1})
    hooks.by_phase[Phase.EPOCH_END][0](trainer)

    assert seen == [(trainer, 3), {"loss": 1}, trainer]


async def coroutine(_self: object, _trainer: object) -> None:
    """Do nothing until it is awaited."""


async def asyncgen(_self: object, _trainer: object) -> AsyncIterator[int]:
    """Do nothing until it is iterated."""
    yield 1


def generator(_self: object, _trainer: object) -> Iterator[int]:
    """Do nothing until it is iterated."""
    yield 1


@pytest.mark.parametrize("method", [coroutine, asyncgen, generator])
def test_a_hook_whose_call_does_nothing_is_refused(method: Any) -> None:
    """What must be awaited or iterated would silently not run."""
    with pytest.raises(TypeError, match=f"on_epoch_end is a {method.__name__} function"):
        Hooks([callback_with(on_epoch_end=method)])


def test_what_is_no_method_is_left_alone() -> None:
    """Data whose name begins with on_, and a property, are no hooks; nothing is read."""

    def explode(_: object) -> None:
        message = "was read"
        raise AssertionError(message)

    callback = callback_with(
        on_gpu=True, on_demand=property(explode), on_log=None, on_epoch_end=one
    )

    Hooks([callback]).call("on_log", Trainer(), {})


@pytest.mark.parametrize(
    ("callback", "told"),
    [
        (EarlyStopping, "EarlyStopping is a class: pass an instance"),
        (object(), "has none of the hooks"),
        (print, "has none of the hooks"),
        (None, "None has none of the hooks"),
        (callback_with(on_log=None), "has none of the hooks"),
    ],
)
def test_what_is_no_callback_is_refused(callback: object, told: str) -> None:
    """An object that would never be called was not meant to be one."""
    with pytest.raises(TypeError, match=told):
        Hooks([callback])


@pytest.mark.parametrize(
    ("given", "missing"),
    [("state_dict", "load_state_dict"), ("load_state_dict", "state_dict")],
)
def test_half_a_state_is_refused(given: str, missing: str) -> None:
    """What is saved and not loaded, or the reverse, would not go on exactly."""
    with pytest.raises(TypeError, match=f"Made has {given} and no {missing}: give it"):
        Hooks([callback_with(on_epoch_end=one, **{given: one})])


def test_end_is_wanted_while_one_wants_it() -> None:
    """An attribute that is true counts, one that raises names its callback."""

    class Wants:
        wants_end = False

        def on_fit_end(self, trainer: object, result: object) -> None: ...

    class Fails(Wants):
        @property
        def wants_end(self) -> bool:  # type: ignore[override]
            message = "not now"
            raise RuntimeError(message)

    wants = Wants()
    hooks = Hooks([EarlyStopping("loss"), wants])

    found = [hooks.want_end]
    wants.wants_end = True
    found.append(hooks.want_end)

    assert found == [False, True]
    with pytest.raises(CallbackError, match=r"Fails failed in wants_end: .*not now"):
        _ = Hooks([Fails()]).want_end


def test_states_go_through_a_file_that_runs_no_code() -> None:
    """What is saved is loaded with weights_only and given back to each callback."""
    extra = {"a": [1, 2.5, "x", b"y", None, True, {"b": torch.ones(2)}]}
    hooks = Hooks([Counter(extra), Recorder([]), EarlyStopping("loss")])
    hooks.by_phase[Phase.TRAIN_BATCH_END][0](Trainer())
    file = io.BytesIO()
    torch.save(hooks.state_dict(), file)
    file.seek(0)
    first, last = Counter(), EarlyStopping("loss")
    last.best = 3.0

    Hooks([first, Recorder([]), last]).load_state_dict(
        torch.load(file, weights_only=True), PATH
    )

    assert torch.equal(first.count, torch.ones(2))
    assert first.extra.keys() == {"a"}
    assert first.extra["a"][:-1] == [1, 2.5, "x", b"y", None, True]
    assert torch.equal(first.extra["a"][-1]["b"], torch.ones(2))
    assert last.best is None


def test_a_state_is_not_changed_by_what_follows() -> None:
    """Containers are copied: a list that grows later does not grow in the checkpoint."""
    grows = [1]
    state = Hooks([Counter({"grows": grows})]).state_dict()

    grows.append(2)

    assert state[0]["state"]["extra"] == {"grows": [1]}


def test_ordered_dictionaries_become_plain_ones() -> None:
    """A state with a model's state in it is plain data."""
    state = Hooks([Counter(OrderedDict(a=1))]).state_dict()

    assert type(state[0]["state"]["extra"]) is dict


class Colour(IntEnum):
    """A number that only looks plain."""

    RED = 1


class Number(float):
    """A float of another class, as NumPy's are."""


def nested(depth: int) -> list[Any]:
    """Return a list inside a list, so often."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (Colour.RED, "state.extra is a .*Colour; a state holds"),
        ([Number(1)], r"state.extra\[0\] is a .*Number"),
        ((1, 2), "state.extra is a builtins.tuple"),
        ({1, 2}, "state.extra is a builtins.set"),
        ({"a": {"b": object()}}, "state.extra.a.b is a builtins.object"),
        ({"a": {3: 1}}, "state.extra.a has the key 3: keys must be strings"),
        (Path("x"), "state.extra is a pathlib"),
        (print, "state.extra is a builtins.builtin_function"),
        (nested(60), r"state.extra\[0\]\[0\].* lies deeper than 50 levels"),
    ],
)
def test_a_state_that_could_not_be_loaded_is_refused(value: Any, told: str) -> None:
    """The callback and the place are named when it is saved, not when it is lost."""
    with pytest.raises(CallbackError, match=told) as caught:
        Hooks([Counter(value)]).state_dict()

    assert (caught.value.callback, caught.value.phase) == ("Counter", "state_dict")


def test_a_state_that_contains_itself_is_refused() -> None:
    """A circle ends in an error, not in a stack overflow."""
    circle: dict[str, Any] = {}
    circle["self"] = circle

    with pytest.raises(CallbackError, match="deeper than 50 levels"):
        Hooks([Counter(circle)]).state_dict()


def test_a_callback_that_does_not_take_its_state_is_named() -> None:
    """An error while loading names the callback too."""
    hooks = Hooks([Counter()])

    with pytest.raises(
        CallbackError,
        match=r"Counter failed in load_state_dict, given callbacks\.0\.state of run/.*KeyErr",
    ):
        hooks.load_state_dict([{"type": "Counter", "state": {}}], PATH)


@pytest.mark.parametrize(
    ("state", "key", "told"),
    [
        ([], "callbacks.0", "the checkpoint has none, this run Counter"),
        ([("Recorder", None), ("Counter", {})], "callbacks.0", "has Recorder, this run"),
        ([("Counter", {})], "callbacks.1", "has none, this run Recorder"),
        (
            [("Counter", {}), ("Recorder", None), ("Timer", None)],
            "callbacks.2",
            "has Timer, this run none: pass the same callbacks in the same order",
        ),
        (
            [("Counter", None), ("Recorder", None)],
            "callbacks.0",
            "Counter has no state in the checkpoint, one in this run",
        ),
        (
            [("Counter", {}), ("Recorder", {})],
            "callbacks.1",
            "Recorder has a state in the checkpoint, none in this run",
        ),
    ],
)
def test_states_of_other_callbacks_are_refused(
    state: list[tuple[str, Any]], key: str, told: str
) -> None:
    """The first callback that differs is told, and none is changed."""
    counter = Counter("mine")
    entries = [{"type": name, "state": each} for name, each in state]

    with pytest.raises(CheckpointMismatchError, match=told) as caught:
        Hooks([counter, Recorder([])]).load_state_dict(entries, PATH)

    assert caught.value.key == key
    assert caught.value.path == PATH
    assert counter.extra == "mine"


@pytest.mark.parametrize("state", [None, {}, "abc", [1], [{"type": "Counter"}], [{}]])
def test_states_of_another_form_are_refused(state: object) -> None:
    """What is no list of states is told as such."""
    with pytest.raises(CheckpointMismatchError, match="callbacks: is no list of states"):
        Hooks([Counter()]).check(state, PATH)
