"""Results as tables and texts for a terminal. `rich` is imported by who makes a table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mtf_gridsearch._values import At, Mode, value_of
from mtf_gridsearch.records import ExperimentRecord

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

__all__ = [
    "add_experiments",
    "checked_limit",
    "duration_text",
    "new_table",
    "number_text",
    "plain_text",
    "short_names",
    "value_text",
]

_MAX_REASON = 60
_MAX_VALUE = 24
_MAX_PARAMETER_COLUMNS = 3  # more of them share one, which is folded
_TEXT_COLUMNS = {"experiment": 12, "status": 9, "parameters": 16, "reason": 12}  # width

_STYLES = {
    "succeeded": "green",
    "stopped": "cyan",
    "failed": "red",
    "timeout": "red",
    "node_failed": "red",
    "running": "blue",
}


def new_table(title: str, caption: str) -> Table:
    """Return an empty table; *title* and *caption* are plain text, not markup."""
    # Only who looks at one pays for it.
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    return Table(
        box=SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
        title=plain_text(title, "bold"),
        caption=plain_text(caption),
        caption_justify="left",
    )


def add_experiments(
    table: Table,
    records: Sequence[ExperimentRecord],
    *,
    ranks: Mapping[str, int] | None,
    parameters: Sequence[str],
    metrics: Mapping[str, At],
    mode: Mode,
) -> None:
    """Add one row an experiment; *ranks* by name, None for no such column.

    There is a column of reasons only where one of *records* has a reason.
    """
    headings = short_names(parameters)
    columns = {
        "experiment": [plain_text(record.experiment_name) for record in records],
        "status": [plain_text(r.status, _STYLES.get(r.status, "")) for r in records],
    }
    for name, at in metrics.items():
        values = (value_of(record, name, mode, at) for record in records)
        columns[f"{name}\n{at}"] = [plain_text(number_text(value)) for value in values]
    columns["time"] = [plain_text(duration_text(r.usage.wall_s)) for r in records]
    if len(parameters) > _MAX_PARAMETER_COLUMNS:
        columns["parameters"] = [_parameters_text(record, headings) for record in records]
        parameters = ()
    for key in parameters:
        columns[headings[key]] = [
            plain_text(_short_value(r.parameters[key]) if key in r.parameters else "-")
            for r in records
        ]
    if ranks is not None:
        numbers = (ranks.get(record.experiment_name, "-") for record in records)
        columns = {"#": [plain_text(str(number)) for number in numbers]} | columns
    if any(record.reason for record in records):
        columns["reason"] = [plain_text(_shortened(r.reason)) for r in records]
    for heading, cells in columns.items():
        is_text = heading in _TEXT_COLUMNS
        # What is read in full has room; headings, names and reasons are folded.
        width = max(map(len, cells), default=1)
        table.add_column(
            plain_text(heading),
            justify="left" if is_text else "right",
            overflow="fold",
            min_width=min(width, _TEXT_COLUMNS.get(heading, width)),
        )
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return the shortest end of each key that no other key ends in.

    >>> short_names(["optimizer.lr", "scheduler.lr", "model.depth"])["model.depth"]
    'depth'
    >>> short_names(["optimizer.lr", "scheduler.lr"])["optimizer.lr"]
    'optimizer.lr'
    """
    ends = {
        key: [key.split(".", n)[n] for n in range(key.count("."), -1, -1)] for key in keys
    }
    found = Counter(end for several in ends.values() for end in several)
    return {
        key: next((end for end in several if found[end] == 1), key)
        for key, several in ends.items()
    }


def checked_limit(limit: int | None) -> int | None:
    """Return *limit*, how many rows to show at most; None for all.

    Raises:
        ValueError: If it is negative.
    """
    if limit is not None and limit < 0:
        msg = f"limit counts rows: at least 0, or None for all, not {limit}"
        raise ValueError(msg)
    return limit


def number_text(value: float | None) -> str:
    """Return *value* as a cell: a dash where it is not known.

    >>> [number_text(value) for value in (0.123456789, 1e-7, None)]
    ['0.123457', '1e-07', '-']
    """
    return "-" if value is None else f"{value:.6g}"


def duration_text(duration_s: float | None) -> str:
    """Return a duration in seconds for people.

    >>> [duration_text(value) for value in (0.25, 75.0, 3725.0, None)]
    ['0.2s', '1m15s', '1h02m', '-']
    """
    if duration_s is None:
        return "-"
    if duration_s < 60:  # noqa: PLR2004 -- a minute
        return f"{duration_s:.1f}s"
    minutes, seconds = divmod(round(duration_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"


def value_text(value: Any) -> str:
    """Return a parameter's value as text: a string as it is, all else as JSON.

    >>> [value_text(value) for value in ("adam", 1e-4, True, [1, 2], None)]
    ['adam', '0.0001', 'true', '[1, 2]', 'null']
    """
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def plain_text(content: str, style: str = "") -> Text:
    """Return *content* as it is: no markup, nothing that a terminal would obey."""
    from rich.text import Text  # noqa: PLC0415 -- as above

    safe = "".join(
        c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}"
        for c in content
    )
    return Text(safe, style=style)


def _parameters_text(record: ExperimentRecord, headings: Mapping[str, str]) -> Text:
    items = record.parameters.items()
    found = (f"{headings[k]}={_short_value(v)}" for k, v in items if k in headings)
    return plain_text(" ".join(found))


def _short_value(value: Any) -> str:
    # Whole values are in the exports; here are as many digits as tell values apart.
    text = f"{value:.5g}" if isinstance(value, float) else value_text(value)
    return text if len(text) <= _MAX_VALUE else text[: _MAX_VALUE - 1] + "…"


def _shortened(reason: str) -> str:
    line = " ".join(reason.split())
    return line if len(line) <= _MAX_REASON else line[: _MAX_REASON - 1] + "…"
