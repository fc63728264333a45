from __future__ import annotations

from pathlib import Path

import pytest

from mtf_slurm import arrays
from mtf_slurm.arrays import Job, Planned, Work, plan
from mtf_slurm.errors import SubmissionError
from mtf_slurm.settings import SlurmSettings
from mtf_slurm.states import JobState

WORK = Work(SlurmSettings(), "train.py")
OTHER = Work(SlurmSettings(nodes=2), "train.py")


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
    arrays.write_files(Job(job.folder), planned, "", "#!/bin/bash\n")
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


def test_a_limit_is_shared_by_the_arrays_of_a_kind() -> None:
    """However a batch is split, no more tasks run at once than were asked for."""
    limited = Work(SlurmSettings(max_running=3), "train.py")
    names = dict.fromkeys("abcdefgh", limited)
    two = plan(names, max_tasks=4)
    assert [(len(job.tasks), job.limit, job.waits_for) for job in two] == [
        (4, 2, None),
        (4, 1, None),
    ]
    many = plan({"x": WORK, **names}, max_tasks=2)
    assert [(job.limit, job.waits_for) for job in many] == [
        (None, None),
        (1, None),
        (1, None),
        (1, None),
        (1, 1),
    ]


def test_the_time_limit_is_that_of_all_in_a_task() -> None:
    """Packed experiments each have the time that they asked for."""
    [job] = plan(dict.fromkeys("abc", WORK), max_tasks=2, num_packed=2)
    assert job.time_s == 2 * 3600


def test_how_an_experiment_says_that_it_ended(tmp_path: Path) -> None:
    """Only what is of this submission counts, and the word before the status."""
    job = arrays.new_job(tmp_path, 1)
    (tmp_path / "a").mkdir()
    expected = {
        f"0 {job.token}": JobState.SUCCEEDED,
        f"75 {job.token} timeout": JobState.TIMEOUT,
        f"75 {'0' * 16} timeout": None,
        "3": JobState.FAILED,
        "": None,
        "\xe9": None,
    }
    assert job.left("a", "7") is None
    for text, state in expected.items():
        (tmp_path / "a" / "7.exit").write_text(text, encoding="utf-8")
        assert job.left("a", "7") is state, text


def test_the_last_of_each_experiment(tmp_path: Path) -> None:
    """The latest submission that has a job counts; others' experiments are left out."""
    jobs = []
    for number, (names, base) in enumerate(
        [("ab", "1"), ("ac", "2"), ("ab", None)], start=1
    ):
        job = arrays.new_job(tmp_path, number)
        planned = Planned(WORK, tuple((name,) for name in names))
        arrays.write_files(job, planned, "", "#!/bin/bash\n")
        if base:
            job.claim(base)
        jobs.append(job)
    found = arrays.last_of(arrays.jobs_in(tmp_path), {"a", "b"})
    assert {n: (i, job.token) for n, (i, job) in found.items()} == {
        "a": ("2_0", jobs[1].token),
        "b": ("1_1", jobs[0].token),
    }


@pytest.mark.parametrize("name", ["task.sh", "settings.sh", "job.sbatch", ".tasks"])
def test_a_full_disk_is_told(tmp_path: Path, name: str) -> None:
    """The error names the file and what to do, and the job is never taken for a whole one."""
    job = arrays.new_job(tmp_path, 1)
    (job.folder / name).symlink_to("/dev/full")
    said = rf"/{name}: cannot be written: No space left on device; make room there"
    with pytest.raises(SubmissionError, match=said):
        arrays.write_files(job, Planned(WORK, (("a",),)), "x=1\n", "#!/bin/bash\n")
    assert Job(job.folder).tasks == ()


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    """Where there is no folder of submissions, and can be none, the error names it."""
    (tmp_path / arrays.JOBS_FOLDER).write_text("", encoding="utf-8")
    with pytest.raises(SubmissionError, match=r"/000001\..*: cannot be written: "):
        arrays.new_job(tmp_path, 1)


def test_the_script_is_its_owners(tmp_path: Path) -> None:
    """What the lines of a setup say, others cannot read; the task is for who looks after it."""
    job = arrays.new_job(tmp_path, 1)
    arrays.write_files(job, Planned(WORK, (("a",),)), "x=1\n", "#!/bin/bash\n")
    modes = {path.name: path.stat().st_mode & 0o077 for path in job.folder.iterdir()}
    assert modes.pop("job.sbatch") == 0
    assert 0 not in modes.values()
    assert (job.folder / "settings.sh").read_text(encoding="utf-8") == "x=1\n"
