"""Typed experiment configs: schema, YAML, composition, validation.

A config is read from YAML files that build on each other, changed from the command
line, checked whole against one schema, and becomes a frozen `ExperimentConfig` whose
values know where they came from. Knows nothing of training, schedulers or trackers.
"""

from __future__ import annotations

from mtf_config.difference import ABSENT, Difference, diff
from mtf_config.errors import (
    CompositionError,
    ConfigFileError,
    ConfigValidationError,
    InterpolationError,
    LocatedError,
    MtfConfigError,
    OverrideError,
)
from mtf_config.experiment import ExperimentConfig
from mtf_config.json_schema import json_schema
from mtf_config.manager import ConfigurationManager
from mtf_config.origin import Origin
from mtf_config.problem import Problem
from mtf_config.resources import PartitionLimits, ResourceCheck
from mtf_config.sections import (
    CheckpointConfig,
    DataConfig,
    LoggingConfig,
    ModelConfig,
    OptimizerConfig,
    SchedulerConfig,
    SLURMConfig,
    TrainerConfig,
    TrainingConfig,
)
from mtf_config.validator import ConfigValidator, ValidationResult

__all__ = [
    "ABSENT",
    "CheckpointConfig",
    "CompositionError",
    "ConfigFileError",
    "ConfigValidationError",
    "ConfigValidator",
    "ConfigurationManager",
    "DataConfig",
    "Difference",
    "ExperimentConfig",
    "InterpolationError",
    "LocatedError",
    "LoggingConfig",
    "ModelConfig",
    "MtfConfigError",
    "OptimizerConfig",
    "Origin",
    "OverrideError",
    "PartitionLimits",
    "Problem",
    "ResourceCheck",
    "SLURMConfig",
    "SchedulerConfig",
    "TrainerConfig",
    "TrainingConfig",
    "ValidationResult",
    "diff",
    "json_schema",
]

__version__ = "0.1.0"
