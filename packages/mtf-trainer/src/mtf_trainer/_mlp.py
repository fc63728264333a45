"""The model that a config may name without registering one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from mtf_trainer._registry import did_you_mean
from mtf_trainer.config import check_count

__all__ = ["mlp"]

_ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


def mlp(
    *,
    in_features: int,
    num_classes: int,
    hidden_size: int = 512,
    num_layers: int = 2,
    dropout: float = 0.0,
    activation: str = "relu",
) -> nn.Sequential:
    """Build a multi-layer perceptron: ``(B, ...)`` with *in_features* to ``(B, C)``.

    Args:
        in_features: Values of one sample.
        num_classes: C.
        hidden_size: Width of the hidden layers.
        num_layers: Number of hidden layers; 0 for a linear model.
        dropout: Probability that a unit is dropped.
        activation: ``relu``, ``gelu``, ``silu`` or ``tanh``.

    Raises:
        TypeError: If a count is no whole number.
        ValueError: If one is too small, or there is no such activation.
    """
    check_count("in_features", in_features, least=1)
    check_count("num_classes", num_classes, least=1)
    check_count("hidden_size", hidden_size, least=1)
    check_count("num_layers", num_layers, least=0)
    if activation not in _ACTIVATIONS:
        hint = did_you_mean(activation, list(_ACTIVATIONS))
        message = f"there is no activation {activation!r}{hint}"
        raise ValueError(message)
    layers: list[nn.Module] = [nn.Flatten()]
    width = in_features
    for _ in range(num_layers):
        layers += [nn.Linear(width, hidden_size), _ACTIVATIONS[activation]()]
        layers.append(nn.Dropout(dropout))
        width = hidden_size
    return nn.Sequential(*layers, nn.Linear(width, num_classes))
