"""The parts of a training that a config of this example names, in plain PyTorch.

Everything here trusts its config: `find_unsupported` in the script has looked at it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, TensorDataset

from data.sample_dataset import NUM_CLASSES, Images
from mtf_config import ExperimentConfig, ModelConfig, OptimizerConfig, SchedulerConfig
from mtf_trainer import GenericTrainer

__all__ = [
    "answer",
    "build_loader",
    "build_model",
    "build_optimizer",
    "build_scheduler",
    "step",
]

Batches = DataLoader[tuple[Tensor, ...]]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}
# What is left of the learning rate's way down, as training goes from 0 to 1.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda _: 1.0,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "linear": lambda done: 1 - done,
}


def build_loader(config: ExperimentConfig, images: Images, *, shuffle: bool) -> Batches:
    """Make batches of *images*: pixels ``(B, P)`` and labels ``(B,)``."""
    return DataLoader(
        TensorDataset(torch.from_numpy(images.pixels), torch.from_numpy(images.labels)),
        batch_size=config.training.batch_size,
        shuffle=shuffle,
        num_workers=config.data.num_workers,
        pin_memory=config.data.pin_memory,
    )


def build_model(config: ModelConfig, num_pixels: int) -> nn.Sequential:
    """Build a multi-layer perceptron: pixels ``(B, P)`` to logits ``(B, 10)``."""
    layers: list[nn.Module] = []
    width = num_pixels
    for _ in range(config.num_layers):
        layers.append(nn.Linear(width, config.hidden_size))
        layers.append(ACTIVATIONS[config.activation]())
        layers.append(nn.Dropout(config.dropout))
        width = config.hidden_size
    return nn.Sequential(*layers, nn.Linear(width, NUM_CLASSES))


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> Optimizer:
    """Build the optimizer that the config names."""
    lr, decay = config.lr, config.weight_decay
    if config.type == "sgd":
        momentum = config.momentum
        return SGD(model.parameters(), lr, momentum=momentum, weight_decay=decay)
    kind = AdamW if config.type == "adamw" else Adam
    return kind(model.parameters(), lr, config.betas, config.eps, weight_decay=decay)


def build_scheduler(
    config: SchedulerConfig | None, optimizer: Optimizer, num_steps: int
) -> LambdaLR | None:
    """Build a schedule of *num_steps* optimizer steps: warm up, then go down."""
    if config is None:
        return None
    schedule, warmup = SCHEDULES[config.type], config.warmup_steps
    lowest = config.min_lr / float(optimizer.param_groups[0]["lr"])

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = min(1.0, (step - warmup) / max(1, num_steps - warmup))
        return lowest + (1 - lowest) * schedule(done)

    return LambdaLR(optimizer, factor)


def step(trainer: GenericTrainer, batch: list[Tensor], _: int) -> dict[str, Tensor]:
    """Say what one batch costs; the trainer does the rest, and records every value."""
    pixels, labels = batch
    logits = trainer.model(pixels)
    return {
        "loss": nn.functional.cross_entropy(logits, labels),
        "accuracy": (logits.argmax(dim=1) == labels).float().mean(),
    }


@torch.no_grad()
def answer(trainer: GenericTrainer, batches: Batches) -> tuple[list[int], list[int]]:
    """Let the trained model answer *batches*.

    Returns:
        The digits shown and those answered, each of shape ``(num_images,)``.
    """
    trainer.model.eval()
    shown: list[int] = []
    answered: list[int] = []
    for pixels, labels in batches:
        logits = trainer.model(pixels.to(trainer.fabric.device))
        shown += labels.tolist()
        answered += logits.argmax(dim=1).tolist()
    return shown, answered
