import math
from typing import Any

import pytest
from pydantic import ValidationError

from mtf_config import (
    CheckpointConfig,
    DataConfig,
    LoggingConfig,
    ModelConfig,
    OptimizerConfig,
    SchedulerConfig,
    SLURMConfig,
    TrainerConfig,
    TrainingConfig,
)
from mtf_config.sections import Section

DEFAULTS: dict[type[Section], dict[str, Any]] = {
    ModelConfig: {
        "hidden_size": 512,
        "num_layers": 6,
        "dropout": 0.1,
        "activation": "relu",
    },
    TrainingConfig: {
        "max_epochs": 100,
        "batch_size": 32,
        "gradient_accumulation_steps": 1,
        "max_grad_norm": 1.0,
        "use_amp": True,
    },
    DataConfig: {
        "root": None,
        "train_split": "train",
        "val_split": "validation",
        "num_workers": 0,
        "pin_memory": False,
    },
    OptimizerConfig: {
        "type": "adamw",
        "lr": 1e-4,
        "weight_decay": 0.01,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "momentum": 0.0,
    },
    SchedulerConfig: {"type": "cosine", "warmup_steps": 0, "min_lr": 0.0},
    SLURMConfig: {
        "account": None,
        "partition": None,
        "qos": None,
        "constraint": None,
        "nodes": 1,
        "ntasks_per_node": 1,
        "cpus_per_task": 1,
        "gpus_per_node": 0,
        "gpu_type": None,
        "mem": None,
        "time": "01:00:00",
        "requeue": True,
    },
    LoggingConfig: {
        "use_wandb": False,
        "wandb_project": None,
        "wandb_entity": None,
        "log_scalars_every_n_steps": 50,
        "log_images_every_n_steps": None,
        "log_gradients": False,
        "log_model_parameters": False,
    },
    CheckpointConfig: {"save_every_n_epochs": 1, "keep_last_n": 3},
}
REQUIRED = {ModelConfig: {"type": "mlp"}, DataConfig: {"dataset_name": "digits"}}
EVERY_KEY = [
    (section, key)
    for section, defaults in DEFAULTS.items()
    for key in [*REQUIRED.get(section, {}), *defaults]
]


def make(section: type[Section], **values: Any) -> Section:
    """Make *section* of *values* and what it requires."""
    return section.model_validate({**REQUIRED.get(section, {}), **values})


@pytest.mark.parametrize("section", DEFAULTS)
def test_defaults_are_the_documented_ones(section: type[Section]) -> None:
    """Every section has exactly the keys and defaults that users were promised."""
    expected = {**REQUIRED.get(section, {}), **DEFAULTS[section]}
    assert make(section).model_dump() == expected


@pytest.mark.parametrize(("section", "key"), EVERY_KEY)
def test_every_key_says_what_it_means(section: type[Section], key: str) -> None:
    """The reference and missing-key errors quote each key's description."""
    assert section.model_fields[key].description


def test_trainer_config_is_training_config() -> None:
    """The second name is the same class."""
    assert TrainerConfig is TrainingConfig


WRONG_TYPES: dict[type, list[Any]] = {
    int: ["1", 1.0, True, None, [1], {}, 1.5],
    float: ["1.0", True, None, [0.5], {}, 10**400],
    bool: [0, 1, "true", "on", None, 1.0],
    str: [1, 1.0, True, b"a", ["a"], {}],
}


def wrong_values() -> list[Any]:
    """List each key with each value of a wrong type."""
    cases = []
    for section, key in EVERY_KEY:
        default = {**REQUIRED.get(section, {}), **DEFAULTS[section]}[key]
        if key == "log_images_every_n_steps":
            default = 1
        kind = str if default is None else type(default)
        for value in WRONG_TYPES.get(kind, []):
            is_optional = type(None) in getattr(
                section.model_fields[key].annotation, "__args__", ()
            )
            if not (value is None and is_optional):
                cases.append(pytest.param(section, key, value, id=f"{key}-{value!r}"))
    return cases


@pytest.mark.parametrize(("section", "key", "value"), wrong_values())
def test_a_value_of_another_type_is_refused(
    section: type[Section], key: str, value: Any
) -> None:
    """Nothing is converted: text is no number, 1.0 no integer, 1 no bool."""
    with pytest.raises(ValidationError):
        make(section, **{key: value})


@pytest.mark.parametrize(
    ("section", "key"),
    [(s, k) for s, k in EVERY_KEY if isinstance(DEFAULTS[s].get(k), float)],
)
def test_an_integer_is_a_number(section: type[Section], key: str) -> None:
    """`lr: 1` in a file is the number 1.0, unless its range forbids it."""
    value = 0 if key in ("dropout", "momentum") else 1
    made = getattr(make(section, **{key: value}), key)
    assert made == value
    assert type(made) is float


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        *((s, k, v) for s, k in EVERY_KEY for v in (-1, -0.5)
          if isinstance(DEFAULTS[s].get(k), int | float)),
        *((s, k, 0) for s, k in EVERY_KEY
          if type(DEFAULTS[s].get(k)) is int and DEFAULTS[s][k] > 0),
        *((s, k, v) for s, k in EVERY_KEY for v in (math.nan, math.inf, -math.inf)
          if type(DEFAULTS[s].get(k)) is float),
        *((s, k, "") for s, k in EVERY_KEY
          if DEFAULTS[s].get(k) is None or isinstance(DEFAULTS[s][k], str)),
        (LoggingConfig, "log_images_every_n_steps", 0),
        (TrainingConfig, "max_epochs", 2**63),
        (ModelConfig, "dropout", 1.0),
        (OptimizerConfig, "momentum", 1.0),
        (OptimizerConfig, "lr", 0.0),
        (OptimizerConfig, "eps", 0.0),
        (TrainingConfig, "max_grad_norm", 0.0),
        (SLURMConfig, "time", "0"),
        (SLURMConfig, "time", "noon"),
        (SLURMConfig, "mem", "0G"),
        (SLURMConfig, "partition", "gpu\udc80"),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_refused(
    section: type[Section], key: str, value: Any
) -> None:
    """Negative sizes, zeros, NaN, infinities and empty names are refused."""
    with pytest.raises(ValidationError):
        make(section, **{key: value})


@pytest.mark.parametrize(
    "betas",
    [
        *([], [0.9], [0.9, 0.99, 0.999], [0.9, 1.0], [-0.1, 0.9], ["0.9", 0.99]),
        *([True, 0.9], {0.9, 0.99}, {"a": 1}, "ab", None, 0.9, [math.nan, 0.9]),
    ],
)
def test_betas_are_two_fractions(betas: Any) -> None:
    """Neither fewer, nor more, nor in a container without an order."""
    with pytest.raises(ValidationError):
        OptimizerConfig(betas=betas)


def test_betas_are_taken_as_a_list_or_a_tuple() -> None:
    """YAML gives lists, Python tuples; both become the same tuple."""
    from_list = OptimizerConfig.model_validate({"betas": [0, 0.5]})
    assert from_list == OptimizerConfig(betas=(0, 0.5))
    assert from_list.betas == (0.0, 0.5)


@pytest.mark.parametrize("section", [s for s in DEFAULTS if s is not ModelConfig])
def test_unknown_keys_are_refused(section: type[Section]) -> None:
    """A misspelt key is never ignored."""
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        make(section, tpye="a")


def test_further_keys_of_the_model_are_kept_as_attributes() -> None:
    """Models differ: what the schema does not know is given on, plain and copied."""
    layers = [64, (32, 16)]
    model = ModelConfig.model_validate(
        {"type": "mlp", "layers": layers, "top": {"bias": False, "limit": -math.inf}}
    )
    layers.append(1)
    assert model.layers == [64, [32, 16]]  # type: ignore[attr-defined]
    assert model.top == {"bias": False, "limit": -math.inf}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({"x": math.nan}, "NaN"),
        ({"x": [{"y": math.nan}]}, "NaN"),
        ({"x": {1: 2}}, "a key must be text, found a Python int"),
        ({"x": {"a.b": 1}}, "empty or holds a dot"),
        ({"x": {"": 1}}, "empty or holds a dot"),
        ({"a.b": 1}, "empty or holds a dot"),
        ({"": 1}, "empty or holds a dot"),
        ({"x": object()}, "a Python object"),
        ({"x": {1, 2}}, "a Python set"),
        ({"x": b"a"}, "a Python bytes"),
        ({"x": OptimizerConfig()}, "a Python OptimizerConfig"),
        ({"x": "\ud800"}, "surrogate"),
        ({"x": {"\ud800": 1}}, "surrogate"),
        ({"x": 2**1024}, "1025 bits"),
        ({"x": -(2**1024)}, "1025 bits"),
    ],
)
def test_what_no_file_can_hold_is_no_extra(extra: dict[str, Any], reason: str) -> None:
    """Whatever is accepted can be saved and read back equal."""
    with pytest.raises(ValidationError, match=reason):
        make(ModelConfig, **extra)


def test_sections_are_frozen() -> None:
    """No key of a section, known or further, can be set or deleted."""
    model = ModelConfig.model_validate({"type": "mlp", "heads": 4})
    for key in ("type", "heads", "new"):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(model, key, 1)
    with pytest.raises(ValidationError, match="frozen"):
        del model.type


def test_slurm_quantities_are_numbers_with_units() -> None:
    """Consumers get seconds and bytes, and None where the site decides."""
    slurm = SLURMConfig(time="1-00:00:00", mem="2G")
    assert (slurm.time_s, slurm.mem_bytes) == (86400, 2**31)
    assert SLURMConfig().mem_bytes is None
