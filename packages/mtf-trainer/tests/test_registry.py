from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

from mtf_trainer import registry
from mtf_trainer.errors import RegistryError
from mtf_trainer.registry import (
    Components,
    build,
    components_from_config,
    names,
    register,
)


def test_the_model_that_comes_with_it_is_there() -> None:
    """The registry that everyone shares has the multi-layer perceptron."""
    model = build("model", "mlp", in_features=3, num_classes=2)

    assert model(torch.zeros(1, 3)).shape == (1, 2)
    assert "mlp" in names("model")
    with pytest.raises(RegistryError, match=r"is mtf_trainer\._mlp\.mlp already"):
        register("model", "mlp")(torch.nn.Linear)


def test_a_config_is_built_from_what_is_registered(tmp_path: Path) -> None:
    """What a program registers, its configs may name."""

    @register("dataset", "test-registry-points")
    def points() -> TensorDataset:
        return TensorDataset(torch.zeros(4, 3))

    config: dict[str, Any] = {
        "run_dir": tmp_path,
        "model": {"type": "mlp", "in_features": 3, "num_classes": 2},
        "data": {"dataset_name": "test-registry-points"},
        "optimizer": {"type": "sgd", "lr": 0.1},
    }

    built = components_from_config(config)

    assert isinstance(built, Components)
    assert len(built.train_loader) == 4
    with pytest.raises(RegistryError, match="this program allows: none"):
        components_from_config({**config, "modules": ["torch"]}, modules=[])


def test_every_public_name_is_there() -> None:
    """What the module offers exists."""
    assert all(hasattr(registry, name) for name in registry.__all__)
