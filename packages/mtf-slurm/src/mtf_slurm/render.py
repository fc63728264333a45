"""Render a job's script from a template: strict, and with every value quoted.

A template is Jinja2 with the variables of `KNOWN`. What it writes with ``{{ }}`` is quoted
for its place (`mtf_slurm._places`), so a template leaves quotes out; lists become words. A
variable that is not known is an error, and so is a value with a newline or another control
character. A template may contain ``{{ setup }}``, the project's own lines of shell, and must
contain ``{{ run }}``, the command that runs the experiments. It is tried with a value for each
variable when it is read, and read by bash; a setting that it never writes is refused.

Templates are written by the project; they run in Jinja2's sandbox all the same, and see
nothing but the variables.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, TemplateSyntaxError, UndefinedError, meta
from jinja2.exceptions import SecurityError
from jinja2.exceptions import TemplateError as JinjaError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import pass_context

from mtf_slurm import _places
from mtf_slurm.errors import TemplateError
from mtf_slurm.settings import SlurmSettings

__all__ = ["BUILT_IN", "KNOWN", "Template", "variables"]

BUILT_IN = Path(__file__).with_name("slurm_template.sbatch")
"""The template that is used where no other is named."""

_OF_JOB = {
    "array": "indices of the array's tasks, with their limit; none for a single job",
    "commit": "the id of the commit that runs; none for code that is not frozen",
    "dependency": "what it waits for, as --dependency has it; none for nothing",
    "error": "pattern of the path for standard error",
    "experiments_folder": "where the experiments' folders lie",
    "gpus": "as --gpus-per-node has it; none for none",
    "job_folder": "what belongs to the submission, and its working folder",
    "job_name": "the experiment, or the first of an array",
    "output": "pattern of the path for standard output",
    "project_root": "the project's folder",
    "run": "the command that runs the experiments; a template must have it",
    "setup": "lines of shell that the project gave the launcher",
    "signal": "as --signal has it; none for no signal",
    "slurm_cpus_per_task": "CPUs of each task of Slurm: torchrun has one for all processes",
    "slurm_tasks_per_node": "tasks of Slurm on each node: torchrun has one",
    "time_s": "the time limit in seconds",
}
KNOWN: Mapping[str, str] = dict(
    sorted(
        {
            **{k: str(f.description) for k, f in SlurmSettings.model_fields.items()},
            **_OF_JOB,
        }.items()
    )
)
"""What each variable of a template means."""

_RAW = "setup"
_SYNTAX_TIMEOUT_S = 20.0

# What the shell of a task and the launcher see to, whatever the template does.
_ELSEWHERE = {"launch", "container", "max_requeues", "continue_on_timeout", "max_running"}
_WRITTEN_BY: Mapping[str, frozenset[str]] = {
    **{key: frozenset({key}) for key in SlurmSettings.model_fields.keys() - _ELSEWHERE},
    "cpus_per_task": frozenset({"cpus_per_task", "slurm_cpus_per_task"}),
    "dependencies": frozenset({"dependencies", "dependency"}),
    "gpu_type": frozenset({"gpu_type", "gpus"}),
    "gpus_per_node": frozenset({"gpus_per_node", "gpus"}),
    "ntasks_per_node": frozenset({"ntasks_per_node", "slurm_tasks_per_node"}),
    "signal_s": frozenset({"signal", "signal_s"}),
    "time": frozenset({"time", "time_s"}),
}
_NUMBERS = {"max_requeues", "max_running", "nice", "nodes", "signal_s", "time_s"}
_NUMBERS |= {"cpus_per_task", "gpus_per_node", "ntasks_per_node"}
_NUMBERS |= {"slurm_cpus_per_task", "slurm_tasks_per_node"}
_PROBE: Mapping[str, Any] = {
    **dict.fromkeys(KNOWN, "x"),
    **dict.fromkeys(_NUMBERS, 2),
    **dict.fromkeys(("continue_on_timeout", "exclusive", "requeue"), True),
    **dict.fromkeys(("dependencies", "modules"), ("x", "y")),
    "run": ["x", "y"],
    "setup": "true",
}


class _Raw(str):
    """Lines of shell, which are written as they are."""

    __slots__ = ()


@pass_context  # else what is constant would be written without being quoted
def _finalize(_context: object, value: object) -> str:
    if isinstance(value, _Raw):
        return str(value)
    values = value if isinstance(value, (list, tuple)) else [value]
    return _places.mark([_checked(item) for item in values])


def _checked(value: object) -> str:
    if value is None or isinstance(value, (bool, StrictUndefined)):
        if isinstance(value, StrictUndefined):
            str(value)  # raises
        msg = f"{value} is written: ask for it with {{% if %}}"
        raise ValueError(msg)
    if not isinstance(value, (str, int, float)):
        msg = f"a value of type {type(value).__name__} is written"
        raise TypeError(msg)
    text = str(value)
    if not text.isprintable():
        msg = f"{text!r} has a newline or another control character in it"
        raise ValueError(msg)
    return text


class Template:
    """One template, read and checked.

    Args:
        path: Of the file; `BUILT_IN` by default.

    Attributes:
        path: Of the file.
        used: Its variables.

    Raises:
        TemplateError: If it cannot be read, is no template, has an unknown variable, does
            not run the experiments, or makes no script of values of each kind.
    """

    def __init__(self, path: Path | str | None = None) -> None:
        self.path = Path(path or BUILT_IN)
        try:
            source = self.path.read_bytes().decode()  # as it is, line ends too
        except (OSError, UnicodeDecodeError) as error:
            reason = f"cannot be read: {getattr(error, 'strerror', None) or error}"
            raise TemplateError(str(self.path), reason) from error
        for number, line in enumerate(source.split("\n"), start=1):
            if not line.replace("\t", " ").isprintable():
                reason = "a control character, or a line end of another system"
                place = f"{self.path}:{number}"
                raise TemplateError(place, reason)
        if not source.startswith("#!"):
            reason = "sbatch needs a first line such as `#!/bin/bash`"
            place = f"{self.path}:1"
            raise TemplateError(place, reason)
        environment = ImmutableSandboxedEnvironment(
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
            finalize=_finalize,
            autoescape=False,
        )
        try:
            self.used = frozenset(
                meta.find_undeclared_variables(environment.parse(source))
            )
            self._template = environment.from_string(source)
        except TemplateSyntaxError as error:
            place = f"{self.path}:{error.lineno}"
            raise TemplateError(place, error.message or "no template") from error
        if unknown := sorted(self.used - KNOWN.keys()):
            reason = f"{', '.join(unknown)}: unknown; there are {', '.join(KNOWN)}"
            raise TemplateError(str(self.path), reason)
        if "run" not in self.used:
            reason = "it does not run the experiments: end it with `exec {{ run }}`"
            raise TemplateError(str(self.path), reason)
        self._not_written = {
            key: names for key, names in _WRITTEN_BY.items() if not self.used & names
        }
        self._check_syntax(self.render(_PROBE))

    def check(self, settings: SlurmSettings) -> None:
        """Refuse what is asked of Slurm and would not be written.

        Raises:
            TemplateError: If a setting differs from its default, and the template has none
                of its variables.
        """
        for key, variables_ in self._not_written.items():
            if getattr(settings, key) != SlurmSettings.model_fields[key].default:
                shown = " or ".join(f"{{{{ {name} }}}}" for name in sorted(variables_))
                reason = f"slurm.{key} is set, and the template does not write {shown}"
                raise TemplateError(str(self.path), reason)

    def render(self, values: Mapping[str, Any]) -> str:
        """Return the script.

        Args:
            values: Of all variables in `KNOWN`.

        Raises:
            TemplateError: If a value cannot be written where it is wanted.
        """
        try:
            marked = self._template.render(
                {**values, _RAW: _Raw(values.get(_RAW, ""))},
            )
        except UndefinedError as error:
            reason = f"{error.message}; there are {', '.join(KNOWN)}"
            raise TemplateError(str(self.path), reason) from error
        except (
            JinjaError,
            SecurityError,
            ValueError,
            TypeError,
            ArithmeticError,
        ) as error:
            raise TemplateError(str(self.path), str(error)) from error
        try:
            script = _places.fill(marked)
        except ValueError as error:
            number, reason = error.args
            place = f"{self.path}, line {number} of the script"
            raise TemplateError(place, reason) from error
        self._check_header(script)
        return script

    def _check_syntax(self, script: str) -> None:
        """Have bash read a script that is for bash."""
        if not re.match(r"#!\S*(/|env )(ba)?sh\b", script):
            return
        try:
            done = subprocess.run(
                ("/bin/bash", "-n", "/dev/stdin"),
                input=script,
                capture_output=True,
                check=False,
                encoding="utf-8",
                errors="backslashreplace",
                timeout=_SYNTAX_TIMEOUT_S,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            reason = f"bash cannot be asked whether it is a script: {error}"
            raise TemplateError(str(self.path), reason) from error
        if done.returncode:
            said = done.stderr.replace("/dev/stdin: ", "").strip()
            raise TemplateError(str(self.path), f"it makes no script of bash: {said}")

    def _check_header(self, script: str) -> None:
        """Refuse options that sbatch would pass over, for standing after a command."""
        command = 0
        for number, line in enumerate(script.split("\n"), start=1):
            if line.startswith("#SBATCH") and command:
                place = f"{self.path}, line {number} of the script"
                reason = f"sbatch reads no options after a command, as on line {command}"
                raise TemplateError(place, reason)
            if line.strip() and not line.startswith("#"):
                command = command or number


def variables(settings: SlurmSettings, *, num_packed: int = 1) -> dict[str, Any]:
    """Return the values of the variables that follow from *settings* alone.

    Args:
        settings: Of one experiment.
        num_packed: How many one task runs, one after another: the time limit is for all.
    """
    total_s = settings.time_s * num_packed
    is_torchrun = settings.launch == "torchrun"
    tasks = settings.ntasks_per_node
    to_shell = "B:" if settings.launch == "none" else ""
    return {
        **dict(settings),
        "dependency": ",".join(settings.dependencies) or None,
        "gpus": settings.gpus,
        "signal": f"{to_shell}USR1@{settings.warning_s}" if settings.warning_s else None,
        "slurm_cpus_per_task": settings.cpus_per_task * (tasks if is_torchrun else 1),
        "slurm_tasks_per_node": 1 if is_torchrun else tasks,
        "time": settings.time if num_packed == 1 else _clock(total_s),
        "time_s": total_s,
    }


def _clock(total_s: int) -> str:
    """Return a time as ``--time`` has it.

    >>> _clock(90061)
    '1-01:01:01'
    """
    minutes, seconds = divmod(total_s, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days}-{hours:02d}:{minutes:02d}:{seconds:02d}"
