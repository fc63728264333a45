"""Find components by name: those registered, torch's own, and those of listed modules.

A name never imports anything. Only a path, ``package.module:attr``, does, and only of a
module that the caller lists: to list a package opens nothing that lies in it. What is
found there must be a class or function that a listed module defines, so that no import of
such a module becomes callable by a config; a class must be of the kind asked for before it
is called.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from types import MappingProxyType, ModuleType
from typing import Any, Literal, TypeVar, get_args

from torch import nn, optim
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from mtf_trainer.errors import RegistryError

__all__ = ["Kind", "Registry", "check_names", "did_you_mean", "import_listed"]

Kind = Literal["model", "dataset", "optimizer", "scheduler", "loss", "callback"]
Component = TypeVar("Component", bound=Callable[..., Any])

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MODULE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*")
_ATTRIBUTE = re.compile(r"[A-Za-z][A-Za-z0-9_]*")

_BUILDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = MappingProxyType(
    {
        "model": ("a torch.nn.Module", lambda v: isinstance(v, nn.Module)),
        "dataset": (
            "a dataset: something with samples",
            lambda v: hasattr(v, "__getitem__") or hasattr(v, "__iter__"),
        ),
        "optimizer": ("a torch.optim.Optimizer", lambda v: isinstance(v, Optimizer)),
        "scheduler": ("a scheduler of torch", lambda v: isinstance(v, LRScheduler)),
        "loss": ("something to call", callable),
        "callback": ("a callback", lambda v: v is not None),
    }
)

_BASES: Mapping[str, type] = MappingProxyType(
    {"model": nn.Module, "optimizer": Optimizer, "scheduler": LRScheduler}
)


class Registry:
    """Components by kind and name. A name is given once."""

    def __init__(self) -> None:
        self._components: dict[str, dict[str, Callable[..., Any]]] = {
            kind: {} for kind in get_args(Kind)
        }
        self._torch = {
            "optimizer": _classes(optim, Optimizer),
            "scheduler": _classes(lr_scheduler, LRScheduler),
        }

    def register(self, kind: Kind, name: str) -> Callable[[Component], Component]:
        """Give the class or function below this decorator a *name*.

        Raises:
            RegistryError: If there is no such kind, the name is taken (also by a class of
                torch) or is not of letters, digits, dots, dashes and underscores.
        """
        components = self._of(kind)
        if not _NAME.fullmatch(name):
            message = (
                f"{name!r} is no name for a component: use letters, digits, dots, dashes "
                "and underscores, at most 128"
            )
            raise RegistryError(message)

        def remember(component: Component) -> Component:
            taken = self._find(kind, name)
            if taken is not None:
                message = (
                    f"{kind} {name!r} is {_title(taken)} already: choose another name"
                )
                raise RegistryError(message)
            components[name] = component
            return component

        return remember

    def names(self, kind: Kind) -> list[str]:
        """Return the names there are, torch's among them, sorted.

        Raises:
            RegistryError: If there is no such kind.
        """
        return sorted({*self._of(kind), *self._torch.get(kind, ())})

    def build(
        self,
        kind: Kind,
        name_or_path: str,
        /,
        *args: Any,
        allowed_modules: Iterable[str] = (),
        **kwargs: Any,
    ) -> Any:
        """Call the component *name_or_path* with the other arguments.

        Args:
            kind: What it must be.
            name_or_path: A registered name; a class of ``torch.optim`` or of
                ``torch.optim.lr_scheduler`` by its name or that in lower case; or
                ``package.module:attr``.
            args: Handed to it, as an optimizer's parameters.
            allowed_modules: Those that a path may name; never the standard library.
            kwargs: Handed to it by name.

        Raises:
            RegistryError: If there is none, its module is not listed, or what it returns
                is of another kind.
            TypeError: If it does not take an argument, or needs another one.
            Exception: What it raises itself, with a note that names it.
        """
        component = self.find(kind, name_or_path, allowed_modules=allowed_modules)
        title = f"{kind} {name_or_path!r}"
        _check_arguments(component, title, args, kwargs)
        try:
            built = component(*args, **kwargs)
        except Exception as error:
            error.add_note(f"while {title} was built")
            raise
        what, fits = _BUILDS[kind]
        if not fits(built):
            message = f"{title} made a {type(built).__qualname__}, which is not {what}"
            raise RegistryError(message)
        return built

    def find(
        self, kind: Kind, name_or_path: Any, *, allowed_modules: Iterable[str] = ()
    ) -> Callable[..., Any]:
        """Return the component that `build` would call.

        Raises:
            RegistryError: If there is none, or its module is not listed.
        """
        self._of(kind)
        if not isinstance(name_or_path, str):
            message = f"a {kind} is given by its name, not by {name_or_path!r}"
            raise RegistryError(message)
        if ":" in name_or_path:
            imported = _import_path(name_or_path, frozenset(allowed_modules))
            base = _BASES.get(kind)
            if base and inspect.isclass(imported) and not issubclass(imported, base):
                message = f"{name_or_path} is no {base.__name__}, as a {kind} must be"
                raise RegistryError(message)
            return imported
        found = self._find(kind, name_or_path)
        if found is None:
            hint = did_you_mean(name_or_path, self.names(kind))
            message = f"there is no {kind} {name_or_path!r}{hint}"
            raise RegistryError(message)
        return found

    def _find(self, kind: str, name: str) -> Callable[..., Any] | None:
        own = self._components[kind].get(name)
        if own is not None:
            return own
        for class_name, kind_of_torch in self._torch.get(kind, {}).items():
            if name in (class_name, class_name.lower()):
                return kind_of_torch
        return None

    def _of(self, kind: str) -> dict[str, Callable[..., Any]]:
        if kind not in self._components:
            known = list(self._components)
            message = f"there is no kind {kind!r}{did_you_mean(str(kind), known)}"
            raise RegistryError(message)
        return self._components[kind]


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Return what to add to an error about *name*: the nearest of *known*, or all."""
    by_lower = {each.lower(): each for each in known}
    near = get_close_matches(name.lower()[:200], by_lower, n=3)
    if near:
        return f"; did you mean {' or '.join(by_lower[each] for each in near)}?"
    return f"; there are: {', '.join(known) or 'none'}"


def import_listed(name: object) -> ModuleType:
    """Import the module *name* of a list that the project made.

    Raises:
        RegistryError: If it is no name of a module, one of the standard library, or does
            not import.
    """
    if not isinstance(name, str) or not _MODULE.fullmatch(name) or "__" in name:
        message = f"{name!r} is no name of a module, as package.module"
        raise RegistryError(message)
    if name.partition(".")[0] in sys.stdlib_module_names:
        message = f"{name} is a module of Python itself, which has no components"
        raise RegistryError(message)
    try:
        return import_module(name)
    except Exception as error:
        message = f"module {name} does not import: {type(error).__name__}: {error}"
        raise RegistryError(message) from error


def _import_path(path: str, allowed: frozenset[str]) -> Callable[..., Any]:
    module_name, _, attribute = path.partition(":")
    if not _MODULE.fullmatch(module_name) or not _ATTRIBUTE.fullmatch(attribute):
        message = f"{path!r} is no path of a component, as package.module:attr"
        raise RegistryError(message)
    if module_name not in allowed:
        listed = ", ".join(sorted(allowed)) or "none"
        message = f"{path}: module {module_name} is not listed; listed are: {listed}"
        raise RegistryError(message)
    module = import_listed(module_name)
    public = {
        name: value
        for name, value in vars(module).items()
        if _ATTRIBUTE.fullmatch(name)
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ in allowed
    }
    if attribute not in public:
        hint = did_you_mean(attribute, sorted(public))
        message = f"{module_name} defines no class or function {attribute!r}{hint}"
        raise RegistryError(message)
    return public[attribute]


def _classes(module: ModuleType, base: type) -> dict[str, Callable[..., Any]]:
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isclass(value)
        and issubclass(value, base)
        and value is not base
        and not name.startswith("_")
    }


def _title(component: Callable[..., Any]) -> str:
    name = getattr(component, "__qualname__", type(component).__qualname__)
    return f"{getattr(component, '__module__', '')}.{name}".lstrip(".")


def check_names(
    component: Callable[..., Any],
    title: str,
    given: Iterable[str],
    *,
    by_place: int = 0,
    also: Sequence[str] = (),
) -> None:
    """Raise where *component* has no parameter of a name in *given*.

    Args:
        component: One that does not say what it takes passes.
        title: How the error names it.
        given: Names of arguments.
        by_place: Its first parameters that are given without a name.
        also: Further names that might have been meant.

    Raises:
        TypeError: With the nearest name.
    """
    try:
        parameters = inspect.signature(component).parameters.values()
    except ValueError:  # of C, and does not say
        return
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    known = [p.name for p in parameters if p.kind is not p.POSITIONAL_ONLY][by_place:]
    for name in given:
        if name not in known:
            hint = did_you_mean(name, [*known, *also])
            message = f"{title} takes no {name!r}{hint}"
            raise TypeError(message)


def _check_arguments(
    component: Callable[..., Any],
    title: str,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> None:
    check_names(component, title, kwargs, by_place=len(args))
    try:
        signature = inspect.signature(component)
    except ValueError:
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        message = f"{title}: {error}"
        raise TypeError(message) from error
