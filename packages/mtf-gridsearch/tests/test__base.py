from __future__ import annotations

import math
from typing import Any

import pytest

from mtf_gridsearch._base import UnfitError
from mtf_gridsearch._model_base import base_of
from mtf_gridsearch.errors import GridError

MAPPING = {
    "experiment_name": "digits",
    "optimizer": {"lr": 0.1, "betas": [0.9, 0.99], "nesterov": False},
    "model": {"type": "mlp", "depth": 1},
    "scheduler": None,
    "seed": 0,
}


def faults(base: Any, parameters: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what forbids *parameters*."""
    with pytest.raises(UnfitError) as caught:
        base_of(base).applied(parameters, "name")
    return caught.value.faults


def test_mapping_gets_its_parameters() -> None:
    """The copy has the parameters and the name; the base and the values stay as they were."""
    base = base_of(MAPPING)
    betas = [0.8, 0.9]
    given = {"optimizer.lr": 1, "optimizer.betas": betas, "scheduler": {"type": "cosine"}}
    config = base.applied(given, "new")
    assert config == {
        "experiment_name": "new",
        "optimizer": {"lr": 1, "betas": [0.8, 0.9], "nesterov": False},
        "model": {"type": "mlp", "depth": 1},
        "scheduler": {"type": "cosine"},
        "seed": 0,
    }
    config["optimizer"]["betas"].append(3)
    assert betas == [0.8, 0.9]
    assert base.plain == MAPPING
    assert base.name == "digits"
    assert base_of({"a": 1}).applied({"a": 2}, "new") == {"a": 2}


@pytest.mark.parametrize(
    ("parameters", "key", "reason"),
    [
        (
            {"optimizer.rl": 1},
            "optimizer.rl",
            "no such key; did you mean 'optimizer.lr'?",
        ),
        ({"lr": 1}, "lr", "did you mean 'optimizer.lr'?"),
        ({"seed.x": 1}, "seed.x", "no such key"),
        ({"nothing.x.y": 1}, "nothing.x.y", "no such key"),
        ({"seed": "1"}, "seed", "'1' is text, but in the base config it is a number: 0"),
        ({"seed": True}, "seed", "True is true or false, but"),
        ({"optimizer.nesterov": 1}, "optimizer.nesterov", "a number, but"),
        (
            {"model.type": ["a"]},
            "model.type",
            "a list, but in the base config it is text",
        ),
        ({"optimizer.betas": 1}, "optimizer.betas", "it is a list"),
        ({"model": 1}, "model", "it is a mapping"),
        ({"model": {"typ": "a"}}, "model.typ", "did you mean 'model.type'?"),
        ({"model": {"type": "a", "depth": "a"}}, "model.depth", "is text, but"),
    ],
)
def test_what_does_not_fit_a_mapping(
    parameters: dict[str, Any], key: str, reason: str
) -> None:
    """Keys that the base lacks, and values of another kind, are faults with a hint."""
    ((found, text),) = faults(MAPPING, parameters)
    assert found == key
    assert reason in text


def test_null_goes_with_everything() -> None:
    """Null may be set anywhere, and anything where null is."""
    config = base_of(MAPPING).applied({"seed": None, "scheduler": 1}, "n")
    assert (config["seed"], config["scheduler"]) == (None, 1)


def test_what_is_no_base() -> None:
    """A base is a mapping of plain values or a pydantic model."""
    with pytest.raises(TypeError, match="not a list"):
        base_of([1])
    with pytest.raises(GridError, match=r"base config\.a: .*object"):
        base_of({"a": object()})


def test_every_key_that_is_wrong_is_named() -> None:
    """Two unknown keys are two faults."""
    assert len(faults(MAPPING, {"a": 1, "b": 2})) == 2


def test_a_mapping_never_drops_keys_of_a_mapping() -> None:
    """One that leaves keys out is refused; a whole one takes its place."""
    base = base_of({"model": {"type": "mlp", "depth": 2}, "seed": 1})
    with pytest.raises(UnfitError, match=r"model\.depth: 2 of the base .* be lost"):
        base.applied({"model": {"type": "linear"}}, "b")
    whole = {"type": "linear", "depth": 3}
    assert base.applied({"model": whole}, "b")["model"] == whole


def test_nan_in_a_mapping_is_named() -> None:
    """The error says at which key it stands."""
    with pytest.raises(GridError, match=r"base config\.optimizer\.lr: NaN"):
        base_of({"optimizer": {"lr": math.nan}})


def test_a_key_with_a_dot_in_it_is_told_of() -> None:
    """A flat base has the very key, and the error says what to write in its place."""
    ((key, reason),) = faults({"optimizer.lr": 0.1}, {"optimizer.lr": 1})
    assert key == "optimizer.lr"
    assert (
        "one key, with a dot in it: write sections, as in optimizer: {lr: ...}" in reason
    )


def test_an_empty_mapping_takes_any() -> None:
    """A base without keys of its own says nothing of which there may be."""
    base = base_of({"kwargs": {}, "n": 1})
    assert base.applied({"kwargs": {"a": {"b": 1}}}, "x")["kwargs"] == {"a": {"b": 1}}
    with pytest.raises(UnfitError, match=r"kwargs: 1 is a number, .* a mapping"):
        base.applied({"kwargs": 1}, "x")


def test_any_config_of_its_kind_is_made_plain() -> None:
    """A config of the search is dumped as the base is: copied, tuples as lists."""
    assert base_of(MAPPING).plain_of({"a": (1, 2)}) == {"a": [1, 2]}
