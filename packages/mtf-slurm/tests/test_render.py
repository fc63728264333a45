from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtf_slurm._fake.options import split_options
from mtf_slurm.errors import TemplateError
from mtf_slurm.render import KNOWN, Template, variables
from mtf_slurm.settings import SlurmSettings

GOLDEN = Path(__file__).parent / "golden"
JOB = {
    "array": None,
    "commit": "c" * 40,
    "error": "../../exp/%j.err",
    "experiments_folder": "/data/u/my experiments",
    "job_folder": "/data/u/my experiments/.slurm/000001.0123456789abcdef",
    "job_name": "exp",
    "output": "../../exp/%j.out",
    "project_root": "/data/u/project",
    "run": ["/bin/bash", "/data/u/my experiments/task.sh"],
    "setup": "",
}


def values(settings: SlurmSettings | None = None, **more: Any) -> dict[str, Any]:
    """Return a value for each variable."""
    return {**variables(settings or SlurmSettings()), **JOB, **more}


def template(tmp_path: Path, text: str) -> Template:
    """Return a template of that text."""
    path = tmp_path / "mine.sbatch"
    path.write_text(text, encoding="utf-8")
    return Template(path)


@pytest.mark.parametrize("name", ["plain", "full", "torchrun"])
def test_golden_scripts(name: str) -> None:
    """The built-in template writes these scripts, to the letter."""
    settings = {
        "plain": SlurmSettings(),
        "full": SlurmSettings(
            account="lab",
            partition="gpu,long",
            qos="high",
            constraint="a100&nvlink|h100",
            nodes=2,
            ntasks_per_node=4,
            cpus_per_task=8,
            gpus_per_node=4,
            gpu_type="a100",
            mem="64G",
            time="2-00:00:00",
            requeue=False,
            reservation="ours",
            nodelist="n[1-4]",
            exclude="n3",
            exclusive=True,
            nice=100,
            dependencies=("afterok:12:13_4", "singleton"),
            modules=("cuda/12.4", "gcc"),
            venv="/data/u/my venv",
        ),
        "torchrun": SlurmSettings(
            launch="torchrun", ntasks_per_node=4, cpus_per_task=2, signal_s=0, conda="e x"
        ),
    }[name]
    more = {"array": "0-9%2", "setup": "export A=1\nulimit -n 4096"}
    script = Template().render(values(settings, **(more if name == "full" else {})))
    path = GOLDEN / f"{name}.sbatch"
    assert script == path.read_text(encoding="utf-8")


def test_each_variable_is_known_and_has_a_value() -> None:
    """What a template may use is what it gets."""
    assert set(values()) == set(KNOWN)


def test_a_template_of_ones_own(tmp_path: Path) -> None:
    """Loops, conditions and sums work; each value is quoted for its place."""
    text = (
        "#!/bin/bash\n#SBATCH --comment={{ job_name }}\n"
        "{% for m in modules %}module load {{ m }}\n{% endfor %}"
        "echo {{ nodes * 2 }} {{ 'it\\'s' }} \"{{ job_name }}\"\nexec {{ run }}\n"
    )
    made = template(tmp_path, text).render(
        values(SlurmSettings(modules=("a", "b c")), job_name='x "$y"')
    )
    assert made.splitlines()[1:5] == [
        '#SBATCH --comment="x \\"$y\\""',
        "module load a",
        "module load 'b c'",
        'echo 2 \'it\'"\'"\'s\' "x \\"\\$y\\""',
    ]


def test_a_template_as_people_write_them(tmp_path: Path) -> None:
    """Quotes around values, variables, loops and here-documents of the author's own go on."""
    text = """#!/bin/bash -l
#SBATCH -N 1 --job-name="{{ job_name }}"
#SBATCH --chdir={{ job_folder }}     # where it runs
{% if modules %}
module purge
module load {{ modules }}
{% endif %}
set -euo pipefail
source "{{ project_root }}/env/bin/activate" || { echo "no environment" >&2; exit 1; }
export OMP_NUM_THREADS={{ slurm_cpus_per_task }} PATH="{{ project_root }}/bin:$PATH"
root={{ experiments_folder }}
mkdir -p "$root/{{ job_name }}/logs" && cd {{ job_folder }}
cat >"$root/about" <<EOF
host $(hostname), in $root
EOF
for file in "$root"/*.txt; do
  if [[ -e $file ]]; then echo "it's $file"; fi
done
trap 'rm -f "$root/lock"' EXIT
{{ setup }}
{{ run }}
"""
    made = template(tmp_path, text).render(
        values(SlurmSettings(modules=("gcc", "cuda/12")), job_name='a "$b"')
    )
    written = {number: made.split("\n")[number - 1] for number in (2, 3, 5, 7, 8, 9, 10)}
    assert written == {
        2: '#SBATCH -N 1 --job-name="a \\"$b\\""',
        3: f'#SBATCH --chdir="{JOB["job_folder"]}"     # where it runs',
        5: "module load gcc cuda/12",
        7: 'source "/data/u/project/env/bin/activate" || '
        '{ echo "no environment" >&2; exit 1; }',
        8: 'export OMP_NUM_THREADS=1 PATH="/data/u/project/bin:$PATH"',
        9: "root='/data/u/my experiments'",
        10: f'mkdir -p "$root/a \\"\\$b\\"/logs" && cd \'{JOB["job_folder"]}\'',
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "#!/bin/bash\n{{ partiton }}\n{{ run }}",
            "partiton: unknown; there are account",
        ),
        ("#!/bin/bash\necho", "does not run the experiments"),
        ("{{ run }}", "first line such as"),
        ("#!/bin/bash\n{% if %}{{ run }}", "mine.sbatch:2"),
        ("#!/bin/bash\r\n{{ run }}", "mine.sbatch:1: a control character"),
    ],
)
def test_templates_that_cannot_be_used(tmp_path: Path, text: str, said: str) -> None:
    """A template is refused when it is read, before anything is submitted."""
    with pytest.raises(TemplateError, match=said):
        template(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x={{ partition }}", "mine.sbatch:2: None is written"),
        ("\nx={{ requeue }}", "mine.sbatch:3: (True|False) is written"),
        ("x={{ {} }}", "a value of type dict"),
        ("x={{ run.x }}", "mine.sbatch:2: .*no attribute 'x'"),
        ("x={{ modules.append }}", "no attribute 'append'"),
        ("x={{ ''.__class__ }}", "unsafe"),
        ("x={{ 1 / 0 }}", "mine.sbatch:2: division"),
        ("x={{ '{}'.format() }}", "mine.sbatch:2: .*index"),
        ("x={{ '\x01' }}", "control character"),
        ("x={{ setup | upper }}", "setup is written as it is"),
        ("cat <<E\nx={{ job_name }}\nE", "line 3 of the script: `x={{ }}`: a here-doc"),
        (
            "cd {{ job_name }}/'x'",
            "line 2 of the script: .*: a value stands in a command",
        ),
        ("echo\n#SBATCH --nodes={{ nodes }}", "no options after a command, as on line 2"),
    ],
)
def test_what_cannot_be_written(tmp_path: Path, text: str, said: str) -> None:
    """A value that does not fit its place is an error that says where."""
    with pytest.raises(TemplateError, match=said):
        template(tmp_path, f"#!/bin/bash\n{text}\n{{{{ run }}}}\n").render(
            values(setup="a\nb")
        )


@pytest.mark.parametrize(
    "text",
    [
        "{% filter upper %}x={{ job_name }}{% endfilter %}",
        "{% macro m() %}x{% endmacro %}",
        "{% set x %}a{{ nodes }}{% endset %}",
        "{% block b %}{{ nodes }}{% endblock %}",
        "{% call run() %}{% endcall %}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{% from 'os' import path %}",
        "{% extends 'x' %}",
        "{% autoescape true %}{% endautoescape %}",
        "{% for x in run recursive %}{{ loop(run) }}{% endfor %}",
        *("x={{ 9 ** 9 ** 9 }}", "x={{ 9**(9**9) }}", "x={{ 1 + 9**9 }}"),
        "{% if false %}{{ 2 ** 2 }}{% endif %}",
    ],
)
def test_what_templates_do_without(tmp_path: Path, text: str) -> None:
    """What takes written values as text, or calls itself, is refused with its line."""
    with pytest.raises(TemplateError, match=r"mine\.sbatch:2: .* is not for scripts"):
        template(tmp_path, f"#!/bin/bash\n{text}\nexec {{{{ run }}}}\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x={{ 'x' * 1000000000 }}", "mine.sbatch:2: `.` would make more than 262144"),
        ("x={{ 300000 * ('x' * 30) }}", "mine.sbatch:2: `.` would make more than 262144"),
        ("x={{ modules * 300000 }}", "mine.sbatch:2: `.` would make more than 262144"),
        ("{% set a = 9 %}" + "{% set a = a * a %}" * 40, "`.` is for numbers up to"),
        ("{% set a = '%0999999999d' % 1 %}", "`%` is for numbers"),
        ("x={{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "recursion"),
        ("{% for a in 'x' * 200000 %}#\n{% endfor %}", "more than 262144 characters"),
        ("{% for a in 'x' * 300 %}x={{ qos }}\n{% endfor %}", "on more than 200 lines"),
        ("{% for a in range(9) %}{% endfor %}", "range: unknown"),
        ("{% for a in run %}" * 40 + "{% endfor %}" * 40, "nested blocks"),
        ("x={{ cycler }}{{ joiner }}{{ lipsum }}", "cycler, joiner, lipsum: unknown"),
    ],
)
def test_templates_without_bounds(tmp_path: Path, text: str, said: str) -> None:
    """One that would fill the memory is an error."""
    with pytest.raises(TemplateError, match=said):
        template(tmp_path, f"#!/bin/bash\n{text}\nexec {{{{ run }}}}\n")


def test_products_that_are_small_are_computed(tmp_path: Path) -> None:
    """Numbers and short texts are multiplied as before."""
    text = "#!/bin/bash\necho {{ '-' * 3 }} {{ nodes * 5 }}\nexec {{ run }}\n"
    assert "echo --- 5\n" in template(tmp_path, text).render(values())


@pytest.mark.parametrize(
    "line",
    [
        *("#SBATCH --comment={{ setup }}", 'x="{{ setup }}"', "x=a{{ setup }}"),
        *("x=$({{ setup }})", "# {{ setup }}", "{{ setup }} {{ setup }}", "{{ setup }};"),
    ],
)
def test_a_setup_stands_alone_on_its_line(tmp_path: Path, line: str) -> None:
    """Lines of shell within another line would mean something else, and are refused."""
    text = f"#!/bin/bash\n{line}\nexec {{{{ run }}}}\n"
    with pytest.raises(TemplateError, match=r"line 2 of the script: .* line of its own"):
        template(tmp_path, text)
    text = "#!/bin/bash\n {{ setup }} \nexec {{ run }}\n"
    lines = "a='\\1'\n\tb"
    assert f"bash\n{lines}\nexec" in template(tmp_path, text).render(values(setup=lines))


def test_control_characters_are_refused() -> None:
    """No value begins a line of its own."""
    for hostile in ("a\n#SBATCH --uid=0", "a\rb", "a\0b", "a\x1bb", "a\u2028b"):
        with pytest.raises(TemplateError, match="control character"):
            Template().render(values(job_name=hostile))


def test_a_missing_value_or_file(tmp_path: Path) -> None:
    """What is not there is named."""
    with pytest.raises(TemplateError, match="'job_name' is undefined; there are"):
        Template().render({k: v for k, v in values().items() if k != "job_name"})
    with pytest.raises(TemplateError, match="No such file"):
        Template(tmp_path / "none")


characters = st.characters(exclude_categories=["C", "Z"], include_characters=" ")
texts = (
    st.text(characters, min_size=1, max_size=15)
    .map(str.strip)
    .filter(lambda text: text and not text.startswith("-"))
)
HEADERS = {
    "account": "account",
    "partition": "partition",
    "qos": "qos",
    "constraint": "constraint",
    "reservation": "reservation",
    "nodelist": "nodelist",
    "exclude": "exclude",
}


@settings(max_examples=12, deadline=None)
@given(st.fixed_dictionaries(dict.fromkeys(HEADERS, texts)), texts, texts, texts)
def test_no_hostile_value_escapes_the_built_in_template(
    headers: dict[str, str], folder: str, module: str, environment: str
) -> None:
    """Each option is one word with its value; each command has its words, and no other runs."""
    given = {**headers, "modules": ("gcc", module), "venv": f"/v{environment}"}
    asked = SlurmSettings.model_validate(given)
    script = Template().render(
        values(asked, job_folder=f"/{folder}", run=["printf", "%s\\0", folder, module])
    )
    lines = script.split("\n")
    body = lines.index("")
    assert all(line.startswith("#") for line in lines[:body])
    options = [split_options(line.removeprefix("#SBATCH")) for line in lines[1:body]]
    assert all(len(words) == 1 for words in options)
    found = dict(word.split("=", 1) for [word] in options if "=" in word)
    assert {key: found[f"--{key}"] for key in HEADERS} == headers
    assert found["--chdir"] == f"/{folder}"
    show = "module() { printf '%s\\0' \"$@\"; }; source() { printf '%s\\0' \"$@\"; }\n"
    done = subprocess.run(
        ["/bin/bash", "-uc", show + "\n".join(lines[body:])],
        capture_output=True,
        check=True,
        encoding="utf-8",
        timeout=20,
        env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
    )
    expected = ["load", "gcc", module, f"/v{environment}/bin/activate", folder, module]
    assert done.stdout.split("\0")[:-1] == expected
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("if true; then", r"line 3 of the script: .*not complete \(line 3: syntax error"),
        ("#SBATCH --x={{ modules }}", "takes one value"),
        ("{% if gpus is not none %}\necho )\n{% endif %}", "unexpected token"),
    ],
)
def test_templates_are_tried_before_use(tmp_path: Path, text: str, said: str) -> None:
    """What makes no script is said when the template is read, not in the middle of a batch."""
    with pytest.raises(TemplateError, match=said):
        template(tmp_path, f"#!/usr/bin/env bash\n{text}\n{{{{ run }}}}\n")


def test_templates_for_other_shells(tmp_path: Path) -> None:
    """What is not for bash or sh is refused."""
    with pytest.raises(
        TemplateError, match=r"line 1 of the script: .*first line such as"
    ):
        template(tmp_path, "#!/bin/zsh\n{{ run }}\n")
    made = template(tmp_path, "#!/bin/sh\n{{ run }}\n")
    assert made.render(values(run=["a b"])) == "#!/bin/sh\n'a b'\n"


@pytest.mark.parametrize(
    "text",
    [
        "{% if gpus is not none %}\nexec {{ run }}\n{% endif %}\n",
        "{% if run %}{% endif %}\n",
        "{% if nodes > 1 %}\n{{ run }}\n{% else %}\n{{ run }} &\n{% endif %}",
        "echo {{ run }}\n",
        "srun {{ run }}\n",
        "{{ run | join(' ') }}\n",
        "{{ run[0] }} x\n",
        "{% for word in run %}{{ word }} {% endfor %}\n",
    ],
)
def test_the_experiments_run_whatever_is_asked(tmp_path: Path, text: str) -> None:
    """A template that would not run them, or only now and then, is refused."""
    said = "does not run the experiments|last line|a value stands in a command"
    with pytest.raises(TemplateError, match=said):
        template(tmp_path, f"#!/bin/bash\n{text}").check(SlurmSettings())


def test_settings_that_a_template_passes_over(tmp_path: Path) -> None:
    """Each that differs from its default must make the script another."""
    text = "#!/bin/bash\n{% if gpus %}\n#SBATCH --gpus={{ gpus }}\n{% endif %}\n{{ run }}"
    made = template(tmp_path, text)
    made.check(SlurmSettings())
    made.check(SlurmSettings(gpus_per_node=2, gpu_type="a100", max_requeues=1))
    for asked, said in (
        (SlurmSettings(time="5"), "slurm.time is set, .*{{ time }} or {{ time_s }}"),
        (SlurmSettings(requeue=False), "slurm.requeue"),
        (SlurmSettings(modules=("a",)), "slurm.modules"),
        (SlurmSettings(signal_s=0), "slurm.signal_s"),
        (SlurmSettings(gpus_per_node=1, nice=0), "slurm.nice"),
    ):
        with pytest.raises(TemplateError, match=said):
            made.check(asked)


def test_a_setting_that_is_only_asked_for_is_passed_over(tmp_path: Path) -> None:
    """To mention a variable is not to write it: the script must be another with another value."""
    text = (
        "#!/bin/bash\n{% if mem %}{% endif %}{% if nodes > 1 %}\n#SBATCH --switches=1\n"
        "{% endif %}{% if signal %}\n#SBATCH --signal={{ signal }}\n{% endif %}\n"
        "{% if requeue %}\n#SBATCH --requeue\n{% endif %}\n{% set p = partition %}\n"
        "{% if p is not none %}\n#SBATCH --partition={{ p }}\n{% endif %}\n{{ run }}\n"
    )
    made = template(tmp_path, text)
    for _ in range(2):  # the second time from memory
        made.check(SlurmSettings(requeue=False, partition="p", signal_s=0))
    for asked, said in (
        (SlurmSettings(mem="64G"), "slurm.mem is set"),
        (SlurmSettings(nodes=2), "slurm.nodes is set"),
        (SlurmSettings(time="5"), "slurm.time is set"),
    ):
        with pytest.raises(TemplateError, match=said):
            made.check(asked)
    assert made.used == {"nodes", "partition", "requeue", "run", "signal"}


def test_a_setting_that_picks_another_is_not_passed_over(tmp_path: Path) -> None:
    """A template may have words of its own for values, and none for others."""
    name = "{{ {'x': 'a', 'gpu': 'b'}[partition] }}"
    text = f"#!/bin/bash\n{{% if partition %}}\n#SBATCH --qos={name}\n{{% endif %}}\n"
    made = template(tmp_path, text + "{{ run }}\n")
    made.check(SlurmSettings(partition="gpu"))
    with pytest.raises(TemplateError, match=r"mine\.sbatch:3: .*no attribute 'cpu'"):
        made.check(SlurmSettings(partition="cpu"))


@pytest.mark.parametrize(
    "written",
    [
        *(
            "setup.format(qos)",
            "setup.format_map({'a': qos})",
            "setup ~ qos",
            "setup._text",
        ),
        *("setup | replace('@', qos)", "[setup] | join(qos)", "'%s' | format(setup)"),
        *("setup[0]", "[setup]", "setup | attr('_text')", "'{}'.format(setup)"),
    ],
)
def test_a_setup_is_written_as_it_is_or_refused(written: str, tmp_path: Path) -> None:
    """Nothing is made of its lines, so that no value becomes one."""
    text = f"#!/bin/bash\n{{% if qos %}}\n{{{{ {written} }}}}\n{{% endif %}}\n"
    text += "{% if setup %}\n{{ setup }}\n{% endif %}\nexec {{ run }}\n"
    with pytest.raises(TemplateError, match=r"mine\.sbatch:3: "):
        template(tmp_path, text).render(
            values(SlurmSettings(qos="; : >PWNED"), setup="echo {} {a} @")
        )


def test_a_setup_that_a_template_passes_over(tmp_path: Path) -> None:
    """Lines that the project gave are in the script, or it is refused; and they are whole."""
    made = template(tmp_path, "#!/bin/bash\n{% if setup %}{% endif %}\n{{ run }}\n")
    assert made.render(values())
    with pytest.raises(TemplateError, match=r"does not write \{\{ setup \}\}"):
        made.render(values(setup="export A=1"))
    for setup, said in (
        ("cat <<E", "a here-document, a comment or a command goes on here"),
        ("echo '", "not complete"),
        ("a\n\x01", "line 2 of setup has a control character"),
    ):
        with pytest.raises(TemplateError, match=said):
            Template().render(values(setup=setup))


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                *("cat <<E", "E", "echo '", "'", "if true; then", "fi", "x=\\", "# it's"),
                *("{% if gpus %}", "{% else %}", "{% endif %}", "declare -i n", "`"),
                *("{% for m in modules %}", "module load {{ m }}", "{% endfor %}"),
                *(
                    "module load {{ modules }}",
                    "eval {{ partition }}",
                    "n={{ partition }}",
                ),
                *("[[ {{ qos }} -eq 1 ]]", "#{{ qos }}", "cd {{ venv }}", "{{ setup }}"),
                *("bash -c 'echo {{ qos }}'", "a[{{ qos }}]=1", "{{ partition }}"),
                *(
                    "{% filter upper %}",
                    "{% endfilter %}",
                    "x={{ qos | replace('a', 'b') }}",
                ),
            ]
        ),
        max_size=4,
    ),
    texts.filter(lambda text: "PWNED" not in text)
    | st.sampled_from(["$(: >PWNED)", "x; : >PWNED", "a[$(: >PWNED)]", "'; : >PWNED; '"]),
)
def test_a_template_is_refused_or_harmless(lines: list[str], value: str) -> None:
    """Of any template, either nothing is written, or no hostile value runs and `run` does."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "mine.sbatch")
        show = "printf '%s\\0' \"$q\""
        header = "#SBATCH --comment={{ partition }}"
        body = "\n".join([header, *lines, "q={{ qos }}", show, "exec {{ run }}"])
        path.write_text(f"#!/bin/bash\n{body}\n", encoding="utf-8")
        asked = SlurmSettings(
            partition=value, qos=value, modules=(value,), gpus_per_node=1
        )
        run = ["/usr/bin/printf", "%s\\0", "ran", value]
        try:
            made = Template(path).render(values(asked, run=run))
        except TemplateError:
            return
        inside = Path(folder, "empty")
        inside.mkdir()
        done = subprocess.run(
            ["/bin/bash", "/dev/stdin"],
            cwd=inside,
            input=made,
            capture_output=True,
            check=False,
            encoding="utf-8",
            timeout=20,
            env={"PATH": "/nonexistent", "LC_ALL": "C.UTF-8"},
        )
        assert list(inside.iterdir()) == []
        *before, shown, last, argument, _ = done.stdout.split("\0")
        assert before == []
        assert (shown.rpartition("\n")[2], last, argument) == (value, "ran", value)
        [option] = [line for line in made.split("\n") if line.startswith("#SBATCH")]
        assert split_options(option.removeprefix("#SBATCH")) == [f"--comment={value}"]


def test_a_short_limit_is_warned_of_late() -> None:
    """The warning never comes when the job begins, unless that was asked for."""
    assert variables(SlurmSettings(time="1"))["signal"] == "USR1@15"
    assert variables(SlurmSettings(time="1", signal_s=90))["signal"] == "USR1@90"
    assert variables(SlurmSettings(launch="none"))["signal"] == "B:USR1@120"
    assert variables(SlurmSettings(), num_packed=30)["time"] == "1-06:00:00"
