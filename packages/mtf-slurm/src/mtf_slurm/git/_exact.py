"""Compare a frozen tree with the disk, and bring it to what lies there.

Every file is in the tree, or is named in an error. Where git made other bytes of a file, for
a rule of line ends, encodings or keywords, it is stored as it lies there, and so is its
executable bit where ``core.fileMode`` is false. Only what attributes give to a filter stays
as that made it. Other bytes are told by their number: a file in an encoding that takes
exactly as many as UTF-8 does is missed.

The tree is whole: what a partial clone has not fetched is fetched, into the user's
repository, as `git checkout` would; so no job fetches.

Source: ``git-ls-tree(1)``, ``gitattributes(5)``, git's ``partial-clone`` note.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from mtf_slurm.errors import SnapshotError
from mtf_slurm.git._plumbing import Repository
from mtf_slurm.git.checkout import CheckoutError, by_filters

__all__ = ["Look", "exact", "shown", "write"]

_REGULAR, _EXECUTABLE, _LINK = b"100644", b"100755", b"120000"
_NUM_SHOWN = 5
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
        SnapshotError: If git took none of a file, or has not the filter of one.
    """
    modes = _Modes()
    lost, differ = [], {}
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
        raise SnapshotError(repository.top, reason)
    git = partial(repository.git, index=index)
    rules = [path for path in stored if path.endswith(b".gitattributes")]
    has_filters = any(_names_filters(repository.top, path) for path in rules)
    try:
        filtered = by_filters(git, list(stored if has_filters else differ))
    except CheckoutError as error:
        raise SnapshotError(repository.top, str(error)) from error
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


def _names_filters(top: Path, rules: bytes) -> bool:
    try:
        return b"filter" in (top / os.fsdecode(rules)).read_bytes()
    except OSError:
        return True  # a sparse checkout left it away


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
