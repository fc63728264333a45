from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mtf_gridsearch._account import account, outcomes
from mtf_gridsearch.journal import Journal, read_records
from mtf_gridsearch.launcher import Experiment, Submission
from mtf_gridsearch.local.attempt import Outcome
from mtf_gridsearch.records import GridExperiment, Status, Usage


class Silent:
    """A launcher that says nothing of how jobs ended."""

    max_running = 1
    poll_interval_s = 0.0

    def submit(
        self, experiments: Sequence[Experiment], *, folder: Path
    ) -> list[Submission]:
        raise NotImplementedError

    def states(self, job_ids: Sequence[str]) -> Sequence[str]:
        raise NotImplementedError

    def cancel(self, job_ids: Sequence[str]) -> None:
        raise NotImplementedError


class Telling(Silent):
    """One that says what it is given, and notes of which jobs it was asked."""

    def __init__(self, told: Mapping[str, Outcome]) -> None:
        self.told, self.asked = told, list[str]()

    def outcomes(self, job_ids: Sequence[str]) -> list[Outcome]:
        self.asked += job_ids
        return [self.told[job_id] for job_id in job_ids]


@pytest.fixture
def search(tmp_path: Path) -> Path:
    """A search whose *a* and *b* have ended, whose *c* runs, and whose *d* is to come."""
    journal = Journal(tmp_path)
    parts: dict[str, Any] = {"identity": "1", "parameters": {}, "config": {}}
    journal.planned(GridExperiment(experiment_name=name, **parts) for name in "abcd")
    journal.submitted({name: f"{name}.1" for name in "abc"})
    records = journal.records
    known = Usage(wall_s=1.0, max_rss_bytes=2)
    journal.ended(
        [
            replace(records["a"], status=Status.SUCCEEDED, usage=known),
            replace(records["b"], status=Status.FAILED, reason="exit code 1"),
        ]
    )
    journal.close()
    return tmp_path


def test_what_is_known_late_is_noted(search: Path) -> None:
    """Of what ended, those are asked of which nothing is known; all else stays as it is."""
    before = read_records(search)
    launcher = Telling({"b.1": Outcome("another", wall_s=3.0, cpu_s=4.0)})
    journal = Journal(search)
    account(journal, launcher)
    account(journal, launcher)
    journal.close()
    assert launcher.asked == ["b.1"]
    used = replace(before["b"], usage=Usage(wall_s=3.0, cpu_s=4.0))
    assert read_records(search) == {**before, "b": used}


def test_what_is_not_told_changes_nothing(search: Path) -> None:
    """A launcher that knows nothing, fails, or cannot tell, leaves the journal as it is."""
    before = (search / "journal.jsonl").read_bytes()
    journal = Journal(search)
    for launcher in (Telling({"b.1": Outcome("why")}), Telling({}), Silent()):
        account(journal, launcher)
    journal.close()
    assert (search / "journal.jsonl").read_bytes() == before


def test_an_attempt_that_began_since_has_used_nothing(search: Path) -> None:
    """What is told of a job counts for that job, and not for the next."""
    journal = Journal(search)
    journal.submitted({"b": "b.2"})
    journal.close()
    line = '{"event":"used","at":1,"name":"b","job_id":"b.1","usage":{"wall_s":1}}\n'
    with (search / "journal.jsonl").open("a", encoding="utf-8") as file:
        file.write(line)
    assert read_records(search)["b"].usage == Usage()


def test_a_launcher_that_says_nothing() -> None:
    """Nothing is known of its jobs, one by one."""
    assert outcomes(Silent(), ["1", "2"]) == [("", Usage())] * 2
