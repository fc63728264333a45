from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, Sampler, SequentialSampler

from mtf_trainer import (
    CheckpointManager,
    CheckpointMismatchError,
    CheckpointSettings,
    CheckpointWarning,
    DataError,
    GenericTrainer,
    MultiLoader,
)

MakeTrainer = Callable[..., GenericTrainer]


def test_other_order_is_refused_inside_an_epoch(
    make_trainer: MakeTrainer, loader: DataLoader[Any]
) -> None:
    """Another seed would give samples twice; between two epochs it is a warning."""
    make_trainer().fit(loader, max_steps=3)
    with pytest.raises(CheckpointMismatchError, match=r"layout\.seed: was 0 and is 1"):
        make_trainer(seed=1).fit(loader)

    make_trainer().fit(loader)
    with pytest.warns(CheckpointWarning, match="seed was 0 and is 1 from here on"):
        make_trainer(seed=1).fit(loader, max_epochs=2)


@pytest.mark.parametrize(
    ("make_sampler", "told"),
    [
        (SequentialSampler, "sequential"),
        (partial(RandomSampler, replacement=True), "RandomSampler with replacement"),
    ],
)
def test_other_sampler_is_refused_inside_an_epoch(
    make_trainer: MakeTrainer,
    loader: DataLoader[Any],
    make_sampler: Callable[[Any], Sampler[int]],
    told: str,
) -> None:
    """Its rest of the epoch would have samples again; between two epochs it may come."""
    data: Any = loader.dataset
    shuffled = DataLoader(data, 10, shuffle=True)
    other = DataLoader(data, 10, sampler=make_sampler(data))
    make_trainer().fit(shuffled, max_steps=3)
    with pytest.raises(
        CheckpointMismatchError, match=rf"layout\.order: was shuffled and is {told}:"
    ):
        make_trainer().fit(other)

    make_trainer().fit(shuffled)
    with pytest.warns(CheckpointWarning, match=f"order was shuffled and is {told} from"):
        make_trainer().fit(other, max_epochs=2)


def test_checkpoint_that_does_not_tell_its_order_goes_on(
    make_trainer: MakeTrainer, loader: DataLoader[Any], tmp_path: Path
) -> None:
    """Inside an epoch too: it was written before the order was told, plain or several."""
    for name, each in (("one", loader), ("several", MultiLoader({"a": loader}))):
        key = "order" if name == "one" else "a.order"
        first = make_trainer(run_dir=tmp_path / name).fit(each, max_steps=3)
        assert first.checkpoint is not None
        content = torch.load(first.checkpoint, weights_only=True)
        del content["layout"][key]
        settings = CheckpointSettings(asynchronous=False)
        with CheckpointManager(first.checkpoint.parent, settings) as manager:
            manager.save(content, epoch=0, global_step=3, metrics={})

        result = make_trainer(run_dir=tmp_path / name).fit(each)

        assert result.resumed_from == first.checkpoint
        assert result.epoch == 1


def test_other_model_is_refused_and_unchanged(
    make_trainer: MakeTrainer, loader: DataLoader[Any]
) -> None:
    """A checkpoint that does not fit names file and key, and touches nothing."""
    make_trainer().fit(loader)
    other = nn.Linear(4, 2)
    before = other.weight.detach().clone()

    with pytest.raises(
        CheckpointMismatchError, match=r"\.ckpt: model\.weight: is missing"
    ):
        make_trainer(model=other).fit(loader)

    assert torch.equal(other.weight, before)


def test_other_number_of_processes_is_told(
    make_trainer: MakeTrainer, loader: DataLoader[Any], tmp_path: Path
) -> None:
    """Going on from a checkpoint of two processes with one works, with a warning."""
    trainer = make_trainer()
    path = trainer.fit(loader).checkpoint
    assert path is not None
    content = torch.load(path, weights_only=True)
    content["locals"] *= 2
    content["world_size"] = 2
    settings = CheckpointSettings(asynchronous=False)
    with CheckpointManager(path.parent, settings) as manager:
        manager.save(content, epoch=1, global_step=6, metrics={})

    with pytest.warns(
        CheckpointWarning, match="written by 2 processes and is continued by 1"
    ):
        result = make_trainer().fit(loader, max_epochs=2)

    assert result.epoch == 2
    assert (tmp_path / "run").is_dir()


def test_place_in_the_data_that_is_none_is_told_with_its_file(
    make_trainer: MakeTrainer, loader: DataLoader[Any]
) -> None:
    """The error names the checkpoint and the entry, not the data set alone."""
    first = make_trainer().fit(loader, max_steps=3)
    assert first.checkpoint is not None
    content = torch.load(first.checkpoint, weights_only=True)
    content["locals"][0]["train_cursor"] = {"samples": -1}
    settings = CheckpointSettings(asynchronous=False)
    with CheckpointManager(first.checkpoint.parent, settings) as manager:
        manager.save(content, epoch=0, global_step=3, metrics={})

    told = rf"{first.checkpoint.name}: locals\.train_cursor: .* no place in an order"
    with pytest.raises(DataError, match=told):
        make_trainer().fit(loader)
