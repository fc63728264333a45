"""How the fake's commands read their options: as Slurm's do, and no more than is used."""

from __future__ import annotations

import re

__all__ = ["Refusal", "indices", "parse", "split_options"]

FLAGS = frozenset(
    {
        *("parsable", "parsable2", "requeue", "no-requeue", "exclusive", "noheader"),
        *("array-expand", "me", "allocations", "json", "duplicates", "quiet", "batch"),
        *("oneliner", "noconvert", "hold", "version", "start"),
    }
)


class Refusal(Exception):  # noqa: N818 -- what Slurm does
    """Slurm says no: its text, and its exit status."""

    def __init__(self, text: str, status: int = 1) -> None:
        super().__init__(text)
        self.status = status


def split_options(line: str) -> list[str]:
    r"""Split what follows ``#SBATCH`` as sbatch does.

    >>> split_options('--comment="a \\"b\\" #c" --nodes=1 # more')
    ['--comment=a "b" #c', '--nodes=1']
    """
    words: list[str] = []
    word, quote, at, is_open = "", "", 0, False
    while at < len(line):
        char = line[at]
        if char == "\\" and at + 1 < len(line):
            word, at, is_open = word + line[at + 1], at + 1, True
        elif quote:
            quote, word = ("", word) if char == quote else (quote, word + char)
        elif char in "'\"":
            quote, is_open = char, True
        elif char.isspace():
            if is_open:
                words.append(word)
            word, is_open = "", False
        elif char == "#" and not is_open:
            break
        else:
            word, is_open = word + char, True
        at += 1
    return [*words, word] if is_open else words


def parse(
    argv: list[str], known: frozenset[str], *, stops: bool = False
) -> tuple[dict[str, str], list[str]]:
    """Return options by their long names, and other arguments."""
    options: dict[str, str] = {}
    others: list[str] = []
    left = list(argv)
    while left:
        word = left.pop(0)
        if not word.startswith("--"):
            others.append(word)
            if stops:
                return options, others + left
            continue
        name, equals, value = word[2:].partition("=")
        if name not in known:
            msg = f"unrecognized option '{word}'"
            raise Refusal(msg)
        if not equals and name not in FLAGS and name != "array":
            if not left:
                msg = f"option '--{name}' requires an argument"
                raise Refusal(msg)
            value = left.pop(0)
        options[name] = value
    return options, others


def indices(text: str) -> tuple[list[int], int | None]:
    """Return the indices of an array, and how many run at once."""
    spec, _, limit = text.partition("%")
    found: list[int] = []
    for part in spec.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if match is None:
            msg = "Batch job submission failed: Invalid job array specification"
            raise Refusal(msg)
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    return found, int(limit) if limit else None
