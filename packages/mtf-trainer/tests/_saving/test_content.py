from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, cast

import pytest
import torch

from mtf_trainer._saving.content import check_digest, load_content
from mtf_trainer._saving.encryption import EncryptingFile, Keyring
from mtf_trainer._saving.files import (
    checkpoint_name,
    digest_line,
    digest_path,
    put_digests,
    sha256,
)
from mtf_trainer.errors import CheckpointDamagedError


def test_either_of_two_digests_will_do(tmp_path: Path) -> None:
    """While one is replaced, both the old and the new content are whole; a third is not."""
    path = tmp_path / checkpoint_name(1, 2)
    digests = []
    for content in (b"old", b"new", b"other"):
        path.write_bytes(content)
        digests.append(sha256(path))
    put_digests(path, digests[:2])

    for content in (b"old", b"new"):
        path.write_bytes(content)
        check_digest(path)
    path.write_bytes(b"other")
    with pytest.raises(
        CheckpointDamagedError, match=f"its sha256 is {digests[2]}, .* or {digests[1]}"
    ):
        check_digest(path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "zz",
        "{digest}",
        digest_line("{digest}", "other.ckpt"),
        "{line}{line}x\n",
        "\n",
    ],
)
def test_damaged_digest(tmp_path: Path, text: str) -> None:
    """What is not lines of digests of this very file is damaged, not guessed at."""
    path = tmp_path / checkpoint_name(1, 2)
    path.write_bytes(b"content")
    line = digest_line(sha256(path), path.name)
    digest_path(path).write_text(text.format(digest=sha256(path), line=line), "utf-8")

    with pytest.raises(CheckpointDamagedError, match="sha256 is damaged"):
        check_digest(path)


def test_encrypted_file_that_breaks_off_inside(tmp_path: Path) -> None:
    """A chunk in the middle that was altered is told as such, not as torch sees it."""
    keys = Keyring([bytes(32)], "a test")
    path = tmp_path / checkpoint_name(1, 2)
    with path.open("wb") as file:
        writer = EncryptingFile(file, keys, chunk_bytes=1000)
        torch.save({"weight": torch.zeros(5000)}, cast(BinaryIO, writer))
        writer.finish()
    assert load_content(path, keys)["weight"].shape == (5000,)
    stored = bytearray(path.read_bytes())
    stored[10_000] ^= 1
    path.write_bytes(stored)

    for device in ("cpu", "meta"):
        with pytest.raises(
            CheckpointDamagedError, match=r"cannot be decrypted: chunk 9 of \d+ is not"
        ):
            load_content(path, keys, device=device)


def test_too_little_memory_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint that does not fit into memory is not passed over as damaged."""

    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    path = tmp_path / checkpoint_name(1, 2)
    path.touch()
    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(MemoryError):
        load_content(path, None)
