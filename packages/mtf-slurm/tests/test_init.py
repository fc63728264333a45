from importlib.metadata import version

import mtf_slurm


def test_version_is_that_of_the_distribution() -> None:
    """The version in the code is the one that installers see."""
    assert mtf_slurm.__version__ == version("mtf-slurm")
