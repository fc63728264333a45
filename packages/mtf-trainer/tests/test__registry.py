from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mtf_trainer._registry import Registry, did_you_mean, import_listed
from mtf_trainer.errors import RegistryError

MODELS = '''
import os
import subprocess
from functools import partial
from os import system
from subprocess import Popen, run
from torch import nn
from lab_project.inner import Deep

class Net(nn.Module):
    """Takes a width."""

    def __init__(self, width, depth=1):
        super().__init__()
        self.width = width

def make(width):
    return nn.Linear(width, 1)

def make_text():
    return "no model"

def _private():
    raise AssertionError("was called")

shell = partial(system)
instance = Net(1)
'''


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make a project of packages and modules that can be imported; return its folder."""
    for name, text in (
        ("lab_project/__init__.py", ""),
        ("lab_project/models.py", MODELS),
        ("lab_project/inner.py", "from torch import nn\nclass Deep(nn.Identity): ...\n"),
        ("lab_project_evil/__init__.py", "raise AssertionError('was imported')\n"),
        ("lab_broken.py", "1 / 0\n"),
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("lab_")]:
        del sys.modules[name]


@pytest.fixture
def registry() -> Registry:
    """Return one of its own."""
    return Registry()


def parameters() -> Iterator[nn.Parameter]:
    """Return something to optimize."""
    return nn.Linear(1, 1).parameters()


def test_what_is_registered_is_built(registry: Registry) -> None:
    """A class or function is found by its name, called, and is still itself."""

    @registry.register("model", "my-net.v2")
    class Net(nn.Linear):
        """A model."""

    @registry.register("loss", "l1")
    def make(scale: float = 1.0) -> Any:
        return partial(torch.mul, scale)

    built = registry.build("model", "my-net.v2", 3, out_features=2)

    assert isinstance(built, Net)
    assert (built.in_features, built.out_features) == (3, 2)
    assert registry.build("loss", "l1", scale=2.0)(torch.tensor(3.0)) == 6
    assert registry.names("model") == ["my-net.v2"]


@pytest.mark.parametrize(
    "name", ["", "-a", ".hidden", "a b", "a/b", "a:b", "../a", "a" * 129, "ä", "a\n"]
)
def test_a_name_is_of_few_characters(registry: Registry, name: str) -> None:
    """What could be a path or hide something is no name."""
    with pytest.raises(RegistryError, match="is no name for a component"):
        registry.register("model", name)


@pytest.mark.parametrize("name", ["adamw", "AdamW", "mine"])
def test_a_name_is_given_once(registry: Registry, name: str) -> None:
    """Neither another component nor one of torch's is silently replaced."""
    registry.register("optimizer", "mine")(torch.optim.SGD)

    with pytest.raises(RegistryError, match=f"optimizer '{name}' is torch.optim"):
        registry.register("optimizer", name)(torch.optim.Adam)
    assert registry.find("optimizer", "mine") is torch.optim.SGD


def test_the_same_name_of_another_kind_is_another(registry: Registry) -> None:
    """Kinds do not share names."""
    registry.register("model", "adamw")(nn.Identity)

    assert isinstance(registry.build("model", "adamw"), nn.Identity)


@pytest.mark.parametrize("kind", ["modle", "", "Model", None])
def test_an_unknown_kind_is_refused(registry: Registry, kind: Any) -> None:
    """Everywhere a kind is asked for, and the kinds there are are told."""
    for ask in (
        partial(registry.register, kind, "a"),
        partial(registry.build, kind, "a"),
        partial(registry.names, kind),
    ):
        with pytest.raises(RegistryError, match=r"there is no kind .*model"):
            ask()


def optimizers() -> list[type[torch.optim.Optimizer]]:
    """Return torch's own."""
    base = torch.optim.Optimizer
    found = [c for c in vars(torch.optim).values() if isinstance(c, type)]
    return [c for c in found if issubclass(c, base) and c is not base]


@pytest.mark.parametrize("kind", optimizers())
def test_torch_s_optimizers_are_found(registry: Registry, kind: type) -> None:
    """Each by the name of its class and by that in lower case."""
    assert registry.find("optimizer", kind.__name__) is kind
    assert registry.find("optimizer", kind.__name__.lower()) is kind
    assert kind.__name__ in registry.names("optimizer")


def test_torch_s_schedulers_are_built(registry: Registry) -> None:
    """By class name or lower case, over an optimizer."""
    optimizer = registry.build("optimizer", "adamw", parameters(), lr=0.1)

    cosine = registry.build("scheduler", "cosineannealinglr", optimizer, T_max=10)
    plateau = registry.build("scheduler", "ReduceLROnPlateau", optimizer, patience=1)

    assert isinstance(optimizer, torch.optim.AdamW)
    assert isinstance(cosine, torch.optim.lr_scheduler.CosineAnnealingLR)
    assert isinstance(plateau, torch.optim.lr_scheduler.ReduceLROnPlateau)
    assert {"Optimizer", "LRScheduler"}.isdisjoint(
        registry.names("optimizer") + registry.names("scheduler")
    )


@pytest.mark.parametrize(
    ("kind", "name", "told"),
    [
        ("optimizer", "adamww", "did you mean .*AdamW"),
        ("optimizer", "ADAMW", "did you mean AdamW"),
        ("optimizer", "Optimizer", "there is no optimizer 'Optimizer'"),
        ("optimizer", "lr_scheduler", "there is no optimizer"),
        ("scheduler", "cosine_annealing_lr", "did you mean CosineAnnealingLR"),
        ("model", "anything", "there are: none"),
        ("model", "os.system", "there is no model 'os.system'"),
        ("model", 3, "a model is given by its name, not by 3"),
        ("model", ["mlp"], r"is given by its name, not by \['mlp'\]"),
    ],
)
def test_an_unknown_name_is_refused(
    registry: Registry, kind: Any, name: Any, told: str
) -> None:
    """The nearest names are told, or all."""
    with pytest.raises(RegistryError, match=told):
        registry.build(kind, name)


@pytest.mark.parametrize(
    ("name", "kwargs", "told"),
    [
        (
            "adamw",
            {"learning_rat": 1},
            "optimizer 'adamw' takes no 'learning_rat'; there",
        ),
        (
            "adamw",
            {"weightdecay": 1},
            "takes no 'weightdecay'; did you mean weight_decay",
        ),
        ("adamw", {"params": []}, "takes no 'params'"),
        ("needs", {}, "optimizer 'needs': missing a required argument: 'rate'"),
        ("needs", {"rate": 1, "b": 2}, "optimizer 'needs' takes no 'b'; there are: rate"),
    ],
)
def test_an_argument_that_is_not_taken_is_named(
    registry: Registry, name: str, kwargs: dict[str, Any], told: str
) -> None:
    """Component, argument and what was meant are told before anything is called."""

    @registry.register("optimizer", "needs")
    def needs(_params: object, rate: float) -> None:
        raise AssertionError(rate)

    with pytest.raises(TypeError, match=told):
        registry.build("optimizer", name, parameters(), **kwargs)


def make_nothing() -> nn.Module:
    """Return a model that changes nothing."""
    return nn.Identity()


def make_linear(**kwargs: Any) -> nn.Module:
    """Return a model of one layer."""
    return nn.Linear(**kwargs)


def test_too_many_arguments_are_told(registry: Registry) -> None:
    """Positional ones as well."""
    registry.register("model", "none")(make_nothing)

    with pytest.raises(TypeError, match="model 'none': too many positional arguments"):
        registry.build("model", "none", 1)


def test_what_takes_any_argument_gets_it(registry: Registry) -> None:
    """A component with ``**kwargs``, or of C, decides for itself."""
    registry.register("model", "any")(make_linear)
    registry.register("dataset", "range")(range)

    assert registry.build("model", "any", in_features=2, out_features=1).in_features == 2
    assert registry.build("dataset", "range", 3) == range(3)


def test_what_a_component_raises_names_it(registry: Registry) -> None:
    """The error is its own, with a note."""
    with pytest.raises(ValueError, match="Invalid learning rate: -1") as caught:
        registry.build("optimizer", "sgd", parameters(), lr=-1)

    assert caught.value.__notes__ == ["while optimizer 'sgd' was built"]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("model", torch.zeros(1)),
        ("dataset", 3),
        ("optimizer", nn.Identity()),
        ("scheduler", None),
        ("loss", 1.0),
        ("callback", None),
    ],
)
def test_what_is_of_another_kind_is_refused(
    registry: Registry, kind: Any, value: object
) -> None:
    """A component must make what its kind says."""
    registry.register(kind, "other")(lambda: value)

    with pytest.raises(RegistryError, match=f"{kind} 'other' made a .*which is not"):
        registry.build(kind, "other")


def test_a_path_in_a_listed_module_is_built(registry: Registry, project: Path) -> None:
    """Classes and functions of the module itself, or of another that is listed."""
    assert project.is_dir()
    build = partial(registry.build, "model")

    net = build("lab_project.models:Net", allowed_modules=["lab_project.models"], width=2)
    line = build(
        "lab_project.models:make", 2, allowed_modules=["other", "lab_project.models"]
    )
    deep = build(
        "lab_project.models:Deep",
        allowed_modules=["lab_project.models", "lab_project.inner"],
    )

    assert (net.width, line.in_features) == (2, 2)
    assert isinstance(deep, nn.Identity)
    with pytest.raises(TypeError, match="takes no 'widht'; did you mean width"):
        build("lab_project.models:Net", allowed_modules=["lab_project.models"], widht=2)


@pytest.mark.parametrize(
    "path",
    [
        *("os:system", "subprocess:Popen", "builtins:eval", "posix:system"),
        *("torch.hub:load", "lab_project_evil:Net", "lab_broken:Net", "lab:Net"),
    ],
)
def test_a_module_that_is_not_listed_is_not_imported(
    registry: Registry, project: Path, path: str
) -> None:
    """Neither the standard library nor a name that only begins like a listed one."""
    assert project.is_dir()

    for allowed in ((), ("lab_project", "torch"), ("lab_project.models", "")):
        with pytest.raises(RegistryError, match="is not listed; listed are: "):
            registry.build("model", path, allowed_modules=allowed)


@pytest.mark.parametrize(
    "path",
    [
        *(":", ":Net", "lab_project.models:", "lab_project.models::Net"),
        *("lab_project.models:Net.__init__", "lab_project.models:__builtins__"),
        *("lab_project.models:_private", "lab_project.models:os.system"),
        *(".models:Net", "..lab_project.models:Net", "lab_project/models:Net"),
        *("lab_project.models.:Net", "lab_project.models:Net\n", " lab_project:Net"),
        *("lab_project.models:Net()", "lab_project.models:Nét", "lab-project:Net"),
    ],
)
def test_what_is_no_path_is_refused(registry: Registry, project: Path, path: str) -> None:
    """Relative, nested and private ones, and whatever is not of that form."""
    assert project.is_dir()

    with pytest.raises(RegistryError, match="is no path of a component"):
        registry.build("model", path, allowed_modules=["lab_project"])


@pytest.mark.parametrize(
    "attribute",
    ["os", "subprocess", "system", "Popen", "run", "partial", "shell", "instance", "nn"],
)
def test_what_a_listed_module_imports_is_not_its_own(
    registry: Registry, project: Path, attribute: str
) -> None:
    """An import, an instance or a partial of a listed module cannot be called."""
    assert project.is_dir()

    with pytest.raises(RegistryError, match="defines no class or function"):
        registry.build(
            "model",
            f"lab_project.models:{attribute}",
            allowed_modules=["lab_project.models"],
        )


def test_the_nearest_component_of_a_module_is_told(
    registry: Registry, project: Path
) -> None:
    """A slip in the path is answered with what the module defines."""
    assert project.is_dir()

    with pytest.raises(RegistryError, match="no class or function 'Nett'; did you mean"):
        registry.build(
            "model", "lab_project.models:Nett", allowed_modules=["lab_project.models"]
        )
    with pytest.raises(RegistryError, match="made a str, which is not"):
        registry.build(
            "model",
            "lab_project.models:make_text",
            allowed_modules=["lab_project.models"],
        )


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("lab_missing", "does not import: ModuleNotFoundError"),
        ("lab_broken", "does not import: ZeroDivisionError"),
        ("os", "os is a module of Python itself"),
        ("os.path", "is a module of Python itself"),
        ("builtins", "is a module of Python itself"),
        ("__main__", "is no name of a module"),
        ("lab_project.__main__", "is no name of a module"),
        (".models", "is no name of a module"),
        ("a b", "is no name of a module"),
        ("", "is no name of a module"),
        (3, "3 is no name of a module"),
    ],
)
def test_a_list_of_modules_holds_modules_of_projects(
    project: Path, name: object, told: str
) -> None:
    """What is none, does not import, or belongs to Python itself is refused."""
    assert project.is_dir()

    with pytest.raises(RegistryError, match=told):
        import_listed(name)


def test_a_class_of_another_kind_is_not_called(registry: Registry, project: Path) -> None:
    """What a listed module defines is looked at before it is made."""
    assert project.is_dir()

    with pytest.raises(RegistryError, match="models:Net is no Optimizer"):
        registry.build(
            "optimizer", "lab_project.models:Net", allowed_modules=["lab_project.models"]
        )


def test_the_standard_library_cannot_be_listed(registry: Registry) -> None:
    """Even a project that lists os does not get os.system."""
    with pytest.raises(RegistryError, match="os is a module of Python itself"):
        registry.build("model", "os:system", "true", allowed_modules=["os"])


def test_hints_are_short() -> None:
    """A name of any length is answered with the names there are."""
    assert did_you_mean("x" * 10**6, ["a", "b"]) == "; there are: a, b"
    assert did_you_mean("Adam", ["adam", "b"]) == "; did you mean adam?"
