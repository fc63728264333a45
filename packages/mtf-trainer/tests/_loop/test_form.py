from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mtf_trainer import (
    CheckpointDamagedError,
    CheckpointError,
    CheckpointMismatchError,
    CheckpointSettings,
    CheckpointVersionError,
    GenericTrainer,
    SnapshotSettings,
)
from mtf_trainer._loop.form import check_kinds, locals_of, read_resume, reading
from mtf_trainer._saving.saver import Saver

MakeTrainer = Callable[..., GenericTrainer]
PLACE = Path("x.ckpt")


def stops_in_a_window(trainer: GenericTrainer, batch: Any, batch_idx: int) -> Tensor:
    """Ask for a stop after the first of two batches that make the third step."""
    if batch_idx == 4:
        trainer.stop()
    return nn.functional.cross_entropy(trainer.model(batch[0]), batch[1])


@pytest.fixture
def make(make_trainer: MakeTrainer) -> MakeTrainer:
    """Return what makes a trainer with a scheduler and an average, in a folder."""

    def make(folder: Path) -> GenericTrainer:
        return make_trainer(
            run_dir=folder,
            step=stops_in_a_window,
            gradient_accumulation_steps=2,
            ema_decay=0.5,
            snapshot=SnapshotSettings(enabled=False),
            scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 2),
        )

    return make


@pytest.fixture
def content(make: MakeTrainer, loader: DataLoader[Any], tmp_path: Path) -> dict[str, Any]:
    """Return what a run has saved that was stopped in a window."""
    path = make(tmp_path / "first").fit(loader).checkpoint
    loaded: dict[str, Any] = torch.load(path, weights_only=True)  # type: ignore[arg-type]
    assert loaded["resume"]["train"]["window_batches"] == 1
    return loaded


def test_content_that_is_none_of_ours_is_refused(content: dict[str, Any]) -> None:
    """No resume state, another version, a damaged one or a missing entry: each is told."""
    assert read_resume(PLACE, content).global_step == 2

    with pytest.raises(CheckpointMismatchError, match="resume: is missing"):
        read_resume(PLACE, {"model": {}})
    with pytest.raises(CheckpointVersionError, match="has version 1 "):
        read_resume(PLACE, {**content, "resume": {"version": 1}})
    damaged = {**content["resume"], "phase": "NOWHERE"}
    with pytest.raises(CheckpointDamagedError, match="NOWHERE"):
        read_resume(PLACE, {**content, "resume": damaged})
    del content["best"]
    with pytest.raises(CheckpointMismatchError, match="best: is missing"):
        read_resume(PLACE, content)


DELETED = object()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optimizers", None),
        ("optimizers.0", 3),
        ("optimizers.0.state", DELETED),
        ("optimizers.0.state.state", []),
        ("optimizers.0.state.state.0", 5),
        ("optimizers.0.state.param_groups", "x"),
        ("optimizers.0.state.param_groups.0", []),
        ("optimizers.0.state.param_groups.0.params", DELETED),
        ("optimizers.0.state.param_groups.0.lr", "x"),
        ("optimizers.0.state.param_groups.0.eps", None),
        ("schedulers.0.type", DELETED),
        ("schedulers.0.state.last_epoch", DELETED),
        ("schedulers.0.state.base_lrs", 7),
        ("precision", None),
        ("ema", []),
        ("modes.0", "x"),
        ("trained", 1),
        ("trackers", {}),
        ("guard.losses", 3),
        ("metrics", []),
        ("metrics_bytes", "x"),
        ("ended", 1),
        ("layout", None),
        ("world_size", None),
        ("world_size", 3),
        ("locals", []),
        ("locals.0", 1),
        ("locals.0.rng", DELETED),
        ("locals.0.rng.python", [3, [1], None]),
        ("locals.0.rng.torch_cpu", torch.zeros(3)),
        ("locals.0.rng.cuda", ["x"]),
        ("locals.0.window_samples", "x"),
        ("locals.0.train_means.sums", DELETED),
        ("locals.0.train_means.counts", {"new": "x"}),
        ("locals.0.grads", None),
        ("locals.0.train_cursor", None),
        ("resume.train", "x"),
        ("resume.train.batch_idx", DELETED),
        ("resume.train.is_last", 1),
        ("resume.train.epoch_sums", {"loss": [1.0]}),
    ],
)
def test_malformed_entry_is_named_with_its_file(
    make: MakeTrainer,
    content: dict[str, Any],
    loader: DataLoader[Any],
    tmp_path: Path,
    key: str,
    value: object,
) -> None:
    """Though digest and certificate are right: an error of a checkpoint, no other."""
    changed = copy.deepcopy(content)
    *parents, last = key.split(".")
    parent: Any = changed
    for each in parents:
        parent = parent[int(each) if each.isdigit() else each]
    if value is DELETED:
        del parent[last]
    else:
        parent[int(last) if last.isdigit() else last] = value
    folder = tmp_path / "second" / "checkpoints"
    saver = Saver(folder, CheckpointSettings(), parent=None)
    path = saver.save(changed, epoch=0, global_step=2, metrics={}).path

    with pytest.raises(CheckpointError) as caught:
        make(tmp_path / "second").fit(loader)

    assert caught.value.path == path
    told = "locals.0: not a state of random streams" if ".rng." in key else last
    assert told in str(caught.value).replace("locals:", f"{key}:")


def test_gradient_of_another_shape_is_named(
    make: MakeTrainer, content: dict[str, Any], tmp_path: Path
) -> None:
    """What an object makes of its own state is told under the entry it had."""
    local = content["locals"][0]
    local["grads"] = dict.fromkeys(local["grads"], 3)
    own = locals_of(PLACE, content, 1)[0]

    with pytest.raises(
        CheckpointMismatchError, match=r"locals\.grads\..*: cannot be tak"
    ):
        make(tmp_path / "b")._objects.load_local(PLACE, own, same_number=False)


def test_memory_that_is_used_up_is_no_fault_of_the_file() -> None:
    """Nor is anything else that no content can cause."""
    for error in (torch.OutOfMemoryError("full"), OSError("gone"), KeyboardInterrupt()):
        with pytest.raises(type(error)), reading(PLACE, "model"):
            raise error


@pytest.mark.parametrize("found", [None, 3, [1]])
def test_entries_are_looked_for_in_a_dictionary(found: Any) -> None:
    """Anything else is told with its kind."""
    wanted: Mapping[str, Any] = {"a": ("number",)}

    with pytest.raises(CheckpointMismatchError, match=r"under: is a (none|number|list)"):
        check_kinds(PLACE, "under", found, wanted)
