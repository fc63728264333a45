"""See that filters make of what is stored what lies on disk, or refuse the files.

A job gets what the filters of the frozen rules make. All of it is made anew for each snapshot,
and read, not kept: that git holds a file for unchanged says what it made *of* it alone.

A filter that only cleans, on the way into git, is taken at its word, unless it leaves a pointer;
or line ends, keywords or an encoding change as well, which rules of git do, too.

Source: ``git-cat-file(1)``, ``gitattributes(5)``.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import FileIO
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from mtf_slurm.errors import SnapshotError
from mtf_slurm.git._plumbing import Repository
from mtf_slurm.git.checkout import (
    TIMEOUT_S,
    WHOLE,
    CheckoutError,
    check_filters,
    configuration,
    filters_required,
)

__all__ = ["check", "shown"]

_NUM_SHOWN = 5
_CHUNK_BYTES = 1 << 20
_MIN_BYTES_PER_S = 1 << 20  # of a filter that does not hang
_POINTER = b"version https://git-lfs.github.com/spec/"
_ENDS = re.compile(rb"\r?\n")
_KEYWORDS = re.compile(rb"\$Id(?::[^$\n]*)?\$")
_NO_LINE = re.compile(rb"\n|^[ \t]|\r$")  # what a line for cat-file cannot hold


def check(
    repository: Repository,
    index: Path,
    filters: Mapping[bytes, bytes],
    on_disk: Mapping[bytes, bytes],
    made: Mapping[bytes, tuple[bytes, int]],
    *,
    encoded: Collection[bytes],
) -> None:
    """Refuse files that their filters would not make as they lie on disk.

    Args:
        repository: Which holds them.
        index: Of what is frozen.
        filters: By path, as its rules name them.
        on_disk: The same, as those on disk do, by which files were stored.
        made: The ids and sizes of those that lie there.
        encoded: Those with an encoding of their own.

    Raises:
        SnapshotError: If there are some, or git has not the filter of one, or it fails.
    """
    top = repository.top
    git = partial(repository.git, index=index)
    config = configuration(git)
    try:
        check_filters(config, filters)
    except CheckoutError as error:
        raise SnapshotError(top, str(error)) from error
    if ruled := sorted(path for path in made if on_disk.get(path) != filters[path]):
        reason = (
            f"the frozen rules have {shown(ruled)} go through another filter than those on "
            f"disk: have the .gitattributes that says so frozen (`git add --force`), or "
            f"remove it"
        )
        raise SnapshotError(top, reason)
    settings = (part for key in WHOLE for part in ("-c", f"{key}={WHOLE[key]}"))
    git = partial(git, *settings, *filters_required(config))
    makers = {
        name
        for name in filters.values()
        for of in (b"smudge", b"process")
        if config.get(b"filter.%s.%s" % (name, of), b"") not in {b"", b"cat"}
    }
    try:
        other = [
            path
            for path in _unlike(git, top, made)
            if filters[path] in makers
            or path in encoded
            or not _is_stripped(top, path, _made(git, path, made[path][0]))
        ]
    except SnapshotError as error:
        reason = f"{error.reason}; {_fix('what it names')}"
        raise SnapshotError(error.place, reason) from error
    if other:
        reason = (
            f"what their filters would make of {shown(other)} is not what lies there, so a "
            f"job would run with something else; {_fix('them')}"
        )
        raise SnapshotError(top, reason)


def shown(paths: Collection[bytes]) -> str:
    """Return the first few paths, for an error."""
    more = f" and {len(paths) - _NUM_SHOWN} more" * (len(paths) > _NUM_SHOWN)
    first = list(paths)[:_NUM_SHOWN]
    return ", ".join(repr(os.fsdecode(path)) for path in first) + more


def _fix(what: str) -> str:
    return (
        f"have filters that make {what} (for lfs: `git lfs install`, without --skip-smudge, "
        f"and `git lfs pull`), and that alone change line ends or keywords; or have them "
        f"frozen as they lie there, by lines such as `*.bin -filter` in .git/info/attributes"
    )


def _made(git: Callable[..., bytes], path: bytes, oid: bytes) -> bytes:
    return git("cat-file", "--filters", b"--path=" + path, oid)


def _unlike(
    git: Callable[..., bytes], top: Path, made: Mapping[bytes, tuple[bytes, int]]
) -> list[bytes]:
    """Return the files of which git makes other bytes than lie there."""
    lines = [path for path in made if not _NO_LINE.search(path)]
    same = {
        path
        for path in made.keys() - set(lines)
        if _is_same(top, path, [_made(git, path, made[path][0])])
    }
    mark = uuid.uuid4().hex  # in none of the files
    stdin = b"".join(b"%s %s\n" % (made[path][0], path) for path in lines)
    timeout_s = TIMEOUT_S + sum(size for _, size in made.values()) / _MIN_BYTES_PER_S
    read, write = os.pipe()
    with FileIO(read) as output, ThreadPoolExecutor(max_workers=1) as pool:
        read_same = pool.submit(_same, output, f"\n{mark}\n".encode(), top, lines)
        try:
            asked = ("cat-file", f"--batch={mark}", "--filters")
            git(*asked, stdin=stdin, timeout_s=timeout_s, output=write)
        finally:
            os.close(write)
        same |= read_same.result()
    return sorted(made.keys() - same)


def _same(output: FileIO, mark: bytes, top: Path, paths: list[bytes]) -> set[bytes]:
    """Return those of *paths* whose bytes *output* has, each after a mark, as on disk."""
    same = set()
    for number, pieces in groupby(_pieces(output, mark), key=itemgetter(0)):
        if number and _is_same(top, paths[number - 1], (piece for _, piece in pieces)):
            same.add(paths[number - 1])
    return same


def _pieces(output: FileIO, mark: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield what lies between marks, piece by piece, with the number of marks before it."""
    number, left = 0, b"\n"
    while block := output.read(_CHUNK_BYTES):
        *ended, left = (left + block).split(mark)
        for piece in ended:
            yield number, piece
            number += 1
        sure = max(0, len(left) - len(mark) + 1)  # what follows may begin a mark
        yield number, left[:sure]
        left = left[sure:]
    yield number, left[:-1]  # git ends with a newline


def _is_same(top: Path, path: bytes, pieces: Iterable[bytes]) -> bool:
    try:
        with (top / os.fsdecode(path)).open("rb") as file:
            return all(file.read(len(piece)) == piece for piece in pieces) and (
                file.read(1) == b""
            )
    except OSError:
        return False  # gone


def _is_stripped(top: Path, path: bytes, made: bytes) -> bool:
    """Tell whether what git makes of a file lacks what its filter took away, and no more."""
    try:
        data = (top / os.fsdecode(path)).read_bytes()
    except OSError:
        return False  # gone
    ends, ends_made = set(_ENDS.findall(data)), set(_ENDS.findall(made))
    is_plain = b"\r\n" not in ends | ends_made
    has_keywords = set(_KEYWORDS.findall(made)) <= set(_KEYWORDS.findall(data))
    return (
        (is_plain or ends == ends_made) and has_keywords and not made.startswith(_POINTER)
    )
