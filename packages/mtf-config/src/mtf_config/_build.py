"""From plain values to an `ExperimentConfig`, or to every problem that forbids it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from mtf_config import _interpolate, _overrides, _plain
from mtf_config import _schema_walk as schema
from mtf_config._secrets import is_secret_name
from mtf_config._tree import Tree, plain_origins
from mtf_config.errors import ConfigValidationError
from mtf_config.experiment import ExperimentConfig, canonical_sections
from mtf_config.origin import CODE, KEY, KeyPath, Origin, Origins, dotted, origin_of
from mtf_config.problem import Problem
from mtf_config.sections import NotPlainError

__all__ = ["build", "escaped", "finish", "from_mapping", "shown"]

_WANTED = {
    "int_type": "an integer, without quotes or a point",
    "float_type": "a number, without quotes",
    "string_type": 'text; put it in quotes: "..."',
    "bool_type": "true or false",
    "tuple_type": "a list",
    "model_type": "a section of `key: value` lines",
    "dict_type": "a section of `key: value` lines",
    "finite_number": "a finite number",
    "string_too_short": "text that is not empty",
    "string_unicode": "Unicode text",
}
_LIMITS = {"greater_than": "gt", "greater_than_equal": "ge", "less_than": "lt",
           "less_than_equal": "le"}  # fmt: skip
_RELATION = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
_MAX_SHOWN = 60


def from_mapping(
    values: Mapping[str, Any], overrides: Sequence[str], environ: Mapping[str, str]
) -> ExperimentConfig:
    """Do all that `ConfigurationManager.create_config` promises."""
    data = _plain_mapping(values)
    if "defaults" in data:
        message = "a defaults: list names files, and is read only from a file"
        raise ConfigValidationError(
            [Problem(key="defaults", place=CODE, message=message)]
        )
    tree = Tree()
    tree.data = data
    tree.origins = plain_origins(data, (), CODE)
    return finish(tree, [_overrides.parse(argument) for argument in overrides], environ)


def finish(
    tree: Tree, overrides: Sequence[_overrides.Override], environ: Mapping[str, str]
) -> ExperimentConfig:
    """Apply *overrides* to composed values, resolve placeholders, validate."""
    _overrides.apply(tree, overrides)
    _interpolate.resolve(tree, environ)
    return build(tree)


def _plain_mapping(values: Any) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        faults: Sequence[_plain.Fault] = [((), f"not a mapping, found {shown(values)}")]
    else:
        data, faults = _plain.structure(values, _unwrapped)
        try:
            if not faults:
                return canonical_sections(data)
        except ValueError as error:
            faults = [((), str(error))]
    raise ConfigValidationError(
        Problem(key=dotted(path), place=CODE, message=message) for path, message in faults
    )


def _unwrapped(section: BaseModel) -> Any:
    """Return what was set in *section*, in which no text is a placeholder."""
    return escaped(section.model_dump(exclude_unset=True))


def escaped(value: Any) -> Any:
    """Return *value*, of which resolving placeholders gives *value* again."""
    if isinstance(value, str):
        return _interpolate.escape(value)
    if isinstance(value, dict):
        return {key: escaped(item) for key, item in value.items()}
    return [escaped(item) for item in value] if isinstance(value, list) else value


def build(tree: Tree) -> ExperimentConfig:
    """Validate the values of *tree* and remember where they came from.

    Raises:
        ConfigValidationError: With one problem for each thing that is wrong.
    """
    try:
        config = ExperimentConfig.model_validate(tree.data)
    except ValidationError as error:
        details = error.errors(include_url=False)
        found = [p for detail in details for p in _problems(detail, tree.origins)]
        raise ConfigValidationError(dict.fromkeys(found)) from None
    secrets = _find_secrets(config.model.model_extra or {}, ("model",), tree.origins)
    if problems := [*secrets]:
        raise ConfigValidationError(problems)
    config._origins = tree.origins  # noqa: SLF001 - this module is its other half
    return config


def shown(value: Any) -> str:
    """Return *value* the way messages show it: its kind where that helps, shortened."""
    if value is None or isinstance(value, bool):
        return {None: "nothing (null)", True: "true", False: "false"}[value]
    if isinstance(value, int) and value.bit_length() > _plain.MAX_INT_BITS:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, str | int | float):
        text = _shortened(repr(value))
        return f"the text {text}" if isinstance(value, str) else text
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"a mapping with the keys {_shortened(', '.join(map(str, value)))}"
    return f"a Python {_plain.kind_of(value)}"


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _problems(detail: Any, origins: Origins) -> Iterator[Problem]:
    path: KeyPath = detail["loc"]
    error = detail.get("ctx", {}).get("error")
    if isinstance(error, NotPlainError):
        for below, message in error.faults:
            where = (*path, *below)
            place = origin_of(origins, where)
            yield Problem(key=dotted(where), place=place, message=message)
    elif detail["type"] == "missing" and isinstance(path[-1], int):
        # One number of a pair.
        given = {"type": "too_short", "input": detail["input"], "ctx": {"min_length": 2}}
        yield _problem({**given, "loc": path[:-1]}, origins)
    else:
        yield _problem(detail, origins)


def _problem(detail: Any, origins: Origins) -> Problem:
    kind, path = detail["type"], detail["loc"]
    place = origin_of(origins, path)
    key = dotted(path)
    if kind == "missing":
        # The place of the section in which it is missing, if that stands somewhere.
        above: Origin | None = origin_of(origins, path[:-1])
        return Problem(key=key, place=above, message=f"missing: {_description(path)}")
    if kind == "extra_forbidden":
        near = schema.nearest(path)
        expected = f"did you mean {near}?" if near else schema.known_keys(path[:-1])
        place = origins.get((*path, KEY), place)
        return Problem(key=key, place=place, message="no such key", expected=expected)
    is_secret = any(is_secret_name(str(part)) for part in path)
    return Problem(
        key=key,
        place=place,
        message="not valid",
        found="a value" if is_secret else shown(detail["input"]),
        expected=_expected(detail, path),
    )


def _expected(detail: Any, path: KeyPath) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind in _LIMITS:
        bound = _LIMITS[kind]
        limit = context[bound]
        shown_limit = str(limit) if isinstance(limit, int) else f"{limit:g}"
        return f"write a number {_RELATION[bound]} {shown_limit}"
    if kind == "value_error":
        return str(context["error"])
    if kind in ("too_long", "too_short"):
        wanted = context.get("max_length", context.get("min_length"))
        return f"give a list of {wanted}"
    if kind == "string_pattern_mismatch":
        return _PATTERN_HINT[path]
    if kind in _WANTED:
        optional = type(None) in set(schema.members(schema.lookup(path)))
        return f"write {_WANTED[kind]}{', or null' if optional else ''}"
    return str(detail["msg"])


_PATTERN_HINT: dict[KeyPath, str] = {
    ("experiment_name",): "write 1 to 128 letters, digits, dots, dashes and underscores, "
    "the first a letter or digit",
    ("entry_point",): "write a script inside the project, `train.py`, "
    "or `package.module:function`",
}


def _description(path: KeyPath) -> str:
    """Say what belongs at *path*, in the words of the schema."""
    section: Any = ExperimentConfig
    for part in path[:-1]:
        section = section.model_fields[str(part)].annotation
    field = section.model_fields[str(path[-1])]
    text = field.description or field.annotation.__doc__ or ""
    return str(text).strip().splitlines()[0]


def _find_secrets(value: Any, path: KeyPath, origins: Origins) -> Iterator[Problem]:
    """Find what must not be saved and shown with the config."""
    if isinstance(value, dict | list):
        children = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in children:
            yield from _find_secrets(item, (*path, key), origins)
    elif value not in (None, "", True, False) and any(
        is_secret_name(part) for part in path if isinstance(part, str)
    ):
        message = (
            "looks like a secret, and configs are saved and shown: let the code that "
            "needs it read an environment variable"
        )
        place = origin_of(origins, path)
        yield Problem(key=dotted(path), place=place, message=message)
