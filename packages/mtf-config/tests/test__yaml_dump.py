import math
from typing import Any

import pytest
import yaml

from mtf_config import _yaml
from mtf_config._yaml_dump import dump


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("on", "'on'"),
        ("12:00:00", "'12:00:00'"),
        ("1e-4", "'1e-4'"),
        ("0o17", "'0o17'"),
        ("1e999", "'1e999'"),
        ("", "''"),
        ("plain words", "plain words"),
        (1e-5, "1.0e-05"),
        (1e16, "1.0e+16"),
        (0.1, "0.1"),
        (math.inf, ".inf"),
        (-math.inf, "-.inf"),
        (math.nan, ".nan"),
        (None, "null"),
        (True, "true"),
        ([1, 2], "[1, 2]"),
        ([], "[]"),
        ("größe", "größe"),
    ],
)
def test_how_values_are_written(value: object, text: str) -> None:
    """Scalars are written plainly, and in quotes where a reader would mistake them."""
    assert dump({"a": value}) == f"a: {text}\n"


def test_nested_values_are_blocks_in_their_order() -> None:
    """Mappings and lists of them have a line each, in the order given, without aliases."""
    shared = {"z": 1, "a": 2}
    text = dump({"b": [shared, [3]], "a": shared})
    assert text == "b:\n- z: 1\n  a: 2\n- [3]\na:\n  z: 1\n  a: 2\n"


@pytest.mark.parametrize(
    "value", ["yes", "1_000", "0b1", "1:30", "2020-01-01", ".5e+3", 1e-7, 1e22, "=", "!"]
)
def test_readers_of_yaml_1_1_agree(value: Any) -> None:
    """PyYAML's own loader, a reader of YAML 1.1, gives the same value and type."""
    text = dump({"a": value})
    theirs = yaml.safe_load(text)["a"]
    ours = _yaml.parse(text.encode(), "f")[0]["a"]
    assert (theirs, type(theirs)) == (ours, type(ours)) == (value, type(value))
