"""``search_config.yaml``: what defines a search, to read, to write by hand, to save.

::

    name: digits
    naming: short              # hash_based, parameter_based, timestamp or sequential
    base: {experiment_name: digits, optimizer: {lr: 0.1}, model: {type: mlp, depth: 1}}
    grids:
      - name: first
        parameters:
          optimizer.lr: [1.0e-3, 1.0e-2]
          model.type: [mlp, linear]
          model.depth: {values: [1, 2], only_when: model.type == 'mlp'}
        where: [optimizer.lr * model.depth <= 0.02]
        exclude: [{optimizer.lr: 1.0e-2, model.type: linear}]
        include: [{optimizer.lr: 0.5}]

In place of a list a parameter may have ``{uniform: [low, high]}``, ``loguniform``,
``int`` or ``choice``; linked ones stand below one entry as ``{linked: {a: [...], b:
[...]}}``; in place of a grid stand ``{concatenated: [...]}`` and ``{crossed: [...]}``.

``base_class: my_configs:Config`` names the pydantic model that the base is read by, also one
that stands elsewhere.
``entry_point`` says what experiments run; ``early_stopping`` and ``bayesian`` how the
command line runs them: see `mtf_gridsearch._sections`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mtf_gridsearch import _sections, _yaml
from mtf_gridsearch._model_class import model_of
from mtf_gridsearch._plain import nearest, shown
from mtf_gridsearch.early_stopping import EarlyStopping
from mtf_gridsearch.errors import GridError
from mtf_gridsearch.grid import Grid, ParameterGrid
from mtf_gridsearch.journal import read_records
from mtf_gridsearch.naming import NamingStrategy
from mtf_gridsearch.search import ParameterGridSearch

if TYPE_CHECKING:
    from mtf_gridsearch.bayes import BayesianSearch

__all__ = ["SearchDefinition", "read", "write"]

_IN_FOLDERS = "search_config.yaml"
_SECTIONS = (
    *("name", "naming", "base", "base_class", "base_digest", "grids"),
    *("entry_point", "early_stopping", "bayesian"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchDefinition:
    """What a file says of a search.

    Attributes:
        name: None where the base config is to give it.
        grids: In order; may be empty.
        base: None where the file has none.
        base_class: The pydantic model that *base* is read by, as ``module:Class``; None for
            a mapping that is its own schema.
        entry_point: What its experiments run; None where the file does not say.
        early_stopping: The rule that ends bad ones early, if there is to be one.
        bayesian: What makes a `BayesianSearch` of it, as it stands there; None for none.
        names: Of experiments, by identity, in the folder whose ``search_config.yaml`` it is.
    """

    name: str | None
    naming: NamingStrategy
    grids: tuple[Grid, ...]
    base: Mapping[str, Any] | None
    base_class: str | None = None
    entry_point: str | None = None
    early_stopping: EarlyStopping | None = None
    bayesian: Mapping[str, Any] | None = None
    names: Mapping[str, str] = field(default_factory=dict)

    def bayesian_search(
        self, base_config: Any = None, *, only: Literal["failed"] | None = None
    ) -> BayesianSearch:
        """Return the Bayesian search, over *base_config* or else the file's base.

        Its grids are one: each trial is of one of them.

        Raises:
            GridError: If there is no base or grid, or an option is wrong.
            NamingError: If there is no name, or it is none.
        """
        base = self._base(base_config)
        if not self.grids:
            place = self.name or "search"
            raise GridError(place, "has no grid: write one below `grids`")
        grid = reduce(add, self.grids)
        return _sections.bayesian_search(
            self.bayesian, "bayesian", base, grid, name=self.name, only=only
        )

    def search(self, base_config: Any = None) -> ParameterGridSearch[Any]:
        """Return the search, over *base_config* or else the file's base.

        Raises:
            GridError: If there is no base, or a grid is empty.
            NamingError: If there is no name, or it is none.
            TypeError: If the base is neither a mapping nor a pydantic model.
        """
        search = ParameterGridSearch(self._base(base_config), self.name, self.naming)
        for grid in self.grids:
            search.add_grid(grid)
        search.know(self.names)
        return search

    def _base(self, given: Any) -> Any:
        base = self.base if given is None else given
        if base is None:
            raise GridError(self.name or "search", "has no base config: give one")
        is_read = self.base_class is not None and isinstance(base, Mapping)
        return model_of(self.base_class or "", base) if is_read else base


def read(path: Path) -> SearchDefinition:
    """Read the definition of a search.

    Raises:
        GridError: If *path* cannot be read, or describes none.
        SearchFolderError: If it is in the folder of a search whose journal cannot be read.
    """
    values = _yaml.load(path)
    source = str(path)
    if unknown := [key for key in values if key not in _SECTIONS]:
        message = f"{unknown[0]!r} is not known{nearest(unknown[0], _SECTIONS)}"
        raise GridError(source, message)
    name, base = values.get("name"), values.get("base")
    for key in ("name", "base_class", "entry_point"):
        if not isinstance(values.get(key), str | None):
            place = f"{source}: {key}"
            raise GridError(place, f"{shown(values[key])} is not text: quote it")
    if base is not None and not isinstance(base, dict):
        place = f"{source}: base"
        raise GridError(place, "write a mapping, or leave it away")
    try:
        naming = NamingStrategy(values.get("naming", NamingStrategy.HASH_BASED))
    except ValueError:
        message = f"{shown(values['naming'])} is none of {', '.join(NamingStrategy)}"
        place = f"{source}: naming"
        raise GridError(place, message) from None
    grids = values.get("grids", [])
    if not isinstance(grids, list):
        place = f"{source}: grids"
        raise GridError(place, "write a list: `- name: first` and so on")
    read_grids = [
        ParameterGrid.from_plain(grid, f"{source}: grids[{i}]")
        for i, grid in enumerate(grids)
    ]
    records = read_records(path.parent) if path.name == _IN_FOLDERS else {}
    return SearchDefinition(
        name=name,
        naming=naming,
        grids=tuple(read_grids),
        base=base,
        base_class=values.get("base_class"),
        entry_point=values.get("entry_point"),
        early_stopping=_sections.early_stopping(
            values.get("early_stopping"), f"{source}: early_stopping"
        ),
        bayesian=values.get("bayesian"),
        names={record.identity: name for name, record in records.items()},
    )


def write(path: Path, search: ParameterGridSearch[Any]) -> None:
    """Save the definition of *search*, such that `read` gives it back.

    Raises:
        GridError: If the base config holds what is not plain.
        OSError: If it cannot be written.
    """
    _yaml.write_atomically(path, _yaml.dump(search.to_plain()))
