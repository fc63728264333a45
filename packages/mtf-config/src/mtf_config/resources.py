"""What an experiment asks of the machines, added up and held against their limits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mtf_config.experiment import ExperimentConfig
from mtf_config.problem import Problem, Severity
from mtf_config.sections import SLURMConfig

__all__ = ["PartitionLimits", "ResourceCheck", "check_resources"]

_SECONDS_PER_HOUR = 3600
_LEAST_BYTES = 512 << 20
_LEAST_S = 120


@dataclass(frozen=True, kw_only=True, slots=True)
class PartitionLimits:
    """What a partition offers to one job; None where it sets no limit."""

    name: str
    max_nodes: int | None = None
    max_time_s: int | None = None
    cpus_per_node: int | None = None
    gpus_per_node: int | None = None
    memory_bytes_per_node: int | None = None

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if isinstance(value, int) and value < 0:
                message = f"{name} must not be negative, found {value}"
                raise ValueError(message)


@dataclass(frozen=True, kw_only=True, slots=True)
class ResourceCheck:
    """The sums, and what is wrong with them. Without a ``slurm`` section: one process.

    Attributes:
        num_nodes: Nodes of the job.
        world_size: Training processes on all nodes.
        num_cpus: CPUs on all nodes; 0 where nothing is asked of a scheduler.
        num_gpus: GPUs on all nodes.
        memory_bytes: Memory on all nodes; None where the site decides.
        time_s: Time limit in seconds; None where there is none.
        batch_size_per_process: Samples of a micro-batch in one process.
        samples_per_step: Samples of one optimizer step, over all processes.
        cpu_hours: CPUs times the time limit, at most.
        gpu_hours: GPUs times the time limit, at most.
        problems: Errors and warnings.
    """

    num_nodes: int
    world_size: int
    num_cpus: int
    num_gpus: int
    memory_bytes: int | None
    time_s: int | None
    batch_size_per_process: int
    samples_per_step: int
    cpu_hours: float
    gpu_hours: float
    problems: tuple[Problem, ...]

    @property
    def is_valid(self) -> bool:
        """Whether no problem is an error."""
        return not any(problem.severity == "error" for problem in self.problems)


def check_resources(
    config: ExperimentConfig, partition: PartitionLimits | None = None
) -> ResourceCheck:
    """Add up what *config* asks for; see `ConfigValidator.check_resource_requirements`."""
    slurm = config.slurm
    training = config.training
    nodes = slurm.nodes if slurm else 1
    world_size = nodes * slurm.ntasks_per_node if slurm else 1
    cpus = world_size * slurm.cpus_per_task if slurm else 0
    gpus = nodes * slurm.gpus_per_node if slurm else 0
    per_node = slurm.mem_bytes if slurm else None
    time = slurm.time_s if slurm else None
    hours = (time or 0) / _SECONDS_PER_HOUR
    problems = list(_against_each_other(config, world_size))
    if slurm and partition:
        problems += _against_partition(config, slurm, partition)
    return ResourceCheck(
        num_nodes=nodes,
        world_size=world_size,
        num_cpus=cpus,
        num_gpus=gpus,
        memory_bytes=None if per_node is None else per_node * nodes,
        time_s=time,
        batch_size_per_process=max(1, training.batch_size // world_size),
        samples_per_step=training.batch_size * training.gradient_accumulation_steps,
        cpu_hours=cpus * hours,
        gpu_hours=gpus * hours,
        problems=tuple(problems),
    )


def _problem(
    config: ExperimentConfig,
    key: str,
    message: str,
    *,
    found: str = "",
    expected: str = "",
    severity: Severity = "error",
) -> Problem:
    return Problem(
        key=key,
        place=config.provenance(key),
        message=message,
        found=found,
        expected=expected,
        severity=severity,
    )


def _against_each_other(config: ExperimentConfig, world_size: int) -> Iterator[Problem]:
    batch_size = config.training.batch_size
    if batch_size % world_size:
        near = max(world_size, round(batch_size / world_size) * world_size)
        yield _problem(
            config,
            "training.batch_size",
            f"{world_size} processes cannot share it equally",
            found=str(batch_size),
            expected=f"write {near}, or another multiple of {world_size}",
        )
    slurm, data = config.slurm, config.data
    if slurm is None:
        return
    gpus, tasks = slurm.gpus_per_node, slurm.ntasks_per_node
    if gpus and tasks > gpus:
        yield _problem(
            config,
            "slurm.ntasks_per_node",
            f"{tasks} processes on a node with {gpus} GPUs: some get none",
            expected=f"write {gpus}, one process for each GPU",
        )
    elif gpus > tasks:
        yield _problem(
            config,
            "slurm.gpus_per_node",
            f"{gpus} GPUs on a node with {tasks} processes: a process trains on one, "
            f"and {gpus - tasks} would idle",
            expected=f"write slurm.ntasks_per_node={gpus}",
        )
    if slurm.gpu_type is not None and not gpus:
        yield _problem(
            config,
            "slurm.gpu_type",
            "no GPU is asked for",
            expected="set slurm.gpus_per_node",
        )
    if data.num_workers >= slurm.cpus_per_task and data.num_workers:
        yield _problem(
            config,
            "data.num_workers",
            f"{data.num_workers} loader processes and the training share "
            f"{slurm.cpus_per_task} CPUs",
            expected=f"write slurm.cpus_per_task={data.num_workers + 1} or fewer workers",
            severity="warning",
        )
    if slurm.mem_bytes is not None and slurm.mem_bytes < tasks * _LEAST_BYTES:
        yield _problem(
            config,
            "slurm.mem",
            f"{slurm.mem} for {tasks} processes: torch alone needs {_LEAST_BYTES >> 20}M each",
            expected=f'write "{tasks * _LEAST_BYTES >> 20}M" or more',
            severity="warning",
        )
    if slurm.time_s < _LEAST_S:
        yield _problem(
            config,
            "slurm.time",
            f"{slurm.time_s} s: a job needs longer to start and to save",
            expected=f"write {_LEAST_S // 60} minutes or more",
            severity="warning",
        )
    if config.training.use_amp and not gpus:
        yield _problem(
            config,
            "training.use_amp",
            "mixed precision gains nothing on CPUs",
            expected="write false, or ask for GPUs",
            severity="warning",
        )


def _against_partition(
    config: ExperimentConfig, slurm: SLURMConfig, partition: PartitionLimits
) -> Iterator[Problem]:
    name = partition.name
    if slurm.partition not in (None, name):
        yield _problem(
            config, "slurm.partition", f"is held against the limits of {name}",
            found=str(slurm.partition), expected=f"write {name}", severity="warning",
        )  # fmt: skip
    asked_and_offered = (
        ("slurm.nodes", "nodes", slurm.nodes, partition.max_nodes),
        ("slurm.time", "seconds", slurm.time_s, partition.max_time_s),
        (
            "slurm.cpus_per_task",
            "CPUs a node",
            slurm.cpus_per_task * slurm.ntasks_per_node,
            partition.cpus_per_node,
        ),
        (
            "slurm.gpus_per_node",
            "GPUs a node",
            slurm.gpus_per_node,
            partition.gpus_per_node,
        ),
        ("slurm.mem", "bytes a node", slurm.mem_bytes, partition.memory_bytes_per_node),
    )
    for key, unit, asked, offered in asked_and_offered:
        if asked is not None and offered is not None and asked > offered:
            yield _problem(
                config,
                key,
                f"asks for {asked} {unit}",
                expected=f"the partition {name} offers {offered}",
            )
