from __future__ import annotations

import io

import pytest
from rich.console import Console

from mtf_gridsearch._tables import (
    add_experiments,
    checked_limit,
    new_table,
    plain_text,
    short_names,
    value_text,
)
from mtf_gridsearch.records import ExperimentRecord, MetricSummary, Status, Usage

LOSS = MetricSummary(last=0.5, last_step=2, min=0.25, min_step=1, max=1.0, max_step=0)


def shown(
    *records: ExperimentRecord, width: int = 120, ranks: dict[str, int] | None = None
) -> str:
    """Return a table of *records* as a terminal has it."""
    table = new_table("search", "below")
    keys = dict.fromkeys(key for record in records for key in record.parameters)
    add_experiments(
        table,
        records,
        ranks=ranks,
        parameters=list(keys),
        metrics={"loss": "last"},
        mode="min",
    )
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_hostile_text_is_shown_and_obeyed_by_nobody() -> None:
    """Markup stands as it is; what a terminal would obey is replaced."""
    record = ExperimentRecord(
        experiment_name="a",
        identity="a",
        parameters={"x": "[bold]y[/bold]"},
        status=Status.FAILED,
        reason="[red]no\x1b[2Jspace\nleft\x07[/red]",
    )
    text = shown(record)
    assert "[bold]y[/bold]" in text
    assert "[red]no\N{REPLACEMENT CHARACTER}[2Jspace" in text
    assert "\x1b" not in text
    assert "\x07" not in text


def test_a_long_reason_is_cut_and_no_reason_has_no_column() -> None:
    """The column appears with the first reason."""
    quiet = ExperimentRecord(experiment_name="a", identity="a", parameters={})
    assert "reason" not in shown(quiet)
    loud = ExperimentRecord(
        experiment_name="b", identity="b", parameters={}, reason="x " * 80
    )
    text = shown(quiet, loud, width=200)
    assert "reason" in text
    assert "…" in text


def test_a_row_has_status_metric_time_and_parameters() -> None:
    """An absent parameter is a dash, and a number has the digits that tell it apart."""
    first = ExperimentRecord(
        experiment_name="a",
        identity="a",
        parameters={"optimizer.lr": 0.123456789, "model.type": "mlp"},
        status=Status.SUCCEEDED,
        metrics={"loss": LOSS},
        usage=Usage(wall_s=3725.0),
    )
    second = ExperimentRecord(
        experiment_name="b", identity="b", parameters={"optimizer.lr": 1}
    )
    text = shown(first, second, ranks={"a": 1})
    rows = [line.split() for line in text.splitlines()]
    assert ["1", "a", "succeeded", "0.5", "1h02m", "0.12346", "mlp"] in rows
    assert ["-", "b", "missing", "-", "-", "1", "-"] in rows


def test_many_parameters_share_a_column_that_fits_any_terminal() -> None:
    """In 80 columns each of them can be read; an endless value is cut."""
    parameters = {f"section.parameter_{i}": i for i in range(9)} | {"s.text": "x" * 99}
    record = ExperimentRecord(experiment_name="a", identity="a", parameters=parameters)
    text = shown(record, width=80)
    assert all(f"parameter_{i}={i}" in text for i in range(9))
    assert f"text={'x' * 23}…" in text


def test_short_names_are_told_apart() -> None:
    """The end of a key is enough until two keys end alike."""
    keys = ["a.lr", "b.lr", "c.b.lr", "seed"]
    assert short_names(keys) == {
        "a.lr": "a.lr",
        "b.lr": "b.lr",
        "c.b.lr": "c.b.lr",
        "seed": "seed",
    }


def test_limits_count_rows() -> None:
    """None is no limit, and a negative one is a mistake."""
    assert checked_limit(None) is None
    assert checked_limit(0) == 0
    with pytest.raises(ValueError, match="at least 0, or None for all, not -1"):
        checked_limit(-1)


def test_values_and_texts_are_written_as_they_are() -> None:
    """Strings have no quotes, other values are JSON."""
    assert [value_text(v) for v in ("a", 1.5, {"x": None})] == ["a", "1.5", '{"x": null}']
    assert plain_text("[b]x[/b]").plain == "[b]x[/b]"
