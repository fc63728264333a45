from typing import Any

import pytest

from mtf_config._tree import MISSING, Tree, copy_plain, plain_origins, step
from mtf_config.origin import KeyPath, Origin

HERE = Origin("here", 1, 1)
THERE = Origin("there", 2, 2)


def tree_of(data: dict[str, Any]) -> Tree:
    """Return a tree of *data*, all of which stands ``here``."""
    tree = Tree()
    tree.data = copy_plain(data)
    tree.origins = plain_origins(tree.data, (), HERE)
    return tree


def keys(tree: Tree) -> set[str]:
    """Return the dotted paths that have an origin."""
    return {".".join(map(str, path)) for path in tree.origins}


def test_copy_is_deep() -> None:
    """A copy shares neither dicts nor lists with its original."""
    value: dict[str, Any] = {"a": [{"b": 1}]}
    copy = copy_plain(value)
    copy["a"][0]["b"] = 2
    assert value == {"a": [{"b": 1}]}


@pytest.mark.parametrize(
    ("value", "part", "found"),
    [
        ({"a": 1}, "a", 1),
        ({"0": 1}, 0, MISSING),
        ([5], 0, 5),
        ([5], 1, MISSING),
        ([5], "0", MISSING),
        ([5], "x", MISSING),
        ("text", 0, MISSING),
        (None, "a", MISSING),
        (MISSING, "a", MISSING),
    ],
)
def test_step(value: Any, part: str | int, found: Any) -> None:
    """One part of a key finds its value, or nothing, in anything."""
    assert step(value, part) is found or step(value, part) == found


def test_get() -> None:
    """A path leads through mappings and lists, and off them to nothing."""
    tree = tree_of({"a": [{"b": 1}]})
    assert tree.get(()) == tree.data
    assert tree.get(("a", 0, "b")) == 1
    assert tree.get(("a", 0, "b", "c")) is MISSING


@pytest.mark.parametrize(
    ("path", "spelled"),
    [
        (("m", 0), ("m", "0")),
        (("l", 0, "k"), ("l", 0, "k")),
        (("l", 0, 1), ("l", 0, "1")),
        (("none", 0), ("none", 0)),
    ],
)
def test_spell(path: KeyPath, spelled: KeyPath) -> None:
    """A number is an index in a list, and text as the key of a mapping."""
    assert tree_of({"m": {"0": 1}, "l": [{"k": 1}]}).spell(path) == spelled


def test_set_makes_the_mappings_above() -> None:
    """What is missing or null above a new value becomes a mapping from the same place."""
    tree = tree_of({"n": None})
    tree.set(("n", "a", "b"), 1, {("n", "a", "b"): THERE})
    assert tree.data == {"n": {"a": {"b": 1}}}
    assert tree.origins["n", "a"] == tree.origins["n", "a", "b"] == THERE


def test_set_replaces_with_what_was_below() -> None:
    """No place of a replaced value stays behind."""
    tree = tree_of({"a": {"b": [1, {"c": 2}]}, "ab": 1})
    tree.set(("a",), 3, {("a",): THERE})
    assert keys(tree) == {"", "a", "ab"}
    assert tree.origins["a",] == THERE


def test_set_an_item() -> None:
    """One item of a list is replaced in place."""
    tree = tree_of({"a": [1, [2]]})
    tree.set(("a", 1, 0), 3, {("a", 1, 0): THERE})
    assert tree.data == {"a": [1, [3]]}


def test_delete() -> None:
    """A key goes with all its places."""
    tree = tree_of({"a": {"b": {"c": 1}, "d": 2}})
    tree.delete(("a", "b"))
    assert tree.data == {"a": {"d": 2}}
    assert keys(tree) == {"", "a", "a.d"}


def test_merge() -> None:
    """Mappings merge, all else is replaced, and each value has the place it came from."""
    tree = tree_of({"a": {"x": 1, "y": [1, 2]}, "b": {"z": 1}})
    values: dict[str, Any] = {"a": {"y": [3]}, "b": None, "c": {"d": []}}
    tree.merge(values, plain_origins(values, (), THERE))
    assert tree.data == {"a": {"x": 1, "y": [3]}, "b": None, "c": {"d": []}}
    assert keys(tree) == {"", "a", "a.x", "a.y", "a.y.0", "b", "c", "c.d"}
    assert tree.origins["a", "x"] == HERE
    assert tree.origins["a", "y", 0] == THERE
    tree.data["c"]["d"].append(1)
    assert values["c"] == {"d": []}


def test_merge_below() -> None:
    """Values hang where asked, over what is no mapping there, and its places go."""
    tree = tree_of({"a": [1, {"x": 1}]})
    tree.merge({"k": 1}, plain_origins({"k": 1}, ("a", "b"), THERE), ("a", "b"))
    assert tree.data == {"a": {"b": {"k": 1}}}
    assert keys(tree) == {"", "a", "a.b", "a.b.k"}


def test_merge_of_many_replaced_lists_is_linear() -> None:
    """Replacing thousands of lists looks at each origin once, not thousands of times."""
    many = {f"k{i}": [i] for i in range(20_000)}
    tree = tree_of(many)
    values = dict.fromkeys(many, 1)
    tree.merge(values, plain_origins(values, (), THERE))
    assert tree.data == values
    assert len(tree.origins) == 20_001
