from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.strategies.model_parallel import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, TensorDataset

from mtf_trainer import CheckpointSettings, GenericTrainer, GenericTrainerConfig
from mtf_trainer._ranks.sharding import check_strategy, is_sharded


def make_fabric() -> Fabric:
    """Return one that shards the whole model over this process alone."""

    def parallelize(model: Any, mesh: Any) -> Any:
        return fully_shard(model, mesh=mesh["data_parallel"])

    strategy: Any = ModelParallelStrategy(
        parallelize, data_parallel_size=1, tensor_parallel_size=1
    )
    return Fabric(accelerator="cpu", devices=1, strategy=strategy)


@pytest.fixture(scope="module")
def alone() -> Iterator[Fabric]:
    """Launch it, in a group that stays connected."""
    before = dict(os.environ)
    fabric = make_fabric()
    fabric.launch()
    told: list[Any] = [None]
    dist.all_gather_object(told, 1)
    yield fabric
    dist.destroy_process_group()
    os.environ.clear()
    os.environ.update(before)


class Scaled(nn.Module):
    """A layer and a parameter, of which the layer uses another's weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.scale = nn.Parameter(torch.ones(4))
        self.layer = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.layer.weight

    def forward(self, x_BD: Tensor) -> Tensor:
        """Return as many features."""
        y_BD: Tensor = self.tied(self.layer(x_BD * self.scale))
        return y_BD


def step(trainer: GenericTrainer, batch: Any, _: int) -> Tensor:
    """Return a loss, and remember what the model gave."""
    loss: Tensor = trainer.model(batch[0]).square().mean()
    return loss


def make(
    fabric: Fabric,
    run_dir: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    **settings: Any,
) -> GenericTrainer:
    """Return a trainer that reports nothing."""
    defaults: dict[str, Any] = {"checkpoint": CheckpointSettings(asynchronous=False)}
    config = GenericTrainerConfig(
        run_dir=run_dir, show_progress=False, **defaults | settings
    )
    return GenericTrainer(config, fabric, model, optimizer, training_step=step)


def test_optimizer_gets_the_sharded_parameters(alone: Fabric, tmp_path: Path) -> None:
    """Made before the model was sharded, it trains what the model has now, in its groups."""
    model = Scaled()
    groups: list[dict[str, Any]] = [
        {"params": [model.scale], "lr": 0.5},
        {"params": [*model.layer.parameters(), model.tied.bias]},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1)

    trainer = make(alone, tmp_path, model, optimizer)

    assert is_sharded(alone)
    sharded = {id(p) for p in trainer.model.parameters()}
    held = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
    assert {i for group in held for i in group} == sharded
    assert [len(group) for group in held] == [1, 3]
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.1]
    assert all(isinstance(p, DTensor) for p in trainer.model.parameters())


def test_what_fabric_has_set_up_is_taken_as_it_is(alone: Fabric, tmp_path: Path) -> None:
    """If the optimizer was made of the sharded parameters."""
    model = alone.setup_module(Scaled())
    wanted = torch.optim.SGD(model.parameters(), 0.1)
    optimizer = cast(Any, alone.setup_optimizers(wanted))
    assert make(alone, tmp_path, model, optimizer).model is model

    whole = Scaled()
    early = torch.optim.SGD(whole.parameters(), 0.1)
    sharded, wrapped = cast(Any, alone.setup(whole, early))
    with pytest.raises(ValueError, match=r"make it after fabric\.setup_module"):
        make(alone, tmp_path, sharded, wrapped)


def test_average_takes_the_place_of_gathered_weights(
    alone: Fabric, tmp_path: Path
) -> None:
    """Weights that a pass gathered do not outlive the exchange with their average."""
    x_ND = torch.ones(8, 4)
    model = Scaled()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    trainer = make(alone, tmp_path, model, optimizer, ema_decay=0.9)
    loader = DataLoader(TensorDataset(x_ND), batch_size=8)

    own = trainer.fit(loader, max_epochs=2).metrics["loss"]
    with torch.no_grad():
        before = trainer.model(x_ND)
        averaged = trainer.validate(loader)["loss"]
        after = trainer.model(x_ND)

    assert torch.equal(before, after)
    assert averaged != pytest.approx(before.square().mean().item(), rel=1e-3)
    assert own != averaged


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"compile": True}, "compile does not work with ModelParallelStrategy: compile"),
        ({"comm_hook": "fp16"}, "comm_hook does not work"),
        ({"checkpoint": CheckpointSettings()}, "asynchronous does not .*set it to False"),
        (
            {"checkpoint": CheckpointSettings(asynchronous=False, backup_url="s3://x")},
            "checkpoint.backup_url does not work",
        ),
        (
            {
                "checkpoint": CheckpointSettings(
                    asynchronous=False, encryption_key_env="KEY"
                )
            },
            "checkpoint.encryption_key_env does not work",
        ),
    ],
)
def test_setting_that_would_do_nothing_is_refused(
    alone: Fabric, tmp_path: Path, settings: dict[str, Any], told: str
) -> None:
    """With its name, before anything is sharded."""
    model = Scaled()

    with pytest.raises(ValueError, match=told):
        make(alone, tmp_path, model, torch.optim.SGD(model.parameters(), 0.1), **settings)

    assert not any(isinstance(p, DTensor) for p in model.parameters())


def test_scaled_gradients_are_refused(
    alone: Fabric, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process would judge its own pieces by itself."""
    model = Scaled()
    precision: Any = alone.strategy.precision
    monkeypatch.setattr(precision, "scaler", object(), raising=False)

    with pytest.raises(
        ValueError, match="16-mixed does not work with ModelParallelStrat"
    ):
        make(alone, tmp_path, model, torch.optim.SGD(model.parameters(), 0.1))


def test_parameter_that_is_not_sharded_is_refused(alone: Fabric, tmp_path: Path) -> None:
    """Its gradients would differ from process to process."""

    def parallelize(model: Any, mesh: Any) -> Any:
        fully_shard(model.layer, mesh=mesh["data_parallel"])
        return model

    model = Scaled()
    strategy: Any = alone.strategy
    kept, strategy._parallelize_fn = strategy._parallelize_fn, parallelize
    try:
        with pytest.raises(ValueError, match="scale was not sharded, so that"):
            make(alone, tmp_path, model, torch.optim.SGD(model.parameters(), 0.1))
    finally:
        strategy._parallelize_fn = kept


def test_optimizer_of_another_model_is_refused(alone: Fabric, tmp_path: Path) -> None:
    """As is one that has taken steps: what it knows is of whole parameters."""
    model, other = Scaled(), nn.Linear(2, 2)
    with pytest.raises(ValueError, match="parameters that are not the model's"):
        make(alone, tmp_path, model, torch.optim.SGD(other.parameters(), 0.1))
    model = Scaled()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()

    with pytest.raises(ValueError, match=r"Adam has a state already.* has taken steps"):
        make(alone, tmp_path, model, optimizer)
    model = Scaled()
    with pytest.raises(ValueError, match="Adagrad has a state already"):
        make(alone, tmp_path, model, torch.optim.Adagrad(model.parameters()))


def test_strategy_is_looked_at(tmp_path: Path) -> None:
    """It must be launched, and shard over all processes alone."""
    model = Scaled()
    with pytest.raises(ValueError, match=r"call fabric.launch\(\) before"):
        make(make_fabric(), tmp_path, model, torch.optim.SGD(model.parameters(), 0.1))
    mesh = {"tensor_parallel": torch.ones(2)}
    sizes: Any = SimpleNamespace(strategy=SimpleNamespace(device_mesh=mesh))
    mesh["tensor_parallel"].size = lambda: 2  # type: ignore[method-assign, assignment]
    with pytest.raises(ValueError, match="tensor_parallel_size must be 1"):
        check_strategy(sizes)
