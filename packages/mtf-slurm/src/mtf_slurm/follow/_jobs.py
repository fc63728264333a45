"""Which jobs there are: the last one of each experiment in folders, and ids of others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mtf_slurm import arrays, query
from mtf_slurm.arrays import Job

__all__ = ["Followed", "Jobs"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Followed:
    """A job that is followed.

    Attributes:
        job_id: As launchers return it.
        experiment_name: What it runs; empty if that is not known.
        folder: Of the experiments; None for a job of another folder.
    """

    job_id: str
    experiment_name: str = ""
    folder: Path | None = None


class Jobs:
    """The jobs of folders, which may grow, and of ids.

    Args:
        folders: Of experiments.
        job_ids: More of them.

    Raises:
        ValueError: If one of *job_ids* is none.
    """

    def __init__(self, folders: Iterable[Path], job_ids: Iterable[str]) -> None:
        self.folders = tuple(dict.fromkeys(folders))
        self._more = tuple(dict.fromkeys(job_ids))
        for job_id in self._more:
            if query.base_of(job_id) is None:
                msg = f"{job_id!r} is no job's id: write 123, 123_4 or 123_4.1"
                raise ValueError(msg)
        self._ids: dict[Path, dict[str, str]] = {}

    def now(self) -> dict[str, Followed]:
        """Return the jobs by id: those of folders, then others."""
        found: dict[str, Followed] = {}
        for folder in self.folders:
            for name, ids in self.ids_in(folder).items():
                job = Followed(job_id=ids[-1], experiment_name=name, folder=folder)
                found[job.job_id] = job
        for job_id in self._more:
            found.setdefault(job_id, Followed(job_id=job_id))
        return found

    def ids_in(self, folder: Path) -> dict[str, list[str]]:
        """Return all jobs that experiments of a folder have had, the last one last."""
        found: dict[str, list[str]] = {}
        for job in arrays.jobs_in(folder):
            for name, job_id in self._ids_of(job).items():
                found.setdefault(name, []).append(job_id)
        return found

    def _ids_of(self, job: Job) -> dict[str, str]:
        """Return the ids of a submission; they do not change once they are known."""
        if job.folder not in self._ids:
            base = job.base_id()
            if base is None:
                return {}
            self._ids[job.folder] = job.ids(base)
        return self._ids[job.folder]
