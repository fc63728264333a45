"""Batches of experiments as jobs: one array for each kind, with an index file.

Experiments that ask for the same and run the same are put into arrays of at most so many
tasks as the site takes. Each array has a folder of its own, in which its indices begin at 0:
so ``MaxArraySize``, which caps the index, caps the tasks of one array and no more.

``<experiments>/.slurm/<number>.<token>/`` belongs to one submission: ``tasks`` (a line for
each index, with the names of its experiments), ``settings.sh``, ``job.sbatch``, ``task.sh``,
``checkout.py``, ``environment.py`` and ``job_id``, which is there as soon as Slurm's answer is known. It is made
before Slurm is asked, and its token goes with the job: see `mtf_slurm.launcher`.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from mtf_slurm.experiments import told
from mtf_slurm.git import Snapshot
from mtf_slurm.git.snapshot import CHECKOUT_SCRIPT, ENVIRONMENT_SCRIPT
from mtf_slurm.settings import SlurmSettings
from mtf_slurm.states import JobState, from_exit_status

__all__ = [
    "JOBS_FOLDER",
    "TASK_SCRIPT",
    "Code",
    "Job",
    "Planned",
    "Work",
    "index_spec",
    "job_at",
    "jobs_in",
    "last_of",
    "new_job",
    "parted",
    "plan",
    "ranges",
    "write_files",
]

JOBS_FOLDER = ".slurm"
TASK_SCRIPT = Path(__file__).with_name("task.sh")
T = TypeVar("T")
_NUM_SPANS = 500  # of indices in one id: a command line has an end
_JOB_FOLDER = re.compile(r"(\d{6,})\.([0-9a-f]{16})")


@dataclass(frozen=True, slots=True)
class Work:
    """What tells a kind of experiment from others: each kind is an array of its own.

    Attributes:
        settings: What it asks of Slurm.
        entry_point: What it runs; None for ``mtf run``.
    """

    settings: SlurmSettings
    entry_point: str | None


@dataclass(frozen=True, slots=True)
class Planned:
    """One job to submit.

    Attributes:
        work: What its experiments ask for and run.
        tasks: The experiments of each of its tasks, by index.
        limit: Tasks of it that run at once; None for any number.
        waits_for: The place in the plan of the job that must have ended first.
    """

    work: Work
    tasks: tuple[tuple[str, ...], ...]
    limit: int | None = None
    waits_for: int | None = None

    @property
    def names(self) -> list[str]:
        """All experiments, in order."""
        return [name for names in self.tasks for name in names]

    @property
    def time_s(self) -> int:
        """The time limit: of all experiments of one task, in seconds."""
        return self.work.settings.time_s * max(map(len, self.tasks))


@dataclass(frozen=True, kw_only=True, slots=True)
class Code:
    """What jobs run, and where it comes from.

    Attributes:
        project_root: The project's folder.
        snapshot: Of its code; None to run what lies there.
        python: The interpreter; None for that of the environment which an experiment's
            settings name, or else of this process.
        cleanup: When a job removes its checkout: ``always``, ``success`` or ``never``.
    """

    project_root: Path
    snapshot: Snapshot | None
    python: str | None
    cleanup: str


def plan(
    works: Mapping[str, Work], *, max_tasks: int, num_packed: int = 1
) -> list[Planned]:
    """Return the jobs of a batch, in the order of their first experiments.

    Args:
        works: By experiment.
        max_tasks: Of one array.
        num_packed: Experiments that one task runs, one after another.

    >>> work = Work(SlurmSettings(), None)
    >>> [len(job.tasks) for job in plan({str(i): work for i in range(5)}, max_tasks=2)]
    [2, 2, 1]
    """
    kinds: dict[Work, list[str]] = {}
    for name, work in works.items():
        kinds.setdefault(work, []).append(name)
    planned: list[Planned] = []
    for work, names in kinds.items():
        tasks = parted([tuple(part) for part in parted(names, num_packed)], max_tasks)
        planned += _limited(work, tasks, len(planned))
    return planned


def _limited(
    work: Work, parts: Sequence[Sequence[tuple[str, ...]]], at: int
) -> Iterator[Planned]:
    """Yield the jobs of one kind: together, no more run at once than ``max_running``.

    Slurm limits each array alone. So they share the number; where there are more arrays than
    that, each of the rest waits for one before it.
    """
    count, limit = len(parts), work.settings.max_running
    for index, part in enumerate(parts):
        if limit is None:
            yield Planned(work, tuple(part))
        elif count <= limit:
            share = limit // count + (index < limit % count)
            yield Planned(work, tuple(part), share)
        else:
            waits_for = at + index - limit if index >= limit else None
            yield Planned(work, tuple(part), 1, waits_for)


def parted(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """Return *items* in parts of at most *size*."""
    return [items[at : at + size] for at in range(0, len(items), size)]


def ranges(task_ids: Iterable[str]) -> list[str]:
    """Return ids of tasks, those of one array as one.

    >>> ranges(["12_1", "7", "12_0", "12_2", "12_9"])
    ['7', '12_[0-2,9]']
    """
    alone: list[str] = []
    indices: dict[str, set[int]] = {}
    for task_id in task_ids:
        base, _, index = task_id.partition("_")
        if index:
            indices.setdefault(base, set()).add(int(index))
        else:
            alone.append(task_id)
    for base, found in indices.items():
        spans: list[list[int]] = []
        for number in sorted(found):
            if spans and spans[-1][1] == number - 1:
                spans[-1][1] = number
            else:
                spans.append([number, number])
        shown = [f"{a}" if a == b else f"{a}-{b}" for a, b in spans]
        if len(found) == 1:
            alone.append(f"{base}_{shown[0]}")
            continue
        alone += [f"{base}_[{','.join(part)}]" for part in parted(shown, _NUM_SPANS)]
    return alone


def index_spec(num_tasks: int, max_running: int | None) -> str | None:
    """Return what ``--array`` gets; None for a job that needs none.

    >>> index_spec(3, None), index_spec(3, 2), index_spec(1, 2)
    ('0-2', '0-2%2', None)
    """
    if num_tasks == 1:
        return None
    return f"0-{num_tasks - 1}" + (f"%{max_running}" if max_running else "")


class Job:
    """One submission, as it lies on the disk.

    Args:
        folder: Its own.

    Attributes:
        number: That orders submissions in one folder of experiments.
        token: That finds its job in Slurm, whatever became of the submitter.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        number, _, self.token = folder.name.partition(".")
        self.number = int(number)

    @property
    def experiments_folder(self) -> Path:
        """Where its experiments' folders lie."""
        return self.folder.parents[1]

    @cached_property
    def tasks(self) -> tuple[tuple[str, ...], ...]:
        """The experiments of each task, by index; none if it was never made whole."""
        try:
            text = (self.folder / "tasks").read_text(encoding="utf-8")
        except FileNotFoundError:
            return ()
        return tuple(tuple(line.split()) for line in text.splitlines())

    def base_id(self) -> str | None:
        """Return the id of the job that it became; None if that is not known (yet)."""
        try:
            text = (self.folder / "job_id").read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None
        return text if text.isdecimal() else None

    def claim(self, base_id: str) -> str:
        """Write down the id of the job that it became, if nobody has; return whose it is."""
        aside = self.folder / f".job_id.{os.getpid()}.{secrets.token_hex(4)}"
        try:
            with aside.open("x", encoding="utf-8") as file:
                file.write(base_id + "\n")
                file.flush()
                os.fsync(file.fileno())
            try:
                (self.folder / "job_id").hardlink_to(aside)
            except FileExistsError:
                return self.base_id() or base_id
        finally:
            aside.unlink(missing_ok=True)
        return base_id

    def ids(self, base_id: str) -> dict[str, str]:
        """Return the id of each experiment's job."""
        is_array = len(self.tasks) > 1
        found = {}
        for index, names in enumerate(self.tasks):
            task = f"{base_id}_{index}" if is_array else base_id
            for position, name in enumerate(names):
                found[name] = f"{task}.{position}" if len(names) > 1 else task
        return found

    def files(self, base_id: str) -> dict[str, Path]:
        """Return where the files of each experiment's job lie, without their ends."""
        ids = self.ids(base_id)
        return {i: self.experiments_folder / name / i for name, i in ids.items()}

    def left(self, name: str, job_id: str) -> JobState | None:
        """Return how an experiment says that it ended; None where it does not."""
        told = self.end(name, job_id)
        return told and told[1]

    def end(self, name: str, job_id: str) -> tuple[int, JobState] | None:
        """Return the status that an experiment ended with, and how it says that it ended.

        In ``<job_id>.exit``: its status, the token of the submission, since ids may come
        again, and where that says more, the state.
        """
        path = self.experiments_folder / name / f"{job_id}.exit"
        try:
            status, *more = path.read_text(encoding="ascii").split()
            if more and more[0] != self.token:
                return None
            number = int(status)
            return number, JobState(more[1]) if more[1:] else from_exit_status(number)
        except (OSError, ValueError):
            return None

    def is_requeued(self, name: str, job_id: str) -> bool:
        """Tell whether an experiment that has ended was asked to run again."""
        return (self.experiments_folder / name / f"{job_id}.requeued").exists()

    def asks_to_come_back(self, name: str, job_id: str) -> bool:
        """Tell whether an experiment waits for somebody to requeue its job."""
        return (self.experiments_folder / name / f"{job_id}.again").exists()

    def age_s(self, now: float) -> float:
        """Return how long ago its job was written down, by the file system's clock."""
        try:
            return now - (self.folder / "job_id").stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def remove(self) -> None:
        """Remove it: what was never submitted."""
        shutil.rmtree(self.folder, ignore_errors=True)


def jobs_in(experiments_folder: Path) -> list[Job]:
    """Return the submissions of a folder of experiments, oldest first."""
    try:
        names = [path.name for path in (experiments_folder / JOBS_FOLDER).iterdir()]
    except FileNotFoundError:
        return []
    jobs = [
        Job(experiments_folder / JOBS_FOLDER / name)
        for name in names
        if _JOB_FOLDER.fullmatch(name)
    ]
    return sorted(jobs, key=lambda job: (job.number, job.token))


def last_of(jobs: Iterable[Job], names: Collection[str]) -> dict[str, tuple[str, Job]]:
    """Return the last of *jobs*, oldest first, of each of the experiments, with its id."""
    last: dict[str, tuple[str, Job]] = {}
    for job in jobs:
        if base := job.base_id():
            last |= {n: (i, job) for n, i in job.ids(base).items() if n in names}
    return last


def job_at(folder: Path) -> Job | None:
    """Return the submission whose folder this is; None if it is none's."""
    is_ours = folder.is_absolute() and folder.parent.name == JOBS_FOLDER
    return Job(folder) if is_ours and _JOB_FOLDER.fullmatch(folder.name) else None


def new_job(experiments_folder: Path, number: int) -> Job:
    """Make the folder of a submission, for `write_files`.

    Raises:
        SubmissionError: If it cannot be made.
    """
    name = f"{number:06d}.{secrets.token_hex(8)}"
    job = Job(experiments_folder / JOBS_FOLDER / name)
    with told(job.folder):
        job.folder.mkdir(parents=True)
    return job


def write_files(job: Job, planned: Planned, shell_settings: str, script: str) -> None:
    """Write what the job of a submission needs; ``tasks``, which makes it one, last.

    What a setup says may be secret, so that the script is for its owner alone.

    Args:
        job: Its folder is there.
        planned: What it runs.
        shell_settings: For ``settings.sh``, see `mtf_slurm.shell`.
        script: For sbatch.

    Raises:
        SubmissionError: If the disk is full, or cannot be written.
    """
    tasks = "".join(" ".join(names) + "\n" for names in planned.tasks)
    for name, text, mode in (
        ("task.sh", TASK_SCRIPT.read_text(encoding="utf-8"), 0o666),
        ("checkout.py", CHECKOUT_SCRIPT.read_text(encoding="utf-8"), 0o666),
        ("environment.py", ENVIRONMENT_SCRIPT.read_text(encoding="utf-8"), 0o666),
        ("settings.sh", shell_settings, 0o666),
        ("job.sbatch", script, 0o600),
        (".tasks", tasks, 0o666),
    ):
        path = job.folder / name
        with told(path):
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
            with open(fd, "w", encoding="utf-8") as file:  # noqa: PTH123 -- it has a mode
                file.write(text)
                if name == ".tasks":
                    file.flush()
                    os.fsync(fd)
    with told(path):
        path.replace(job.folder / "tasks")
