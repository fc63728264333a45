import pytest
import yaml

from mtf_config import ConfigFileError, _yaml


@pytest.fixture(params=[yaml.CSafeLoader, yaml.SafeLoader], ids=["libyaml", "pyyaml"])
def _both_parsers(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run the test with libyaml, and with PyYAML's own parser."""
    monkeypatch.setattr(_yaml, "_Parser", request.param)


@pytest.mark.usefixtures("_both_parsers")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 'x\nb: 2", "f:1:4: this quote is never closed"),
        ('a: "x\n---\n"', "f:1:4: this quote is never closed"),
        ("a: [1, 2\nb: 3", "f:2:2: the bracket that opens at line 1, column 4 is not"),
        ("a: {b: 1\nc: 2", "f:2:2: the bracket that opens at line 1, column 4 is not"),
        ("a: b: c", "f:1:5: this `:` begins no value: check the indentation"),
        ("a: 1\n b: 2", "f:2:3: this `:` begins no value: check the indentation"),
        ("a: 1\nb\nc: 2", "f:2:1: this line is not `key: value`"),
        ("a:\n  b: 1\n c: 2", "f:3:2: does not fit what stands above it: check the"),
        ("- a\nb: 1", "f:2:1: does not fit what stands above it"),
        ("a: 'it's'", "f:1:8: does not fit what stands above it"),
        ("a: - b", "f:1:4: a list begins on a line of its own below its key"),
        ("a: [1,,2]", "f:1:7: a value is missing here, or has to be quoted"),
        ("a: ]", "f:1:4: a value is missing here, or has to be quoted"),
        ('a: "C:\\q"', "in double quotes a backslash is written twice"),
        ("a: 1\n... x", "f:2:5: text stands where the document has ended"),
        ("a:\n\tb: 1", "f:2:1: a tab stands where YAML allows only spaces"),
        ("a: 1\n\tb: 2", "f:2:1: a tab stands where YAML allows only spaces"),
        ("a: |\n\tx", "f:2:1: a tab stands where YAML allows only spaces"),
        ("-\ta: 1", "f:1:2: a tab stands where YAML allows only spaces"),
        ("a: @x", "f:1:4: '@' cannot begin a value: put the text in quotes"),
        ("a: `x", "f:1:4: '`' cannot begin a value: put the text in quotes"),
        ("a:\n  %x", "f:2:3: '%' cannot begin a value: put the text in quotes"),
        ("%YAML 1.1\n%YAML 1.1\n---\na: 1", "f:2:1: found duplicate"),
        ("a: !x!y z", "f:1:4: found undefined tag handle"),
    ],
)
def test_fault_in_words(text: str, message: str) -> None:
    """A parser's complaint becomes the place and what to change, from either parser."""
    with pytest.raises(ConfigFileError) as caught:
        _yaml.parse(text.encode(), "f")
    assert message in str(caught.value)
