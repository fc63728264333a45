"""Results as files for other programs: CSV, and Parquet by way of pyarrow.

One row an experiment, whatever its status, in planned order. Columns, in order:
``experiment_name``, ``identity``, ``status``, ``is_dropped`` (no longer in the grid), ``attempts``,
``job_id``, ``reason``,
``started_at``, ``ended_at`` (seconds since 1970), ``wall_s``, ``cpu_s``, ``max_rss_bytes``,
``param.<key>`` for each parameter and, for each metric, ``metric.<name>.last``,
``.last_step``, ``.min``, ``.min_step``, ``.max``, ``.max_step``. What is not known is empty.

In CSV a parameter that is a string stands as it is, any other value as JSON. In Parquet a
parameter's column is of booleans, integers, floats or strings where all its values are;
otherwise it holds JSON. A column of integers of which one has more than 64 bits is of strings.
"""

from __future__ import annotations

import csv
import io
import json
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mtf_gridsearch import _yaml
from mtf_gridsearch._tables import value_text
from mtf_gridsearch.results import SearchResults

__all__ = ["to_csv", "to_parquet"]

_RECORD = {
    "experiment_name": "string",
    "identity": "string",
    "status": "string",
    "is_dropped": "bool_",
    "attempts": "int64",
    "job_id": "string",
    "reason": "string",
    "started_at": "float64",
    "ended_at": "float64",
}
_USAGE = {"wall_s": "float64", "cpu_s": "float64", "max_rss_bytes": "int64"}
_METRIC = {
    "last": "float64",
    "last_step": "int64",
    "min": "float64",
    "min_step": "int64",
    "max": "float64",
    "max_step": "int64",
}
_INT64 = range(-(2**63), 2**63)


def to_csv(results: SearchResults, path: Path | str) -> Path:
    """Write *results* as CSV (RFC 4180, UTF-8), whole or not at all; return the path.

    Raises:
        OSError: If it cannot be written; the file that was there stays.
    """
    columns = list(_columns(results))
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(name for name, _, _ in columns)
    cells = [_csv_cells(arrow_type, column) for _, arrow_type, column in columns]
    writer.writerows(zip(*cells, strict=True))
    target = Path(path)
    _yaml.write_atomically(target, text.getvalue())
    return target


def to_parquet(results: SearchResults, path: Path | str) -> Path:
    """Write *results* as Parquet, whole or not at all; return the path.

    Raises:
        ModuleNotFoundError: If pyarrow is not installed.
        OSError: If it cannot be written; the file that was there stays.
    """
    try:
        # An extra, which ships no types.
        import pyarrow as pa  # type: ignore[import-not-found,import-untyped,unused-ignore]  # noqa: PLC0415
        from pyarrow import parquet  # noqa: PLC0415
    except ModuleNotFoundError as error:
        msg = "Parquet needs pyarrow: pip install 'mtf-gridsearch[parquet]'"
        raise ModuleNotFoundError(msg, name=error.name) from error

    arrays = {}
    for name, known_type, cells in _columns(results):
        arrow_type, column = (known_type, cells) if known_type else _typed(cells)
        if known_type == "int64" and not all(c is None or c in _INT64 for c in cells):
            arrow_type = "string"
            column = [None if cell is None else str(cell) for cell in cells]
        arrays[name] = pa.array(column, type=getattr(pa, arrow_type)())
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        parquet.write_table(pa.table(arrays), aside)
        aside.replace(target)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    return target


def _columns(results: SearchResults) -> Iterator[tuple[str, str | None, list[Any]]]:
    """Return name, Arrow type (None for a parameter) and cells of each column.

    A cell that is not known is None; a parameter that an experiment lacks, `_ABSENT`.
    """
    records = results.records
    for name, arrow_type in _RECORD.items():
        yield name, arrow_type, [getattr(record, name) for record in records]
    for name, arrow_type in _USAGE.items():
        yield name, arrow_type, [getattr(record.usage, name) for record in records]
    for key in results.parameters:
        yield f"param.{key}", None, [r.parameters.get(key, _ABSENT) for r in records]
    for metric in results.metrics:
        summaries = [record.metrics.get(metric) for record in records]
        for name, arrow_type in _METRIC.items():
            cells = [None if s is None else getattr(s, name) for s in summaries]
            yield f"metric.{metric}.{name}", arrow_type, cells


class _Absent:
    """The type of `_ABSENT`."""


_ABSENT = _Absent()


def _csv_cells(arrow_type: str | None, cells: Sequence[Any]) -> list[str]:
    if arrow_type is None:
        return ["" if cell is _ABSENT else value_text(cell) for cell in cells]
    return ["" if cell is None else str(cell) for cell in cells]


def _typed(cells: Sequence[Any]) -> tuple[str, list[Any]]:
    """Return the Arrow type that holds the values of a parameter, and the cells for it."""
    types = {type(cell) for cell in cells if cell is not _ABSENT}
    column = [None if cell is _ABSENT else cell for cell in cells]
    if types == {bool}:
        return "bool_", column
    if types == {int} and all(cell is None or cell in _INT64 for cell in column):
        return "int64", column
    if types == {float}:
        return "float64", column
    if types == {str}:
        return "string", column
    return "string", [None if c is _ABSENT else json.dumps(c) for c in cells]
