"""What the schema cannot say: values that do not go together.

`ConfigValidator` reports all of it at once, errors and warnings. What the machines
must offer is in `mtf_config.resources`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from mtf_config import _build
from mtf_config.errors import MtfConfigError
from mtf_config.experiment import ExperimentConfig
from mtf_config.problem import Problem, Severity
from mtf_config.resources import PartitionLimits, ResourceCheck, check_resources
from mtf_config.sections import ModelConfig

__all__ = ["ConfigValidator", "ValidationResult"]

_ADAM_FAMILY = frozenset(["adam", "adamw", "adamax", "nadam", "radam"])
_HIGH_ADAM_LR = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationResult:
    """Everything that was found, and the config if there is one.

    Attributes:
        config: None if the values do not even make a config.
        problems: Errors and warnings.
    """

    config: ExperimentConfig | None
    problems: tuple[Problem, ...] = ()

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The problems that forbid the run."""
        return tuple(p for p in self.problems if p.severity == "error")

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """The problems that do not."""
        return tuple(p for p in self.problems if p.severity == "warning")

    @property
    def is_valid(self) -> bool:
        """Whether the experiment may run."""
        return self.config is not None and not self.errors


class ConfigValidator:
    """Checks configs as a whole. Stateless; may be shared between threads."""

    def validate_config(
        self, config: ExperimentConfig | Mapping[str, Any]
    ) -> ValidationResult:
        """Find every problem of *config*; raise for none.

        Args:
            config: A config, or plain values that should make one.
        """
        if not isinstance(config, ExperimentConfig):
            try:
                config = _build.from_mapping(config, (), os.environ)
            except MtfConfigError as error:
                return ValidationResult(config=None, problems=error.problems)
        resources = check_resources(config)
        return ValidationResult(
            config=config, problems=(*_find_all(config), *resources.problems)
        )

    def check_resource_requirements(
        self, config: ExperimentConfig, partition: PartitionLimits | None = None
    ) -> ResourceCheck:
        """Add up what *config* asks for and hold it against itself and *partition*."""
        return check_resources(config, partition)


def _find_all(config: ExperimentConfig) -> Iterator[Problem]:
    yield from _model(config)
    yield from _optimization(config)
    yield from _logging(config)


def _problem(
    config: ExperimentConfig, key: str, message: str, severity: Severity = "warning"
) -> Problem:
    return Problem(
        key=key, place=config.provenance(key), message=message, severity=severity
    )


def _model(config: ExperimentConfig) -> Iterator[Problem]:
    for name in config.model.model_extra or {}:
        key = f"model.{name}"
        near = get_close_matches(name, ModelConfig.model_fields, n=1, cutoff=0.8)
        if near:
            message = f"is kept as a key of your own; did you mean model.{near[0]}?"
            yield _problem(config, key, message)
        if hasattr(ModelConfig, name):
            message = f'is no attribute: read it as config.model.model_extra["{name}"]'
            yield _problem(config, key, message)


def _optimization(config: ExperimentConfig) -> Iterator[Problem]:
    optimizer, given = config.optimizer, config.optimizer.model_fields_set
    kind = optimizer.type.lower()
    if kind in _ADAM_FAMILY:
        if optimizer.lr > _HIGH_ADAM_LR:
            message = f"{optimizer.lr:g} is very high for {optimizer.type}"
            yield _problem(config, "optimizer.lr", message)
        if optimizer.momentum > 0:
            message = f"{optimizer.type} has no momentum: it uses betas"
            yield _problem(config, "optimizer.momentum", message, "error")
    elif kind == "sgd" and "betas" in given and optimizer.betas != (0.9, 0.999):
        message = "sgd has no betas: it uses momentum"
        yield _problem(config, "optimizer.betas", message, "error")
    if config.scheduler is not None and config.scheduler.min_lr > optimizer.lr:
        message = f"is above the peak learning rate, optimizer.lr={optimizer.lr:g}"
        yield _problem(config, "scheduler.min_lr", message, "error")


def _logging(config: ExperimentConfig) -> Iterator[Problem]:
    logging = config.logging
    if logging.use_wandb and logging.wandb_project is None:
        message = "is needed with logging.use_wandb: name the project"
        yield _problem(config, "logging.wandb_project", message, "error")
    if not logging.use_wandb and (logging.wandb_project or logging.wandb_entity):
        message = "is false, so the W&B project and entity are not used"
        yield _problem(config, "logging.use_wandb", message)
