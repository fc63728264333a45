from __future__ import annotations

import re
from pathlib import Path

import pytest

from mtf_slurm import errors


def depth(error: type) -> int:
    """Return how far below the base of the package's errors a class is."""
    return error.__mro__.index(errors.MtfSlurmError)


def test_the_tree_at_the_top_is_that_of_the_classes() -> None:
    """Names, order and depth in the module's docstring are those of the code."""
    drawn = re.findall(r"^( *)\* (\w+)", errors.__doc__ or "", flags=re.MULTILINE)

    assert sorted(name for _, name in drawn) == errors.__all__
    for indent, name in drawn:
        assert len(indent) // 2 == depth(getattr(errors, name))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            errors.SchedulerCommandError(["sbatch", "a b"], 1, "no\n"),
            "no (`sbatch 'a b'` exited 1)",
        ),
        (
            errors.SchedulerUnreachableError(["squeue"], "not on PATH"),
            "no answer: not on PATH (`squeue`)",
        ),
        (
            errors.UnreadableReplyError(["sacct"], "?"),
            "cannot parse the reply of `sacct`: '?'",
        ),
        (errors.TemplateError("x.sbatch:3", "unknown"), "x.sbatch:3: unknown"),
        (
            errors.SchedulerCommandError(["sbatch"], 1, "a: no\n\n b: never "),
            "a: no; b: never (`sbatch` exited 1)",
        ),
        (errors.SchedulerCommandError(["x"], 2, ""), "nothing was said (`x` exited 2)"),
        (
            errors.UnreadableReplyError(["sacct", "9" * 99], "?" * 600),
            f"cannot parse the reply of `sacct {'9' * 74} ...`: '{'?' * 500}'...",
        ),
        (errors.SubmissionError("exp_001", "refused"), "exp_001: refused"),
        (errors.SubmissionError("exp_001", "exp_001: refused"), "exp_001: refused"),
        (errors.SnapshotError(Path("repo"), "is bare"), "repo: is bare"),
        (errors.GitLockTimeoutError("lock", "held"), "lock: held"),
    ],
)
def test_an_error_says_what_and_where(error: errors.MtfSlurmError, told: str) -> None:
    """Each is told in one line that names the place."""
    assert str(error) == told
