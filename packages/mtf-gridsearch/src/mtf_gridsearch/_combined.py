"""What every grid can do, and grids made of grids: one after the other, or crossed."""

from __future__ import annotations

import random
import sys
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, overload

from mtf_gridsearch._axis import Axis, check_apart
from mtf_gridsearch.errors import GridError
from mtf_gridsearch.identity import identity_of

__all__ = ["Choose", "Combination", "Combinations", "Grid"]

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
        """Return the combinations of this grid, then those of *other*."""
        return GridSum(self, other) if isinstance(other, Grid) else NotImplemented

    def __mul__(self, other: object) -> Grid:
        """Return each combination of this grid with each of *other*.

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


class GridSum(Grid):
    """The combinations of one grid, then those of another; what both have comes twice."""

    def __init__(self, left: Grid, right: Grid) -> None:
        self._parts = (left, right)

    @property
    def name(self) -> str:
        return " + ".join(part.name for part in self._parts)

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(key for part in self._parts for key in part.keys))

    @property
    def has_distributions(self) -> bool:
        return any(part.has_distributions for part in self._parts)

    @property
    def included(self) -> tuple[Combination, ...]:
        return tuple(each for part in self._parts for each in part.included)

    @property
    def _may_repeat(self) -> bool:
        return True

    def draw(self, choose: Choose) -> Combination | None:
        which = Axis(label=f"({self.name})", keys=(), values=((0,), (1,)))
        return self._parts[choose(which)].draw(choose)

    def to_plain(self) -> dict[str, Any]:
        return {"concatenated": [part.to_plain() for part in self._parts]}

    def __contains__(self, combination: object) -> bool:
        self._check_listed()
        return any(combination in part for part in self._parts)

    def _count(self) -> int:
        return sum(part._count() for part in self._parts)  # noqa: SLF001 - a grid as well

    def _at(self, index: int) -> Combination:
        ends = list(accumulate(part._count() for part in self._parts))  # noqa: SLF001
        place = bisect_right(ends, index)
        part = self._parts[place]
        return part._at(index - (ends[place - 1] if place else 0))  # noqa: SLF001

    def _all(self) -> Iterator[Combination]:
        for part in self._parts:
            yield from part._all()  # noqa: SLF001


class GridProduct(Grid):
    """Each combination of one grid with each of another."""

    def __init__(self, left: Grid, right: Grid) -> None:
        self._left = left
        self._right = right
        check_apart(right.keys, left.keys, self.name)
        if self.has_distributions and (left.included or right.included):
            message = (
                "has added combinations and, crossed, parameters that are drawn: add"
            )
            raise GridError(self.name, f"{message} whole combinations in another grid")

    @property
    def name(self) -> str:
        return " * ".join(
            f"({part.name})" if isinstance(part, GridSum) else part.name
            for part in (self._left, self._right)
        )

    @property
    def keys(self) -> tuple[str, ...]:
        return self._left.keys + self._right.keys

    @property
    def has_distributions(self) -> bool:
        return self._left.has_distributions or self._right.has_distributions

    @property
    def included(self) -> tuple[Combination, ...]:
        return ()

    @property
    def _may_repeat(self) -> bool:
        return self._left._may_repeat or self._right._may_repeat  # noqa: SLF001

    def draw(self, choose: Choose) -> Combination | None:
        left, right = self._left.draw(choose), self._right.draw(choose)
        return None if left is None or right is None else left | right

    def to_plain(self) -> dict[str, Any]:
        return {"crossed": [self._left.to_plain(), self._right.to_plain()]}

    def __contains__(self, combination: object) -> bool:
        self._check_listed()
        if not isinstance(combination, Mapping):
            return False
        own = {k: v for k, v in combination.items() if k in self._left.keys}
        others = {k: v for k, v in combination.items() if k not in own}
        return own in self._left and others in self._right

    def _count(self) -> int:
        return self._left._count() * self._right._count()  # noqa: SLF001

    def _at(self, index: int) -> Combination:
        first, second = divmod(index, self._right._count())  # noqa: SLF001
        return self._left._at(first) | self._right._at(second)  # noqa: SLF001

    def _all(self) -> Iterator[Combination]:
        for left in self._left._all():  # noqa: SLF001
            for right in self._right._all():  # noqa: SLF001
                yield left | right


def _shuffled(count: int, rng: random.Random) -> Iterator[int]:
    """Yield 0 to *count* - 1 in random order, remembering only what differs."""
    moved: dict[int, int] = {}
    for position in range(count):
        other = rng.randrange(position, count)
        yield moved.get(other, other)
        moved[other] = moved.pop(position, position)
