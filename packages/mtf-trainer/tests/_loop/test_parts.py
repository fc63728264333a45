from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies.dp import DataParallelStrategy
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from mtf_trainer import CheckpointSettings, GenericTrainerConfig, SchedulerSpec
from mtf_trainer._loop.parts import (
    as_list,
    as_spec,
    check_parts,
    deterministic,
    set_up_model,
    settings_of,
)


@pytest.fixture
def model() -> nn.Module:
    """Return one layer."""
    return nn.Linear(4, 2)


@pytest.fixture
def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """Return one of its parameters."""
    return torch.optim.SGD(model.parameters())


def settings(**given: Any) -> GenericTrainerConfig:
    """Return settings of a run that is never begun."""
    return GenericTrainerConfig(run_dir=Path("run"), **given)


@pytest.mark.parametrize(
    ("value", "listed"), [(None, []), (3, [3]), ([3, 4], [3, 4]), ((3,), [3])]
)
def test_one_several_or_none_become_a_list(value: object, listed: list[int]) -> None:
    """Lists and tuples stand for several."""
    assert as_list(value) == listed


def test_scheduler_steps_as_it_is_set(optimizer: torch.optim.Optimizer) -> None:
    """By the settings, if it does not say so itself; a plateau is one of a metric."""
    config = settings(
        scheduler_interval="step", checkpoint=CheckpointSettings(monitor="accuracy")
    )
    scheduler = StepLR(optimizer, 1)
    plateau = ReduceLROnPlateau(optimizer)
    own = SchedulerSpec(scheduler=scheduler, interval="epoch")

    assert as_spec(own, config) is own
    assert as_spec(scheduler, config).interval == "step"
    found = as_spec(plateau, config)
    assert (found.scheduler, found.interval, found.monitor) == (
        plateau,
        "metric",
        "accuracy",
    )
    with pytest.raises(TypeError, match="scheduler must be a scheduler of torch"):
        as_spec("cosine", config)


def test_parts_of_other_kinds_are_refused(
    fabric: Fabric, model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """With what they are, and what they must be."""
    check_parts(fabric, model, [optimizer])

    with pytest.raises(TypeError, match="there is none"):
        check_parts(fabric, model, [])
    with pytest.raises(TypeError, match=r"must be a torch\.optim\.Optimizer, not 'sgd'"):
        check_parts(fabric, model, [optimizer, "sgd"])
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module"):
        check_parts(fabric, torch.ones, [optimizer])


def test_model_without_shapes_is_refused(fabric: Fabric) -> None:
    """A lazy parameter or buffer is named, with what to do; afterwards all is well."""
    lazy = nn.Sequential(nn.Linear(4, 3), nn.LazyLinear(2))
    optimizer = torch.optim.SGD(lazy.parameters())

    with pytest.raises(ValueError, match=r"1\.weight of the model has no shape .* batch"):
        check_parts(fabric, lazy, [optimizer])
    with pytest.raises(ValueError, match="running_mean of the model has no shape yet"):
        check_parts(fabric, nn.LazyBatchNorm1d(affine=False), [optimizer])

    lazy(torch.zeros(1, 4))
    check_parts(fabric, lazy, [optimizer])


def test_sparse_gradients_are_refused(
    fabric: Fabric, optimizer: torch.optim.Optimizer
) -> None:
    """Before a step is taken: the layer is named, and what to make it with."""
    sparse = nn.Sequential(nn.Embedding(4, 2, sparse=True), nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"0 has sparse gradients.*sparse=False"):
        check_parts(fabric, sparse, [optimizer])
    adam = torch.optim.SparseAdam(sparse.parameters())
    with pytest.raises(ValueError, match="SparseAdam is of sparse gradients"):
        check_parts(fabric, sparse, [adam])


def test_optimizer_of_other_parameters_is_refused(
    fabric: Fabric, model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """One foreign parameter is enough, in any group; a part of the model's is fine."""
    other = nn.Linear(3, 1)
    mixed = torch.optim.SGD(
        [{"params": [model.get_parameter("weight")]}, {"params": [other.bias]}]
    )

    check_parts(fabric, model, [torch.optim.SGD([model.get_parameter("bias")])])
    with pytest.raises(ValueError, match=r"optimizer 1 has a parameter of shape \(1,\)"):
        check_parts(fabric, model, [optimizer, mixed])


def test_scheduler_of_another_optimizer_is_refused(
    fabric: Fabric, model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Wrapped or not, it must be one of the trainer's; one without any is let through."""
    wrapped, wrapped_optimizer = fabric.setup(model, optimizer)
    own = as_spec(StepLR(optimizer, 1), settings())
    foreign = as_spec(StepLR(torch.optim.SGD(model.parameters()), 1), settings())
    free = as_spec(StepLR(optimizer, 1), settings())
    del free.scheduler.optimizer

    check_parts(fabric, model, [optimizer], [own, free])
    check_parts(fabric, wrapped, [wrapped_optimizer], [own])
    with pytest.raises(
        ValueError, match="scheduler 1, a StepLR, is of an optimizer that"
    ):
        check_parts(fabric, model, [optimizer], [own, foreign])


def test_other_strategy_is_refused(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """With its name."""
    strategy = DataParallelStrategy(parallel_devices=[torch.device("cpu")])

    with pytest.raises(ValueError, match="not DataParallelStrategy"):
        check_parts(Fabric(accelerator="cpu", strategy=strategy), model, [optimizer])


def test_half_of_what_is_set_up_is_refused(
    fabric: Fabric, model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """All was set up, or nothing; what was, is taken as it is."""
    wrapped, wrapped_optimizer = fabric.setup(model, optimizer)
    parts = wrapped, [wrapped_optimizer]

    check_parts(fabric, *parts)
    assert set_up_model(settings(), fabric, wrapped, parts[1]) == parts
    for half in ((model, parts[1]), (wrapped, [optimizer])):
        with pytest.raises(ValueError, match="both model and optimizer, or neither"):
            check_parts(fabric, *half)


class Checkpointed(nn.Linear):
    """A layer that can recompute what it gave."""

    enabled = False

    def gradient_checkpointing_enable(self) -> None:
        """Take note."""
        self.enabled = True


def test_gradient_checkpointing_is_the_models_own(fabric: Fabric) -> None:
    """It is told; one that cannot do it is refused."""
    able, unable = Checkpointed(4, 2), nn.Linear(4, 2)
    config = settings(gradient_checkpointing=True)

    set_up_model(config, fabric, able, [torch.optim.SGD(able.parameters())])

    assert able.enabled
    with pytest.raises(ValueError, match="Linear has no gradient_checkpointing_enable"):
        set_up_model(config, fabric, unable, [torch.optim.SGD(unable.parameters())])


def test_model_is_compiled_before_it_is_set_up(
    fabric: Fabric,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once; one that was set up is not compiled any more, and that is told."""
    compiled: list[object] = []

    def compile_it(model: object) -> object:
        compiled.append(model)
        return model

    monkeypatch.setattr(torch, "compile", compile_it)
    config = settings(compile=True)

    wrapped, optimizers = set_up_model(config, fabric, model, [optimizer])

    assert compiled == [model]
    with pytest.raises(ValueError, match="fabric has set up the model: compile it befor"):
        set_up_model(config, fabric, wrapped, optimizers)


def flags() -> tuple[bool, bool, bool]:
    """Return what `deterministic` changes."""
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
    )


def test_determinism_ends_with_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """The flags are those from before, also behind an error; without it none changes."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = flags()

    with deterministic(enabled=False):
        assert flags() == before
    found = []

    def fail() -> None:
        found.append(flags())
        raise KeyError

    with pytest.raises(KeyError), deterministic(enabled=True):
        fail()

    assert found == [(True, False, False)]
    assert flags() == before


def test_settings_are_told_by_their_names() -> None:
    """Those of a part with its name before them, folders as text."""
    found = settings_of(settings(seed=3, checkpoint=CheckpointSettings(keep_last_n=7)))

    assert found["seed"] == 3
    assert found["run_dir"] == "run"
    assert found["checkpoint.keep_last_n"] == 7
    assert "checkpoint" not in found
