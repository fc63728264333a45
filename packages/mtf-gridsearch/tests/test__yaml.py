import math
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mtf_gridsearch import _yaml
from mtf_gridsearch.errors import GridError

TEXTS = st.text(st.characters(codec="utf-8"), max_size=8)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(params=["CSafeLoader", "SafeLoader"])
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run with libyaml's scanner and with PyYAML's own."""
    monkeypatch.setattr(_yaml, "_Parser", getattr(yaml, request.param))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("on", "on"),
        ("yes", "yes"),
        ("12:00:00", "12:00:00"),
        ("0o17", 15),
        ("0x1F", 31),
        ("017", 17),
        ("1_000", "1_000"),
        ("2020-01-01", "2020-01-01"),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("~", None),
        ("", None),
        ("TRUE", True),
        ("False", False),
        ("+.5", 0.5),
    ],
)
@pytest.mark.usefixtures("parser")
def test_core_schema(text: str, value: object) -> None:
    """Plain scalars mean what YAML 1.2's core schema says."""
    result = _yaml.parse(f"a: {text}".encode(), "f")["a"]
    assert result == value
    assert type(result) is type(value)


def nested_by(levels: int) -> dict[str, Any]:
    """Return a mapping in which so many lie in each other."""
    values: dict[str, Any] = {"a": 1}
    for _ in range(levels - 1):
        values = {"a": values}
    return values


@pytest.mark.parametrize(
    ("good", "bad", "said"),
    [
        (nested_by(48), nested_by(49), "48 levels deep: nest less"),
        (nested_by(48), nested_by(5000), "48 levels deep"),
        ({"a": [0] * 998}, {"a": [0] * 999}, "more than 1000 values: include fewer"),
        ({"a": "x" * 900}, {"a": "x" * 1100}, "larger than 1024 bytes: include fewer"),
        ({"a": "x" * 900}, {"a": "\x01" * 1000}, "larger than 1024 bytes"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(
    good: dict[str, Any],
    bad: dict[str, Any],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The bounds of reading hold for writing, and the error says what to do."""
    monkeypatch.setattr(_yaml, "_MAX_NODES", 1000)
    monkeypatch.setattr(_yaml, "_MAX_BYTES", 1024 if "bytes" in said else 1 << 20)
    assert _yaml.parse(_yaml.dump(good).encode(), "f") == good
    with pytest.raises(GridError, match=said):
        _yaml.dump(bad)


def test_nan_is_a_number() -> None:
    """The core schema has it; grids refuse it later, by name."""
    assert math.isnan(_yaml.parse(b"a: .nan", "f")["a"])


@pytest.mark.usefixtures("parser")
def test_structures() -> None:
    """Anchors, quotes, tags of text and nesting give plain values that share nothing."""
    text = "a: &x [1, '1', \"1\", !!str 1]\nb: *x\nc: {d: *x}\n"
    values = _yaml.parse(text.encode(), "f")
    shared = [1, "1", "1", "1"]
    assert values == {"a": shared, "b": shared, "c": {"d": shared}}
    assert values["a"] is not values["b"]


@pytest.mark.parametrize(
    ("text", "place", "reason"),
    [
        ("a: 1\na: 2", "f:2:1", "stands twice"),
        ("a: !!python/object/apply:os.system [x]", "f:1:4", "refused"),
        ("a: !own x", "f:1:4", "refused"),
        ("1: a", "f:1:1", 'write "1"'),
        ("[a]: 1", "f:1:1", "must be text"),
        ("<<: {a: 1}", "f:1:1", "merge"),
        ("a: *b", "f:1:4", "marked above"),
        ("a: &b [*b]", "f:1:8", "marked above"),
        ("a: 1\n--- \nb: 2", "f:2:1", "second document"),
        ("a: [1", "f:", "not YAML"),
        ("a: 1e999", "f:1:4", "too large"),
        (f"a: {'1' * 401}", "f:1:4", "too large"),
        ("a: '\x85'", "f:1", "ends a line"),
        ("a: \x07", "f:1", "control character"),
        ('a: "\\ud800"', "f:1", ""),
        ('a: "\\U99999999"', "f:1", ""),
        ("a: " + "[" * 60 + "]" * 60, "f:1:", "nested"),
        ("&a [&b [" + "[" * 40 + "]" * 40 + "], [[[[[[[[[*b]]]]]]]]]]", "f:1:", "nested"),
    ],
)
@pytest.mark.usefixtures("parser")
def test_faults_name_their_place(text: str, place: str, reason: str) -> None:
    """What is no plain document is refused with file, line and column."""
    with pytest.raises(GridError) as caught:
        _yaml.parse(text.encode(), "f")
    assert caught.value.place.startswith(place)
    assert reason in caught.value.reason


@pytest.mark.usefixtures("parser")
def test_expansion_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few lines cannot expand to more than the limit."""
    monkeypatch.setattr(_yaml, "_MAX_NODES", 1000)
    lines = ["a0: &a0 [text, text]"]
    lines += [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 20)]
    with pytest.raises(GridError, match="expands"):
        _yaml.parse("\n".join(lines).encode(), "f")


def test_bytes_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is too long or not UTF-8 is refused; a byte order mark is not."""
    with pytest.raises(GridError, match=r"f:2: is not UTF-8"):
        _yaml.parse(b"a: 1\nb: \xff", "f")
    assert _yaml.parse(b"\xef\xbb\xbfa: 1", "f") == {"a": 1}
    assert _yaml.parse(b"# nothing\n", "f") == {}
    monkeypatch.setattr(_yaml, "_MAX_BYTES", 4)
    with pytest.raises(GridError, match="larger"):
        _yaml.parse(b"a: 123", "f")


def test_files(tmp_path: Path) -> None:
    """A file is read as a mapping; a folder, a pipe or a missing file say what they are."""
    path = tmp_path / "a.yaml"
    path.write_text("a: 1", "utf-8")
    assert _yaml.load(path) == {"a": 1}
    path.write_text("[1]", "utf-8")
    with pytest.raises(GridError, match="not a mapping"):
        _yaml.load(path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(GridError, match="pipe"):
        _yaml.load(tmp_path / "pipe")
    with pytest.raises(GridError, match=r"missing\.yaml: cannot be read: No such file"):
        _yaml.load(tmp_path / "missing.yaml")
    with pytest.raises(GridError, match="cannot be read"):
        _yaml.load(tmp_path)
    with pytest.raises(GridError, match="null byte"):
        _yaml.load(tmp_path / "a\0b")


def marked(value: Any) -> Any:
    """Return *value* such that equality tells types apart."""
    if isinstance(value, list):
        return [marked(item) for item in value]
    if isinstance(value, dict):
        return {key: marked(item) for key, item in value.items()}
    return (type(value), value)


@given(st.dictionaries(TEXTS, VALUES, max_size=3))
def test_what_is_written_reads_back_equal(values: dict[str, Any]) -> None:
    """Any plain mapping comes back with the same keys, values and types."""
    read = _yaml.parse(_yaml.dump(values).encode(), "f")
    assert marked(read) == marked(values)
    assert list(read) == list(values)


@given(st.dictionaries(st.sampled_from("abc"), SCALARS))
def test_readers_of_yaml_1_1_agree(values: dict[str, Any]) -> None:
    """PyYAML's own loader reads the same values and types."""
    assert marked(yaml.safe_load(_yaml.dump(values))) == marked(values)


def test_how_it_is_written() -> None:
    """Lists of scalars stand on one line, floats have a point, text a quote if it must."""
    values = {"lr": [1e-5, 0.1], "on": ["on", "1e999", "x"], "m": [{"a": 1}], "n": [[1]]}
    assert _yaml.dump(values) == (
        "lr: [1.0e-05, 0.1]\n'on': ['on', '1e999', x]\nm:\n- a: 1\nn:\n- [1]\n"
    )


def test_objects_are_not_written() -> None:
    """What could not be read back is not written."""
    with pytest.raises(TypeError, match="not a plain value"):
        _yaml.dump({"a": object()})


def test_files_are_replaced_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that fails, as on a full disk, leaves the old file and nothing beside it."""
    path = tmp_path / "new" / "a.yaml"
    _yaml.write_atomically(path, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            _yaml.write_atomically(path, "new")
    assert path.read_text("utf-8") == "old"
    assert list(path.parent.iterdir()) == [path]
    _yaml.write_atomically(path, "new")
    assert path.read_text("utf-8") == "new"
