from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from mtf_gridsearch.launcher import Experiment, JobState
from mtf_gridsearch.records import GridExperiment, Status


class Aliased(BaseModel):
    learning: float = Field(0.1, alias="learning-rate")


def experiment(config: Any, *, by_alias: bool = False) -> GridExperiment[Any]:
    """Return an experiment of *config*."""
    return GridExperiment(
        experiment_name="a",
        identity="0",
        parameters={},
        config=config,
        by_alias=by_alias,
    )


def test_an_experiment_is_dumped_as_it_is_read() -> None:
    """A mapping as it is, a model by the names that it reads."""
    config = Aliased.model_validate({"learning-rate": 0.5})
    dumped: Experiment = experiment(config, by_alias=True)

    assert experiment({"lr": 1}).model_dump() == {"lr": 1}
    assert experiment(config).model_dump(mode="json") == {"learning": 0.5}
    assert dumped.model_dump(mode="json") == {"learning-rate": 0.5}


def test_every_word_of_a_job_is_one_of_a_search() -> None:
    """A search knows two more: what was never started, and what a rule stopped."""
    assert {*Status} - {*map(Status, JobState)} == {Status.MISSING, Status.STOPPED}
