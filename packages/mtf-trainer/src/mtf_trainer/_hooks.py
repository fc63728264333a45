"""Call callbacks at the edges of phases, and keep what they remember.

Which callback listens where is found out once, and checked: a method that would never be
called is refused. An error becomes a `CallbackError`; KeyboardInterrupt and SystemExit
pass.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torch import Tensor

from mtf_trainer.callbacks import HOOKS
from mtf_trainer.errors import CallbackError, CheckpointMismatchError
from mtf_trainer.phases import Phase

__all__ = ["Hooks", "entries", "has_state", "naming", "plain", "state_of", "type_name"]

_PLAIN = frozenset({bool, int, float, str, bytes, type(None)})
_DEEPEST = 50

Hook = Callable[..., None]


class Hooks:
    """The callbacks of one trainer.

    Args:
        callbacks: Called in this order.

    Raises:
        TypeError: If one has a method ``on_...`` that is no hook or takes other
            arguments, no hook at all, or only one half of a state.
    """

    def __init__(self, callbacks: Sequence[object]) -> None:
        self._callbacks = tuple(callbacks)
        found = [_find_hooks(callback) for callback in self._callbacks]
        self._by_name: dict[str, tuple[Hook, ...]] = {
            name: tuple(hooks[name] for hooks in found if name in hooks) for name in HOOKS
        }
        self._names = [type_name(callback) for callback in self._callbacks]
        self.by_phase: dict[Phase, tuple[Hook, ...]] = {
            phase: self._by_name[f"on_{phase.lower()}"] for phase in Phase
        }
        """What to call, with the trainer, as the first work inside each phase."""

    def call(self, name: str, trainer: Any, *args: Any) -> None:
        """Call the hook *name* of every callback that has it.

        What ``on_exception`` raises is added to the notes of the error it is about.

        Raises:
            CallbackError: If one raises.
        """
        for hook in self._by_name[name]:
            try:
                hook(trainer, *args)
            except CallbackError as error:
                if name != "on_exception":
                    raise
                args[0].add_note(str(error))

    @property
    def want_end(self) -> bool:
        """Whether one of them has ``wants_end``, and it is true.

        Raises:
            CallbackError: If that raises.
        """
        for callback in self._callbacks:
            with naming(callback, "wants_end"):
                if getattr(callback, "wants_end", False):
                    return True
        return False

    def state_dict(self) -> list[dict[str, Any]]:
        """Return what each callback remembers, as plain data; None if it has no state.

        Raises:
            CallbackError: If one fails, or its state is not plain data.
        """
        return [
            {"type": type_name(callback), "state": state_of(callback)}
            for callback in self._callbacks
        ]

    def check(self, state: object, path: Path) -> None:
        """Raise if *state*, from the checkpoint *path*, is that of other callbacks.

        Raises:
            CheckpointMismatchError: Naming the first that differs.
        """
        saved = entries(state)
        if saved is None:
            raise CheckpointMismatchError(path, "callbacks", "is no list of states")
        for index in range(max(len(saved), len(self._callbacks))):
            key = f"callbacks.{index}"
            was = saved[index]["type"] if index < len(saved) else None
            now = self._names[index] if index < len(self._names) else None
            if was != now:
                problem = (
                    f"the checkpoint has {was or 'none'}, this run {now or 'none'}: pass "
                    "the same callbacks in the same order"
                )
                raise CheckpointMismatchError(path, key, problem)
            had = saved[index]["state"] is not None
            if had != has_state(self._callbacks[index]):
                there, here = ("a", "none") if had else ("no", "one")
                problem = f"{now} has {there} state in the checkpoint, {here} in this run"
                raise CheckpointMismatchError(path, key, problem)

    def load_state_dict(self, state: object, path: Path) -> None:
        """Give each callback back what it remembered, as `state_dict` gave it.

        Raises:
            CheckpointMismatchError: As `check` does; nothing is changed then.
            CallbackError: If a callback does not take it.
        """
        self.check(state, path)
        for index, (callback, entry) in enumerate(
            zip(self._callbacks, entries(state) or (), strict=True)
        ):
            if entry["state"] is not None:
                where = f"load_state_dict, given callbacks.{index}.state of {path}"
                with naming(callback, where):
                    callback.load_state_dict(entry["state"])  # type: ignore[attr-defined]


@contextmanager
def naming(callback: object, where: str) -> Iterator[None]:
    """Make an error inside ``with`` a `CallbackError` about *callback*.

    Raises:
        CallbackError: With the error as its cause; one from further inside as it is.
    """
    try:
        yield
    except CallbackError:
        raise
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
        raise CallbackError(type_name(callback), where, problem) from error


def type_name(value: object) -> str:
    """Return the qualified name of the class of *value*."""
    return type(value).__qualname__


def has_state(value: object) -> bool:
    """Tell whether *value* has a state.

    Raises:
        TypeError: If it can only save, or only load one.
    """
    saves, loads = (
        callable(getattr(value, name, None)) for name in ("state_dict", "load_state_dict")
    )
    if saves != loads:
        one, other = "state_dict", "load_state_dict"
        if loads:
            one, other = other, one
        message = f"{type_name(value)} has {one} and no {other}: give it both"
        raise TypeError(message)
    return saves


def state_of(value: Any) -> Any:
    """Return the state of *value* as plain data, or None if it has none.

    Raises:
        CallbackError: If it fails, or is not plain data.
    """
    if not has_state(value):
        return None
    with naming(value, "state_dict"):
        return plain(value.state_dict(), "state")


def plain(value: object, where: str) -> Any:
    """Return *value* with containers of its own, if a checkpoint can hold it.

    Raises:
        TypeError: If it cannot, naming the place below *where*.
    """
    return _plain(value, where, 0)


def _plain(value: object, where: str, depth: int) -> Any:
    if type(value) in _PLAIN or isinstance(value, Tensor):
        return value
    if depth >= _DEEPEST:
        message = f"{where[:200]} lies deeper than {_DEEPEST} levels"
        raise TypeError(message)
    if isinstance(value, list) and type(value) is list:
        return [_plain(v, f"{where}[{i}]", depth + 1) for i, v in enumerate(value)]
    if isinstance(value, dict):
        for key in value:
            if type(key) is not str:
                message = f"{where} has the key {key!r}: keys must be strings"
                raise TypeError(message)
        return {k: _plain(v, f"{where}.{k}", depth + 1) for k, v in value.items()}
    message = (
        f"{where} is a {type(value).__module__}.{type_name(value)}; a state holds "
        "dictionaries with string keys, lists, numbers, strings, bytes, None and tensors"
    )
    raise TypeError(message)


def _find_hooks(callback: object) -> dict[str, Hook]:
    """Return what *callback* listens to, by the names of the hooks.

    Raises:
        TypeError: If it is no callback.
    """
    if isinstance(callback, type):
        message = f"{callback.__qualname__} is a class: pass an instance of it"
        raise TypeError(message)
    hooks = {}
    for name in dir(callback):
        if name.startswith("on_"):
            hook = _hook(callback, name)
            if hook is not None:
                hooks[name] = hook
    if not hooks:
        message = f"{callback!r} has none of the hooks of a callback"
        raise TypeError(message)
    has_state(callback)
    return hooks


def _hook(callback: object, name: str) -> Hook | None:
    """Return the hook *name* of *callback*, naming it in errors; None if it is no method.

    Raises:
        TypeError: If it would never be called, or not as it expects to be.
    """
    title = f"{type_name(callback)}.{name}"
    # A property is not evaluated to find out that it is none.
    static = inspect.getattr_static(callback, name)
    if not callable(static) and not isinstance(static, staticmethod | classmethod):
        return None
    if name not in HOOKS:
        near = get_close_matches(name, HOOKS, n=1, cutoff=0.0)[0]
        message = f"{title} is no hook and would never be called; did you mean {near}?"
        raise TypeError(message)
    method, parameters = getattr(callback, name), HOOKS[name]
    wanted = ", ".join(parameters)
    if not _takes(method, len(parameters)):
        message = f"{title} must take ({wanted}), and takes {inspect.signature(method)}"
        raise TypeError(message)
    for kind in ("coroutine", "asyncgen", "generator"):
        if getattr(inspect, f"is{kind}function")(method):
            message = f"{title} is a {kind} function: calling it would do nothing"
            raise TypeError(message)

    def hook(trainer: Any, *args: Any) -> None:
        try:
            method(trainer, *args)
        except CallbackError:
            raise
        except Exception as error:
            problem = f"{name} raised {type(error).__name__}: {error}"
            raise CallbackError(
                type_name(callback), str(trainer.phase), problem
            ) from error

    return hook


def _takes(method: Callable[..., Any], num_arguments: int) -> bool:
    try:
        signature = inspect.signature(method)
    except ValueError:  # of C, and does not say
        return True
    try:
        signature.bind(*range(num_arguments))
    except TypeError:
        return False
    return True


def entries(state: object) -> list[Mapping[str, Any]] | None:
    """Return *state* if it has the form that `Hooks.state_dict` gives, or None."""
    if not isinstance(state, list) or not all(
        isinstance(entry, Mapping) and {"type", "state"} <= entry.keys()
        for entry in state
    ):
        return None
    return state
