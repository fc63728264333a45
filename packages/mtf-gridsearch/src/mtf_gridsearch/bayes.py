"""Bayesian search (extra ``bayes``): Optuna chooses, this package runs.

Relied on for:

* **An exact number.** Trials are numbered from 0, ``num_trials`` of them, whatever fails
  and whoever is killed. A trial is stored whole before it is handed out, and ended by what
  the journal says: one whose job was lost is handed out again with the same number and
  parameters, and one that runs is never taken for dead, for Optuna is not asked.
* **No barrier.** The next trial is chosen as soon as a place is free, by the results that
  are there; trials that run are shown to the sampler as running (the constant liar). At
  most ``num_parallel`` are open at once. Which parameters trial *n* has depends then on
  which results were there, so on timing, unless one runs at a time.
* **The same trials anywhere, with ``in_order=True``.** What trial *n* is follows from the
  definition, its seed and the results of trials 0 to ``n - num_parallel`` alone, for which
  it waits; those after are shown as running even if they have ended. So it does not matter
  how many run at once, in which order they end, and where the process was killed; but a
  slow trial keeps places empty. With a pruner, where a run is stopped depends on time.
* **Identity.** A trial is named ``<name>_<number>__<identity>``, and has the identity of
  its parameters. Where parameters repeat those of an earlier trial, it has the identity of
  both the parameters and its number: it is run, for a training repeated is a second
  measurement. A repeat is made only if several draws gave nothing new.

The journal is the truth. Optuna's storage, a file ``optuna_journal.log`` in the folder of
the search or a database, may be ahead of it by trials that were never started, and is
brought up to it when the search is opened.

Source: Optuna 4.5 to 5.0, "Ask-and-Tell Interface"; J. Bergstra et al., "Algorithms for
Hyper-Parameter Optimization", NIPS 2011, on the estimator, and D. Ginsbourger et al.,
"Kriging is well-suited to parallelize optimization", 2010, on the constant liar.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from mtf_gridsearch._axis import Axis
from mtf_gridsearch._combined import Combination, Grid
from mtf_gridsearch._values import At, Mode
from mtf_gridsearch.distributions import Choice
from mtf_gridsearch.errors import (
    GridError,
    InvalidExperimentsError,
    NamingError,
    Problem,
)
from mtf_gridsearch.records import ExperimentRecord, GridExperiment, Status
from mtf_gridsearch.search import ParameterGridSearch

try:
    from mtf_gridsearch import _samplers
    from mtf_gridsearch._definition import Definition
    from mtf_gridsearch._trials import STORAGE_NAME, BayesianSupply
except ModuleNotFoundError as error:
    if error.name != "optuna":
        raise
    message = "a Bayesian search needs Optuna: pip install 'mtf-gridsearch[bayes]'"
    raise ModuleNotFoundError(message, name=error.name) from error

__all__ = ["STORAGE_NAME", "BayesianSearch"]

_MAX_NAME = 96
_MAX_PROBLEMS = 20
_MAX_CORNERS = 1000


class BayesianSearch:
    """A search that learns from its results where to look next.

    Run it with `GridSearchExecutor.execute`.

    Args:
        base_config: A mapping or a pydantic model, as for `ParameterGridSearch`.
        grid: What to choose among: distributions, listed values or both; conditions,
            constraints and exclusions hold, and added combinations come first. What is
            added to it later is not seen.
        metric: The objective, as experiments report it.
        mode: Whether it is to be ``"min"`` or ``"max"``.
        num_trials: How many to run; may grow when the search is run again.
        num_parallel: How many may be open at once, however many places there are; may
            change when the search is run again, unless it is in order.
        in_order: Whether trial *n* waits for the results of trials 0 to
            ``n - num_parallel``, and is chosen by no others, so that trials are the same
            wherever they run; otherwise by all results that are there.
        at: Whether the ``"best"`` value of a run is its objective or the ``"last"``.
        sampler: ``"tpe"``, ``"gp"``, ``"nsgaii"``, ``"random"``; one with options, as
            ``{"type": "tpe", "multivariate": True}``; or a function of a seed.
        pruner: ``"median"``, ``"hyperband"``, ``"percentile"``, ``"successive_halving"``,
            ``"threshold"``, ``"wilcoxon"``, with options in the same way; or a pruner.
        storage: Address of a database, as ``postgresql+psycopg://user@host/name``; a file
            in the folder of the search by default. Not part of the definition.
        seed: Of the sampler.
        name: Of the search; the base's ``experiment_name`` by default.
        only: ``"failed"`` to run again what failed or ran out of time, what such a run left
            unfinished, and nothing else.

    Raises:
        NamingError: If *name* is none, or longer than 96 characters.
        TypeError: If *grid*, *sampler* or *pruner* is of no type that it may be.
        ValueError: If a word or a number is none that it may be.
        ImportError: If Optuna needs another package for the sampler.
    """

    def __init__(  # noqa: PLR0913 -- each is part of the definition
        self,
        base_config: Any,
        grid: Grid,
        *,
        metric: str,
        mode: Mode,
        num_trials: int,
        num_parallel: int = 4,
        in_order: bool = False,
        at: At = "best",
        sampler: _samplers.SamplerSpec = "tpe",
        pruner: _samplers.PrunerSpec = None,
        storage: str | None = None,
        seed: int = 0,
        name: str | None = None,
        only: Literal["failed"] | None = None,
    ) -> None:
        _check_grid(grid)
        _check_words(mode=mode, at=at, only=only)
        for word, number in (("num_trials", num_trials), ("num_parallel", num_parallel)):
            if number < 1:
                msg = f"{word} must be at least 1, not {number}"
                raise ValueError(msg)
        self._whole = ParameterGridSearch(base_config, name)
        if len(self.name) > _MAX_NAME:
            msg = f"{self.name}: a Bayesian search's name has at most {_MAX_NAME} characters"
            raise NamingError(msg)
        _samplers.make_sampler(sampler, seed)
        _samplers.make_pruner(pruner)
        self._remade: list[str] = []
        self._definition = Definition(
            name=self.name,
            grid=copy.copy(grid),
            make=self.experiment,
            metric=metric,
            mode=mode,
            at=at,
            num_trials=num_trials,
            num_parallel=num_parallel,
            in_order=in_order,
            sampler=sampler,
            pruner=pruner,
            storage=storage,
            seed=seed,
            only=only,
        )

    @property
    def name(self) -> str:
        """Which search: a folder belongs to one."""
        return self._whole.name

    @property
    def base_digest(self) -> str:
        """What stands for the base config: 64 hex digits."""
        return self._whole.base_digest

    @property
    def name_key(self) -> str:
        """The key that configs have their name under, if they have one."""
        return self._whole.name_key

    @property
    def num_parallel(self) -> int:
        """How many trials may be open at once."""
        return self._definition.num_parallel

    @property
    def total(self) -> int:
        """How many trials there will be in all."""
        return self._definition.num_trials

    def to_plain(self) -> dict[str, Any]:
        """Return what is saved as ``search_config.yaml``, and `search_file.read` takes.

        Nothing of it may change in a folder but ``num_trials`` and, without ``in_order``,
        ``num_parallel``. A sampler or pruner that is code is named, and must be given again
        by code.

        Raises:
            GridError: If the base config holds what is not plain.
        """
        whole, known = self._whole.to_plain(), self._definition
        options = {
            "metric": known.metric,
            "mode": known.mode,
            "at": known.at,
            "num_trials": known.num_trials,
            "num_parallel": known.num_parallel,
            "in_order": known.in_order,
            "sampler": _samplers.plain_spec(known.sampler),
            "pruner": _samplers.plain_spec(known.pruner),
            "seed": known.seed,
        }
        return {
            "name": self.name,
            "grids": [known.grid.to_plain()],
            "bayesian": options,
            **{key: value for key, value in whole.items() if key.startswith("base")},
        }

    def plan(self, records: Mapping[str, ExperimentRecord]) -> tuple[()]:  # noqa: ARG002
        """Return nothing, for it is decided on the way; check what can be checked.

        The ends of each distribution and each listed value are applied to the base.

        Raises:
            GridError: If constraints leave nothing.
            InvalidExperimentsError: If a value does not fit the base config.
        """
        problems: dict[tuple[str, str], Problem] = {}
        num_invalid, made = 0, []
        _check_not_empty(self._definition.grid)
        for combination in _corners(self._definition.grid):
            try:
                made.append(self.experiment(0, combination))
            except InvalidExperimentsError as error:
                num_invalid += 1
                for problem in error.problems:
                    problems.setdefault((problem.key, problem.reason), problem)
        if num_invalid:
            first = list(problems.values())[:_MAX_PROBLEMS]
            raise InvalidExperimentsError(first, num_invalid)
        self._remade = self._whole.made_again(made)
        return ()

    def doubts(self) -> tuple[str, ...]:
        """Say where trials wait for others, and what is made again of the base's values.

        What is repeated is told by its name.
        """
        if not self._definition.in_order:
            return tuple(self._remade)
        last = f"n - {self.num_parallel}"
        said = f"in_order=True: trial n waits for the results of trials 0 to {last}, so a"
        return (f"{said} slow one may keep places empty.", *self._remade)

    def starts(self, status: Status, *, has_failed: bool = False) -> bool:
        """Tell whether a run starts an experiment of *status*, if nothing runs it."""
        return self._definition.starts(status, has_failed=has_failed)

    def open(
        self, folder: Path, records: Mapping[str, ExperimentRecord]
    ) -> BayesianSupply:
        """Return the trials that a run of the search in *folder* starts.

        Called with the folder locked.

        Raises:
            SearchFolderError: If the storage cannot be used.
        """
        return BayesianSupply(self._definition, folder, records)

    def experiment(
        self, number: int, parameters: Mapping[str, Any]
    ) -> GridExperiment[Any]:
        """Return trial *number* with *parameters*.

        Raises:
            InvalidExperimentsError: If they do not fit the base config.
        """
        return self._whole.copy(f"{self.name}_{number:04d}").experiment(parameters)


def _check_grid(grid: Any) -> None:
    if not isinstance(grid, Grid):
        msg = f"grid is a ParameterGrid, not {type(grid).__name__}"
        raise TypeError(msg)


def _check_words(mode: str, at: str, only: str | None) -> None:
    for word, value, known in (
        ("mode", mode, ("min", "max")),
        ("at", at, ("best", "last")),
        ("only", only, (None, "failed")),
    ):
        if value not in known:
            msg = f"{word} is {known[0]!r} or {known[1]!r}, not {value!r}"
            raise ValueError(msg)


def _check_not_empty(grid: Grid) -> None:
    if not grid.keys:
        raise GridError(grid.name, "is empty: give it parameters")
    if not grid.has_distributions and not len(grid):
        raise GridError(grid.name, "is empty: constraints and exclusions leave nothing")


def _corners(grid: Grid) -> Iterator[Combination]:
    """Yield combinations that together have each listed value and both ends of ranges.

    What constraints forbid is left out, and so is what lies beyond the first thousand.
    """
    yield from grid.included
    most, turn = 2, 0

    def choose(axis: Axis) -> Any:
        nonlocal most
        drawn = axis.distribution
        if drawn is not None and not isinstance(drawn, Choice):
            return drawn.high if turn % 2 else drawn.low
        values = axis.values if drawn is None else drawn.values
        most = max(most, len(values))
        index = turn % len(values)
        return index if drawn is None else values[index]

    while turn < min(most, _MAX_CORNERS):
        combination = grid.draw(choose)
        if combination is not None:
            yield combination
        turn += 1
