from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from torch.utils.data import DataLoader

from mtf_trainer import (
    CheckpointMismatchError,
    CheckpointSettings,
    GenericTrainer,
    GenericTrainerConfig,
    Phase,
    SnapshotSettings,
)
from mtf_trainer._ranks.comm_hooks import CommState
from mtf_trainer.state import LocalState, RNGState
from mtf_trainer.testing import Edge, run_whole, run_with_stops

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


class Precise(torch.optim.SGD):
    """An optimizer that keeps more precision than its parameters have."""

    def step(self, closure: Any = None) -> Any:
        """Keep a sum in float64, counts as whole numbers and a past in float16."""
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["sum"] = torch.zeros_like(parameter, dtype=torch.float64)
                    state["more"] = {"counts": torch.zeros(parameter.shape).long()}
                    state["past"] = [parameter.detach().half(), 0]
                state["sum"] += parameter.detach().double() / 3
                state["more"]["counts"] += 1
                state["past"] = [parameter.detach().half(), state["past"][1] + 1]
                parameter.grad.add_(state["sum"].float() * 0.01)
        return super().step(closure)


class Copies(Precise):
    """One whose state can be read and not be reached."""

    def state_dict(self) -> dict[str, Any]:
        """Return a copy."""
        return copy.deepcopy(super().state_dict())


@pytest.mark.parametrize(
    ("make_optimizer", "precision"),
    [
        (lambda p: Precise(p, lr=0.1), "32-true"),
        (lambda p: torch.optim.Adagrad(p, lr=0.1), "bf16-true"),
    ],
)
def test_state_of_an_optimizer_keeps_its_dtypes(
    loader: DataLoader[Any], tmp_path: Path, make_optimizer: Any, precision: Any
) -> None:
    """Whatever the dtype of the parameters, a stopped run ends as one that was not."""

    def make(run_dir: Path) -> Any:
        fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 2)
        config = GenericTrainerConfig(
            run_dir=run_dir,
            show_progress=False,
            checkpoint=CheckpointSettings(asynchronous=False),
            snapshot=SnapshotSettings(enabled=False),
        )
        optimizer = make_optimizer(model.parameters())
        trainer = GenericTrainer(
            config,
            fabric,
            model,
            optimizer,
            training_step=lambda t, batch, _: torch.nn.functional.cross_entropy(
                t.model(batch[0]), batch[1]
            ),
        )
        return trainer, lambda: trainer.fit(loader, max_epochs=2)

    whole = run_whole(make, tmp_path / "whole")
    stops = [Edge(Phase.TRAIN_BATCH_LOAD, 3), Edge(Phase.TRAIN_BATCH_LOAD, 8)]

    assert run_with_stops(make, tmp_path / "stopped", stops) == whole.outcome


def test_dtypes_that_cannot_be_kept_are_refused(
    make_trainer: MakeTrainer, loader: DataLoader[Any]
) -> None:
    """An optimizer that changes them out of reach is an error, with its entry."""

    def fit(epochs: int) -> None:
        trainer = make_trainer(optimizer=lambda p: Copies(p, lr=0.1))
        trainer.fit(loader, max_epochs=epochs)

    fit(1)

    problem = r"ckpt: optimizers\.0\.state: it makes a torch\.float64 another dtype"
    with pytest.raises(CheckpointMismatchError, match=problem):
        fit(2)


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
