from __future__ import annotations

from typing import Any

import pytest
import torch

from mtf_trainer._mlp import mlp


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "tanh"])
def test_mlp_has_the_layers_it_is_asked_for(activation: str) -> None:
    """Depth, widths and output are those of the arguments; inputs may have any shape."""
    model = mlp(
        in_features=12, num_classes=3, hidden_size=5, num_layers=2, activation=activation
    )

    shapes = [tuple(p.shape) for p in model.parameters() if p.dim() == 2]
    assert shapes == [(5, 12), (5, 5), (3, 5)]
    assert model(torch.zeros(7, 3, 4)).shape == (7, 3)


def test_mlp_without_layers_is_linear() -> None:
    """No hidden layer is a model too."""
    assert mlp(in_features=2, num_classes=3, num_layers=0)(torch.zeros(1, 2)).shape == (
        1,
        3,
    )


def test_mlp_names_the_activations_there_are() -> None:
    """One that is not there is told with the nearest."""
    with pytest.raises(ValueError, match="no activation 'rel'; did you mean relu"):
        mlp(in_features=1, num_classes=1, activation="rel")


@pytest.mark.parametrize(
    ("change", "kind", "told"),
    [
        ({"in_features": 0}, ValueError, "in_features must be at least 1, not 0"),
        ({"num_classes": 0}, ValueError, "num_classes must be at least 1, not 0"),
        ({"hidden_size": 0}, ValueError, "hidden_size must be at least 1, not 0"),
        ({"num_layers": -3}, ValueError, "num_layers must be at least 0, not -3"),
        ({"hidden_size": 1.5}, TypeError, "hidden_size must be a whole number"),
    ],
)
def test_mlp_without_units_is_refused(
    change: dict[str, Any], kind: type[Exception], told: str
) -> None:
    """A count of which no model can be made is an error that names it."""
    with pytest.raises(kind, match=told):
        mlp(**{"in_features": 2, "num_classes": 2, **change})
