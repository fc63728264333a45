"""Render a job's script from a template: strict, and with every value quoted.

A template is Jinja2 with the variables of `KNOWN`; ``if``, ``for`` and ``set`` are there, what
takes text and changes it is not. What it writes with ``{{ }}`` is quoted, and may stand where
`mtf_slurm._places` says; lists become words. A variable that is not known is an error, and so
is a value with a newline or another control character. A template may contain ``{{ setup }}``,
the project's own lines of shell, alone on its line, and must end with ``exec {{ run }}``, the
command that runs the experiments. It is tried with a value for each variable when it is read;
and a setting without which the script would be the same is refused.

Templates are written by the project; they run in Jinja2's sandbox all the same, and see
nothing but the variables. One that fills the memory or recurses is an error, and so are powers,
text that ``%`` formats, and what ``*`` would make longer than a script may be or of two huge
numbers; but one that counts for long is waited for.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, TemplateSyntaxError, meta, nodes
from jinja2.exceptions import TemplateError as JinjaError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import pass_context

from mtf_slurm import _places
from mtf_slurm.errors import TemplateError
from mtf_slurm.settings import SlurmSettings

__all__ = ["BUILT_IN", "KNOWN", "Template", "check_setup", "variables"]

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
    "run": "the command that runs the experiments; the last line is `exec {{ run }}`",
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

# What the shell of a task and the launcher see to, whatever the template does.
_ELSEWHERE = {"launch", "container", "max_requeues", "continue_on_timeout", "max_running"}
_PROBE: Mapping[str, Any] = {**dict.fromkeys(_OF_JOB, "x"), "run": ["x"], "setup": ":"}
_MAX_CHARS = 2**18

# What makes text of text; with these, values could be changed once they are quoted.
_REFUSED = (
    *(nodes.AssignBlock, nodes.Block, nodes.CallBlock, nodes.EvalContextModifier),
    *(nodes.Extends, nodes.FilterBlock, nodes.FromImport, nodes.Import, nodes.Include),
    *(nodes.Macro, nodes.Pow),
)
_MAX_INT = 1 << 64
_FAULTS = (
    *(JinjaError, ValueError, TypeError, ArithmeticError, LookupError, AttributeError),
    *(RuntimeError, MemoryError, SyntaxError),  # too deep, too large, too many blocks
)


class _Environment(ImmutableSandboxedEnvironment):
    """One in which ``*`` makes no text or number beyond bounds, and ``%`` formats nothing."""

    intercepted_binops = frozenset("*%")  # so none is computed when a template is read

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            msg = "`%` is for numbers"
            raise ValueError(msg)
        if all(
            isinstance(value, int) and abs(value) > _MAX_INT for value in (left, right)
        ):
            msg = f"`{operator}` is for numbers up to {_MAX_INT}"
            raise ValueError(msg)
        for some, times in ((left, right), (right, left)):
            is_some = isinstance(some, (str, list, tuple)) and isinstance(times, int)
            if is_some and len(some) * times > _MAX_CHARS:
                msg = f"`*` would make more than {_MAX_CHARS} characters or items"
                raise ValueError(msg)
        return super().call_binop(context, operator, left, right)


class _Raw:
    """Lines of shell, written as they are. No text: its methods would make more of these."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        check_setup(text)
        self._text = text

    def __bool__(self) -> bool:
        return bool(self._text)

    def __str__(self) -> str:
        msg = "setup is written as it is, {{ setup }}, or asked for with {% if setup %}"
        raise TypeError(msg)


class _Run(tuple[str, ...]):
    """The words of the command that runs the experiments."""

    __slots__ = ()


@pass_context  # else what is constant would be written without being quoted
def _finalize(_context: object, value: object) -> str:
    if isinstance(value, _Raw):
        return _places.mark_lines(value._text)  # noqa: SLF001 -- templates see no such name
    if isinstance(value, (list, tuple)):
        words = [_checked(item) for item in value]
        return _places.mark(words, is_run=isinstance(value, _Run))
    return _places.mark(_checked(value))


def check_setup(text: str) -> None:
    """Refuse lines of shell that no script could have.

    Raises:
        ValueError: If one has a control character in it.
    """
    if at := _unprintable(text):
        msg = f"line {at} of setup has a control character in it"
        raise ValueError(msg)


def _unprintable(text: str) -> int:
    """Return the number of the first line with a control character; 0 for none."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.replace("\t", " ").isprintable():
            return number
    return 0


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
        used: The variables without which its script would be another.

    Raises:
        TemplateError: If it cannot be read, is no template, has an unknown variable, or
            makes no script that runs the experiments of values of each kind.
    """

    def __init__(self, path: Path | str | None = None) -> None:
        self.path = Path(path or BUILT_IN)
        try:
            source = self.path.read_bytes().decode()  # as it is, line ends too
        except (OSError, UnicodeDecodeError) as error:
            reason = f"cannot be read: {getattr(error, 'strerror', None) or error}"
            raise TemplateError(str(self.path), reason) from error
        if number := _unprintable(source):
            reason = "a control character, or a line end of another system"
            place = f"{self.path}:{number}"
            raise TemplateError(place, reason)
        environment = _Environment(
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
            finalize=_finalize,
            autoescape=False,
        )
        environment.globals.clear()
        try:
            tree = environment.parse(source)
            self._check_nodes(tree)  # before anything is computed
            names = meta.find_undeclared_variables(tree)
            self._template = environment.from_string(source)
        except TemplateSyntaxError as error:
            place = f"{self.path}:{error.lineno}"
            raise TemplateError(place, error.message or "no template") from error
        except _FAULTS as error:
            raise TemplateError(str(self.path), str(error) or "too large") from error
        if unknown := sorted(names - KNOWN.keys()):
            reason = f"{', '.join(unknown)}: unknown; there are {', '.join(KNOWN)}"
            raise TemplateError(str(self.path), reason)
        values = {**_PROBE, **variables(_everything())}
        marked = self._marked(values)
        self._fill(marked)
        self.used = frozenset(
            key
            for key in names
            if self._differs(marked, {**values, key: _another(values[key])})
        )
        self._passed: set[SlurmSettings] = set()

    def _check_nodes(self, tree: nodes.Template) -> None:
        for node in tree.find_all((*_REFUSED, nodes.For)):
            if not isinstance(node, nodes.For) or node.recursive:
                place = f"{self.path}:{node.lineno}"
                reason = (
                    f"{type(node).__name__} is not for scripts: there are if, for, set"
                )
                raise TemplateError(place, reason)

    def check(self, settings: SlurmSettings) -> None:
        """Refuse what is asked of Slurm and would not be written.

        Raises:
            TemplateError: If no script can be made; or if a setting differs from its
                default, and the script would be the same with another value.
        """
        if settings in self._passed:
            return
        values = {**_PROBE, **variables(settings)}
        marked = self._marked(values)
        self._fill(marked)
        for key, field in SlurmSettings.model_fields.items():
            asked = getattr(settings, key)
            if key in _ELSEWHERE or asked == field.default:
                continue
            is_time = key == "time"
            other = _clock(settings.time_s + 60) if is_time else _another(asked)
            others = variables(settings.model_copy(update={key: other}))
            if is_time:
                others["signal"] = values["signal"]
            if not self._differs(marked, {**_PROBE, **others}):
                changed = (name for name in others if others[name] != values[name])
                shown = " or ".join(f"{{{{ {name} }}}}" for name in sorted(changed))
                reason = f"slurm.{key} is set, and the template does not write {shown}"
                raise TemplateError(str(self.path), reason)
        self._passed.add(settings)

    def render(self, values: Mapping[str, Any]) -> str:
        """Return the script.

        Args:
            values: Of all variables in `KNOWN`.

        Raises:
            TemplateError: If a value cannot be written where it is wanted; or if the
                script would not run the experiments, or pass over ``setup``.
        """
        marked = self._marked(values)
        if values.get("setup") and not self._differs(marked, {**values, "setup": ""}):
            reason = "there is a setup, and the template does not write {{ setup }}"
            raise TemplateError(str(self.path), reason)
        return self._fill(marked)

    def _fill(self, marked: str) -> str:
        try:
            return _places.fill(marked)
        except ValueError as error:
            number, reason = error.args
            place = f"{self.path}, line {number} of the script"
            raise TemplateError(place, reason) from error

    def _differs(self, marked: str, others: Mapping[str, Any]) -> bool:
        """Return whether other values make another script, or none."""
        try:
            return self._marked(others) != marked
        except TemplateError:
            return True

    def _marked(self, values: Mapping[str, Any]) -> str:
        """Return the script with marks for its values."""
        given = dict(values)
        pieces: list[str] = []
        num_chars = 0
        try:
            if isinstance(given.get("run"), (list, tuple)):
                given["run"] = _Run(given["run"])
            if isinstance(given.get("setup"), str):
                given["setup"] = _Raw(given["setup"])
            for piece in self._template.generate(given):
                num_chars += len(piece)
                if num_chars > _MAX_CHARS:
                    reason = f"it makes a script of more than {_MAX_CHARS} characters"
                    raise TemplateError(str(self.path), reason)
                pieces.append(piece)
        except _FAULTS as error:
            lines = [
                f":{number}"
                for frame, number in traceback.walk_tb(error.__traceback__)
                if frame.f_code.co_filename == "<template>"
            ]
            reason = str(error) or type(error).__name__
            if reason.endswith("is undefined"):
                reason += f"; there are {', '.join(KNOWN)}"
            raise TemplateError("".join([str(self.path), *lines[-1:]]), reason) from error
        return "".join(pieces)


def _everything() -> SlurmSettings:
    """Return settings of which none is null."""
    fields = SlurmSettings.model_fields.items()
    asked: dict[str, Any] = {k: "x" for k, field in fields if field.default is None}
    asked |= dict.fromkeys(("gpus_per_node", "max_running", "nice", "signal_s"), 1)
    asked |= {"dependencies": ("x",), "exclusive": True, "modules": ("x", "y")}
    return SlurmSettings().model_copy(update=asked)


def _another(value: Any) -> Any:
    """Return a value of the same kind that is another one.

    >>> _another(True), _another(3), _another("4G"), _another(("a",))
    (False, 4, '14G', ('a', 'x'))
    """
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    return "1" + value if isinstance(value, str) else (*value, "x")


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
