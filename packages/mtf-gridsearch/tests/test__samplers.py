from __future__ import annotations

from typing import Any

import optuna
import pytest
from optuna.pruners import HyperbandPruner, MedianPruner, PercentilePruner
from optuna.samplers import NSGAIISampler, RandomSampler, TPESampler

from mtf_gridsearch._samplers import make_pruner, make_sampler, plain_spec, seed_of


def test_samplers_are_made_by_name_and_with_options() -> None:
    """The tree-structured one lies about running trials, unless it is told not to."""
    sampler: Any = make_sampler("tpe", 1)
    assert type(sampler) is TPESampler
    assert sampler._constant_liar
    other: Any = make_sampler(
        {"type": "tpe", "multivariate": True, "constant_liar": False}, 1
    )
    assert not other._constant_liar
    assert other._multivariate
    assert type(make_sampler("random", 1)) is RandomSampler
    assert (
        type(make_sampler({"type": "nsgaii", "population_size": 4}, 1)) is NSGAIISampler
    )


def test_a_function_of_a_seed_makes_any_sampler() -> None:
    """It is given the seed of the trial."""
    seeds = []

    def make(seed: int) -> RandomSampler:
        seeds.append(seed)
        return RandomSampler(seed=seed)

    assert type(make_sampler(make, 7)) is RandomSampler
    assert seeds == [7]


def test_pruners_are_made_by_name_and_with_options() -> None:
    """One that is made, and none, are taken as they are."""
    assert type(make_pruner("median")) is MedianPruner
    assert type(make_pruner("hyperband")) is HyperbandPruner
    assert (
        type(make_pruner({"type": "percentile", "percentile": 25.0})) is PercentilePruner
    )
    made = MedianPruner()
    assert make_pruner(made) is made
    assert make_pruner(None) is None


@pytest.mark.parametrize(
    ("make", "spec", "error", "message"),
    [
        (
            make_sampler,
            "tpa",
            ValueError,
            "'tpa' is none of gp, nsgaii, random, tpe; did",
        ),
        (make_sampler, {"seed": 1}, ValueError, "sampler: None is none of"),
        (make_sampler, {"type": "tpe", "x": 1}, ValueError, "TPESampler does not take"),
        (make_sampler, RandomSampler(), TypeError, "a function that makes one of a seed"),
        (make_sampler, lambda seed: seed, TypeError, "not 1"),
        (make_pruner, "mean", ValueError, "pruner: 'mean' is none of"),
        (
            make_pruner,
            {"type": "median", "x": 1},
            ValueError,
            "MedianPruner does not take",
        ),
        (make_pruner, 3, TypeError, "pruner is a name"),
    ],
)
def test_what_is_no_sampler_and_no_pruner_is_refused(
    make: Any, spec: Any, error: type[Exception], message: str
) -> None:
    """The message says what there is."""
    arguments = (spec, 1) if make is make_sampler else (spec,)
    with pytest.raises(error, match=message):
        make(*arguments)


def test_definitions_are_plain() -> None:
    """Of code they have the name."""
    assert plain_spec("tpe") == "tpe"
    assert plain_spec({"type": "tpe"}) == {"type": "tpe"}
    assert plain_spec(None) is None
    code = plain_spec(RandomSampler)
    assert code == {"code": "optuna.samplers._random:RandomSampler"}
    pruner = plain_spec(optuna.pruners.NopPruner())
    assert pruner == {"code": "optuna.pruners._nop:NopPruner"}


def test_seeds_follow_from_their_parts() -> None:
    """On every machine, and no two parts run together."""
    assert seed_of(0, 1, 2) == 3593682312
    assert len({seed_of(0, n, t) for n in range(50) for t in range(5)}) == 250
    assert seed_of(1, 11) != seed_of(11, 1)
