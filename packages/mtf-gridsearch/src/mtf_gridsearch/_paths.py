"""Number the paths through a graph of layers, without walking them.

A path takes one step in each layer. What has been taken before matters only through a
state: two beginnings with the same state have the same continuations, which are built
and counted once. So a product of free layers has one state a layer whatever its size,
and layers tied by conditions as many as there are different situations.

Relied on for: paths are numbered in lexicographic order of their steps; `at` takes time
proportional to the number of layers; `all` keeps a bounded number of combinations.

Source: ranking and unranking by counts of completions, as in Knuth, The Art of Computer
Programming 4A, 7.2.1 and 7.1.4 (counting the paths of a decision diagram).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

__all__ = ["Moves", "Paths", "TooManyStepsError"]

Fragment = dict[str, Any]

_MAX_STEPS = 2_000_000
_CHUNK = 1024
_MAX_CHUNKS = 16


class TooManyStepsError(Exception):
    """The layers are tied so closely that the graph does not fit into memory."""


@dataclass(frozen=True, slots=True)
class Moves:
    """The steps from one state: ``codes[i]`` leads to ``states[i]``.

    One state alone means that all codes lead there.
    """

    codes: Sequence[int]
    states: Sequence[Hashable]


class _Node:
    """A state in a layer: its steps, how many paths they begin."""

    __slots__ = ("children", "codes", "count", "ends")

    def __init__(self, codes: Sequence[int], children: Sequence[_Node]) -> None:
        self.codes = codes
        self.children = children
        self.ends: list[int] | None = None
        self.count = 0


class Paths:
    """All paths through ``len(fragments)`` layers.

    Args:
        fragments: By layer and code: what the step adds to the combination.
        start: The first state.
        advance: Given a layer and a state, return the steps from there.
        weigh: How much work `advance` is for each state of a layer, in steps.

    Raises:
        TooManyStepsError: If there are too many different situations.
    """

    def __init__(
        self,
        fragments: Sequence[Sequence[Fragment]],
        start: Hashable,
        advance: Callable[[int, Any], Moves],
        weigh: Callable[[int], int] = lambda _: 1,
    ) -> None:
        self._fragments = fragments
        self._chunks: dict[int, list[Fragment]] = {}
        layers, num_steps = [{start: _Node((), ())}], 0
        for layer in range(len(fragments)):
            # Known before the work of this layer, which may be the most of all.
            if num_steps + len(layers[-1]) * weigh(layer) > _MAX_STEPS:
                raise TooManyStepsError
            following: dict[Hashable, _Node] = {}
            for state, node in layers[-1].items():
                moves = advance(layer, state)
                num_steps += len(moves.states)
                if num_steps > _MAX_STEPS:
                    raise TooManyStepsError
                node.codes = moves.codes
                node.children = [
                    following.get(s) or following.setdefault(s, _Node((), ()))
                    for s in moves.states
                ]
            layers.append(following)
        for node in layers[-1].values():
            node.count = 1
        for nodes in reversed(layers[:-1]):
            for node in nodes.values():
                _count(node)
        self._root = layers[0][start]

    @property
    def count(self) -> int:
        """How many there are; may be more than `len` can say."""
        return self._root.count

    def at(self, index: int) -> Fragment:
        """Return the combination of the path number *index*, which must exist."""
        node, combination = self._root, {}
        for fragments in self._fragments:
            if node.ends is None:
                node_below = node.children[0]
                step, index = divmod(index, node_below.count)
            else:
                step = bisect_right(node.ends, index)
                index -= node.ends[step - 1] if step else 0
                node_below = node.children[step]
            combination.update(fragments[node.codes[step]])
            node = node_below
        return combination

    def all(self) -> Iterator[Fragment]:
        """Yield the combination of every path, in order; each is a new mapping."""
        return self._below(self._root, 0, {})

    def has(self, codes: Sequence[int]) -> bool:
        """Tell whether there is a path of these steps, one a layer."""
        node = self._root
        for code in codes:
            if code not in node.codes:
                return False
            step = node.codes.index(code)
            node = node.children[0] if node.ends is None else node.children[step]
        return True

    def _below(self, node: _Node, layer: int, before: Fragment) -> Iterator[Fragment]:
        if layer == len(self._fragments):
            yield before
            return
        if node.count <= _CHUNK:
            for after in self._chunk(node, layer):
                yield before | after
            return
        fragments = self._fragments[layer]
        for code, child in _steps(node):
            yield from self._below(child, layer + 1, before | fragments[code])

    def _chunk(self, node: _Node, layer: int) -> list[Fragment]:
        """Return all continuations of *node*, from memory where they were used lately."""
        chunk = self._chunks.get(id(node))
        if chunk is None:
            if len(self._chunks) >= _MAX_CHUNKS:
                self._chunks = {}
            chunk = self._chunks[id(node)] = self._continued(node, layer)
        return chunk

    def _continued(self, node: _Node, layer: int) -> list[Fragment]:
        if layer == len(self._fragments):
            return [{}]
        fragments = self._fragments[layer]
        after: list[Fragment] = []
        known: _Node | None = None
        for code, child in _steps(node):
            if child is not known:
                known, rest = child, self._continued(child, layer + 1)
            after += [fragments[code] | more for more in rest]
        return after


def _steps(node: _Node) -> Iterator[tuple[int, _Node]]:
    if node.ends is None:
        return ((code, node.children[0]) for code in node.codes)
    return zip(node.codes, node.children, strict=True)


def _count(node: _Node) -> None:
    """Count the paths from *node* once those from its children are; drop dead ends."""
    if len(node.children) == 1:
        node.count = len(node.codes) * node.children[0].count
        return
    steps = zip(node.codes, node.children, strict=True)
    alive = [(code, child) for code, child in steps if child.count]
    node.codes = [code for code, _ in alive]
    node.children = [child for _, child in alive]
    node.ends = list(accumulate(child.count for child in node.children))
    node.count = node.ends[-1] if alive else 0
