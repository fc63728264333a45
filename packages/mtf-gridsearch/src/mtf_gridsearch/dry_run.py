"""What a search would do, told without touching anything.

An estimate is made of what experiments of the search of that name used so far; without any,
of the launcher's time limit, which is the most that they may use; without one, there is no
estimate, and it says so.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from mtf_gridsearch import _folder
from mtf_gridsearch._supply import Search
from mtf_gridsearch.journal import read_records
from mtf_gridsearch.launcher import Launcher
from mtf_gridsearch.records import ExperimentRecord, GridExperiment, Status

__all__ = ["DryRun", "Estimate", "PlannedExperiment", "rehearse"]

MOST_SHOWN = 20
MOST_MEASURED = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What the experiments that would be started need, all together.

    Attributes:
        core_hours: Processor time where it was measured, else time on one core; None where
            nothing is known.
        disk_bytes: What their folders will hold; None where nothing is known.
        basis: What this was made of, for people.
    """

    core_hours: float | None = None
    disk_bytes: int | None = None
    basis: str = "no experiment of this search has ended yet, and there is no time limit"


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedExperiment:
    """One experiment, as it would be run.

    Attributes:
        status: What is known of it now.
        will_start: Whether the run would start it.
        command: What the launcher would run; None where it does not tell.
    """

    experiment_name: str
    parameters: Mapping[str, Any]
    folder: Path
    status: Status
    will_start: bool
    command: tuple[str, ...] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class DryRun:
    """What a run would do. ``str()`` is for people.

    Attributes:
        folder: Of the search.
        is_new: Whether that folder would be made.
        total: How many experiments there are in all; None where that is not known.
        experiments: Those known beforehand.
        doubts: What looks like a mistake and is done all the same.
    """

    name: str
    folder: Path
    is_new: bool
    total: int | None
    experiments: Sequence[PlannedExperiment] = field(repr=False)
    estimate: Estimate
    doubts: Sequence[str] = ()

    @property
    def num_to_start(self) -> int:
        """How many would be started, of those known beforehand."""
        return sum(experiment.will_start for experiment in self.experiments)

    def __str__(self) -> str:
        made = "would be made" if self.is_new else "goes on"
        total = "an unknown number of" if self.total is None else self.total
        lines = [
            f"search {self.name}: {_experiments(total)}, {self.num_to_start} to start"
        ]
        if not self.experiments:
            lines[0] = f"search {self.name}: {_experiments(total)}, chosen as it runs"
        lines.append(f"folder {self.folder} ({made})")
        lines += map(_line, self.experiments[:MOST_SHOWN])
        if (more := len(self.experiments) - MOST_SHOWN) > 0:
            lines.append(f"  and {more} more")
        lines += self.doubts
        hours, disk = self.estimate.core_hours, self.estimate.disk_bytes
        lines.append(f"core-hours: {'unknown' if hours is None else f'{hours:.3g}'}")
        lines.append(f"disk: {'unknown' if disk is None else _size(disk)}")
        lines.append(f"estimated: {self.estimate.basis}")
        return "\n".join([*lines, "Nothing was started or written."])


def _experiments(number: int | str) -> str:
    return f"{number} experiment{'' if number == 1 else 's'}"


def rehearse(
    search: Search,
    launcher: Launcher | None,
    *,
    experiments_dir: Path,
    folder: Path | None,
    new: bool,
) -> tuple[DryRun, dict[str, ExperimentRecord]]:
    """Return what a run of *search* would do, and what is known of its experiments.

    Raises:
        GridSearchError: If the run would be refused, but for another that runs now.
    """
    found = _folder.foresee(
        search,
        experiments_dir=experiments_dir,
        folder=folder,
        new=new,
        entry_point=getattr(launcher, "entry_point", None),
    )
    records = {} if found is None else read_records(found)
    planned = search.plan(records)
    place = found or folder or experiments_dir / "grid_search_<time>"
    all_records = _with_planned(records, planned)
    experiments = [
        PlannedExperiment(
            experiment_name=experiment.experiment_name,
            parameters=experiment.parameters,
            folder=place / experiment.experiment_name,
            status=all_records[experiment.experiment_name].status,
            will_start=_will_start(search, all_records[experiment.experiment_name]),
            command=_command(launcher, experiment, place),
        )
        for experiment in planned
    ]
    num: int | None = sum(experiment.will_start for experiment in experiments)
    if not planned:
        ended = sum(record.ended_at is not None for record in records.values())
        num = None if search.total is None else max(0, search.total - ended)
    dry_run = DryRun(
        name=search.name,
        folder=place,
        is_new=found is None,
        total=search.total,
        experiments=experiments,
        estimate=_estimate(num, found, records, launcher),
        doubts=search.doubts(),
    )
    return dry_run, all_records


def _will_start(search: Search, record: ExperimentRecord) -> bool:
    runs = record.job_id is not None and record.ended_at is None
    return not runs and search.starts(record.status, has_failed=record.has_failed)


def _with_planned(
    records: Mapping[str, ExperimentRecord], planned: Sequence[GridExperiment[Any]]
) -> dict[str, ExperimentRecord]:
    """Return *records* and those that would be added."""
    new = {
        experiment.experiment_name: ExperimentRecord(
            experiment_name=experiment.experiment_name,
            identity=experiment.identity,
            parameters=experiment.parameters,
        )
        for experiment in planned
    }
    return {**new, **records}


def _command(
    launcher: Launcher | None, experiment: GridExperiment[Any], folder: Path
) -> tuple[str, ...] | None:
    """Return what *launcher* would run, if it tells."""
    command = getattr(launcher, "command", None)
    return None if command is None else tuple(command(experiment, folder=folder))


def _estimate(
    num: int | None,
    found: Path | None,
    records: Mapping[str, ExperimentRecord],
    launcher: Launcher | None,
) -> Estimate:
    """Return what *num* experiments need, by what others used, or by the limit."""
    if num is None:
        return Estimate(basis="nobody knows how many experiments there will be")
    if not num:
        return Estimate(core_hours=0.0, disk_bytes=0, basis="there is nothing to start")
    ended = [r for r in records.values() if r.status is Status.SUCCEEDED]
    used = [s for r in ended if (s := r.usage.cpu_s or r.usage.wall_s) is not None]
    if found is not None and ended:
        sizes = [_folder_size(found / r.experiment_name) for r in ended[-MOST_MEASURED:]]
        return Estimate(
            core_hours=num * fmean(used) / 3600 if used else None,
            disk_bytes=round(num * fmean(sizes)),
            basis=f"from what {_experiments(len(ended))} of it used",
        )
    limit_s = getattr(launcher, "time_limit_s", None)
    if limit_s is not None:
        basis = f"at most, on one core each: the time limit is {limit_s:g} s"
        return Estimate(core_hours=num * limit_s / 3600, basis=basis)
    return Estimate()


def _folder_size(folder: Path) -> int:
    """Return how many bytes the files in *folder* hold, what vanishes left out."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_size  # noqa: PTH118
    return total


def _size(num_bytes: int) -> str:
    size, units = float(num_bytes), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:  # noqa: PLR2004
        size, units = size / 1024, units[1:]
    return f"{size:.3g} {units[0]}"


def _line(experiment: PlannedExperiment) -> str:
    does = "start" if experiment.will_start else experiment.status
    parameters = ", ".join(f"{k}={v!r}" for k, v in experiment.parameters.items())
    command = (
        "" if experiment.command is None else f"\n      {shlex.join(experiment.command)}"
    )
    return (f"  {does}: {experiment.experiment_name} ({parameters})") + command
