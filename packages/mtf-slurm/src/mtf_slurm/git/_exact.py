"""Compare a frozen tree with the disk, and bring it to what lies there.

Every file is in the tree, or is named in an error. Where git made other bytes of a file, for
a rule of line ends, encodings or keywords, it is stored as it lies there, and so is its
executable bit where ``core.fileMode`` is false. Only what attributes give to a filter stays
as that made it; and the filter must make of that what lies on disk, or the file is an error. A
filter that only cleans, on the way into git, is taken at its word, unless it leaves a pointer.
Other bytes are told by their number, which rules of line ends and keywords change; encodings
may not, so what they were made of is always stored.

A link by its absolute path to what is frozen is an error: a job would follow it to what lies
there by then.

The tree is whole: what a partial clone has not fetched is fetched, into the user's
repository, as `git checkout` would; so no job fetches.

Source: ``git-ls-tree(1)``, ``gitattributes(5)``, git's ``partial-clone`` note.
"""

from __future__ import annotations

import filecmp
import os
import shlex
import stat
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from mtf_slurm.errors import SnapshotError
from mtf_slurm.git._plumbing import Repository
from mtf_slurm.git.checkout import (
    WHOLE,
    CheckoutError,
    by_attributes,
    check_filters,
    filters_required,
    only_cleaned,
)

__all__ = ["Look", "exact", "shown", "write"]

_REGULAR, _EXECUTABLE, _LINK = b"100644", b"100755", b"120000"
_NUM_SHOWN = 5
_NUM_HASHED = 200  # files a call: they are arguments
_MADE_BYTES = 1 << 28  # by filters, at once
_POINTER = b"version https://git-lfs.github.com/spec/"


# When a file changed (ns), its inode, mode and size. Plain: there are as many as files.
Look = tuple[int, int, int, int]


class _Modes(dict[int, bytes]):
    """What git makes of a file's mode."""

    def __missing__(self, mode: int) -> bytes:
        if stat.S_ISREG(mode):
            made = _EXECUTABLE if mode & stat.S_IXUSR else _REGULAR
        else:
            made = _LINK if stat.S_ISLNK(mode) else b""
        self[mode] = made
        return made


def write(repository: Repository, index: Path) -> tuple[str, dict[bytes, bytes]]:
    """Store what is in *index* as a tree; return that, and its lines by path.

    Raises:
        SnapshotError: If git cannot, or objects of a partial clone cannot be fetched.
    """
    tree = repository.git("write-tree", index=index).decode("ascii").strip()
    if any((repository.common_dir / "objects/pack").glob("*.promisor")):
        _fetch(repository, tree)
    stored = {}
    for line in repository.git("ls-tree", "-r", "-l", "-z", tree).split(b"\0")[:-1]:
        about, _, path = line.partition(b"\t")
        stored[path] = about
    return tree, stored


def exact(
    repository: Repository,
    index: Path,
    stored: Mapping[bytes, bytes],
    looks: Mapping[bytes, Look | None],
) -> str | None:
    """Bring a tree, and its index, to what lies on disk.

    Args:
        repository: Which holds the tree.
        index: What it was made of.
        stored: Its lines.
        looks: Of the files; None where nothing lies.

    Returns:
        The new tree; None if there is nothing to change.

    Raises:
        SnapshotError: If git took none of a file, or has no filter that makes what lies
            there; or a link leads to what is stored by an absolute path.
    """
    differ = _compared(repository.top, stored, looks)
    _check_links(repository.top, stored)
    git = partial(repository.git, index=index)
    filtered, encoded = by_attributes(git, stored, "filter", "working-tree-encoding")
    try:
        check_filters(git, filtered)
        cleaned = only_cleaned(git, filtered)
    except CheckoutError as error:
        raise SnapshotError(repository.top, str(error)) from error
    there = {path for path in stored if _is_file(looks.get(path))}
    _check_made(repository, index, sorted(filtered.keys() & there), looks, cleaned)
    for path in encoded.keys() & there:
        _, _, oid, _ = stored[path].split()
        differ[path] = differ.get(path, (stored[path][:6],))[0], oid, True
    raw = [path for path in differ if differ[path][2] and path not in filtered]
    oids = {path: oid for path, (_, oid, _) in differ.items()}
    for start in range(0, len(raw), _NUM_HASHED):
        some = raw[start : start + _NUM_HASHED]
        said = git("hash-object", "-w", "--no-filters", "--", *some)
        oids |= zip(some, said.split(), strict=True)
    if not differ:
        return None
    lines = (b"%s %s\t%s\0" % (differ[path][0], oids[path], path) for path in differ)
    git("update-index", "-z", "--index-info", stdin=b"".join(lines))
    return git("write-tree").decode("ascii").strip()


def shown(paths: Sequence[bytes]) -> str:
    """Return the first few paths, for an error."""
    more = f" and {len(paths) - _NUM_SHOWN} more" * (len(paths) > _NUM_SHOWN)
    return ", ".join(repr(os.fsdecode(path)) for path in paths[:_NUM_SHOWN]) + more


def _compared(
    top: Path, stored: Mapping[bytes, bytes], looks: Mapping[bytes, Look | None]
) -> dict[bytes, tuple[bytes, bytes, bool]]:
    """Return what differs: its mode on disk, its id in the tree, and whether its size does."""
    modes = _Modes()
    lost: list[bytes] = []
    differ: dict[bytes, tuple[bytes, bytes, bool]] = {}
    for path, look in looks.items():
        if look is None:
            continue
        _, _, on_disk, size = look
        mode = modes[on_disk]
        about = stored.get(path, b"")
        if not mode or (about[:6] == mode and int(about.rpartition(b" ")[2]) == size):
            continue
        if about[:6] in {_REGULAR, _EXECUTABLE} and mode != _LINK:
            _, _, oid, stored_size = about.split()
            differ[path] = mode, oid, int(stored_size) != size
        elif about[:6] != _LINK:
            lost.append(path)
    if lost:
        reason = f"git cannot take {shown(lost)}: rename them, or have git ignore them"
        raise SnapshotError(top, reason)
    return differ


def _is_file(look: Look | None) -> bool:
    return look is not None and stat.S_ISREG(look[2])


def _check_links(top: Path, stored: Mapping[bytes, bytes]) -> None:
    """Refuse links that are absolute and lead to what is stored."""
    links = [path for path, about in stored.items() if about[:6] == _LINK]
    root = os.fsencode(top.resolve())
    known: set[bytes] = set()
    for path in links:
        link = os.fsencode(top) + b"/" + path
        try:
            target = os.readlink(link)  # noqa: PTH115 -- bytes
        except OSError:  # behind a sparse checkout, or a file where there are no links
            continue
        if not target.startswith(b"/"):
            continue
        known = known or _with_folders(stored)
        folder, _, name = target.rstrip(b"/").rpartition(b"/")
        named = os.path.realpath(folder or b"/") + b"/" + name
        for real in (named, os.path.realpath(target)):
            inside = os.path.relpath(real, root)
            if inside in known:
                where = os.path.relpath(real, os.path.realpath(link.rpartition(b"/")[0]))
                words = ("ln", "-sfn", os.fsdecode(where), os.fsdecode(path))
                reason = (
                    f"this link leads to {os.fsdecode(inside)!r} of the same code by an "
                    f"absolute path, where a job would find what was edited since: make it "
                    f"relative, `{shlex.join(words)}` in {top}"
                )
                raise SnapshotError(os.fsdecode(link), reason)


def _with_folders(paths: Mapping[bytes, bytes]) -> set[bytes]:
    found = {b"."}
    for path in paths:
        inside = path
        while inside and inside not in found:
            found.add(inside)
            inside = inside.rpartition(b"/")[0]
    return found


def _check_made(
    repository: Repository,
    index: Path,
    paths: Sequence[bytes],
    looks: Mapping[bytes, Look | None],
    cleaned: Collection[bytes],
) -> None:
    """Refuse files that their filters would not make as they lie on disk.

    Of *cleaned* ones, pointers alone.
    """
    if not paths:
        return
    git = partial(repository.git, index=index)
    settings = (part for key in WHOLE for part in ("-c", f"{key}={WHOLE[key]}"))
    options = (*settings, *filters_required(git))
    other: list[bytes] = []
    for some in _portions(paths, looks):
        with tempfile.TemporaryDirectory(dir=index.parent) as folder:
            names = b"".join(path + b"\0" for path in some)
            to = ("checkout-index", "--ignore-skip-worktree-bits", f"--prefix={folder}/")
            try:
                git(*options, *to, "-z", "--stdin", stdin=names)
            except SnapshotError as error:
                reason = f"{error.reason}; {_made_fix(shown(some))}"
                raise SnapshotError(repository.top, reason) from error
            other += (
                path
                for path in some
                if not _is_same(Path(folder), repository.top, path)
                and (path not in cleaned or _is_pointer(Path(folder), path))
            )
    if other:
        reason = (
            f"what their filters would make of {shown(other)} is not what lies there, so a "
            f"job would run with something else; {_made_fix('them')}"
        )
        raise SnapshotError(repository.top, reason)


def _made_fix(what: str) -> str:
    return (
        f"have filters that make {what} (for lfs: `git lfs install`, without --skip-smudge, "
        f"and `git lfs pull`); or have them frozen as they lie there, by lines such as "
        f"`*.bin -filter` in .git/info/attributes"
    )


def _portions(
    paths: Sequence[bytes], looks: Mapping[bytes, Look | None]
) -> Iterator[list[bytes]]:
    some: list[bytes] = []
    left = _MADE_BYTES
    for path in paths:
        look = looks[path]
        left -= look[3] if look else 0
        if some and left < 0:
            yield some
            some, left = [], _MADE_BYTES
        some.append(path)
    yield some


def _is_same(made: Path, top: Path, path: bytes) -> bool:
    name = os.fsdecode(path)
    try:
        return filecmp.cmp(made / name, top / name, shallow=False)
    except OSError:
        return False  # not made, or gone


def _is_pointer(made: Path, path: bytes) -> bool:
    try:
        with (made / os.fsdecode(path)).open("rb") as file:
            return file.read(len(_POINTER)) == _POINTER
    except OSError:
        return True  # not made


def _fetch(repository: Repository, tree: str) -> None:
    """Fetch what the tree has and a partial clone lacks, all at once."""
    said = repository.git("rev-list", "--objects", "--missing=print", tree)
    missing = [line[1:] for line in said.splitlines() if line.startswith(b"?")]
    if not missing:
        return
    try:
        asked = ("--name-only", "--get-regexp", r"^remote\..*\.promisor$")
        for name in os.fsdecode(repository.git("config", *asked)).splitlines():
            remote = name.removeprefix("remote.").removesuffix(".promisor")
            repository.git(
                *("-c", "fetch.negotiationAlgorithm=noop", "fetch", "--quiet"),
                *("--stdin", "--no-filter", "--no-tags", "--no-prune"),
                *("--no-write-fetch-head", "--no-write-commit-graph"),
                *("--recurse-submodules=no", "--", remote),
                stdin=b"\n".join(missing),
            )
    except SnapshotError as error:
        reason = (
            f"this partial clone lacks {len(missing)} objects of what is frozen, and they "
            f"cannot be fetched: {error.reason}; submit where its remote can be reached, or from a "
            f"whole clone"
        )
        raise SnapshotError(repository.top, reason) from error
