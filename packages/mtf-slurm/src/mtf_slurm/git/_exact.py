"""Compare a frozen tree with the disk, and bring it to what lies there.

Every file is in the tree, or is named in an error. Where git made other bytes of a file, for
a rule of line ends, encodings or keywords, it is stored as it lies there, and so is its
executable bit where ``core.fileMode`` is false. Only what attributes give to a filter stays
as that made it: see ``_filters.py``. Other bytes are told by their number, which rules of line
ends and keywords change. Encodings may not, nor a filter that rules on disk name and frozen ones
do not: what these were made of is always stored.

A link by its absolute path to what is frozen is an error: a job would follow it to what lies
there by then.

The tree is whole: what a partial clone has not fetched is fetched, into the user's
repository, as `git checkout` would; so no job fetches.

Source: ``git-ls-tree(1)``, ``gitattributes(5)``, git's ``partial-clone`` note.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from mtf_slurm.errors import SnapshotError
from mtf_slurm.git import _filters
from mtf_slurm.git._filters import shown
from mtf_slurm.git._plumbing import Repository
from mtf_slurm.git.checkout import by_attributes

__all__ = ["Look", "exact", "write"]

_REGULAR, _EXECUTABLE, _LINK = b"100644", b"100755", b"120000"
_NUM_HASHED = 200  # files a call: they are arguments

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
    asked = ("filter", "working-tree-encoding")
    with ThreadPoolExecutor(max_workers=1) as pool:
        on_disk = pool.submit(by_attributes, git, stored, *asked, where=())
        filtered, encoded = by_attributes(git, stored, *asked)
        filtered_there, encoded_there = on_disk.result()
    sizes = {
        path: look[3]
        for path, about in stored.items()
        if (look := looks.get(path)) and stat.S_ISREG(look[2]) and about[:6] != _LINK
    }
    if filtered:
        made = {
            path: (stored[path].split()[2], sizes[path])
            for path in filtered.keys() & sizes
        }
        _filters.check(repository, index, filtered, filtered_there, made, encoded=encoded)
    kept = {*encoded, *encoded_there, *filtered_there} - filtered.keys()
    for path in kept & sizes.keys():
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
