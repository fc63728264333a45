from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

import pytest

import mtf_gridsearch

HEAVY = {"optuna", "matplotlib", "pyarrow", "numpy", "rich", "pydantic", "yaml"}


def test_version_is_that_of_the_distribution() -> None:
    """The version in the code is the one that installers see."""
    try:
        installed = version("mtf-gridsearch")
    except PackageNotFoundError:
        pytest.skip("the package is not installed here")
    assert mtf_gridsearch.__version__ == installed


@pytest.mark.parametrize("name", mtf_gridsearch.__all__)
def test_each_name_is_there(name: str) -> None:
    """What ``__all__`` lists can be imported, is listed, and stays the same object."""
    assert getattr(mtf_gridsearch, name) is getattr(mtf_gridsearch, name)
    assert name in dir(mtf_gridsearch)


def test_names_are_sorted_and_unique() -> None:
    """``__all__`` is in order, and no name of a module is in it."""
    names = mtf_gridsearch.__all__
    assert names == sorted(set(names))
    assert not {"report", "compare", "importance"} & set(names)


def test_what_is_not_there_is_an_attribute_error() -> None:
    """A wrong name fails as on any module; type checkers know it, too."""
    with pytest.raises(AttributeError, match="has no attribute 'GridSearcher'"):
        _ = mtf_gridsearch.GridSearcher  # type: ignore[attr-defined]


def test_the_import_is_light() -> None:
    """Importing the package loads nothing that is not in the standard library."""
    script = (
        "import sys, mtf_gridsearch; print(*{m.partition('.')[0] for m in sys.modules})"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, encoding="utf-8", check=True
    )
    assert not HEAVY & set(loaded.stdout.split())
