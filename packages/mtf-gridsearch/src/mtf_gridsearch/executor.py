"""Runs searches: finds or makes the folder, goes on where it was left, watches to the end.

What runs where is the launcher's matter; which experiments there are is the search's. An
executor holds no state of a search: that lies in the folder, whatever happens to it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Protocol

from mtf_gridsearch import _folder, _yaml
from mtf_gridsearch._account import account
from mtf_gridsearch._drive import Drive
from mtf_gridsearch._live import SilentView, make_view
from mtf_gridsearch._progress import (
    PATIENCE_S,
    UNKNOWN_GRACE_S,
    Settings,
    is_settled,
)
from mtf_gridsearch._run import interrupts, summarise, take_up, what_is_left
from mtf_gridsearch._supply import GridSearch, Search
from mtf_gridsearch.dry_run import DryRun, PlannedExperiment, rehearse
from mtf_gridsearch.early_stopping import EarlyStopping
from mtf_gridsearch.errors import LauncherError
from mtf_gridsearch.journal import Journal
from mtf_gridsearch.launcher import Launcher
from mtf_gridsearch.records import ExperimentRecord, GridExperiment, Status
from mtf_gridsearch.search import ParameterGridSearch

__all__ = ["ConfigSaver", "ExecutionMode", "GridSearchExecutor", "GridSearchResult"]

_BROKEN = (Status.FAILED, Status.TIMEOUT)

DEFAULT_RETRY = {"preempted": 100, "node_failed": 3, "unknown": 1}


class ExecutionMode(StrEnum):
    """Where experiments run."""

    LOCAL = "local"
    SLURM = "slurm"
    KUBERNETES = "kubernetes"
    DRY_RUN = "dry_run"  # nowhere: tells what would be done, touches nothing


class ConfigSaver(Protocol):
    """Writes the config of an experiment; `mtf_config.ConfigurationManager` is one."""

    def save(self, config: Any, path: Path) -> object:
        """Write *config*, whole or not at all, to *path*."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GridSearchResult:
    """How a search stands when its executor returns.

    Attributes:
        folder: Of the search; in a dry run, where it would be.
        records: Of every experiment it ever planned, by name; in a dry run, what is known.
        dropped: Names of those that are no longer in the grid.
        num_not_begun: How many more it is to have, which a Bayesian search has not chosen.
        dry_run: What would be done; None where it was done.
    """

    folder: Path
    records: Mapping[str, ExperimentRecord] = field(repr=False)
    dropped: frozenset[str] = field(default=frozenset(), repr=False)
    num_not_begun: int = 0
    dry_run: DryRun | None = None

    @property
    def counts(self) -> dict[Status, int]:
        """How many experiments of the grid there are of each status."""
        known = self.records.items()
        return dict(Counter(r.status for name, r in known if name not in self.dropped))

    @property
    def counts_dropped(self) -> dict[Status, int]:
        """How many experiments that are no longer in the grid there are of each status."""
        return dict(Counter(self.records[name].status for name in self.dropped))

    @property
    def is_complete(self) -> bool:
        """Whether every experiment succeeded, or was stopped early by a rule.

        One that is no longer in the grid need not have run; if it failed, it counts.
        """
        return not self.num_not_begun and all(
            is_settled(record.status)
            or (name in self.dropped and record.status not in _BROKEN)
            for name, record in self.records.items()
        )


class GridSearchExecutor:
    """Runs searches, one at a time; each may be run again to go on.

    A search is found by its name: the newest folder in *experiments_dir* that has it. What
    has succeeded or was stopped by a rule is never run again; what failed or ran out of
    time only with ``only="failed"``, which also goes on with what such a run was interrupted
    in; without it, all else is started.

    Args:
        launcher: Where experiments run. Without one, ``LOCAL`` runs the ``entry_point``
            that the base config names, on this machine.
        config_manager: Writes the config of each experiment; plain YAML by default.
        experiments_dir: Where folders of searches lie.
        folder: The folder of the search, in place of one with a time in its name.
        new: Start a new search, whatever searches there are of that name.
        early_stopping: A rule that ends bad experiments early; each run uses a copy.
        retry: How often an experiment is started again in one run, by how it ended: a
            launcher's word for a job that ended. Words left out stand for 0.
        max_running: How many may run at once, besides what the launcher allows.
        unknown_grace_s: How long the launcher may know nothing of a job before that counts
            as its end, in seconds.
        patience_s: How long a launcher that worked before may fail to answer, in seconds.
        view: Shows how it goes; by default a table on a terminal, lines elsewhere.

    Raises:
        ValueError: If *retry* has a word that no failed job has, or a negative number, or
            *max_running* is below 1, or a time is negative.
    """

    def __init__(  # noqa: PLR0913 -- each is one decision of the user
        self,
        launcher: Launcher | None = None,
        config_manager: ConfigSaver | None = None,
        *,
        experiments_dir: str | Path = "experiments",
        folder: str | Path | None = None,
        new: bool = False,
        early_stopping: EarlyStopping | None = None,
        retry: Mapping[str, int] = DEFAULT_RETRY,
        max_running: int | None = None,
        unknown_grace_s: float = UNKNOWN_GRACE_S,
        patience_s: float = PATIENCE_S,
        view: SilentView | None = None,
    ) -> None:
        words = {"failed", "preempted", "timeout", "node_failed", "unknown"}
        if unknown := set(retry) - words:
            msg = f"retry: {min(unknown)!r} is none of {', '.join(sorted(words))}"
            raise ValueError(msg)
        if any(count < 0 for count in retry.values()):
            msg = "retry: numbers must not be negative"
            raise ValueError(msg)
        if max_running is not None and max_running < 1:
            msg = f"max_running must be at least 1, not {max_running}"
            raise ValueError(msg)
        if not (unknown_grace_s >= 0 and patience_s >= 0):
            msg = "unknown_grace_s and patience_s are seconds, from 0"
            raise ValueError(msg)
        self.launcher = launcher
        self.config_manager = config_manager
        self.experiments_dir = Path(experiments_dir)
        self.folder = None if folder is None else Path(folder)
        self.new = new
        self.early_stopping = early_stopping
        self.settings = Settings(
            max_running=max_running,
            retries=dict(retry),
            unknown_grace_s=unknown_grace_s,
            patience_s=patience_s,
        )
        self.view = view

    def execute_grid_search(
        self,
        base_config: Any,
        parameter_grids: Any,
        execution_mode: ExecutionMode | str = ExecutionMode.LOCAL,
        *,
        only: Literal["failed"] | None = None,
    ) -> GridSearchResult:
        """Run all experiments of *parameter_grids* over *base_config* that are missing.

        Args:
            base_config: A mapping, a pydantic model, or a `ParameterGridSearch`, whose
                grids are run as well; it stays as it is, but takes over the names that
                experiments have in the folder.
            parameter_grids: A grid, or several.
            execution_mode: Where to run; ``SLURM`` and ``KUBERNETES`` need a launcher for
                that, whose jobs go on when this ends.
            only: ``"failed"`` runs what failed or ran out of time again, what such a run
                left unfinished, and nothing else.

        Raises:
            GridError: If a grid is empty, or wrong, or larger than can be saved.
            InvalidExperimentsError: If an experiment does not fit the base.
            LauncherError: If there is no launcher for the mode, or it fails.
            SearchFolderError: If the folder cannot be used: another executor runs it, it
                belongs to another search, or it cannot be read or written.
            KeyboardInterrupt: After a clean stop by Ctrl-C.
        """
        if isinstance(base_config, ParameterGridSearch):
            search = base_config.copy()
        else:
            search = ParameterGridSearch(base_config)
        for grid in _several(parameter_grids):
            search.add_grid(grid)
        rule = self.early_stopping
        try:
            return self.execute(GridSearch(search, only=only, rule=rule), execution_mode)
        finally:
            if search.known and isinstance(base_config, ParameterGridSearch):
                base_config.know(search.known)

    def execute(
        self, search: Search, execution_mode: ExecutionMode | str = ExecutionMode.LOCAL
    ) -> GridSearchResult:
        """Run *search*, of whatever kind, as `execute_grid_search` does.

        Raises:
            GridSearchError: As `execute_grid_search`.
            ValueError: If there is a rule of early stopping, and *search* is no grid's.
            KeyboardInterrupt: After a clean stop by Ctrl-C.
        """
        mode = ExecutionMode(execution_mode)
        if self.early_stopping is not None and not isinstance(search, GridSearch):
            msg = "early_stopping is for grids; a BayesianSearch takes a pruner"
            raise ValueError(msg)
        if mode is ExecutionMode.DRY_RUN:
            return self._rehearse(search)
        launcher = self._launcher_for(search, mode)
        search.plan({})  # what does not fit fails before anything is made
        _yaml.check(search.to_plain())  # what could not be gone on with, too
        holding = _folder.hold(
            search,
            experiments_dir=self.experiments_dir,
            folder=self.folder,
            new=self.new,
            entry_point=getattr(launcher, "entry_point", None),
        )
        with (
            holding as folder,
            closing(Journal(folder)) as journal,
            self.view or make_view() as view,
        ):
            if self.new:  # a kill says nothing
                view.note(f"{folder} is a new search; {self._same} goes on with it.")
            planned = search.plan(journal.records)
            for doubt in (*search.doubts(), *self._empty_places(search, launcher)):
                view.note(doubt)
            journal.planned(planned)
            journal.dropped(_dropped(planned, journal.records))
            take_up(journal, launcher, folder)
            drive = Drive(
                folder,
                journal,
                launcher,
                search.open(folder, journal.records),
                save=self._save,
                view=view,
                settings=self.settings,
            )
            with interrupts(drive.interrupt):
                is_done = drive.run()
                if not is_done and mode is ExecutionMode.LOCAL:  # a queue keeps its jobs
                    view.note(
                        "Stopping what runs; Ctrl-C once more does not wait for that."
                    )
                    drive.cancel_all()
            account(journal, launcher)
            records = journal.records
            if is_done:
                is_repair = not search.starts(Status.MISSING)
                for note in what_is_left(records, self._same, is_repair=is_repair):
                    view.note(note)
            else:
                goes_on = "" if mode is ExecutionMode.LOCAL else "; submitted jobs go on"
                view.note(f"Stopped{goes_on}. To go on, run {self._same} again.")
        summarise(folder)
        if not is_done:
            raise KeyboardInterrupt
        dropped = _dropped(planned, records)
        return GridSearchResult(
            folder=folder,
            records=records,
            dropped=dropped,
            num_not_begun=_num_not_begun(search, planned, records),
        )

    def _rehearse(self, search: Search) -> GridSearchResult:
        plain = search.to_plain()
        _yaml.check(plain)
        launcher = self.launcher or _local(plain)
        dry_run, records = rehearse(
            search,
            launcher,
            experiments_dir=self.experiments_dir,
            folder=self.folder,
            new=self.new,
        )
        with self.view or make_view() as view:
            view.note(str(dry_run))
        return GridSearchResult(
            folder=dry_run.folder,
            records=records,
            dropped=_dropped(dry_run.experiments, records),
            num_not_begun=_num_not_begun(search, dry_run.experiments, records),
            dry_run=dry_run,
        )

    def _launcher_for(self, search: Search, mode: ExecutionMode) -> Launcher:
        if self.launcher is not None:
            if mode is not ExecutionMode.LOCAL and _is_local(self.launcher):
                msg = f"{mode} needs a launcher for it: this one runs on this machine"
                raise LauncherError(msg)
            return self.launcher
        if mode is not ExecutionMode.LOCAL:
            msg = f"{mode} needs a launcher: GridSearchExecutor(launcher, ...)"
            raise LauncherError(msg)
        launcher = _local(search.to_plain())
        if launcher is None:
            msg = (
                "nothing says what to run: give GridSearchExecutor a launcher such as "
                "LocalLauncher('train.py'), or the base config an `entry_point`"
            )
            raise LauncherError(msg)
        return launcher

    @property
    def _same(self) -> str:
        """What goes on with a search that this executor has begun."""
        return "the same command" + " without new=True (--new)" * self.new

    def _empty_places(self, search: Search, launcher: Launcher) -> Iterator[str]:
        """Say that a search has less open at once than there are places for."""
        given = (launcher.max_running, self.settings.max_running)
        num_places = min((n for n in given if n is not None), default=0)
        most = getattr(search, "num_parallel", num_places)
        if most < num_places:
            yield (
                f"{num_places - most} of {num_places} places stay empty: num_parallel is "
                f"{most}"
            )

    def _save(self, experiment: GridExperiment[Any], path: Path) -> None:
        if self.config_manager is not None:
            self.config_manager.save(experiment.config, path)
        else:
            _yaml.write_atomically(path, _yaml.dump(experiment.model_dump(mode="json")))


def _several(grids: Any) -> Sequence[Any]:
    return tuple(grids) if isinstance(grids, list | tuple) else (grids,)


def _is_local(launcher: Launcher) -> bool:
    from mtf_gridsearch.local.launcher import LocalLauncher  # noqa: PLC0415 -- only where used

    return type(launcher) is LocalLauncher  # one made of it may be another's


def _local(plain: Mapping[str, Any]) -> Launcher | None:
    """Return a launcher of the entry point that the base config names, if it does."""
    from mtf_gridsearch.local.launcher import LocalLauncher  # noqa: PLC0415 -- only where used

    base = plain.get("base")
    entry_point = base.get("entry_point") if isinstance(base, Mapping) else None
    return LocalLauncher(entry_point) if isinstance(entry_point, str) else None


def _dropped(
    planned: Iterable[GridExperiment[Any] | PlannedExperiment],
    records: Mapping[str, ExperimentRecord],
) -> frozenset[str]:
    """Return what is recorded and not planned; nothing where nothing is beforehand."""
    names = {experiment.experiment_name for experiment in planned}
    return frozenset(records.keys() - names) if names else frozenset()


def _num_not_begun(
    search: Search,
    planned: Sequence[object],
    records: Mapping[str, ExperimentRecord],
) -> int:
    """Return how many a search that decides as it goes has yet to choose."""
    return 0 if planned else max(0, (search.total or 0) - len(records))
