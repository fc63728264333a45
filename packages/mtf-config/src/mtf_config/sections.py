"""The sections of an experiment config: frozen, typed, every key with its meaning.

A value is taken only in its own type: ``"32"`` is no number and ``1.0`` no integer.
An integer where a number belongs is one. NaN is refused everywhere, infinity
everywhere but in the extra keys of ``model``.
"""

from __future__ import annotations

from typing import Annotated, Any, Self, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from mtf_config import _plain, _quantity

__all__ = [
    "CheckpointConfig",
    "DataConfig",
    "LoggingConfig",
    "ModelConfig",
    "OptimizerConfig",
    "SLURMConfig",
    "SchedulerConfig",
    "TrainerConfig",
    "TrainingConfig",
]


class NotPlainError(ValueError):
    """A value below ``model`` that no file can hold; *faults* says what and where."""

    def __init__(self, faults: tuple[_plain.Fault, ...]) -> None:
        super().__init__(faults[0][1])
        self.faults = faults


def _check_time(text: str) -> str:
    _quantity.time_s(text)
    return text


def _check_memory(text: str) -> str:
    _quantity.memory_bytes(text)
    return text


def _check_extra(value: Any) -> Any:
    """Return a plain copy; refuse what YAML cannot hold or what does not equal itself."""
    copy, faults = _plain.plain(value, depth=2)
    if faults:
        raise NotPlainError(faults)
    return copy


def _list_as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


_MAX_INT = 2**63 - 1

Count: TypeAlias = Annotated[int, Field(ge=1, le=_MAX_INT)]
Amount: TypeAlias = Annotated[int, Field(ge=0, le=_MAX_INT)]
Fraction: TypeAlias = Annotated[float, Field(ge=0.0, lt=1.0)]
AnyText: TypeAlias = Annotated[str, AfterValidator(_plain.check_text)]
Text: TypeAlias = Annotated[AnyText, Field(min_length=1)]
Time: TypeAlias = Annotated[str, AfterValidator(_check_time)]
Memory: TypeAlias = Annotated[str, AfterValidator(_check_memory)]
Extra: TypeAlias = Annotated[Any, AfterValidator(_check_extra)]


class Section(BaseModel):
    """Base of all sections: frozen, strict, no unknown keys."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
        ser_json_inf_nan="constants",  # else infinity is saved as null
        protected_namespaces=(),
    )


class ModelConfig(Section):
    """What is trained. Models differ, so further keys are kept and given to yours."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=True)
    __pydantic_extra__: dict[str, Extra]

    type: Text = Field(description="Name of the model in the registry.")
    hidden_size: Count = Field(default=512, description="Width of the hidden layers.")
    num_layers: Count = Field(default=6, description="Number of hidden layers.")
    dropout: Fraction = Field(
        default=0.1, description="Probability that a unit is dropped."
    )
    activation: Text = Field(
        default="relu", description="Name of the activation function."
    )

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        for name in self.model_extra or ():
            _plain.check_key(name)
        return self


class TrainingConfig(Section):
    """How long and in which portions it is trained. Also read from ``trainer:``."""

    max_epochs: Count = Field(
        default=100, description="Epochs after which training is complete."
    )
    batch_size: Count = Field(
        default=32,
        description="Samples of one micro-batch, over all processes together. "
        "The world size must divide it.",
    )
    gradient_accumulation_steps: Count = Field(
        default=1, description="Micro-batches whose gradients make one optimizer step."
    )
    max_grad_norm: Annotated[float, Field(gt=0.0)] | None = Field(
        default=1.0,
        description="Gradients are scaled down to this norm; null leaves them alone.",
    )
    use_amp: bool = Field(
        default=True, description="Mixed precision: fp16 or bf16 by device."
    )


TrainerConfig = TrainingConfig


class DataConfig(Section):
    """Which samples are read, and how."""

    dataset_name: Text = Field(description="Name of the dataset in the registry.")
    root: Text | None = Field(
        default=None, description="Folder of the data; null if it needs none."
    )
    train_split: Text = Field(default="train", description="Split that is trained on.")
    val_split: Text | None = Field(
        default="validation",
        description="Split that is validated on; null validates nothing.",
    )
    num_workers: Annotated[int, Field(ge=0, le=256)] = Field(
        default=0,
        description="Loader processes for each training process; 0 loads in it.",
    )
    pin_memory: bool = Field(
        default=False, description="Copy batches to page-locked memory."
    )


class OptimizerConfig(Section):
    """Which optimizer, and its settings."""

    type: Text = Field(
        default="adamw", description="Name of the optimizer in the registry."
    )
    lr: Annotated[float, Field(gt=0.0)] = Field(
        default=1e-4, description="Peak learning rate."
    )
    weight_decay: Annotated[float, Field(ge=0.0)] = Field(
        default=0.01, description="Decay of the weights, decoupled for adamw."
    )
    betas: Annotated[tuple[Fraction, Fraction], BeforeValidator(_list_as_tuple)] = Field(
        default=(0.9, 0.999), description="Decay rates of the two moments (Adam family)."
    )
    eps: Annotated[float, Field(gt=0.0)] = Field(
        default=1e-8, description="Added to the denominator (Adam family)."
    )
    momentum: Fraction = Field(default=0.0, description="Momentum (sgd).")


class SchedulerConfig(Section):
    """How the learning rate moves; without the section it is constant."""

    type: Text = Field(
        default="cosine", description="Name of the scheduler in the registry."
    )
    warmup_steps: Amount = Field(
        default=0,
        description="Optimizer steps of linear growth to the peak learning rate.",
    )
    min_lr: Annotated[float, Field(ge=0.0)] = Field(
        default=0.0, description="Learning rate at the end."
    )


class SLURMConfig(Section):
    """What is asked of Slurm; without the section, nothing."""

    account: Text | None = Field(default=None, description="Account that is charged.")
    partition: Text | None = Field(
        default=None, description="Partition; null is the site's own."
    )
    qos: Text | None = Field(default=None, description="Quality of service.")
    constraint: Text | None = Field(
        default=None, description="Features that the nodes must have."
    )
    nodes: Count = Field(default=1, description="Number of nodes.")
    ntasks_per_node: Count = Field(
        default=1, description="Training processes on each node."
    )
    cpus_per_task: Count = Field(default=1, description="CPUs of each training process.")
    gpus_per_node: Amount = Field(default=0, description="GPUs on each node.")
    gpu_type: Text | None = Field(
        default=None, description="Kind of GPU, as the site names it."
    )
    mem: Memory | None = Field(
        default=None,
        description='Memory of each node, such as "32G"; mebibytes without a unit.',
    )
    time: Time = Field(
        default="01:00:00", description='Time limit: "HH:MM:SS", "D-HH:MM:SS" or minutes.'
    )
    requeue: bool = Field(
        default=True, description="Come back after preemption or a lost node."
    )

    @property
    def time_s(self) -> int:
        """The time limit in seconds."""
        return _quantity.time_s(self.time)

    @property
    def mem_bytes(self) -> int | None:
        """The memory of each node in bytes, None where the site decides."""
        return None if self.mem is None else _quantity.memory_bytes(self.mem)


class LoggingConfig(Section):
    """What is recorded, how often and where."""

    use_wandb: bool = Field(
        default=False, description="Record to Weights & Biases as well."
    )
    wandb_project: Text | None = Field(default=None, description="Its project.")
    wandb_entity: Text | None = Field(default=None, description="Its user or team.")
    log_scalars_every_n_steps: Count = Field(
        default=50, description="Optimizer steps from one record of scalars to the next."
    )
    log_images_every_n_steps: Count | None = Field(
        default=None, description="Optimizer steps between images; null records none."
    )
    log_gradients: bool = Field(
        default=False, description="Record histograms of gradients."
    )
    log_model_parameters: bool = Field(
        default=False, description="Record histograms of weights."
    )


class CheckpointConfig(Section):
    """When the run is saved, and what is kept."""

    save_every_n_epochs: Count = Field(
        default=1, description="Epochs between checkpoints."
    )
    keep_last_n: Count = Field(default=3, description="Checkpoints that are kept.")
