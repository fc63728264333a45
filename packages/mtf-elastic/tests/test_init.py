from importlib.metadata import requires, version

import mtf_elastic


def test_version_is_that_of_the_distribution() -> None:
    """The version in the code is the one that installers see."""
    assert mtf_elastic.__version__ == version("mtf-elastic")


def test_shell_needs_nothing() -> None:
    """The shell declares no dependency that nothing would use."""
    assert requires("mtf-elastic") is None
