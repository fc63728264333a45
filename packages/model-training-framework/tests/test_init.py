from importlib.metadata import requires, version

import model_training_framework


def test_version_is_that_of_the_distribution() -> None:
    """The version in the code is the one that installers see."""
    assert model_training_framework.__version__ == version("model-training-framework")


def test_shell_needs_nothing() -> None:
    """The shell declares no dependency that nothing would use."""
    assert requires("model-training-framework") is None
