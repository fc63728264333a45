from importlib.metadata import requires, version

import mtf_gridsearch


def test_version_is_that_of_the_distribution() -> None:
    """The version in the code is the one that installers see."""
    assert mtf_gridsearch.__version__ == version("mtf-gridsearch")


def test_shell_needs_nothing() -> None:
    """The shell declares no dependency that nothing would use."""
    assert requires("mtf-gridsearch") is None
