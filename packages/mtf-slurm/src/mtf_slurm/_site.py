"""With what a launcher submits, and what that makes of an experiment."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtf_slurm import arrays
from mtf_slurm.arrays import Code, Job, Planned, Work
from mtf_slurm.command import Commands
from mtf_slurm.errors import SubmissionError, TemplateError
from mtf_slurm.experiments import Experiment, checked_entry_point, dumped
from mtf_slurm.follow.nodes import FailingNodes
from mtf_slurm.git import GitManager
from mtf_slurm.render import Template, check_setup, variables
from mtf_slurm.settings import settings_of

__all__ = ["Site", "check_place", "excluded_in", "manager_of", "script_of", "work_of"]

_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """What a launcher submits with.

    Attributes:
        commands: Runs Slurm's commands.
        template: Of the jobs' script.
        setup: The project's own lines of shell.
        defaults: For keys that an experiment's ``slurm`` section has not.
        excluded_nodes: Gives those that are left out in a folder of experiments; None for
            those that failed again and again, where that can be asked for.
        entry_point: What experiments run whose config has none.
        code: What jobs run; its snapshot is made for each batch.
        git: Freezes the code; None to run what lies there.
        push_to: A remote that gets the snapshots' branches, too.
        num_packed: Experiments that one task runs.
        max_array_size: Tasks of one array; None for what Slurm says.

    Raises:
        ValueError: If *setup* or the interpreter of *code* cannot be what a job runs.
    """

    commands: Commands
    template: Template
    setup: str
    defaults: Mapping[str, Any]
    excluded_nodes: Callable[[Path], Iterable[str]] | None
    entry_point: str | None
    code: Code
    git: GitManager | None
    push_to: str | None
    num_packed: int
    max_array_size: int | None

    def __post_init__(self) -> None:
        check_setup(self.setup)
        python = self.code.python
        if python is not None:
            is_word = "/" not in python or python.startswith("/")
            if not (python and python.isprintable() and is_word):
                msg = (
                    f"python is {python!r}: jobs run elsewhere, give an absolute path, or the "
                    f"name of a command"
                )
                raise ValueError(msg)


def check_place(site: Site, folder: Path) -> None:
    """Refuse a folder of experiments whose jobs could not import their code.

    Raises:
        SubmissionError: Naming the folder where that would lie.
    """
    place = site.code.project_root if site.git is None else folder
    if os.pathsep in str(place):
        reason = (
            f"{os.pathsep!r} in a path splits PYTHONPATH, by which jobs import their code: "
            f"give a folder without"
        )
        raise SubmissionError(str(place), reason)


def excluded_in(site: Site, folder: Path) -> list[str]:
    """Return the nodes that are left out in a folder of experiments.

    Raises:
        ValueError: If a name is none of a node.
    """
    if site.excluded_nodes is None:
        return (
            [*FailingNodes().excluded(folder)] if "exclude" in site.template.used else []
        )
    found = sorted({*site.excluded_nodes(folder)})
    for node in found:
        if not _NODE.fullmatch(node):
            msg = f"excluded_nodes gave {node!r}, which is no name of a node"
            raise ValueError(msg)
    return found


def work_of(
    site: Site, experiment: Experiment, folder: Path, excluded: Sequence[str]
) -> Work:
    """Return what an experiment asks for and runs.

    Args:
        site: With what it is submitted.
        experiment: Its name is checked.
        folder: Where its own folder lies.
        excluded: Nodes that are left out besides its own.

    Raises:
        SubmissionError: If its config does not fit.
        TemplateError: If the template would pass over what it asks for.
    """
    name = experiment.experiment_name
    values = dumped(experiment)
    settings = settings_of(name, values.get("slurm"), site.defaults)
    if excluded and not (site.excluded_nodes is None and settings.nodelist):
        nodes = [*([settings.exclude] if settings.exclude else []), *excluded]
        settings = settings.model_copy(update={"exclude": ",".join(nodes)})
    places = f"{folder}{site.code.project_root}"
    if settings.container and re.search("[:,]", places):
        reason = f"a container cannot be given folders with ':' or ',': {places}"
        raise SubmissionError(name, reason)
    site.template.check(settings)
    entry_point = checked_entry_point(name, values.get("entry_point"))
    return Work(settings, entry_point or site.entry_point)


def manager_of(root: Path, folders: Iterable[Path]) -> GitManager:
    """Return what freezes a project, without the folders of its experiments.

    Raises:
        SnapshotError: If it cannot be frozen, or lies in one of *folders*.
    """
    return GitManager(root, leave_out=folders)


def script_of(
    site: Site, job: Job, planned: Planned, code: Code, context: Mapping[str, Any] | None
) -> str:
    """Return the script of a job.

    Raises:
        TemplateError: If it cannot be made; or a variable of *context* is not known.
    """
    settings = planned.work.settings
    site.template.check(settings)
    name = planned.names[0]
    is_one = len(planned.names) == 1
    values = {
        **variables(settings, num_packed=max(map(len, planned.tasks))),
        "array": arrays.index_spec(len(planned.tasks), planned.limit),
        "commit": code.snapshot.commit if code.snapshot else None,
        "error": f"../../{name}/%j.err" if is_one else "slurm.log",
        "experiments_folder": str(job.experiments_folder),
        "job_folder": str(job.folder),
        "job_name": name,
        "output": f"../../{name}/%j.out" if is_one else "slurm.log",
        "project_root": str(code.project_root),
        "run": ["/bin/bash", str(job.folder / "task.sh"), str(job.folder)],
        "setup": site.setup,
    }
    if unknown := sorted((context or {}).keys() - values.keys()):
        reason = f"{', '.join(unknown)}: unknown; there are {', '.join(values)}"
        place = "context"
        raise TemplateError(place, reason)
    return site.template.render({**values, **(context or {})})
