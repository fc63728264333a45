from typing import Any

import pytest

from mtf_config import ConfigValidator, ExperimentConfig, PartitionLimits, ResourceCheck

LARGEST = 2**63 - 1


def check(limits: PartitionLimits | None = None, **values: Any) -> ResourceCheck:
    """Check a config of what is required and *values*."""
    minimal = {
        "experiment_name": "digits",
        "model": {"type": "mlp"},
        "data": {"dataset_name": "digits"},
    }
    config = ExperimentConfig.model_validate(minimal | values)
    return ConfigValidator().check_resource_requirements(config, limits)


GOOD: dict[str, Any] = {
    "training": {"batch_size": 64, "gradient_accumulation_steps": 4},
    "data": {"dataset_name": "d", "num_workers": 5},
    "slurm": {
        "nodes": 2,
        "ntasks_per_node": 4,
        "gpus_per_node": 4,
        "cpus_per_task": 6,
        "mem": "32G",
        "time": "1-12:00:00",
    },
}


def test_sums() -> None:
    """Nodes, processes, CPUs, GPUs, memory and hours are added up over the job."""
    assert check(**GOOD) == ResourceCheck(
        num_nodes=2,
        world_size=8,
        num_cpus=48,
        num_gpus=8,
        memory_bytes=64 * 2**30,
        time_s=36 * 3600,
        batch_size_per_process=8,
        samples_per_step=256,
        cpu_hours=48 * 36.0,
        gpu_hours=8 * 36.0,
        problems=(),
    )


def test_without_a_slurm_section_it_is_one_process() -> None:
    """Nothing is asked of a scheduler, so nothing can be asked wrongly."""
    limits = PartitionLimits(name="p", max_nodes=0, max_time_s=0)
    found = check(limits, training={"batch_size": 7}, data=GOOD["data"])
    assert (found.num_nodes, found.world_size, found.batch_size_per_process) == (1, 1, 7)
    assert (found.num_cpus, found.num_gpus, found.gpu_hours) == (0, 0, 0.0)
    assert found.memory_bytes is None
    assert found.time_s is None
    assert found.is_valid
    assert not found.problems


@pytest.mark.parametrize(
    ("values", "key", "severity", "expected"),
    [
        ({"training": {"batch_size": 20}}, "training.batch_size", "error", "write 16,"),
        ({"training": {"batch_size": 7}}, "training.batch_size", "error", "write 8,"),
        (
            {"slurm": {"gpus_per_node": 2, "ntasks_per_node": 4, "cpus_per_task": 6}},
            "slurm.ntasks_per_node",
            "error",
            "write 2, one process",
        ),
        (
            {"slurm": {"gpus_per_node": 2, "cpus_per_task": 6}},
            "slurm.gpus_per_node",
            "error",
            "write slurm.ntasks_per_node=2",
        ),
        (
            {"slurm": {"gpu_type": "a100", "cpus_per_task": 6}}
            | {"training": {"use_amp": False}},
            "slurm.gpu_type",
            "error",
            "set slurm.gpus_per_node",
        ),
        (
            {"data": {"dataset_name": "d", "num_workers": 6}},
            "data.num_workers",
            "warning",
            "write slurm.cpus_per_task=7",
        ),
        ({"slurm": {"cpus_per_task": 6}}, "training.use_amp", "warning", "write false"),
    ],
)
def test_what_does_not_go_together(
    values: dict[str, Any], key: str, severity: str, expected: str
) -> None:
    """Each rule names the key, says how bad it is and what would be right."""
    found = check(**GOOD | values)
    (problem,) = found.problems
    assert (problem.key, problem.severity) == (key, severity)
    assert problem.expected.startswith(expected)
    assert found.is_valid == (severity == "warning")


LIMITS = {
    "max_nodes": ("slurm.nodes", 2),
    "max_time_s": ("slurm.time", 36 * 3600),
    "cpus_per_node": ("slurm.cpus_per_task", 24),
    "gpus_per_node": ("slurm.gpus_per_node", 4),
    "memory_bytes_per_node": ("slurm.mem", 32 * 2**30),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_limits_of_a_partition(limit: str) -> None:
    """What is exactly offered may be asked for, and not one more."""
    key, asked = LIMITS[limit]
    assert not check(PartitionLimits(name="p", **{limit: asked}), **GOOD).problems
    (problem,) = check(PartitionLimits(name="p", **{limit: asked - 1}), **GOOD).problems
    assert (problem.key, problem.severity) == (key, "error")
    assert f"asks for {asked} " in problem.message
    assert problem.expected == f"the partition p offers {asked - 1}"


def test_all_limits_are_reported_at_once() -> None:
    """Nobody has to submit five times to learn five limits."""
    zeros = dict.fromkeys(LIMITS, 0)
    problems = check(PartitionLimits(name="p", **zeros), **GOOD).problems
    assert [problem.key for problem in problems] == [key for key, _ in LIMITS.values()]


def test_memory_that_the_site_decides_is_within_every_limit() -> None:
    """No `mem` is no demand."""
    values = GOOD | {"slurm": {**GOOD["slurm"], "mem": None}}
    assert not check(
        PartitionLimits(name="p", memory_bytes_per_node=1), **values
    ).problems


def test_limits_of_another_partition_are_noticed() -> None:
    """Holding a config against the wrong partition is worth a warning."""
    values = GOOD | {"slurm": {**GOOD["slurm"], "partition": "cpu"}}
    (problem,) = check(PartitionLimits(name="gpu"), **values).problems
    assert str(problem) == (
        "code: warning: slurm.partition: is held against the limits of gpu, "
        "found cpu; write gpu"
    )


def test_the_largest_numbers_do_not_overflow() -> None:
    """Nonsense is reported, not a traceback."""
    found = check(
        training={"batch_size": LARGEST, "gradient_accumulation_steps": LARGEST},
        slurm={
            "nodes": LARGEST,
            "ntasks_per_node": LARGEST,
            "cpus_per_task": LARGEST,
            "gpus_per_node": LARGEST,
            "time": "999999-999999:999999:999999",
            "mem": "999999999T",
        },
    )
    assert found.num_cpus == LARGEST**3
    assert not found.is_valid
