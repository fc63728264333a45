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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from mtf_slurm import _again, _control, arrays
from mtf_slurm._batch import submit_batch
from mtf_slurm._ends import End, ends
from mtf_slurm._outcomes import Outcomes
from mtf_slurm._site import (
    Site,
    check_place,
    excluded_in,
    manager_of,
    script_of,
    work_of,
)
from mtf_slurm.after import After
from mtf_slurm.arrays import Code, Job, Planned
from mtf_slurm.command import Commands
from mtf_slurm.errors import SubmissionError
from mtf_slurm.experiments import (
    BatchSubmissionResult,
    Experiment,
    checked_entry_point,
    checked_name,
    told,
)
from mtf_slurm.git import GitManager
from mtf_slurm.git.branches import Branch
from mtf_slurm.render import Template
from mtf_slurm.settings import settings_of
from mtf_slurm.states import JobState

__all__ = ["SLURMLauncher"]


class SLURMLauncher:
    """Runs experiments as jobs of Slurm.

    Args:
        template_path: Of the jobs' script, see `mtf_slurm.render`; the built-in by default.
        project_root: The project's folder.
        experiments_folder: Where experiments lie; ``<project_root>/experiments`` by default.
        entry_point: What experiments run whose config has none: the path of a script, of
            the project unless it is absolute, or ``package.module:function``; None is
            ``mtf run``.
        defaults: For keys that an experiment's ``slurm`` section has not, or has as null;
            see `SlurmSettings`.
        setup: Lines of shell, before all experiments. They are run as they are.
        python: The interpreter for scripts, functions and the checkout; by default that of
            an experiment's ``venv``, ``conda`` or ``container``, or else the one that runs
            this.
        freeze_code: Whether jobs run the code of the moment of submission, from a checkout of
            their own; else what lies in the project's folder when they run.
        git: What freezes it; ``GitManager(project_root)`` by default, which leaves out the
            experiments. For a project in no repository, one with an ``archive``.
        push_to: A remote that gets the branches of snapshots before jobs are submitted.
        cleanup: When a job removes its checkout.
        num_packed: Experiments that one task runs, one after another.
        max_array_size: Tasks of one array; what the site says by default.
        excluded_nodes: Gives, for a folder of experiments, the names of nodes that are to be
            left out besides those that an experiment leaves out; by default those that a
            `JobMonitor` saw fail again and again (see `FailingNodes`), where the template
            writes them and the experiment names no nodes.
        poll_interval_s: Between two questions of `wait`, in seconds.
        lock_timeout_s: How long to wait for another submitter, in seconds.
        commands: Runs Slurm's commands.

    Raises:
        TemplateError: If the template cannot be used.
        SnapshotError: If the code is to be frozen and cannot be.
        SubmissionError: If *defaults* or *entry_point* do not fit, or code cannot be imported
            from where it would lie.
        ValueError: If a number is out of range, *python* or *setup* cannot be used, or
            *push_to* is given without frozen code.
    """

    max_running: int | None = None
    """A queue takes any number; see ``max_running`` of `SlurmSettings` for batches."""

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
        push_to: str | None = None,
        cleanup: Literal["always", "success", "never"] = "always",
        num_packed: int = 1,
        max_array_size: int | None = None,
        excluded_nodes: Callable[[Path], Iterable[str]] | None = None,
        poll_interval_s: float = 5.0,
        lock_timeout_s: float = 300.0,
        commands: Commands | None = None,
    ) -> None:
        counts = {"num_packed": num_packed, "max_array_size": max_array_size}
        for what, number in counts.items():
            if number is not None and number < 1:
                msg = f"{what} is {number}: give 1 or more"
                raise ValueError(msg)
        if isinstance(setup, str):
            msg = f"setup is one text, {setup!r}: give a list of lines, [{setup!r}]"
            raise TypeError(msg)
        if not poll_interval_s > 0:
            msg = f"poll_interval_s is {poll_interval_s}: give a number above 0"
            raise ValueError(msg)
        if cleanup not in {"always", "success", "never"}:
            msg = f"cleanup is {cleanup!r}: one of always, success, never"
            raise ValueError(msg)
        if not freeze_code and (git or push_to) is not None:
            msg = "git and push_to are for frozen code: leave them out, or freeze_code=False"
            raise ValueError(msg)
        self.poll_interval_s = poll_interval_s
        root = _absolute(project_root)
        self._experiments_folder = _absolute(experiments_folder or root / "experiments")
        settings_of("defaults", None, defaults or {})
        entry = None if entry_point is None else str(entry_point)
        self._lock_timeout_s = lock_timeout_s
        self._folders = {self._experiments_folder}
        self._is_own_git = freeze_code and git is None
        self._commands = commands or Commands()
        self._site = Site(
            commands=self._commands,
            template=Template(template_path),
            setup="\n".join(setup),
            defaults=dict(defaults or {}),
            excluded_nodes=excluded_nodes,
            entry_point=checked_entry_point("entry_point", entry),
            code=Code(
                project_root=root,
                snapshot=None,
                python=None if python is None else str(python),
                cleanup=cleanup,
            ),
            git=(git or manager_of(root, self._folders)) if freeze_code else None,
            push_to=push_to,
            num_packed=num_packed,
            max_array_size=max_array_size,
        )
        check_place(self._site, self._experiments_folder)

    # ------------------------------------------------------------ submit

    def submit(
        self,
        experiments: Sequence[Experiment],
        *,
        folder: Path,
        after: After | None = None,
    ) -> BatchSubmissionResult:
        """Submit experiments whose configs are written; return one row for each, in order.

        An experiment that is pending or running, or has succeeded, keeps its job. One that
        cannot be submitted has a row that says why, and touches no other.

        Args:
            experiments: Which.
            folder: Where ``<experiment_name>/config.yaml`` lie.
            after: For which others an experiment waits, and for what of them:
                ``{"train": {"prepare": "afterok"}}``. Others are in the batch, or have jobs
                in the folder. See `mtf_slurm.after`.

        Raises:
            MtfSlurmError: If nothing could be submitted at all; nothing was.
            ValueError: If *after* is not for this batch, or experiments wait for each other.
        """
        folder = _absolute(folder)
        if not folder.is_dir():
            raise SubmissionError(str(folder), "there is no such folder: make it first")
        check_place(self._site, folder)
        self._know(folder)
        return self._submit(experiments, folder, after, writes=False)

    def _submit(
        self,
        experiments: Sequence[Experiment],
        folder: Path,
        after: After | None,
        *,
        writes: bool,
    ) -> BatchSubmissionResult:
        return submit_batch(
            self._site,
            folder,
            [*experiments],
            after,
            writes=writes,
            lock_timeout_s=self._lock_timeout_s,
            states=partial(
                _control.states_now, self._commands, folders=(folder,), is_locked=True
            ),
        )

    def submit_experiment_batch(
        self, experiments: Sequence[Experiment], *, after: After | None = None
    ) -> BatchSubmissionResult:
        """Write the configs of experiments and `submit` them.

        A config is written where an experiment is submitted, over one that is there. Where it
        keeps its job, which has another config, the experiment is refused.

        Raises:
            MtfSlurmError: If nothing could be submitted at all; nothing was.
            ValueError: If *after* is not for this batch, or experiments wait for each other.
        """
        return self._submit(experiments, self._experiments_folder, after, writes=True)

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
        work = work_of(self._site, config, folder, excluded_in(self._site, folder))
        draft = Job(folder / arrays.JOBS_FOLDER / f"000000.{'0' * 16}")
        planned = Planned(work, ((name,),))
        script = script_of(self._site, draft, planned, self._site.code, context)
        path = folder / name / f"{name}.sbatch"
        with told(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=path.parent) as aside:
                made = Path(aside, path.name)
                made.touch(mode=0o600)  # whatever that of an older one is
                made.write_text(script, encoding="utf-8")
                made.replace(path)
        return path

    # ------------------------------------------------------------ watch, end, bring back

    def states(self, job_ids: Sequence[str]) -> list[JobState]:
        """Return one state a job, in order; ``unknown`` for what Slurm does not show.

        Raises:
            SchedulerUnreachableError: If Slurm cannot be asked.
            SchedulerCommandError: If it refuses to answer.
            UnreadableReplyError: If its answer cannot be parsed.
        """
        ids = _several(job_ids)
        outcomes = Outcomes(self._commands, ids, self._folders)
        return [outcomes.state(job_id) for job_id in ids]

    def outcomes(self, job_ids: Sequence[str]) -> list[End]:
        """Return why jobs failed and what they used; accounting tells some time after."""
        return ends(self._commands, _several(job_ids), self._folders)

    def latest(self, names: Sequence[str], *, folder: Path) -> list[str | None]:
        """Return the last job of each experiment in *folder*; None where none is known.

        What a submitter left that was killed is found here, too.

        Raises:
            MtfSlurmError: If Slurm cannot be asked, or another submits for too long.
        """
        folder = _absolute(folder)
        self._know(folder)
        return _control.latest(
            self._commands, folder, names, lock_timeout_s=self._lock_timeout_s
        )

    def cancel(self, job_ids: Sequence[str]) -> None:
        """Ask jobs to end, without waiting. What has ended, or is unknown, is passed over.

        Raises:
            SubmissionError: If an experiment shares its task with others that are to go on.
            SchedulerUnreachableError: If Slurm cannot be asked.
            SchedulerCommandError: If it refuses.
        """
        _control.cancel(
            self._commands,
            _several(job_ids),
            self._folders,
            lock_timeout_s=self._lock_timeout_s,
        )

    def requeue(self, job_ids: Sequence[str]) -> None:
        """Let jobs run again, from their checkpoints, under the same ids.

        Raises:
            SubmissionError: If an id is none, or its experiment has another job since.
            SchedulerUnreachableError: If Slurm cannot be asked.
            SchedulerCommandError: If it refuses one; the others run again all the same. After
                some minutes it forgets what has ended: submit that again.
        """
        _again.requeue(
            self._commands,
            _several(job_ids),
            self._folders,
            lock_timeout_s=self._lock_timeout_s,
        )

    def bring_back(self, job_ids: Sequence[str]) -> list[str]:
        """Requeue those of *job_ids* that asked for it where there is no ``scontrol``.

        They have ended, and left ``<job_id>.again`` in their experiments' folders. `submit`
        and `wait` see to it by themselves.

        Returns:
            The jobs that wait or run again, or that another process sees to just now.

        Raises:
            SchedulerUnreachableError: If Slurm cannot be asked.
            SchedulerCommandError: If it refuses to answer.
            UnreadableReplyError: If its answer cannot be parsed.
        """
        ids = _several(job_ids)
        outcomes = Outcomes(self._commands, ids, self._folders)
        return _again.bring_back(self._commands, outcomes, ids, self._folders)

    def wait(
        self,
        job_ids: Sequence[str],
        *,
        timeout_s: float | None = None,
        patience_s: float = 600.0,
        on_progress: Callable[[Mapping[JobState, int]], None] | None = None,
    ) -> list[JobState]:
        """Wait until all jobs have ended; return their states.

        What Slurm never shows stays ``unknown``, and is waited for: give *timeout_s*.

        Args:
            job_ids: Which.
            timeout_s: After which to return, whatever the states are, in seconds.
            patience_s: How long there may be no answer that can be read, in seconds.
            on_progress: Gets the number of jobs in each state, whenever it changes.

        Raises:
            SchedulerUnreachableError: If Slurm cannot be asked.
            SchedulerCommandError: If it refuses to answer.
            UnreadableReplyError: If its answers cannot be parsed.
        """
        return _control.wait(
            self._commands,
            _several(job_ids),
            self._folders,
            interval_s=self.poll_interval_s,
            patience_s=patience_s,
            timeout_s=timeout_s,
            on_progress=on_progress,
        )

    def prune_branches(self, *, older_than: timedelta) -> list[Branch]:
        """Delete the branches of old snapshots, but of jobs that have not ended.

        The checkouts that killed jobs left are removed, too, as *cleanup* says. Jobs are
        looked for in the folders that this object knows, one level below, and where Slurm's
        jobs run, as far as this user may read there.

        Raises:
            MtfSlurmError: If git or Slurm cannot be asked; then none is deleted.
            OSError: If a folder that this object knows cannot be read; then, too.
            ValueError: If the code is not frozen.
        """
        if self._site.git is None:
            msg = "the code is not frozen, so there are no branches"
            raise ValueError(msg)
        pattern = f"*/{arrays.JOBS_FOLDER}"
        inner = {path.parent for f in self._folders for path in f.glob(pattern)}
        folders = self._folders | inner
        _control.sweep_all(self._commands, folders, self._site.code.cleanup)
        keep = _control.branches_in_use(self._commands, folders)
        return self._site.git.prune(older_than=older_than, keep=keep)

    # ------------------------------------------------------------ within

    def _know(self, folder: Path) -> None:
        """Note a folder of experiments, which snapshots leave out from now on."""
        if folder not in self._folders:
            if self._is_own_git:
                folders = self._folders | {folder}
                git = manager_of(self._site.code.project_root, folders)
                self._site = replace(self._site, git=git)
            self._folders.add(folder)


def _several(job_ids: Iterable[str]) -> list[str]:
    if isinstance(job_ids, str):
        msg = f"job_ids is one id, {job_ids!r}: give a list, [{job_ids!r}]"
        raise TypeError(msg)
    return [*job_ids]


def _absolute(path: Path | str) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 -- links stay as people named them
