import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from mtf_config import ConfigurationManager, json_schema
from mtf_config.experiment import SECTION_ALIASES, ExperimentConfig

VALIDATOR = Draft202012Validator(json_schema())
REQUIRED: dict[str, Any] = {
    "experiment_name": "digits",
    "model": {"type": "mlp"},
    "data": {"dataset_name": "digits"},
}
ACCEPTED: list[dict[str, Any]] = [
    {},
    {"trainer": {"max_epochs": 3, "max_grad_norm": None}},
    {"training": {"max_grad_norm": 1}},
    {"model": {"type": "m", "layers": [1, {"a": None}], "seed": "${seed}"}},
    {"optimizer": {"betas": [0.9, "${model.dropout}"], "lr": "${env:LR:-0.1}"}},
    {"optimizer": {"lr": 1}, "scheduler": None, "slurm": {"mem": None, "time": "90"}},
    {"scheduler": {"type": "linear"}, "logging": {"log_images_every_n_steps": None}},
    {"experiment_name": "run_${seed}", "seed": 4, "entry_point": "pkg.mod:main"},
    {"optimizer": "${model.opt}", "model": {"type": "m", "opt": {"lr": 1e-3}}},
    {"description": "costs \\${5}", "checkpoint": {"keep_last_n": 1}},
]


def test_it_is_a_schema_of_its_draft_and_json() -> None:
    """Editors can read it."""
    schema = json_schema()
    Draft202012Validator.check_schema(schema)
    assert json.loads(json.dumps(schema, allow_nan=False)) == schema


@pytest.mark.parametrize("values", ACCEPTED)
def test_what_the_manager_accepts_the_schema_accepts(values: dict[str, Any]) -> None:
    """No editor underlines what loads."""
    config = ConfigurationManager(environ={}).create_config(REQUIRED | values)
    VALIDATOR.validate(REQUIRED | values)
    VALIDATOR.validate(config.model_dump(mode="json"))


@pytest.mark.parametrize(
    "values",
    [
        {"defaults": ["base", {"optimizer": "adamw"}, "_self_"]},
        {"defaults": [{"optional data": "local"}, {"callbacks": ["a", "b"]}]},
        {},
        {"model": {"hidden_size": 3}},
    ],
)
def test_a_part_of_a_config_is_accepted(values: dict[str, Any]) -> None:
    """A file may leave to others what it does not say."""
    VALIDATOR.validate(values)


@pytest.mark.parametrize(
    "values",
    [
        {"optimzer": {}},
        {"optimizer": {"learning_rate": 1}},
        {"data": {"x": 1}},
        {"scheduler": {"x": 1}},
        {"slurm": {"x": 1}},
        {"seed": -1},
        {"seed": "1"},
        {"seed": True},
        {"experiment_name": "../x"},
        {"optimizer": {"lr": "fast"}},
        {"optimizer": {"lr": 0}},
        {"optimizer": {"betas": [0.9]}},
        {"optimizer": {"betas": [0.9, 1.0]}},
        {"optimizer": {"betas": [0.9, 0.9, 0.9]}},
        {"training": {"use_amp": "yes"}},
        {"training": None},
        {"trainer": {}, "training": {}},
        {"defaults": "base"},
        {"slurm": {"time": 90}},
    ],
)
def test_what_is_wrong_is_refused(values: dict[str, Any]) -> None:
    """Unknown keys, wrong types and wrong sizes are underlined."""
    assert not VALIDATOR.is_valid(values)


def test_every_key_is_described() -> None:
    """Hovering over a key says what it means, and no docstring leaks its examples."""
    schema = json_schema()
    names = {*ExperimentConfig.model_fields, *SECTION_ALIASES, "defaults"}
    assert set(schema["properties"]) == names
    for definition in schema["$defs"].values():
        assert all(p["description"] for p in definition["properties"].values())
    assert ">>>" not in json.dumps(schema)


def test_each_call_gives_its_own_schema() -> None:
    """A caller may change what it gets."""
    json_schema()["properties"].clear()
    assert json_schema()["properties"]
