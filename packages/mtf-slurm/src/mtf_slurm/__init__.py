"""Freeze the code, render and submit Slurm jobs, follow them.

Names are imported when they are used, so that this import costs nothing. The parts:
`mtf_slurm.launcher` submits, `mtf_slurm.git` freezes code, `mtf_slurm.follow` follows jobs,
`mtf_slurm.testing` is a Slurm for tests.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtf_slurm._ends import End
    from mtf_slurm.command import Commands
    from mtf_slurm.errors import (
        GitLockTimeoutError,
        MtfSlurmError,
        SchedulerCommandError,
        SchedulerUnreachableError,
        SnapshotError,
        SubmissionError,
        TemplateError,
        UnreadableReplyError,
    )
    from mtf_slurm.experiments import BatchSubmissionResult, Experiment, Submission
    from mtf_slurm.follow.efficiency import efficiency
    from mtf_slurm.follow.monitor import JobMonitor, StateChange
    from mtf_slurm.follow.nodes import FailingNodes
    from mtf_slurm.follow.reasons import explain
    from mtf_slurm.follow.schedule import ExperimentSchedule, Quota
    from mtf_slurm.git.freeze import Choice
    from mtf_slurm.git.lock import GitOperationLock
    from mtf_slurm.git.manager import GitManager
    from mtf_slurm.git.snapshot import Snapshot
    from mtf_slurm.launcher import SLURMLauncher
    from mtf_slurm.settings import SlurmSettings
    from mtf_slurm.states import JobState

__all__ = [
    "BatchSubmissionResult",
    "Choice",
    "Commands",
    "End",
    "Experiment",
    "ExperimentSchedule",
    "FailingNodes",
    "GitLockTimeoutError",
    "GitManager",
    "GitOperationLock",
    "JobMonitor",
    "JobState",
    "MtfSlurmError",
    "Quota",
    "SLURMLauncher",
    "SchedulerCommandError",
    "SchedulerUnreachableError",
    "SlurmSettings",
    "Snapshot",
    "SnapshotError",
    "StateChange",
    "Submission",
    "SubmissionError",
    "TemplateError",
    "UnreadableReplyError",
    "__version__",
    "efficiency",
    "explain",
]

__version__ = "0.1.0"

_NAMES = {
    "_ends": "End",
    "command": "Commands",
    "errors": "GitLockTimeoutError MtfSlurmError SchedulerCommandError "
    "SchedulerUnreachableError SnapshotError SubmissionError TemplateError "
    "UnreadableReplyError",
    "experiments": "BatchSubmissionResult Experiment Submission",
    "follow.efficiency": "efficiency",
    "follow.monitor": "JobMonitor StateChange",
    "follow.nodes": "FailingNodes",
    "follow.reasons": "explain",
    "follow.schedule": "ExperimentSchedule Quota",
    "git.freeze": "Choice",
    "git.lock": "GitOperationLock",
    "git.manager": "GitManager",
    "git.snapshot": "Snapshot",
    "launcher": "SLURMLauncher",
    "settings": "SlurmSettings",
    "states": "JobState",
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}


if not TYPE_CHECKING:  # else a misspelt name would pass

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            msg = f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(msg)
        value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
