from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

import mtf_trainer


def test_names_are_there_once() -> None:
    """Every public name resolves, is listed by dir, and stands there once."""
    assert len(mtf_trainer.__all__) == len(set(mtf_trainer.__all__))
    for name in mtf_trainer.__all__:
        assert getattr(getattr(mtf_trainer, name), "__name__", name) == name
    assert set(mtf_trainer.__all__) <= set(dir(mtf_trainer))


def test_unknown_name_is_an_attribute_error() -> None:
    """A name that is not there is reported as by any module."""
    with pytest.raises(AttributeError, match="no attribute 'Trainer'"):
        _ = mtf_trainer.Trainer  # type: ignore[attr-defined]


def test_version_is_the_distributions() -> None:
    """The version in the code is the one that is installed."""
    assert mtf_trainer.__version__ == version("mtf-trainer")


def test_import_loads_no_torch() -> None:
    """Config, errors, phases and reading of metrics come without torch."""
    code = (
        "import sys, mtf_trainer\n"
        "mtf_trainer.GenericTrainerConfig, mtf_trainer.Phase, mtf_trainer.read_metrics\n"
        "heavy = {'torch', 'lightning', 'numpy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
