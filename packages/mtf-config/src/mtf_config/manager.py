"""`ConfigurationManager`: from files, mappings and overrides to experiments, and back."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from mtf_config import _build, _compose, _files, _overrides, _yaml, _yaml_dump
from mtf_config.errors import MtfConfigError
from mtf_config.experiment import ExperimentConfig
from mtf_config.validator import ConfigValidator, ValidationResult

__all__ = ["ConfigurationManager", "to_yaml"]

StrPath: TypeAlias = str | os.PathLike[str]


class ConfigurationManager:
    """Loads, makes and saves the experiment configs of one project.

    Holds no state but the project's folder; may be shared between threads.

    Args:
        project_root: Relative paths begin here.
        environ: What ``${env:NAME}`` reads; the process's environment by default.
    """

    def __init__(
        self, project_root: StrPath = ".", *, environ: Mapping[str, str] | None = None
    ) -> None:
        self._root = Path(project_root)
        self._environ = os.environ if environ is None else environ

    def load(self, path: StrPath, overrides: Sequence[str] = ()) -> ExperimentConfig:
        """Read *path* with all that its ``defaults:`` name, then apply *overrides*.

        Args:
            path: A YAML file; relative to the project's root.
            overrides: ``key=value``, ``+key=value``, ``~key``, ``group=name``.

        Raises:
            ConfigFileError: If a file cannot be read, or is not the YAML we accept.
            CompositionError: If a ``defaults:`` list is wrong.
            OverrideError: If an override cannot be applied.
            InterpolationError: If a ``${...}`` cannot be resolved.
            ConfigValidationError: If the values do not fit the schema.
        """
        _check_overrides(overrides)
        full_path = self._root / path
        source = os.fspath(path)
        composed = _compose.compose(full_path, source, _overrides.choices(overrides))
        parsed = [_overrides.parse(argument, composed.groups) for argument in overrides]
        return _build.finish(composed.tree, parsed, self._environ)

    def create_config(
        self, values: Mapping[str, Any], overrides: Sequence[str] = ()
    ) -> ExperimentConfig:
        r"""Make a config from plain values, with placeholders and *overrides* as in a file.

        Raises:
            OverrideError: If an override cannot be applied.
            InterpolationError: If a ``${...}`` cannot be resolved; text that holds one
                for its own sake is written ``\${...}``.
            ConfigValidationError: If the values do not fit the schema.
        """
        _check_overrides(overrides)
        return _build.from_mapping(values, overrides, self._environ)

    def load_batch(
        self, paths: Iterable[StrPath], overrides: Sequence[str] = ()
    ) -> tuple[ValidationResult, ...]:
        """Load and check every one of *paths*; report each, raise for none of them.

        Returns:
            One result for each path, in order, shape ``(len(paths),)``.
        """
        if isinstance(paths, str | os.PathLike):
            message = "paths is several paths, not one"
            raise TypeError(message)
        return tuple(_checked(partial(self.load, path, overrides)) for path in paths)

    def create_batch(
        self, batch: Iterable[Mapping[str, Any]], overrides: Sequence[str] = ()
    ) -> tuple[ValidationResult, ...]:
        """Make and check a config of every mapping; report each, raise for none of them.

        Returns:
            One result for each mapping, in order, shape ``(len(batch),)``.
        """
        return tuple(
            _checked(partial(self.create_config, values, overrides)) for values in batch
        )

    def save(self, config: ExperimentConfig, path: StrPath) -> Path:
        """Write *config* with all its values, so that `load` gives it back equal.

        The file is old or new at any instant, never torn; its folder is made.

        Returns:
            The path that was written.

        Raises:
            ConfigFileError: If it would be too large to be read back.
            OSError: If it cannot be written.
        """
        full_path = self._root / path
        text = to_yaml(config)
        _yaml.parse(text.encode(), os.fspath(path))
        _files.write_atomically(full_path, text)
        return full_path


def to_yaml(config: ExperimentConfig) -> str:
    """Return *config* as the YAML that `ConfigurationManager.save` writes."""
    return _yaml_dump.dump(_build.escaped(config.model_dump(mode="json")))


def _check_overrides(overrides: Sequence[str]) -> None:
    if isinstance(overrides, str):
        message = "overrides is a list of KEY=VALUE texts, not one text"
        raise TypeError(message)


def _checked(make: Callable[[], ExperimentConfig]) -> ValidationResult:
    try:
        config = make()
    except MtfConfigError as error:
        return ValidationResult(config=None, problems=error.problems)
    return ConfigValidator().validate_config(config)
