from importlib.metadata import requires, version

import mtf_slurm


def test_version_is_that_of_the_distribution() -> None:
    """The version in the code is the one that installers see."""
    assert mtf_slurm.__version__ == version("mtf-slurm")


def test_shell_needs_nothing() -> None:
    """The shell declares no dependency that nothing would use."""
    assert requires("mtf-slurm") is None
