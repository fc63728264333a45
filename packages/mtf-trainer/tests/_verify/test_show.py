from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mtf_trainer._saving.files import digest_line, sha256
from mtf_trainer._saving.saver import Saver
from mtf_trainer._verify.show import _size, describe, find
from mtf_trainer.config import CheckpointSettings
from mtf_trainer.errors import VerificationError

PLAIN = CheckpointSettings()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the newer of two checkpoints."""
    saver = Saver(tmp_path / "checkpoints", PLAIN, parent="a" * 64)
    (tmp_path / "metrics.jsonl").write_text("x" * 2000, "utf-8")
    local = {"rng": {"torch_cpu": torch.zeros(5000, dtype=torch.uint8)}}
    for step in (7, 12):
        content = {
            "resume": {
                "phase": "VAL_BATCH_LOAD",
                "epoch": 2,
                "global_step": step,
                "train": {"batch_idx": 48},
                "val": {"batch_idx": 3},
                "timestamp": "2026-01-02T03:04:05+00:00",
            },
            "model": {
                "layer.weight": torch.zeros(500, 1000),
                "layer.bias": torch.ones(2),
            },
            "optimizers": [
                {"state": {0: {"exp_avg": torch.zeros(2, dtype=torch.int64)}}}
            ],
            "locals": [local, local],
            "metrics": {"loss": 0.25},
            "metrics_bytes": 1500,
            **{f"other_{n}": n for n in range(20)},
        }
        saved = saver.save(content, epoch=2, global_step=step, metrics={})
    return saved.path


def told(path: Path, *, tensors: bool = False) -> str:
    """Return all lines as one text, with single spaces."""
    lines = list(describe(path, PLAIN, tensors=tensors))
    assert max(map(len, lines)) <= 80
    return "\n".join(" ".join(line.split()) for line in lines)


def forge(path: Path, **changes: Any) -> None:
    """Change the content of *path*, and mend its digest."""
    content = torch.load(path, weights_only=True) | changes
    torch.save({k: v for k, v in content.items() if v is not None}, path)
    beside = path.with_name(f"{path.name}.sha256")
    beside.write_text(digest_line(sha256(path), path.name), "utf-8")


def test_where_the_run_stood_is_told(path: Path) -> None:
    """Phase, counts, time, processes, metrics and certificate are there."""
    text = told(path)

    for line in (
        "phase VAL_BATCH_LOAD",
        "epochs finished 2",
        "optimizer steps 12",
        "batches of this epoch 48",
        "batches of validation 3",
        "saved at 2026-01-02T03:04:05+00:00",
        "processes 2",
        "metrics.jsonl 1.5 kB",
        "last loss 0.25",
    ):
        assert f"\n{line}\n" in text
    certificate = torch.load(path, weights_only=True)["certificate"]
    assert f"\ncertificate {certificate['digest']}\n" in text
    for part in ("weights", "optimizer", "rng", "data", "metrics", "parent"):
        assert f"\n{part} {certificate[part]}\n" in text


def test_sizes_are_told_by_part(path: Path) -> None:
    """Each part has its number of tensors, their size, and its keys."""
    text = told(path)

    assert "\nweights 2 tensors 2.0 MB model\n" in text
    assert "\noptimizer 1 tensors 16 B optimizers\n" in text
    assert "\nrng 2 tensors 10.0 kB\n" in text
    assert "\ndata 0 tensors 0 B resume, metrics, metrics_bytes, ot..." in text


def test_every_tensor_is_listed_when_asked(path: Path) -> None:
    """The tree has a line for each, with its place, kind, shape and size."""
    text = told(path, tensors=True)

    assert "\nmodel.layer.weight float32 [500, 1000] 2.0 MB\n" in text
    assert "\noptimizers.0.state.0.exp_avg int64 [2] 16 B\n" in text
    assert text.count("rng.torch_cpu uint8 [5000]") == 2
    assert "exp_avg" not in told(path)


def test_certificate_that_is_not_right_is_told(path: Path) -> None:
    """Changed parts, forged ones, a damaged certificate, and none."""
    good = torch.load(path, weights_only=True)["certificate"]
    forge(path, model={})
    assert "\nweights DIFFERS\n" in told(path)
    forge(path, certificate=good | {"digest": "0" * 64})
    assert "its digest does not follow from its parts" in told(path)
    forge(path, certificate={"version": 1})
    assert "certificate damaged: not a certificate" in told(path)
    forge(path, certificate=None)
    assert "certificate none" in told(path)


def test_whatever_it_holds_is_told(path: Path) -> None:
    """A checkpoint of another form is shown as far as it goes."""
    forge(path, resume=3, metrics={"x": "y" * 500}, metrics_bytes="x", locals=3)

    text = told(path, tensors=True)

    assert "\nphase -\n" in text
    assert "\nprocesses 0\n" in text
    assert "\nmetrics.jsonl -\n" in text
    assert "\nlast x yyyy" in text


def test_endless_content_is_an_error(path: Path) -> None:
    """A checkpoint that holds itself is refused, rather than shown for ever."""
    endless: list[Any] = []
    endless.append(endless)
    forge(path, x=endless)

    with pytest.raises(VerificationError, match=r"is no checkpoint: x.*without end"):
        told(path, tensors=True)


def test_newest_of_a_run_is_found(path: Path, tmp_path: Path) -> None:
    """A run's folder, that of its checkpoints, and a file all lead to one."""
    assert find(tmp_path) == path
    assert find(path.parent) == path
    assert find(path) == path
    assert find(path.with_name("latest.ckpt")) == path
    (tmp_path / "empty").mkdir()
    with pytest.raises(VerificationError, match="holds no checkpoint"):
        find(tmp_path / "empty")


def test_what_cannot_be_loaded_is_an_error(tmp_path: Path) -> None:
    """A file that is not there, or is damaged, is named with the reason."""
    with pytest.raises(VerificationError, match="is not a file"):
        list(describe(tmp_path / "x.ckpt", PLAIN, tensors=False))


@pytest.mark.parametrize(("size", "text"), [(3_200_000_000, "3.2 GB"), (999, "999 B")])
def test_sizes_are_readable(size: int, text: str) -> None:
    """Sizes have a unit that keeps them short."""
    assert _size(size) == text
