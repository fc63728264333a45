from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mtf_slurm.errors import SubmissionError
from mtf_slurm.experiments import (
    checked_entry_point,
    checked_name,
    config_text,
    dumped,
    has_other_config,
    write_text,
)

HOSTILE = ("", ".", "../x", "a/b", "-x", "a b", "a\n", "$(x)", "é", "x" * 129, 3, None)


@pytest.mark.parametrize("name", HOSTILE)
def test_names_that_are_none(name: object) -> None:
    """What could be more than a name anywhere is refused."""
    with pytest.raises(SubmissionError, match="this name is refused"):
        checked_name(name)


@pytest.mark.parametrize("name", ["a", "A.b-c_1", "x" * 128])
def test_names(name: str) -> None:
    """What is a name stays as it is."""
    assert checked_name(name) == name


@pytest.mark.parametrize(
    "entry_point",
    [
        "../x.py",
        "x;y.py",
        "-x.py",
        "a/../b.py",
        "os",
        "a:b:c",
        "os:system",
        "a b:c",
        "/a\nb",
        3,
    ],
)
def test_entry_points_that_are_none(entry_point: object) -> None:
    """Neither a path out of the project nor a command can be run."""
    with pytest.raises(SubmissionError, match="e: entry_point is"):
        checked_entry_point("e", entry_point)


@pytest.mark.parametrize("entry_point", ["t.py", "a/b-c.py", "a.b:c", "/x y/t.py", None])
def test_entry_points(entry_point: str | None) -> None:
    """Scripts and functions stay as they are."""
    assert checked_entry_point("e", entry_point) == entry_point


def test_a_config_that_cannot_be_written(
    tmp_path: Path, experiment: Callable[..., Any]
) -> None:
    """It is named, with the reason."""
    (tmp_path / "e").touch()
    with pytest.raises(SubmissionError, match=r"config\.yaml cannot be written"):
        write_text(tmp_path / "e", "e", config_text(experiment("e")))


def test_a_disk_that_is_full(tmp_path: Path, experiment: Callable[..., Any]) -> None:
    """The config that was there stays, the reason is said, and nothing is left beside it."""
    write_text(tmp_path / "e", "e", config_text(experiment("e", do="old")))
    before = (tmp_path / "e" / "config.yaml").read_bytes()
    (tmp_path / "e" / f".config.{os.getpid()}").symlink_to("/dev/full")
    with pytest.raises(SubmissionError, match=r"config\.yaml cannot be .*No space left"):
        write_text(tmp_path / "e", "e", config_text(experiment("e", do="new")))
    assert (tmp_path / "e" / "config.yaml").read_bytes() == before
    assert [path.name for path in (tmp_path / "e").iterdir()] == ["config.yaml"]


def test_configs_are_written_where_there_is_another(
    tmp_path: Path, experiment: Callable[..., Any]
) -> None:
    """Folders are made; the same text is left alone, and another is replaced."""
    folder = tmp_path / "deep" / "er" / "e"
    write_text(folder, "e", config_text(experiment("e")))
    inode = (folder / "config.yaml").stat().st_ino
    write_text(folder, "e", config_text(experiment("e")))
    assert (folder / "config.yaml").stat().st_ino == inode
    write_text(folder, "e", config_text(experiment("e", do="fail")))
    assert (folder / "config.yaml").stat().st_ino != inode
    (folder / "config.yaml").write_bytes(b"\xff")
    with pytest.raises(SubmissionError, match=r"config\.yaml cannot be written: .*utf-8"):
        write_text(folder, "e", "{}")


def loop() -> list[Any]:
    """Return a list that is in itself."""
    values: list[Any] = []
    values.append(values)
    return values


@pytest.mark.parametrize("value", [float("nan"), {1}, loop()])
def test_configs_that_json_cannot_hold(
    value: object, experiment: Callable[..., Any]
) -> None:
    """They are refused, rather than written as something else."""
    made = experiment("e")
    made.values["x"] = value
    with pytest.raises(SubmissionError, match="e: its config is not what JSON can hold"):
        config_text(made)


@dataclass
class Odd:
    """An experiment whose config is *answer*, or raises it."""

    answer: Any
    experiment_name: str = "odd"

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        assert mode == "json"
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (ZeroDivisionError("by zero"), "cannot be dumped: ZeroDivisionError: by zero"),
        (None, "is dumped as NoneType"),
        ([1], "is dumped as list"),
    ],
)
def test_configs_that_are_not_dumped(answer: object, said: str) -> None:
    """Whatever goes wrong there is the experiment's error, with what it was."""
    with pytest.raises(SubmissionError, match=f"odd: its config {said}"):
        dumped(Odd(answer))


@pytest.mark.parametrize(
    ("there", "is_other"),
    [
        ('{"b": 2, "a": 1.0}', False),
        ('{"a": 1, "b": 3}', True),
        ("[]", True),
        ("a: 1\nb: 3\n", False),
        (None, False),
        ("[" * 100_000, False),
    ],
)
def test_whether_a_config_is_another(
    there: str | None, *, is_other: bool, tmp_path: Path
) -> None:
    """Values count, not their order; what is no JSON is not judged."""
    if there is not None:
        (tmp_path / "config.yaml").write_text(there, encoding="utf-8")
    assert has_other_config(tmp_path, '{"a": 1, "b": 2}') is is_other
