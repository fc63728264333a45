from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from torch import nn

from mtf_trainer._snapshot import Objects, Snapshot
from mtf_trainer.errors import (
    CheckpointDamagedError,
    CheckpointMismatchError,
    CheckpointVersionError,
)
from mtf_trainer.phases import Phase
from mtf_trainer.state import ResumeState

PATH = Path("a.ckpt")


def make(
    fabric: Fabric, model: nn.Module | None = None, kind: Any = torch.optim.Adam
) -> Objects:
    """Return a model and an optimizer, set up, without a scheduler."""
    model = nn.Linear(4, 2) if model is None else model
    prepared, optimizer = fabric.setup(model, kind(model.parameters(), lr=0.1))
    return Objects(fabric=fabric, model=prepared, optimizer=optimizer, scheduler=None)


def plain(fabric: Fabric) -> dict[str, Any]:
    """Return a snapshot's plain form."""
    return Snapshot(
        resume=ResumeState.now(phase=Phase.INIT, epoch=1, global_step=2, rng=()),
        objects=make(fabric).state(),
        generators=[[]],
        metrics={"loss": 1.0},
        metrics_bytes=7,
    ).to_plain()


def test_snapshot_reads_back(fabric: Fabric) -> None:
    """What goes in comes out."""
    snapshot = Snapshot.from_plain(PATH, plain(fabric))

    assert snapshot.resume.global_step == 2
    assert snapshot.metrics == {"loss": 1.0}
    assert snapshot.metrics_bytes == 7
    assert snapshot.objects["optimizer_type"] == "Adam"


def test_foreign_file_is_no_checkpoint(fabric: Fabric) -> None:
    """A file that lacks an entry is refused by file and entry."""
    content = plain(fabric)
    del content["optimizer"]

    with pytest.raises(CheckpointMismatchError, match=r"a\.ckpt: optimizer: is missing"):
        Snapshot.from_plain(PATH, content)


def test_other_version_or_form_is_refused(fabric: Fabric) -> None:
    """An unknown version is told apart from a damaged state."""
    content = plain(fabric)
    with pytest.raises(CheckpointVersionError, match=r"a\.ckpt: has version 9"):
        Snapshot.from_plain(PATH, content | {"resume": {"version": 9}})
    with pytest.raises(CheckpointDamagedError, match="not a resume state"):
        Snapshot.from_plain(PATH, content | {"resume": {"version": 1}})


@pytest.mark.parametrize(
    ("other", "key", "problem"),
    [
        (
            lambda: nn.Linear(4, 3),
            "model.weight",
            r"has shape \(2, 4\), the model needs \(3, 4\)",
        ),
        (
            lambda: nn.Sequential(nn.Linear(4, 2)),
            r"model.0\.weight",
            "is missing in the checkpoint",
        ),
        (lambda: nn.Linear(4, 2, bias=False), "model.bias", "is not in the model"),
    ],
)
def test_other_model_is_refused_by_key(
    fabric: Fabric, other: Any, key: str, problem: str
) -> None:
    """A checkpoint of another model names file, key, and both shapes."""
    state = make(fabric).state()

    with pytest.raises(CheckpointMismatchError, match=rf"^a\.ckpt: {key}: {problem}"):
        make(fabric, other()).check(PATH, state)


def test_value_in_a_tensors_place_is_refused(fabric: Fabric) -> None:
    """A model entry that is no tensor does not fit one that is."""
    state = make(fabric).state()
    state["model"]["weight"] = "text"

    with pytest.raises(CheckpointMismatchError, match="has shape none"):
        make(fabric).check(PATH, state)


def test_other_optimizer_is_refused(fabric: Fabric) -> None:
    """States of another class of optimizer, or of other groups, are not taken over."""
    model = nn.Linear(4, 2)
    state = make(fabric).state()

    with pytest.raises(CheckpointMismatchError, match="has Adam, this run SGD"):
        make(fabric, kind=torch.optim.SGD).check(PATH, state)
    groups = [{"params": [p]} for p in model.parameters()]
    _, optimizer = fabric.setup(model, torch.optim.Adam(groups))
    split = Objects(fabric=fabric, model=model, optimizer=optimizer, scheduler=None)
    with pytest.raises(CheckpointMismatchError, match="has 1, this run 2"):
        split.check(PATH, state)
    state["optimizer"]["param_groups"][0]["params"] = [0]
    with pytest.raises(CheckpointMismatchError, match="1 parameters, this run 2"):
        make(fabric).check(PATH, state)


def test_scheduler_must_be_there_on_both_sides(fabric: Fabric) -> None:
    """A scheduler that appears or vanishes is a mismatch, not silence."""
    bare = make(fabric)
    scheduler = torch.optim.lr_scheduler.StepLR(bare.optimizer, 1)
    scheduled = Objects(
        fabric=fabric, model=bare.model, optimizer=bare.optimizer, scheduler=scheduler
    )

    with pytest.raises(CheckpointMismatchError, match="has none, this run StepLR"):
        scheduled.check(PATH, bare.state())
    with pytest.raises(CheckpointMismatchError, match="has StepLR, this run none"):
        bare.check(PATH, scheduled.state())
