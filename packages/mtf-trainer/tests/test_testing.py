"""Exactness: stopped at every edge, a run ends with the same bytes, order and metrics."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric

from mtf_trainer.phases import Phase
from mtf_trainer.testing import Edge, run_whole, run_with_stops

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Give the module with the training that is stopped."""
    monkeypatch.syspath_prepend(str(HERE))
    import exact_runs  # noqa: PLC0415 - on the path for this test alone

    yield exact_runs
    del sys.modules["exact_runs"]


@pytest.mark.parametrize("accumulation", [1, 3])
def test_stopped_at_any_edge_it_ends_the_same(
    runs: Any, fabric: Fabric, tmp_path: Path, accumulation: int
) -> None:
    """Every edge of two epochs with validation: weights, optimizer, streams, order, metrics.

    With dropout, running statistics, noise from three streams in the dataset and one in
    the step, a schedule by steps, an average of the weights, a callback with a state.
    """
    seen: list[list[int]] = []
    make = runs.maker(fabric, seen, accumulation=accumulation, workers=0)
    whole = run_whole(make, tmp_path / "whole")
    expected = list(seen)

    assert {edge.phase for edge in whole.edges} == set(Phase) - {
        Phase.SCHEDULER_EPOCH_STEP
    }
    for number, edge in enumerate(whole.edges):
        seen.clear()
        outcome = run_with_stops(make, tmp_path / str(number), [edge])
        assert (str(edge), outcome, seen) == (str(edge), whole.outcome, expected)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_stopped_three_times_in_an_epoch_it_ends_the_same(
    runs: Any, fabric: Fabric, tmp_path: Path, accumulation: int
) -> None:
    """Thirty draws of three edges, with epochs that end with a scheduler's step."""
    seen: list[list[int]] = []
    make = runs.maker(
        fabric, seen, accumulation=accumulation, workers=0, scheduler_interval="epoch"
    )
    whole = run_whole(make, tmp_path / "whole")
    expected = list(seen)
    draws = random.Random(accumulation)  # noqa: S311 - which edges, no secret
    first_epoch = whole.edges[: whole.edges.index(Edge(Phase.EPOCH_END, 1)) + 1]
    # Stopped where the graph of autograd lives, a run stops behind that phase.
    edges = [e for e in first_epoch if e.phase is not Phase.TRAIN_BATCH_BACKWARD]

    assert Phase.SCHEDULER_EPOCH_STEP in {edge.phase for edge in edges}
    for number in range(30):
        chosen = sorted(draws.sample(edges, 3), key=first_epoch.index)
        seen.clear()
        outcome = run_with_stops(make, tmp_path / str(number), chosen)
        assert (chosen, outcome, seen) == (chosen, whole.outcome, expected)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_number_of_loader_workers_changes_nothing(
    runs: Any, fabric: Fabric, tmp_path: Path, accumulation: int
) -> None:
    """With two workers, persistent or not, the run is that without; stopped as well."""
    seen: list[list[int]] = []
    plain = runs.maker(fabric, seen, accumulation=accumulation, workers=0)
    whole = run_whole(plain, tmp_path / "whole")
    expected = list(seen)

    for number, edge in enumerate(whole.edges[4::12]):
        make = runs.maker(
            fabric,
            seen,
            accumulation=accumulation,
            workers=2,
            persistent=bool(number % 2),
        )
        seen.clear()
        outcome = run_with_stops(make, tmp_path / str(number), [edge])
        assert (str(edge), outcome, seen) == (str(edge), whole.outcome, expected)


@pytest.mark.parametrize(
    ("accumulation", "workers", "stride"), [(1, 0, 3), (3, 0, 2), (3, 2, 7)]
)
def test_two_processes_stopped_at_edges_end_the_same(
    tmp_path: Path,
    launch: Callable[..., Any],
    accumulation: int,
    workers: int,
    stride: int,
) -> None:
    """Two processes, DDP over gloo: as one, and together each sample once an epoch."""
    arguments = (tmp_path, accumulation, workers, stride)
    for done in launch(HERE / "exact_runs.py", *arguments, processes=2):
        assert done.code == 0, done.err

    told = [json.loads((tmp_path / f"rank{n}.json").read_text("utf-8")) for n in (0, 1)]
    assert [each["wrong"] for each in told] == [[], []]
    assert told[0]["tried"] >= 6
    samples = [n for each in told for batch in each["seen"] for n in batch]
    assert set(samples) == set(range(22))


def test_a_difference_is_seen(runs: Any, fabric: Fabric, tmp_path: Path) -> None:
    """A training that is not exact, here by a draw as each part begins, is found out."""
    make = runs.maker(fabric, [], accumulation=1, workers=0)
    whole = run_whole(make, tmp_path / "whole")

    class Draws:
        def on_train_batch_load(self, trainer: Any) -> None:
            if trainer.global_step == 2:
                torch.rand(1)

    def make_wrong(run_dir: Path) -> Any:
        trainer, fit = make(run_dir)
        trainer._hooks = type(trainer._hooks)([runs.Counts(), Draws()])
        return trainer, fit

    assert run_whole(make_wrong, tmp_path / "wrong").outcome != whole.outcome
    with pytest.raises(ValueError, match="TRAIN_BATCH_LOAD-99 was never met"):
        run_with_stops(make, tmp_path / "x", [Edge(Phase.TRAIN_BATCH_LOAD, 99)])
