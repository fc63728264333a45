"""How a search is to be run, as it stands in its file: early stopping, Bayesian search.

::

    early_stopping: {rule: successive_halving, metric: loss, mode: min, min_step: 10}
    bayesian: {metric: loss, mode: min, num_trials: 50, sampler: tpe, pruner: median}

``rule`` is ``successive_halving`` or ``median``; all else are the arguments of
`SuccessiveHalving`, `MedianRule` and `BayesianSearch`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from mtf_gridsearch._plain import nearest, shown
from mtf_gridsearch.early_stopping import EarlyStopping, MedianRule, SuccessiveHalving
from mtf_gridsearch.errors import GridError

if TYPE_CHECKING:
    from mtf_gridsearch._combined import Grid
    from mtf_gridsearch.bayes import BayesianSearch

__all__ = ["bayesian_search", "early_stopping", "rule_to_plain"]

_RULES: dict[str, Callable[..., EarlyStopping]] = {
    "successive_halving": SuccessiveHalving,
    "median": MedianRule,
}
_OPTIONS = {
    "successive_halving": ("metric", "mode", "min_step", "factor"),
    "median": ("metric", "mode", "min_step", "min_experiments"),
    "bayesian": (
        *("metric", "mode", "num_trials", "num_parallel", "in_order", "at"),
        *("sampler", "pruner", "storage", "seed"),
    ),
}
_NUMBERS = ("min_step", "factor", "min_experiments", "num_trials", "num_parallel", "seed")
_TEXTS = ("metric", "mode", "at")


def early_stopping(values: Any, place: str) -> EarlyStopping | None:
    """Return the rule that *values* describe; None for none.

    Raises:
        GridError: If they describe none.
    """
    if values is None:
        return None
    options = dict(_mapping(values, place))
    word = options.pop("rule", None)
    if not isinstance(word, str) or word not in _RULES:
        raise GridError(place, f"rule is one of {', '.join(_RULES)}, not {shown(word)}")
    _check(options, word, place)
    try:
        return _RULES[word](**options)
    except (TypeError, ValueError) as error:
        raise GridError(place, _said(error)) from None


def rule_to_plain(rule: EarlyStopping) -> dict[str, Any] | None:
    """Return what `early_stopping` makes *rule* of; None for a rule of the user's own."""
    for word, kind in _RULES.items():
        if type(rule) is kind:
            options = {option: getattr(rule, option) for option in _OPTIONS[word]}
            return {"rule": word, **options}
    return None


def bayesian_search(
    values: Any, place: str, base: Any, grid: Grid, *, name: str | None, only: Any
) -> BayesianSearch:
    """Return the search of *grid* over *base* that *values* describe.

    Raises:
        GridError: If they describe none.
        NamingError: If it has no name.
    """
    from mtf_gridsearch.bayes import BayesianSearch  # noqa: PLC0415 -- an extra

    options = _mapping(values, place)
    _check(options, "bayesian", place)
    try:
        return BayesianSearch(base, grid, name=name, only=only, **options)
    except (TypeError, ValueError) as error:
        raise GridError(place, _said(error)) from None


def _mapping(values: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        raise GridError(place, f"write a mapping of options, not {shown(values)}")
    return values


def _check(options: Mapping[str, Any], word: str, place: str) -> None:
    known = _OPTIONS[word]
    for key, value in options.items():
        if key not in known:
            raise GridError(place, f"{key!r} is not known{nearest(key, known)}")
        if key in _NUMBERS and type(value) is not int:
            raise GridError(place, f"{key} is a whole number, not {shown(value)}")
        if key in _TEXTS and not isinstance(value, str):
            raise GridError(place, f"{key} is text, not {shown(value)}: quote it")
        if key == "in_order" and type(value) is not bool:
            raise GridError(place, f"{key} is true or false, not {shown(value)}")


def _said(error: Exception) -> str:
    """Return what a constructor said, without its name."""
    return str(error).rpartition("__init__() ")[2]
