from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric

from mtf_trainer import read_metrics
from mtf_trainer._distributed import StopAgreement, gather, on_rank_zero

# Two processes import torch first, on however few cores there are.
pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("run_distributed.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the script in two processes over gloo; return where they wrote."""
    folder = tmp_path_factory.mktemp("distributed")
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
    )
    try:
        _, told = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    assert process.returncode == 0, told
    (folder / "stderr").write_text(told, "utf-8")
    return folder


@pytest.fixture
def ranks(folder: Path) -> list[dict[str, Any]]:
    """Return the reports of both processes."""
    return [json.loads((folder / f"rank{r}.json").read_text("utf-8")) for r in (0, 1)]


@pytest.fixture(scope="module")
def script() -> Any:
    """Import the script, for its model and data."""
    spec = spec_from_file_location("run_distributed", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def windows(ranks: list[dict[str, Any]], name: str, *sizes: int) -> list[list[int]]:
    """Return the samples of each step: *sizes* batches of each process."""
    steps, start = [], 0
    for size in sizes:
        batches = [rank[name]["seen"][start : start + size] for rank in ranks]
        steps.append([i for rank in batches for batch in rank for i in batch])
        start += size
    return steps


@pytest.mark.parametrize(("name", "sizes"), [("table", (4, 2, 4, 2)), ("stream", (4, 2))])
def test_steps_are_those_of_one_process_with_all_samples(
    ranks: list[dict[str, Any]], script: Any, name: str, sizes: tuple[int, ...]
) -> None:
    """Two processes, windows of four batches, the last short: as one batch of them all.

    A stream does not say how long it is; a table's order is that of its sampler.
    """
    model = script.make_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    steps = windows(ranks, name, *sizes)
    for numbers in steps:
        samples = [script.Numbered()[i] for i in numbers]
        x_BD = torch.stack([x_D for x_D, _ in samples])
        optimizer.zero_grad()
        script.loss_of(model, x_BD, torch.tensor(numbers)).backward()
        optimizer.step()

    assert sorted(i for step in steps[:2] for i in step) == list(range(42))
    assert ranks[0][name]["weights"] == ranks[1][name]["weights"]
    for ours, theirs in zip(ranks[0][name]["weights"], model.parameters(), strict=True):
        torch.testing.assert_close(
            torch.tensor(ours, dtype=torch.float64),
            theirs.detach().flatten(),
            rtol=1e-12,
            atol=1e-14,
        )


def test_order_changes_with_the_epoch(ranks: list[dict[str, Any]]) -> None:
    """The sampler that Fabric puts in is told the epoch."""
    seen = ranks[0]["table"]["seen"]

    assert seen[:6] != seen[6:]


def test_metrics_are_of_all_processes_and_written_once(
    folder: Path, ranks: list[dict[str, Any]]
) -> None:
    """One process writes; samples and means are those of both, alike in both."""
    rows = read_metrics(folder / "table" / "metrics.jsonl")

    assert [r["samples"] for r in rows] == [32, 10, 42, 32, 10, 42]
    assert ranks[0]["table"]["metrics"] == ranks[1]["table"]["metrics"]
    assert rows[-1]["loss"] == ranks[0]["table"]["metrics"]["loss"]
    lines = (folder / "stderr").read_text("utf-8").splitlines()
    assert len([x for x in lines if x.startswith("epoch 2/2 validation")]) == 1


def test_all_stop_at_the_same_step(ranks: list[dict[str, Any]]) -> None:
    """A signal that one process gets stops both at the same step, and both go on alike."""
    for rank in ranks:
        stopped, again = rank["stopped"], rank["again"]
        assert (stopped["reason"], stopped["step"]) == ("interrupted", 7)
        assert again["resumed_from"] == "epoch_002_step_000006.ckpt"
        assert (again["reason"], again["step"]) == ("completed", 12)


def test_resumed_run_is_the_undisturbed_one(ranks: list[dict[str, Any]]) -> None:
    """Samples, weights and each process's own random stream are as if never stopped."""
    for rank in ranks:
        whole, again = rank["whole"], rank["again"]
        assert again["seen"] == whole["seen"][22:]
        for key in ("weights", "draw", "metrics"):
            assert again[key] == whole[key]
    assert ranks[0]["again"]["draw"] != ranks[1]["again"]["draw"]


def test_error_of_the_first_process_reaches_all(ranks: list[dict[str, Any]]) -> None:
    """No process is left waiting when the first cannot write."""
    assert [rank["no_folder"] for rank in ranks] == ["CheckpointWriteError"] * 2


def test_loader_shorter_than_its_length_is_an_error(ranks: list[dict[str, Any]]) -> None:
    """Gradients that were not yet exchanged are not stepped with."""
    assert [rank["too_long"] for rank in ranks] == ["LoaderLengthError"] * 2


def test_one_process_agrees_with_itself(fabric: Fabric) -> None:
    """With one process nothing is sent and the answer is immediate."""
    agreement = StopAgreement(fabric)

    assert agreement.reached(wanted=True)
    assert not agreement.settled(wanted=False)
    assert gather(fabric, 3) == [3]
    assert on_rank_zero(fabric, lambda: 4) == 4
