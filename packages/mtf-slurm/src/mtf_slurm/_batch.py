"""One submission of a batch, by who holds the folder's lock.

What has a job keeps it; what is left is planned as arrays, in the order in which experiments
wait for each other, and submitted one job after the other. A job that is refused touches no
other; once Slurm cannot be asked, the rest is left for the next time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from mtf_slurm import _once, arrays, query
from mtf_slurm.after import After, Kept, levels, resolved
from mtf_slurm.arrays import Code, Job, Planned, Work
from mtf_slurm.command import Commands
from mtf_slurm.errors import (
    MtfSlurmError,
    SchedulerUnreachableError,
    SnapshotError,
    SubmissionError,
    TemplateError,
)
from mtf_slurm.experiments import Experiment, checked_entry_point
from mtf_slurm.git import GitManager
from mtf_slurm.git.freeze import Choice
from mtf_slurm.render import Template, variables
from mtf_slurm.settings import settings_of
from mtf_slurm.shell import command_words, shell_settings
from mtf_slurm.states import JobState

__all__ = ["Batch", "Site", "States", "excluded_in", "manager_of", "script_of", "work_of"]

States: TypeAlias = Callable[[Sequence[str]], Sequence[JobState]]
"""Asks how jobs are."""

_KEPT = frozenset({JobState.PENDING, JobState.RUNNING, JobState.SUCCEEDED})
# For as long after a submission, a job that nobody knows is one that is not shown yet.
_UNKNOWN_S = 300.0
_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_TASK = re.compile(r"afterok:(\d+)_(\d+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """What a launcher submits with.

    Attributes:
        commands: Runs Slurm's commands.
        template: Of the jobs' script.
        setup: The project's own lines of shell.
        defaults: For keys that an experiment's ``slurm`` section has not.
        excluded_nodes: Gives those that are left out in a folder of experiments.
        entry_point: What experiments run whose config has none.
        code: What jobs run; its snapshot is made for each batch.
        git: Freezes the code; None to run what lies there.
        push_to: A remote that gets the snapshots' branches, too.
        num_packed: Experiments that one task runs.
        max_array_size: Tasks of one array; None for what Slurm says.
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


def excluded_in(site: Site, folder: Path) -> list[str]:
    """Return the nodes that are left out in a folder of experiments.

    Raises:
        ValueError: If a name is none of a node.
    """
    found = sorted(set(site.excluded_nodes(folder))) if site.excluded_nodes else []
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
        SubmissionError: If its config is not written, or does not fit.
        TemplateError: If the template would pass over what it asks for.
    """
    name = experiment.experiment_name
    path = folder / name / "config.yaml"
    if not path.is_file():
        raise SubmissionError(name, f"{path}: there is no such file; write it first")
    values = experiment.model_dump(mode="json")
    settings = settings_of(name, values.get("slurm"), site.defaults)
    if excluded:
        nodes = [*([settings.exclude] if settings.exclude else []), *excluded]
        settings = settings.model_copy(update={"exclude": ",".join(nodes)})
    places = f"{folder}{site.code.project_root}"
    if settings.container and re.search("[:,]", places):
        reason = f"a container cannot be given folders with ':' or ',': {places}"
        raise SubmissionError(name, reason)
    site.template.check(settings)
    entry_point = checked_entry_point(name, values.get("entry_point"))
    return Work(settings, entry_point or site.entry_point)


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


def manager_of(root: Path, experiments_folder: Path) -> GitManager:
    """Return what freezes a project, without its experiments."""
    choice = Choice()
    if root in experiments_folder.parents:
        path = experiments_folder.relative_to(root).as_posix()
        escaped = re.sub(r"([\\*?\[ ])", r"\\\1", path)
        choice = Choice(exclude=tuple({*choice.exclude, f"/{escaped}/"}))
    return GitManager(root, choice=choice)


class Batch:
    """Experiments that are submitted together.

    Args:
        site: With what.
        folder: Where their folders lie.
        works: By experiment.
        after: For which others each waits.
        lock_fd: The lock's file, for sbatch to inherit.

    Attributes:
        kept: The jobs that there are, by experiment.
        refused: Why an experiment has none.
    """

    def __init__(
        self,
        site: Site,
        folder: Path,
        works: Mapping[str, Work],
        after: After,
        *,
        lock_fd: int,
    ) -> None:
        self._site = site
        self._folder = folder
        self._works = works
        self._after = after
        self._lock_fd = lock_fd
        self._number = 0
        self._sizes: dict[str, int] = {}
        self._unreachable = ""
        self.kept: dict[str, Kept] = {}
        self.refused: dict[str, str] = {}

    def look(self, states: States) -> None:
        """Note the jobs that there are, of the batch and of those for which it waits.

        Args:
            states: Asks how jobs are, and brings back what waits for that.

        Raises:
            MtfSlurmError: If Slurm cannot be asked.
        """
        awaited = {other for others in self._after.values() for other in others}
        wanted = self._works.keys() | awaited
        jobs = _once.recover(self._site.commands, arrays.jobs_in(self._folder))
        self._number = max((job.number for job in jobs), default=0)
        last = arrays.last_of(jobs, wanted)
        ids = [job_id for job_id, _ in last.values()]
        now = (self._folder / arrays.JOBS_FOLDER / "submit.lock").stat().st_mtime
        found = states(ids) if ids else []
        for (name, (job_id, job)), state in zip(last.items(), found, strict=True):
            is_new = state is JobState.UNKNOWN and job.age_s(now) < _UNKNOWN_S
            if name not in self._works or state in _KEPT or is_new:
                self.kept[name] = Kept(job_id, state)

    def submit(self, refused: Mapping[str, str]) -> None:
        """Submit what has no job.

        Args:
            refused: Why others that were to be in the batch are not.

        Raises:
            MtfSlurmError: If nothing could be submitted at all.
        """
        self.refused.update(refused)
        left = [name for name in self._works if name not in self.kept]
        if not left:
            return
        max_tasks = self._max_tasks(len(left))
        left, code = self._frozen(left)
        awaited = {other for others in self._after.values() for other in others}
        for names in levels(left, self._after):
            pairs, works = self._waiting(names)
            self._submit_all(pairs, code)
            # Slurm knows tasks: one that others wait for is alone in its.
            alone = {n: w for n, w in works.items() if n in awaited}
            others = {n: w for n, w in works.items() if n not in awaited}
            self._submit_all(arrays.plan(alone, max_tasks=max_tasks), code)
            num_packed = self._site.num_packed
            planned = arrays.plan(others, max_tasks=max_tasks, num_packed=num_packed)
            self._submit_all(planned, code)

    def _max_tasks(self, count: int) -> int:
        if self._site.max_array_size is not None:
            return self._site.max_array_size
        return 1 if count == 1 else query.max_array_size(self._site.commands)

    def _frozen(self, names: Sequence[str]) -> tuple[list[str], Code]:
        """Freeze the code, and record it; return whom it could be recorded for."""
        site, left = self._site, list(names)
        if site.git is None:
            return left, site.code
        batch = None if len(left) == 1 else f"batch-{left[0]}"[:128]
        snapshot = site.git.snapshot(left, batch=batch)
        if site.push_to is not None:
            site.git.push(snapshot, site.push_to)
        code = replace(site.code, snapshot=snapshot)
        folders = {name: self._folder / name for name in left}
        commands = {
            name: command_words(self._works[name], code, folder / "config.yaml")
            for name, folder in folders.items()
        }
        while folders:
            try:
                site.git.record(snapshot, folders, commands=commands)
                break
            except SnapshotError as error:
                wrong = [n for n, folder in folders.items() if folder == error.place]
                if not wrong:
                    raise
                self.refused[wrong[0]] = str(error)
                del folders[wrong[0]]
        return list(folders), code

    def _waiting(self, names: Iterable[str]) -> tuple[list[Planned], dict[str, Work]]:
        """Return what experiments ask for, with what they wait for.

        Those that wait for the tasks of an array, one for one, are an array, too.
        """
        works: dict[str, Work] = {}
        one_for_one: dict[tuple[Work, str], dict[int, str]] = {}
        for name in names:
            work = self._works[name]
            try:
                others = self._after.get(name, {})
                found = resolved(name, others, self.kept, self.refused)
            except SubmissionError as error:
                self.refused[name] = error.reason
                continue
            works[name] = _also_after(work, found)
            match = _TASK.fullmatch(",".join(found))
            if match:
                one_for_one.setdefault((work, match[1]), {})[int(match[2])] = name
        pairs = []
        for (work, base), by_index in one_for_one.items():
            if set(by_index) == set(range(self._sizes.get(base, 0))):
                tasks = tuple((name,) for _, name in sorted(by_index.items()))
                works = {n: w for n, w in works.items() if n not in by_index.values()}
                also = _also_after(work, (f"aftercorr:{base}",))
                pairs.append(Planned(also, tasks, work.settings.max_running))
        return pairs, works

    def _submit_all(self, plan: Sequence[Planned], code: Code) -> None:
        bases: dict[int, str] = {}
        for at, one in enumerate(plan):
            planned = one
            self._number += 1
            if self._unreachable:
                self.refused |= dict.fromkeys(planned.names, self._unreachable)
                continue
            if planned.waits_for in bases:
                before = (f"afterany:{bases[planned.waits_for]}",)
                planned = replace(planned, work=_also_after(planned.work, before))
            try:
                bases[at] = self._submit_one(planned, code)
            except SchedulerUnreachableError as error:
                self._unreachable = (
                    f"{error}; submit again to go on, nothing is done twice"
                )
                self.refused |= dict.fromkeys(planned.names, self._unreachable)
            except (MtfSlurmError, OSError) as error:
                self.refused |= dict.fromkeys(planned.names, str(error))

    def _submit_one(self, planned: Planned, code: Code) -> str:
        site = self._site
        job = arrays.new_job(self._folder, self._number)
        try:
            script = script_of(site, job, planned, code, None)
            is_told = {"output", "error"} <= site.template.used
            settings = shell_settings(
                self._folder, planned, code, is_redirected=not is_told
            )
            arrays.write_files(job, planned, settings, script)
        except BaseException:
            job.remove()
            raise
        spec = arrays.index_spec(len(planned.tasks), planned.limit)
        base = _once.submit(site.commands, job, array=spec, lock_fd=self._lock_fd)
        ids = job.ids(base)
        self._sizes[base] = len(planned.tasks)
        self.kept |= {name: Kept(i, JobState.PENDING) for name, i in ids.items()}
        if len(ids) == 1:  # those of arrays share theirs
            [(name, job_id)] = ids.items()
            copy = self._folder / name / f"{job_id}.sbatch"
            with suppress(OSError):  # it is submitted, and `job.sbatch` says the same
                copy.write_text(script, encoding="utf-8")
        return base


def _also_after(work: Work, dependencies: Sequence[str]) -> Work:
    if not dependencies:
        return work
    given = (*work.settings.dependencies, *dependencies)
    settings = work.settings.model_copy(update={"dependencies": given})
    return replace(work, settings=settings)
