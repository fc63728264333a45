from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mtf_trainer._saving.encryption import generate_key
from mtf_trainer._saving.saver import Saver
from mtf_trainer._saving.weights import LoadReport, load_weights
from mtf_trainer.config import CheckpointSettings
from mtf_trainer.errors import (
    CheckpointDamagedError,
    CheckpointMismatchError,
    EncryptionError,
)

SETTINGS = CheckpointSettings(asynchronous=False)


class Whole(nn.Module):
    """An encoder with a head."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.first = nn.Linear(4, 5)
        self.encoder = nn.Sequential(self.first, nn.BatchNorm1d(5))
        self.head = nn.Linear(5, classes)


def save(
    folder: Path, model: nn.Module, settings: CheckpointSettings = SETTINGS, **more: Any
) -> Path:
    """Save *model* as a run would."""
    content = {"model": model.state_dict(), "ema": None, **more}
    saver = Saver(folder / "checkpoints", settings, parent=None)
    return saver.save(content, epoch=1, global_step=1, metrics={}).path


def states(model: nn.Module) -> dict[str, Any]:
    """Return a copy of all that *model* holds."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_all_of_a_model(tmp_path: Path) -> None:
    """A model of the same kind gets every tensor, buffers included."""
    torch.manual_seed(0)
    trained, model = Whole(), Whole()
    trained.encoder(torch.randn(8, 4))
    path = save(tmp_path, trained)

    assert load_weights(path, model) == LoadReport()

    for name, value in trained.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


def test_strict_names_what_differs_and_changes_nothing(tmp_path: Path) -> None:
    """Missing, unexpected and mismatched entries are all named in one error."""
    path = save(tmp_path, Whole(classes=7))
    model = Whole(classes=3)
    model.extra = nn.Linear(1, 1)
    del model.encoder[1]
    before = states(model)

    with pytest.raises(CheckpointMismatchError) as caught:
        load_weights(path, model)

    told = str(caught.value)
    assert "the checkpoint lacks extra.weight, extra.bias" in told
    assert "the model lacks encoder.1.weight" in told
    assert "head.weight (has shape (7, 5), the model needs (3, 5))" in told
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_not_strict_takes_what_fits(tmp_path: Path) -> None:
    """A new head of another size stays as it is, and the report says so."""
    torch.manual_seed(1)
    trained, model = Whole(classes=7), Whole(classes=3)
    head = model.head.weight.clone()
    path = save(tmp_path, trained)

    report = load_weights(path, model, strict=False)

    assert report == LoadReport(mismatched=("head.weight", "head.bias"))
    assert torch.equal(model.first.weight, trained.first.weight)
    assert torch.equal(model.head.weight, head)


def test_prefix_takes_a_part(tmp_path: Path) -> None:
    """An encoder alone is filled from a whole model, and the rest is not looked at."""
    torch.manual_seed(2)
    trained, fresh = Whole(), Whole()
    encoder = fresh.encoder
    path = save(tmp_path, trained)

    assert load_weights(path, encoder, prefix="encoder.") == LoadReport()
    assert torch.equal(fresh.first.weight, trained.first.weight)
    with pytest.raises(CheckpointMismatchError, match=r"the checkpoint lacks 0.weight"):
        load_weights(path, encoder, prefix="decoder.")


def test_nothing_that_fits_is_an_error(tmp_path: Path) -> None:
    """Even when not strict, to load nothing at all is no success."""
    path = save(tmp_path, Whole())

    with pytest.raises(
        CheckpointMismatchError, match=r"no entry that fits .* 'nothing.'"
    ):
        load_weights(path, Whole(), strict=False, prefix="nothing.")
    with pytest.raises(CheckpointMismatchError, match=r"no entry that fits the model$"):
        load_weights(path, nn.Linear(1, 1), strict=False)


def test_many_names_are_cut_short(tmp_path: Path) -> None:
    """An error about a thousand entries stays readable."""
    path = save(tmp_path, nn.Linear(1, 1))
    model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(8)))

    with pytest.raises(CheckpointMismatchError, match=r"4.bias and 6 more;"):
        load_weights(path, model)


def test_moving_average(tmp_path: Path) -> None:
    """The average is taken where there is one of an entry, and demanded if asked for."""
    trained, model = Whole(), Whole()
    average = {"head.weight": torch.full((3, 5), 9.0)}
    path = save(tmp_path / "a", trained, ema=average)

    load_weights(path, model, use_ema=True)
    assert torch.equal(model.head.weight, average["head.weight"])
    assert torch.equal(model.head.bias, trained.head.bias)
    load_weights(path, model)
    assert torch.equal(model.head.weight, trained.head.weight)
    with pytest.raises(CheckpointMismatchError, match="no moving average"):
        load_weights(save(tmp_path / "b", trained), model, use_ema=True)


def test_what_is_no_checkpoint_of_ours(tmp_path: Path) -> None:
    """A file of something else is told as such."""
    path = tmp_path / "other.pt"
    torch.save({"state_dict": {}}, path)
    with pytest.raises(CheckpointMismatchError, match="no checkpoint of mtf-trainer"):
        load_weights(path, Whole())
    path.write_bytes(b"text")
    with pytest.raises(CheckpointDamagedError, match="cannot be loaded as plain data"):
        load_weights(path, Whole())
    with pytest.raises(CheckpointDamagedError, match="cannot be read: No such file"):
        load_weights(tmp_path / "none", Whole())


def test_a_digest_is_checked_where_there_is_one(tmp_path: Path) -> None:
    """A file that was copied alone loads; one that differs from its digest does not."""
    path = save(tmp_path, Whole())
    alone = tmp_path / "alone.ckpt"
    alone.write_bytes(path.read_bytes())
    load_weights(alone, Whole())

    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(CheckpointDamagedError, match="its sha256 is"):
        load_weights(path, Whole())
    path.with_name(f"{path.name}.sha256").unlink()
    path.with_name(f"{path.name}.sha256").symlink_to(tmp_path)
    with pytest.raises(CheckpointDamagedError, match="is missing"):
        load_weights(path, Whole())


def test_digest_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of the file system is told by name."""
    path = save(tmp_path, Whole())

    def fail(_: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("mtf_trainer._saving.weights.check_digest", fail)
    with pytest.raises(CheckpointDamagedError, match="cannot be read: Input/output"):
        load_weights(path, Whole())


def test_encrypted(tmp_path: Path) -> None:
    """The keys that settings name decrypt; without them that is what the error says."""
    keys = tmp_path / "keys"
    keys.write_text(generate_key(), "utf-8")
    keys.chmod(0o600)
    settings = CheckpointSettings(encryption_key_file=keys)
    path = save(tmp_path, Whole(), settings)

    assert load_weights(path, Whole(), settings=settings) == LoadReport()
    with pytest.raises(EncryptionError, match="no keys are given"):
        load_weights(path, Whole())
