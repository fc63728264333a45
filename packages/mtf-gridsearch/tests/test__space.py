from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import optuna
import pytest

from mtf_gridsearch import _space
from mtf_gridsearch._axis import Axis
from mtf_gridsearch._combined import Grid
from mtf_gridsearch.distributions import choice, int_uniform, loguniform, uniform
from mtf_gridsearch.grid import ParameterGrid
from mtf_gridsearch.identity import canonical


def grid(name: str = "g") -> ParameterGrid:
    """Return an empty grid."""
    return ParameterGrid(name)


def asked(space: Grid, seed: int = 0) -> tuple[Any, optuna.trial.FrozenTrial]:
    """Return a combination that Optuna chose, and the trial."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.RandomSampler(seed=seed)
    study = optuna.create_study(sampler=sampler)
    combination = _space.suggest(space, study.ask())
    return combination, study.trials[0]


def chooser(seed: int) -> Callable[[Axis], Any]:
    """Return what chooses at random, without Optuna."""
    rng = random.Random(seed)  # noqa: S311 - no secret

    def choose(axis: Axis) -> Any:
        if axis.distribution is None:
            return rng.randrange(len(axis.values))
        return axis.distribution.draw(rng)

    return choose


def test_distributions_are_optunas_own() -> None:
    """Ranges, scales and kinds are those of the grid, in its order."""
    space = (
        grid()
        .add_parameter("u", uniform(0, 2))
        .add_parameter("l", loguniform(1e-4, 1))
        .add_parameter("i", int_uniform(1, 3))
        .add_parameter("c", choice(["a", [1, 2]]))
        .add_parameter("v", [1, 2.5, None])
    )
    combination, trial = asked(space)
    assert list(trial.distributions) == ["u", "l", "i", "c", "v"]
    float_type = optuna.distributions.FloatDistribution
    categorical = optuna.distributions.CategoricalDistribution
    assert trial.distributions == {
        "u": float_type(0.0, 2.0),
        "l": float_type(1e-4, 1.0, log=True),
        "i": optuna.distributions.IntDistribution(1, 3),
        "c": categorical(['"a"', "[1, 2]"]),
        "v": categorical([1, 2.5, None]),
    }
    assert combination["u"] == trial.params["u"]
    assert combination["c"] in ("a", [1, 2])
    assert type(combination["i"]) is int


def test_a_parameter_that_does_not_apply_is_not_suggested() -> None:
    """Suggestions are made as the grid is walked, so conditions hold."""
    space = (
        grid()
        .add_parameter("type", ["mlp", "linear"])
        .add_parameter("depth", int_uniform(1, 9), only_when="type == 'mlp'")
    )
    found = {}
    for seed in range(20):
        combination, trial = asked(space, seed)
        assert list(trial.params) == list(combination)
        found[combination["type"]] = list(combination)
    assert found == {"mlp": ["type", "depth"], "linear": ["type"]}


def test_what_a_constraint_forbids_is_none() -> None:
    """The caller draws again."""
    space = grid().add_parameter("a", uniform(0, 1)).where("a > 0.5")
    found = [asked(space, seed)[0] for seed in range(20)]
    assert None in found
    assert all(each["a"] > 0.5 for each in found if each is not None)


def test_linked_parameters_are_one_choice() -> None:
    """Its words are the values together."""
    space = grid().add_linked({"a": [1, 2], "b": ["x", "y"]})
    combination, trial = asked(space)
    assert combination in ({"a": 1, "b": "x"}, {"a": 2, "b": "y"})
    (distribution,) = trial.distributions.values()
    assert distribution == optuna.distributions.CategoricalDistribution(
        ['[1, "x"]', '[2, "y"]']
    )


@pytest.mark.parametrize(
    "values", [[1, True], [0, False, "0"], [[1], [2]], [math.inf, 1.0], [{"a": 1}, None]]
)
def test_values_that_optuna_cannot_tell_apart_or_store_have_words(
    values: list[Any],
) -> None:
    """What comes out is the value of the grid, of its type."""
    space = grid().add_parameter("x", values)
    found = {canonical(asked(space, seed)[0]["x"]) for seed in range(40)}
    assert found == {canonical(value) for value in values}


def several() -> Grid:
    """Return grids after one another and crossed, with a name in common."""
    left = grid("left").add_parameter("x", [1, 2]).add_parameter("y", uniform(0, 1))
    right = grid("right").add_parameter("x", ["a", "b", "c"])
    return (left + right + grid("third").add_parameter("z", [0])) * grid(
        "c"
    ).add_parameter("w", [1, 2])


def test_grids_made_of_several_have_a_parameter_that_says_which() -> None:
    """What each chooses among has names of its own, so that kinds may differ."""
    names = set()
    for seed in range(40):
        combination, trial = asked(several(), seed)
        assert combination["w"] in (1, 2)
        names |= set(trial.params)
    assert len(names) > len(several().keys)


@pytest.mark.parametrize("seed", range(30))
def test_recalling_a_combination_gives_what_was_suggested(seed: int) -> None:
    """For every kind of axis, and through grids of several."""
    ordinary = (
        grid()
        .add_parameter("type", ["mlp", "linear", None])
        .add_parameter("depth", int_uniform(1, 9), only_when="type == 'mlp'")
        .add_parameter("lr", loguniform(1e-4, 1))
        .add_parameter("c", choice([[1], {"a": 2}]))
        .add_linked({"p": [1, 2], "q": [True, 1]})
    )
    for space in (ordinary, several()):
        combination, trial = asked(space, seed)
        found = _space.recall(space, combination)
        assert found.params == trial.params
        assert found.distributions == trial.distributions


def test_recalling_what_could_not_be_suggested_leaves_it_out() -> None:
    """The rest is kept, whatever is wrong: value, kind, or key."""
    space = (
        grid()
        .add_parameter("lr", uniform(0, 1))
        .add_parameter("n", int_uniform(1, 3))
        .add_parameter("type", ["a", "b"])
    )
    assert _space.recall(space, {"lr": 5.0, "n": 2, "type": "a"}).params == {
        "n": 2,
        "type": "a",
    }
    assert _space.recall(space, {"lr": True, "type": "c"}).params == {}
    assert _space.recall(space, {"other": 1}).params == {}
    many = grid("0").add_parameter("x", [0])
    whole: Grid = many
    for number in range(1, 9):
        whole = whole + grid(str(number)).add_parameter("x", [number])
    assert len(_space.recall(whole, {"x": 8}).params) == 2
    assert _space.recall(whole, {"x": 99}).params != {}


def test_every_combination_of_a_listed_grid_can_be_recalled() -> None:
    """And no two are the same to Optuna."""
    space = grid().add_parameter("a", [1, 2]).add_parameter("b", ["x", "y", "z"])
    found = [_space.recall(space, combination).params for combination in space]
    assert len({tuple(each.items()) for each in found}) == len(space)
    assert space.draw(chooser(0)) in space
