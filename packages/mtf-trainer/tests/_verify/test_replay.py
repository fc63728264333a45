from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from mtf_trainer._verify.replay import TARGET, Target


def resume(**changes: Any) -> dict[str, Any]:
    """Return a place inside an epoch, in plain form, but for *changes*."""
    plain: dict[str, Any] = {
        "version": 2,
        "phase": "TRAIN_BATCH_END",
        "epoch": 1,
        "global_step": 10,
        "train": {
            "batch_idx": 4,
            "optimizers": [0, 1],
            "epoch_sums": {"loss": [0.5, 32]},
            "stepped": True,
        },
        "val": None,
        "timestamp": "2026-01-01T00:00:00+00:00",
    }
    return plain | changes


def test_place_is_reached_whatever_was_measured() -> None:
    """Time and sums of losses may differ; a replay that is not exact must stop too."""
    target = Target.at(resume())
    train = resume()["train"] | {"epoch_sums": {"loss": [float("nan"), 32]}}

    assert target.reached(resume(timestamp="later", train=train))


@pytest.mark.parametrize(
    "change",
    [
        {"phase": "TRAIN_BATCH_LOAD"},
        {"epoch": 0},
        {"global_step": 9},
        {"train": resume()["train"] | {"batch_idx": 3}},
        {"train": resume()["train"] | {"stepped": False}},
        {"train": resume()["train"] | {"epoch_sums": {"loss": [0.5, 31]}}},
        {"val": {"batch_idx": 0}},
    ],
)
def test_other_places_are_not_reached(change: dict[str, Any]) -> None:
    """Every count and every name in the state tells one place from another."""
    assert not Target.at(resume()).reached(resume(**change))


@pytest.mark.parametrize("change", [{"global_step": 11}, {"epoch": 2}])
def test_place_that_was_missed_stops_too(change: dict[str, Any]) -> None:
    """A replay that went by the place on another way ends, rather than go on for ever."""
    assert Target.at(resume()).reached(resume(**change))


def test_small_step_is_told_from_the_step_alone() -> None:
    """Most safe points cost one comparison: nothing else of the state is asked for."""
    assert not Target.at(resume()).reached({"global_step": 9, "epoch": 0})


def test_place_survives_json() -> None:
    """What is handed to the replaying process as JSON is the same target there."""
    target = Target.at(resume(train={"optimizers": (0, (1, 2.5))}))

    again = Target(json.loads(json.dumps(target.place)))

    assert again == target
    assert again.reached(resume(train={"optimizers": [0, [1]]}))


@pytest.mark.parametrize("key", ["phase", "epoch", "global_step"])
def test_what_is_no_place_is_refused(key: str) -> None:
    """Phase, epoch and step must be there, and of their types."""
    with pytest.raises(ValueError, match=f"{key} is None"):
        Target.at(resume(**{key: None}))


def test_nothing_is_set_and_nothing_heavy_is_loaded() -> None:
    """The loop may import this at no cost: no target, no torch."""
    code = (
        "import sys; from mtf_trainer._verify.replay import TARGET; "
        "assert TARGET.get() is None; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert TARGET.get() is None
