from __future__ import annotations

import contextvars
import hashlib
import importlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from mtf_trainer._saving.saver import Saver
from mtf_trainer._verify import rerun
from mtf_trainer._verify.replay import TARGET, Target
from mtf_trainer._verify.rerun import Replay, is_function_name, main, pairs, replay
from mtf_trainer._verify.verify import verify
from mtf_trainer.config import CheckpointSettings

PLAIN = CheckpointSettings()
TRAIN = '''
import json, os, sys, threading
import torch
from mtf_trainer._saving.content import load_content
from mtf_trainer._saving.files import checkpoints_in
from mtf_trainer._verify.replay import TARGET
from mtf_trainer._saving.saver import Saver
from mtf_trainer.config import CheckpointSettings

def main(run_dir, lr=0.1, saves=(), num_steps=9):
    """Train a small model for real, from the newest checkpoint, and stop at a target."""
    folder, metrics = run_dir / "checkpoints", run_dir / "metrics.jsonl"
    run_dir.mkdir(exist_ok=True)
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    step, size, parent = 0, 0, None
    if paths := checkpoints_in(folder):
        content = load_content(paths[0], None)
        model.load_state_dict(content["model"])
        optimizer.load_state_dict(content["optimizers"][0])
        optimizer.param_groups[0]["lr"] = lr
        torch.set_rng_state(content["locals"][0]["rng"])
        step, size = content["resume"]["global_step"], content["metrics_bytes"]
        parent = content["certificate"]["digest"]
    metrics.touch()
    os.truncate(metrics, size)
    saver = Saver(folder, CheckpointSettings(), parent=parent)
    while step < num_steps:
        loss = model(torch.randn(4, 3)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        with metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "loss": loss.item()}) + "\\n")
        resume = {"phase": "TRAIN_BATCH_END", "epoch": 0, "global_step": step}
        target = TARGET.get()
        stop = target is not None and target.reached(resume)
        if stop or step in saves:
            content = {
                "resume": resume,
                "model": model.state_dict(),
                "optimizers": [optimizer.state_dict()],
                "locals": [{"rng": torch.get_rng_state()}],
                "metrics_bytes": metrics.stat().st_size,
            }
            saver.save(content, epoch=0, global_step=step, metrics={})
        if stop:
            return
    print("trained to the end")

def other_rate(run_dir):
    main(run_dir, lr=0.2)

def fails(run_dir):
    sys.exit(3)

def hangs(run_dir):
    threading.Event().wait(600)

class Group:
    main = staticmethod(main)
    number = 5
'''


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Put a user's module into the folder that a command is given in."""
    (tmp_path / "train.py").write_text(TRAIN, "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("train")
    del sys.modules["train"]


@pytest.fixture
def run_dir(train: ModuleType, tmp_path: Path) -> Path:
    """Return a run with saves after steps 2, 4, 6 and 7; the first is gone."""
    train.main(tmp_path / "run", saves=(2, 4, 6, 7))
    return tmp_path / "run"


def digests(folder: Path) -> dict[str, str]:
    """Return what every file in *folder* holds."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def only(run_dir: Path, function: str, timeout_s: float = 300.0) -> Replay:
    """Replay the last pair with *function*."""
    pair = pairs(verify(run_dir, PLAIN), None)[-1]
    return replay(run_dir, pair, function, PLAIN, timeout_s)


def test_pairs_are_each_checkpoint_and_its_parent(run_dir: Path) -> None:
    """What is on disk, and whose parent is too, can be replayed; or from one alone."""
    report = verify(run_dir, PLAIN)
    names = [row.name for row in report.rows]

    def numbers(start: str | None) -> list[tuple[int | None, int | None]]:
        return [(a.global_step, b.global_step) for a, b in pairs(report, start)]

    assert numbers(None) == [(4, 6), (6, 7)]
    assert numbers(names[1]) == [(4, 6)]
    assert numbers(names[3]) == []
    report.rows[2].state = "gone"
    assert numbers(None) == []
    assert numbers(names[1]) == [(4, 7)]


@pytest.mark.slow
def test_replay_of_a_training_is_equal(run_dir: Path) -> None:
    """Another process trains from the parent to the same bytes; the run is untouched."""
    before = digests(run_dir)

    found = only(run_dir, "train:Group.main")

    assert found.is_equal, found
    assert found.num_steps == 1
    assert found.seconds > 0
    assert digests(run_dir) == before


@pytest.mark.slow
def test_replay_with_another_rate_differs(run_dir: Path) -> None:
    """A function that trains otherwise is found out, with the entries that differ."""
    found = only(run_dir, "train:other_rate")

    assert not found.is_equal
    assert found.problem is None
    assert found.differing == ("weights", "optimizer")
    assert found.differences[0].startswith("model.weight: 3 of 3 numbers, by up to")
    assert "optimizers.0.param_groups.0.lr: 0.2 and 0.1" in found.differences


@pytest.mark.slow
def test_function_that_saves_nothing_is_told(run_dir: Path) -> None:
    """Without a checkpoint to compare, it is said how the function's process ended."""
    found = only(run_dir, "train:fails")

    assert not found.is_equal
    assert "wrote no checkpoint" in str(found.problem)
    assert "exited with 3" in str(found.problem)


def test_replay_that_hangs_is_ended(run_dir: Path) -> None:
    """After its time it is asked to end, and the replay has failed."""
    found = only(run_dir, "train:hangs", timeout_s=0.1)

    assert "was not there after 0.1 seconds" in str(found.problem)


def test_process_that_will_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that pays no attention to the signal is gone all the same."""
    monkeypatch.setattr(rerun, "_GRACE_S", 0.1)
    code = (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "print(1, flush=True); signal.pause()"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()

        rerun._end(process)

        assert process.wait(60) == -signal.SIGKILL
        rerun._end(process)


def test_metrics_of_a_branch_that_was_left_are_gone(run_dir: Path) -> None:
    """Where the run went on from an older checkpoint, what it left cannot be replayed."""
    pair = pairs(verify(run_dir, PLAIN), None)[-1]
    lines = (run_dir / "metrics.jsonl").read_text("utf-8").splitlines(keepends=True)
    text = "".join([*lines[:4], "another\n" * 20])
    (run_dir / "metrics.jsonl").write_text(text, "utf-8")

    found = replay(run_dir, pair, "train:main", PLAIN, 60.0)

    assert "went on from an older checkpoint" in str(found.problem)
    assert found.seconds == 0


def test_run_without_metrics_is_replayed_without(tmp_path: Path) -> None:
    """A checkpoint that certifies no metrics needs none; its copy has none."""
    other = tmp_path / "other"
    saver = Saver(other / "checkpoints", PLAIN, parent=None)
    for step in (1, 2):
        resume = {"phase": "EPOCH_END", "epoch": 0, "global_step": step}
        saver.save({"resume": resume}, epoch=0, global_step=step, metrics={})
    (pair,) = pairs(verify(other, PLAIN), None)

    rerun._prepare(other, tmp_path / "copy", pair[0], PLAIN)

    assert sorted(digests(tmp_path / "copy")) == [
        "checkpoints/chain.jsonl",
        "checkpoints/epoch_000_step_000001.ckpt",
        "checkpoints/epoch_000_step_000001.ckpt.sha256",
        "run.json",
    ]


def test_process_calls_the_function_with_the_target(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It finds the function from the present folder, and stops it at the target."""
    place = {"phase": "TRAIN_BATCH_END", "epoch": 0, "global_step": 8}
    (tmp_path / "target.json").write_text(json.dumps(Target.at(place).place), "utf-8")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(tmp_path)])
    del sys.modules["train"]
    arguments = [str(run_dir), str(tmp_path / "target.json"), "train:main"]

    contextvars.copy_context().run(main, arguments)

    assert verify(run_dir, PLAIN).rows[-1].global_step == 8
    assert TARGET.get() is None
    with pytest.raises(SystemExit, match="69"):
        contextvars.copy_context().run(main, [*arguments[:2], "train:Group.number"])


@pytest.mark.parametrize(
    "text", ["train.py", "train", ":main", "train:", "a b:c", "a:b;c", "-m:x", "a:b\n"]
)
def test_only_names_are_functions(text: str) -> None:
    """What is no ``module:function`` is refused before anything is imported."""
    assert not is_function_name(text)
