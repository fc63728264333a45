from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mtf_gridsearch import _folder
from mtf_gridsearch._supply import GridSearch
from mtf_gridsearch.dry_run import DryRun, _experiments, rehearse
from mtf_gridsearch.errors import (
    GridSearchError,
    SearchFolderError,
    SearchMismatchError,
)
from mtf_gridsearch.grid import ParameterGrid
from mtf_gridsearch.journal import Journal
from mtf_gridsearch.launcher import Experiment, Submission
from mtf_gridsearch.records import GridExperiment, Status, Usage
from mtf_gridsearch.search import ParameterGridSearch


class Telling:
    """A launcher that tells what it would run, and must do nothing."""

    max_running = 2
    poll_interval_s = 1.0
    time_limit_s = 7200.0

    def command(self, experiment: Experiment, *, folder: Path) -> Sequence[str]:
        return ["python", "a b.py", str(folder / experiment.experiment_name)]

    def submit(
        self, experiments: Sequence[Experiment], *, folder: Path
    ) -> Iterable[Submission]:
        raise AssertionError(experiments, folder)

    def states(self, job_ids: Sequence[str]) -> Sequence[str]:
        raise AssertionError(job_ids)

    def cancel(self, job_ids: Sequence[str]) -> None:
        raise AssertionError(job_ids)


class Silent(Telling):
    """One that tells neither commands nor limits."""

    command = None  # type: ignore[assignment]
    time_limit_s = None  # type: ignore[assignment]


def search(num: int, lr: float = 0.1, **options: Any) -> GridSearch:
    """Return a search over *num* values."""
    base = {"experiment_name": "sweep", "lr": lr, "n": 0}
    grid = ParameterGrid("g").add_parameter("n", list(range(num)))
    return GridSearch(ParameterGridSearch(base).add_grid(grid), **options)


def tell(where: Path, asked: GridSearch, launcher: Any = None, **options: Any) -> DryRun:
    """Return what a run would do, and check that it leaves no trace."""
    before = sorted(where.rglob("*"))
    known: dict[str, Any] = {"experiments_dir": where, "folder": None, "new": False}
    dry_run, records = rehearse(asked, launcher, **{**known, **options})
    assert sorted(where.rglob("*")) == before
    assert len(records) >= len(dry_run.experiments)
    return dry_run


def begun(where: Path, asked: GridSearch, *statuses: Status) -> Path:
    """Begin a search whose first experiments have the given statuses."""
    options: dict[str, Any] = {"experiments_dir": where, "folder": None, "new": False}
    with _folder.hold(asked, **options) as folder:
        journal = Journal(folder)
        planned = asked.plan({})
        journal.planned(planned)
        for experiment, status in zip(planned, statuses, strict=False):
            name = experiment.experiment_name
            journal.submitted({name: f"{name}.1"})
            (folder / name).mkdir()
            (folder / name / "weights").write_bytes(b"x" * 1000)
            record = journal.record(name)
            assert record is not None
            if status is not Status.RUNNING:
                usage = Usage(wall_s=1800.0, cpu_s=3600.0)
                journal.ended([replace(record, status=status, usage=usage)])
        journal.close()
    return folder


def test_a_new_search_is_described(tmp_path: Path) -> None:
    """Names, folders, commands; at most the time limit each, on one core."""
    told = tell(tmp_path, search(3), Telling())
    assert told.is_new
    assert told.folder == tmp_path / "grid_search_<time>"
    assert (told.total, told.num_to_start) == (3, 3)
    first = told.experiments[0]
    assert first.folder == told.folder / first.experiment_name
    assert first.command == ("python", "a b.py", str(first.folder))
    assert told.estimate.core_hours == 6.0
    assert told.estimate.disk_bytes is None
    text = str(told)
    assert f"python 'a b.py' '{first.folder}'" in text
    assert "core-hours: 6" in text
    assert "disk: unknown" in text
    assert "time limit is 7200 s" in text
    assert "would be made" in text


def test_nothing_known_is_said(tmp_path: Path) -> None:
    """Without a limit or an ended experiment there is no number, and it says why."""
    told = tell(tmp_path, search(1), Silent())
    assert told.experiments[0].command is None
    assert (told.estimate.core_hours, told.estimate.disk_bytes) == (None, None)
    assert "core-hours: unknown" in str(told)
    assert "no experiment of this search has ended yet" in str(told)


def test_what_has_ended_is_measured(tmp_path: Path) -> None:
    """The rest is estimated by what those that succeeded used, time and disk."""
    folder = begun(tmp_path, search(5), Status.SUCCEEDED, Status.RUNNING, Status.FAILED)
    told = tell(tmp_path, search(6), Telling())
    assert (told.is_new, told.folder) == (False, folder)
    starts = [experiment.will_start for experiment in told.experiments]
    assert starts == [False, False, False, True, True, True]
    assert told.estimate.core_hours == 3.0
    assert told.estimate.disk_bytes == 3000
    text = str(told)
    assert "goes on" in text
    assert "disk: 2.93 KiB" in text
    assert "from what 1 experiment of it used" in text
    assert "  succeeded: sweep" in text


def test_only_failed_starts_those_alone(tmp_path: Path) -> None:
    """With `only`, what failed would be started, and nothing else."""
    begun(tmp_path, search(3), Status.SUCCEEDED, Status.FAILED)
    told = tell(tmp_path, search(3, only="failed"))
    assert [e.will_start for e in told.experiments] == [False, True, False]


def test_a_finished_search_needs_nothing(tmp_path: Path) -> None:
    """Where nothing is left, the estimate is nothing."""
    begun(tmp_path, search(1), Status.SUCCEEDED)
    told = tell(tmp_path, search(1))
    assert (told.estimate.core_hours, told.estimate.disk_bytes) == (0.0, 0)
    assert "nothing to start" in str(told)


def test_usage_that_nobody_measured_is_unknown(tmp_path: Path) -> None:
    """A launcher that tells no usage leaves time unknown, while disk is measured."""
    asked = search(2)
    folder = begun(tmp_path, asked)
    journal = Journal(folder)
    name = asked.plan({})[0].experiment_name
    journal.submitted({name: "1"})
    record = journal.record(name)
    assert record is not None
    journal.ended([replace(record, status=Status.SUCCEEDED)])
    journal.close()
    told = tell(tmp_path, search(2))
    assert (told.estimate.core_hours, told.estimate.disk_bytes) == (None, 0)


def test_a_refusal_is_told_of(tmp_path: Path) -> None:
    """A run that would be refused is refused now; with `new` it would not be."""
    begun(tmp_path, search(1))
    with pytest.raises(SearchMismatchError, match=r"base\.lr was 0\.1, is 0\.2"):
        tell(tmp_path, search(1, lr=0.2))
    assert tell(tmp_path, search(1, lr=0.2), new=True).is_new


def test_long_lists_are_cut(tmp_path: Path) -> None:
    """Twenty are shown, the others counted."""
    text = str(tell(tmp_path, search(25), folder=tmp_path / "mine"))
    assert text.count("  start: ") == 20
    assert "  and 5 more" in text
    assert f"folder {tmp_path / 'mine'}" in text


@pytest.mark.parametrize(("total", "shown"), [(7, "7"), (None, "an unknown number of")])
def test_a_search_that_decides_as_it_goes(
    tmp_path: Path, total: int | None, shown: str
) -> None:
    """Without a plan the number of trials is told, and estimated as far as it is known."""

    class Later(GridSearch):
        @property
        def total(self) -> int | None:
            return total

        def plan(self, records: object) -> Sequence[GridExperiment[Any]]:
            assert records == {}
            return ()

        def doubts(self) -> Sequence[str]:
            return ()

    later = Later(ParameterGridSearch({"experiment_name": "sweep"}))
    told = tell(tmp_path, later, Telling())
    assert f"{shown} experiments, chosen as it runs" in str(told)
    assert told.estimate.core_hours == (14.0 if total else None)


def test_one_experiment_is_no_plural() -> None:
    """A search of one says so."""
    assert (_experiments(1), _experiments(2)) == ("1 experiment", "2 experiments")


def refused(where: Path, **options: Any) -> str:
    """Return how a run is refused, and check that a dry run is refused alike."""
    known: dict[str, Any] = {"experiments_dir": where, "folder": None, "new": False}
    said = []
    with pytest.raises(GridSearchError) as caught:
        tell(where, search(1), **options)
    said.append(str(caught.value))
    with (
        pytest.raises(GridSearchError) as caught,
        _folder.hold(search(1), **{**known, **options}),
    ):
        pytest.fail("held")
    said.append(str(caught.value))
    assert said[0] == said[1]
    return said[0]


def test_a_folder_that_a_run_refuses_is_refused(tmp_path: Path) -> None:
    """A new search in a folder that has one, and one over a stranger's files."""
    folder = begun(tmp_path, search(1))
    assert "another folder" in refused(tmp_path, folder=folder, new=True)
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "thesis.tex").touch()
    assert "holds 'thesis.tex'" in refused(tmp_path, folder=strange)
    assert "holds 'thesis.tex'" in refused(tmp_path, folder=strange, new=True)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert tell(tmp_path, search(1), folder=empty).is_new


def test_a_file_for_a_folder_is_refused(tmp_path: Path) -> None:
    """It is named; a run would not be able to make the folder."""
    (tmp_path / "file").touch()
    with pytest.raises(SearchFolderError, match="file: it cannot be read: Not a dir"):
        tell(tmp_path, search(1), folder=tmp_path / "file")


def test_a_copy_that_may_run_is_refused(tmp_path: Path) -> None:
    """As a run refuses it, without a trace; without its lock it cannot be told."""
    folder = begun(tmp_path / "a", search(2), Status.RUNNING)
    copied = tmp_path / "b"
    shutil.copytree(folder, copied)
    assert "it is a copy" in refused(tmp_path, folder=copied)
    (copied / ".lock").unlink()
    assert not tell(tmp_path, search(2), folder=copied).is_new


def test_a_lock_that_cannot_be_opened_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run could not open it either."""
    folder = begun(tmp_path, search(1))

    opened = os.open

    def denied(path: Path, *rest: Any, **options: Any) -> int:
        if Path(path).name == ".lock":
            raise PermissionError(13, "denied")
        return opened(path, *rest, **options)

    monkeypatch.setattr("mtf_gridsearch._folder.os.open", denied)
    with pytest.raises(SearchFolderError, match="lock cannot be opened: denied"):
        tell(tmp_path, search(1), folder=folder)
