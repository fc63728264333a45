from __future__ import annotations

from pathlib import Path

import pytest

from mtf_slurm.errors import SubmissionError
from mtf_slurm.follow._schedule_file import Entry, opened, read
from mtf_slurm.states import JobState


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    """In the same order, with the same types; nothing is written if nothing changed."""
    assert read(tmp_path) == {}
    entry = Entry(
        experiment_name="b",
        values={"slurm": {"partition": "gpu"}},
        after={"a": "afterok"},
        priority=2,
        user="u",
        ended=JobState.FAILED,
        job_id="7",
        refusals=1,
    )
    with opened(tmp_path) as entries:
        entries["b"] = entry
        entries["a"] = Entry(experiment_name="a")
    found = read(tmp_path)
    assert list(found) == ["b", "a"]
    assert found["b"] == entry
    assert found["b"].ended is JobState.FAILED
    assert [e.partition for e in found.values()] == ["gpu", None]
    assert found["b"].model_dump(mode="json") == entry.values
    path = tmp_path / ".slurm" / "schedule.json"
    date = path.stat().st_mtime_ns
    with opened(tmp_path):
        pass
    assert path.stat().st_mtime_ns == date


def test_one_at_a_time(tmp_path: Path) -> None:
    """A second one is told that it has to wait."""
    with opened(tmp_path), pytest.raises(BlockingIOError), opened(tmp_path):
        pass


def test_an_error_changes_nothing(tmp_path: Path) -> None:
    """What was changed before it is not written."""
    change = opened(tmp_path)
    change.__enter__()["a"] = Entry(experiment_name="a")
    assert not change.__exit__(RuntimeError, RuntimeError(), None)
    assert read(tmp_path) == {}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"entries": [{}]}', '{"entries": [1]}'])
def test_a_damaged_file(tmp_path: Path, text: str) -> None:
    """It is an error that names it, not an empty schedule."""
    (tmp_path / ".slurm").mkdir()
    (tmp_path / ".slurm" / "schedule.json").write_text(text, encoding="utf-8")
    with pytest.raises(SubmissionError, match=r"schedule.json: it cannot be read"):
        read(tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """The error says which."""
    (tmp_path / ".slurm").write_text("", encoding="utf-8")
    with pytest.raises(SubmissionError, match="cannot be written"), opened(tmp_path):
        pass
    (tmp_path / ".slurm").unlink()
    change = opened(tmp_path)
    change.__enter__()["a"] = Entry(experiment_name="a")
    (tmp_path / ".slurm" / "schedule.part").mkdir()
    with pytest.raises(SubmissionError, match="cannot be written"):
        change.__exit__(None, None, None)
