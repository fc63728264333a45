import importlib
import pkgutil
import subprocess
import sys
from importlib.metadata import version

import pytest

import mtf_config


def test_all_is_sorted_and_true() -> None:
    """Every promised name exists, and they are in order."""
    assert mtf_config.__all__ == sorted(mtf_config.__all__)
    assert all(hasattr(mtf_config, name) for name in mtf_config.__all__)


def test_version_is_the_installed_one() -> None:
    """The module and the package's metadata agree."""
    assert mtf_config.__version__ == version("mtf-config")


@pytest.mark.parametrize(
    "name", sorted(m.name for m in pkgutil.iter_modules(mtf_config.__path__))
)
def test_every_module_promises_names_that_exist(name: str) -> None:
    """No module exports what it does not have."""
    if name == "hydra":
        pytest.importorskip("hydra")
    module = importlib.import_module(f"mtf_config.{name}")
    assert module.__doc__
    assert all(hasattr(module, item) for item in module.__all__)


def test_import_is_light() -> None:
    """Importing loads no heavy library, starts no thread and touches no environment."""
    code = """
import os, sys, threading
before = dict(os.environ)
import mtf_config
heavy = {"torch", "numpy", "hydra", "omegaconf", "pandas", "lightning"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert dict(os.environ) == before
assert threading.active_count() == 1
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
