"""`ParameterGridSearch`: a base config and grids, and the experiments that they make.

Relied on for: all experiments are valid before the first is handed out; each combination
comes once, wherever it stands; names and identities depend on the definition alone, the
strategies that count or date apart. Nothing is written and nothing runs here.
"""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Generic, Self, TypeVar

from mtf_gridsearch._base import NAME, UnfitError
from mtf_gridsearch._combined import Combination, Grid
from mtf_gridsearch._model_base import base_of
from mtf_gridsearch._plain import check_key, plain, shown
from mtf_gridsearch.errors import (
    GridError,
    InvalidExperimentsError,
    NamingError,
    Problem,
)
from mtf_gridsearch.identity import canonical, identity_of
from mtf_gridsearch.naming import (
    ExperimentNaming,
    NamingStrategy,
    ParsedName,
    check_name,
)
from mtf_gridsearch.records import GridExperiment

__all__ = ["ParameterGridSearch", "text_of"]

ConfigT = TypeVar("ConfigT")
_MAX_EXPERIMENTS = 1_000_000
_MAX_PROBLEMS = 20
_MAX_SHOWN = 200
_STAMP = "%Y%m%dT%H%M%S"


class ParameterGridSearch(Generic[ConfigT]):
    """The experiments that grids make of a base config.

    Args:
        base_config: A mapping, whose own keys are the schema, or any pydantic model.
            What comes out has the same type.
        name: What experiments are called by; the base's ``experiment_name`` by default.
        naming: How experiments are named.

    Raises:
        GridError: If a mapping holds what is not plain.
        NamingError: If *name* is none, or there is none.
        TypeError: If the base is neither.

    >>> from mtf_gridsearch.grid import ParameterGrid
    >>> search = ParameterGridSearch({"experiment_name": "digits", "lr": 0.1, "seed": 0})
    >>> _ = search.add_grid(ParameterGrid("seeds").add_parameter("seed", [1, 2]))
    >>> [config["seed"] for config in search.generate_experiments()]
    [1, 2]
    """

    def __init__(
        self,
        base_config: ConfigT,
        name: str | None = None,
        naming: NamingStrategy | str = NamingStrategy.HASH_BASED,
    ) -> None:
        self._base = base_of(base_config)
        name = self._base.name if name is None else name
        if name is None:
            message = f"the base config has no {NAME}: give the search a name"
            raise NamingError(message)
        self._name = check_name(name)
        self._naming = NamingStrategy(naming)
        self._stamp = time.strftime(_STAMP)
        self._grids: list[Grid] = []
        self._planned: tuple[GridExperiment[ConfigT], ...] | None = None
        self._known: dict[str, str] = {}
        self._by_content: dict[str, str] | None = None

    @property
    def name(self) -> str:
        """What its experiments are called by."""
        return self._name

    @property
    def naming(self) -> NamingStrategy:
        """How its experiments are named."""
        return self._naming

    @property
    def grids(self) -> tuple[Grid, ...]:
        """Its grids, in order; what is added to them is not seen."""
        return tuple(map(copy.copy, self._grids))

    @property
    def keys(self) -> tuple[str, ...]:
        """Every parameter of its grids, in order."""
        return tuple(dict.fromkeys(key for grid in self._grids for key in grid.keys))

    @property
    def base_digest(self) -> str:
        """What stands for the base config: 64 hex digits; its name does not count."""
        return hashlib.sha256(canonical(self._nameless(self._base.plain))).hexdigest()

    @property
    def name_key(self) -> str:
        """The key that configs have their name under, if they have one."""
        return self._base.name_key

    def add_grid(self, grid: Grid) -> Self:
        """Search *grid* as well; what is added to it later is not seen.

        Raises:
            GridError: If it is empty: without parameters, or all is ruled out.
            TypeError: If it is none.
        """
        given: object = grid
        if not isinstance(given, Grid):
            message = f"a grid is a ParameterGrid, not {shown(grid)}"
            raise TypeError(message)
        is_drawn = grid.has_distributions
        if not is_drawn and not len(grid):
            message = "is empty: give it parameters" if not grid.keys else "is empty: its"
            rest = "" if not grid.keys else " constraints and exclusions leave nothing"
            raise GridError(grid.name, message + rest)
        self._grids.append(copy.copy(grid))
        self._planned = self._by_content = None
        return self

    def copy(self, name: str | None = None) -> Self:
        """Return the same search; a grid that is added to one is not in the other.

        Args:
            name: That it has in place of this one's.

        Raises:
            NamingError: If *name* is none.
        """
        other = copy.copy(self)
        other._name = self._name if name is None else check_name(name)  # noqa: SLF001
        other._grids = list(self._grids)  # noqa: SLF001 -- of this class
        return other

    def know(self, known: Mapping[str, str]) -> None:
        """Call experiments by the names that they have in a folder, by identity."""
        self._known, self._planned, self._by_content = dict(known), None, None

    @property
    def known(self) -> Mapping[str, str]:
        """Names that experiments have already, by identity."""
        return self._known

    def plan(
        self, known: Mapping[str, str] | None = None
    ) -> tuple[GridExperiment[ConfigT], ...]:
        """Return every experiment once, in the order of the grids, validated.

        Args:
            known: Names that experiments have already, by identity: they are kept, and
                no other experiment gets one of them. By default those that it was given
                last, by this or `know`.

        Raises:
            GridError: If there is no grid, a grid has distributions, or there are more
                experiments than a search can have.
            InvalidExperimentsError: If parameters do not fit the base config.
        """
        known = self._known if known is None else dict(known)
        if self._planned is None or known != self._known:
            self._planned = tuple(self._validated(self._combinations(), known))
            self._known, self._by_content = known, None
        return self._planned

    def duplicates(self) -> list[tuple[GridExperiment[ConfigT], ...]]:
        """Return experiments whose parameters differ and whose configs are the same.

        Such as one that sets a parameter to what the base has, and one that leaves it. Each
        is an experiment of its own, and is run: identity is of the parameters alone.

        Raises:
            GridError: As `plan`.
            InvalidExperimentsError: As `plan`.
        """
        groups: dict[str, list[GridExperiment[ConfigT]]] = {}
        for experiment in self.plan():
            values = self._nameless(experiment.model_dump(mode="json"))
            groups.setdefault(identity_of(values), []).append(experiment)
        return [tuple(group) for group in groups.values() if len(group) > 1]

    def made_again(self, experiments: Iterable[GridExperiment[ConfigT]]) -> list[str]:
        """Say which values of the base its class makes again, as others, in *experiments*.

        It makes them of the parameters. What it makes of a parameter's own number, if that
        is another, is said, too.
        """
        found: dict[str, list[str]] = {}
        read: set[str] = set()
        for experiment in experiments:
            changes = self._base.made_again(experiment.config, experiment.parameters)
            for key, old, new in changes:
                where = f"{new} instead of {old} in {experiment.experiment_name}"
                found.setdefault(key, []).append(where)
                read |= {key} & experiment.parameters.keys()
        notes = []
        for key, said in found.items():
            told = f"({said[0]}{f' and {len(said) - 1} more' * (len(said) > 1)})"
            what = f"{key} follows from other values: it is made again {told}; set {key}"
            own = f"{key} is changed by its class {told}."
            notes.append(own if key in read else f"{what} as a parameter to keep it.")
        return notes

    def generate_experiments(self) -> list[ConfigT]:
        """Return the configs of `plan`, of the type of the base, each the caller's own.

        Raises:
            GridError: As `plan`.
            InvalidExperimentsError: As `plan`.
        """
        return [self._own(experiment) for experiment in self.plan()]

    def experiment(
        self, parameters: Mapping[str, Any], number: int | None = None
    ) -> GridExperiment[ConfigT]:
        """Return the experiment with *parameters*, in the grids or not.

        Args:
            parameters: By dotted key.
            number: For the strategy SEQUENTIAL, counted from 1.

        Raises:
            GridError: If a value is not plain.
            InvalidExperimentsError: If they do not fit the base config.
            NamingError: If SEQUENTIAL has no number.
        """
        values = {check_key(k, self.name): plain(v, k) for k, v in parameters.items()}
        identity = identity_of(values)
        name = self._name_of(values, number)
        try:
            config = self._base.applied(values, name)
        except UnfitError as error:
            text = text_of(values)
            problems = [
                Problem(parameters=text, key=key, reason=reason)
                for key, reason in error.faults
            ]
            raise InvalidExperimentsError(problems, 1) from None
        return GridExperiment(
            experiment_name=name,
            identity=identity,
            parameters=values,
            config=config,
            by_alias=self._base.by_alias,
        )

    def get_experiment_name(self, config: ConfigT) -> str:
        """Return the name of the experiment that *config* is; its own name counts not.

        Raises:
            GridError: As `plan`.
            InvalidExperimentsError: As `plan`.
            NamingError: If it is none of this search.
        """
        if self._by_content is None:
            contents: dict[str, str] = {}
            for experiment in self.plan():
                digest = self._digest(experiment.config)
                contents.setdefault(digest, experiment.experiment_name)
            self._by_content = contents
        try:
            return self._by_content[self._digest(config)]
        except KeyError:
            message = f"the config is no experiment of the search {self._name}"
            raise NamingError(message) from None

    def parse_experiment_name(self, name: str) -> ParsedName:
        """Return what *name* stands for, whatever the strategy.

        Raises:
            GridError: As `plan`.
            InvalidExperimentsError: As `plan`.
            NamingError: If no experiment of this search has that name.
        """
        planned = self.plan()
        index = {e.experiment_name: ParsedName(self._name, e.parameters) for e in planned}
        if name not in index:
            message = f"{name} is the name of no experiment of the search {self._name}"
            raise NamingError(message)
        return index[name]

    def to_plain(self) -> dict[str, Any]:
        """Return what defines the search, as `search_file.write` saves it.

        Raises:
            GridError: If the base config holds what is not plain.
        """
        kind = self._base.class_name
        return {
            "name": self._name,
            "naming": self._naming.value,
            "grids": [grid.to_plain() for grid in self._grids],
            "base_digest": self.base_digest,
            **({} if kind is None else {"base_class": kind}),
            "base": self._base.plain,
        }

    def _digest(self, config: ConfigT) -> str:
        return identity_of(self._nameless(self._base.plain_of(config)))

    def _nameless(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in values.items() if k != self.name_key}

    def _own(self, experiment: GridExperiment[ConfigT]) -> ConfigT:
        try:
            return copy.deepcopy(experiment.config)
        except Exception:  # noqa: BLE001 - as for a lock in a private attribute
            name = experiment.experiment_name
            return self._base.applied(experiment.parameters, name)  # type: ignore[no-any-return]

    def _combinations(self) -> dict[str, Combination]:
        if not self._grids:
            raise GridError(self._name, "has no grid: use add_grid")
        num = sum(map(len, self._grids))
        if num > _MAX_EXPERIMENTS:
            message = f"has {num} experiments, more than {_MAX_EXPERIMENTS}: include what"
            raise GridError(self._name, f"{message} grid.sample(n, seed) draws")
        found: dict[str, Combination] = {}
        for grid in self._grids:
            for combination in grid:
                found.setdefault(identity_of(combination), combination)
        return found

    def _validated(
        self, combinations: Mapping[str, Combination], known: Mapping[str, str]
    ) -> Iterator[GridExperiment[ConfigT]]:
        planned: list[GridExperiment[ConfigT]] = []
        problems: dict[tuple[str, str], Problem] = {}
        num_invalid = 0
        names = self._names(combinations, known)
        for (identity, values), name in zip(combinations.items(), names, strict=True):
            try:
                config = self._base.applied(values, name)
            except UnfitError as error:
                num_invalid += 1
                for key, reason in error.faults:
                    problem = Problem(parameters=text_of(values), key=key, reason=reason)
                    problems.setdefault((key, reason), problem)
                continue
            planned.append(
                GridExperiment(
                    experiment_name=name,
                    identity=identity,
                    parameters=values,
                    config=config,
                    by_alias=self._base.by_alias,
                )
            )
        if num_invalid:
            first = list(problems.values())[:_MAX_PROBLEMS]
            raise InvalidExperimentsError(first, num_invalid)
        return iter(planned)

    def _names(
        self, combinations: Mapping[str, Combination], known: Mapping[str, str]
    ) -> Iterator[str]:
        taken = set(known.values())
        number = 0
        for identity, values in combinations.items():
            number += 1
            if identity in known:
                yield known[identity]
                continue
            name = self._name_of(values, number)
            while name in taken:
                if self._naming is not NamingStrategy.SEQUENTIAL:
                    name = ExperimentNaming.generate_name(self._name, values)
                    break
                number += 1
                name = self._name_of(values, number)
            taken.add(name)
            yield name

    def _name_of(self, values: Combination, number: int | None) -> str:
        return ExperimentNaming.generate_name(
            self._name,
            values,
            self._naming,
            keys=self.keys if self._naming is NamingStrategy.SHORT else (),
            number=number,
            stamp=self._stamp,
        )


def text_of(values: Mapping[str, Any]) -> str:
    """Return a combination for a message: on one line, short."""
    text = ", ".join(f"{key}={shown(value)}" for key, value in values.items())
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."
