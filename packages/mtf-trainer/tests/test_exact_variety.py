"""Exactness of what the training of `test_testing` has not: kinds of data, of precision."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision

from mtf_trainer.phases import Phase
from mtf_trainer.testing import run_whole, run_with_stops

pytestmark = pytest.mark.slow

LAUNCHED_S = 300


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Give the module with the trainings that are stopped."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import varied_runs  # noqa: PLC0415 - on the path for these tests alone

    yield varied_runs
    del sys.modules["varied_runs"]


@pytest.mark.parametrize("accumulation", [1, 3])
def test_several_loaders_and_optimizers(
    runs: Any, fabric: Fabric, tmp_path: Path, accumulation: int
) -> None:
    """Stopped at every edge: a drawn schedule, a stream, two optimizers, a plateau."""
    make = runs.several(fabric, accumulation=accumulation)
    whole = run_whole(make, tmp_path / "whole")

    assert Phase.SCHEDULER_BATCH_STEP in {edge.phase for edge in whole.edges}
    for number, edge in enumerate(whole.edges):
        outcome = run_with_stops(make, tmp_path / str(number), [edge])
        assert (str(edge), outcome) == (str(edge), whole.outcome)


def test_frozen_layers_and_hidden_buffers(
    runs: Any, fabric: Fabric, tmp_path: Path
) -> None:
    """Stopped at every edge: what is trained, hidden buffers, a step that is skipped."""
    make = runs.thawing(fabric)
    whole = run_whole(make, tmp_path / "whole")
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text("utf-8")
    assert lines.count('"skipped_steps": 1') == 1

    for number, edge in enumerate(whole.edges):
        outcome = run_with_stops(make, tmp_path / str(number), [edge])
        assert (str(edge), outcome) == (str(edge), whole.outcome)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_several_loaders_on_two_processes(
    tmp_path: Path, launch: Callable[..., Any], accumulation: int
) -> None:
    """Where windows end ragged, processes keep the same weights; stopped and gone on, too."""
    script = Path(__file__).with_name("varied_runs.py")
    for done in launch(script, tmp_path, accumulation, processes=2):
        assert done.code == 0, done.err

    told = [json.loads((tmp_path / f"rank{n}.json").read_text("utf-8")) for n in (0, 1)]
    assert told[0]["weights"] == told[1]["weights"]
    assert [each["wrong"] for each in told] == [[], []]
    assert told[0]["tried"] >= 4


@pytest.mark.parametrize(
    ("launcher", "processes"),
    [
        (None, 3),
        ((), 2),
        (("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"), 2),
    ],
    ids=["three processes", "Fabric", "torchrun"],
)
def test_other_launches(
    tmp_path: Path,
    launch: Callable[..., Any],
    launcher: tuple[str, ...] | None,
    processes: int,
) -> None:
    """Stopped at every ninth edge: three processes, two that Fabric or torchrun starts."""
    script = str(Path(__file__).with_name("exact_runs.py"))
    arguments = [str(tmp_path), "2", "0", "9", str(processes)]
    if launcher is None:
        for done in launch(script, *arguments, processes=processes):
            assert done.code == 0, done.err
    else:
        subprocess.run(
            [sys.executable, *launcher, script, *arguments],
            check=True,
            timeout=LAUNCHED_S,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
        )

    for rank in range(processes):
        told = json.loads((tmp_path / f"rank{rank}.json").read_text("utf-8"))
        assert told["wrong"] == []
        assert told["tried"] >= 4


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision(runs: Any, tmp_path: Path, precision: Any) -> None:
    """Stopped at every edge: autocast, and with fp16 a scale that falls and grows."""
    scaler = None
    if precision == "16-mixed":
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=3)
        start = scaler.state_dict()
    plugin = MixedPrecision(precision, "cpu", scaler=scaler)
    fabric = Fabric(accelerator="cpu", devices=1, plugins=plugin)
    inner = runs.mixed(fabric)

    def make(run_dir: Path) -> Any:
        if scaler is not None:
            scaler.load_state_dict(start)
        return inner(run_dir)

    whole = run_whole(make, tmp_path / "whole")
    if scaler is not None:
        assert scaler.get_scale() != 2.0**20

    for number, edge in enumerate(whole.edges):
        outcome = run_with_stops(make, tmp_path / str(number), [edge])
        assert (str(edge), outcome) == (str(edge), whole.outcome)
