from __future__ import annotations

import os
from pathlib import Path

import pytest

from mtf_trainer._saving.ledger import LEDGER, Ledger


def test_lines_come_back(tmp_path: Path) -> None:
    """What is appended is read in order; without a file there is nothing."""
    ledger = Ledger(tmp_path)
    assert ledger.read() == []
    ledger.cut()
    assert not ledger.path.exists()

    ledger.append([{"name": "a"}, {"name": "b"}])
    ledger.append([{"name": "c", "values": {"loss": None}}])

    assert [row["name"] for row in ledger.read()] == ["a", "b", "c"]
    assert (tmp_path / LEDGER).read_bytes().count(b"\n") == 3


@pytest.mark.parametrize("size", [1, 10, 5000, 20_000])
def test_torn_line_is_cut_off(tmp_path: Path, size: int) -> None:
    """A last line without an end, however long, is no line, and is replaced by the next."""
    ledger = Ledger(tmp_path)
    ledger.append([{"name": "a"}])
    whole = ledger.path.read_bytes()
    ledger.path.write_bytes(whole + b"x" * size)
    assert [row["name"] for row in ledger.read()] == ["a"]

    ledger.cut()
    assert ledger.path.read_bytes() == whole

    ledger.path.write_bytes(whole + b"x" * size)
    ledger.append([{"name": "b"}])
    assert ledger.path.read_bytes() == whole + b'{"name": "b"}\n'


def test_file_that_is_all_torn_becomes_empty(tmp_path: Path) -> None:
    """The first line of all may be torn too."""
    ledger = Ledger(tmp_path)
    ledger.path.write_bytes(b"y" * 9000)

    ledger.cut()

    assert ledger.path.read_bytes() == b""


def test_foreign_lines_are_left_out(tmp_path: Path) -> None:
    """What is no JSON object is not read, and is not deleted either."""
    ledger = Ledger(tmp_path)
    ledger.path.write_bytes(b'[1]\n\xff\n{"name": "a"}\n')

    ledger.append([{"name": "b"}])

    assert [row["name"] for row in ledger.read()] == ["a", "b"]
    assert ledger.path.read_bytes().startswith(b"[1]\n\xff\n")


def test_line_that_does_not_fit_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the disk fills up half way through a line, the file is as before."""
    ledger = Ledger(tmp_path)
    ledger.append([{"name": "a"}])
    before = ledger.path.read_bytes()
    write = os.write

    def half(fd: int, data: memoryview) -> int:
        if len(data) < 8:
            raise OSError(28, "No space left on device")
        return write(fd, data[:8])

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(OSError, match="No space"):
        ledger.append([{"name": "bb"}])
    monkeypatch.undo()

    assert ledger.path.read_bytes() == before
