"""Optuna's samplers and pruners by name, so that a search's definition is plain data."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from mtf_gridsearch._plain import nearest

__all__ = [
    "PrunerSpec",
    "SamplerSpec",
    "make_pruner",
    "make_sampler",
    "plain_spec",
    "seed_of",
]

SamplerSpec: TypeAlias = str | Mapping[str, Any] | Callable[[int], BaseSampler]
"""A name; a mapping of ``type`` and its options; or what makes a sampler of a seed."""

PrunerSpec: TypeAlias = str | Mapping[str, Any] | BasePruner | None
"""A name; a mapping of ``type`` and its options; or a pruner."""

# Those that need no memory beyond the trials: a new one goes on where another was killed.
_SAMPLERS = {
    "gp": "GPSampler",
    "nsgaii": "NSGAIISampler",
    "random": "RandomSampler",
    "tpe": "TPESampler",
}
_PRUNERS = {
    "hyperband": "HyperbandPruner",
    "median": "MedianPruner",
    "percentile": "PercentilePruner",
    "successive_halving": "SuccessiveHalvingPruner",
    "threshold": "ThresholdPruner",
    "wilcoxon": "WilcoxonPruner",
}
_MAX_SEED = 2**32


def seed_of(*parts: object) -> int:
    """Return a seed that *parts* determine, on every machine.

    >>> seed_of(0, 1) == seed_of(0, 1), 0 <= seed_of("a") < 2**32
    (True, True)
    """
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8]) % _MAX_SEED


def make_sampler(spec: Any, seed: int) -> BaseSampler:
    """Return a new sampler that draws from *seed*.

    Raises:
        TypeError: If *spec* is none of `SamplerSpec`, such as a sampler that is made.
        ValueError: If the name or an option is not known.
        ImportError: If Optuna needs another package for it.
    """
    with _experiments_allowed():
        if isinstance(spec, str | Mapping):
            name, options = _parts(spec, _SAMPLERS, "sampler")
            if name == "tpe":
                options = {"constant_liar": True} | options
            sampler: BaseSampler = _made(
                optuna.samplers, _SAMPLERS[name], options | {"seed": seed}
            )
            return sampler
        made = spec(seed) if callable(spec) else spec
    if not callable(spec) or not isinstance(made, BaseSampler):
        msg = (
            f"sampler is a name ({', '.join(_SAMPLERS)}), a mapping with `type`, or a "
            f"function that makes one of a seed, as `lambda seed: TPESampler(seed=seed)`; "
            f"not {made!r}"
        )
        raise TypeError(msg)
    return made


def make_pruner(spec: Any) -> BasePruner | None:
    """Return the pruner; None for none.

    Raises:
        TypeError: If *spec* is none of `PrunerSpec`.
        ValueError: If the name or an option is not known.
        ImportError: If Optuna needs another package for it.
    """
    if spec is None or isinstance(spec, BasePruner):
        return spec
    if not isinstance(spec, str | Mapping):
        msg = f"pruner is a name, a mapping with `type` or a pruner, not {spec!r}"
        raise TypeError(msg)
    with _experiments_allowed():
        name, options = _parts(spec, _PRUNERS, "pruner")
        pruner: BasePruner = _made(optuna.pruners, _PRUNERS[name], options)
    return pruner


def plain_spec(spec: SamplerSpec | PrunerSpec) -> Any:
    """Return *spec* as a definition holds it; of code, its name alone."""
    if spec is None or isinstance(spec, str):
        return spec
    if isinstance(spec, Mapping):
        return dict(spec)
    named = spec if hasattr(spec, "__qualname__") else type(spec)
    return {"code": f"{named.__module__}:{named.__qualname__}"}


@contextmanager
def _experiments_allowed() -> Iterator[None]:
    """Keep Optuna from warning that what was asked for may change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def _parts(
    spec: str | Mapping[str, Any], known: Mapping[str, str], word: str
) -> tuple[str, dict[str, Any]]:
    options = {"type": spec} if isinstance(spec, str) else dict(spec)
    name = options.pop("type", None)
    if not isinstance(name, str) or name not in known:
        hint = nearest(name, known) if isinstance(name, str) else ""
        msg = f"{word}: {name!r} is none of {', '.join(known)}{hint}"
        raise ValueError(msg)
    return name, options


def _made(module: Any, name: str, options: Mapping[str, Any]) -> Any:
    try:
        return getattr(module, name)(**options)
    except TypeError as error:
        msg = f"{name} does not take these options: {error}"
        raise ValueError(msg) from None
