"""Errors of ``mtf-gridsearch``.

* GridSearchError
  * GridError               a grid, or a file that describes one, is wrong at one place
    * ExpressionError       a condition or a constraint cannot be read or evaluated
  * NamingError             a name cannot be made, or be read back
  * InvalidExperimentsError parameters do not fit the base config; carries every problem
  * SearchFolderError       the folder of a search cannot be used
    * SearchMismatchError   it belongs to another search, or another base config
    * SearchBusyError       another process runs it
    * DamagedJournalError   what it says of its experiments cannot be read
  * LauncherError           a launcher cannot do what was asked
  * ResultsError            results lack what was asked of them

A bad argument is a plain `ValueError` or `TypeError`: the caller's bug.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "DamagedJournalError",
    "ExpressionError",
    "GridError",
    "GridSearchError",
    "InvalidExperimentsError",
    "LauncherError",
    "NamingError",
    "Problem",
    "ResultsError",
    "SearchBusyError",
    "SearchFolderError",
    "SearchMismatchError",
]


class GridSearchError(Exception):
    """Base of every error this package raises on purpose; ``str()`` is for users."""


class GridError(GridSearchError):
    """A grid is wrong at one place.

    Attributes:
        place: The grid, parameter or line of a file.
        reason: What is wrong, and what would be right.
    """

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(f"{place}: {reason}")
        self.place = place
        self.reason = reason


class ExpressionError(GridError):
    """A condition or a constraint cannot be read or evaluated; *place* is its text."""


class NamingError(GridSearchError):
    """A name cannot be made of parameters, or parameters of a name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """What is wrong with one experiment.

    Attributes:
        parameters: The combination, as text.
        key: The parameter that does not fit; empty where it is not about one.
        reason: What is wrong, and what would be right.
    """

    parameters: str
    key: str
    reason: str

    def __str__(self) -> str:
        where = f"{self.key}: " if self.key else ""
        return f"{where}{self.reason} (in {self.parameters})"


class InvalidExperimentsError(GridSearchError):
    """Parameters do not fit the base config. Nothing has been started.

    Attributes:
        problems: What is wrong, the first of each kind.
        num_invalid: How many experiments do not fit.
    """

    def __init__(self, problems: Sequence[Problem], num_invalid: int) -> None:
        lines = "\n".join(f"  {problem}" for problem in problems)
        super().__init__(
            f"{num_invalid} experiment{' does' if num_invalid == 1 else 's do'} not fit the base config:\n{lines}"
        )
        self.problems = tuple(problems)
        self.num_invalid = num_invalid


class SearchFolderError(GridSearchError):
    """The folder of a search cannot be used.

    Attributes:
        folder: Which.
        reason: Why, and what to do.
    """

    def __init__(self, folder: Path, reason: str) -> None:
        super().__init__(f"{folder}: {reason}")
        self.folder = folder
        self.reason = reason


class SearchMismatchError(SearchFolderError):
    """The folder belongs to another search, or the base config is another than it was."""


class SearchBusyError(SearchFolderError):
    """Another process runs the search; *reason* names it."""


class DamagedJournalError(SearchFolderError):
    """A line of the journal is not one that was written; *reason* names it."""


class LauncherError(GridSearchError):
    """A launcher cannot do what was asked, for all experiments alike."""


class ResultsError(GridSearchError):
    """Results lack what was asked of them: a metric, a parameter, a finished experiment."""
