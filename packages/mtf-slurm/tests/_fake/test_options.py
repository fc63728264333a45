from __future__ import annotations

import pytest

from mtf_slurm._fake.options import split_options


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", []),
        (" --a=1  --b ", ["--a=1", "--b"]),
        ("--a=1 # --b", ["--a=1"]),
        ("--a=1#2", ["--a=1#2"]),
        ("--a='x \"y'", ['--a=x "y']),
        ('--a="x\'y" ""', ["--a=x'y", ""]),
        (r"--a=x\ y", ["--a=x y"]),
    ],
)
def test_options_are_split_as_sbatch_does(line: str, words: list[str]) -> None:
    """Quotes, backslashes and comments mean what they mean to sbatch."""
    assert split_options(line) == words
