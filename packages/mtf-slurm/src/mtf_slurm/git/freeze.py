"""Freeze what is on disk as a tree of git, and touch nothing of the user's.

The user's index is copied, dates and all, so that git reads only files that changed since;
all else happens on the copy. What git would pass over is put right there first: entries
marked unchanged, files that a sparse checkout left behind, repositories within the
repository (submodules or not), whose files are frozen as files.

Then the tree is compared with the disk: see ``_exact.py``.

Files are looked at before and after: a tree is of one moment, or is made again. Two moments
within a tick of the kernel's clock (4 to 10 ms) cannot be told apart, so files that changed
just now are waited for. A *new* file that comes while others are read may be missed.

Source: ``git-update-index(1)``, ``git-ls-files(1)``, git's ``racy-git`` note.
"""

from __future__ import annotations

import os
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mtf_slurm.errors import SnapshotError
from mtf_slurm.git import _exact, _index
from mtf_slurm.git._exact import Look
from mtf_slurm.git._filters import shown
from mtf_slurm.git._plumbing import Repository, git_in
from mtf_slurm.git.checkout import git_environ

__all__ = ["Choice", "Frozen", "freeze"]

_GITLINK = b"160000"
_OTHERS = ("ls-files", "--others", "--exclude-standard", "-z")
_NUM_ATTEMPTS = 4
_INDEX_LOCK_WAIT_S = 5.0
_POLL_S = 0.02
_TICK_NS = 20_000_000
_MIB = 1 << 20
_KINDS = {stat.S_IFREG, stat.S_IFLNK, stat.S_IFDIR}

_Looks = dict[bytes, Look | None]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What is frozen of what git does not know, besides all that it knows.

    Attributes:
        include_untracked: Whether any of it. What is ignored never is.
        exclude: Patterns of the kind that ``.gitignore`` has, for more to ignore.
        max_untracked_bytes: How much it may hold in all.
    """

    include_untracked: bool = True
    exclude: tuple[str, ...] = ("/experiments/",)
    max_untracked_bytes: int = 100 * _MIB


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """What was on disk.

    Attributes:
        tree: The tree's id.
        head: The commit that the user is on; None before the first.
        head_tree: That commit's tree.
        dirty: What differs from that commit as `git status` has it, sorted by path, one entry
            each: a letter, a space and the path. ``M`` changed, ``A`` added, ``D`` deleted,
            ``T`` now a link or a file, ``?`` unknown to git, ``R`` a repository whose files
            were frozen. Line ends and bits that git's settings pass over are no entry.
    """

    tree: str
    head: str | None
    head_tree: str | None
    dirty: tuple[str, ...]


class _ChangedError(Exception):
    """Files changed while they were read."""

    def __init__(self, paths: Sequence[bytes]) -> None:
        super().__init__()
        self.paths = paths


def freeze(repository: Repository, choice: Choice) -> Frozen:
    """Store what is on disk among the repository's objects, and return what that is.

    Raises:
        SnapshotError: If a merge is unresolved, another git command holds the index, git does
            not know too much, files change all the time, git cannot read or take one, or has
            not the filter of one; or if the index cannot be read or copied.
    """
    changed: Sequence[bytes] = ()
    for _ in range(_NUM_ATTEMPTS):
        _wait_for_index(repository)
        try:
            with tempfile.TemporaryDirectory(prefix="mtf-index-") as folder:
                return _Freezing(repository, choice, Path(folder, "index")).run()
        except _ChangedError as error:
            changed = error.paths
        except OSError as error:
            reason = (
                f"cannot be copied: {error}; make room there, or set TMPDIR to a folder that "
                f"can be written"
            )
            raise SnapshotError(repository.index, reason) from error
    reason = (
        f"files change while they are read: {shown(changed)}; try again when they rest; "
        f"what a program writes all the time belongs into .gitignore"
    )
    raise SnapshotError(repository.top, reason)


class _Freezing:
    """One attempt."""

    def __init__(self, repository: Repository, choice: Choice, index: Path) -> None:
        self._repository = repository
        self._choice = choice
        self._index = index
        self._top = os.fsencode(repository.top) + b"/"
        self._looks: _Looks = {}
        self._links: list[bytes] = []
        self._nested: list[bytes] = []
        self._new: set[bytes] = set()  # what no repository knows

    def run(self) -> Frozen:
        """Freeze."""
        user_index = _index.copy(self._repository.index, self._index)
        with ThreadPoolExecutor(max_workers=2) as pool:  # what waits for git alone
            on_disk = pool.submit(self._unknown)
            user_commit = pool.submit(self._head)
            self._read_index()
            try:
                changed, gone = self._differences()
                unknown = self._files_of(on_disk.result())
                self._look(unknown)
                self._check_size()
                self._check_kind([*changed, *unknown])
                self._update(changed, gone, unknown)
                written = pool.submit(_exact.write, self._repository, self._index)
                self._check_unchanged()
                tree, stored = written.result()
                head, head_tree = user_commit.result()
                new = {*unknown} - {*self._links}
                differing = pool.submit(self._dirty, head, tree, new)
                behind = dict.fromkeys(gone)  # a link, if there is something at all
                looks = {**self._looks, **behind}
                exact = _exact.exact(self._repository, self._index, stored, looks)
                if exact is not None:
                    self._check_unchanged()
            except SnapshotError:
                self._check_unchanged()  # that may be why git failed
                raise
            dirty = differing.result()
        if self._repository.is_archive:
            _index.copy(self._index, self._repository.index)
        elif _index.identity(self._repository.index) != user_index:
            raise _ChangedError([b".git/index"])
        return Frozen(tree=exact or tree, head=head, head_tree=head_tree, dirty=dirty)

    def _git(self, *args: str, paths: Iterable[bytes] = ()) -> bytes:
        stdin = b"".join(path + b"\0" for path in paths)
        return self._repository.git(*args, index=self._index, stdin=stdin)

    def _head(self) -> tuple[str | None, str | None]:
        """Return the user's commit and its tree."""
        try:
            said = self._git("rev-parse", "HEAD^{commit}", "HEAD^{tree}")
        except SnapshotError as error:
            try:
                self._git("rev-parse", "--quiet", "--verify", "HEAD")
            except SnapshotError:
                return None, None  # no commit yet
            reason = (
                "its HEAD names a commit that is damaged or not there: `git fsck` says more; "
                "check out one that is (`git reflog` has those before), or clone it anew"
            )
            raise SnapshotError(self._repository.top, reason) from error
        commit, tree = said.decode("ascii").split()
        return commit, tree

    def _read_index(self) -> None:
        """Look at what git knows, and unmark what it would not look at."""
        files, assumed, skipped, unmerged = [], [], [], set()
        try:
            listed = self._git("ls-files", "-s", "-v", "-z")
        except SnapshotError as error:
            _index.refuse_damaged(self._repository.index, self._index, error)
        for line in listed.split(b"\0")[:-1]:
            about, _, path = line.partition(b"\t")
            if about.startswith(b"H 100") and about.endswith(b" 0"):  # most are
                files.append(path)
                continue
            tag, mode, _, stage = about.split(b" ")
            if stage != b"0":
                unmerged.add(path)
            elif mode == _GITLINK:
                self._links.append(path)
            else:
                files.append(path)
                if tag.islower():
                    assumed.append(path)
                if tag in b"Ss":
                    skipped.append(path)
        _index.refuse_unmerged(self._repository.top, self._repository.git_dir, unmerged)
        self._look(files)
        if assumed:
            self._git(
                "update-index", "--no-assume-unchanged", "-z", "--stdin", paths=assumed
            )
        if there := [path for path in skipped if self._looks[path]]:
            self._git("update-index", "--no-skip-worktree", "-z", "--stdin", paths=there)

    def _differences(self) -> tuple[list[bytes], list[bytes]]:
        """Return what differs from the index: changed, and gone."""
        args = ("diff-files", "--ignore-submodules=all", "--name-status", "-z")
        fields = iter(self._git(*args).split(b"\0")[:-1])
        changed: list[bytes] = []
        gone: list[bytes] = []
        for status, path in zip(fields, fields, strict=True):
            (gone if status == b"D" else changed).append(path)
        return changed, gone

    def _files_of(self, unknown: Sequence[bytes]) -> list[bytes]:
        """Return the files that are unknown to git, those of repositories within too."""
        linked = [self._linked(path) for path in self._links]
        self._new.update(unknown)
        paths = [*unknown, *(path for path in linked if path)]
        found = [path for path in paths if not path.endswith(b"/")]
        for folder in (path for path in paths if path.endswith(b"/")):
            files = list(self._within(folder))
            if files or folder not in linked:  # else nobody filled it
                self._nested.append(folder)
            found += files
        return found

    def _linked(self, path: bytes) -> bytes:
        """Return *path*, which git has for a repository, as a folder if it is one."""
        where = Path(os.fsdecode(self._top + path))
        if where.is_dir() and not where.is_symlink():
            return path + b"/"
        return path if os.path.lexists(where) else b""

    def _unknown(self) -> list[bytes]:
        if not self._choice.include_untracked:
            return []
        exclude = (f"--exclude={pattern}" for pattern in self._choice.exclude)
        return self._git(*_OTHERS, *exclude).split(b"\0")[:-1]

    def _within(self, folder: bytes) -> Iterator[bytes]:
        """Yield the files of the repository in *folder*, which ends with a slash.

        One whose ``.git`` is gone tells nothing of what it knew: all is taken, but what its
        own ``.gitignore`` names.
        """
        where = Path(os.fsdecode(self._top + folder))
        is_repository = os.path.lexists(where / ".git")
        environ = git_environ(
            GIT_WORK_TREE=str(where), GIT_CEILING_DIRECTORIES=str(where.parent)
        )
        if not is_repository:
            environ["GIT_DIR"] = str(self._repository.git_dir)
            environ["GIT_INDEX_FILE"] = str(self._index.with_name("none"))
        git = partial(git_in, where, environ=environ)
        known, unmerged, nested = [], set(), []
        for line in git("ls-files", "-s", "-z").split(b"\0")[:-1]:
            about, _, path = line.partition(b"\t")
            if not about.endswith(b" 0"):
                unmerged.add(path)
            elif about.startswith(_GITLINK) and self._linked(folder + path)[-1:] == b"/":
                nested.append(path + b"/")
            else:
                known.append(path)
        if unmerged:
            said = git("rev-parse", "--absolute-git-dir").removesuffix(b"\n")
            _index.refuse_unmerged(where, Path(os.fsdecode(said)), unmerged)
        if self._choice.include_untracked or not is_repository:
            for path in git(*_OTHERS).split(b"\0")[:-1]:
                (nested if path.endswith(b"/") else known).append(path)
                self._new.add(folder + path)
        yield from (
            folder + path for path in known if os.path.lexists(self._top + folder + path)
        )
        for path in nested:
            yield from self._within(folder + path)

    def _look(self, paths: Iterable[bytes]) -> None:
        """Note when *paths* changed last, once that is some time ago."""
        new = self._looked(paths)
        newest_ns = max((look[0] for look in new.values() if look), default=0)
        if newest_ns > time.time_ns() - _TICK_NS:
            time.sleep(_TICK_NS / 1e9)
            new = self._looked(new)
        self._looks |= new

    def _looked(self, paths: Iterable[bytes]) -> _Looks:
        looks: _Looks = {}
        top = os.open(self._top, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for path in paths:
                try:
                    found = os.stat(path, dir_fd=top, follow_symlinks=False)
                except OSError:
                    looks[path] = None
                else:
                    looks[path] = (
                        found.st_ctime_ns,
                        found.st_ino,
                        found.st_mode,
                        found.st_size,
                    )
        finally:
            os.close(top)
        return looks

    def _check_unchanged(self) -> None:
        now = self._looked(self._looks)
        if now != self._looks:
            raise _ChangedError([path for path in now if now[path] != self._looks[path]])

    def _check_size(self) -> None:
        looks = {path: self._looks.get(path) for path in self._new}
        sizes = {path: look[3] for path, look in looks.items() if look}
        limit = self._choice.max_untracked_bytes
        if (total := sum(sizes.values())) > limit:
            biggest = sorted(sizes, key=sizes.__getitem__, reverse=True)
            reason = (
                f"{len(sizes)} files that git does not know hold {total / _MIB:,.1f} MiB, more "
                f"than the limit of {limit / _MIB:,.1f} MiB; the biggest are "
                f"{shown(biggest)}: put data into .gitignore, or raise max_untracked_bytes"
            )
            raise SnapshotError(self._repository.top, reason)

    def _check_kind(self, paths: Iterable[bytes]) -> None:
        """Refuse what git knows for a file, and is neither file nor link any more."""
        for path in paths:
            look = self._looks[path]
            if look and stat.S_IFMT(look[2]) not in _KINDS:
                reason = (
                    "is neither a file nor a link, which is all that git takes: remove it, "
                    "`git rm --cached` it, or bring the file back (`git checkout --`)"
                )
                raise SnapshotError(os.fsdecode(self._top + path), reason)

    def _update(
        self, changed: Sequence[bytes], gone: Sequence[bytes], unknown: Sequence[bytes]
    ) -> None:
        """Bring the private index to what is on disk."""
        if gone:
            # Not by name: git follows no link to see that a file behind one is gone.
            null = b"0" * self._repository.oid_digits
            lines = [b"0 %s\t%s" % (null, path) for path in gone]
            self._git("update-index", "-z", "--index-info", paths=lines)
        if changed or unknown:
            args = ("update-index", "--add", "--remove", "--replace", "-z", "--stdin")
            self._git(*args, paths=(*changed, *unknown))

    def _dirty(self, head: str | None, tree: str, unknown: set[bytes]) -> tuple[str, ...]:
        if self._repository.is_archive:
            return ()
        if head is None:
            names = self._git("ls-tree", "-r", "-z", "--name-only", tree).split(b"\0")[
                :-1
            ]
            fields = iter([field for name in names for field in (b"A", name)])
        else:
            args = ("diff-tree", "-r", "-z", "--no-renames", "--name-status", head, tree)
            fields = iter(self._git(*args).split(b"\0")[:-1])
        lines = {path.rstrip(b"/"): b"R" for path in self._nested}
        within = tuple(self._nested)
        for letter, path in zip(fields, fields, strict=True):
            if not (path in lines or path.startswith(within)):
                lines[path] = b"?" if path in unknown else letter
        return tuple(os.fsdecode(lines[path] + b" " + path) for path in sorted(lines))


def _wait_for_index(repository: Repository) -> None:
    """Wait for another git command to end: it may be changing files."""
    lock = repository.index.with_name(repository.index.name + ".lock")
    give_up_s = time.monotonic() + _INDEX_LOCK_WAIT_S
    while lock.exists():
        if time.monotonic() >= give_up_s:
            reason = (
                "another git command is at work there (a commit or a rebase, perhaps, that "
                "waits for its editor): let it end; if none runs, delete this file"
            )
            raise SnapshotError(lock, reason)
        time.sleep(_POLL_S)
