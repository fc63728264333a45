from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric

from mtf_trainer import CheckpointMismatchError, CheckpointWarning, read_metrics
from mtf_trainer._ranks.collectives import gather, on_rank_zero

# Two processes import torch first, on however few cores there are.
pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[1] / "run_distributed.py"


@pytest.fixture(scope="module")
def folder(launch: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the script in two processes over gloo; return where they wrote."""
    folder = tmp_path_factory.mktemp("distributed")
    ended = launch(SCRIPT, folder, processes=2)
    told = "".join(each.err for each in ended)
    assert [each.code for each in ended] == [0, 0], told
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


def test_all_stop_at_the_same_place(ranks: list[dict[str, Any]]) -> None:
    """A signal that one process gets stops both at the same batch, and both go on alike."""
    for name in ("stopped", "fewer"):
        places = [(rank[name]["step"], len(rank[name]["seen"])) for rank in ranks]
        assert places[0] == places[1]
        assert 6 <= places[0][0] < 12
        assert {rank[name]["reason"] for rank in ranks} == {"interrupted"}
    for rank in ranks:
        assert rank["again"]["resumed_from"].startswith("epoch_00")
        assert (rank["again"]["reason"], rank["again"]["step"]) == ("completed", 12)


def test_resumed_run_is_the_undisturbed_one(ranks: list[dict[str, Any]]) -> None:
    """Samples, weights and each process's own random stream are as if never stopped."""
    for rank in ranks:
        whole, again = rank["whole"], rank["again"]
        assert rank["stopped"]["seen"] + again["seen"] == whole["seen"]
        for key in ("weights", "draw", "metrics"):
            assert again[key] == whole[key]
    assert ranks[0]["again"]["draw"] != ranks[1]["again"]["draw"]


def test_one_process_goes_on_where_two_stopped(
    ranks: list[dict[str, Any]], script: Any, folder: Path, fabric: Fabric
) -> None:
    """With twice the micro-batch, or twice the window: the same steps, each sample once.

    Weights are those of two processes but for the order in which sums are rounded.
    """
    for batch_size, accumulation in ((4, 4), (2, 8), (8, 2)):
        run_dir = folder / f"fewer{batch_size}"
        shutil.copytree(folder / "fewer", run_dir, symlinks=True)
        trainer = script.Trainer(run_dir, fabric, accumulation=accumulation)
        data = script.Numbered()
        loader = script.DataLoader(data, batch_size=batch_size, shuffle=True)

        with pytest.warns(CheckpointWarning, match="written by 2 processes"):
            result = trainer.fit(loader, max_epochs=4)

        assert result.global_step == 12
        before = [n for rank in ranks for batch in rank["fewer"]["seen"] for n in batch]
        after = [n for batch in trainer.seen for n in batch]
        assert Counter(before) + Counter(after) == dict.fromkeys(range(42), 4)
        report = trainer.report(result)
        whole = [rank["whole"] for rank in ranks]
        assert report["weights"] == [
            pytest.approx(each, rel=1e-12) for each in whole[0]["weights"]
        ]
        assert report["metrics"]["loss"] == pytest.approx(whole[0]["metrics"]["loss"])
    wrong = script.Trainer(folder / "fewer", fabric)
    loader = script.DataLoader(script.Numbered(), batch_size=3, shuffle=True)
    with pytest.raises(CheckpointMismatchError, match="global_batch: was 16 and is 12"):
        wrong.fit(loader, max_epochs=4)


def test_error_of_the_first_process_reaches_all(ranks: list[dict[str, Any]]) -> None:
    """No process is left waiting when the first cannot write."""
    assert [rank["no_folder"] for rank in ranks] == ["CheckpointWriteError"] * 2


def test_streams_of_different_lengths_are_an_error(ranks: list[dict[str, Any]]) -> None:
    """Processes whose streams end apart are told so, rather than left waiting."""
    assert [rank["uneven"] for rank in ranks] == ["DataError"] * 2


def test_one_process_does_it_all_itself(fabric: Fabric) -> None:
    """With one process nothing is sent."""
    assert gather(fabric, 3) == [3]
    assert on_rank_zero(fabric, lambda: 4) == 4
