from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from mtf_trainer._components import classification_step, components_from_config
from mtf_trainer._mlp import mlp
from mtf_trainer._registry import Registry
from mtf_trainer.config import CheckpointSettings, GenericTrainerConfig, GuardSettings
from mtf_trainer.errors import RegistryError


class Stream(IterableDataset[Tensor]):
    """Numbers, one after the other."""

    def __iter__(self) -> Any:
        yield torch.zeros(1)


def sum_up(samples: list[Any]) -> int:
    """Make a batch of samples."""
    return len(samples)


class Collated(Dataset[int]):
    """Says how its batches are made."""

    def __init__(self) -> None:
        self.collate_fn = sum_up

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> int:
        return index


@pytest.fixture
def registry() -> Registry:
    """Return one with data sets and a model."""
    registry = Registry()
    registry.register("model", "mlp")(mlp)
    registry.register("dataset", "stream")(Stream)
    registry.register("dataset", "collated")(Collated)

    @registry.register("dataset", "points")
    def points(split: str = "all", num: int = 8) -> TensorDataset:
        offset = {"all": 0, "train": 1, "dev": 2, "validation": 3}[split]
        return TensorDataset(torch.full((num, 4), float(offset)), torch.zeros(num))

    return registry


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    """Return the smallest config that says something of each section."""
    return {
        "run_dir": str(tmp_path / "run"),
        "seed": 7,
        "model": {"type": "mlp", "in_features": 4, "num_classes": 2, "hidden_size": 3},
        "data": {"dataset_name": "points", "batch_size": 4},
        "optimizer": {"type": "adamw", "lr": 0.25, "betas": [0.8, 0.9]},
        "scheduler": {"type": "cosineannealinglr", "T_max": 5},
        "training": {"max_epochs": 3, "gradient_accumulation_steps": 2},
    }


def test_a_config_is_built(registry: Registry, config: dict[str, Any]) -> None:
    """Each section becomes what it names, over the parts it belongs to."""
    built = components_from_config(config, registry)

    assert built.config == GenericTrainerConfig(
        run_dir=Path(config["run_dir"]), seed=7, gradient_accumulation_steps=2
    )
    assert built.max_epochs == 3
    assert isinstance(built.optimizer, torch.optim.AdamW)
    group = built.optimizer.param_groups[0]
    assert (group["lr"], list(group["betas"])) == (0.25, [0.8, 0.9])
    assert group["params"] == list(built.model.parameters())
    scheduler = built.scheduler
    assert isinstance(scheduler, torch.optim.lr_scheduler.CosineAnnealingLR)
    assert scheduler.optimizer is built.optimizer
    assert built.train_loader.batch_size == 4
    assert isinstance(built.train_loader.sampler, torch.utils.data.RandomSampler)
    assert built.val_loader is None


@pytest.mark.parametrize("scheduler", [{}, {"scheduler": None}])
def test_scheduler_and_settings_may_be_left_out(
    registry: Registry, config: dict[str, Any], scheduler: dict[str, None]
) -> None:
    """Without them the rate is constant, one epoch is done, and defaults hold."""
    for name in ("scheduler", "training", "seed"):
        del config[name]

    built = components_from_config({**config, **scheduler, "guard": None}, registry)

    assert built.scheduler is None
    assert built.max_epochs == 1
    assert built.config == GenericTrainerConfig(run_dir=Path(config["run_dir"]))


def test_settings_of_the_trainer_are_taken(
    registry: Registry, config: dict[str, Any]
) -> None:
    """Sections become its settings, with strings as paths where these are needed."""
    config["checkpoint"] = {"keep_last_n": 5, "encryption_key_file": "keys/now"}
    config["guard"] = {"on_explosion": "rollback"}

    settings = components_from_config(config, registry).config

    assert settings.checkpoint == CheckpointSettings(
        keep_last_n=5, encryption_key_file=Path("keys/now")
    )
    assert settings.guard == GuardSettings(on_explosion="rollback")


@pytest.mark.parametrize(
    ("splits", "train", "val"),
    [
        ({}, 0, None),
        ({"train_split": "dev"}, 2, None),
        ({"val_split": "validation"}, 1, 3),
        ({"train_split": "dev", "val_split": "validation"}, 2, 3),
        ({"train_split": "dev", "val_split": None}, 2, None),
    ],
)
def test_splits_choose_the_data(
    registry: Registry,
    config: dict[str, Any],
    splits: dict[str, Any],
    train: int,
    val: int | None,
) -> None:
    """A data set gets the split it is asked for; without any, none; val is optional."""
    config["data"] |= {**splits, "num": 6, "drop_last": True}

    built = components_from_config(config, registry)

    assert next(iter(built.train_loader))[0][0, 0] == train
    assert len(built.train_loader) == 1
    if val is None:
        assert built.val_loader is None
    else:
        assert built.val_loader is not None
        assert [len(x) for x, _ in built.val_loader] == [4, 2]
        assert next(iter(built.val_loader))[0][0, 0] == val
        assert isinstance(built.val_loader.sampler, torch.utils.data.SequentialSampler)


def test_a_stream_is_not_shuffled(registry: Registry, config: dict[str, Any]) -> None:
    """A data set that cannot be shuffled is read as it comes."""
    config["data"] = {"dataset_name": "stream"}

    built = components_from_config(config, registry)

    assert [len(x) for x in built.train_loader] == [1]


def test_a_data_set_may_make_its_batches(
    registry: Registry, config: dict[str, Any]
) -> None:
    """Its collate_fn is used."""
    config["data"] = {"dataset_name": "collated", "batch_size": 3, "shuffle": False}

    assert list(components_from_config(config, registry).train_loader) == [3, 2]


def test_the_model_is_drawn_from_the_seed(
    registry: Registry, config: dict[str, Any]
) -> None:
    """The same seed makes the same weights; streams outside are left as they were."""
    torch.manual_seed(1)
    first = components_from_config(config, registry).model.state_dict()
    drawn = torch.rand(1)
    again = components_from_config(config, registry).model.state_dict()
    other = components_from_config({**config, "seed": 8}, registry).model.state_dict()
    torch.manual_seed(1)

    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["1.weight"], other["1.weight"])
    assert torch.equal(torch.rand(1), drawn)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"sed": 3}, "sed is no setting; did you mean seed"),
        ({"trainning": {}}, "trainning is no setting; did you mean training"),
        ({"training": {"max_epoch": 3}}, "training.max_epoch is .*mean max_epochs"),
        ({"training": {"run_dir": "x"}}, "training.run_dir is no setting"),
        ({"training": {"max_epochs": 0}}, "training.max_epochs must be .* from 1, not 0"),
        (
            {"training": {"max_epochs": True}},
            "training.max_epochs must be a whole number",
        ),
        ({"training": {"max_grad_norm": -1}}, "max_grad_norm must be above 0"),
        ({"checkpoint": {"keep_lastn": 3}}, "checkpoint.keep_lastn .*mean keep_last_n"),
        ({"run_dir": "a\0b"}, r"run_dir must have no NUL character, as 'a\\x00b' has"),
        ({"guard": {"explosion_factor": 0.5}}, "explosion_factor must be above 1"),
        ({"optimizer": {"lr": 1.0}}, "optimizer.type is missing; there are: lr"),
        ({"optimizer": {"typ": "sgd"}}, "optimizer.type is missing; did you mean typ"),
        ({"data": {"batch_size": 1}}, "data.dataset_name is missing"),
    ],
)
def test_a_key_that_is_wrong_is_told(
    registry: Registry, config: dict[str, Any], change: dict[str, Any], told: str
) -> None:
    """Unknown, missing or out of its range: with its place and the nearest name."""
    with pytest.raises(ValueError, match=told):
        components_from_config({**config, **change}, registry)


@pytest.mark.parametrize("name", ["model", "data", "optimizer", "run_dir"])
def test_what_cannot_be_left_out(
    registry: Registry, config: dict[str, Any], name: str
) -> None:
    """A section that is needed is asked for by its name."""
    del config[name]

    with pytest.raises(ValueError, match=f"the config has no (section )?{name}"):
        components_from_config(config, registry)


@pytest.mark.parametrize(
    ("section", "change", "told"),
    [
        (
            "optimizer",
            {"learning_rates": 1},
            "optimizer 'adamw' takes no 'learning_rates'",
        ),
        ("scheduler", {"t_max": 1}, "takes no 't_max'; did you mean T_max"),
        ("model", {"hiden_size": 1}, "takes no 'hiden_size'; did you mean hidden_size"),
        ("data", {"numb": 1}, "dataset 'points' takes no 'numb'; did you mean num"),
        ("data", {"shuffle": "no"}, "data.shuffle must be a bool, not 'no'"),
        ("data", {"num_workers": 1.0}, "data.num_workers must be a int, not 1.0"),
        ("data", {"batch_size": True}, "data.batch_size must be a int, not True"),
    ],
)
def test_a_key_that_a_component_does_not_take_is_told(
    registry: Registry,
    config: dict[str, Any],
    section: str,
    change: dict[str, Any],
    told: str,
) -> None:
    """With the component and the nearest of its parameters."""
    config[section] |= change

    with pytest.raises(TypeError, match=told):
        components_from_config(config, registry)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("batchsize", "batch_size"), ("shufle", "shuffle"), ("val_splits", "val_split")],
)
def test_keys_of_the_loader_are_told_with_those_of_the_data(
    registry: Registry, config: dict[str, Any], key: str, nearest: str
) -> None:
    """A slip in a key of the loader's names the nearest of these too."""
    config["data"][key] = 3

    told = f"^data: dataset 'points' takes no '{key}'; did you mean .*{nearest}"
    with pytest.raises(TypeError, match=told):
        components_from_config(config, registry)


@pytest.mark.parametrize(
    ("change", "kind", "told"),
    [
        ({"model": {"type": "bad"}}, RegistryError, "^model: KeyError: 'mine'$"),
        (
            {"model": {"type": "mlp", "in_features": 4, "num_classes": -1}},
            ValueError,
            "^model: num_classes must be at least 1, not -1",
        ),
        ({"optimizer": {"type": "sgd", "lr": -1.0}}, ValueError, "^optimizer: Invalid"),
        ({"model": {"type": "mlp"}}, TypeError, "^model: model 'mlp': missing"),
        ({"optimizer": {"type": "lbfgs"}}, ValueError, "^optimizer: LBFGS calls"),
        (
            {"scheduler": {"type": "cosine"}},
            RegistryError,
            "^scheduler: there is no scheduler 'cosine'; there are: Chained",
        ),
        (
            {
                "scheduler": {
                    "type": "chainedscheduler",
                    "schedulers": [{"type": "linearlr", "start_factor": 9}],
                }
            },
            ValueError,
            r"^scheduler\.schedulers\.0: ",
        ),
        (
            {"data": {"dataset_name": "points", "num": -1}},
            RegistryError,
            "^data: RuntimeError: ",
        ),
        (
            {"data": {"dataset_name": "points", "batch_size": -1}},
            ValueError,
            "^data: batch_size",
        ),
    ],
)
def test_what_a_component_raises_names_its_section(
    registry: Registry,
    config: dict[str, Any],
    change: dict[str, Any],
    kind: type[Exception],
    told: str,
) -> None:
    """A wrong type or value stays one; the error itself is the cause."""

    @registry.register("model", "bad")
    def bad() -> torch.nn.Module:
        message = "mine"
        raise KeyError(message)

    with pytest.raises(kind, match=told) as caught:
        components_from_config({**config, **change}, registry)

    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model": "mlp"}, "model must be a mapping with names as keys, not 'mlp'"),
        ({"model": {1: 2}}, "model must be a mapping with names"),
        ({"optimizer": None}, "optimizer must be a mapping"),
        ({"training": [1]}, r"training must be a mapping with names as keys, not \[1\]"),
        ({"modules": "os"}, "modules must be a list of names, not 'os'"),
        ({"seed": "1"}, "seed must be a whole number"),
        ({"run_dir": 3}, "run_dir must be a Path"),
    ],
)
def test_a_value_of_the_wrong_type_is_told(
    registry: Registry, config: dict[str, Any], change: dict[str, Any], told: str
) -> None:
    """With the key and what was found."""
    with pytest.raises(TypeError, match=told):
        components_from_config({**config, **change}, registry)


def test_a_config_that_is_none_is_told(registry: Registry) -> None:
    """A list, or the path of a file, is no config."""
    with pytest.raises(TypeError, match="the config must be a mapping"):
        components_from_config(cast(Any, "config.yaml"), registry)


def test_schedulers_of_schedulers_are_built(
    registry: Registry, config: dict[str, Any]
) -> None:
    """One after the other and chained, over the one optimizer."""
    warm_up = {"type": "linearlr", "start_factor": 0.5, "total_iters": 2}
    half = {"type": "exponentiallr", "gamma": 0.5}
    in_turn = {"type": "sequentiallr", "schedulers": [warm_up, half], "milestones": [2]}
    slower = {"type": "exponentiallr", "gamma": 0.9}
    config["scheduler"] = {"type": "ChainedScheduler", "schedulers": [in_turn, slower]}

    built = components_from_config(config, registry)

    def rates(optimizer: torch.optim.Optimizer, scheduler: Any) -> list[float]:
        found = []
        for _ in range(5):
            found.append(float(optimizer.param_groups[0]["lr"]))
            optimizer.step()
            scheduler.step()
        return found

    by_hand = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.25)
    kinds = torch.optim.lr_scheduler
    parts: list[Any] = [
        kinds.LinearLR(by_hand, 0.5, total_iters=2),
        kinds.ExponentialLR(by_hand, 0.5),
    ]
    sequence = kinds.SequentialLR(by_hand, parts, [2])
    both = kinds.ChainedScheduler([sequence, kinds.ExponentialLR(by_hand, 0.9)])
    assert rates(built.optimizer, built.scheduler) == rates(by_hand, both)
    config["scheduler"] = {**in_turn, "schedulers": [half, config["scheduler"]]}
    with pytest.raises(ValueError, match=r"scheduler\.schedulers: .* made of others"):
        components_from_config(config, registry)


@pytest.mark.parametrize("name", ["LambdaLR", "multiplicativelr"])
def test_scheduler_of_a_function_is_refused(
    registry: Registry, config: dict[str, Any], name: str
) -> None:
    """A config has no functions; the error tells the way there is."""
    inner = {"type": name, "lr_lambda": "lambda n: 0.9**n"}
    config["scheduler"] = {"type": "chainedscheduler", "schedulers": [inner]}

    with pytest.raises(
        ValueError,
        match=rf"scheduler\.schedulers\.0\.type: {name} takes a function.*@reg",
    ):
        components_from_config(config, registry)


@pytest.mark.parametrize("given", [None, [], {"type": "steplr"}, "steplr"])
def test_schedulers_of_a_scheduler_are_a_list(
    registry: Registry, config: dict[str, Any], given: object
) -> None:
    """Anything else is named."""
    config["scheduler"] = {"type": "chainedscheduler", "schedulers": given}

    with pytest.raises(TypeError, match=r"scheduler\.schedulers must be a list of sch"):
        components_from_config(config, registry)


@pytest.mark.parametrize(
    ("section", "key", "value", "told"),
    [
        ("optimizer", "lr", "1e-3", "optimizer.lr must be a number, not '1e-3': YAML"),
        ("optimizer", "betas", [0.9, "1e-9"], "optimizer.betas.1 must.*write 1.0e-09"),
        ("scheduler", "eta_min", "1e-4", "scheduler.eta_min must.*write 0.0001"),
        ("training", "max_grad_norm", "1e1", "max_grad_norm must.*write 10.0"),
    ],
)
def test_number_that_yaml_took_for_text_is_named(
    registry: Registry,
    config: dict[str, Any],
    section: str,
    key: str,
    value: object,
    told: str,
) -> None:
    """With the way to write it; ``1e-3`` has no point, and YAML 1.1 wants one."""
    config[section] = {**config[section], key: value}

    with pytest.raises(TypeError, match=told):
        components_from_config(config, registry)


@pytest.mark.parametrize(
    "path", ["os:system", "subprocess:run", "torch.hub:load", "builtins:exec"]
)
@pytest.mark.parametrize("section", ["model", "optimizer", "scheduler", "data"])
def test_a_hostile_config_runs_nothing(
    registry: Registry, config: dict[str, Any], section: str, path: str
) -> None:
    """A path outside the listed modules is refused in every section."""
    config[section] = {"type": path, "dataset_name": path, "command": "true"}
    if section == "data":
        del config[section]["type"]
    else:
        del config[section]["dataset_name"]

    with pytest.raises(RegistryError, match="is not listed"):
        components_from_config(config, registry)
    with pytest.raises(RegistryError, match="of Python itself"):
        components_from_config(config, registry, ["os"])


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make two modules of models that can be imported."""
    text = "from torch import nn\nclass Net(nn.Linear): ...\n"
    for name in ("lab_models", "lab_others"):
        (tmp_path / f"{name}.py").write_text(text, "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in ("lab_models", "lab_others"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("given", [["lab_models"], ["lab_models", "lab_others"]])
def test_listed_modules_are_imported_and_used(
    registry: Registry, config: dict[str, Any], given: list[str]
) -> None:
    """Those of the config, which must be among those of the program, if it has any."""
    config["model"] = {"type": "lab_models:Net", "in_features": 4, "out_features": 2}
    config["modules"] = ["lab_models"]

    built = components_from_config(config, registry, given)

    assert type(built.model).__module__ == "lab_models"
    assert ("lab_others" in sys.modules) == (len(given) > 1)


@pytest.mark.usefixtures("project")
def test_a_program_may_keep_the_list_to_itself(
    registry: Registry, config: dict[str, Any]
) -> None:
    """A config cannot name a module that the program does not allow: none is imported."""
    config["modules"] = ["lab_others"]

    with pytest.raises(RegistryError, match="this program allows: lab_models"):
        components_from_config(config, registry, ["lab_models"])
    with pytest.raises(RegistryError, match="this program allows: none"):
        components_from_config(config, registry, [])

    assert "lab_others" not in sys.modules


class Trainer:
    """Has a model that answers with its input."""

    def __init__(self) -> None:
        self.model: nn.Module = nn.Identity()

    def cross_entropy(self, z_BC: Tensor, y_B: Tensor) -> Tensor:
        """Return it, smoothed."""
        return nn.functional.cross_entropy(z_BC, y_B, label_smoothing=0.1)


def test_classification_counts_right_answers() -> None:
    """The loss is the trainer's own, and the accuracy the share of right answers."""
    z_BC = torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0], [5.0, 4.0]])
    y_B = torch.tensor([0, 1, 1, 0])

    told = classification_step(Trainer(), [z_BC, y_B], 0)
    soft = nn.functional.one_hot(y_B).float()

    expected = nn.functional.cross_entropy(z_BC, y_B, label_smoothing=0.1)
    assert torch.equal(told["loss"], expected)
    assert told["accuracy"] == 0.75
    assert classification_step(Trainer(), [z_BC, soft], 0)["accuracy"] == 0.75
