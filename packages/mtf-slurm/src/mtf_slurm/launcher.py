"""Submit experiments to Slurm, ask what became of them, end them, bring them back.

`SLURMLauncher` fits what searches ask of a launcher. All state lies in the folder of the
experiments and in Slurm: a submitter may exit, and another on another machine goes on.
Nothing is submitted twice (`mtf_slurm._once`), and the code that was submitted is the code
that runs (`mtf_slurm.git`).

An experiment runs in its own folder, with ``<job_id>.out`` and ``<job_id>.err``, and these
variables: ``MTF_EXPERIMENT_DIR``, ``MTF_JOB_ID``, ``MTF_CODE_DIR``. Its exit status says how it
went: 0 succeeded, 75 it saved and asks to be continued, anything else failed.
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from mtf_slurm import _once, arrays, query
from mtf_slurm._outcomes import Outcomes, task_of
from mtf_slurm.arrays import Code, Job, Planned, Work
from mtf_slurm.command import Commands
from mtf_slurm.errors import (
    MtfSlurmError,
    SchedulerCommandError,
    SchedulerUnreachableError,
    SubmissionError,
    TemplateError,
)
from mtf_slurm.experiments import (
    NAME,
    BatchSubmissionResult,
    Experiment,
    Submission,
    checked_entry_point,
    checked_name,
    write_config,
)
from mtf_slurm.git import GitManager, Snapshot
from mtf_slurm.render import Template, variables
from mtf_slurm.settings import SlurmSettings, settings_of
from mtf_slurm.states import JobState

__all__ = ["SLURMLauncher"]

_KEPT = frozenset({JobState.PENDING, JobState.RUNNING, JobState.SUCCEEDED})
# For as long after a submission, a job that nobody knows is one that is not shown yet.
_UNKNOWN_S = 300.0
_CHUNK = 200


class SLURMLauncher:
    """Runs experiments as jobs of Slurm.

    Args:
        template_path: Of the jobs' script, see `mtf_slurm.render`; the built-in by default.
        project_root: The project's folder.
        experiments_folder: Where experiments lie; ``<project_root>/experiments`` by default.
        entry_point: What experiments run whose config has none: the path of a script, of
            the project unless it is absolute, or ``package.module:function``; None is
            ``mtf run``.
        defaults: Of the ``slurm`` section; keys of `SlurmSettings`.
        setup: Lines of shell, before all experiments. They are run as they are.
        python: The interpreter for scripts, functions and the checkout; by default that of
            an experiment's ``venv`` or ``conda``, or else the one that runs this.
        freeze_code: Whether jobs run the code of the moment of submission, from a checkout of
            their own; else what lies in the project's folder when they run.
        git: What freezes it; ``GitManager(project_root)`` by default.
        cleanup: When a job removes its checkout.
        num_packed: Experiments that one task runs, one after another.
        max_array_size: Tasks of one array; what the site says by default.
        poll_interval_s: Between two questions of `wait`, in seconds.
        lock_timeout_s: How long to wait for another submitter, in seconds.
        commands: Runs Slurm's commands.

    Raises:
        TemplateError: If the template cannot be used.
        SnapshotError: If the code is to be frozen and cannot be.
        SubmissionError: If *defaults* or *entry_point* do not fit.
        ValueError: If a number is out of range.
    """

    max_running: int | None = None
    """A queue takes any number; see ``max_running`` of `SlurmSettings` for arrays."""

    def __init__(  # noqa: PLR0913 -- each is set by name
        self,
        template_path: Path | str | None = None,
        project_root: Path | str = ".",
        *,
        experiments_folder: Path | str | None = None,
        entry_point: str | Path | None = None,
        defaults: Mapping[str, Any] | None = None,
        setup: Sequence[str] = (),
        python: str | Path | None = None,
        freeze_code: bool = True,
        git: GitManager | None = None,
        cleanup: Literal["always", "success", "never"] = "always",
        num_packed: int = 1,
        max_array_size: int | None = None,
        poll_interval_s: float = 5.0,
        lock_timeout_s: float = 300.0,
        commands: Commands | None = None,
    ) -> None:
        for what, number in (
            ("num_packed", num_packed),
            ("max_array_size", max_array_size),
        ):
            if number is not None and number < 1:
                msg = f"{what} is {number}: give 1 or more"
                raise ValueError(msg)
        if not poll_interval_s > 0:
            msg = f"poll_interval_s is {poll_interval_s}: give a number above 0"
            raise ValueError(msg)
        if cleanup not in {"always", "success", "never"}:
            msg = f"cleanup is {cleanup!r}: one of always, success, never"
            raise ValueError(msg)
        self.poll_interval_s = poll_interval_s
        self._template = Template(template_path)
        root = Path(os.path.abspath(project_root))  # noqa: PTH100 -- links stay
        self._experiments_folder = _absolute(experiments_folder or root / "experiments")
        self._code = Code(
            project_root=root,
            snapshot=None,
            python=None if python is None else str(python),
            cleanup=cleanup,
        )
        self._git = (git or GitManager(root)) if freeze_code else None
        self._defaults = dict(defaults or {})
        settings_of("defaults", None, self._defaults)
        entry = None if entry_point is None else str(entry_point)
        self._entry_point = checked_entry_point("entry_point", entry)
        self._setup = "\n".join(setup)
        self._num_packed = num_packed
        self._max_array_size = max_array_size
        self._lock_timeout_s = lock_timeout_s
        self._commands = commands or Commands()
        self._folders = {self._experiments_folder}

    # ------------------------------------------------------------ submit

    def submit(
        self, experiments: Sequence[Experiment], *, folder: Path
    ) -> BatchSubmissionResult:
        """Submit experiments whose configs are written; return one row for each, in order.

        An experiment that is pending or running, or has succeeded, keeps its job. One that
        cannot be submitted has a row that says why, and touches no other.

        Args:
            experiments: Which.
            folder: Where ``<experiment_name>/config.yaml`` lie.

        Raises:
            MtfSlurmError: If nothing could be submitted at all; nothing was.
        """
        folder = _absolute(folder)
        if not folder.is_dir():
            raise SubmissionError(str(folder), "there is no such folder: make it first")
        if "\\" in str(folder) or not str(folder).isprintable():
            reason = "Slurm takes no such path: name it without backslash and newline"
            raise SubmissionError(str(folder), reason)
        errors: dict[int, str] = {}
        works: dict[str, Work] = {}
        for index, experiment in enumerate(experiments):
            try:
                name = checked_name(experiment.experiment_name)
                if name not in works:
                    works[name] = self._work(name, experiment, folder)
            except (MtfSlurmError, OSError) as error:
                errors[index] = str(error)
        ids: dict[str, str] = {}
        refused: dict[str, str] = {}
        if works:
            self._folders.add(folder)
            with _once.lock(folder, timeout_s=self._lock_timeout_s) as lock_fd:
                ids = self._kept(folder, works)
                left = {name: works[name] for name in works if name not in ids}
                self._submit(folder, left, ids, refused, lock_fd)
        rows = []
        for index, experiment in enumerate(experiments):
            name = experiment.experiment_name
            why = errors.get(index) or refused.get(name)
            job_id = None if why else ids[name]
            rows.append(Submission(experiment_name=name, job_id=job_id, error=why))
        return BatchSubmissionResult(tuple(rows))

    def submit_experiment_batch(
        self, experiments: Sequence[Experiment]
    ) -> BatchSubmissionResult:
        """Write the configs of experiments and `submit` them.

        A ``config.yaml`` that is there and was not written by this stays as it is.

        Raises:
            MtfSlurmError: If nothing could be submitted at all; nothing was.
        """
        folder = self._experiments_folder
        for experiment in experiments:
            if NAME.fullmatch(experiment.experiment_name):
                write_config(folder / experiment.experiment_name, experiment)
        if not experiments:
            return BatchSubmissionResult(())
        return self.submit(experiments, folder=folder)

    def submit_single_experiment(self, config: Experiment) -> str:
        """Submit one experiment; return its job's id.

        Raises:
            MtfSlurmError: If it cannot be submitted; the message says why.
        """
        [row] = self.submit_experiment_batch([config])
        if row.job_id is None:
            raise SubmissionError(row.experiment_name, row.error or "it has no job")
        return row.job_id

    def generate_sbatch_script(
        self, config: Experiment, context: Mapping[str, Any] | None = None
    ) -> Path:
        """Write the script that would be submitted for one experiment; return its path.

        It lies in the experiment's folder as ``<experiment_name>.sbatch``, to be looked at:
        what it runs is made when it is submitted.

        Args:
            config: The experiment.
            context: Variables of the template that are to be others.

        Raises:
            SubmissionError: If the experiment cannot be submitted.
            TemplateError: If the script cannot be made; or a variable is not known.
        """
        name = checked_name(config.experiment_name)
        folder = self._experiments_folder
        write_config(folder / name, config)
        planned = Planned(self._work(name, config, folder), ((name,),))
        draft = Job(folder / arrays.JOBS_FOLDER / f"000000.{'0' * 16}")
        path = folder / name / f"{name}.sbatch"
        script = self._script(draft, planned, self._code, context)
        path.write_text(script, encoding="utf-8")
        return path

    # ------------------------------------------------------------ watch, end, bring back

    def states(self, job_ids: Sequence[str]) -> list[JobState]:
        """Return one state a job, in order; ``unknown`` for what Slurm does not show.

        Raises:
            SchedulerUnreachableError: If Slurm cannot be asked.
            SchedulerCommandError: If it refuses to answer.
            UnreadableReplyError: If its answer cannot be parsed.
        """
        outcomes = Outcomes(self._commands, job_ids, self._folders)
        return [outcomes.state(job_id) for job_id in job_ids]

    def cancel(self, job_ids: Sequence[str]) -> None:
        """Ask jobs to end, without waiting. What has ended, or is unknown, is passed over.

        Raises:
            SubmissionError: If an experiment shares its task with others that are to go on.
            SchedulerUnreachableError: If Slurm cannot be asked.
            SchedulerCommandError: If it refuses.
        """
        known = [job_id for job_id in dict.fromkeys(job_ids) if query.base_of(job_id)]
        tasks = list(dict.fromkeys(map(task_of, known)))
        packed = [job_id for job_id in known if "." in job_id]
        outcomes = Outcomes(self._commands, packed, self._folders)
        for job_id in packed:
            if others := [i for i in outcomes.sharing(job_id) if i not in known]:
                reason = (
                    f"its task runs {', '.join(others)}, too: cancel all of them, or none"
                )
                raise SubmissionError(job_id, reason)
        for at in range(0, len(tasks), _CHUNK):
            try:
                self._commands.run(("scancel", *tasks[at : at + _CHUNK]))
            except SchedulerCommandError as error:
                if not re.search(
                    "invalid job id|already completing", error.stderr, re.IGNORECASE
                ):
                    raise

    def requeue(self, job_ids: Sequence[str]) -> None:
        """Let jobs run again, from their checkpoints, under the same ids.

        Raises:
            SubmissionError: If an id is none.
            SchedulerUnreachableError: If Slurm cannot be asked.
            SchedulerCommandError: If it refuses: after some minutes it forgets what has
                ended, and the experiment is to be submitted again.
        """
        for job_id in job_ids:
            if query.base_of(job_id) is None:
                raise SubmissionError(job_id, "this is no job's id")
        for task in dict.fromkeys(map(task_of, job_ids)):
            self._commands.run(("scontrol", "requeue", task))

    def wait(
        self,
        job_ids: Sequence[str],
        *,
        timeout_s: float | None = None,
        on_progress: Callable[[Mapping[JobState, int]], None] | None = None,
    ) -> list[JobState]:
        """Wait until all jobs have ended; return their states.

        Args:
            job_ids: Which.
            timeout_s: After which to return, whatever the states are, in seconds.
            on_progress: Gets the number of jobs in each state, whenever it changes.

        Raises:
            SchedulerUnreachableError: If Slurm cannot be asked.
            SchedulerCommandError: If it refuses to answer.
            UnreadableReplyError: If its answer cannot be parsed.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        last: Mapping[JobState, int] | None = None
        while True:
            states = self.states(job_ids)
            counts = Counter(states)
            if on_progress is not None and counts != last:
                on_progress(counts)
            last = counts
            if all(state.is_final for state in states):
                return states
            wait_s = self.poll_interval_s
            if deadline is not None:
                wait_s = min(wait_s, deadline - time.monotonic())
            if wait_s <= 0:
                return states
            time.sleep(wait_s)

    # ------------------------------------------------------------ within

    def _work(self, name: str, experiment: Experiment, folder: Path) -> Work:
        if not (folder / name / "config.yaml").is_file():
            path = folder / name / "config.yaml"
            raise SubmissionError(name, f"{path}: there is no such file; write it first")
        values = experiment.model_dump(mode="json")
        settings = settings_of(name, values.get("slurm"), self._defaults)
        entry_point = checked_entry_point(name, values.get("entry_point"))
        return Work(settings, entry_point or self._entry_point)

    def _kept(self, folder: Path, works: Mapping[str, Work]) -> dict[str, str]:
        """Return the jobs of those experiments that are not to be submitted again."""
        last: dict[str, tuple[str, Job]] = {}
        for job in _once.recover(self._commands, arrays.jobs_in(folder)):
            if base := job.base_id():
                last |= {n: (i, job) for n, i in job.ids(base).items() if n in works}
        ids = [job_id for job_id, _ in last.values()]
        now = (folder / arrays.JOBS_FOLDER / "submit.lock").stat().st_mtime
        kept = {}
        for (name, (job_id, job)), state in zip(
            last.items(), self.states(ids) if ids else [], strict=True
        ):
            is_new = state is JobState.UNKNOWN and job.age_s(now) < _UNKNOWN_S
            if state in _KEPT or is_new:
                kept[name] = job_id
        return kept

    def _submit(
        self,
        folder: Path,
        works: Mapping[str, Work],
        ids: dict[str, str],
        refused: dict[str, str],
        lock_fd: int,
    ) -> None:
        """Submit what is left, and note each experiment's job or why it has none."""
        if not works:
            return
        max_tasks = self._max_array_size
        if max_tasks is None:
            is_one = len(works) == 1
            max_tasks = 1 if is_one else query.max_array_size(self._commands)
        number = max((job.number for job in arrays.jobs_in(folder)), default=0)
        code = replace(self._code, snapshot=self._snapshot(list(works), folder))
        unreachable = ""
        jobs = arrays.plan(works, max_tasks=max_tasks, num_packed=self._num_packed)
        for planned in jobs:
            number += 1
            if unreachable:
                refused |= dict.fromkeys(planned.names, unreachable)
                continue
            try:
                ids |= self._submit_one(folder, number, planned, code, lock_fd)
            except SchedulerUnreachableError as error:
                unreachable = f"{error}; submit again to go on, nothing is done twice"
                refused |= dict.fromkeys(planned.names, unreachable)
            except (MtfSlurmError, OSError) as error:
                refused |= dict.fromkeys(planned.names, str(error))

    def _submit_one(
        self, folder: Path, number: int, planned: Planned, code: Code, lock_fd: int
    ) -> dict[str, str]:
        job = arrays.new_job(folder, number)
        try:
            script = self._script(job, planned, code, None)
            arrays.write_files(job, planned, code, script)
        except BaseException:
            job.remove()
            raise
        spec = arrays.index_spec(len(planned.tasks), planned.work.settings.max_running)
        base = _once.submit(self._commands, job, array=spec, lock_fd=lock_fd)
        ids = job.ids(base)
        if len(ids) == 1:  # those of arrays share theirs
            [(name, job_id)] = ids.items()
            copy = folder / name / f"{job_id}.sbatch"
            with suppress(OSError):  # it is submitted, and `job.sbatch` says the same
                copy.write_text(script, encoding="utf-8")
        return ids

    def _snapshot(self, names: Sequence[str], folder: Path) -> Snapshot | None:
        if self._git is None:
            return None
        batch = None if len(names) == 1 else f"batch-{names[0]}"[:128]
        snapshot = self._git.snapshot(names, batch=batch)
        self._git.record(snapshot, {name: folder / name for name in names})
        return snapshot

    def _script(
        self, job: Job, planned: Planned, code: Code, context: Mapping[str, Any] | None
    ) -> str:
        settings: SlurmSettings = planned.work.settings
        name = planned.names[0]
        is_one = len(planned.names) == 1
        values = {
            **variables(settings),
            "array": arrays.index_spec(len(planned.tasks), settings.max_running),
            "commit": code.snapshot.commit if code.snapshot else None,
            "error": f"../../{name}/%j.err" if is_one else "slurm.log",
            "experiments_folder": str(job.experiments_folder),
            "job_folder": str(job.folder),
            "job_name": name,
            "output": f"../../{name}/%j.out" if is_one else "slurm.log",
            "project_root": str(code.project_root),
            "run": ["/bin/bash", str(job.folder / "task.sh"), str(job.folder)],
            "setup": self._setup,
        }
        if unknown := sorted((context or {}).keys() - values.keys()):
            reason = f"{', '.join(unknown)}: unknown; there are {', '.join(values)}"
            place = "context"
            raise TemplateError(place, reason)
        return self._template.render({**values, **(context or {})})


def _absolute(path: Path | str) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 -- links stay as people named them
