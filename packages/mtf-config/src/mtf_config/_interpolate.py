r"""``${...}`` in values: other keys of the config, and environment variables.

* ``${optimizer.lr}``            the value of another key, its default if the config sets none
* ``${optimizer.lr:-0.1}``       the same, or 0.1 if that is null or missing
* ``${env:SCRATCH}``             an environment variable
* ``${env:SCRATCH:-/tmp}``       the same, or ``/tmp`` if it is unset or empty
* ``\${``                        the two characters ``${``

A value that is one ``${...}`` and nothing else keeps the type of what it names; inside
other text it becomes text. What a variable or a default holds is read as a YAML scalar,
and as text where the schema wants text. Resolved values are saved with the experiment,
so variables whose name says that they hold a secret are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from mtf_config import _schema_walk as schema
from mtf_config import _yaml
from mtf_config._overrides import split_key
from mtf_config._secrets import is_secret_name
from mtf_config._tree import MISSING, Tree, copy_plain, plain_origins, step
from mtf_config.errors import InterpolationError
from mtf_config.origin import KeyPath, Origin, dotted, origin_of

__all__ = ["escape", "resolve"]

# The lookbehind keeps a long run of backslashes from being tried at each of them.
_START = re.compile(r"(?<!\\)(\\*)\$\{")
_BODY = re.compile(r"([^{}]*)\}")
_ENV = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)
_KEY = re.compile(r"([A-Za-z_][\w-]*(?:\.[\w-]+)*)(?::-(.*))?", re.DOTALL)
_MAX_TEXT = 1 << 16
_MAX_CHAIN = 100


def escape(text: str) -> str:
    r"""Return *text* so that resolving it gives *text* again.

    >>> print(escape("cost: ${5}"))
    cost: \${5}
    """
    return _START.sub(lambda match: match[1] * 2 + r"\${", text)


def resolve(tree: Tree, environ: Mapping[str, str]) -> None:
    """Resolve every placeholder in *tree*, in place.

    Raises:
        InterpolationError: If one is malformed, names nothing, or leads in a circle.
    """
    if not _holds_placeholder(tree.data):
        return
    resolver = _Resolver(tree, environ)
    tree.data = resolver.children((), tree.data)
    for path, (value, origin) in resolver.replaced.items():
        tree.origins.update(plain_origins(value, path, origin))


def _holds_placeholder(value: Any) -> bool:
    if isinstance(value, str):
        return "${" in value
    if isinstance(value, dict):
        return any(map(_holds_placeholder, value.values()))
    return isinstance(value, list) and any(map(_holds_placeholder, value))


class _Resolver:
    def __init__(self, tree: Tree, environ: Mapping[str, str]) -> None:
        self.replaced: dict[KeyPath, tuple[Any, Origin]] = {}
        self._tree = tree
        self._environ = environ
        self._done: dict[KeyPath, Any] = {}
        self._stack: list[KeyPath] = []
        self._nodes = 0

    def value_at(self, path: KeyPath) -> Any:
        """Return the resolved value at *path*, or `MISSING`."""
        if path in self._done:
            return self._done[path]
        value = self._tree.get(path)
        if value is MISSING:
            value = self._through_placeholder(path)
        elif isinstance(value, dict):
            value = self._guarded(path, lambda: self.children(path, value))
        elif isinstance(value, list):
            value = self._guarded(path, lambda: self._items(path, value))
        elif isinstance(value, str) and "${" in value:
            value = self._guarded(path, lambda: self._text(path, value))
        self._done[path] = value
        return value

    def children(self, path: KeyPath, value: dict[str, Any]) -> dict[str, Any]:
        """Return *value*, which stands at *path*, with what it holds resolved."""
        return {
            key: self.value_at((*path, key)) if _holds_placeholder(item) else item
            for key, item in value.items()
        }

    def _items(self, path: KeyPath, value: list[Any]) -> list[Any]:
        return [
            self.value_at((*path, index)) if _holds_placeholder(item) else item
            for index, item in enumerate(value)
        ]

    def _through_placeholder(self, path: KeyPath) -> Any:
        """Look *path* up below a placeholder that names a section, then among defaults."""
        for end in range(1, len(path)):
            above = self._tree.get(path[:end])
            if isinstance(above, str) and "${" in above:
                value = self.value_at(path[:end])
                for part in path[end:]:
                    value = step(value, str(part) if isinstance(value, dict) else part)
                return value
        return schema.default_of(path, self._is_section)

    def _is_section(self, path: KeyPath) -> bool:
        return isinstance(self._tree.get(path), dict)

    def _guarded(self, path: KeyPath, make: Callable[[], Any]) -> Any:
        if path in self._stack:
            chain = " -> ".join(
                map(dotted, [*self._stack[self._stack.index(path) :], path])
            )
            raise self._error(path, f"placeholders go in a circle: {chain}")
        if len(self._stack) >= _MAX_CHAIN:
            raise self._error(path, f"placeholders lead on more than {_MAX_CHAIN} times")
        self._stack.append(path)
        value = make()
        self._stack.pop()
        return value

    def _error(self, path: KeyPath, message: str) -> InterpolationError:
        place = origin_of(self._tree.origins, path) or Origin("config")
        return InterpolationError(place, message, key=dotted(path))

    def _text(self, path: KeyPath, text: str) -> Any:
        origin = origin_of(self._tree.origins, path) or Origin("config")
        only = _BODY.fullmatch(text, 2) if text.startswith("${") else None
        if only:
            value = self._placeholder(path, only[1], wants_text=False)
            self._count(path, value)
            if len(path) + _yaml.depth(value) > _yaml.MAX_DEPTH:
                message = f"nests the config more than {_yaml.MAX_DEPTH} levels deep"
                raise self._error(path, message)
            value = copy_plain(value)
            self.replaced[path] = (value, origin._replace(via=text))
            return value
        pieces: list[str] = []
        end = length = 0
        while match := _START.search(text, end):
            slashes = match[1]
            pieces += [text[end : match.start()], "\\" * (len(slashes) // 2)]
            if len(slashes) % 2:
                pieces.append("${")
                end = match.end()
                continue
            body = _BODY.match(text, match.end())
            if body is None:
                message = "a placeholder is not closed, or holds braces"
                message += r": write ${other.key}, or \${ for the text itself"
                raise self._error(path, message)
            end = body.end()
            pieces.append(self._piece(path, body[1]))
            length += len(pieces[-1])
            if length > _MAX_TEXT:
                raise self._error(path, f"expands to more than {_MAX_TEXT} characters")
        value = "".join([*pieces, text[end:]])
        self._count(path, value)
        self.replaced[path] = (value, origin)
        return value

    def _piece(self, path: KeyPath, body: str) -> str:
        value = self._placeholder(path, body, wants_text=True)
        if isinstance(value, dict | list) or value is None:
            message = f"${{{body}}} is not one value and cannot stand inside text"
            raise self._error(path, message)
        return str(value).lower() if isinstance(value, bool) else str(value)

    def _count(self, path: KeyPath, value: Any) -> None:
        self._nodes += _yaml.size(value)
        if self._nodes > _yaml.MAX_NODES:
            message = f"placeholders expand to more than {_yaml.MAX_NODES} values"
            raise self._error(path, message)

    def _placeholder(self, path: KeyPath, body: str, *, wants_text: bool) -> Any:
        body = body.strip()
        if env := _ENV.fullmatch(body):
            raw, where = self._variable(path, env[1], env[2]), f"${{env:{env[1]}}}"
        elif key := _KEY.fullmatch(body):
            target = self._tree.spell(split_key(key[1]))
            value = self.value_at(target)
            if value is not MISSING and (value is not None or key[2] is None):
                return value
            if key[2] is None:
                near = schema.nearest(target)
                hint = f"; did you mean {near}?" if near else ""
                raise self._error(path, f"${{{body}}} names no key of the config{hint}")
            raw, where = key[2], f"the default in ${{{body}}}"
        else:
            message = f"${{{body}}} is neither ${{other.key}} nor ${{env:NAME}}"
            raise self._error(path, f"{message}; for the text itself write \\${{")
        if wants_text:
            return raw
        try:
            parsed = _yaml.parse_scalar(raw)
        except ValueError as error:
            raise self._error(path, f"{where}: {error}") from None
        return raw if schema.takes_text(path, parsed) else parsed

    def _variable(self, path: KeyPath, name: str, default: str | None) -> str:
        if is_secret_name(name):
            message = (
                f"${{env:{name}}} looks like a secret, and values of a config are saved "
                "and shown: let the code that needs it read the variable"
            )
            raise self._error(path, message)
        value = self._environ.get(name) or default
        if value is None:
            message = f"the environment variable {name} is not set, or empty; set it, or"
            raise self._error(path, f"{message} give a default: ${{env:{name}:-...}}")
        try:
            value.encode()
        except UnicodeEncodeError:
            message = f"the environment variable {name} is not UTF-8 text"
            raise self._error(path, message) from None
        return value
