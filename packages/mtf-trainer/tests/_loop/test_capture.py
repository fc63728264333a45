from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from mtf_trainer import (
    CheckpointMismatchError,
    GenericTrainer,
)
from mtf_trainer._ranks.comm_hooks import CommState
from mtf_trainer.state import LocalState, RNGState

MakeTrainer = Callable[..., GenericTrainer]
PLACE = Path("x.ckpt")


@pytest.fixture
def content(make_trainer: MakeTrainer, loader: DataLoader[Any]) -> dict[str, Any]:
    """Return what a run of one epoch saved."""
    path = make_trainer().fit(loader).checkpoint
    loaded: dict[str, Any] = torch.load(path, weights_only=True)  # type: ignore[arg-type]
    return loaded


def test_state_of_other_objects_is_refused(
    make_trainer: MakeTrainer, content: dict[str, Any]
) -> None:
    """What does not fit is named, before anything is changed."""
    objects = make_trainer()._objects
    one = content["optimizers"][0]
    other = {**one, "type": "SGD"}
    group = {**one["state"]["param_groups"][0], "params": [0]}
    short = {**one, "state": {**one["state"], "param_groups": [group]}}
    none = {**one, "state": {**one["state"], "param_groups": []}}
    extra = {**content["model"], "new": torch.ones(1)}
    first = next(iter(content["model"]))
    larger = {**content["model"], first: torch.ones(3, 3)}
    number = {**content["model"], first: 3}
    changes: list[tuple[dict[str, Any], str]] = [
        ({"optimizers": [one, one]}, "optimizers: the checkpoint has 2, this run 1"),
        ({"optimizers": [other]}, r"optimizers\.0: the checkpoint has SGD"),
        ({"optimizers": [none]}, r"optimizers\.0\.param_groups: the checkpoint has 0"),
        ({"optimizers": [short]}, r"param_groups\.0: the checkpoint has 1 parameters"),
        ({"schedulers": [one]}, "schedulers: the checkpoint has 1, this run 0"),
        ({"model": extra}, r"model\.new: is not in the model"),
        ({"model": larger}, r"model\..*: has shape \(3, 3\), the model needs \("),
        ({"model": number}, r"has shape none \(no tensor\), the model needs \("),
        ({"ema": {}}, "ema: the checkpoint has an average"),
        ({"modes": [True]}, "modes: the checkpoint has 1"),
        ({"trained": [True]}, "trained: the checkpoint has 1"),
        ({"buffers": {"b": torch.ones(1)}}, r"buffers\.b: is not in the model"),
        ({"callbacks": [{"type": "X", "state": None}]}, "callbacks.0"),
    ]
    for change, message in changes:
        with pytest.raises(CheckpointMismatchError, match=message):
            objects.check(PLACE, {**content, **change})
    objects.check(PLACE, content)


def test_state_is_taken_over_whoever_has_the_weights(make_trainer: MakeTrainer) -> None:
    """Swapped with their average or not; an average of another model is a mismatch."""
    objects, others = (make_trainer(ema_decay=0.5)._objects for _ in range(2))
    assert objects.ema is not None
    with torch.no_grad():
        for parameter in others.model.parameters():
            parameter.add_(1.0)
    state = others.state()

    objects.ema.swap()
    assert objects.targets(PLACE, ()) == {}
    assert not objects.ema.swapped
    objects.ema.swap()
    objects.load(state, PLACE)

    assert not objects.ema.swapped
    ours, theirs = objects.state(), state
    for key in ("model", "ema"):
        assert ours[key].keys() == theirs[key].keys()
        assert all(torch.equal(ours[key][n], theirs[key][n]) for n in theirs[key])
    name = next(iter(state["ema"]))
    with pytest.raises(CheckpointMismatchError, match="ema: the average has nothing as"):
        objects.load(
            {**state, "ema": {n: v for n, v in state["ema"].items() if n != name}}, PLACE
        )


def test_state_of_another_hook_is_refused(make_trainer: MakeTrainer) -> None:
    """Each process keeps that of its own, which only the same hook takes."""
    objects = make_trainer()._objects
    ddp: Any = SimpleNamespace(module=objects.inner)
    sends = replace(objects, comm=CommState("fp16", ddp, None))
    local = LocalState(
        rng=RNGState.capture(),
        train_cursor=None,
        val_cursor=None,
        window_samples=0,
        window_unit=0,
        grad_norm=None,
        train_means={},
        val_means={},
    )

    sends.take_local(local, in_window=False)

    assert local.comm == {"kind": "fp16", "powersgd": None}
    sends.load_local(PLACE, local, same_number=True)
    local.comm = None
    with pytest.raises(CheckpointMismatchError, match="comm: comm_hook is 'fp16', and"):
        sends.load_local(PLACE, local, same_number=True)
