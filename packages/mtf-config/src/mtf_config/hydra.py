"""Compose with Hydra itself; needs the extra ``mtf-config[hydra]``.

`compose` hands a folder of configs to Hydra's own ``compose`` and returns the same
`ExperimentConfig` as `ConfigurationManager.load` does for files that use what both know:
Hydra decides which files are merged in which order, and parses the overrides, by its own
grammar. Files are still read by the YAML of this package and ``${...}`` is resolved by
its rules, so that ``on`` or ``12:00:00`` mean the same both ways. `from_hydra` takes what
an application composed with ``@hydra.main``.

Hydra keeps global state while it composes: use one thread at a time.
Source: Hydra 1.3, "Compose API" and ``hydra.plugins.config_source``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtf_config import _build, _files, _interpolate
from mtf_config._tree import Tree, plain_origins
from mtf_config.errors import CompositionError
from mtf_config.experiment import ExperimentConfig, canonical_sections
from mtf_config.origin import Origin

try:
    import hydra
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.object_type import ObjectType
    from hydra.core.plugins import Plugins
    from hydra.errors import HydraException
    from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException
except ModuleNotFoundError as error:
    message = "mtf_config.hydra needs Hydra: install the extra mtf-config[hydra]"
    raise ModuleNotFoundError(message, name=error.name) from error

__all__ = ["compose", "from_hydra"]

_SCHEME = "mtf-config"


def compose(
    config_dir: str | os.PathLike[str], config_name: str, overrides: Sequence[str] = ()
) -> ExperimentConfig:
    """Compose *config_name* in *config_dir* through Hydra's own API.

    Args:
        config_dir: The folder of the configs.
        config_name: The first file in it, without ``.yaml``.
        overrides: In Hydra's grammar.

    Raises:
        ConfigFileError: If a file cannot be read, or is not the YAML we accept.
        CompositionError: If Hydra cannot compose; its message is kept.
        InterpolationError: If a ``${...}`` cannot be resolved.
        ConfigValidationError: If the values do not fit the schema.
    """
    folder = Path(config_dir).resolve()
    if not folder.is_dir():
        raise CompositionError(Origin(os.fspath(config_dir)), "no such folder")
    Plugins.instance().register(_Source)
    # Hydra looks for the first file before it reads a search path from the overrides.
    first = {"defaults": [config_name, "_self_"]}
    ConfigStore.instance().store(name=_SCHEME, node=first)
    place = Origin(os.fspath(Path(config_dir, f"{config_name}.yaml")))
    quoted = _interpolate.escape(str(folder)).replace("'", "\\'")
    searchpath = f"hydra.searchpath=['{_SCHEME}://{quoted}']"
    running = GlobalHydra.instance().hydra  # that of a @hydra.main around us
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize(version_base="1.3", config_path=None):
            composed = hydra.compose(_SCHEME, overrides=[searchpath, *overrides])
    except RecursionError:
        message = "Hydra: defaults go in a circle, or values nest too deep"
        raise CompositionError(place, message) from None
    except (HydraException, OmegaConfBaseException, ValueError, OSError) as error:
        raise CompositionError(place, f"Hydra: {str(error).strip()}") from None
    finally:
        GlobalHydra.instance().hydra = running
    # Which file a value came from is Hydra's knowledge alone.
    return _finish(composed, Origin(f"Hydra's composition of {place.source}"))


def from_hydra(config: DictConfig) -> ExperimentConfig:
    """Make a config of what Hydra composed elsewhere, as in ``@hydra.main``.

    Those files were read by Hydra, as YAML 1.1: write ``"on"`` and ``"12:00:00"`` in
    quotes there.

    Raises:
        InterpolationError: If a ``${...}`` cannot be resolved.
        ConfigValidationError: If the values do not fit the schema.
    """
    return _finish(config, Origin("hydra"))


def _finish(composed: DictConfig, place: Origin) -> ExperimentConfig:
    # Unresolved, so that ${...} follows the rules of this package.
    values: Any = OmegaConf.to_container(composed, resolve=False)
    try:
        tree = Tree()
        tree.data = canonical_sections(values)
    except ValueError as error:
        raise CompositionError(place, str(error)) from None
    tree.origins = plain_origins(tree.data, (), place)
    return _build.finish(tree, (), os.environ)


class _Source(ConfigSource):
    """Reads the files of one folder for Hydra, by the YAML of this package."""

    @staticmethod
    def scheme() -> str:
        return _SCHEME

    def load_config(self, config_path: str) -> ConfigResult:
        path = self._file(config_path)
        if not path.is_file():
            message = f"Config not found: {path}"
            raise ConfigLoadError(message)
        values, _ = _files.read(path, str(path))
        listed = values.get("defaults")
        if isinstance(listed, list) and "_self_" not in listed:
            # Hydra puts it there too, after a warning that it once did otherwise.
            values = values | {"defaults": [*listed, "_self_"]}
        header = self._get_header_dict(path.read_text("utf-8-sig"))
        return ConfigResult(
            config=OmegaConf.create(values),
            path=self.full_path(),
            provider=self.provider,
            header=header,
        )

    def available(self) -> bool:
        return Path(self.path).is_dir()

    def is_group(self, config_path: str) -> bool:
        return Path(self.path, config_path).is_dir()

    def is_config(self, config_path: str) -> bool:
        return self._file(config_path).is_file()

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        names: list[str] = []
        for entry in Path(self.path, config_path).iterdir():
            inside = str(Path(config_path, entry.name))
            self._list_add_result(names, inside, entry.name, results_filter)
        return sorted(set(names))

    def _file(self, config_path: str) -> Path:
        path = Path(self.path, self._normalize_file_name(config_path))
        if not Path(os.path.realpath(path)).is_relative_to(self.path):
            place = Origin(config_path)
            raise CompositionError(place, f"leads out of the folder {self.path}")
        return path
