from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from mtf_config import ConfigFileError, ExperimentConfig, _yaml
from mtf_config._yaml_dump import dump

Write = Callable[[str, str | bytes], Any]
Refusal = Callable[..., str]
BASE = "experiment_name: a\nmodel: {type: m}\ndata: {dataset_name: d}\n"
PARSERS = [yaml.CSafeLoader, yaml.SafeLoader]


@pytest.fixture(params=PARSERS, ids=["libyaml", "pyyaml"])
def both_parsers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test with libyaml, and with PyYAML's own parser."""
    monkeypatch.setattr(_yaml, "_Parser", request.param)


def fault(raw: bytes) -> str:
    """Return what is said of bytes that are refused."""
    with pytest.raises(ConfigFileError) as caught:
        _yaml.parse(raw, "f")
    return str(caught.value)


SCALARS: list[tuple[str, object]] = [
    *((text, None) for text in ("", "~", "null", "Null", "NULL")),
    *((text, True) for text in ("true", "True", "TRUE")),
    *((text, False) for text in ("false", "False", "FALSE")),
    *((text, text) for text in ("on", "off", "yes", "No", "y", "nULL", "tRUE")),
    *(("0", 0), ("-0", 0), ("+7", 7), ("010", 10), ("0o17", 15), ("0xfF", 255)),
    *((text, text) for text in ("-0x1", "0b1", "0o8", "1_000", "12:00:00", "1:2")),
    *(("1e-4", 1e-4), ("1.", 1.0), (".5", 0.5), ("-1.5E+3", -1500.0), ("1e-999", 0.0)),
    *((text, text) for text in (".", "e5", "1e", "+", "-x", "1.2.3", "0x", ".e1")),
    *((".inf", math.inf), ("+.Inf", math.inf), ("-.INF", -math.inf)),
    *((text, text) for text in ("inf", "nan", "-.nan", ".iNF")),
    *(("2020-01-01", "2020-01-01"), ("=", "="), ("٣", "٣")),
]


@pytest.mark.usefixtures("both_parsers")
@pytest.mark.parametrize(("text", "value"), SCALARS)
def test_plain_scalar_means_what_the_core_schema_says(text: str, value: object) -> None:
    """Scalars get the type of YAML 1.2's core schema, from either parser."""
    parsed, _ = _yaml.parse(f"a: {text}".encode(), "f")
    assert (parsed["a"], type(parsed["a"])) == (value, type(value))


def test_nan_is_read() -> None:
    """The reader knows NaN; whether it means anything is for the schema."""
    assert math.isnan(_yaml.parse(b"a: .NaN", "f")[0]["a"])


@pytest.mark.parametrize("text", ["1e400", "-1e999", "9" * 401, "0x" + "f" * 400])
def test_number_too_large_for_its_type(text: str) -> None:
    """A number that would become infinite, or thousands of digits, is refused."""
    assert "f:2:4: " in fault(f"\na: {text}".encode())
    with pytest.raises(ValueError, match="too large"):
        _yaml.parse_scalar(text)


@pytest.mark.usefixtures("both_parsers")
@pytest.mark.parametrize("text", ["'1'", '"1"', "!!str 1", "! '1'", "|-\n 1", ">-\n 1"])
def test_quoted_is_text(text: str) -> None:
    """Quotes, blocks and the tag !!str make text of what looks like a number."""
    assert _yaml.parse(f"a: {text}".encode(), "f")[0] == {"a": "1"}


@pytest.mark.usefixtures("both_parsers")
def test_origins_are_the_places_of_the_values() -> None:
    """Every value and key has the line and column where it begins, below the path."""
    _, origins = _yaml.parse(b"a: 1\nb:\n  c: [x,\n   y]\n", "f", ("s",))
    places = {".".join(map(str, path)): str(origin) for path, origin in origins.items()}
    assert places == {
        "s": "f:1:1",
        "s.a": "f:1:4",
        "s.a.": "f:1:1",
        "s.b": "f:3:3",
        "s.b.": "f:2:1",
        "s.b.c": "f:3:6",
        "s.b.c.": "f:3:3",
        "s.b.c.0": "f:3:7",
        "s.b.c.1": "f:4:4",
    }


@pytest.mark.usefixtures("both_parsers")
@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b"", {}),
        (b"# nothing\n", {}),
        (b"\xef\xbb\xbf", {}),
        (b"\xef\xbb\xbfa: 1", {"a": 1}),
        (b"a: 1\r\nb: 2\r\n", {"a": 1, "b": 2}),
        (b"a: 1\rb: 2", {"a": 1, "b": 2}),
        (b"%YAML 1.2\n---\na: on\n...\n", {"a": "on"}),
        (b"? a\n? b\n", {"a": None, "b": None}),
        ("ключ: значение\n".encode(), {"ключ": "значение"}),
        (b'a: "\\U0001F600\\0\\x1b"', {"a": "\U0001f600\0\x1b"}),
        (b"a: &x [1]\nb: *x\n", {"a": [1], "b": [1]}),
        (b"&k a: 1\nb: *k\n", {"a": 1, "b": "a"}),
        (b"a: &x [&x 1, *x]\n", {"a": [1, 1]}),
        (b'"<<": 1\n', {"<<": 1}),
        (b'"1": 1\n', {"1": 1}),
    ],
)
def test_accepted(raw: bytes, value: object) -> None:
    """Empty files, byte order marks, any line ends and anchors are read."""
    assert _yaml.parse(raw, "f")[0] == value


def test_aliases_are_copies() -> None:
    """What two aliases give can be changed apart."""
    value, _ = _yaml.parse(b"a: &x {k: []}\nb: *x\n", "f")
    value["a"]["k"].append(1)
    assert value["b"] == {"k": []}


@pytest.mark.usefixtures("both_parsers")
@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"a: 1\na: 2", "f:2:1: a: the key 'a' stands twice, first at f:1:1"),
        (b"a: {b: 1, b: 2}", "f:1:11: a.b: the key 'b' stands twice"),
        (b"a: !!python/object/apply:os.system [x]", "f:1:4: the tag '!!python/object"),
        (b"a: !!python/name:os.system", "f:1:4: the tag '!!python/name:os.system'"),
        (b"!!set {a}", "f:1:1: the tag '!!set'"),
        (b"a: !!binary aGk=", "f:1:4: the tag '!!binary'"),
        (b"a: !Foo {}", "f:1:4: the tag '!Foo' is refused"),
        (b"!!int 1: 2", "f:1:1: the tag '!!int'"),
        (b"- 1\n--- \n- 2", "f:2:1: a second document begins here"),
        (b"a: &x [*x]", "f:1:8: *x stands inside itself"),
        (b"a: *x", "f:1:4: *x stands for what &x marks"),
        (b"a: *.py", "f:1:4: text that begins with * or & has to be quoted"),
        (b"1: 2", 'f:1:1: the key 1 is not text; write "1"'),
        (b"null: 2", 'the key null is not text; write "null"'),
        (b"? [a]\n: 2", "f:1:3: a key must be text"),
        (b"a: {{x}}", "f:1:5: a key must be text"),
        (b"a: &x k\n*x : 2", "f:2:1: a key must be text"),
        (b"<<: {a: 1}", "f:1:1: merge keys (<<) are not in YAML 1.2"),
        (b"'': 1", "f:1:1: the key '' is empty"),
        (b"optimizer.lr: 1", "write 'lr' in a section of its own below 'optimizer'"),
        (b"'.': 1", "f:1:1: the key '.' is empty or holds a dot"),
        (b"a: 1e999", "f:1:4: 1e999 is too large"),
        (b"\xff", "f:1:1: not UTF-8: byte 0xff"),
        (b"a: 1\nb: \xc3\xa4\xff", "f:2:5: not UTF-8: byte 0xff"),
        (b"\xef\xbb\xbfab\xff", "f:1:3: not UTF-8: byte 0xff"),
        ("a: ä".encode("latin-1"), "f:1:4: not UTF-8: byte 0xe4"),
        ("a: 1".encode("utf-16"), "f:1:1: not UTF-8: byte 0xff"),
        ("a: \ud800".encode("utf-8", "surrogatepass"), "f:1:4: not UTF-8: byte 0xed"),
        (b'a: "\\ud800"', "f:1:"),
        (b'a: "\\U00110000"', "f:1:"),
        (b'a: "\\UFFFFFFFF"', "f:1:"),
        (b"a: 1\nb: \x00", r"f:2:4: '\x00' may not stand in YAML"),
        (b"\x07", r"f:1:1: '\x07' may not stand in YAML"),
        (b"a: 1\r\nb: \x1b", r"f:2:4: '\x1b' may not stand in YAML"),
        (b"%YAML 1." + b"9" * 5000 + b"\n---\na: 1", "f:1:"),
        (b"%YAML 2.0\n---\na: 1", "f:1:1: found incompatible YAML document"),
    ],
)
def test_refused_with_line_and_column(raw: bytes, message: str) -> None:
    """Whatever is no plain document is an error that says where and what."""
    assert message in fault(raw)


@pytest.mark.usefixtures("both_parsers")
@pytest.mark.parametrize("character", ["\x85", "\u2028", "\u2029"])
def test_line_ends_of_yaml_1_1_are_refused(character: str) -> None:
    """What one YAML reads as the end of a line and another as text has to be escaped."""
    message = fault(f"a: 1\n# x{character} b: 2\n".encode())
    assert f"f:2:4: {character!a} is read as the end of a line" in message


@pytest.mark.parametrize("byte", ["a", "a\n"])
def test_character_that_only_libyaml_refuses_has_a_place(byte: str) -> None:
    """A control character late in a large file is found again for its place."""
    filler = "# filler\n" * 10_000
    assert r"f:10001:4: '\x7f'" in fault(f"{filler}b: \x7f{byte}".encode())


@pytest.mark.parametrize(
    "raw", [b"[" * 100_000, b"- " * 100_000, b"{a: " * 100_000, b"? " * 100_000]
)
@pytest.mark.usefixtures("both_parsers")
def test_deep_nesting(raw: bytes) -> None:
    """A hundred thousand brackets are refused before they cost memory or the stack."""
    assert "nested more than 32 levels deep" in fault(raw) or "must be text" in fault(raw)


def test_nesting_up_to_the_limit() -> None:
    """32 levels are read, 33 are not; aliases count with what they hold."""
    _yaml.parse(b"[" * 32 + b"]" * 32, "f")
    assert "nested" in fault(b"[" * 33 + b"]" * 33)
    inner = b"&x " + b"[" * 20 + b"]" * 20
    assert "nested" in fault(b"[" + inner + b"," + b"[" * 12 + b"*x" + b"]" * 13)


def bomb(levels: int, width: int, leaf: str) -> bytes:
    """Return a document whose aliases expand to ``width ** levels`` leaves."""
    lines = [f"a0: &a0 {leaf}"]
    for level in range(1, levels + 1):
        aliases = ", ".join([f"*a{level - 1}"] * width)
        lines.append(f"a{level}: &a{level} [{aliases}]")
    return "\n".join(lines).encode()


@pytest.mark.parametrize(
    "raw",
    [
        bomb(9, 10, "lol"),
        bomb(25, 2, "{}"),
        bomb(1, 2000, "x" * 10_000),
        bomb(2, 40, f"{{k: {'x' * 100_000}}}"),
        b"- 1\n" * 60_000,
    ],
)
def test_bombs(raw: bytes) -> None:
    """Aliases that expand to billions of values, or gigabytes of text, are refused."""
    assert "expands to more than 50000 values" in fault(raw)


def test_size_counts_long_text() -> None:
    """What counts against the limit is bounded by bytes as well as by values."""
    assert _yaml.size({"a": [1, "xy"]}) == 4
    assert _yaml.size("x" * _yaml.MAX_BYTES) > _yaml.MAX_NODES


def test_long_scalars_are_not_remembered() -> None:
    """The cache of scalars holds short ones, so hostile text costs no lasting memory."""
    before = _yaml._parse_cached.cache_info().currsize
    for index in range(50):
        _yaml.parse_scalar(f"{index}" + "x" * 10_000)
    assert _yaml._parse_cached.cache_info().currsize == before


def test_larger_than_the_limit() -> None:
    """More bytes than any config has are refused unread."""
    assert "larger than 1048576 bytes" in fault(b"#" * (_yaml.MAX_BYTES + 1))


plain_text = st.text(st.characters(exclude_categories=["Cs"]))
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | plain_text
)
keys = plain_text.filter(lambda key: key and "." not in key)
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(keys, inner), max_leaves=10
)


def typed(value: Any) -> Any:
    """Return *value* with its types, so that True, 1 and 1.0 differ, and 0.0 and -0.0."""
    if isinstance(value, dict):
        return {key: typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [typed(item) for item in value]
    return type(value), repr(value)


@given(st.dictionaries(keys, values))
@example({"a": [True, 1, 1.0, "1", "true", "on", 1e-5, 1e300, -0.0, math.inf]})
@example({"a": ["<<", "=", "~", "", " x ", "a: b", "- a", "?", "#", "x\n\n y\n"]})
@example({"k" * 200: "v " * 200, "\x85": "\u2028\ufeff\x7f\0", "on": {"y": []}})
def test_dump_then_parse_is_equal(value: dict[str, Any]) -> None:
    """Any plain mapping is read back equal, types, order and all, by both parsers."""
    raw = dump(value).encode()
    for parser in PARSERS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_yaml, "_Parser", parser)
            read, _ = _yaml.parse(raw, "f")
        assert typed(read) == typed(value)
        assert list(read) == list(value)


def outcome(raw: bytes, parser: type) -> Any:
    """Return what *raw* is read as, or that it is refused."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_yaml, "_Parser", parser)
        try:
            return typed(_yaml.parse(raw, "f")[0])
        except ConfigFileError as error:
            str(error).encode()
            return "refused"


@given(st.binary() | plain_text.map(str.encode))
def test_any_bytes_give_values_or_a_config_file_error(raw: bytes) -> None:
    """No bytes make either parser raise anything of its own."""
    for parser in PARSERS:
        outcome(raw, parser)


tokens = st.sampled_from(
    (
        *"[]{},:-?&*!|>'\"%@`# \n\t~ax10.",
        *("\r\n", "- ", ": ", "? ", "a: ", "---\n", "...\n", "  ", "\n  ", "\n "),
        *("&a ", "*a", "!!str ", "!!int ", "<<", "\\", "\\x4", "%YAML 1", "\\ud800"),
        *("\\UFFFFFFFF", "\ufeff", "\u2028", "\x7f", "\0"),
    )
)


@given(st.lists(tokens, max_size=40).map("".join))
@example("a: [\n\t@]")
@example("\ufeff\ufeff@")
@example("a:\n\n\t\t@")
def test_any_tokens_give_values_or_a_config_file_error(text: str) -> None:
    """No sequence of YAML's own tokens does either."""
    for parser in PARSERS:
        outcome(text.encode(), parser)


@given(st.text("0123456789.eE+-xo_:infaNrueTlsy~", max_size=12))
def test_both_parsers_agree_on_scalars(text: str) -> None:
    """What looks like a number means the same to libyaml and to PyYAML's parser."""
    raw = f"a: {text}\n".encode()
    assert outcome(raw, yaml.CSafeLoader) == outcome(raw, yaml.SafeLoader)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_parse_scalar_agrees_with_itself(text: str) -> None:
    """A scalar that means itself is text; a number means what Python reads in it."""
    try:
        value = _yaml.parse_scalar(text)
    except ValueError:
        return
    if isinstance(value, str):
        assert value == text
    elif isinstance(value, float) and not math.isinf(value) and not math.isnan(value):
        assert value == float(text)


def test_a_megabyte_of_one_token() -> None:
    """A megabyte of one token is read or refused, and not in quadratic time."""
    for piece in (b"\\", b'"', b"'", b": ", b"[]", b"a: &a ", b"!", b"\t", b"\xc2\x85"):
        outcome(piece * (_yaml.MAX_BYTES // len(piece)), yaml.CSafeLoader)


def test_load_names_file_line_and_column(write: Write, refusal: Refusal) -> None:
    """Through the manager, a fault names the file as the user did."""
    write("sub/c.yaml", BASE + "seed: 1\nseed: 2\n")
    assert refusal("sub/c.yaml").startswith(
        "sub/c.yaml:5:1: seed: the key 'seed' stands twice"
    )


@pytest.mark.parametrize(
    ("line", "place"),
    [
        (b"seed: !!python/object/apply:os.getpid []", "4:7"),
        (b"\tseed: 1", "4:1"),
        (b"description: \xff", "4:14"),
        (b"seed: &a [*a]", "4:11"),
        (b"description: \x00", "4:14"),
        (b"extra: " + b"[" * 100_000, "4:39"),
    ],
)
def test_load_of_hostile_lines(
    write: Write, refusal: Refusal, line: bytes, place: str
) -> None:
    """Tags, tabs, bytes, cycles and depth are refused by `load` at their place."""
    write("c.yaml", BASE.encode() + line)
    assert refusal("c.yaml").startswith(f"c.yaml:{place}: ")


def test_load_of_a_bomb(write: Write, refusal: Refusal) -> None:
    """A YAML bomb in a config is refused by `load`, with the place where it went off."""
    write("c.yaml", BASE.encode() + bomb(9, 10, "lol"))
    assert refusal("c.yaml").startswith("c.yaml:9:")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("optimizer: {lr: .nan}", "c.yaml:4:17: optimizer.lr: not valid, found nan"),
        ("optimizer: {lr: .inf}", "c.yaml:4:17: optimizer.lr: not valid, found inf"),
        ("training: {batch_size: -1}", "c.yaml:4:24: training.batch_size: not valid"),
        ("data: {}", "c.yaml:4:1: data: the key 'data' stands twice"),
        ("seed: '7'", "c.yaml:4:7: seed: not valid, found the text '7'"),
        ("training: {max_epochs: ten}", "found the text 'ten'; write an integer"),
        ("training: 5", "c.yaml:4:11: training: not valid, found 5"),
        ("sede: 5", "c.yaml:4:1: sede: no such key; did you mean seed?"),
    ],
)
def test_load_of_wrong_values(
    write: Write, refusal: Refusal, line: str, message: str
) -> None:
    """Values that mean nothing where they stand are refused at their place."""
    write("c.yaml", BASE + line)
    assert message in refusal("c.yaml")


def test_load_crlf_and_bom(write: Write, load: Callable[..., ExperimentConfig]) -> None:
    """A file as Windows editors save it is read, with the right places."""
    text = "\ufeff" + (BASE + "seed: 3\n").replace("\n", "\r\n")
    write("c.yaml", text.encode())
    config = load("c.yaml")
    assert config.seed == 3
    assert str(config.provenance("seed")) == "c.yaml:4:7"
