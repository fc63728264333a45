"""Build what a trainer needs from a mapping, as a config file gives it.

Every key is used or refused. What a section says of the component itself (``lr``,
``hidden_size``) is checked against the parameters of that component.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol, cast

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    LambdaLR,
    LRScheduler,
    MultiplicativeLR,
    SequentialLR,
)
from torch.utils.data import DataLoader, IterableDataset

from mtf_trainer._loop.parts import check_optimizers
from mtf_trainer._registry import Kind, Registry, check_names, did_you_mean, import_listed
from mtf_trainer.config import (
    CheckpointSettings,
    GenericTrainerConfig,
    GuardSettings,
    Limits,
    SnapshotSettings,
    how_to_write,
)
from mtf_trainer.errors import RegistryError
from mtf_trainer.state import RNGState

__all__ = ["Components", "classification_step", "components_from_config"]

_SETTINGS: Mapping[str, type[Any]] = {
    "checkpoint": CheckpointSettings,
    "snapshot": SnapshotSettings,
    "guard": GuardSettings,
    "limits": Limits,
}
_COMPONENTS = ("model", "data", "optimizer", "scheduler")
_OTHERS = ("training", "seed", "run_dir", "modules")
_LOADER: Mapping[str, type[Any]] = {
    "batch_size": int,
    "num_workers": int,
    "prefetch_factor": int,
    "pin_memory": bool,
    "persistent_workers": bool,
    "drop_last": bool,
    "shuffle": bool,
}
_SPLITS = ("train_split", "val_split")
_DATA = (*_LOADER, *_SPLITS)
_OF_FUNCTIONS = (LambdaLR, MultiplicativeLR)
_OF_SCHEDULERS = (ChainedScheduler, SequentialLR)


@dataclass(frozen=True, kw_only=True, slots=True)
class Components:
    """What a config names, built."""

    config: GenericTrainerConfig
    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler | None
    train_loader: DataLoader[Any]
    val_loader: DataLoader[Any] | None
    max_epochs: int


class _Trainer(Protocol):
    @property
    def model(self) -> nn.Module: ...

    def cross_entropy(self, z_BC: Tensor, y_B: Tensor) -> Tensor: ...


def components_from_config(
    config: Mapping[str, Any], registry: Registry, modules: Sequence[str] = ()
) -> Components:
    """Build the components of *config* from *registry*; see `mtf_trainer.registry`."""
    sections = (*_COMPONENTS, *_SETTINGS, *_OTHERS)
    _check_keys("", _mapping("the config", config), sections)
    listed = _modules(config.get("modules", []), modules)
    for module in listed:
        import_listed(module)

    def build(
        place: str, kind: Kind, name: object, /, *args: object, **kwargs: Any
    ) -> Any:
        with _of(place):
            return registry.build(
                kind, cast(str, name), *args, allowed_modules=listed, **kwargs
            )

    def check(name: object, given: Mapping[str, Any]) -> None:
        with _of("data"):
            dataset = registry.find("dataset", name, allowed_modules=listed)
            check_names(dataset, f"dataset {name!r}", given, also=_DATA)

    settings, max_epochs = _trainer_config(config)
    with _seeded(settings.seed):
        train_loader, val_loader = _loaders(_section(config, "data"), check, build)
        model = _component(config, "model", build)
        optimizer = _component(config, "optimizer", build, model.parameters())
        with _of("optimizer"):
            check_optimizers([optimizer])
        scheduler = None
        if config.get("scheduler") is not None:
            section = _section(config, "scheduler")
            scheduler = _scheduler(
                "scheduler", section, registry, listed, build, optimizer
            )
    return Components(
        config=settings,
        model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        train_loader=train_loader,
        val_loader=val_loader,
        max_epochs=max_epochs,
    )


def classification_step(
    trainer: _Trainer,
    batch: Any,
    _batch_idx: int,
) -> dict[str, Tensor]:
    """Return the cross entropy, smoothed as the config says, and the accuracy.

    Args:
        trainer: A `mtf_trainer.GenericTrainer`, whose model gives logits ``(B, C)``.
        batch: Inputs, and classes ``(B,)`` or their probabilities ``(B, C)``.
    """
    x, y = batch
    z_BC = trainer.model(x)
    loss = trainer.cross_entropy(z_BC, y)
    y_B = y.argmax(dim=1) if y.is_floating_point() else y
    return {"loss": loss, "accuracy": (z_BC.argmax(dim=1) == y_B).float().mean()}


def _trainer_config(config: Mapping[str, Any]) -> tuple[GenericTrainerConfig, int]:
    """Return the settings of the trainer, and the number of epochs."""
    training = dict(_section(config, "training", optional=True))
    max_epochs = training.pop("max_epochs", 1)
    if type(max_epochs) is not int or max_epochs < 1:
        message = f"training.max_epochs must be a whole number from 1, not {max_epochs!r}"
        raise ValueError(message)
    elsewhere = {"run_dir", "seed", *_SETTINGS}
    known = [f.name for f in fields(GenericTrainerConfig) if f.name not in elsewhere]
    _check_keys("training.", training, ["max_epochs", *known])
    nested = {}
    for name, kind in _SETTINGS.items():
        section = _section(config, name, optional=True)
        _check_keys(f"{name}.", section, [f.name for f in fields(kind)])
        nested[name] = kind(**_with_paths(kind, section))
    whole = {key: config[key] for key in ("run_dir", "seed") if key in config}
    if "run_dir" not in whole:
        message = "the config has no run_dir: the folder that the trainer writes to"
        raise ValueError(message)
    whole = _with_paths(GenericTrainerConfig, {**whole, **training})
    return GenericTrainerConfig(**whole, **nested), max_epochs


def _loaders(
    section: Mapping[str, Any],
    check: Callable[[object, Mapping[str, Any]], None],
    build: Callable[..., Any],
) -> tuple[DataLoader[Any], DataLoader[Any] | None]:
    """Return the loaders for training and validation."""
    rest = dict(section)
    name = _take(rest, "data", "dataset_name")
    options = {key: rest.pop(key) for key in _LOADER if key in rest}
    for key, value in options.items():
        if type(value) is not _LOADER[key]:
            message = f"data.{key} must be a {_LOADER[key].__name__}, not {value!r}"
            raise TypeError(message)
    splits = {key: rest.pop(key) for key in _SPLITS if key in rest}
    check(name, rest)
    val_split = splits.get("val_split")
    if splits:
        rest["split"] = splits.get("train_split", "train")
    train = build("data", "dataset", name, **rest)
    if val_split is not None:
        val = build("data", "dataset", name, **{**rest, "split": val_split})
    train_loader = _loader(train, {"shuffle": not _is_stream(train), **options})
    if val_split is None:
        return train_loader, None
    return train_loader, _loader(val, {**options, "shuffle": False, "drop_last": False})


def _loader(dataset: Any, options: Mapping[str, Any]) -> DataLoader[Any]:
    collate = getattr(dataset, "collate_fn", None)
    with _of("data"):
        return DataLoader(dataset, collate_fn=collate, **options)


def _is_stream(dataset: object) -> bool:
    return isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__")


def _component(
    config: Mapping[str, Any], kind: Kind, build: Callable[..., Any], *args: Any
) -> Any:
    rest = dict(_section(config, kind))
    name = _take(rest, kind, "type")
    if kind == "optimizer":
        _check_numbers(kind, rest)
    return build(kind, kind, name, *args, **rest)


def _scheduler(
    place: str,
    section: Mapping[str, Any],
    registry: Registry,
    listed: Sequence[str],
    build: Callable[..., Any],
    optimizer: Optimizer,
) -> Any:
    """Return the scheduler of *section*; one made of others has theirs in a list."""
    rest = dict(_mapping(place, section))
    name = _take(rest, place, "type")
    with _of(place):
        component = registry.find("scheduler", name, allowed_modules=listed)
    if component in _OF_FUNCTIONS:
        message = (
            f"{place}.type: {name} takes a function, which a config cannot hold: give a "
            'function that makes the scheduler a name with @register("scheduler", ...)'
        )
        raise ValueError(message)
    args: tuple[Any, ...] = (optimizer,)
    if component in _OF_SCHEDULERS:
        inner = rest.pop("schedulers", None)
        key = f"{place}.schedulers"
        if not isinstance(inner, list | tuple) or not inner:
            message = (
                f"{key} must be a list of schedulers, each with its type, not {inner!r}"
            )
            raise TypeError(message)
        made = [
            _scheduler(f"{key}.{index}", each, registry, listed, build, optimizer)
            for index, each in enumerate(inner)
        ]
        if component is SequentialLR and any(isinstance(m, _OF_SCHEDULERS) for m in made):
            message = (
                f"{key}: {name} of torch cannot go over to a scheduler made of others"
            )
            raise ValueError(message)
        args, rest = (), {"optimizer": optimizer, "schedulers": made, **rest}
    else:
        _check_numbers(place, rest)
    return build(place, "scheduler", name, *args, **rest)


def _check_numbers(place: str, value: object) -> None:
    """Raise where *value* has text that was to be a number.

    Raises:
        TypeError: If it has.
    """
    if isinstance(value, Mapping):
        for key, each in value.items():
            _check_numbers(f"{place}.{key}", each)
    elif isinstance(value, list | tuple):
        for index, each in enumerate(value):
            _check_numbers(f"{place}.{index}", each)
    elif hint := how_to_write(value):
        message = f"{place} must be a number, not {value!r}{hint}"
        raise TypeError(message)


def _take(section: dict[str, Any], name: str, key: str) -> Any:
    if key not in section:
        message = f"{name}.{key} is missing{did_you_mean(key, list(section))}"
        raise ValueError(message)
    return section.pop(key)


def _section(
    config: Mapping[str, Any], name: str, *, optional: bool = False
) -> Mapping[str, Any]:
    if optional and config.get(name) is None:
        return {}
    if name not in config:
        message = f"the config has no section {name}{did_you_mean(name, list(config))}"
        raise ValueError(message)
    return _mapping(name, config[name])


def _mapping(name: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        message = f"{name} must be a mapping with names as keys, not {value!r}"
        raise TypeError(message)
    return value


def _check_keys(prefix: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in given:
        if key not in known:
            message = f"{prefix}{key} is no setting{did_you_mean(key, known)}"
            raise ValueError(message)


def _with_paths(kind: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return *values* with strings as paths where *kind* has paths."""
    paths = {field.name for field in fields(kind) if "Path" in str(field.type)}
    return {
        key: Path(value) if key in paths and isinstance(value, str) else value
        for key, value in values.items()
    }


def _modules(named: object, given: Sequence[str]) -> tuple[str, ...]:
    """Return the modules that paths may lie in."""
    if not isinstance(named, list | tuple):
        message = f"modules must be a list of names, not {named!r}"
        raise TypeError(message)
    for each in named:
        if each not in given:
            listed = ", ".join(given) or "none"
            message = f"modules has {each!r}, and this program allows: {listed}"
            raise RegistryError(message)
    return tuple(given)


@contextmanager
def _of(place: str) -> Iterator[None]:
    """Name *place* of the config in an error that comes out of a component.

    Raises:
        RegistryError: With the error as its cause.
        TypeError: Likewise, if it is one.
        ValueError: Likewise, if it is one.
    """
    try:
        yield
    except (RegistryError, TypeError, ValueError) as error:
        kinds = (RegistryError, TypeError, ValueError)
        kind = next(kind for kind in kinds if isinstance(error, kind))
        message = f"{place}: {error}"
        raise kind(message) from error
    except Exception as error:
        message = f"{place}: {type(error).__name__}: {error}"
        raise RegistryError(message) from error


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw what is drawn inside from *seed*, and leave the streams as they were."""
    before = RNGState.capture()
    RNGState.seed(seed)
    try:
        yield
    finally:
        before.restore()
