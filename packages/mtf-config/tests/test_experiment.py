import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from mtf_config import (
    CheckpointConfig,
    ConfigurationManager,
    ExperimentConfig,
    LoggingConfig,
    OptimizerConfig,
    TrainingConfig,
)

MINIMAL: dict[str, Any] = {
    "experiment_name": "digits",
    "model": {"type": "mlp"},
    "data": {"dataset_name": "digits"},
}
GOLDEN_HASH = "efdbf907cb1f00dba2dafe38f7ea5ae9088b887960419ed71f0d472a16c4a1b7"


def make(**values: Any) -> ExperimentConfig:
    """Make a config of what is required and *values*."""
    return ExperimentConfig.model_validate(MINIMAL | values)


def with_extra(value: Any) -> ExperimentConfig:
    """Make a config whose model has the further key ``x``."""
    return make(model={"type": "mlp", "x": value})


@pytest.fixture
def manager(tmp_path: Path) -> ConfigurationManager:
    """Manage an empty project with one environment variable."""
    return ConfigurationManager(tmp_path, environ={"DECAY": "0.25"})


def test_defaults_are_the_documented_ones() -> None:
    """Three keys make an experiment; everything else has its promised default."""
    config = make()
    assert config.model_dump(exclude={"model", "data"}) == {
        "experiment_name": "digits",
        "description": "",
        "entry_point": None,
        "seed": 0,
        "training": TrainingConfig().model_dump(),
        "optimizer": OptimizerConfig().model_dump(),
        "scheduler": None,
        "logging": LoggingConfig().model_dump(),
        "checkpoint": CheckpointConfig().model_dump(),
        "slurm": None,
    }


@pytest.mark.parametrize("name", ["a", "0", "A-b_c.d", "x" * 128, "a..b"])
def test_good_names(name: str) -> None:
    """Names of folders, branches and jobs alike are taken."""
    assert make(experiment_name=name).experiment_name == name


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "../x", "a/b", "/a", "-a", "_a", ".a", "a b", "a\n", "a\0"),
        *("x" * 129, "ä", "$(id)", "a;b", "a\\b", "~", "${seed}", "a\udc80", 1, None),
    ],
)
def test_bad_names(name: Any) -> None:
    """Nothing that could leave the folder or reach a shell is a name."""
    with pytest.raises(ValidationError):
        make(experiment_name=name)


@pytest.mark.parametrize(
    "entry_point",
    ["train.py", "src/train.py", "pkg.module:main", "main:run", "_a:b", "a-b/c.d.py"],
)
def test_good_entry_points(entry_point: str) -> None:
    """Scripts inside the project and functions of modules are taken."""
    assert make(entry_point=entry_point).entry_point == entry_point


@pytest.mark.parametrize(
    "entry_point",
    [
        *("", "train", "/etc/x.py", "../x.py", "a/../x.py", "./x.py", "a//x.py", "-x.py"),
        *("x.py --flag", "x.py;id", "x.py\n", "os:system()", "a:b:c", "1a:b", ":b", "a:"),
        *("~/x.py", "x.sh", "a b.py", "$HOME/x.py", "os.:x"),
    ],
)
def test_bad_entry_points(entry_point: str) -> None:
    """Nothing that leaves the project, or is a command, is an entry point."""
    with pytest.raises(ValidationError):
        make(entry_point=entry_point)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, "1", True, None])
def test_bad_seeds(seed: Any) -> None:
    """A seed is one that every generator takes: 32 bits."""
    with pytest.raises(ValidationError):
        make(seed=seed)


def test_trainer_is_another_name_of_training() -> None:
    """`trainer:` is read, also by the constructor; together they are refused."""
    assert make(trainer={"max_epochs": 3}).training.max_epochs == 3
    with pytest.raises(ValidationError, match="one section"):
        make(trainer={}, training={})


def test_configs_are_frozen() -> None:
    """No key can be set or deleted."""
    config = make()
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 1
    with pytest.raises(ValidationError, match="frozen"):
        del config.seed


@pytest.mark.parametrize(
    ("left", "right"), [(1, 1.0), (1, True), (0, False), (0.0, -0.0), ([1], [True])]
)
def test_values_that_python_calls_equal_are_told_apart(left: Any, right: Any) -> None:
    """1, 1.0 and true are three values, as they are in a file."""
    a, b = with_extra(left), with_extra(right)
    assert a != b
    assert a.content_hash() != b.content_hash()


def test_equality_is_by_value() -> None:
    """Where values came from does not count, another type is never equal."""
    explicit = make(seed=0, training={"max_epochs": 100, "max_grad_norm": 1})
    assert explicit == make()
    assert hash(explicit) == hash(make())
    assert make() != make(seed=1)
    assert make() != MINIMAL


def test_content_hash_is_the_same_everywhere() -> None:
    """The hash of this content is this one, on every platform and Python."""
    model = {"type": "mlp", "x": [1, 1.0, -0.0, 1e-05, 1e22, None, True, "ä\n"]}
    config = make(model=model, scheduler={"min_lr": 1e-7}, slurm={"mem": "32G"})
    assert config.content_hash() == GOLDEN_HASH


def test_content_hash_ignores_the_order_of_keys_and_the_name() -> None:
    """Only what the run computes counts."""
    one = make(model={"type": "mlp", "a": {"b": 1, "c": 2}, "d": 3}, seed=1)
    other = ExperimentConfig.model_validate(
        {
            "seed": 1,
            "data": {"dataset_name": "digits"},
            "model": {"d": 3, "a": {"c": 2, "b": 1}, "type": "mlp"},
            "experiment_name": "another",
        }
    )
    assert one.content_hash() == other.content_hash()
    assert one != other


def changed(value: Any) -> Any:
    """Return another valid value for a key that holds *value*."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return (0.5, 0.5)
    if isinstance(value, str):
        return "02:00:00" if ":" in value else "a:b" if not value else f"{value}2"
    return value + 1 if isinstance(value, int) else value / 2 + 0.1


def every_change() -> list[Any]:
    """List (section or none, key, other value) for every key of the schema."""
    full = make(
        entry_point="a.py",
        data={"dataset_name": "d", "root": "r"},
        scheduler={},
        slurm=dict.fromkeys(["account", "partition", "qos", "constraint"], "x")
        | {"gpu_type": "x", "mem": "1"},
        logging={"wandb_project": "p", "wandb_entity": "e",
                 "log_images_every_n_steps": 1},
    )  # fmt: skip
    cases: list[Any] = []
    for name, value in full:
        if name == "entry_point":
            cases.append(pytest.param(full, None, name, "b.py", id=name))
        elif not hasattr(value, "model_fields_set"):
            cases.append(pytest.param(full, None, name, changed(value), id=name))
        else:
            cases += [
                pytest.param(full, name, key, changed(item), id=f"{name}.{key}")
                for key, item in value
            ]
    return cases


@pytest.mark.parametrize(("full", "section", "key", "value"), every_change())
def test_content_hash_covers_every_value(
    full: ExperimentConfig, section: str | None, key: str, value: Any
) -> None:
    """Any change of any key but the name changes the hash; every change unequal."""
    values = full.model_dump()
    (values[section] if section else values)[key] = value
    other = ExperimentConfig.model_validate(values)
    assert other != full
    assert (other.content_hash() == full.content_hash()) == (key == "experiment_name")


def test_provenance_of_files_overrides_placeholders_and_defaults(
    manager: ConfigurationManager, tmp_path: Path
) -> None:
    """Every kind of value says where it came from, to the line and column."""
    Path(tmp_path, "a.yaml").write_text(
        "experiment_name: a\n"
        "model: {type: mlp, layers: [64, {width: 8}], dict: {list: 1}}\n"
        "data:\n"
        "  dataset_name: digits\n"
        "trainer:\n"
        "  max_epochs: 3\n"
        "optimizer:\n"
        "  weight_decay: ${env:DECAY}\n"
        "  betas: [0.8, 0.9]\n"
        "  momentum: ${model.dropout}\n"
        "scheduler: null\n",
        "utf-8",
    )
    config = manager.load("a.yaml", ["optimizer.lr=1", "~scheduler", "+model.y=[1, 2]"])
    expected = {
        "experiment_name": "a.yaml:1:18",
        "model": "a.yaml:2:8",
        "model.layers": "a.yaml:2:28",
        "model.layers.0": "a.yaml:2:29",
        "model.layers.1.width": "a.yaml:2:41",
        "model.dict.list": "a.yaml:2:59",
        "model.y.1": "override '+model.y=[1, 2]'",
        "model.dropout": "default",
        "training": "a.yaml:6:3",
        "training.max_epochs": "a.yaml:6:15",
        "trainer.max_epochs": "a.yaml:6:15",
        "trainer.use_amp": "default",
        "optimizer.weight_decay": "a.yaml:8:17 (from ${env:DECAY})",
        "optimizer.momentum": "a.yaml:10:13 (from ${model.dropout})",
        "optimizer.betas": "a.yaml:9:10",
        "optimizer.betas.1": "a.yaml:9:16",
        "optimizer.lr": "override 'optimizer.lr=1'",
        "optimizer.eps": "default",
        "scheduler": "default",
        "seed": "default",
        "logging.use_wandb": "default",
    }
    assert {key: str(config.provenance(key)) for key in expected} == expected
    assert config.optimizer.weight_decay == 0.25


def test_provenance_of_what_was_made_in_code() -> None:
    """Without a file, a value was given by code or is a default."""
    config = make(optimizer={"lr": 1.0, "betas": [0.1, 0.2]})
    given = ("model", "model.type", "optimizer", "optimizer.lr", "optimizer.betas.1")
    assert {str(config.provenance(key)) for key in given} == {"code"}
    filled_in = ("seed", "model.dropout", "optimizer.eps", "training.use_amp", "slurm")
    assert {str(config.provenance(key)) for key in filled_in} == {"default"}


@pytest.mark.parametrize(
    "key",
    [
        *("", ".", "x", "model.", ".model", "model.x.y", "model.xs.2", "model.xs.-1"),
        *("model.xs.01", "model.xs.x", "seed.x", "scheduler.type", "model.model_dump"),
        *("optimizer.trainer", "model_fields", "__class__", "_origins", "Model"),
        "model.xs." + "9" * 5000,
    ],
)
def test_provenance_of_no_key_is_a_key_error(key: str) -> None:
    """Whatever is no key of the config is a KeyError, and nothing else."""
    config = make(model={"type": "mlp", "x": 1, "xs": [1, 2]})
    with pytest.raises(KeyError):
        config.provenance(key)


@pytest.mark.parametrize("from_manager", [True, False])
def test_model_copy_validates_and_says_code(
    manager: ConfigurationManager, *, from_manager: bool
) -> None:
    """A copy cannot smuggle a value past the schema, and knows what was changed."""
    values = MINIMAL | {"optimizer": {"lr": 0.5}}
    config = manager.create_config(values) if from_manager else make(**values)
    other = config.model_copy(
        update={
            "experiment_name": "b",
            "optimizer": OptimizerConfig(lr=0.25),
            "trainer": {"max_epochs": 2},
        }
    )
    assert (other.experiment_name, other.optimizer.lr) == ("b", 0.25)
    assert other.training == TrainingConfig(max_epochs=2)
    assert config.experiment_name == "digits"
    for key in ("experiment_name", "optimizer.lr", "training.max_epochs"):
        assert str(other.provenance(key)) == "code"
    for key in ("optimizer.eps", "training.batch_size", "seed"):
        assert str(other.provenance(key)) == "default"
    updates: tuple[dict[str, Any], ...] = (
        {"experiment_name": "../x"},
        {"optimizer": {"lr": "fast"}},
        {"no_such": 1},
        {"model": {"type": "mlp", "a.b": 1}},
        {"trainer": {}, "training": {}},
    )
    for update in updates:
        with pytest.raises(ValueError, match=r"valid|permitted|one section"):
            config.model_copy(update=update)


def test_model_copy_keeps_the_origins_of_the_rest(
    manager: ConfigurationManager, tmp_path: Path
) -> None:
    """What was not changed still comes from its file."""
    text = "{experiment_name: a, model: {type: m}, data: {dataset_name: d}, seed: 3}\n"
    Path(tmp_path, "a.yaml").write_text(text, "utf-8")
    config = manager.load("a.yaml")
    other = config.model_copy(update={"experiment_name": "b"})
    assert str(other.provenance("seed")) == "a.yaml:1:71"
    assert str(other.provenance("experiment_name")) == "code"
    assert str(config.provenance("experiment_name")) == "a.yaml:1:19"
    assert other.content_hash() == config.content_hash()
    assert config.model_copy() == config
    assert str(config.model_copy(deep=True).provenance("seed")) == "a.yaml:1:71"


def test_copies_and_pickles_are_equal_and_keep_origins(
    manager: ConfigurationManager,
) -> None:
    """Configs cross processes whole."""
    values = MINIMAL | {"model": {"type": "m", "xs": [1, {"a": None}]}}
    config = manager.create_config(values, ["seed=3"])
    for other in (
        copy.copy(config),
        copy.deepcopy(config),
        *(pickle.loads(pickle.dumps(config, n)) for n in range(2, 6)),  # noqa: S301
    ):
        assert other == config
        assert hash(other) == hash(config)
        assert str(other.provenance("seed")) == "override 'seed=3'"
        assert str(other.provenance("model.xs.1.a")) == "code"


def test_subclasses_are_not_equal_to_their_base() -> None:
    """A config of another schema is another config, whichever side it stands on."""

    class Mine(ExperimentConfig):
        mine: int = 1

    assert make() != Mine.model_validate(MINIMAL)
    assert Mine.model_validate(MINIMAL) != make()
