"""A config on its way to the schema: plain values, and where each came from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mtf_config.origin import KeyPath, Origin, Origins

__all__ = ["MISSING", "Tree", "copy_plain", "plain_origins", "step"]

MISSING: Any = object()


def step(value: Any, part: str | int) -> Any:
    """Return what *part* names in *value*, or `MISSING`."""
    if isinstance(value, dict):
        return value.get(part, MISSING)
    if isinstance(value, list) and isinstance(part, int) and part < len(value):
        return value[part]
    return MISSING


def copy_plain(value: Any) -> Any:
    """Copy nested dicts and lists; their leaves are immutable."""
    if isinstance(value, dict):
        return {key: copy_plain(item) for key, item in value.items()}
    return [copy_plain(item) for item in value] if isinstance(value, list) else value


class Tree:
    """Nested plain values with their origins. Mutable, owned by one composition."""

    def __init__(self) -> None:
        self.data: dict[str, Any] = {}
        self.origins: Origins = {}

    def get(self, path: KeyPath) -> Any:
        """Return the value at *path*, or `MISSING`."""
        value: Any = self.data
        for part in path:
            value = step(value, part)
        return value

    def spell(self, path: KeyPath) -> KeyPath:
        """Return *path* with a number as text where it is the key of a mapping."""
        spelled: list[str | int] = []
        value: Any = self.data
        for part in path:
            spelled.append(str(part) if isinstance(value, dict) else part)
            value = step(value, spelled[-1])
        return tuple(spelled)

    def set(self, path: KeyPath, value: Any, origins: Origins) -> None:
        """Put *value* at *path*, making the mappings above it.

        What is above must be able to hold it: mappings, items that are there, null.
        """
        holder: Any = self.data
        for depth, part in enumerate(path[:-1], start=1):
            following = step(holder, part)
            if following is None or following is MISSING:
                following = holder[part] = {}
                self.origins[path[:depth]] = origins[path]
            holder = following
        self._forget_below(path, step(holder, path[-1]))
        holder[path[-1]] = value
        self.origins.update(origins)

    def delete(self, path: KeyPath) -> None:
        """Remove what stands at *path*; it must be in a mapping."""
        self._forget_below(path, self.get(path))
        del self.get(path[:-1])[path[-1]]
        self.origins.pop(path, None)

    def merge(self, values: dict[str, Any], origins: Origins, at: KeyPath = ()) -> None:
        """Lay *values* over what stands at *at*: mappings merge, all else is replaced.

        Args:
            values: Left as they are; the tree takes copies.
            origins: Of *values*, with full paths.
            at: The mapping that is merged into; made if missing.
        """
        holder: Any = self.data
        for depth, part in enumerate(at, start=1):
            following = holder.get(part)
            if not isinstance(following, dict):
                self._forget_below(at[:depth], following)
                following = holder[part] = {}
                self.origins[at[:depth]] = origins[at]
            holder = following
        self._merge(at, holder, values)
        self.origins.update(origins)

    def _merge(self, path: KeyPath, into: dict[str, Any], values: dict[str, Any]) -> None:
        for key, value in values.items():
            old = into.get(key)
            if isinstance(old, dict) and isinstance(value, dict):
                self._merge((*path, key), old, value)
            else:
                self._forget_below((*path, key), old)
                into[key] = copy_plain(value)

    def _forget_below(self, path: KeyPath, old: Any) -> None:
        """Drop the origins of all that *old*, which stood at *path*, held."""
        for key, item in _children(old):
            self.origins.pop((*path, key), None)
            self._forget_below((*path, key), item)


def _children(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, dict):
        return value.items()
    return enumerate(value) if isinstance(value, list) else ()


def plain_origins(value: Any, path: KeyPath, origin: Origin) -> Origins:
    """Give *value* and everything in it one origin."""
    origins: Origins = {path: origin}
    for key, item in _children(value):
        origins |= plain_origins(item, (*path, key), origin)
    return origins
