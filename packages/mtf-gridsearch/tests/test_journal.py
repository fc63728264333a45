from __future__ import annotations

import errno
import json
import math
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtf_gridsearch.errors import DamagedJournalError, SearchFolderError
from mtf_gridsearch.journal import JOURNAL_NAME, Journal, read_records
from mtf_gridsearch.records import (
    ExperimentRecord,
    GridExperiment,
    MetricSummary,
    Status,
    Usage,
)

ENDED = (
    '{{"event":"ended","at":1,"name":"a","job_id":"1","status":"{status}","reason":"",'
    '"metrics":{metrics},"usage":{usage}}}'
)


def experiment(name: str, **parameters: Any) -> GridExperiment[Any]:
    """Return an experiment of that name."""
    return GridExperiment(
        experiment_name=name, identity=f"id-{name}", parameters=parameters, config={}
    )


@contextmanager
def opened(folder: Path) -> Iterator[Journal]:
    """Open the journal in *folder*, and close it twice."""
    journal = Journal(folder)
    try:
        yield journal
    finally:
        journal.close()
        journal.close()


def ended(journal: Journal, name: str, status: Status, **known: Any) -> None:
    """Note that *name* ended."""
    record = journal.record(name)
    assert record is not None
    journal.ended([replace(record, status=status, **known)])


def test_a_folder_without_a_journal_has_no_experiments(tmp_path: Path) -> None:
    """Nothing was planned where there is no file, and reading makes none."""
    assert read_records(tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


def test_what_happened_is_read_back(tmp_path: Path) -> None:
    """A reader finds all that the writer knows: parameters, attempts, metrics, usage."""
    loss = MetricSummary(
        last=math.inf, last_step=3, min=0.5, min_step=1, max=math.inf, max_step=3
    )
    usage = Usage(wall_s=1.5, max_rss_bytes=10)
    with opened(tmp_path) as journal:
        journal.planned([experiment("a", lr=0.1, layers=[1, 2]), experiment("b")])
        journal.submitted({"a": "a.1"})
        ended(journal, "a", Status.FAILED, reason="exit code 1")
        journal.submitted({"a": "a.2"})
        ended(journal, "a", Status.SUCCEEDED, metrics={"loss": loss}, usage=usage)
        known = journal.records

    records = read_records(tmp_path)
    assert records == known
    a = records["a"]
    assert (a.status, a.job_id, a.attempts) == (Status.SUCCEEDED, "a.2", 2)
    assert (a.parameters, a.metrics) == ({"lr": 0.1, "layers": [1, 2]}, {"loss": loss})
    assert a.usage == usage
    assert a.reason == ""
    assert a.started_at is not None
    assert a.ended_at is not None
    assert records["b"] == ExperimentRecord(
        experiment_name="b", identity="id-b", parameters={}
    )


def test_lines_have_the_documented_form(tmp_path: Path) -> None:
    """Each line is an object with its event first and its time; metrics are six numbers."""
    metric = MetricSummary(last=1, last_step=2, min=1, min_step=2, max=3, max_step=1)
    with opened(tmp_path) as journal:
        journal.planned([experiment("a", lr=0.1)])
        journal.submitted({"a": "7"})
        journal.stopping("a", "bad")
        ended(journal, "a", Status.STOPPED, metrics={"m": metric}, reason="bad")

    lines = (tmp_path / JOURNAL_NAME).read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert [next(iter(row)) for row in rows] == ["event"] * 4
    assert all(isinstance(row.pop("at"), float) for row in rows)
    assert rows == [
        {
            "event": "planned",
            "name": "a",
            "identity": "id-a",
            "parameters": {"lr": 0.1},
        },
        {"event": "submitted", "name": "a", "job_id": "7"},
        {"event": "stopping", "name": "a", "reason": "bad"},
        {
            "event": "ended",
            "name": "a",
            "job_id": "7",
            "status": "stopped",
            "reason": "bad",
            "metrics": {"m": [1, 2, 1, 2, 3, 1]},
            "usage": {"wall_s": None, "cpu_s": None, "max_rss_bytes": None},
        },
    ]


def test_what_is_known_is_not_planned_again(tmp_path: Path) -> None:
    """Planning a name twice leaves one line, and what was known of it."""
    with opened(tmp_path) as journal:
        journal.planned([experiment("a", lr=0.1)])
        journal.submitted({"a": "a.1"})
        journal.planned([experiment("a", lr=0.2)])
        assert journal.records["a"].status is Status.PENDING
    assert len((tmp_path / JOURNAL_NAME).read_bytes().splitlines()) == 2


def test_the_same_job_submitted_again_is_one_attempt(tmp_path: Path) -> None:
    """An executor that takes up a running job counts no attempt."""
    with opened(tmp_path) as journal:
        journal.planned([experiment("a")])
        journal.submitted({"a": "a.1"})
        journal.submitted({"a": "a.1"})
        assert journal.records["a"].attempts == 1
        ended(journal, "a", Status.PREEMPTED)
        journal.submitted({"a": "a.1"})
        assert journal.records["a"].attempts == 2


def test_a_decision_to_stop_survives_until_the_end_is_seen(tmp_path: Path) -> None:
    """After a kill, the next journal knows what was about to be cancelled, and why."""
    with opened(tmp_path) as journal:
        journal.planned([experiment("a"), experiment("b")])
        journal.submitted({"a": "a.1"})
        journal.stopping("a", "worse than the median")
    with opened(tmp_path) as journal:
        assert journal.is_stopping("a")
        assert not journal.is_stopping("b")
        assert not journal.is_stopping("unheard-of")
        assert journal.records["a"].reason == "worse than the median"
        ended(journal, "a", Status.STOPPED)
        assert not journal.is_stopping("a")


@given(cut=st.integers(min_value=1, max_value=400))
def test_a_torn_end_is_dropped(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    """Cut anywhere, the journal says what its whole lines say, and is gone on with."""
    folder = tmp_path_factory.mktemp("torn")
    with opened(folder) as journal:
        journal.planned([experiment("a"), experiment("b")])
        journal.submitted({"a": "a.1", "b": "b.1"})
    path = folder / JOURNAL_NAME
    whole = path.read_bytes()
    left = whole[: max(0, len(whole) - cut)]
    path.write_bytes(left)

    num_lines = left.count(b"\n")
    records = read_records(folder)
    assert len(records) == min(num_lines, 2)
    assert sum(r.attempts for r in records.values()) == max(0, num_lines - 2)
    with opened(folder) as journal:
        journal.planned([experiment("c")])
    assert path.read_bytes().count(b"\n") == num_lines + 1
    assert list(read_records(folder)) == [*records, "c"]


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "[]",
        "{}",
        '{"event":"planned","at":1,"name":"b","identity":"x","parameters":3}',
        '{"event":"submitted","at":1,"name":"unheard-of","job_id":"1"}',
        '{"event":"submitted","at":"now","name":"a","job_id":"1"}',
        '{"event":"ate","at":1,"name":"a"}',
        ENDED.format(status="fine", metrics="{}", usage="{}"),
        ENDED.format(status="failed", metrics='{"m":[1]}', usage="{}"),
        ENDED.format(status="failed", metrics="{}", usage='{"gold":1}'),
        "[" * 100_000,
        "\xff",
        "",
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    """A whole line that was never written is an error with its number, for all readers."""
    with opened(tmp_path) as journal:
        journal.planned([experiment("a")])
    with (tmp_path / JOURNAL_NAME).open("ab") as file:
        file.write(line.encode("latin-1") + b"\n")

    with pytest.raises(DamagedJournalError, match=r"line 2 of journal\.jsonl"):
        read_records(tmp_path)
    with pytest.raises(DamagedJournalError):
        Journal(tmp_path)


def test_what_cannot_be_read_is_an_error_of_the_folder(tmp_path: Path) -> None:
    """A journal that is no file is not taken for an empty one."""
    (tmp_path / JOURNAL_NAME).mkdir()
    with pytest.raises(SearchFolderError, match="cannot be read"):
        read_records(tmp_path)


def test_a_journal_needs_its_folder(tmp_path: Path) -> None:
    """A folder that vanished is an error that names it."""
    with pytest.raises(SearchFolderError, match="cannot be written"):
        Journal(tmp_path / "gone")


def test_a_full_disk_leaves_the_journal_as_it_was(tmp_path: Path) -> None:
    """A line that did not fit is cut away; what was said before stays, and more may come."""
    with opened(tmp_path) as journal:
        journal.planned([experiment("a")])
        path = tmp_path / JOURNAL_NAME
        before = path.read_bytes()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, limits[1]))
        try:
            with pytest.raises(SearchFolderError, match="cannot be written") as caught:
                journal.planned([experiment("b")])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, ignored)
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == errno.EFBIG
        assert path.read_bytes() == before
        assert list(journal.records) == ["a"]
        journal.planned([experiment("c")])
    assert list(read_records(tmp_path)) == ["a", "c"]


def test_lines_are_on_disk_when_a_method_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call ends with fsync of what it wrote, and none is made for nothing."""
    sizes: list[int] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        real(fd)
        sizes.append(os.fstat(fd).st_size)

    with opened(tmp_path) as journal:
        monkeypatch.setattr(os, "fsync", fsync)
        journal.planned([])
        assert sizes == []
        journal.planned([experiment("a"), experiment("b")])
        journal.submitted({"a": "a.1"})
    assert len(sizes) == 2
    assert sizes[-1] == (tmp_path / JOURNAL_NAME).stat().st_size


def test_jobs_are_found_where_the_folder_is(tmp_path: Path) -> None:
    """What of an id is the folder's path is not written, so a moved folder knows its jobs."""
    folder = tmp_path / "one"
    folder.mkdir()
    ids = {"a": f"{folder}/a/a.1", "b": "4711", "c": "./c", "d": f"{folder}x/d"}
    with opened(folder) as journal:
        journal.planned([experiment(name) for name in ids])
        journal.submitted(ids)
        ended(journal, "a", Status.SUCCEEDED)
        assert {n: r.job_id for n, r in journal.records.items()} == ids
    assert f'"{folder}/' not in (folder / JOURNAL_NAME).read_text("utf-8")
    assert {n: r.job_id for n, r in read_records(folder).items()} == ids
    moved = folder.rename(tmp_path / "two")
    found = {n: r.job_id for n, r in read_records(moved).items()}
    assert found == {**ids, "a": f"{moved}/a/a.1"}


def test_attempts_that_failed_are_remembered(tmp_path: Path) -> None:
    """Those that were interrupted are not among them, nor is the last one."""
    with opened(tmp_path) as journal:
        journal.planned([experiment("a")])
        for number, status in enumerate(
            (Status.FAILED, Status.PREEMPTED, Status.FAILED, Status.FAILED)
        ):
            journal.submitted({"a": f"a.{number}"})
            ended(journal, "a", status)
    assert read_records(tmp_path)["a"].failed_jobs == ("a.0", "a.2")
