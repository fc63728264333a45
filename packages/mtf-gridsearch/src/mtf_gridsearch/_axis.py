"""One axis of a grid: a parameter and its values, or several that change together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtf_gridsearch._plain import check_key, plain, shown
from mtf_gridsearch.distributions import Distribution
from mtf_gridsearch.errors import GridError
from mtf_gridsearch.expression import Expression
from mtf_gridsearch.identity import canonical

__all__ = ["RESERVED", "Axis", "axis_to_plain", "check_apart", "make_axis", "nested"]

RESERVED = "experiment_name"
_MAX_VALUES = 100_000


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Axis:
    """What is chosen at once: a parameter, or several that are linked.

    Attributes:
        label: Its name, unique within the grid.
        keys: Which parameters it sets.
        values: What they may be, one tuple for each choice; empty for a distribution.
        distribution: What the one parameter is drawn from, if it is.
        only_when: When it applies; None is always.
    """

    label: str
    keys: tuple[str, ...]
    values: tuple[tuple[Any, ...], ...]
    distribution: Distribution | None = None
    only_when: Expression | None = None


def make_axis(
    parameters: Mapping[str, Any],
    only_when: Expression | None,
    grid: str,
    *,
    is_linked: bool = False,
) -> Axis:
    """Return the axis of *parameters*, one or, if it is linked, several.

    Raises:
        GridError: If a key is none or a list is empty, has a value twice, or another
            length than those that it is linked with.
    """
    keys = tuple(check_key(key, grid) for key in parameters)
    label = " + ".join(keys)
    place = f"{grid}: {label}"
    if RESERVED in keys:
        raise GridError(place, "the search names its experiments: take it away")
    if is_linked and len(keys) < 2:  # noqa: PLR2004 - one alone is not linked
        raise GridError(place, "give at least two linked parameters")
    given = next(iter(parameters.values()))
    if isinstance(given, Distribution) and not is_linked:
        return Axis(
            label=label, keys=keys, values=(), distribution=given, only_when=only_when
        )
    columns = [_values(v, f"{grid}: {k}") for k, v in parameters.items()]
    if len({len(column) for column in columns}) > 1:
        sizes = ", ".join(f"{k} {len(c)}" for k, c in zip(keys, columns, strict=True))
        raise GridError(place, f"linked lists must be equally long, not {sizes}")
    rows = tuple(zip(*columns, strict=True))
    seen: dict[bytes, tuple[Any, ...]] = {}
    for row in rows:
        value = shown(row if is_linked else row[0])
        if (text := canonical(row)) in seen:
            raise GridError(place, f"the value {value} stands twice")
        seen[text] = row
    return Axis(label=label, keys=keys, values=rows, only_when=only_when)


def check_apart(keys: Sequence[str], known: Sequence[str], place: str) -> None:
    """Check that no parameter is set twice, or as a whole and in part.

    Raises:
        GridError: If one is.
    """
    seen, below = set(known), {above: key for key in known for above in _above(key)}
    for key in keys:
        if key in seen:
            raise GridError(place, f"{key} is set twice: give all its values at once")
        whole = next((above for above in _above(key) if above in seen), None)
        if whole or key in below:
            which, part = (whole, key) if whole else (key, below[key])
            message = f"{which} is set as a whole, and in part by {part}: leave one away"
            raise GridError(place, message)
        seen.add(key)
        below |= dict.fromkeys(_above(key), key)


def _above(key: str) -> list[str]:
    """Return the keys of the sections that *key* lies in."""
    parts = key.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def nested(prefix: str, parameters: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Yield every parameter below *prefix* by its dotted key.

    Raises:
        GridError: If a key is none, or a mapping is empty.
    """
    if not isinstance(parameters, Mapping) or not parameters:
        place = f"{place}: {prefix}"
        raise GridError(place, "give a mapping of at least one parameter")
    for key, values in parameters.items():
        name = f"{prefix}.{check_key(key, place)}"
        if isinstance(values, Mapping):
            yield from nested(name, values, place)
        else:
            yield name, values


def _values(values: Any, place: str) -> list[Any]:
    if isinstance(values, str) or not isinstance(values, Sequence):
        if isinstance(values, Distribution):
            raise GridError(place, "a linked parameter has listed values")
        hint = ": .tolist() makes one" if hasattr(values, "tolist") else ""
        message = f"give a list of values, as in [0.1, 0.2], not {shown(values)}{hint}"
        raise GridError(place, message)
    if not values:
        raise GridError(place, "has no values: give at least one")
    if len(values) > _MAX_VALUES:
        message = f"has {len(values)} values, more than {_MAX_VALUES}: use a distribution"
        raise GridError(place, message)
    return [plain(value, place) for value in values]


def axis_to_plain(axis: Axis) -> Any:
    """Return what stands in a file below the label of *axis*."""
    if axis.distribution is not None:
        result = axis.distribution.to_plain()
    elif len(axis.keys) > 1:
        columns = zip(*axis.values, strict=True)
        result = {"linked": dict(zip(axis.keys, map(list, columns), strict=True))}
    else:
        result = {"values": [row[0] for row in axis.values]}
    if axis.only_when is None:
        return result.get("values", result)
    return result | {"only_when": axis.only_when.text}
