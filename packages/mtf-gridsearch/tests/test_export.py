from __future__ import annotations

import csv
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

# By name: pyarrow has no types.
parquet: Any = pytest.importorskip("pyarrow.parquet")

from mtf_gridsearch.export import to_csv, to_parquet  # noqa: E402
from mtf_gridsearch.records import (  # noqa: E402
    ExperimentRecord,
    MetricSummary,
    Status,
    Usage,
)
from mtf_gridsearch.results import SearchResults  # noqa: E402

LOSS = MetricSummary(
    last=0.5, last_step=2, min=0.25, min_step=1, max=math.inf, max_step=0
)


def search(*parameters: dict[str, Any]) -> SearchResults:
    """Return results with one succeeded experiment, and others that are missing."""
    records = [
        ExperimentRecord(
            experiment_name=f"e{number}",
            identity=f"i{number}",
            parameters=values,
            status=Status.MISSING if number else Status.SUCCEEDED,
            job_id=None if number else "e0.1",
            attempts=0 if number else 1,
            reason="" if number else 'a "reason",\nof two lines',
            metrics={} if number else {"loss": LOSS},
            usage=Usage() if number else Usage(wall_s=1.5, max_rss_bytes=7),
            started_at=None if number else 1.25,
        )
        for number, values in enumerate(parameters)
    ]
    return SearchResults(Path("search"), tuple(records))


def test_csv_has_a_row_for_every_experiment_and_the_documented_columns(
    tmp_path: Path,
) -> None:
    """Read back by another reader; what is not known is empty."""
    found = search({"lr": 0.1, "on": True, "x": None}, {"lr": "0.1", "list": [1, "a"]})
    path = to_csv(found, tmp_path / "results.csv")
    with path.open(encoding="utf-8", newline="") as file:
        first, second = csv.DictReader(file)
    assert first == {
        "experiment_name": "e0",
        "identity": "i0",
        "status": "succeeded",
        "is_dropped": "False",
        "attempts": "1",
        "job_id": "e0.1",
        "reason": 'a "reason",\nof two lines',
        "started_at": "1.25",
        "ended_at": "",
        "wall_s": "1.5",
        "cpu_s": "",
        "max_rss_bytes": "7",
        "param.lr": "0.1",
        "param.on": "true",
        "param.x": "null",
        "param.list": "",
        "metric.loss.last": "0.5",
        "metric.loss.last_step": "2",
        "metric.loss.min": "0.25",
        "metric.loss.min_step": "1",
        "metric.loss.max": "inf",
        "metric.loss.max_step": "0",
    }
    assert second["param.list"] == '[1, "a"]'
    assert second["status"] == "missing"
    assert second["metric.loss.last"] == second["param.x"] == ""


def test_parquet_has_the_same_columns_with_types(tmp_path: Path) -> None:
    """Values of one type keep it; others are JSON, and the absent is null."""
    found = search(
        {"i": 1, "f": 0.5, "b": True, "s": "x", "mixed": 1, "big": 2**70, "none": None},
        {"i": 2, "f": 0.25, "b": False, "s": "y", "mixed": "1", "big": 1, "none": 1},
        {},
    )
    path = to_parquet(found, tmp_path / "results.parquet")
    table = parquet.read_table(path)
    types = {field.name: str(field.type) for field in table.schema}
    assert list(types)[:3] == ["experiment_name", "identity", "status"]
    expected = {
        "i": "int64",
        "f": "double",
        "b": "bool",
        "s": "string",
        "mixed": "string",
    }
    assert {key: types[f"param.{key}"] for key in expected} == expected
    columns = table.to_pydict()
    assert columns["param.i"] == [1, 2, None]
    assert columns["param.b"] == [True, False, None]
    assert [json.loads(v) for v in columns["param.mixed"][:2]] == [1, "1"]
    assert [json.loads(v) for v in columns["param.big"][:2]] == [2**70, 1]
    assert columns["param.none"] == ["null", "1", None]
    assert columns["metric.loss.max"] == [math.inf, None, None]
    assert columns["status"] == ["succeeded", "missing", "missing"]
    assert types["metric.loss.last_step"] == types["max_rss_bytes"] == "int64"


def test_a_search_without_experiments_has_columns_and_no_rows(tmp_path: Path) -> None:
    """Both files can be read all the same."""
    path = to_csv(search(), tmp_path / "results.csv")
    assert path.read_text("utf-8").startswith("experiment_name,identity,status")
    assert parquet.read_table(to_parquet(search(), tmp_path / "p")).num_rows == 0


def test_folders_are_made(tmp_path: Path) -> None:
    """Both kinds of file make the folder that they are to lie in."""
    results = SearchResults(folder=tmp_path, records=())
    for write in (to_csv, to_parquet):
        assert write(results, tmp_path / write.__name__ / "new" / "file").is_file()


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    """What was there stays as it was, and nothing lies beside it."""
    (tmp_path / "folder").mkdir()
    for write in (to_csv, to_parquet):
        with pytest.raises(OSError, match="folder"):
            write(search({"a": 1}), tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_without_pyarrow_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CSV needs nothing but Python."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"pip install 'mtf-gridsearch\[parquet\]'"
    ):
        to_parquet(search(), tmp_path / "p")
    assert to_csv(search(), tmp_path / "c").exists()


def test_a_step_beyond_64_bits_is_written_as_text(tmp_path: Path) -> None:
    """A number that no column of integers holds loses no digit, and stops nothing."""
    summary = replace(LOSS, last_step=10**20)
    (record,) = search({"lr": 0.1}).records
    found = SearchResults(Path("search"), (replace(record, metrics={"loss": summary}),))
    table = parquet.read_table(to_parquet(found, tmp_path / "r.parquet")).to_pydict()
    assert table["metric.loss.last_step"] == ["100000000000000000000"]
    assert table["metric.loss.min_step"] == [1]
