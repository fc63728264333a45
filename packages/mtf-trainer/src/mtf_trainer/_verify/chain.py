"""The lines of ``chain.jsonl``, read without trusting them."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mtf_trainer._saving.files import checkpoint_name
from mtf_trainer.certificate import Certificate

__all__ = ["Chain", "Link", "Problem", "read_chain"]

# Written ones have about 1 KB.
_MAX_LINE_BYTES: Final = 1 << 20
_MAX_COUNT: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, and where."""

    place: str
    what: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """One line: a save.

    Args:
        number: Of the line, from 1.
        name: File name of the checkpoint.
        epoch: Epochs finished.
        global_step: Optimizer steps taken.
        certificate: What it was.
        is_epoch_end: As the line says, whatever that is, for retention.
        values: Likewise.
    """

    number: int
    name: str
    epoch: int
    global_step: int
    certificate: Certificate
    is_epoch_end: object = None
    values: object = None


@dataclass(kw_only=True, slots=True)
class Chain:
    """All lines.

    Args:
        links: Those that are lines of a chain, in order.
        problems: What the others are.
        is_torn: Whether the last line has no end, as a kill leaves it; it is in neither.
    """

    links: list[Link] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    is_torn: bool = False


def read_chain(path: Path) -> Chain:
    """Read *path*; where there is no file, that is a problem.

    Raises:
        OSError: If it is there and cannot be read.
    """
    chain = Chain()
    try:
        is_file = stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        chain.problems.append(Problem(path.name, "is missing"))
        return chain
    if not is_file:
        chain.problems.append(Problem(path.name, "is not a file"))
        return chain
    for number, line in enumerate(_lines(path), start=1):
        if not line.endswith(b"\n") and len(line) <= _MAX_LINE_BYTES:
            chain.is_torn = True
            break
        try:
            chain.links.append(_parse(number, line))
        except ValueError as error:
            place = f"{path.name}, line {number}"
            chain.problems.append(Problem(place, str(error)))
    return chain


def _lines(path: Path) -> Iterator[bytes]:
    """Give the lines; of one that is too long only the beginning."""
    with path.open("rb") as file:
        while line := file.readline(_MAX_LINE_BYTES + 1):
            yield line
            while not line.endswith(b"\n") and line:
                line = file.readline(_MAX_LINE_BYTES + 1)


def _parse(number: int, line: bytes) -> Link:
    if len(line) > _MAX_LINE_BYTES:
        message = "is too long to have been written here"
        raise ValueError(message)
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        message = "is damaged: it is no JSON"
        raise ValueError(message) from error
    if not isinstance(row, dict):
        message = "is damaged: it is no JSON object"
        raise ValueError(message)  # noqa: TRY004 - what a file holds, not an argument
    counts = []
    for key in ("epoch", "global_step"):
        count = row.get(key)
        if type(count) is not int or not 0 <= count < _MAX_COUNT:
            message = f"is damaged: its {key} is no count"
            raise ValueError(message)
        counts.append(count)
    name = checkpoint_name(*counts)
    if row.get("name") != name:
        message = f"is damaged: it must have the name {name}"
        raise ValueError(message)
    certificate = Certificate.from_plain(row)
    return Link(
        number=number,
        name=name,
        epoch=counts[0],
        global_step=counts[1],
        certificate=certificate,
        is_epoch_end=row.get("is_epoch_end"),
        values=row.get("values"),
    )
