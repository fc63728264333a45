from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtf_slurm import _places
from mtf_slurm._fake.options import split_options
from mtf_slurm._places import fill, mark

RUN = mark(["/usr/bin/printf", "%s\\0", "ran"], is_run=True)
# Each makes the file, if anything runs or reckons with it.
ATTACKS = (
    *("$(: >PWNED)", "`: >PWNED`", "x; : >PWNED;", "'; : >PWNED; '", '"; : >PWNED; "'),
    *("a[$(: >PWNED)]", "x' ; : >PWNED #", "x) : >PWNED ;;", "\\", "\\'; : >PWNED #"),
    *("${x:-$(: >PWNED)}", "{: >PWNED,}", "&& : >PWNED", "| : >PWNED", "x=$(: >PWNED)"),
)
ODD = (
    *("a b", "a'b", 'a"b', "-x", "#x", "a #b", "$HOME", "*", "~", "!x", "!!", "{a,b}"),
    *("é", "%j", "E", "!", "1", "fi", "}", ")", "(", "SBATCH --uid=0", " ", "\\n", "a\\"),
)
texts = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), max_size=20)
hostile = st.sampled_from((*ATTACKS, *ODD)) | texts


def ran(script: str, shell: str = "bash") -> tuple[list[str], list[str], str]:
    """Run a script in an empty folder; return its words, the files made, and its errors."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [f"/bin/{shell}", "/dev/stdin"],
            cwd=folder,
            input=script,
            capture_output=True,
            check=False,
            encoding="utf-8",
            errors="surrogateescape",
            timeout=20,
            env={"PATH": "/nonexistent", "LC_ALL": "C.UTF-8", "HOME": "/nonexistent"},
        )
        return (
            done.stdout.split("\0")[:-1],
            sorted(path.name for path in Path(folder).iterdir()),
            done.stderr,
        )


def script(*lines: str, name: str = "bash") -> str:
    """Return a text to fill, of which the last line runs the experiments."""
    return "\n".join((f"#!/bin/{name}", *lines, f"exec {RUN}", ""))


SHOW = "printf '%s\\0' \"$x\""
ACCEPTED = (
    "x={m}",
    "  x={m}  # it's",
    'x="{m}"',
    "y=1 x={m}",
    "export x={m} y={m}",
    "true && x={m} || exit 1",
    "[ -n 1 ]; x={m}; true",
    'eval "$(echo)" 2>/dev/null && x={m} || x={m}',
    ": <<'E'\n'\"$(\nE\nx={m}",
    "y=`true # it's`\nx={m}\nz=`true # it's`",
    "case a in a) true;; esac; x={m}",
    "f() {{\n  echo\n}}\nx={m}",
)


@pytest.mark.parametrize("shell", ["bash", "sh"])
@pytest.mark.parametrize("text", ACCEPTED)
def test_values_arrive_and_nothing_else_runs(text: str, shell: str) -> None:
    """Whatever a value is, a variable has it as it was, and no other command runs."""
    values = (*ATTACKS, *ODD, "")
    scripts = [
        fill(script(text.format(m=mark(value)), SHOW, name=shell)) for value in values
    ]
    bodies = [made.rpartition("exec ")[0] for made in scripts]
    words, files, said = ran("".join(bodies) + scripts[0], shell)
    assert words == [*values, values[0], "ran"]
    assert files == []
    assert said == ""


def test_a_list_of_nothing_is_no_word() -> None:
    """An empty list is nothing, and an empty value a word."""
    filled = fill(script(f"echo {mark([])} {mark('')} {mark([''])}"))
    assert filled.split("\n")[1] == "echo  '' ''"


def test_words_of_commands() -> None:
    """A value is one word or a part of one, and a list is as many words."""
    show = "module() { printf '%s\\0' \"$@\"; }"
    for value in (*ATTACKS, *ODD):
        one, some = mark(value), mark(["a", value, ""])
        lines = (f"module load {one}/x{one} {some} # {'x'}", f'module "a {one}"{one}')
        words, files, _ = ran(fill(script(show, "x='b c'", *lines, f'module "$x"/{one}')))
        assert words == [
            *("load", f"{value}/x{value}", "a", value, "", f"a {value}{value}"),
            *(f"b c/{value}", "ran"),
        ]
        assert files == []


@settings(max_examples=15, deadline=None)
@given(st.lists(texts, min_size=3, max_size=10))
def test_any_text_arrives(values: list[str]) -> None:
    """A text is the same in a variable, with the author's double quotes and without."""
    lines = [f'x={mark(v)}\n{SHOW}\nx="{mark(v)}"\n{SHOW}' for v in values]
    doubled = [value for value in values for _ in range(2)]
    assert ran(fill(script(*lines))) == ([*doubled, "ran"], [], "")


REFUSED = (
    # in what goes on over lines
    "cat <<E\n{x}\nE",
    "cat <<!\n{x}\n!",
    "cat <<1\n{x}\n1",
    "cat <<%%\n{x}\n%%",
    "cat <<E.x\nE\n{x}\nE.x",
    "cat <<E\n E\n{x}\nE",
    "cat <<A <<B\nx\nA\n{x}\nB",
    "cat <<-'A B'\n{x}\nA B",
    "echo '\n{x}\n'",
    'echo "\n{x}\n"',
    "echo `\n{x}\n`",
    "echo $(\n{x}\n)",
    "echo foo \\\n{x}",
    "echo foo\\\n{x}",
    "if true; then\n{x}\nfi",
    "f() {{\n{x}\n}}",
    "true &&\n{x}",
    "case y in\ny)\n{x};;\nesac",
    # on a line with other things
    "# {x}",
    "true # ; {x}",
    "echo \\; {x}",
    "eval y\\; {x}",
    "x=$({x})",
    "`{x}`",
    "({x})",
    "if {x}; then :; fi",
    "{x} &",
    "{x} | cat",
    "{x} >y",
    "echo 1 && '; {x}'",
    "[[ a && {x} ]]",
)


@pytest.mark.parametrize("text", REFUSED)
@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_a_value_within_anything_is_refused(text: str, shell: str) -> None:
    """A command with a value must begin where the shell says that one begins."""
    with pytest.raises(
        ValueError, match=r"name=\{\{ value|in a comment: write \{#"
    ) as caught:
        fill(script("true", text.format(x=f"y={mark('v')}"), name=shell))
    line = text.partition("{x}")[0].count("\n") + 3
    assert caught.value.args[0] == line
    assert "y={{ }}" in caught.value.args[1]


@pytest.mark.parametrize(
    "text",
    [
        *("{m}", "{m} x", "{m}=1", "export {m}", "export {m}=1", "a[{m}]=1", "a+={m}"),
        *("let x={m}", "declare -i x={m}", "eval {m}", "trap {m} EXIT", "unset {m}"),
        *("[[ {m} -eq 1 ]]", "[ {m} = 1 ]", "test -v {m}", "((x = {m}))", "x=$(({m}))"),
        *("printf -v {m} 1", "printf {m}", "read {m}", 'bash -c "echo {m}"', "sh -c {m}"),
        *("srun {m}", "x='{m}'", "x=$'{m}'", "x=`{m}`", "x=${{y:-{m}}}", 'x="`{m}`"'),
        *(
            "x=\\{m}",
            "x=$y{m}",
            'x="$y{m}"',
            "cd {m}*",
            "X={m} make",
            "x=({m})",
            "x=<({m})",
        ),
        *("RANDOM={m}", "SRANDOM={m}", "OPTIND={m}", "HISTCMD={m}", "PS4={m}", "ENV={m}"),
        *("export BASH_ENV={m}", "y=1 PS4={m}", "PROMPT_COMMAND={m}", "SECONDS={m}"),
        *(
            "#{m}",
            "x={l}",
            'echo "{l}"',
            "echo x{l}",
            "source",
            "{r}",
            "x={r}",
            "echo {r}",
        ),
    ],
)
def test_commands_that_do_not_take_values(text: str) -> None:
    """A value is no command, no name, no code and nothing to reckon with."""
    line = text.format(m=mark("v"), l=mark(["v", "w"]), r=RUN)
    if line == text:
        line += f" {mark('v')} {RUN}"
    with pytest.raises(ValueError, match=r"`.*\{\{ \}\}.*`: ") as caught:
        fill(script("true", line))
    assert caught.value.args[0] == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"alias a=cat\nx={mark('v')}", "`alias` before it may change how it is read"),
        (f"shopt -s extglob\nx={mark('v')}", "`extglob` before"),
        (f"declare -i x\nx={mark('v')}", "`declare` before it may change what"),
        (f"typeset -i x\nexport x={mark('v')}", "`typeset` before"),
    ],
)
def test_what_changes_the_meaning_of_lines(text: str, said: str) -> None:
    """After some commands a line may mean something else, so no value stands there."""
    with pytest.raises(ValueError, match=said):
        fill(script(text))
    assert fill(script("# alias", f"x={mark('v')}", "declare y", f"echo {mark('v')}"))


def test_the_experiments_run_last() -> None:
    """The command is the last line, whole, in nothing, and there once."""
    good = f"#!/bin/sh\n{RUN}\n\n# end\n"
    assert fill(good) == "#!/bin/sh\n/usr/bin/printf '%s\\0' ran\n\n# end\n"
    refused = {
        "true": "does not run the experiments",
        "# nothing": "does not run the experiments",
        f"# {RUN}": "in a comment",
        f"{RUN} &": "the last line",
        f"echo {RUN}": "the last line",
        f"true || {RUN}": "the last line",
        f"{RUN}\ntrue": "the last line",
        f"{RUN}\n{RUN}": "the last line",
        f"false &&\n{RUN}": "not complete",
        f"if false; then\n{RUN}\nfi": "the last line",
        f"if false; then\n{RUN}": "not complete",
        f"cat <<E\n{RUN}": "goes on here",
        f"echo \\\n{RUN}": "goes on here",
        f"echo '\n{RUN}": "not complete",
    }
    for text, said in refused.items():
        with pytest.raises(ValueError, match=said):
            fill(f"#!/bin/bash\n{text}")


@pytest.mark.parametrize(
    "first",
    [
        "",
        "echo",
        "#!/bin/zsh",
        "#!/usr/bin/env python3",
        "#!/bin/bash -i",
        f"#!/bin/{mark('sh')}",
    ],
)
def test_scripts_for_others_are_refused(first: str) -> None:
    """What bash or sh do not read is not for their quoting."""
    with pytest.raises(ValueError, match="a first line such as") as caught:
        fill(f"{first}\n{RUN}")
    assert caught.value.args[0] == 1


@pytest.mark.parametrize(
    "first",
    ["#!/bin/bash -l", "#! /usr/bin/env bash", "#!/usr/local/bin/bash --login -eu"],
)
def test_ways_to_name_the_shell(first: str) -> None:
    """Bash may be anywhere, and have options that do not change how it reads."""
    assert fill(f"{first}\n{mark(['x'], is_run=True)}") == f"{first}\nx"


@given(texts)
def test_any_value_is_one_option(value: str) -> None:
    """What stands in an #SBATCH line is one word for sbatch, as it was."""
    line = f'#SBATCH -N 1 --comment={mark(value)} --x="a {mark(value)}"b  # it\'s'
    filled = fill(script(line)).split("\n")[1]
    expected = ["-N", "1", f"--comment={value}", f"--x=a {value}b"]
    assert split_options(filled.removeprefix("#SBATCH")) == expected


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("sbatch") is None, reason="no sbatch of Slurm")
def test_sbatch_itself_reads_the_values(tmp_path: Path) -> None:
    """The real sbatch finds each option with its value, though no Slurm answers it."""
    values = [*ATTACKS, *ODD, "", ":", "hetjob", "a" * 1000, "\\\\", '\\"', "\\\\'"]
    lines = [f'#SBATCH --comment={mark(v)} --comment="a {mark(v)}"' for v in values]
    (tmp_path / "job.sbatch").write_text(fill(script(*lines)), encoding="utf-8")
    (tmp_path / "slurm.conf").write_text(
        "ClusterName=none\nSlurmctldHost=localhost(127.0.0.1)\nSlurmctldPort=1\n"
        "AuthType=auth/none\nMessageTimeout=1\n",
        encoding="utf-8",
    )
    done = subprocess.run(
        ["sbatch", "-vvv", "--test-only", "job.sbatch"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
        encoding="utf-8",
        timeout=60,
        env={**os.environ, "SLURM_CONF": str(tmp_path / "slurm.conf")},
    )
    found = re.findall(r'Found in script, argument "--comment=(.*)"\n', done.stderr)
    assert found == [text for value in values for text in (value, f"a {value}")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"#SBATCH -p {mark('v')}", "--name={{ value"),
        (f"#SBATCH --partition {mark('v')}", "--name={{ value"),
        (f"#SBATCH {mark('v')}", "--name={{ value"),
        (f"#SBATCH --{mark('v')}=1", "--name={{ value"),
        (f"#SBATCH --a='{mark('v')}'", "--name={{ value"),
        (f"#SBATCH --a=\\{mark('v')}", "--name={{ value"),
        (f'#SBATCH --a="{mark("v")}', "--name={{ value"),
        (f"#SBATCH --a={mark(['v', 'w'])}", "takes one value"),
        (f"#SBATCH --a=1 # {mark('v')}", "--name={{ value"),
        (f"#{mark('SBATCH --uid=0')}", "in a comment"),
        (f" #SBATCH --a={mark('v')}", "in a comment"),
        (f"##SBATCH --a={mark('v')}", "in a comment"),
        (f"echo\n#SBATCH --a={mark('v')}", "no options after a command, as on line 2"),
    ],
)
def test_places_of_a_header_that_are_refused(text: str, said: str) -> None:
    """A value of an option is in one word with it, and nothing else has one."""
    with pytest.raises(ValueError, match=said):
        fill(script(text))


def test_a_shell_that_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no shell, nothing is certain, and that is said."""

    def broken(*_args: Any, **_more: Any) -> None:
        raise OSError(2, "No such file")

    _places._complaint.cache_clear()
    monkeypatch.setattr(subprocess, "run", broken)
    with pytest.raises(
        ValueError, match=r"sh cannot be asked whether it is a script: .*No such"
    ):
        fill(script(name="sh"))


AUTHORS = (
    *(
        "",
        "  ",
        " E",
        "cat <<E\n'$(\nE",
        "f() {\n  :\n}",
        "if :; then\n:\nfi",
        "y=(1\n'2 #'\n)",
    ),
    *r"""
case a in (a) :;; esac
x=1; : $((x + 1)) # `
z=$(case a in a) :;; esac)
[[ a ]] # \
cat <<E
E
cat <<!
!
cat <<1
1
cat <<A <<-'B C'
A
B C
echo "
"
echo '
'
echo `
`
echo foo\
true && \
\
$'\'
# it's
x=`true # it's`
y="$(case y in y) echo
;; esac)"
y=$(
)
(
if true; then
else
fi
f() {
}
case a in
a)
;;
esac
y=(
for i in 1 2; do
while false
do
done
((1))
y=$((1+
1))
[[ a &&
b ]]
true &&
true ||
: |
declare -i n
set -x
${y:-
: ${y:-it's}
shopt -s extglob
alias a='cat <<E'
a
echo \
set -u
true
""".strip().split("\n"),
)
PLACES = (
    *(f"x={{m}}\n{SHOW}", f"  x={{m}} # x\n{SHOW}", f'export x="{{m}}"\n{SHOW}'),
    *(
        f"true && x={{m}}; true\n{SHOW}",
        f"n={{m}}; x={{m}}\n{SHOW}",
        "module {m}",
        "ml {m}",
    ),
    *(
        "PS4={m}",
        "#{m}",
        "# {m}",
        "eval echo {m}",
        'bash -c "echo {m}"',
        "[[ {m} -eq 1 ]]",
    ),
    *("let n={m}", "a[{m}]=1", "{m}", "'{m}'", "y=$({m})", "echo \\; x={m}", "# ; x={m}"),
    *(
        "RANDOM={m}",
        "declare -i n={m}",
        "x=1; {m}",
        "cat <<{m}",
        "{m})",
        "; x={m}",
        "x={m};;",
    ),
)


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.sampled_from(AUTHORS) | st.sampled_from(PLACES), max_size=5),
    st.lists(st.sampled_from(PLACES[:7]), min_size=1, max_size=2),
    hostile,
    st.sampled_from(["bash", "sh"]),
)
def test_a_script_is_refused_or_harmless(
    before: list[str], after: list[str], value: str, shell: str
) -> None:
    """Of any lines, either nothing is written, or values arrive and no hostile one runs."""
    lines = [*before, *after]
    if shell == "sh":  # to which it is a command that fails, before what && makes of that
        lines = [line for line in lines if line != "[[ a &&"]
    text = script(*(line.replace("{m}", mark(value)) for line in lines), name=shell)
    try:
        filled = fill(text)
    except ValueError:
        return
    words, files, said = ran(filled, shell)
    num_shown = sum(SHOW in line and "{m}" in line for line in lines)
    assert files == [], said
    shown = [word.rpartition("\n")[2] for word in words]  # others say lines
    assert shown == [*[value] * num_shown, "ran"], said
