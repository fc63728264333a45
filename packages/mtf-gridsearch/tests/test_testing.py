"""The conformance suite passes where it must, and fails where a launcher is wrong."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mtf_gridsearch.launcher import Experiment, JobState, Submission
from mtf_gridsearch.local.launcher import LocalLauncher
from mtf_gridsearch.testing import (
    LauncherConformance,
    MakeLauncher,
    PlainExperiment,
    starts,
    write_experiment,
)


class TestLocalLauncher(LauncherConformance):
    @pytest.fixture
    def make_launcher(self) -> MakeLauncher:
        """Make launchers of two places."""
        return lambda script: LocalLauncher(script, max_running=2, grace_s=5)


class DropsRefused(LocalLauncher):
    def submit(
        self, experiments: Sequence[Experiment], *, folder: Path
    ) -> list[Submission]:
        entries = super().submit(experiments, folder=folder)
        return [entry for entry in entries if entry.job_id]


class MixesStates(LocalLauncher):
    def states(self, job_ids: Sequence[str]) -> list[JobState]:
        return super().states(job_ids)[::-1]


class Forgets(LocalLauncher):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._known: set[str] = set()

    def submit(
        self, experiments: Sequence[Experiment], *, folder: Path
    ) -> list[Submission]:
        entries = super().submit(experiments, folder=folder)
        self._known.update(entry.job_id for entry in entries if entry.job_id)
        return entries

    def states(self, job_ids: Sequence[str]) -> list[JobState]:
        words = zip(job_ids, super().states(job_ids), strict=True)
        return [w if i in self._known else JobState.UNKNOWN for i, w in words]


class StartsTwice(LocalLauncher):
    def submit(
        self, experiments: Sequence[Experiment], *, folder: Path
    ) -> list[Submission]:
        entries: list[Submission] = []
        for experiment in experiments:
            place = folder / experiment.experiment_name
            (place / ".lock").unlink(missing_ok=True)
            (place / f"{place.name}.{len(entries) + 7}.job").touch()
            entries += super().submit([experiment], folder=folder)
        return entries


class NeedsNoFolder(LocalLauncher):
    def submit(
        self, experiments: Sequence[Experiment], *, folder: Path
    ) -> list[Submission]:
        folder.mkdir(exist_ok=True)
        return super().submit(experiments, folder=folder)


class NeverCancels(LocalLauncher):
    def cancel(self, job_ids: Sequence[str]) -> None:
        """Do nothing."""


class HasNoLimit(LocalLauncher):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.max_running = 1

    def submit(
        self, experiments: Sequence[Experiment], *, folder: Path
    ) -> list[Submission]:
        """Return when all run: else they might happen to run one after another."""
        entries = super().submit(experiments, folder=folder)
        deadline = time.monotonic() + 60
        while not all(starts(folder / each.experiment_name) for each in experiments):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return entries


@pytest.mark.parametrize(
    ("kind", "test"),
    [
        (DropsRefused, "test_one_entry_for_each_experiment_in_order"),
        (DropsRefused, "test_an_experiment_without_a_config_is_refused"),
        (MixesStates, "test_states_are_in_order"),
        (Forgets, "test_another_object_gives_the_same_answers"),
        (StartsTwice, "test_twice_in_a_batch_is_started_once"),
        (NeedsNoFolder, "test_a_folder_that_is_missing_raises"),
        (NeverCancels, "test_cancel_spares_others"),
        (HasNoLimit, "test_no_more_run_at_once_than_it_says"),
    ],
)
def test_a_launcher_that_is_wrong_fails(
    kind: type[LocalLauncher], test: str, tmp_path: Path
) -> None:
    """Each of these breaks one promise, and the test of it notices."""
    suite = LauncherConformance()
    suite.timeout_s = 1.0
    try:
        with pytest.raises(AssertionError):
            getattr(suite, test)(lambda script: kind(script, max_running=4), tmp_path)
    finally:
        for config in tmp_path.glob("*/config.yaml"):
            (config.parent / "go_on").touch()


def test_plain_experiments(tmp_path: Path) -> None:
    """An experiment of the suite has its config where a launcher looks for it."""
    experiment = write_experiment(tmp_path, "a", do="succeed", lr=1e-4)
    assert experiment == PlainExperiment("a", {"do": "succeed", "lr": 1e-4})
    assert experiment.model_dump(mode="json") == {"do": "succeed", "lr": 1e-4}
    text = (tmp_path / "a" / "config.yaml").read_text("utf-8")
    assert text == '{"do": "succeed", "lr": 0.0001}'
    assert starts(tmp_path / "a") == []
