import copy
import pickle
from typing import Any

import pytest

from mtf_config import ABSENT, Difference, ExperimentConfig, diff

MINIMAL: dict[str, Any] = {
    "experiment_name": "digits",
    "model": {"type": "mlp"},
    "data": {"dataset_name": "digits"},
}


def make(**values: Any) -> ExperimentConfig:
    """Make a config of what is required and *values*."""
    return ExperimentConfig.model_validate(MINIMAL | values)


def with_extra(**extra: Any) -> ExperimentConfig:
    """Make a config whose model has further keys."""
    return make(model={"type": "mlp", **extra})


def test_equal_configs_do_not_differ() -> None:
    """Given or default, the same values are no difference."""
    assert diff(make(), make(seed=0, training={})) == ()


def test_every_key_that_differs_is_listed_in_the_order_of_the_schema() -> None:
    """One entry a key, with both values, lists whole."""
    left = make(slurm={}, optimizer={"lr": 0.5}, seed=1)
    right = make(slurm={"nodes": 2}, optimizer={"betas": [0.1, 0.2]})
    assert diff(left, right) == (
        Difference("seed", 1, 0),
        Difference("optimizer.lr", 0.5, 1e-4),
        Difference("optimizer.betas", [0.9, 0.999], [0.1, 0.2]),
        Difference("slurm.nodes", 1, 2),
    )


def test_a_section_on_one_side_is_listed_key_by_key() -> None:
    """The other side has none of its keys."""
    expected = [
        Difference("scheduler.type", ABSENT, "linear"),
        Difference("scheduler.warmup_steps", ABSENT, 0),
        Difference("scheduler.min_lr", ABSENT, 0.0),
    ]
    there = make(scheduler={"type": "linear"})
    assert diff(make(), there) == tuple(expected)
    assert diff(there, make()) == tuple(
        Difference(d.key, d.right, ABSENT) for d in expected
    )


@pytest.mark.parametrize(
    ("left", "right", "lines"),
    [
        ({"x": 1}, {"x": 1.0}, ["model.x: 1 -> 1.0"]),
        ({"x": [1]}, {"x": [True]}, ["model.x: [1] -> [True]"]),
        ({"x": [{"a": 1, "b": 2}]}, {"x": [{"b": 2, "a": 1}]}, []),
        ({"x": 0.0}, {"x": -0.0}, ["model.x: 0.0 -> -0.0"]),
        ({"x": None}, {}, ["model.x: None -> (absent)"]),
        ({}, {"x": {}}, ["model.x: (absent) -> {}"]),
        ({"x": None}, {"x": {}}, ["model.x: None -> {}"]),
        ({"x": {}}, {"x": {"a": 1}}, ["model.x.a: (absent) -> 1"]),
        ({"x": 1}, {"x": {"a": 1}}, ["model.x: 1 -> {'a': 1}"]),
        ({"x": {"a": {"b": 1}}}, {"x": {"a": {"b": 2}}}, ["model.x.a.b: 1 -> 2"]),
        ({"x": [1, 2]}, {"x": "[1, 2]"}, ["model.x: [1, 2] -> '[1, 2]'"]),
    ],
)
def test_values_differ_exactly_when_configs_do(
    left: dict[str, Any], right: dict[str, Any], lines: list[str]
) -> None:
    """Absent, null, empty and equal-looking values are told apart as by ``==``."""
    a, b = with_extra(**left), with_extra(**right)
    assert list(map(str, diff(a, b))) == lines
    assert (a == b) == (not lines)


def test_absent_is_one_object() -> None:
    """ABSENT survives copies and pickles, so `is` may be used."""
    assert copy.deepcopy(ABSENT) is ABSENT
    assert pickle.loads(pickle.dumps(ABSENT)) is ABSENT  # noqa: S301
    (entry,) = diff(with_extra(x=1), make())
    assert pickle.loads(pickle.dumps(entry)) == entry  # noqa: S301
