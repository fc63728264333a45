from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("optuna")

from optuna.study import StudyDirection

from mtf_gridsearch._definition import Definition
from mtf_gridsearch.grid import ParameterGrid
from mtf_gridsearch.records import Status


def definition(**changes: Any) -> Definition:
    """Return a definition of which nothing is made."""
    known: dict[str, Any] = {
        "name": "d",
        "grid": ParameterGrid("g"),
        "make": None,
        "metric": "loss",
        "mode": "min",
        "at": "best",
        "num_trials": 1,
        "num_parallel": 1,
        "in_order": False,
        "sampler": "tpe",
        "pruner": None,
        "storage": None,
        "seed": 0,
        "only": None,
    }
    return Definition(**{**known, **changes})


def test_the_mode_is_a_direction() -> None:
    """The least and the greatest are what Optuna calls so."""
    assert definition().direction is StudyDirection.MINIMIZE
    assert definition(mode="max").direction is StudyDirection.MAXIMIZE


@pytest.mark.parametrize("status", Status)
def test_what_a_run_starts(status: Status) -> None:
    """All that did not end; with `only`, what failed, and what such a run left unfinished."""
    is_over = status in {Status.SUCCEEDED, Status.STOPPED}
    is_broken = status in {Status.FAILED, Status.TIMEOUT}
    assert definition().starts(status) == (not is_over and not is_broken)
    repair = definition(only="failed")
    assert repair.starts(status) == is_broken
    assert repair.starts(status, has_failed=True) != is_over
