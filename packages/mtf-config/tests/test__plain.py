import enum
from collections import OrderedDict
from types import MappingProxyType
from typing import Any

import pytest
from pydantic import BaseModel

from mtf_config import _yaml
from mtf_config._plain import MAX_DEPTH, MAX_NODES, Foreign, check_key, plain, structure


class Number(float):
    def __repr__(self) -> str:
        return "Number"


class Colour(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


def unwrap(model: BaseModel) -> Any:
    """Stand for what the builder does with sections."""
    return model.model_dump()


def nested(levels: int) -> Any:
    """Nest lists *levels* deep."""
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def test_limits_are_those_of_files() -> None:
    """What is made in Python can be written to a file and read again."""
    assert (MAX_DEPTH, MAX_NODES) == (_yaml.MAX_DEPTH, _yaml.MAX_NODES)


def test_subclasses_become_their_base() -> None:
    """NumPy's float64, enums and other mappings lose what YAML cannot keep."""
    value = OrderedDict(
        a=Number(1.5), b=Colour.RED, c=(Level.LOW, True), d=MappingProxyType({"e": None})
    )
    copy, faults = structure(value, unwrap)
    assert not faults
    assert repr(copy) == "{'a': 1.5, 'b': 'red', 'c': [1, True], 'd': {'e': None}}"


def test_nothing_is_shared_with_the_original() -> None:
    """Changing what was given changes nothing that was made of it."""
    value: dict[str, Any] = {"a": [{"b": [1]}]}
    copy, _ = plain(value, 0)
    value["a"][0]["b"].append(2)
    assert copy == {"a": [{"b": [1]}]}


def test_foreign_objects_fit_nowhere() -> None:
    """The schema refuses them by their kind, and so does what takes any value."""
    copy, faults = structure({"a": object()}, unwrap)
    assert (copy, faults) == ({"a": Foreign("object")}, ())
    expected = "a Python object is no value of a config file"
    for thing in (object(), Foreign("object")):
        assert plain([1, thing], 0)[1] == (((1,), expected),)


@pytest.mark.parametrize("depth", [0, 2])
def test_depth_is_limited_as_in_files(depth: int) -> None:
    """The deepest value a file can hold passes, one level more does not."""
    assert not plain(nested(MAX_DEPTH - depth), depth)[1]
    ((path, message),) = plain(nested(MAX_DEPTH - depth + 1), depth)[1]
    assert len(path) == MAX_DEPTH - depth
    assert "levels deep" in message


def test_cycles_and_bushes_cost_bounded_work() -> None:
    """A list that holds itself many times is refused, in no exponential time."""
    cycle: list[Any] = []
    cycle += [cycle] * 10
    bush: Any = 1
    for _ in range(20):
        bush = [bush] * 10
    assert "levels deep" in structure(cycle, unwrap)[1][0][1]
    assert f"more than {MAX_NODES} values" in structure(bush, unwrap)[1][0][1]


def test_all_faults_are_found() -> None:
    """One report names every key that is wrong."""
    _, faults = structure(
        {1: 1, "": 2, "a.b": {}, "ok": [{None: 1}], "\ud800": 1}, unwrap
    )
    assert [path for path, _ in faults] == [(), (), (), ("ok", 0), ()]


def test_a_key_is_returned_as_plain_text() -> None:
    """An enum used as a key becomes its text."""
    assert type(check_key(Colour.RED)) is str
    assert check_key(Colour.RED) == "red"
