"""Enumerate, name, run and aggregate hyperparameter searches.

A search is a base config and grids; it is run in a folder, which says what happened and is
gone on with by whoever runs it next. Names are imported when they are used, so that this
import costs nothing. Functions whose module has their name are imported from that:
`mtf_gridsearch.report.report`, `mtf_gridsearch.compare.compare`,
`mtf_gridsearch.importance.importance`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtf_gridsearch.bayes import BayesianSearch
    from mtf_gridsearch.distributions import (
        Choice,
        Distribution,
        IntUniform,
        LogUniform,
        Uniform,
        choice,
        int_uniform,
        loguniform,
        uniform,
    )
    from mtf_gridsearch.dry_run import DryRun
    from mtf_gridsearch.early_stopping import EarlyStopping, MedianRule, SuccessiveHalving
    from mtf_gridsearch.errors import (
        DamagedJournalError,
        ExpressionError,
        GridError,
        GridSearchError,
        InvalidExperimentsError,
        LauncherError,
        NamingError,
        Problem,
        ResultsError,
        SearchBusyError,
        SearchFolderError,
        SearchMismatchError,
    )
    from mtf_gridsearch.executor import (
        ConfigSaver,
        ExecutionMode,
        GridSearchExecutor,
        GridSearchResult,
    )
    from mtf_gridsearch.grid import ParameterGrid
    from mtf_gridsearch.launcher import (
        Experiment,
        JobState,
        Launcher,
        Submission,
        Submitted,
    )
    from mtf_gridsearch.local.launcher import LocalLauncher
    from mtf_gridsearch.naming import ExperimentNaming, NamingStrategy, ParsedName
    from mtf_gridsearch.records import (
        ExperimentRecord,
        GridExperiment,
        MetricSummary,
        Status,
        Supply,
        Usage,
    )
    from mtf_gridsearch.results import SearchResults
    from mtf_gridsearch.search import ParameterGridSearch

__all__ = [
    "BayesianSearch",
    "Choice",
    "ConfigSaver",
    "DamagedJournalError",
    "Distribution",
    "DryRun",
    "EarlyStopping",
    "ExecutionMode",
    "Experiment",
    "ExperimentNaming",
    "ExperimentRecord",
    "ExpressionError",
    "GridError",
    "GridExperiment",
    "GridSearchError",
    "GridSearchExecutor",
    "GridSearchResult",
    "IntUniform",
    "InvalidExperimentsError",
    "JobState",
    "Launcher",
    "LauncherError",
    "LocalLauncher",
    "LogUniform",
    "MedianRule",
    "MetricSummary",
    "NamingError",
    "NamingStrategy",
    "ParameterGrid",
    "ParameterGridSearch",
    "ParsedName",
    "Problem",
    "ResultsError",
    "SearchBusyError",
    "SearchFolderError",
    "SearchMismatchError",
    "SearchResults",
    "Status",
    "Submission",
    "Submitted",
    "SuccessiveHalving",
    "Supply",
    "Uniform",
    "Usage",
    "choice",
    "int_uniform",
    "loguniform",
    "uniform",
]

__version__ = "0.1.0"

_NAMES = {
    "bayes": "BayesianSearch",
    "distributions": "Choice Distribution IntUniform LogUniform Uniform choice int_uniform loguniform uniform",
    "dry_run": "DryRun",
    "early_stopping": "EarlyStopping MedianRule SuccessiveHalving",
    "errors": "DamagedJournalError ExpressionError GridError GridSearchError InvalidExperimentsError LauncherError NamingError Problem ResultsError SearchBusyError SearchFolderError SearchMismatchError",
    "executor": "ConfigSaver ExecutionMode GridSearchExecutor GridSearchResult",
    "grid": "ParameterGrid",
    "launcher": "Experiment JobState Launcher Submission Submitted",
    "local.launcher": "LocalLauncher",
    "naming": "ExperimentNaming NamingStrategy ParsedName",
    "records": "ExperimentRecord GridExperiment MetricSummary Status Supply Usage",
    "results": "SearchResults",
    "search": "ParameterGridSearch",
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}


if not TYPE_CHECKING:  # to a type checker every name would be there

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            msg = f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(msg)
        value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
