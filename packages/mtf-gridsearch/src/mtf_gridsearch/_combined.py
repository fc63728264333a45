"""What every grid can do, and grids made of grids: one after the other, or crossed."""
# ruff: noqa: SLF001 - grids of grids

from __future__ import annotations

import copy
import random
import sys
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from math import prod
from typing import Any, overload

from mtf_gridsearch._axis import Axis, check_apart
from mtf_gridsearch.errors import GridError
from mtf_gridsearch.identity import identity_of

__all__ = [
    "Choose",
    "Combination",
    "Combinations",
    "Grid",
    "GridProduct",
    "GridSum",
    "turn",
]

Combination = dict[str, Any]
_MAX_TRIES = 1000


Choose = Callable[[Axis], Any]
"""Given an axis, return a position in its ``values``, or a value of its distribution."""


class Grid(ABC):
    """Combinations of parameters, each a mapping by dotted key; counted, not listed.

    The values in a combination are those of the grid: copy them before changing them.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """What messages call it."""

    @property
    @abstractmethod
    def keys(self) -> tuple[str, ...]:
        """Every parameter that a combination may have, in order."""

    @property
    @abstractmethod
    def has_distributions(self) -> bool:
        """Whether a parameter is drawn, so that combinations cannot be counted."""

    @property
    @abstractmethod
    def included(self) -> tuple[Combination, ...]:
        """The combinations that were added explicitly."""

    @abstractmethod
    def draw(self, choose: Choose) -> Combination | None:
        """Make one combination by asking *choose* for each axis that applies, in order.

        Returns:
            The combination, or None if a constraint or an exclusion forbids it.
        """

    @abstractmethod
    def to_plain(self) -> dict[str, Any]:
        """Return what stands in a file; `ParameterGrid.from_plain` reads it."""

    @abstractmethod
    def __contains__(self, combination: object) -> bool: ...

    @abstractmethod
    def _count(self) -> int: ...

    @abstractmethod
    def _at(self, index: int) -> Combination: ...

    @abstractmethod
    def _all(self) -> Iterator[Combination]: ...

    @property
    def _may_repeat(self) -> bool:
        return False

    def _draw_any(self, choose: Choose) -> Combination | None:
        """Make a combination as `draw` does, or one of those that were added."""
        return self.draw(choose)

    def __len__(self) -> int:
        self._check_listed()
        count = self._count()
        if count > sys.maxsize:
            message = f"has {count:.1e} combinations, more than can be numbered"
            raise GridError(self.name, f"{message}: take values or parameters away")
        return count

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Combination]:
        self._check_listed()
        return self._all()

    @overload
    def __getitem__(self, index: int) -> Combination: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Combination]: ...
    def __getitem__(self, index: int | slice) -> Combination | Sequence[Combination]:
        if isinstance(index, slice):
            return Combinations(self, range(len(self))[index])
        try:
            return self._at(range(len(self))[index])
        except IndexError:
            message = f"{self.name} has {len(self)} combinations, none at {index}"
            raise IndexError(message) from None

    def __add__(self, other: object) -> Grid:
        """Return the combinations of this grid, then those of *other*, as both are now."""
        return GridSum(self, other) if isinstance(other, Grid) else NotImplemented

    def __radd__(self, other: object) -> Grid:  # so that `sum` takes grids
        return copy.copy(self) if other == 0 else NotImplemented

    def __mul__(self, other: object) -> Grid:
        """Return each combination of this grid with each of *other*, as both are now.

        Raises:
            GridError: If both set the same parameter.
        """
        return GridProduct(self, other) if isinstance(other, Grid) else NotImplemented

    def generate_permutations(self) -> Iterator[Combination]:
        """Yield every combination, the last parameter changing fastest.

        Raises:
            GridError: If the grid has distributions.
        """
        return iter(self)

    def sample(self, n: int, seed: int) -> list[Combination]:
        """Draw *n* different combinations; the same *seed* draws the same ones.

        All combinations are equally likely. With distributions each parameter is drawn
        in turn, and the combinations that were added explicitly come first.

        Raises:
            GridError: If there are not so many.
            ValueError: If *n* is negative.
        """
        if n < 0:
            message = f"a sample has at least 0 combinations, not {n}"
            raise ValueError(message)
        rng = random.Random(seed)  # noqa: S311 - a search, no secret
        if self.has_distributions:
            return self._drawn(n, rng)
        if n > len(self):
            raise GridError(self.name, f"has {len(self)} combinations, not {n}")
        if not self._may_repeat:
            return [self._at(index) for index in rng.sample(range(len(self)), n)]
        found: dict[str, Combination] = {}
        for index in _shuffled(len(self), rng):
            if len(found) == n:
                break
            combination = self._at(index)
            found.setdefault(identity_of(combination), combination)
        return self._enough(found, n)

    def _drawn(self, n: int, rng: random.Random) -> list[Combination]:
        def choose(axis: Axis) -> Any:
            if axis.distribution is not None:
                return axis.distribution.draw(rng)
            return rng.randrange(len(axis.values))

        found = {identity_of(each): each for each in self.included[:n]}
        in_vain = 0
        while len(found) < n and in_vain < _MAX_TRIES:
            in_vain += 1
            combination = self.draw(choose)
            if combination is not None:
                identity = identity_of(combination)
                if identity not in found:
                    found[identity] = combination
                    in_vain = 0
        return self._enough(found, n)

    def _enough(self, found: Mapping[str, Combination], n: int) -> list[Combination]:
        if len(found) < n:
            message = f"has {len(found)} different combinations, not {n}"
            if self.has_distributions:
                message = f"gave {len(found)} different combinations, then none in "
                message += f"{_MAX_TRIES} tries: fewer than {n}, or constraints too tight"
            raise GridError(self.name, message)
        return list(found.values())

    def _check_listed(self) -> None:
        if self.has_distributions:
            message = "draws parameters from distributions and cannot be enumerated: use"
            raise GridError(self.name, f"{message} sample(n, seed) or a Bayesian search")


class Combinations(Sequence[Combination]):
    """A slice of a grid, made of nothing but its numbers."""

    def __init__(self, grid: Grid, indices: range) -> None:
        self._grid = grid
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Combination: ...
    @overload
    def __getitem__(self, index: slice) -> Combinations: ...
    def __getitem__(self, index: int | slice) -> Combination | Combinations:
        if isinstance(index, slice):
            return Combinations(self._grid, self._indices[index])
        return self._grid[self._indices[index]]


class _Joined(Grid):
    """A grid made of others, as they are now; those of its own kind become part of it."""

    def __init__(self, *parts: Grid) -> None:
        self._parts: tuple[Grid, ...] = tuple(
            each
            for part in parts
            for each in (
                part._parts
                if isinstance(part, _Joined) and type(part) is type(self)
                else (copy.copy(part),)
            )
        )

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(key for part in self._parts for key in part.keys))

    @property
    def has_distributions(self) -> bool:
        return any(part.has_distributions for part in self._parts)


class GridSum(_Joined):
    """The combinations of grids one after the other; what several have comes as often."""

    @property
    def name(self) -> str:
        return " + ".join(part.name for part in self._parts)

    @property
    def included(self) -> tuple[Combination, ...]:
        return tuple(each for part in self._parts for each in part.included)

    @property
    def _may_repeat(self) -> bool:
        return True

    def draw(self, choose: Choose) -> Combination | None:
        return self._parts[choose(self._which)].draw(choose)

    def _draw_any(self, choose: Choose) -> Combination | None:
        return self._parts[choose(self._which)]._draw_any(choose)

    @property
    def _which(self) -> Axis:
        return turn(self.name, len(self._parts))

    def to_plain(self) -> dict[str, Any]:
        return {"concatenated": [part.to_plain() for part in self._parts]}

    def __contains__(self, combination: object) -> bool:
        self._check_listed()
        return any(combination in part for part in self._parts)

    def _count(self) -> int:
        return self._ends[-1]

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(part._count() for part in self._parts))

    def _at(self, index: int) -> Combination:
        place = bisect_right(self._ends, index)
        return self._parts[place]._at(index - (self._ends[place - 1] if place else 0))

    def _all(self) -> Iterator[Combination]:
        for part in self._parts:
            yield from part._all()


class GridProduct(_Joined):
    """Each combination of one grid with each of another, and so on."""

    def __init__(self, *parts: Grid) -> None:
        super().__init__(*parts)
        known = list(parts[0].keys)
        for part in parts[1:]:
            check_apart(part.keys, known, self.name)
            known += part.keys
        if self.has_distributions and any(part.included for part in self._parts):
            message = (
                "has added combinations and, crossed, parameters that are drawn: add"
            )
            raise GridError(self.name, f"{message} whole combinations in another grid")

    @property
    def name(self) -> str:
        return " * ".join(
            f"({part.name})" if isinstance(part, GridSum) else part.name
            for part in self._parts
        )

    @property
    def included(self) -> tuple[Combination, ...]:
        return ()

    @property
    def _may_repeat(self) -> bool:
        return any(part._may_repeat for part in self._parts)

    def draw(self, choose: Choose) -> Combination | None:
        drawn = [part._draw_any(choose) for part in self._parts]
        found: Combination = {}
        for each in drawn:
            if each is None:
                return None
            found |= each
        return found

    def to_plain(self) -> dict[str, Any]:
        return {"crossed": [part.to_plain() for part in self._parts]}

    def __contains__(self, combination: object) -> bool:
        self._check_listed()
        if not isinstance(combination, Mapping):
            return False
        rest = dict(combination)
        return not rest.keys() - set(self.keys) and all(
            {key: rest[key] for key in part.keys if key in rest} in part
            for part in self._parts
        )

    def _count(self) -> int:
        return prod(part._count() for part in self._parts)

    def _at(self, index: int) -> Combination:
        chosen = []
        for part in reversed(self._parts):
            index, place = divmod(index, part._count())
            chosen.append(part._at(place))
        return {k: v for each in reversed(chosen) for k, v in each.items()}

    def _all(self) -> Iterator[Combination]:
        *outer, last = self._parts
        walks, heads = [part._all() for part in outer[:1]], [Combination()]
        while walks:
            each = next(walks[-1], None)
            if each is None:
                walks.pop()
                heads.pop()
                continue
            head = heads[-1] | each
            if len(walks) < len(outer):
                walks.append(outer[len(walks)]._all())
                heads.append(head)
                continue
            for each in last._all():
                yield head | each


def turn(name: str, count: int) -> Axis:
    """Return an axis that says which of *count*, and sets nothing."""
    values = tuple((number,) for number in range(count))
    return Axis(label=f"({name})", keys=(), values=values)


def _shuffled(count: int, rng: random.Random) -> Iterator[int]:
    """Yield 0 to *count* - 1 in random order, remembering only what differs."""
    moved: dict[int, int] = {}
    for position in range(count):
        other = rng.randrange(position, count)
        yield moved.get(other, other)
        moved[other] = moved.pop(position, position)
