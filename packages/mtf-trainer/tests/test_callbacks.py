from __future__ import annotations

import math
import subprocess
import sys
from typing import Any, Literal

import pytest

from mtf_trainer.callbacks import HOOKS, Callback, EarlyStopping
from mtf_trainer.phases import Phase


def epochs(callback: EarlyStopping, values: list[float]) -> list[bool]:
    """Return after each of *values* whether the end was wanted there."""
    ended = []
    for value in values:
        callback.on_epoch_metrics(object(), {"loss": value, "other": 0.0})
        ended.append(callback.wants_end)
    return ended


def test_every_phase_has_a_hook_that_is_documented() -> None:
    """Hooks are the phases in lower case and those that the table of Callback lists."""
    edges = {f"on_{phase.lower()}" for phase in Phase}
    table = [
        line.split(maxsplit=1)[0]
        for line in (Callback.__doc__ or "").splitlines()
        if line.strip().startswith("on_")
    ]

    assert edges | {row.partition("(")[0] for row in table} == set(HOOKS)
    assert all(HOOKS[name] == ("trainer",) for name in edges)
    assert all(
        f"{row.partition('(')[0]}({HOOKS[row.partition('(')[0]][0]}" in row
        for row in table
        if ")" in row
    )


def test_patience_counts_epochs_in_a_row() -> None:
    """An improvement starts the count anew; the epoch that fills it wants the end."""
    callback = EarlyStopping("loss", patience=2)

    assert epochs(callback, [5, 4, 4, 3, 3, 3]) == [False] * 5 + [True]
    assert callback.best == 3
    assert callback.epochs_without == 2


def test_each_further_epoch_wants_it_again() -> None:
    """A run that goes on after the end was wanted hears it at the next epoch."""
    callback = EarlyStopping("loss", patience=1)

    assert epochs(callback, [1, 2, 2]) == [False, True, True]


def test_another_patience_judges_what_was_counted() -> None:
    """What was saved is the count, not the decision: a greater patience wants no end."""
    first, patient = EarlyStopping("loss", 1), EarlyStopping("loss", 2)
    epochs(first, [1, 2])

    patient.load_state_dict(first.state_dict())

    assert (first.wants_end, patient.wants_end) == (True, False)
    assert epochs(patient, [2]) == [True]


@pytest.mark.parametrize(
    ("mode", "values"), [("min", [5.0, 4.5, 4.4]), ("max", [5.0, 5.5, 5.6])]
)
def test_an_improvement_is_more_than_min_delta(
    mode: Literal["min", "max"], values: list[float]
) -> None:
    """Better by exactly min_delta is none, in either direction; the best stays."""
    callback = EarlyStopping("loss", patience=2, mode=mode, min_delta=0.5)

    assert epochs(callback, values) == [False, False, False]
    assert callback.best == values[2]

    callback = EarlyStopping("loss", patience=1, mode=mode, min_delta=0.5)
    assert epochs(callback, values[:2]) == [False, True]
    assert callback.best == 5.0


def test_what_is_not_a_number_is_no_improvement() -> None:
    """A value that is not a number never becomes the best, not even as the first."""
    callback = EarlyStopping("loss", patience=3)

    assert epochs(callback, [math.nan, 2.0, math.nan, math.nan]) == [False] * 4
    assert callback.best == 2.0
    assert epochs(callback, [math.nan]) == [True]


@pytest.mark.parametrize("stop_at", range(7))
def test_it_goes_on_from_its_state(stop_at: int) -> None:
    """Saved and loaded after any epoch, it wants the end at the same epochs."""
    values = [5.0, 4.0, 4.5, 3.0, 3.5, 3.2]
    straight = epochs(EarlyStopping("loss", patience=2), values)
    first, second = (EarlyStopping("loss", patience=2) for _ in range(2))

    before = epochs(first, values[:stop_at])
    second.load_state_dict(first.state_dict())

    assert before + epochs(second, values[stop_at:]) == straight
    assert straight[-1]


@pytest.mark.parametrize(
    ("metrics", "told"),
    [({"val_los": 1.0}, "did you mean val_los"), ({}, "there are: none")],
)
def test_a_metric_that_is_not_there_is_an_error(
    metrics: dict[str, float], told: str
) -> None:
    """What can never be judged is not ignored: the names there are are told."""
    with pytest.raises(KeyError, match=told):
        EarlyStopping("val_loss").on_epoch_metrics(object(), metrics)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"patience": 0}, "patience must be at least 1, not 0"),
        ({"mode": "low"}, "mode must be 'min' or 'max', not 'low'"),
        ({"min_delta": -1.0}, "min_delta must be at least 0 and finite, not -1.0"),
        ({"min_delta": math.nan}, "min_delta must be at least 0 and finite, not nan"),
        ({"min_delta": math.inf}, "min_delta must be at least 0 and finite, not inf"),
    ],
)
def test_settings_out_of_range_are_refused(
    arguments: dict[str, Any], problem: str
) -> None:
    """Each names the argument and its value."""
    with pytest.raises(ValueError, match=problem):
        EarlyStopping("loss", **arguments)


def test_importing_loads_no_torch() -> None:
    """A script may name its callbacks before it waits for torch."""
    code = "import sys, mtf_trainer.callbacks; assert 'torch' not in sys.modules"

    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
