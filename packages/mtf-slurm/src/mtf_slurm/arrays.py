"""Batches of experiments as jobs: one array for each kind, with an index file.

Experiments that ask for the same and run the same are put into arrays of at most so many
tasks as the site takes. Each array has a folder of its own, in which its indices begin at 0:
so ``MaxArraySize``, which caps the index, caps the tasks of one array and no more.

``<experiments>/.slurm/<number>.<token>/`` belongs to one submission: ``tasks`` (a line for
each index, with the names of its experiments), ``settings.sh``, ``job.sbatch``, ``task.sh``,
``checkout.py`` and ``job_id``, which is there as soon as Slurm's answer is known. It is made
before Slurm is asked, and its token goes with the job: see `mtf_slurm.launcher`.
"""

from __future__ import annotations

import os
import re
import secrets
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from mtf_slurm.git import Snapshot
from mtf_slurm.git.snapshot import CHECKOUT_SCRIPT
from mtf_slurm.settings import SlurmSettings

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
    "new_job",
    "plan",
    "shell_settings",
    "write_files",
]

JOBS_FOLDER = ".slurm"
TASK_SCRIPT = Path(__file__).with_name("task.sh")
T = TypeVar("T")
_JOB_FOLDER = re.compile(r"(\d{6,})\.([0-9a-f]{16})")
_CALL = """\
import sys
from importlib import import_module
from operator import attrgetter
folder, module, function, config = sys.argv[1:]
sys.path[0] = folder
sys.argv = [function, config]
attrgetter(function)(import_module(module))(config)
"""


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
    """One job to submit: the experiments of each of its tasks, by index."""

    work: Work
    tasks: tuple[tuple[str, ...], ...]

    @property
    def names(self) -> list[str]:
        """All experiments, in order."""
        return [name for names in self.tasks for name in names]


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
    planned = []
    for work, names in kinds.items():
        tasks = _parted([tuple(part) for part in _parted(names, num_packed)], max_tasks)
        planned += [Planned(work, tuple(part)) for part in tasks]
    return planned


def _parted(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[at : at + size] for at in range(0, len(items), size)]


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


def job_at(folder: Path) -> Job | None:
    """Return the submission whose folder this is; None if it is none's."""
    is_ours = folder.is_absolute() and folder.parent.name == JOBS_FOLDER
    return Job(folder) if is_ours and _JOB_FOLDER.fullmatch(folder.name) else None


def new_job(experiments_folder: Path, number: int) -> Job:
    """Make the folder of a submission, for `write_files`.

    Raises:
        OSError: If it cannot be made.
    """
    name = f"{number:06d}.{secrets.token_hex(8)}"
    job = Job(experiments_folder / JOBS_FOLDER / name)
    job.folder.mkdir(parents=True)
    return job


def write_files(job: Job, planned: Planned, code: Code, script: str) -> None:
    """Write what the job of a submission needs; ``tasks``, which makes it one, last.

    Raises:
        OSError: If the disk is full, or cannot be written.
    """
    folder = job.folder
    shutil.copyfile(TASK_SCRIPT, folder / "task.sh")
    shutil.copyfile(CHECKOUT_SCRIPT, folder / "checkout.py")
    settings = shell_settings(job.experiments_folder, planned, code)
    (folder / "settings.sh").write_text(settings, encoding="utf-8")
    (folder / "job.sbatch").write_text(script, encoding="utf-8")
    aside = folder / ".tasks"
    with aside.open("w", encoding="utf-8") as file:
        file.writelines(" ".join(names) + "\n" for names in planned.tasks)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(folder / "tasks")


def shell_settings(experiments_folder: Path, planned: Planned, code: Code) -> str:
    """Return the lines that ``task.sh`` reads: each value quoted for the shell."""
    settings = planned.work.settings
    snapshot = code.snapshot
    is_redirected = len(planned.names) > 1
    lines = [
        f"experiments_folder={shlex.quote(str(experiments_folder))}",
        f"project_root={shlex.quote(str(code.project_root))}",
        f"redirect={int(is_redirected)}",
        f"requeue={int(settings.requeue)}",
        f"max_requeues={settings.max_requeues}",
        f"continue_on_timeout={int(settings.continue_on_timeout)}",
        f"time_s={settings.time_s}",
        f"signal_s={settings.signal_s}",
        f"cleanup={shlex.quote(code.cleanup)}",
        f"checkout_python={shlex.quote(code.python or sys.executable)}",
        f"checkout=({_words(snapshot.arguments() if snapshot else ())})",
        f"prefix={shlex.quote(snapshot.prefix if snapshot else '')}",
        f"launch_kind={settings.launch}",
        f"launch=({_launch(settings)})",
        f"set_command() {{ command=({_command(planned.work, code.python)}); }}",
    ]
    return "\n".join(lines) + "\n"


def _words(words: Sequence[str]) -> str:
    return " ".join(map(shlex.quote, words))


def _launch(settings: SlurmSettings) -> str:
    """Return what stands before the command: the words that start its processes."""
    if settings.launch == "none":
        return ""
    tasks = 1 if settings.launch == "torchrun" else settings.ntasks_per_node
    cpus = settings.cpus_per_task * settings.ntasks_per_node // tasks
    words = [
        *("srun", f"--nodes={settings.nodes}"),
        *(f"--ntasks={settings.nodes * tasks}", f"--ntasks-per-node={tasks}"),
        *(f"--cpus-per-task={cpus}", "--kill-on-bad-exit=0"),
    ]
    if settings.launch == "srun":
        # The address is that of the node where srun runs, as the others reach it.
        step = 'MASTER_ADDR="${MASTER_ADDR:-$SLURM_LAUNCH_NODE_IPADDR}" exec "$@"'
        return _words([*words, "/bin/bash", "-c", step, "step"])
    step = (
        'exec torchrun --nnodes="$1" --nproc-per-node="$2" --rdzv-backend=c10d '
        '--rdzv-id="$MTF_JOB_ID" '
        '--rdzv-endpoint="${MASTER_ADDR:-$SLURM_LAUNCH_NODE_IPADDR}:$MASTER_PORT" '
        '--no-python "${@:3}"'
    )
    counts = (str(settings.nodes), str(settings.ntasks_per_node))
    return _words([*words, "/bin/bash", "-c", step, "step", *counts])


def _command(work: Work, python: str | None) -> str:
    """Return the words of the experiment's command; ``$1`` is the path of its config."""
    container = work.settings.container
    inside = ("apptainer", "exec", *(("--nv",) * (work.settings.gpus_per_node > 0)))
    before = _words((*inside, container)) + " " if container else ""
    entry_point = work.entry_point
    has_own = work.settings.venv or work.settings.conda or container
    python = python or ("python" if has_own else sys.executable)
    if entry_point is None:
        return f'{before}mtf run "$1"'
    if entry_point.endswith(".py") or entry_point.startswith("/"):
        where = "" if entry_point.startswith("/") else '"$code"/'
        return f'{before}{shlex.quote(python)} {where}{shlex.quote(entry_point)} "$1"'
    module, _, function = entry_point.partition(":")
    words = _words((python, "-c", _CALL))
    return f'{before}{words} "$code" {_words((module, function))} "$1"'
