from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mtf_trainer._saving import files
from mtf_trainer._saving.files import (
    checkpoint_name,
    checkpoints_in,
    is_leftover,
    put_in_order,
    writing,
)

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

    monkeypatch.setattr(fcntl, "fcntl", fail)
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


def test_error_without_words_is_told_by_its_class() -> None:
    """An error with no text still says something."""
    assert files.first_line(ValueError("one\ntwo")) == "one"
    assert files.first_line(EOFError()) == "EOFError"


def test_what_an_interrupted_write_left_is_put_in_order(tmp_path: Path) -> None:
    """Folders that were replaced come back, unless they have been; the rest goes."""
    name, other = "epoch_001_step_000001.ckpt", "epoch_001_step_000002.ckpt"
    for left in (f".{name}.old", f".{other}.old", other, f".{other}.tmp", "mine"):
        (tmp_path / left).mkdir()
        (tmp_path / left / left).touch()
    (tmp_path / f".{name}.sha256.tmp").touch()
    (tmp_path / ".latest.ckpt.tmp").symlink_to(other)

    put_in_order(tmp_path)

    assert sorted(path.name for path in tmp_path.iterdir()) == [name, other, "mine"]
    assert (tmp_path / name / f".{name}.old").exists()
    assert (tmp_path / other / other).exists()
