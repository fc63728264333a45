"""Where a value of a config came from.

Relied on by every error message and by ``ExperimentConfig.provenance``. Knows nothing
of YAML, files or the schema.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

__all__ = [
    "CODE",
    "DEFAULT",
    "KEY",
    "KeyPath",
    "Origin",
    "Origins",
    "dotted",
    "origin_of",
]

KeyPath: TypeAlias = tuple[str | int, ...]
"""A key, one part a level: ``("optimizer", "betas", 0)``."""


class Origin(NamedTuple):
    """Where a value came from; ``str()`` is what error messages show.

    Attributes:
        source: A file, as the user named it, or ``override 'optimizer.lr=1'``,
            ``default``, ``code``.
        line: 1-based line in the file, 0 where there is none.
        column: 1-based column, 0 where there is none.
        via: The ``${...}`` that produced the value, if one did. Never its result.

    >>> str(Origin("a.yaml", 3, 7))
    'a.yaml:3:7'
    """

    source: str
    line: int = 0
    column: int = 0
    via: str = ""

    def __str__(self) -> str:
        place = f"{self.source}:{self.line}:{self.column}" if self.line else self.source
        return f"{place} (from {self.via})" if self.via else place


Origins: TypeAlias = dict[KeyPath, Origin]

KEY = ""
"""Below a path in `Origins`: the place of the key itself, which no real key can be."""

DEFAULT = Origin("default")
CODE = Origin("code")


def dotted(path: KeyPath) -> str:
    """Write *path* the way users do.

    >>> dotted(("optimizer", "betas", 0))
    'optimizer.betas.0'
    """
    return ".".join(map(str, path))


def origin_of(origins: Origins, path: KeyPath) -> Origin | None:
    """Return the origin of *path*, or else of the nearest level that holds it."""
    for end in range(len(path), -1, -1):
        if (origin := origins.get(path[:end])) is not None:
            return origin
    return None
