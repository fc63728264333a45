from __future__ import annotations

import re
from pathlib import Path

from mtf_gridsearch import errors
from mtf_gridsearch.errors import InvalidExperimentsError, Problem, SearchBusyError


def test_the_tree_at_the_top_is_that_of_the_classes() -> None:
    """Names and depth in the module's docstring are those of the code."""
    drawn = re.findall(r"^( *)\* (\w+)", errors.__doc__ or "", flags=re.MULTILINE)

    assert sorted([*(name for _, name in drawn), "Problem"]) == errors.__all__
    for indent, name in drawn:
        depth = getattr(errors, name).__mro__.index(errors.GridSearchError)
        assert len(indent) // 2 == depth


def test_problems_are_told_line_by_line() -> None:
    """A parameter's key comes first, where the problem is about one."""
    problems = [
        Problem(parameters="lr=-1", key="lr", reason="must be above 0"),
        Problem(parameters="lr=1", key="", reason="fits nothing"),
    ]

    error = InvalidExperimentsError(problems, 7)

    assert str(error).splitlines() == [
        "7 experiments do not fit the base config:",
        "  lr: must be above 0 (in lr=-1)",
        "  fits nothing (in lr=1)",
    ]


def test_an_error_of_a_folder_names_it() -> None:
    """The folder stands before the reason."""
    assert str(SearchBusyError(Path("a"), "held by 7")) == "a: held by 7"
