"""One submission of a batch, by who holds the folder's lock.

What has a job keeps it; what is left is planned as arrays, in the order in which experiments
wait for each other, and submitted one job after the other. A job that is refused touches no
other; once Slurm cannot be asked, the rest is left for the next time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from mtf_slurm import _once, arrays, query
from mtf_slurm._before import Before
from mtf_slurm._site import Site, excluded_in, script_of, work_of
from mtf_slurm._sweep import sweep
from mtf_slurm.after import After, Kept, checked, levels, resolved
from mtf_slurm.arrays import Code, Job, Planned, Work
from mtf_slurm.errors import (
    MtfSlurmError,
    SchedulerUnreachableError,
    SnapshotError,
    SubmissionError,
)
from mtf_slurm.experiments import (
    BatchSubmissionResult,
    Experiment,
    Submission,
    checked_name,
    config_text,
    has_other_config,
    write_text,
)
from mtf_slurm.shell import command_words, shell_settings
from mtf_slurm.states import JobState

__all__ = ["Batch", "States", "submit_batch"]

States: TypeAlias = Callable[[Sequence[str]], Mapping[str, JobState]]
"""Asks how jobs are; has none that Slurm has lost, and given its id to another."""

_KEPT = frozenset({JobState.PENDING, JobState.RUNNING, JobState.SUCCEEDED})
# For as long after a submission, a job that nobody knows is one that is not shown yet.
_UNKNOWN_S = 300.0
_LOST = (
    "Slurm lost its job, and gave the id to another: its controller was restarted without "
    "its last state; submit again"
)
_TWICE = "it comes twice, with different configs: give each a name of its own"
_TASK = re.compile(r"afterok:(\d+)_(\d+)")


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
        self._owners: dict[str, Job] = {}
        self._sizes: dict[str, int] = {}
        self._unreachable = ""
        self._before = Before(folder)
        self._doubtful: set[str] = set()
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
        self._owners = {base: job for job in jobs if (base := job.base_id())}
        last = arrays.last_of(jobs, wanted)
        owned = [i for i, job in last.values() if self._owner_of(i) is job]
        now = (self._folder / arrays.JOBS_FOLDER / "submit.lock").stat().st_mtime
        found = states(owned) if owned else {}
        for name, (job_id, job) in last.items():
            if self._owner_of(job_id) is job and job_id in found:
                state = found[job_id]
            else:  # Slurm lost it, and gave its id to another
                state = job.left(name, job_id) or JobState.NODE_FAILED
            is_new = state is JobState.UNKNOWN and job.age_s(now) < _UNKNOWN_S
            if name not in self._works or state in _KEPT or is_new:
                self.kept[name] = Kept(job_id, state)
        self._before.note(self._works.keys() & last.keys() - self.kept.keys())
        ended = [j for n, (_, j) in last.items() if n not in self.kept]
        with suppress(MtfSlurmError):  # it tidies up, no more
            sweep(
                self._site.commands,
                dict.fromkeys(ended),
                (self._folder,),
                self._site.code.cleanup,
                are_replaced=True,
            )

    def put_back(self) -> None:
        """Leave the last job's files to what has no other now."""
        self._before.put_back(self._works.keys() - self.kept.keys() - self._doubtful)

    def write_configs(self, texts: Mapping[str, str]) -> None:
        """Write the configs of what is to be submitted; refuse another of what is not."""
        self._before.wrote(texts)
        for name, text in texts.items():
            folder = self._folder / name
            try:
                if name not in self.kept:
                    write_text(folder, name, text)
                elif has_other_config(folder, text):
                    job_id, state = self.kept[name]
                    self.refused[name] = (
                        f"its job {job_id} is {state} with another config than this: give "
                        f"the changed experiment a name of its own, or, for another run "
                        f"under this name, cancel the job and move {folder} away"
                    )
            except SubmissionError as error:
                self.refused[name] = error.reason

    def _owner_of(self, job_id: str) -> Job | None:
        return self._owners.get(query.base_of(job_id) or "")

    def submit(self, refused: Mapping[str, str]) -> None:
        """Submit what has no job.

        Args:
            refused: Why others that were to be in the batch are not.

        Raises:
            MtfSlurmError: If nothing could be submitted at all.
        """
        self.refused.update(refused)
        done = self.kept.keys() | self.refused.keys()
        left = [name for name in self._works if name not in done]
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
        try:
            base = _once.submit(site.commands, job, array=spec, lock_fd=self._lock_fd)
        finally:
            if job.folder.exists():  # it is submitted, or may be
                self._doubtful.update(planned.names)
        ids = job.ids(base)
        if (lost := self._owners.get(base)) is not None:
            lost_ids = lost.ids(base)
            for name in [n for n, k in self.kept.items() if lost_ids.get(n) == k.job_id]:
                del self.kept[name]
                self.refused[name] = _LOST
        self._owners[base] = job
        self._sizes[base] = len(planned.tasks)
        self.kept |= {name: Kept(i, JobState.PENDING) for name, i in ids.items()}
        if len(ids) == 1:  # those of arrays share theirs
            [(name, job_id)] = ids.items()
            copy = self._folder / name / f"{job_id}.sbatch"
            with suppress(OSError):  # it is submitted, and `job.sbatch` says the same
                copy.touch(mode=0o600)  # as `job.sbatch` is
                copy.write_text(script, encoding="utf-8")
        return base


def submit_batch(  # noqa: PLR0913 -- each is set by name
    site: Site,
    folder: Path,
    experiments: Sequence[Experiment],
    after: After | None,
    *,
    writes: bool,
    lock_timeout_s: float,
    states: States,
) -> BatchSubmissionResult:
    """Submit experiments; return one row for each, in order.

    Args:
        site: With what.
        folder: Where their folders lie.
        experiments: Which.
        after: For which others each waits.
        writes: Whether their configs are written here, where they are submitted; else they
            are there.
        lock_timeout_s: How long to wait for another submitter, in seconds.
        states: Asks how jobs are, and brings back what waits for that.

    Raises:
        MtfSlurmError: If nothing could be submitted at all; nothing was.
        ValueError: If *after* is not for this batch, or experiments wait for each other.
    """
    after = checked(after, [experiment.experiment_name for experiment in experiments])
    if {"\\", "%"} & {*str(folder)} or not str(folder).isprintable():
        reason = "Slurm takes no such path: name it without backslash, '%' and newline"
        raise SubmissionError(str(folder), reason)
    excluded = excluded_in(site, folder)
    kept: Mapping[str, Kept] = {}
    refused: dict[str, str] = {}
    works: dict[str, Work] = {}
    texts: dict[str, str] = {}
    for experiment in experiments:
        name = experiment.experiment_name
        try:
            if checked_name(name) in works:
                if writes and config_text(experiment) != texts[name]:
                    raise SubmissionError(name, _TWICE)
                continue
            work = work_of(site, experiment, folder, excluded)
            if writes:
                texts[name] = config_text(experiment)
            elif not (folder / name / "config.yaml").is_file():
                reason = f"{folder / name}/config.yaml is not there: write it first"
                raise SubmissionError(name, reason)
            works[name] = work
        except (MtfSlurmError, OSError) as error:
            # The row has the name already.
            refused[name] = str(
                error.reason if isinstance(error, SubmissionError) else error
            )
    works = {name: work for name, work in works.items() if name not in refused}
    if works:
        with _once.lock(folder, timeout_s=lock_timeout_s) as lock_fd:
            batch = Batch(site, folder, works, after, lock_fd=lock_fd)
            batch.look(states)
            try:
                batch.write_configs({name: texts[name] for name in works if writes})
                batch.submit(refused)
            finally:
                batch.put_back()
        kept, refused = batch.kept, batch.refused
    rows = []
    for experiment in experiments:
        name = experiment.experiment_name
        why = refused.get(name)
        job_id = None if why else kept[name].job_id
        rows.append(Submission(experiment_name=name, job_id=job_id, error=why))
    return BatchSubmissionResult(tuple(rows))


def _also_after(work: Work, dependencies: Sequence[str]) -> Work:
    if not dependencies:
        return work
    given = (*work.settings.dependencies, *dependencies)
    settings = work.settings.model_copy(update={"dependencies": given})
    return replace(work, settings=settings)
