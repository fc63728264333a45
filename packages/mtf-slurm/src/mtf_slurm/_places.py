r"""Put values into a script, at the few places where it is certain what they mean there.

A template is rendered with a `mark` for each value; `fill` then writes the values. In an
``#SBATCH`` line one stands in a word ``--name=...``. In the shell's part one stands in a word of
a simple command, of which `_SHELL` has the grammar: an assignment, or a command that takes its
words as data. Whether such a command begins there, and not within quotes, a here-document, a
comment, a loop or what else there is, is not guessed: the shell itself is asked, with ``-n``.
All else is refused. The command that runs the experiments is the last line, alone, and
what is written as it is stands alone on its line.

What the script then does with a variable is its own: ``eval "$name"`` runs the value.

Source: POSIX, Shell Command Language, 2.2 and 2.10; Slurm 22.05, ``_get_argument`` of sbatch.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Sequence
from functools import lru_cache
from typing import NoReturn

__all__ = ["fill", "mark", "mark_lines"]

# A mark is a character that no text has, values in hexadecimal, and another such character.
_VALUE, _WORDS, _RUN, _NEXT, _CLOSE = "\x01", "\x02", "\x03", "\x04", "\x05"
_LINES = "\x06"  # text follows, as it is
_MARK = re.compile(f"[{_VALUE}{_WORDS}{_RUN}]([^{_CLOSE}]*){_CLOSE}")
_ONE, _SOME, _ALL = (f"{kind}[^{_CLOSE}]*{_CLOSE}" for kind in (_VALUE, _WORDS, _RUN))
_BLANK = "[ \t]"
_WHOLE = re.compile(rf"^{_BLANK}*{_LINES}([^{_CLOSE}]*){_CLOSE}{_BLANK}*$", re.MULTILINE)
_END = f"(?:{_BLANK}+#[^{_CLOSE}]*|{_BLANK}*)"

# An author may put double quotes around values: there is nothing else special in them. Each text is
# read in one way alone, so that nothing is tried twice; quantifiers that never give back would
# say so, but are wrong in Python 3.11.0 to 3.11.4.
_OPTION = r"[A-Za-z0-9_@%+=:,./^~&|*!\[\]()-]"
_NAME = "--[a-z][a-z-]*="
_HEADER = re.compile(
    rf"#SBATCH(?:{_BLANK}+(?:(?!{_NAME}){_OPTION}+(?!{_OPTION}|{_ONE}|\")"
    rf'|{_NAME}(?:{_OPTION}|{_ONE}|"(?:{_OPTION}|[ ]|{_ONE})*")*))*'
    rf"{_END}"
)
_PLAIN = r"[A-Za-z0-9_@%+=:,./-]"
_VARIABLE = (
    rf"\$(?:\{{[A-Za-z_][A-Za-z0-9_]*\}}|[A-Za-z_][A-Za-z0-9_]*(?![A-Za-z0-9_]|{_ONE}))"
)
_INNER = rf"{_PLAIN}|{_VARIABLE}|{_ONE}"
_WORD = rf'(?:{_INNER}|"(?:{_INNER}|[ ])*")'
# A value of these is run as code, or reckoned with, which may run code as well.
_SPECIAL = r"(?:BASH\w*|ENV|EPOCH\w*|HISTCMD|IFS|LINENO|OPTIND|PROMPT_COMMAND|PS\d|S?RANDOM|SECONDS)="
_ASSIGN = rf"(?!{_SPECIAL})[A-Za-z_][A-Za-z0-9_]*={_WORD}*"
_COMMAND = r"(?:module(?: [a-z]+)?|ml|source|\.|(?:conda|mamba|micromamba) activate|cd|mkdir(?: -p)?|echo)"
_SHELL = re.compile(
    rf"{_BLANK}*(?:(?P<assigns>(?:export{_BLANK}+)?{_ASSIGN}(?:{_BLANK}+{_ASSIGN})*)"
    rf"|{_COMMAND}(?:{_BLANK}+(?:{_WORD}+|{_SOME}))+)"
    rf"{_END}"
)
_LAST = re.compile(rf"{_BLANK}*(?:exec{_BLANK}+)?{_ALL}{_BLANK}*")
_NO_COMMAND = re.compile(rf"{_BLANK}*(?:#|$)")
_BETWEEN = re.compile(r"(&&|\|\||;)")

_SHEBANG = re.compile(
    r"#!\s*(?:/(?:\S*/)?env\s+|/(?:\S*/)?)(bash|sh)(?:\s+(?:-[elux]+|--login))*\s*"
)
_REREAD = re.compile(r"^(?![ \t]*#).*\b(alias|extglob)\b", re.MULTILINE)
_RETYPE = re.compile(r"^(?![ \t]*#).*\b(declare|typeset)\b", re.MULTILINE)
_TIMEOUT_S = 20.0
_MAX_PLACES = 200  # the shell is asked about each

_FIX = 'write `name={{ value }}` on a line of its own, early, and then "$name" here'
_ALLOWED = (
    "a value stands in a command of its own: an assignment, `export`, `module load`, `source`, "
    f"`conda activate`, `cd`, `mkdir` or `echo`; else {_FIX}"
)


def mark(value: str | Sequence[str], *, is_run: bool = False) -> str:
    """Return what stands for a value until `fill`; several are words of a command.

    Args:
        value: One, or a list of words.
        is_run: Whether it is the command that runs the experiments.
    """
    kind = _RUN if is_run else _VALUE if isinstance(value, str) else _WORDS
    words = [value] if isinstance(value, str) else value
    return kind + "".join(word.encode().hex() + _NEXT for word in words) + _CLOSE


def mark_lines(text: str) -> str:
    """Return what stands for lines of shell, without control characters, until `fill`."""
    return f"{_LINES}{text}{_CLOSE}"


def fill(text: str) -> str:
    """Return *text* with its marks replaced.

    Raises:
        ValueError: If a mark is where it is not certain what its value would mean, or the
            script would not run the experiments; its arguments are the number of the line,
            from 1, and the reason.
    """
    text = _WHOLE.sub(lambda match: match[1], text)
    if _LINES in text:
        number = text[: text.index(_LINES)].count("\n") + 1
        reason = "lines of shell stand alone: write {{ setup }} on a line of its own"
        raise ValueError(number, reason)
    lines = text.split("\n")
    shell = _SHEBANG.fullmatch(lines[0])
    if shell is None:
        reason = "sbatch needs a first line such as `#!/bin/bash`; or `#!/bin/sh`"
        raise ValueError(1, reason)
    plain = [_MARK.sub("x", line) for line in lines]
    marked = {at for at, line in enumerate(lines) if _MARK.search(line)}
    if len(marked) > _MAX_PLACES:
        reason = f"values are on more than {_MAX_PLACES} lines: let the shell loop"
        raise ValueError(max(marked) + 1, reason)
    commands = [at for at, line in enumerate(plain) if not _NO_COMMAND.match(line)]
    first, last = (commands[0], commands[-1]) if commands else (len(lines), len(lines))
    for at, line in enumerate(lines):
        try:
            if at > first and line.startswith("#SBATCH"):
                _refuse(
                    f"sbatch reads no options after a command, as on line {first + 1}"
                )
            if at in marked and at < first:
                lines[at] = _header(line)
            elif at in marked:
                is_last = at == last
                lines[at] = _command_line(shell[1], plain[:at], line, is_last=is_last)
        except ValueError as error:
            shown = _MARK.sub("{{ }}", line).strip()
            raise ValueError(at + 1, f"`{shown}`: {error}") from error
    if _RUN not in text:
        reason = "it does not run the experiments: end it with `exec {{ run }}`"
        raise ValueError(len(lines), reason)
    return "\n".join(lines)


def _refuse(reason: str) -> NoReturn:
    raise ValueError(reason)


def _values(match: re.Match[str]) -> list[str]:
    return [bytes.fromhex(part).decode() for part in match[1].split(_NEXT)[:-1]]


def _is_within_quotes(match: re.Match[str]) -> bool:
    return match.string.count('"', 0, match.start()) % 2 == 1


def _quoted(match: re.Match[str]) -> str:
    """Return values as words of the shell."""
    values = _values(match)
    if _is_within_quotes(match):
        return re.sub(r'([\\"$`])', r"\\\1", values[0])
    return " ".join(map(shlex.quote, values))


def _option(match: re.Match[str]) -> str:
    """Return a value as it must stand in an ``#SBATCH`` line: one word, whatever is in it."""
    [value] = _values(match)
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    if _is_within_quotes(match) or re.fullmatch(f"{_OPTION}*", value):
        return escaped
    return f'"{escaped}"'


def _header(line: str) -> str:
    if _HEADER.fullmatch(line):
        return _MARK.sub(_option, line)
    if line.startswith("#SBATCH"):
        _refuse("an option takes one value, as `--name={{ value }}`")
    _refuse("a value is in a comment: write {# #}; options begin with #SBATCH")


def _command_line(shell: str, above: Sequence[str], line: str, *, is_last: bool) -> str:
    before = "".join(f"{text}\n" for text in above)
    if _RUN in line:
        if not (is_last and _LAST.fullmatch(line)):
            _refuse("make `exec {{ run }}` the last line, with nothing else on it")
        _check_place(shell, before, "")
        return _MARK.sub(_quoted, line)
    parts = _BETWEEN.split(line)
    for at, part in enumerate(parts):
        if _MARK.search(part) is None:
            continue
        match = _SHELL.fullmatch(part)
        if match is None:
            _refuse(_ALLOWED)
        on_line = _MARK.sub("x", "".join(parts[:at]))
        if match["assigns"] and (changed := _RETYPE.search(before + on_line)):
            _refuse(f"`{changed[1]}` before it may change what is assigned: assign first")
        _check_place(shell, before, on_line)
    return "".join(_MARK.sub(_quoted, part) for part in parts)


def _check_place(shell: str, before: str, on_line: str) -> None:
    """Refuse unless a command of the outermost level begins after *on_line*."""
    if changed := _REREAD.search(before + on_line):
        _refuse(f"`{changed[1]}` before it may change how it is read: do without")
    if said := _complaint(shell, before + on_line + (":" if on_line.strip() else "")):
        _refuse(f"what stands before is not complete ({said}): {_FIX}")
    # A word of the shell that is an error where a command begins, and nowhere else.
    if not _complaint(shell, before + on_line + "fi"):
        _refuse(f"a here-document, a comment or a command goes on here: {_FIX}")


@lru_cache(maxsize=256)
def _complaint(shell: str, script: str) -> str:
    """Return what a shell says of a text that is no script; nothing if it is one."""
    try:
        done = subprocess.run(
            (f"/bin/{shell}", "-n", "/dev/stdin"),
            input=script,
            capture_output=True,
            check=False,
            encoding="utf-8",
            errors="backslashreplace",
            timeout=_TIMEOUT_S,
            env={},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        msg = f"{shell} cannot be asked whether it is a script: {error}"
        raise ValueError(msg) from error
    said = " ".join(done.stderr.replace("/dev/stdin: ", "").split())
    return (said or "no script") if done.returncode else ""
