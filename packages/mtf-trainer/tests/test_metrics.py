from __future__ import annotations

import json
import math
import os
import resource
from pathlib import Path

import pytest

from mtf_trainer.errors import MetricsFileError
from mtf_trainer.metrics import MetricsWriter, read_metrics


def write(path: Path, *losses: float, keep_bytes: int = 0) -> int:
    """Append a line per loss; return the size."""
    with MetricsWriter(path, keep_bytes=keep_bytes) as writer:
        for step, loss in enumerate(losses, start=1):
            writer.append(step=step, epoch=1, split="train", values={"loss": loss})
        return writer.flush()


def test_lines_read_back(tmp_path: Path) -> None:
    """What is written is one JSON object a line, and reads back equal."""
    path = tmp_path / "metrics.jsonl"

    size = write(path, 0.5, 0.25)

    assert path.stat().st_size == size
    lines = path.read_text("utf-8").splitlines()
    assert lines[0] == '{"step": 1, "epoch": 1, "split": "train", "loss": 0.5}'
    assert read_metrics(path) == [json.loads(line) for line in lines]


def test_values_that_are_not_finite_stay_valid_json(tmp_path: Path) -> None:
    """NaN and infinities are written as strings that strict readers accept."""
    path = tmp_path / "metrics.jsonl"

    write(path, math.nan, math.inf, -math.inf)

    def refuse(word: str) -> None:
        raise AssertionError(word)

    rows = [
        json.loads(x, parse_constant=refuse) for x in path.read_text("utf-8").splitlines()
    ]
    assert [row["loss"] for row in rows] == ["NaN", "Infinity", "-Infinity"]
    read = [row["loss"] for row in read_metrics(path)]
    assert math.isnan(read[0])
    assert read[1:] == [math.inf, -math.inf]


def test_resume_cuts_what_follows(tmp_path: Path) -> None:
    """Lines after the recorded size, a torn one included, are gone; new ones follow."""
    path = tmp_path / "metrics.jsonl"
    size = write(path, 0.5)
    with path.open("ab") as file:
        file.write(b'{"step": 2}\n{"ste')

    write(path, 0.125, keep_bytes=size)

    assert [row["loss"] for row in read_metrics(path)] == [0.5, 0.125]


def test_shorter_file_is_kept(tmp_path: Path) -> None:
    """A file shorter than recorded is not filled up with zeros."""
    path = tmp_path / "metrics.jsonl"

    write(path, 0.5, keep_bytes=1000)

    assert len(read_metrics(path)) == 1


def test_reading_leaves_out_a_torn_last_line(tmp_path: Path) -> None:
    """A last line without an end, as a crash leaves it, is not an error."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2')

    assert read_metrics(path) == [{"step": 1}]


def test_reading_refuses_other_files(tmp_path: Path) -> None:
    """A line that is no object is an error that names its number."""
    path = tmp_path / "metrics.jsonl"
    path.write_text("{}\n3\n", "utf-8")

    with pytest.raises(MetricsFileError, match="line 2 is damaged"):
        read_metrics(path)


def test_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    """A line that does not fit is a clear error, and no part of it stays."""
    path = tmp_path / "metrics.jsonl"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = MetricsWriter(path, keep_bytes=0)
    writer.append(step=1, epoch=1, split="val", values={"loss": 1.0})
    size = path.stat().st_size
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, hard))
        with pytest.raises(MetricsFileError, match=r"cannot be written: File too large"):
            writer.append(step=2, epoch=1, split="val", values={"loss": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        writer.close()
        writer.close()

    assert path.stat().st_size == size


def test_what_cannot_be_opened_or_cut_is_a_clear_error(tmp_path: Path) -> None:
    """A folder in the file's place, or a device, is refused by name."""
    (tmp_path / "metrics.jsonl").mkdir()

    with pytest.raises(MetricsFileError, match=r"metrics\.jsonl: cannot be opened"):
        MetricsWriter(tmp_path / "metrics.jsonl", keep_bytes=0)


def test_pipe_cannot_be_flushed() -> None:
    """A file that does not reach a disk fails as its lines are brought there."""
    writer = MetricsWriter(Path("/dev/full"), keep_bytes=0)
    try:
        with pytest.raises(MetricsFileError, match="cannot be written"):
            writer.flush()
    finally:
        writer.close()


@pytest.mark.parametrize("how", ["deleted", "replaced", "folder gone", "no folder"])
def test_lost_file_is_noticed(tmp_path: Path, how: str) -> None:
    """Lines that go to a file nobody will find are an error, not a success."""
    path = tmp_path / "run" / "metrics.jsonl"
    path.parent.mkdir()
    with MetricsWriter(path, keep_bytes=0) as writer:
        writer.append(step=1, epoch=1, split="val", values={"loss": 1.0})
        writer.check()
        path.unlink()
        if how == "replaced":
            path.touch()
        elif how != "deleted":
            path.parent.rmdir()
        if how == "no folder":
            path.parent.touch()
        for look in (writer.check, writer.flush):
            with pytest.raises(MetricsFileError, match="was deleted or replaced while"):
                look()
        with pytest.raises(MetricsFileError, match="was deleted or replaced while"):
            writer.append(step=2, epoch=1, split="val", values={"loss": 1.0})


def test_file_that_cannot_be_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that fails is told as such."""

    def fail(_: int) -> None:
        raise OSError(5, os.strerror(5))

    with (
        MetricsWriter(tmp_path / "metrics.jsonl", keep_bytes=0) as writer,
        monkeypatch.context() as patch,
    ):
        patch.setattr(os, "fstat", fail)
        with pytest.raises(MetricsFileError, match="cannot be found: Input/output"):
            writer.check()
