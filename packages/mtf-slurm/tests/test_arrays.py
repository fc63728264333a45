from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from mtf_slurm import arrays
from mtf_slurm.arrays import Code, Job, Planned, Work, plan
from mtf_slurm.settings import SlurmSettings

WORK = Work(SlurmSettings(), "train.py")
OTHER = Work(SlurmSettings(nodes=2), "train.py")


def code(root: str = "/p") -> Code:
    """Return code that is not frozen."""
    return Code(project_root=Path(root), snapshot=None, python="python", cleanup="always")


def test_a_mixed_batch_is_one_array_for_each_kind() -> None:
    """Kinds come in the order of their first experiments, all of them once."""
    works = {"a": WORK, "b": OTHER, "c": WORK, "d": WORK}
    planned = plan(works, max_tasks=2)
    assert [job.names for job in planned] == [["a", "c"], ["d"], ["b"]]
    assert [job.work for job in planned] == [WORK, WORK, OTHER]


def test_packing() -> None:
    """Several experiments share a task, and arrays count tasks."""
    works = dict.fromkeys("abcdefg", WORK)
    planned = plan(works, max_tasks=2, num_packed=3)
    assert [job.tasks for job in planned] == [
        (("a", "b", "c"), ("d", "e", "f")),
        (("g",),),
    ]


def test_a_job_on_disk(tmp_path: Path) -> None:
    """What is written is read back; the first id that is claimed stays."""
    job = arrays.new_job(tmp_path, 7)
    assert job.number == 7
    assert job.tasks == ()
    planned = Planned(WORK, (("a", "b"), ("c",)))
    arrays.write_files(Job(job.folder), planned, code(), "#!/bin/bash\n")
    [found] = arrays.jobs_in(tmp_path)
    assert found.token == job.token
    assert found.tasks == planned.tasks
    assert (found.base_id(), found.age_s(0)) == (None, 0)
    assert found.claim("12") == "12"
    assert found.claim("13") == "12"
    assert found.ids("12") == {"a": "12_0.0", "b": "12_0.1", "c": "12_1"}
    assert found.age_s(2**40) > 0
    assert not list(found.folder.glob(".job_id*"))
    found.remove()
    assert arrays.jobs_in(tmp_path) == []


def test_other_folders_are_none_of_ours(tmp_path: Path) -> None:
    """What only looks like a submission is passed over."""
    assert arrays.jobs_in(tmp_path) == []
    (tmp_path / ".slurm" / "notes").mkdir(parents=True)
    assert arrays.jobs_in(tmp_path) == []
    assert arrays.job_at(tmp_path / ".slurm" / "notes") is None
    assert arrays.job_at(Path("relative/.slurm/000001.0123456789abcdef")) is None


@pytest.mark.parametrize(
    ("entry_point", "settings", "expected"),
    [
        (None, {}, ["mtf", "run", "C F"]),
        ("a/b.py", {}, ["python", "/co de/a/b.py", "C F"]),
        ("/x y/b.py", {}, ["python", "/x y/b.py", "C F"]),
        ("/x/script", {}, ["python", "/x/script", "C F"]),
        (
            "a.py",
            {"container": "my image", "gpus_per_node": 1},
            ["apptainer", "exec", "--nv", "my image", "python", "/co de/a.py", "C F"],
        ),
    ],
)
def test_commands_as_bash_reads_them(
    entry_point: str | None, settings: dict[str, object], expected: list[str]
) -> None:
    """Whatever paths are, each is one word."""
    work = Work(SlurmSettings(**settings), entry_point)  # type: ignore[arg-type]
    text = arrays.shell_settings(Path("/e'x"), Planned(work, (("a",),)), code("/p q"))
    script = text + 'code="/co de"; set_command "C F"; printf "%s\\0" "${command[@]}"'
    script += ' "$experiments_folder" "$project_root"'
    done = subprocess.run(
        ["/bin/bash", "-uc", script],
        capture_output=True,
        check=True,
        encoding="utf-8",
        timeout=20,
    )
    assert done.stdout.split("\0")[:-1] == [*expected, "/e'x", "/p q"]


def test_launch_words() -> None:
    """Tasks, nodes and CPUs are those that were asked for; torchrun is one task a node."""
    asked = {"nodes": 2, "ntasks_per_node": 4, "cpus_per_task": 3}

    def launch(kind: str) -> str:
        work = Work(SlurmSettings(launch=kind, **asked), None)  # type: ignore[arg-type]
        text = arrays.shell_settings(Path("/e"), Planned(work, (("a",),)), code())
        return next(line for line in text.splitlines() if line.startswith("launch=("))

    assert "srun --nodes=2 --ntasks=8 --ntasks-per-node=4 --cpus-per-task=3" in launch(
        "srun"
    )
    assert "--ntasks=2 --ntasks-per-node=1 --cpus-per-task=12" in launch("torchrun")
    assert launch("torchrun").endswith("step 2 4)")
