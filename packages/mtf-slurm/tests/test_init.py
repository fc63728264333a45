from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

import mtf_slurm


def test_version_is_that_of_the_distribution() -> None:
    """The version in the code is the one that installers see."""
    assert mtf_slurm.__version__ == version("mtf-slurm")


def test_names_are_there_when_they_are_used() -> None:
    """Each public name can be had, is listed, and is the one of its module."""
    for name in mtf_slurm.__all__:
        assert getattr(mtf_slurm, name) is not None
        assert name in dir(mtf_slurm)
    assert mtf_slurm.SLURMLauncher.__module__ == "mtf_slurm.launcher"
    with pytest.raises(AttributeError, match="no attribute 'Launcher'"):
        _ = mtf_slurm.Launcher  # type: ignore[attr-defined]


def test_the_import_is_light() -> None:
    """Nothing but the standard library is loaded before a name is used."""
    ask = "import sys, mtf_slurm; print(*{m.partition('.')[0] for m in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", ask],
        check=True,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )
    assert not {"jinja2", "pydantic", "filelock", "subprocess"} & {*done.stdout.split()}
