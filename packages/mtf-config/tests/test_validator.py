import pickle
from pathlib import Path
from typing import Any

import pytest

from mtf_config import (
    ConfigurationManager,
    ConfigValidator,
    ExperimentConfig,
    ValidationResult,
)


def validate(**values: Any) -> ValidationResult:
    """Validate what is required and *values*."""
    minimal = {
        "experiment_name": "digits",
        "model": {"type": "mlp"},
        "data": {"dataset_name": "digits"},
    }
    return ConfigValidator().validate_config(minimal | values)


def test_a_good_config_is_valid() -> None:
    """No problems, and the config itself."""
    result = validate()
    assert result.is_valid
    assert result.problems == result.errors == result.warnings == ()
    assert isinstance(result.config, ExperimentConfig)
    assert ConfigValidator().validate_config(result.config) == result


def test_values_that_make_no_config_are_reported_whole() -> None:
    """Every problem of the schema, no config, no exception."""
    result = validate(seed=-1, optimizer={"lr": "x"})
    assert result.config is None
    assert not result.is_valid
    assert [problem.key for problem in result.errors] == ["seed", "optimizer.lr"]


@pytest.mark.parametrize("config", [None, 1, "a", [], {}, {1: 2}, {"model": "${x}"}])
def test_it_raises_for_nothing(config: Any) -> None:
    """Whatever it is given, it reports."""
    result = ConfigValidator().validate_config(config)
    assert result.errors


@pytest.mark.parametrize(
    ("values", "key", "severity", "message"),
    [
        (
            {"model": {"type": "m", "hiden_size": 64}},
            "model.hiden_size",
            "warning",
            "did you mean model.hidden_size?",
        ),
        (
            {"model": {"type": "m", "copy": 1}},
            "model.copy",
            "warning",
            'read it as config.model.model_extra["copy"]',
        ),
        ({"optimizer": {"lr": 0.2}}, "optimizer.lr", "warning", "very high for adamw"),
        (
            {"optimizer": {"type": "Adam", "momentum": 0.9}},
            "optimizer.momentum",
            "error",
            "Adam has no momentum",
        ),
        (
            {"optimizer": {"type": "sgd", "betas": [0.8, 0.9]}},
            "optimizer.betas",
            "error",
            "sgd has no betas",
        ),
        (
            {"scheduler": {"min_lr": 1e-3}},
            "scheduler.min_lr",
            "error",
            "above the peak learning rate, optimizer.lr=0.0001",
        ),
        ({"logging": {"use_wandb": True}}, "logging.wandb_project", "error", "is needed"),
        ({"logging": {"wandb_entity": "me"}}, "logging.use_wandb", "warning", "is false"),
        ({"logging": {"wandb_project": "p"}}, "logging.use_wandb", "warning", "is false"),
        ({"training": {"batch_size": 3}, "slurm": {"nodes": 2, "gpus_per_node": 1}},
         "training.batch_size", "error", "cannot share it equally"),
    ],
)  # fmt: skip
def test_every_rule(
    values: dict[str, Any], key: str, severity: str, message: str
) -> None:
    """What does not go together is found, with its key and how bad it is."""
    result = validate(**values)
    (problem,) = result.problems
    assert (problem.key, problem.severity) == (key, severity)
    assert message in problem.message
    assert result.is_valid == (severity == "warning")
    assert result.config is not None


@pytest.mark.parametrize(
    "values",
    [
        {"optimizer": {"type": "sgd", "lr": 0.5, "momentum": 0.9}},
        {"optimizer": {"type": "sgd", "betas": [0.9, 0.999]}},
        {"optimizer": {"lr": 0.1}},
        {"scheduler": {"min_lr": 1e-4}},
        {"logging": {"use_wandb": True, "wandb_project": "p"}},
        {"model": {"type": "m", "heads": 4, "max_tokens": "8k"}},
        {"model": {"type": "m", "pad_token": "<pad>", "token_mixer": "pool"}},
        {"model": {"type": "m", "api_key": None, "token": ""}},
    ],
)
def test_what_goes_together_is_not_complained_about(values: dict[str, Any]) -> None:
    """Rules do not cry wolf."""
    assert validate(**values).problems == ()


@pytest.mark.parametrize(
    "extra",
    [
        {"api_key": "sk-1"},
        {"nested": {"hub": {"hf_token": "sk-1"}}},
        {"users": [{"dbPassword": "sk-1"}]},
        {"login": {"api-key": 12345678}},
        {"credentials": {"user": {"name": "sk-1"}}},
        {"AWS_SECRET_ACCESS_KEY": ["sk-1"]},
    ],
)
def test_secrets_are_refused_and_not_repeated(extra: dict[str, Any]) -> None:
    """A config is saved and shown, so it may not hold a secret, however deep."""
    result = validate(model={"type": "m", **extra})
    (problem,) = result.errors
    assert "looks like a secret" in problem.message
    assert "sk-1" not in str(problem)
    assert "sk-1" not in repr(problem)


def test_all_problems_at_once_with_their_places(tmp_path: Path) -> None:
    """Errors and warnings of every rule come in one result, located in the file."""
    Path(tmp_path, "a.yaml").write_text(
        "experiment_name: a\n"
        "model: {type: m, droput: 0.1}\n"
        "data: {dataset_name: d, num_workers: 8}\n"
        "optimizer: {lr: 1.0, momentum: 0.5}\n"
        "slurm: {gpus_per_node: 1, nodes: 5}\n",
        "utf-8",
    )
    (result,) = ConfigurationManager(tmp_path).load_batch(["a.yaml"])
    assert [(str(p.place), p.key) for p in result.problems] == [
        ("a.yaml:2:26", "model.droput"),
        ("a.yaml:4:17", "optimizer.lr"),
        ("a.yaml:4:32", "optimizer.momentum"),
        ("default", "training.batch_size"),
        ("a.yaml:3:38", "data.num_workers"),
    ]
    assert len(result.errors) == 2
    assert len(result.warnings) == 3


def test_results_can_be_pickled() -> None:
    """A batch may be validated by a pool of processes."""
    for result in (validate(optimizer={"lr": 1.0}), validate(seed=-1)):
        assert pickle.loads(pickle.dumps(result)) == result  # noqa: S301
