from __future__ import annotations

import os
import subprocess
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
        ("{{ partition }}", "None is written"),
        ("{{ requeue }}", "True is written"),
        ("{{ range }}", "a value of type"),
        ("{{ run.x }}", "no attribute 'x'"),
        ("{{ run.append }}", "unsafe"),
        ("{{ ''.__class__ }}", "unsafe"),
        ("{{ 1 / 0 }}", "division"),
        ("{% set x %}a{{ nodes }}{% endset %}{{ x }}", "control character"),
        ("cat <<E\n{{ job_name }}\nE", "line 3 of the script: a value is in a here"),
        ("echo\n#SBATCH --nodes={{ nodes }}", "no options after a command, as on line 2"),
    ],
)
def test_what_cannot_be_written(tmp_path: Path, text: str, said: str) -> None:
    """A value that does not fit its place is an error that says where."""
    with pytest.raises(TemplateError, match=said):
        template(tmp_path, f"#!/bin/bash\n{text}\n{{{{ run }}}}\n").render(values())


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


@settings(max_examples=30, deadline=None)
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
        ("if {{ partition }}; then", "makes no script of bash: .*syntax error"),
        ("#SBATCH --x={{ modules }}", "takes one value"),
        ('echo "', "a list is between quotes"),
    ],
)
def test_templates_are_tried_before_use(tmp_path: Path, text: str, said: str) -> None:
    """What makes no script is said when the template is read, not in the middle of a batch."""
    with pytest.raises(TemplateError, match=said):
        template(tmp_path, f"#!/usr/bin/env bash\n{text}\n{{{{ run }}}}\n")


def test_templates_for_other_shells(tmp_path: Path) -> None:
    """What is not for bash is not read by it."""
    made = template(tmp_path, "#!/bin/zsh\nfor x (a b) echo $x\n{{ run }}\n")
    assert "for x (a b)" in made.render(values())


def test_settings_that_a_template_passes_over(tmp_path: Path) -> None:
    """Each that differs from its default must be written somewhere."""
    made = template(tmp_path, "#!/bin/bash\n#SBATCH --gpus={{ gpus }}\n{{ run }}\n")
    made.check(SlurmSettings())
    made.check(SlurmSettings(gpus_per_node=2, gpu_type="a100", max_requeues=1))
    for asked, key in (
        (SlurmSettings(time="5"), "slurm.time is set, .*{{ time }} or {{ time_s }}"),
        (SlurmSettings(requeue=False), "slurm.requeue"),
        (SlurmSettings(modules=("a",)), "slurm.modules"),
        (SlurmSettings(signal_s=0), "slurm.signal_s"),
    ):
        with pytest.raises(TemplateError, match=key):
            made.check(asked)


def test_a_short_limit_is_warned_of_late() -> None:
    """The warning never comes when the job begins, unless that was asked for."""
    assert variables(SlurmSettings(time="1"))["signal"] == "USR1@15"
    assert variables(SlurmSettings(time="1", signal_s=90))["signal"] == "USR1@90"
    assert variables(SlurmSettings(launch="none"))["signal"] == "B:USR1@120"
    assert variables(SlurmSettings(), num_packed=30)["time"] == "1-06:00:00"
