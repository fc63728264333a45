"""Components by name, and what a config names built from them.

>>> from torch import nn
>>> @register("model", "line")
... def line(width: int) -> nn.Module:
...     return nn.Linear(width, 1)
>>> build("model", "line", width=3)
Linear(in_features=3, out_features=1, bias=True)
>>> build("model", "line", wide=3)
Traceback (most recent call last):
TypeError: model 'line' takes no 'wide'; did you mean width?
>>> optimizer = build("optimizer", "adamw", nn.Linear(1, 1).parameters(), lr=0.1)
>>> build("model", "os:system")
Traceback (most recent call last):
mtf_trainer.errors.RegistryError: os:system: module os is not listed; listed are: none
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mtf_trainer import _components
from mtf_trainer._components import Components, classification_step
from mtf_trainer._mlp import mlp
from mtf_trainer._registry import Kind, Registry

__all__ = [
    "Components",
    "Kind",
    "Registry",
    "build",
    "classification_step",
    "components_from_config",
    "names",
    "register",
]

_DEFAULT = Registry()

register = _DEFAULT.register
"""Give a class or function a name; see `Registry.register`."""
build = _DEFAULT.build
"""Build a component by its name or path; see `Registry.build`."""
names = _DEFAULT.names
"""Return the names of a kind; see `Registry.names`."""

register("model", "mlp")(mlp)


def components_from_config(
    config: Mapping[str, Any], modules: Sequence[str] = ()
) -> Components:
    """Build model, loaders, optimizer and scheduler from *config*.

    ============ ====================================================================
    section      keys
    ============ ====================================================================
    model        ``type``; the model's own
    data         ``dataset_name``; ``batch_size``, ``num_workers``, ``pin_memory``,
                 ``shuffle``, ``drop_last``, ``persistent_workers`` and
                 ``prefetch_factor`` for the loaders; ``train_split`` and
                 ``val_split`` (none validates nothing), of which the dataset gets one
                 as ``split``; the dataset's own
    optimizer    ``type``; the optimizer's own, as ``lr``
    scheduler    may be missing; ``type``; the scheduler's own, which for
                 ``SequentialLR`` and ``ChainedScheduler`` is ``schedulers``, a list
                 of such sections
    training     ``max_epochs`` (1); settings of `GenericTrainerConfig`
    checkpoint   settings of `CheckpointSettings`; likewise ``snapshot``, ``guard``
                 and ``limits``
    seed         as in `GenericTrainerConfig`; the model is drawn from it too
    run_dir      the folder the trainer writes to
    modules      may be missing; modules it needs, which the program must list
    ============ ====================================================================

    A dataset's ``collate_fn``, if it has one, makes its batches.

    Whoever may name a module may run what it defines: so it is the program that lists
    them, each by its own name. A package does not stand for what lies in it.

    Args:
        config: As above; plain data.
        modules: Imported, and open to paths.

    Raises:
        RegistryError: If a component is unknown, or its module is not listed; if it
            raises something else than the errors below. It names the section, as do the
            others, and what a component raised is its cause.
        TypeError: If a component does not take a key, or a value is of the wrong type.
        ValueError: If a key is unknown or missing, or a value is out of its range.
    """
    return _components.components_from_config(config, _DEFAULT, modules)
