"""What is asked of Slurm for an experiment.

`SlurmSettings` takes the ``slurm`` section of an experiment's config as it is dumped, and
more keys that a site or a project sets for all its experiments. Every text is refused that
has a control character in it; where a text is written, `mtf_slurm.render` quotes it.

Source: Slurm 22.05, ``sbatch(1)``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from mtf_slurm.errors import SubmissionError

__all__ = ["SlurmSettings", "memory_bytes", "settings_of", "time_s"]

_CLOCK = re.compile(r"(?:(\d{1,6})-)?(\d{1,6})(?::(\d{1,6}))?(?::(\d{1,6}))?", re.ASCII)
_MEMORY = re.compile(r"(\d{1,9})([KMGT]?)", re.ASCII)
_UNIT_BYTES = {"K": 2**10, "": 2**20, "M": 2**20, "G": 2**30, "T": 2**40}
_DEPENDENCY = re.compile(
    r"(?:after|afterany|afterok|afternotok|aftercorr)(?::\d+(?:_\d+)?(?:\+\d+)?)+|singleton",
    re.ASCII,
)
_MAX = 2**31 - 1
_WARNING_S = 120


def time_s(text: str) -> int:
    """Return the seconds in Slurm's spelling of a time.

    Raises:
        ValueError: If it is none, or no time at all.

    >>> time_s("30"), time_s("12:00:00"), time_s("1-6")
    (1800, 43200, 108000)
    """
    match = _CLOCK.fullmatch(text)
    if match is None:
        msg = 'write minutes, "HH:MM:SS" or "D-HH:MM:SS"'
        raise ValueError(msg)
    days, *clock = match.groups()
    first, second, third = (int(part or 0) for part in clock)
    if days is not None or clock[2] is not None:
        total = int(days or 0) * 86400 + first * 3600 + second * 60 + third
    else:
        total = first * 60 + second
    if total == 0:
        msg = "a time limit of zero would end the job at once"
        raise ValueError(msg)
    return total


def memory_bytes(text: str) -> int:
    """Return the bytes in Slurm's spelling of a size; without a unit, mebibytes.

    Raises:
        ValueError: If it is none, or zero, which asks for all of a node.

    >>> memory_bytes("32G") == 32 * 2**30
    True
    """
    match = _MEMORY.fullmatch(text)
    if match is None or int(match[1]) == 0:
        msg = 'write a size such as "32G" or "512M"'
        raise ValueError(msg)
    return int(match[1]) * _UNIT_BYTES[match[2]]


def _check_text(text: str) -> str:
    if not text.isprintable():
        msg = "it has a newline or another control character in it: take that out"
        raise ValueError(msg)
    if text != text.strip():
        msg = "it begins or ends with a space: take that away"
        raise ValueError(msg)
    if text.startswith("-"):
        msg = "it begins with a dash, as an option would"
        raise ValueError(msg)
    return text


def _check_word(text: str) -> str:
    if "," in text or ":" in text or " " in text:
        msg = "it is one name: without comma, colon or space"
        raise ValueError(msg)
    return text


def _check_time(text: str) -> str:
    time_s(text)
    return text


def _check_memory(text: str) -> str:
    memory_bytes(text)
    return text


def _check_dependency(text: str) -> str:
    if not _DEPENDENCY.fullmatch(text):
        msg = (
            'write "afterok:123", "afterany:123:124_7", "afternotok:123", "aftercorr:123" '
            'or "singleton"'
        )
        raise ValueError(msg)
    return text


def _list_as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


Count: TypeAlias = Annotated[int, Field(ge=1, le=_MAX)]
Amount: TypeAlias = Annotated[int, Field(ge=0, le=_MAX)]
Text: TypeAlias = Annotated[str, Field(min_length=1), AfterValidator(_check_text)]
Word: TypeAlias = Annotated[Text, AfterValidator(_check_word)]
Time: TypeAlias = Annotated[str, AfterValidator(_check_time)]
Memory: TypeAlias = Annotated[str, AfterValidator(_check_memory)]
Words: TypeAlias = Annotated[tuple[Text, ...], BeforeValidator(_list_as_tuple)]
Dependency: TypeAlias = Annotated[str, AfterValidator(_check_dependency)]
Dependencies: TypeAlias = Annotated[
    tuple[Dependency, ...], BeforeValidator(_list_as_tuple)
]


class SlurmSettings(BaseModel):
    """What is asked of Slurm for one experiment. Two that are equal fit one array."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

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
    gpu_type: Word | None = Field(
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

    reservation: Text | None = Field(default=None, description="Reservation to run in.")
    nodelist: Text | None = Field(default=None, description="Nodes to run on.")
    exclude: Text | None = Field(default=None, description="Nodes not to run on.")
    exclusive: bool = Field(
        default=False, description="Share the nodes with no other job."
    )
    nice: Annotated[int, Field(ge=-_MAX, le=_MAX)] | None = Field(
        default=None, description="Taken from the job's priority."
    )
    dependencies: Dependencies = Field(
        default=(),
        description='What it waits for, such as "afterok:123"; it is cancelled when that '
        "cannot come true any more.",
    )
    max_running: Count | None = Field(
        default=None,
        description="Tasks that run at once, of all in a batch that ask for the same.",
    )
    signal_s: Annotated[int, Field(ge=0, le=65535)] | None = Field(
        default=None,
        description="Seconds before the time limit at which the experiment gets SIGUSR1, "
        "to save; 0 sends none, null is 120 or, of a short limit, a quarter.",
    )
    max_requeues: Amount = Field(default=20, description="How often it may come back.")
    continue_on_timeout: bool = Field(
        default=False, description="Come back after the time limit, too."
    )
    launch: Literal["srun", "torchrun", "none"] = Field(
        default="srun",
        description="What starts the training processes: srun one for each task, or "
        "torchrun on each node, started by srun; none starts one in the batch shell.",
    )
    modules: Words = Field(default=(), description="Modules to load.")
    venv: Text | None = Field(
        default=None, description="Virtual environment to activate; an absolute path."
    )
    conda: Text | None = Field(
        default=None, description="Conda environment to activate: its name or path."
    )
    container: Text | None = Field(
        default=None, description="Image in which `apptainer exec` runs the experiment."
    )

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.launch == "none" and (self.nodes, self.ntasks_per_node) != (1, 1):
            msg = "launch: none starts one process; several need srun or torchrun"
            raise ValueError(msg)
        if self.gpu_type is not None and self.gpus_per_node == 0:
            msg = "gpu_type names a kind of GPU, but gpus_per_node is 0"
            raise ValueError(msg)
        if self.venv is not None and self.conda is not None:
            msg = "venv and conda are both given: one of them"
            raise ValueError(msg)
        if self.venv is not None and not self.venv.startswith("/"):
            msg = f"venv is {self.venv!r}: jobs run elsewhere, give an absolute path"
            raise ValueError(msg)
        return self

    @property
    def time_s(self) -> int:
        """The time limit in seconds."""
        return time_s(self.time)

    @property
    def warning_s(self) -> int:
        """How long before the time limit the experiment is warned, in seconds."""
        if self.signal_s is None:
            return min(_WARNING_S, self.time_s // 4)
        return self.signal_s

    @property
    def gpus(self) -> str | None:
        """As ``--gpus-per-node`` has it; None for none."""
        if not self.gpus_per_node:
            return None
        kind = f"{self.gpu_type}:" if self.gpu_type else ""
        return f"{kind}{self.gpus_per_node}"


def settings_of(
    experiment_name: str, section: object, defaults: Mapping[str, Any]
) -> SlurmSettings:
    """Return the settings of an experiment.

    Args:
        experiment_name: For errors.
        section: Its ``slurm`` section; None for none.
        defaults: For keys that the section has not, or has as null.

    Raises:
        SubmissionError: If a value does not fit; the message names its key.
    """
    if section is None:
        section = {}
    if not isinstance(section, Mapping):
        raise SubmissionError(
            experiment_name, f"slurm is {section!r}: a section of keys and values"
        )
    given = {key: value for key, value in section.items() if value is not None}
    try:
        return SlurmSettings.model_validate({**defaults, **given})
    except ValidationError as error:
        said = "; ".join(_described(fault) for fault in error.errors(include_url=False))
        raise SubmissionError(experiment_name, said) from error


def _described(fault: Mapping[str, Any]) -> str:
    key = ".".join(map(str, ("slurm", *fault["loc"])))
    if fault["type"] == "extra_forbidden":
        known = ", ".join(sorted(SlurmSettings.model_fields))
        return f"{key}: there is no such key; there are {known}"
    message = str(fault["msg"]).removeprefix("Value error, ")
    return f"{key} is {fault['input']!r}: {message}" if fault["loc"] else message
