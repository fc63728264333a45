from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import pytest
import torch

from mtf_trainer import _files
from mtf_trainer._encryption import EncryptingFile, Keyring
from mtf_trainer._files import (
    check_digest,
    checkpoint_name,
    checkpoints_in,
    digest_line,
    digest_path,
    is_leftover,
    load_content,
    put_digests,
    sha256,
    writing,
)
from mtf_trainer.errors import CheckpointDamagedError

HOLD = (
    "import fcntl, sys\n"
    "file = open(sys.argv[1] + '/.lock', 'w', encoding='utf-8')\n"
    "fcntl.lockf(file, fcntl.LOCK_EX)\n"
    "print('held', flush=True)\n"
    "sys.stdin.readline()\n"
)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Run another process that writes to the folder until told to end."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_one_process_writes_at_a_time(
    tmp_path: Path, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is free once the other process is done, and not before."""
    with pytest.raises(TimeoutError, match="another process has been writing"):
        writing(tmp_path, deadline_s=0).__enter__()
    waits: list[int] = []

    def end_it(_: float) -> None:
        waits.append(0)
        if len(waits) == 1:
            holder.kill()
            waits[0] = holder.wait(60)

    monkeypatch.setattr("time.sleep", end_it)
    with writing(tmp_path, deadline_s=60):
        assert waits[0] == -9


@pytest.mark.parametrize(("number", "is_told"), [(37, False), (38, False), (5, True)])
def test_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, *, is_told: bool
) -> None:
    """Where there are no locks none are needed; another error is told."""

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", fail)
    if is_told:
        with pytest.raises(OSError, match="Input/output"), writing(tmp_path):
            pass
    else:
        with writing(tmp_path):
            pass


def test_names_are_sorted_by_number(tmp_path: Path) -> None:
    """Epoch 1000 is newer than epoch 999, and other files are no checkpoints."""
    for epoch in (999, 1000, 7):
        (tmp_path / checkpoint_name(epoch, 1)).touch()
    for name in ("latest.ckpt", "epoch_1_step_1.ckpt", "chain.jsonl"):
        (tmp_path / name).touch()

    found = [path.name for path in checkpoints_in(tmp_path)]

    assert found == [checkpoint_name(n, 1) for n in (1000, 999, 7)]
    assert checkpoints_in(tmp_path / "none") == []


def test_leftovers_are_told_from_the_rest(tmp_path: Path) -> None:
    """Files aside and digests of nothing may go; what has a file, or is not ours, stays."""
    path = tmp_path / checkpoint_name(1, 2)
    path.touch()
    names = {
        path.name: False,
        f"{path.name}.sha256": False,
        f".{path.name}.tmp": True,
        f".{path.name}.sha256.tmp": True,
        ".latest.ckpt.tmp": True,
        f"{checkpoint_name(2, 2)}.sha256": True,
        "model.sha256": False,
        ".notes.tmp": False,
    }

    assert {name: is_leftover(tmp_path / name) for name in names} == names


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


def test_error_without_words_is_told_by_its_class() -> None:
    """An error with no text still says something."""
    assert _files.first_line(ValueError("one\ntwo")) == "one"
    assert _files.first_line(EOFError()) == "EOFError"


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
