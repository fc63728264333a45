from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtf_slurm.errors import SubmissionError
from mtf_slurm.experiments import checked_entry_point, checked_name, write_config

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
        write_config(tmp_path / "e", experiment("e"))
