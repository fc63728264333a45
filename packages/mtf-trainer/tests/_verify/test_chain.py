from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from mtf_trainer._verify import chain as chain_module
from mtf_trainer._verify.chain import read_chain
from mtf_trainer.certificate import certify


def row(**changes: Any) -> dict[str, Any]:
    """Return a good line, but for *changes*."""
    certificate = certify({}, metrics_digest=None, parent=None)
    plain = {"name": "epoch_001_step_000003.ckpt", "epoch": 1, "global_step": 3}
    return plain | {"values": {}} | certificate.to_plain() | changes


def write(path: Path, *rows: Any, end: bytes = b"") -> Path:
    """Write *rows*, as JSON but for bytes, a line each, and then *end*."""
    lines = [
        each if isinstance(each, bytes) else json.dumps(each).encode() for each in rows
    ]
    path.write_bytes(b"".join(line + b"\n" for line in lines) + end)
    return path


def test_lines_are_read_in_order(tmp_path: Path) -> None:
    """Each line becomes a link with its number; other keys in it are passed over."""
    second = row(name="epoch_001_step_1234567.ckpt", global_step=1234567)

    chain = read_chain(write(tmp_path / "chain.jsonl", row(), second))

    assert [link.number for link in chain.links] == [1, 2]
    assert [link.global_step for link in chain.links] == [3, 1234567]
    assert chain.links[0].certificate.is_consistent
    assert not chain.problems
    assert not chain.is_torn


def test_torn_last_line_is_no_problem(tmp_path: Path) -> None:
    """A line without an end, as a kill leaves it, is passed over and told of."""
    torn = json.dumps(row()).encode()
    for end in (torn[:50], torn):
        chain = read_chain(write(tmp_path / "chain.jsonl", row(), end=end))

        assert len(chain.links) == 1
        assert chain.is_torn
        assert not chain.problems


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"1" * 10_000, "no JSON"),
        (b"[]", "no JSON object"),
        (b"null", "no JSON object"),
        (row(epoch=True), "epoch is no count"),
        (row(epoch=-1), "epoch is no count"),
        (row(global_step=2**62), "global_step is no count"),
        (row(global_step="3"), "global_step is no count"),
        (row(name="../../epoch_001_step_000003.ckpt"), "must have the name"),
        (row(name="epoch_001_step_000004.ckpt"), "must have the name"),
        (row(name=None), "must have the name"),
        (row(weights="x"), "weights is no SHA-256"),
        (row(version=9), "version 9"),
    ],
)
def test_hostile_line_is_named_and_passed_over(
    tmp_path: Path, line: Any, told: str
) -> None:
    """A line that nobody here wrote is a problem with its number; the others are read."""
    chain = read_chain(write(tmp_path / "chain.jsonl", row(), line, row()))

    (problem,) = chain.problems
    assert problem.place == "chain.jsonl, line 2"
    assert told in problem.what
    assert [link.number for link in chain.links] == [1, 3]


@pytest.mark.parametrize("size", [101, 150, 5000])
def test_endless_line_takes_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """A line that is longer than any written here is read in parts, and refused."""
    monkeypatch.setattr(chain_module, "_MAX_LINE_BYTES", 100)

    chain = read_chain(write(tmp_path / "chain.jsonl", b"x" * size, b"[]"))

    assert [problem.place[-6:] for problem in chain.problems] == ["line 1", "line 2"]
    assert "too long" in chain.problems[0].what


def test_missing_file_and_pipe_are_problems(tmp_path: Path) -> None:
    """Without a file there is nothing to read; nothing waits for a pipe to be written."""
    path = tmp_path / "chain.jsonl"
    assert read_chain(path).problems[0].what == "is missing"

    os.mkfifo(path)
    assert read_chain(path).problems[0].what == "is not a file"
