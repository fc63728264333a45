from __future__ import annotations

from typing import Any

import pytest

from mtf_gridsearch._marks import NAMED_COLOURS, _look
from mtf_gridsearch.records import ExperimentRecord, Status


@pytest.mark.parametrize(
    ("status", "has_value", "label"),
    [
        (Status.SUCCEEDED, True, "succeeded"),
        (Status.STOPPED, True, "stopped early"),
        (Status.SUCCEEDED, False, "no result"),
        (Status.FAILED, False, "no result"),
        (Status.CANCELLED, False, "no result"),
        (Status.MISSING, False, "not ended"),
        (Status.RUNNING, True, "not ended"),
        (Status.UNKNOWN, False, "not ended"),
    ],
)
def test_each_way_to_end_has_a_look(
    status: Status,
    has_value: bool,  # noqa: FBT001 - a column of the table
    label: str,
) -> None:
    """What failed never looks like what succeeded or still runs."""
    record = ExperimentRecord(
        experiment_name="a", identity="a", parameters={}, status=status
    )
    look: Any = _look(record, has_value=has_value)
    assert look.label == label
    assert look.dot()["label"] == label
    assert look.colour not in NAMED_COLOURS or label == "succeeded"
