"""Records as strict JSON: words for the numbers that JSON lacks."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from mtf_gridsearch.journal import placed_id
from mtf_gridsearch.records import ExperimentRecord

__all__ = ["plain_json", "record_object", "to_json"]


def plain_json(value: Any) -> Any:
    """Return *value* with words for the numbers that JSON lacks.

    >>> plain_json({"loss": [0.5, float("nan"), float("-inf")]})
    {'loss': [0.5, 'NaN', '-Infinity']}
    """
    if isinstance(value, float) and not math.isfinite(value):
        return {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
    if isinstance(value, Mapping):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item) for item in value]
    return value


def record_object(record: ExperimentRecord, folder: str) -> dict[str, Any]:
    """Return an experiment as ``results_summary.json`` has it, but for numbers.

    Args:
        record: Of an experiment.
        folder: Of its search, absolute.
    """
    usage = record.usage
    return {
        "name": record.experiment_name,
        "identity": record.identity,
        "status": str(record.status),
        "dropped": record.is_dropped,
        "parameters": record.parameters,
        "job_id": record.job_id and placed_id(record.job_id, folder),
        "attempts": record.attempts,
        "reason": record.reason,
        "started_at": record.started_at,
        "ended_at": record.ended_at,
        "usage": {
            "wall_s": usage.wall_s,
            "cpu_s": usage.cpu_s,
            "max_rss_bytes": usage.max_rss_bytes,
        },
        # `dataclasses.asdict` takes ten times as long, which 10,000 experiments notice.
        "metrics": {
            name: {
                "last": found.last,
                "last_step": found.last_step,
                "min": found.min,
                "min_step": found.min_step,
                "max": found.max,
                "max_step": found.max_step,
            }
            for name, found in record.metrics.items()
        },
    }


def to_json(values: Any) -> str:
    """Return *values* as strict JSON on one line."""
    try:
        return json.dumps(values, allow_nan=False, ensure_ascii=False)
    except ValueError:
        return json.dumps(plain_json(values), allow_nan=False, ensure_ascii=False)
