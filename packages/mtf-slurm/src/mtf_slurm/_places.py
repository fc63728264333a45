r"""Put values into a shell script, each quoted for the place it lands in.

A template is rendered with a `mark` for each value; `fill` then reads the script as the
shell and ``sbatch`` do, and writes the value as it must stand there: in an ``#SBATCH`` line,
bare, between double or single quotes, or in a comment. Where no quoting is safe, such as in
a here-document, it is refused.

Source: POSIX, Shell Command Language, 2.2; Slurm 22.05, ``_get_argument`` of sbatch.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence

__all__ = ["fill", "mark"]

_OPEN, _CLOSE, _NEXT = "\x01", "\x02", "\x03"
_MARK = re.compile(f"{_OPEN}([0-9a-f{_NEXT}]*){_CLOSE}")
_PLAIN = re.compile(r"[A-Za-z0-9_@%+=:,./^~&|*!\[\]()-]*")
_HEREDOC = re.compile(r"(?<!<)<<-?\s*['\"\\]?([A-Za-z_]\w*)")


def mark(values: Sequence[str]) -> str:
    """Return what stands for *values* until `fill`; several are words of a command."""
    return _OPEN + _NEXT.join(value.encode().hex() for value in values) + _CLOSE


def fill(text: str) -> str:
    """Return *text* with its marks replaced.

    Raises:
        ValueError: If a mark is where no quoting is safe; its arguments are the number of
            the line, from 1, and the reason.
    """
    lines = text.split("\n")
    shell = _Shell()
    done = [
        _header(number, line)
        if line.startswith("#SBATCH") and shell.is_bare
        else shell.line(number, line)
        for number, line in enumerate(lines, start=1)
    ]
    return "\n".join(done)


def _values(match: re.Match[str]) -> list[str]:
    return [bytes.fromhex(part).decode() for part in match[1].split(_NEXT)]


def _header(number: int, line: str) -> str:
    """Fill a line of options: one word for sbatch, whatever is in it."""

    def quoted(match: re.Match[str]) -> str:
        before = line[: match.start()]
        if '"' in before or "'" in before or "\\" in before:
            reason = "a value of an option is quoted here: leave the quotes out"
            raise ValueError(number, reason)
        values = _values(match)
        if len(values) != 1:
            raise ValueError(number, "an option takes one value, and this is a list")
        return _option(values[0])

    return _MARK.sub(quoted, line)


def _option(value: str) -> str:
    r"""Quote a value for an ``#SBATCH`` line.

    >>> _option("a100"), _option('a "b" $c')
    ('a100', '"a \\"b\\" $c"')
    """
    if _PLAIN.fullmatch(value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


class _Shell:
    """Reads a script line by line and knows what is open: quotes, expansions, a document."""

    def __init__(self) -> None:
        self._open: list[str] = []
        self._heredoc = ""

    @property
    def is_bare(self) -> bool:
        """Whether the next line begins outside of everything."""
        return not self._open and not self._heredoc

    def line(self, number: int, line: str) -> str:
        """Return the line, filled."""
        if self._heredoc:
            if _MARK.search(line):
                reason = "a value is in a here-document: put it into a variable first"
                raise ValueError(number, reason)
            if line.strip() == self._heredoc:
                self._heredoc = ""
            return line
        filled = "".join(self._parts(number, line))
        if match := _HEREDOC.search(line):
            self._heredoc = match[1]
        return filled

    def _parts(self, number: int, line: str) -> Iterator[str]:
        at = 0
        while at < len(line):
            match = _MARK.match(line, at)
            if match:
                yield self._filled(number, _values(match))
                at = match.end()
                continue
            if line[at] == "\\" and self._top != "'":
                if _MARK.match(line, at + 1):
                    raise ValueError(number, "a backslash stands before a value")
                yield line[at : at + 2]
                at += 2
                continue
            is_word = at == 0 or line[at - 1] in " \t;(&|"
            if line[at] == "#" and is_word and self._top in {"", "("}:
                yield _MARK.sub(lambda match: " ".join(_values(match)), line[at:])
                return
            width = self._see(line, at)
            yield line[at : at + width]
            at += width

    @property
    def _top(self) -> str:
        return self._open[-1] if self._open else ""

    def _see(self, line: str, at: int) -> int:
        """Note what the next character opens or closes; return how many it is."""
        char, top = line[at], self._top
        closes = {"(": ")", "((": ")", "{": "}", "$'": "'"}.get(top, top)
        if char == closes:
            self._open.pop()
            if top == "((" and line.startswith("))", at):
                return 2
            return 1
        if top in {"'", "$'"}:
            return 1
        for start, what in _OPENERS:
            if line.startswith(start, at) and not (
                top == '"' and start in {"'", "$'", "((", "("}
            ):
                self._open.append(what)
                return len(start)
        return 1

    def _filled(self, number: int, values: Sequence[str]) -> str:
        top = self._top
        if top in {"", "("}:
            return " ".join(shlex.quote(value) for value in values)
        if len(values) != 1:
            raise ValueError(number, "a list is between quotes: take these away")
        if top == "'":
            return values[0].replace("'", "'\\''")
        if top == '"' and "{" not in self._open:
            return re.sub(r'([\\"$`])', r"\\\1", values[0])
        reason = f"a value is within {top} here: put it into a variable first"
        raise ValueError(number, reason)


# Longest first. Within double quotes, only expansions open anything.
_OPENERS = (
    *(("$((", "(("), ("$(", "("), ("${", "{"), ("$'", "$'"), ("((", "((")),
    *(("(", "("), ("`", "`"), ("'", "'"), ('"', '"')),
)
