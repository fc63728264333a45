from __future__ import annotations

import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtf_slurm._fake.options import split_options
from mtf_slurm._places import fill, mark

HOSTILE = (
    *("", "a b", "$(touch x)", "`touch x`", "a;b", "a'b", 'a"b', "a\\b", "\\", "-x"),
    *(
        "#x",
        "a #b",
        "$HOME",
        "*",
        "~",
        "!x",
        "a&b|c",
        "{a,b}",
        "é",
        "../x",
        "%j",
        "a\\'b",
    ),
)
texts = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), max_size=20)


def echoed(line: str) -> list[str]:
    """Return the words that bash makes of a line that calls ``show``."""
    script = "show() { printf '%s\\0' \"$@\"; }\n" + line
    done = subprocess.run(
        ["/bin/bash", "-c", script],
        capture_output=True,
        check=True,
        encoding="utf-8",
        timeout=20,
        env={"PATH": "", "LC_ALL": "C.UTF-8"},
    )
    assert done.stderr == ""
    return done.stdout.split("\0")[:-1]


TEMPLATES = (
    "show {m}",
    "show x={m}",
    'show "{m}"',
    "show '{m}'",
    'show "a{m}b"',
    'x={m}; show "$x"',
    'x="{m}"; show "$x"',
    'show "$(printf %s {m}; echo .)"',
    "x=$(printf '%s.' '{m}'); show \"$x\"",
    'show "$HOME" "${{#}}" $((1 + 1)) "{m}"',
)


def wanted(template: str, value: str) -> list[str]:
    """Return what bash should make of a template with that value."""
    plain = {0: [value], 1: ["x=" + value], 4: [f"a{value}b"]}
    index = TEMPLATES.index(template)
    more = {7: [value + "."], 8: [value + "."], 9: ["", "0", "2", value]}
    return {**plain, **more}.get(index, [value])


@pytest.mark.parametrize("template", TEMPLATES)
def test_hostile_values_stay_one_word(template: str) -> None:
    """Whatever a value is, bash has it as it was, in each place."""
    lines = [fill(template.format(m=mark([value]))) for value in HOSTILE]
    expected = [word for value in HOSTILE for word in wanted(template, value)]
    assert echoed("\n".join(lines)) == expected


@settings(max_examples=40, deadline=None)
@given(st.lists(texts, min_size=5, max_size=20))
def test_any_values_stay_words(values: list[str]) -> None:
    """A list is as many words, and a text between quotes is that text."""
    lines = [f"show {mark(values)}"]
    lines += [f"show \"{mark([v])}\" '{mark([v])}'" for v in values]
    doubled = [v for v in values for _ in range(2)]
    assert echoed(fill("\n".join(lines))) == [*values, *doubled]


@given(texts)
def test_any_value_is_one_option(value: str) -> None:
    """What stands in an #SBATCH line is one word for sbatch, as it was."""
    line = fill(f"#SBATCH --comment={mark([value])} --nodes=1")
    assert "\n" not in line
    expected = [f"--comment={value}", "--nodes=1"]
    assert split_options(line.removeprefix("#SBATCH")) == expected


@pytest.mark.parametrize(
    ("text", "number", "said"),
    [
        (f"cat <<EOF\n{mark(['x'])}\nEOF", 2, "here-document"),
        (f"x=`echo {mark(['x'])}`", 1, "within `"),
        (f"x=$'{mark(['x'])}'", 1, "within \\$'"),
        (f"echo ${{x:-{mark(['x'])}}}", 1, "within {"),
        (f"echo $((1 + {mark(['x'])}))", 1, r"within \(\("),
        (f'echo "${{x:-"{mark(["x"])}"}}"', 1, "variable"),
        (f"\\{mark(['x'])}", 1, "backslash"),
        (f'echo "{mark(["x", "y"])}"', 1, "take these away"),
        (f'#SBATCH --a="{mark(["x"])}"', 1, "leave the quotes out"),
        (f"#SBATCH --a={mark(['x', 'y'])}", 1, "one value"),
    ],
)
def test_places_without_a_safe_quoting_are_refused(
    text: str, number: int, said: str
) -> None:
    """Where a value could mean something else, nothing is written."""
    with pytest.raises(ValueError, match=said) as caught:
        fill(text)
    assert caught.value.args[0] == number


def test_what_ends_is_over() -> None:
    """After a here-document, a comment or an expansion, values are quoted as before."""
    text = f"cat <<-'END' # it's\n'\nEND\nshow \"${{x}}\" {mark(['a b'])} # {mark(['c'])}"
    assert fill(text).endswith("\nshow \"${x}\" 'a b' # c")
    assert fill(f"cat <<<x\nshow {mark(['a b'])}").endswith("'a b'")
    assert fill(f"echo \\'{'x'} {mark(['a b'])}").endswith("'a b'")
    assert fill(f"a=((1)) \nshow {mark(['a b'])}").endswith("'a b'")
