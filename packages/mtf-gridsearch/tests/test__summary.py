from __future__ import annotations

import json
import math

from mtf_gridsearch._summary import plain_json, record_object, to_json
from mtf_gridsearch.records import ExperimentRecord, Usage


def test_numbers_that_json_lacks_are_words_at_any_depth() -> None:
    """All else, tuples apart, stays as it is."""
    values = {"a": (1, math.nan), "b": {"c": [math.inf, -math.inf, 0.5, None, True]}}
    expected = {"a": [1, "NaN"], "b": {"c": ["Infinity", "-Infinity", 0.5, None, True]}}
    assert plain_json(values) == expected
    assert json.loads(to_json(values)) == expected


def test_plain_values_are_written_as_they_are() -> None:
    """Text is not escaped beyond what JSON asks."""
    assert to_json({"a": "ä", "b": 1}) == '{"a": "ä", "b": 1}'


def test_an_experiment_of_which_nothing_is_known_has_all_keys() -> None:
    """What is not known is None, not absent."""
    found = record_object(
        ExperimentRecord(experiment_name="a", identity="b", parameters={}), "/search"
    )
    assert found["usage"] == dict.fromkeys(Usage.__dataclass_fields__)
    assert found["status"] == "missing"
    ran = ExperimentRecord(
        experiment_name="a", identity="b", parameters={}, job_id="/search/a/a.1"
    )
    assert record_object(ran, "/search")["job_id"] == "./a/a.1"
    assert found["job_id"] is found["started_at"] is found["ended_at"] is None
