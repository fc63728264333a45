from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mtf_trainer import CheckpointManager, CheckpointSettings, CheckpointWarning
from mtf_trainer._saving.certified import check_certificate
from mtf_trainer._saving.files import put_digests, sha256
from mtf_trainer._saving.saver import Saver
from mtf_trainer.certificate import certify
from mtf_trainer.errors import CheckpointDamagedError


def test_certificate_is_of_what_is_there() -> None:
    """One of other weights, of another form, or none at all, is damage, and told."""
    path = Path("x.ckpt")
    content: dict[str, Any] = {"model": {"w": torch.ones(2)}, "best": 1.0}
    own = certify(content, metrics_digest=None, parent=None).to_plain()

    check_certificate(path, {**content, "certificate": own})

    changed = {**content, "model": {"w": torch.zeros(2)}, "certificate": own}
    with pytest.raises(
        CheckpointDamagedError, match=r"certificate: is not of .*: weights"
    ):
        check_certificate(path, changed)
    for wrong in (None, 3, {**own, "rng": "x"}, {**own, "version": 2}):
        with pytest.raises(
            CheckpointDamagedError, match=r"x\.ckpt: certificate: .*a cert"
        ):
            check_certificate(path, {**content, "certificate": wrong})
    with pytest.raises(CheckpointDamagedError, match=r"certificate: .*holds"):
        check_certificate(path, {**content, "best": object(), "certificate": own})


def test_run_does_not_start_from_what_was_not_certified(tmp_path: Path) -> None:
    """Though file and digest fit each other: the checkpoint before it is taken."""
    folder, settings = tmp_path / "checkpoints", CheckpointSettings(asynchronous=False)
    saver = Saver(folder, settings, parent=None)
    older, newer = (
        saver.save(
            {"model": {"w": torch.full((2,), step)}},
            epoch=1,
            global_step=step,
            metrics={},
        ).path
        for step in (1, 2)
    )
    content = torch.load(newer, weights_only=True)
    content["model"]["w"] += 1
    torch.save(content, newer)
    put_digests(newer, [sha256(newer)])

    with pytest.warns(CheckpointWarning, match=r"000002\.ckpt: certificate: .*weights"):
        found = CheckpointManager(folder, settings).load_newest()

    assert found is not None
    assert found[0] == older


def test_renamed_checkpoint_is_not_taken_for_the_newest(tmp_path: Path) -> None:
    """Though file and digest fit each other: the newest of its own name is taken."""
    folder, settings = tmp_path / "checkpoints", CheckpointSettings(asynchronous=False)
    saver = Saver(folder, settings, parent=None)
    older, newer = (
        saver.save(
            {"resume": {"epoch": 1, "global_step": step}},
            epoch=1,
            global_step=step,
            metrics={},
        ).path
        for step in (1, 2)
    )
    renamed = folder / "epoch_009_step_000099.ckpt"
    shutil.copy(older, renamed)
    put_digests(renamed, [sha256(renamed)])

    with pytest.warns(
        CheckpointWarning,
        match=r"epoch_009_step_000099\.ckpt: .* epoch_001_step_000001\.ckpt",
    ):
        found = CheckpointManager(folder, settings).load_newest()

    assert found is not None
    assert found[0] == newer
    # A link, or a name of the user's, says nothing of what it holds.
    shutil.copy(older, folder / "mine.ckpt")
    put_digests(folder / "mine.ckpt", [sha256(older)])
    manager = CheckpointManager(folder, settings)
    assert manager.load(folder / "mine.ckpt")["resume"]["global_step"] == 1
