"""`ExperimentConfig`: everything that decides what a run computes, in one frozen value."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, Field, PrivateAttr, model_validator

from mtf_config.origin import CODE, DEFAULT, Origin, Origins
from mtf_config.sections import (
    AnyText,
    CheckpointConfig,
    DataConfig,
    LoggingConfig,
    ModelConfig,
    OptimizerConfig,
    SchedulerConfig,
    Section,
    SLURMConfig,
    TrainingConfig,
)

__all__ = ["ExperimentConfig"]

SECTION_ALIASES = {"trainer": "training"}


def _check_entry_point(text: str) -> str:
    module, colon, _ = text.partition(":")
    if colon and module.partition(".")[0] in sys.stdlib_module_names:
        message = f"{module} is a module of Python itself: name a function of your own"
        raise ValueError(message)
    return text


def canonical_sections(values: Mapping[str, Any]) -> dict[str, Any]:
    """Call every section by its one name.

    Raises:
        ValueError: If a section stands under two names.
    """
    for alias, name in SECTION_ALIASES.items():
        if alias in values and name in values:
            message = f"`{alias}` and `{name}` are one section: give one of them"
            raise ValueError(message)
    return {SECTION_ALIASES.get(key, key): value for key, value in values.items()}


class ExperimentConfig(Section):
    """One experiment: frozen, validated, equal to what it reads back as.

    Two configs are equal when their values are; where the values came from does not
    count. Made by `ConfigurationManager`, or directly from values of the right types.

    >>> config = ExperimentConfig.model_validate(
    ...     {
    ...         "experiment_name": "a",
    ...         "model": {"type": "mlp"},
    ...         "data": {"dataset_name": "digits"},
    ...     }
    ... )
    >>> config.optimizer.lr, str(config.provenance("optimizer.lr"))
    (0.0001, 'default')
    """

    experiment_name: Annotated[
        str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
    ] = Field(
        description="Name of the run and of its folder: at most 128 letters, digits, dots, "
        "dashes and underscores, the first a letter or digit."
    )
    description: AnyText = Field(default="", description="What the experiment is for.")
    entry_point: (
        Annotated[
            str,
            Field(
                pattern=r"^(?:[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*"
                r"|[A-Za-z0-9_][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.-]*)*\.py)$"
            ),
            AfterValidator(_check_entry_point),
        ]
        | None
    ) = Field(
        default=None,
        description="What a job runs: `train.py`, given the path of the config, or "
        "`package.module:function`; null is `mtf run`.",
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        default=0, description="Seed of everything random."
    )
    model: ModelConfig
    data: DataConfig
    training: TrainingConfig = TrainingConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    scheduler: SchedulerConfig | None = None
    logging: LoggingConfig = LoggingConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    slurm: SLURMConfig | None = None

    _origins: Origins | None = PrivateAttr(default=None)

    @model_validator(mode="before")
    @classmethod
    def _rename_sections(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or values.keys().isdisjoint(SECTION_ALIASES):
            return values
        return canonical_sections(values)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, type(self)):
            return NotImplemented
        # By the canonical text, so that equal means equal hashes: to Python True is 1.
        return self._canonical(set()) == other._canonical(set())

    def __hash__(self) -> int:
        return hash(self._canonical(set()))

    def model_copy(
        self, *, update: Mapping[str, Any] | None = None, deep: bool = False
    ) -> Self:
        """Return a copy in which *update* is validated and known to come from code.

        Args:
            update: Values, or whole sections, by key.
            deep: Copy the sections as well.

        Raises:
            ValueError: If a value does not fit the schema.
        """
        if not update:
            return super().model_copy(deep=deep)
        update = canonical_sections(update)
        valid = type(self).model_validate({**self.__dict__, **update})
        checked = {key: getattr(valid, key) for key in update}
        copy = super().model_copy(update=checked, deep=deep)
        if self._origins is not None:
            kept = {k: o for k, o in self._origins.items() if not {*k[:1]} & {*update}}
            copy._origins = kept | {(key,): CODE for key in update}  # noqa: SLF001
        return copy

    def content_hash(self) -> str:
        """Return what names the content: 64 hex digits, SHA-256 of the canonical JSON.

        Covers every value, defaults included, but ``experiment_name``: the same
        content has the same hash under any name, order of keys, formatting and
        platform. A release that adds a key with a default changes it.
        """
        return hashlib.sha256(self._canonical({"experiment_name"}).encode()).hexdigest()

    def _canonical(self, exclude: set[str]) -> str:
        values = self.model_dump(mode="json", exclude=exclude)
        return json.dumps(values, sort_keys=True, separators=(",", ":"))

    def provenance(self, key: str) -> Origin:
        """Return where the value of the dotted *key* came from.

        For a section it is where the section begins.

        Raises:
            KeyError: If the config has no such key.

        >>> ExperimentConfig.model_validate(
        ...     {
        ...         "experiment_name": "a",
        ...         "model": {"type": "m"},
        ...         "data": {"dataset_name": "d"},
        ...     }
        ... ).provenance("model.type")
        Origin(source='code', line=0, column=0, via='')
        """
        path = _existing_path(self, key)
        if self._origins is None:
            return CODE if _was_set(self, path) else DEFAULT
        for end in range(len(path), 0, -1):
            if (origin := self._origins.get(path[:end])) is not None:
                # A section that stands in a file still has defaults inside.
                return origin if end == len(path) or _was_set(self, path) else DEFAULT
        return DEFAULT


def _existing_path(config: ExperimentConfig, key: str) -> tuple[str | int, ...]:
    """Split *key* along the config's real structure; raise KeyError off it."""
    path: list[str | int] = []
    value: Any = config
    for part in key.split("."):
        name = SECTION_ALIASES.get(part, part) if not path else part
        if isinstance(value, BaseModel):
            fields = {**value.__dict__, **(value.model_extra or {})}
            if name not in fields:
                raise KeyError(key)
            value = fields[name]
            path.append(name)
        elif isinstance(value, Mapping) and name in value:
            value = value[name]
            path.append(name)
        elif isinstance(value, list | tuple) and name in map(str, range(len(value))):
            value = value[int(name)]
            path.append(int(name))
        else:
            raise KeyError(key)
    return tuple(path)


def _was_set(config: ExperimentConfig, path: tuple[str | int, ...]) -> bool:
    """Tell whether the value at *path* was given, rather than filled in."""
    value: Any = config
    for part in path:
        if not isinstance(value, BaseModel):
            return True
        if part not in value.model_fields_set:
            return False
        value = getattr(value, str(part))
    return True
