"""What a YAML parser's complaint means, in words for whoever wrote the file.

Knows the wordings of libyaml and of PyYAML, and says what to change rather than what
the parser expected.
"""

from __future__ import annotations

import re

import yaml

from mtf_config.errors import ConfigFileError
from mtf_config.origin import Origin

__all__ = ["misplaced", "syntax_error", "unprintable"]

_UNPRINTABLE = re.compile(
    "[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"
)
_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")
_MISFIT = (
    "does not fit what stands above it: check the indentation; "
    "text with quotes in it is quoted as a whole"
)
_ADVICE = {
    "mapping values are not allowed": "this `:` begins no value: check the indentation, "
    "and put text that holds `: ` in quotes",
    "sequence entries are not allowed": "a list begins on a line of its own below its "
    "key, or is written [a, b]",
    "did not find expected key": _MISFIT,
    "did not find expected '-' indicator": _MISFIT,
    "expected <block end>": _MISFIT,
    "node content": "a value is missing here, or has to be quoted",
    "unknown escape character": "in double quotes a backslash is written twice; "
    "single quotes take text as it is",
    "<document start>": "text stands where the document has ended",
}


def unprintable(text: str, source: str) -> ConfigFileError:
    """Return the error for a control character in *text*."""
    match = _UNPRINTABLE.search(text)
    breaks = list(_BREAK.finditer(text, 0, match.start() if match else 0))
    column = (match.start() if match else 0) - (breaks[-1].end() if breaks else 0) + 1
    character = ascii(match[0]) if match else "a character"
    message = f"{character} may not stand in YAML; in double quotes write its escape"
    return ConfigFileError(Origin(source, len(breaks) + 1, column), message)


def misplaced(match: re.Match[str], text: str, source: str) -> ConfigFileError:
    """Return the error for a character that YAML 1.1 took for the end of a line."""
    before = text[: match.start()]
    line = before.count("\n") + 1
    column = len(before.rpartition("\n")[2]) + 1
    message = f"{match[0]!a} is read as the end of a line by some: in double quotes"
    return ConfigFileError(Origin(source, line, column), f"{message} write its escape")


def syntax_error(error: yaml.MarkedYAMLError, text: str, source: str) -> ConfigFileError:
    """Return the error for what the parser said of *text*."""
    problem, context = str(error.problem), error.context or ""
    mark = error.problem_mark or error.context_mark
    assert mark is not None  # noqa: S101 - both parsers set it
    begun = error.context_mark or mark
    reason = f"{problem} {context}".strip()
    if "quoted scalar" in context and "unexpected" in problem:
        mark, reason = begun, "this quote is never closed"
    elif context.startswith("while parsing a flow") and "node" not in context:
        reason = (
            f"the bracket that opens at line {begun.line + 1}, column "
            f"{begun.column + 1} is not closed, or a comma is missing before this"
        )
    elif "simple key" in context:
        mark, reason = begun, "this line is not `key: value`"
    elif context.endswith(("an alias", "an anchor")):
        mark, reason = begun, "text that begins with * or & has to be quoted"
    elif "cannot start any token" in problem or "found a tab" in problem:
        character = _character(text, mark)
        reason = f"{character!r} cannot begin a value: put the text in quotes"
        if character == "\t":
            reason = "a tab stands where YAML allows only spaces"
    else:
        for words, advice in _ADVICE.items():
            if words in problem:
                reason = advice
    return ConfigFileError(Origin(source, mark.line + 1, mark.column + 1), reason)


def _character(text: str, mark: yaml.Mark) -> str:
    line = "".join(_BREAK.split(text)[mark.line : mark.line + 1])
    return line[mark.column : mark.column + 1]
