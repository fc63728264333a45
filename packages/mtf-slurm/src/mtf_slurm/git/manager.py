"""Code snapshots of one project: make, record, push, check out, prune.

Nothing of the user's is touched: not the index, the working tree, HEAD, the stash, the
reflogs or the config, and no hook runs. Objects and branches are all that is added, and one
lock file in the folder of git. Any number of processes may make snapshots at once.
"""

from __future__ import annotations

import getpass
import os
import re
import socket
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from mtf_slurm.errors import SnapshotError
from mtf_slurm.git import branches, checkout, provenance
from mtf_slurm.git._plumbing import Repository, find, init_archive
from mtf_slurm.git.branches import Branch
from mtf_slurm.git.environment import environment
from mtf_slurm.git.freeze import Choice, Frozen, freeze
from mtf_slurm.git.lock import GitOperationLock
from mtf_slurm.git.snapshot import Snapshot

__all__ = ["GitManager"]

_LOCK_NAME = "mtf-slurm.lock"
_ARCHIVE_EXCLUDE = ("__pycache__/", ".venv/", "venv/")


class GitManager:
    """Freezes the code of a project.

    All of the repository is frozen, also where the project is one folder of it.

    Args:
        project_root: The project's folder.
        choice: What is frozen of what git does not know. Patterns that begin with a slash
            are of the project's folder.
        archive: For a project that is in no repository: where a repository is kept for its
            snapshots, which holds the whole folder: new, empty, or made for that before. A
            project that is in a repository ignores it.
        leave_out: Folders that are not frozen, as those that jobs write into: whatever is
            new in them, by whichever path they are named. Those elsewhere are passed over.
        lock_timeout_s: How long `prune` waits for another that prunes, in seconds.

    Raises:
        SnapshotError: If the project is in no repository and *archive* is None, or something
            else; or it is in one that git cannot work with, or that is bare; or the project
            itself is to be left out.
    """

    def __init__(
        self,
        project_root: Path | str,
        *,
        choice: Choice | None = None,
        archive: Path | None = None,
        leave_out: Iterable[Path] = (),
        lock_timeout_s: float = 60.0,
    ) -> None:
        root = Path(project_root).absolute()
        self._repository = find(root) or _archive(root, archive)
        prefix = root.resolve().relative_to(self._repository.top.resolve())
        self._prefix = prefix.as_posix() if prefix.parts else ""
        left_out = [pattern for path in leave_out for pattern in self._patterns(path)]
        self._choice = self._anchored(choice or Choice(), left_out)
        lock = self._repository.common_dir / _LOCK_NAME
        self._lock = GitOperationLock(lock, timeout=lock_timeout_s)

    def snapshot(
        self, experiment_names: str | Sequence[str], *, batch: str | None = None
    ) -> Snapshot:
        """Freeze the code for one experiment or many: one tree, one commit.

        What lies on disk is frozen: the job's files have its bytes and executable bits,
        whatever git's rules for line ends. Only what attributes give to a filter (git-lfs, for
        one) is stored as that makes it. Objects that a partial clone lacks are fetched.

        Each experiment gets a branch, all or none. For thousands, which would be in the way
        of whoever lists branches, name a *batch*: it has the only branch, which is that of
        each experiment. Where nothing differs from the user's commit, that is the commit.

        Args:
            experiment_names: Whose code it is.
            batch: A name of the same kind, for the branch of all.

        Raises:
            SnapshotError: If the code cannot be frozen, or the repository ignores the project;
                the message says why and what to do.
            ValueError: If there is no name, or one is none of an experiment or comes twice.
        """
        names = (
            [experiment_names] if isinstance(experiment_names, str) else experiment_names
        )
        branches.check_names(names)
        heads = names if batch is None else [batch]
        branches.check_names(heads)
        frozen = freeze(self._repository, self._choice)
        self._check_prefix(frozen.tree)
        commit = frozen.head
        if commit is None or frozen.tree != frozen.head_tree:
            commit = self._commit(frozen, heads)
        made = branches.create(self._repository, heads, commit)
        if batch is not None:
            made = dict.fromkeys(names, made[batch])
        return Snapshot(
            repository=self._repository.common_dir,
            top=self._repository.top,
            prefix=self._prefix,
            commit=commit,
            tree=frozen.tree,
            base=frozen.head,
            dirty=frozen.dirty,
            branches=made,
        )

    def record(
        self,
        snapshot: Snapshot,
        folders: Mapping[str, Path],
        *,
        commands: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Write into experiments' folders what is submitted: code and command, and whence.

        ``submitted_from`` in ``code.json`` is of this process. What a job runs on, the job
        itself writes into ``<job id>.environment.json`` beside it.

        Args:
            snapshot: Of their code.
            folders: By experiment; made where they are missing.
            commands: By experiment; written as they are, so without secrets.

        Raises:
            SnapshotError: If a folder cannot be written.
        """
        code = {**snapshot.to_plain(), "submitted_from": environment()}
        provenance.write(
            folders, code, branches=snapshot.branches, commands=commands or {}
        )

    def checkout(
        self, snapshot: Snapshot, folder: Path, *, replace: bool = False
    ) -> Path:
        """Make *folder* the snapshot's code, and prove it; return the project in it.

        A job without this package does the same with the script ``checkout.py``.

        Args:
            snapshot: Which.
            folder: Where. What is there already is proven and used.
            replace: Whether to make it anew where it cannot be proven.

        Raises:
            SnapshotError: If it cannot be made, or is not what it should be.
        """
        try:
            made = checkout.make(
                snapshot.repository, snapshot.commit, folder, replace=replace
            )
        except (checkout.CheckoutError, OSError) as error:
            raise SnapshotError(folder, str(error)) from error
        return made / snapshot.prefix

    def branches(self) -> list[Branch]:
        """Return the branches of all snapshots, oldest first.

        Raises:
            SnapshotError: If git cannot list them.
        """
        return branches.listed(self._repository)

    def push(self, snapshot: Snapshot, remote: str) -> None:
        """Push the snapshot's branches to *remote*, a name or an address. No hook runs.

        Where git-lfs is used, what its pointers stand for is pushed by its hook, so not here.

        Raises:
            SnapshotError: If the remote cannot be reached, or refuses.
            ValueError: If *remote* is empty or begins with a dash.
        """
        branches.push(self._repository, remote, sorted(set(snapshot.branches.values())))

    def prune(self, *, older_than: timedelta, keep: Collection[str] = ()) -> list[Branch]:
        """Delete the branches of old snapshots; return them.

        The objects go with git's own ``gc``.

        Args:
            older_than: How long ago they were made at least.
            keep: Branches or experiments to leave: those whose jobs wait or run, above all.
                A branch that is checked out stays too.

        Raises:
            GitLockTimeoutError: If another process prunes for too long.
            SnapshotError: If git cannot; then none is deleted.
        """
        with self._lock:
            return branches.delete(self._repository, older_than=older_than, keep=keep)

    def _check_prefix(self, tree: str) -> None:
        """Refuse a tree without the project."""
        if not self._prefix:
            return
        said = self._repository.git("ls-tree", "-z", tree, "--", self._prefix)
        if not said.startswith(b"040000 "):
            top = self._repository.top
            reason = (
                f"nothing of it would be frozen: it is empty, or the repository {top} ignores "
                f"it; run `git init` in it, or have {top} take it (`git add --force`)"
            )
            raise SnapshotError(top / self._prefix, reason)

    def _commit(self, frozen: Frozen, names: Sequence[str]) -> str:
        """Make a commit of the frozen tree, in the name of who submits."""
        more = f" and {len(names) - 1} more" * (len(names) > 1)
        message = f"Snapshot for {names[0]}{more}\n"
        parent = ("-p", frozen.head) if frozen.head else ()
        user = _user()
        who = {"NAME": f"{user} (mtf-slurm)", "EMAIL": f"{user}@{socket.gethostname()}"}
        said = self._repository.git(
            *("commit-tree", frozen.tree, *parent),
            stdin=message.encode(),
            extra={
                f"GIT_{role}_{key}": value
                for role in ("AUTHOR", "COMMITTER")
                for key, value in who.items()
            },
        )
        return said.decode("ascii").strip()

    def _patterns(self, folder: Path) -> list[str]:
        """Return the patterns of a folder that is left out: itself, and a link that is it."""
        top = self._repository.top.resolve()
        real = folder.resolve()
        if real.is_relative_to(top) and (top / self._prefix).is_relative_to(real):
            reason = (
                "the project lies in the folder of its experiments, which is not frozen: name "
                "another experiments_folder, as `experiments` in the project"
            )
            raise SnapshotError(folder, reason)
        named = folder.parent.resolve() / folder.name
        inside = [path.relative_to(top) for path in (real, named) if top in path.parents]
        return [f"/{_literal(path.as_posix())}" for path in dict.fromkeys(inside)]

    def _anchored(self, choice: Choice, left_out: Sequence[str]) -> Choice:
        """Return *choice* with patterns of the project's folder as git's, of the root."""
        patterns = list(choice.exclude)
        if self._prefix:
            prefix = "/" + _literal(self._prefix)
            patterns = [prefix + p if p.startswith("/") else p for p in patterns]
        patterns += left_out
        if self._repository.is_archive:
            patterns += [*_ARCHIVE_EXCLUDE, *self._patterns(self._repository.git_dir)]
        return Choice(
            include_untracked=choice.include_untracked or self._repository.is_archive,
            exclude=tuple(dict.fromkeys(patterns)),
            max_untracked_bytes=choice.max_untracked_bytes,
        )


def _archive(root: Path, archive: Path | None) -> Repository:
    if archive is None:
        reason = (
            "is in no git repository, so its code cannot be frozen: run `git init` there, or "
            "have the folder archived: GitManager(..., archive=<folder for it>)"
        )
        raise SnapshotError(root, reason)
    return init_archive(archive.absolute(), root)


def _literal(path: str) -> str:
    r"""Return the pattern that matches *path* alone.

    >>> _literal("a[1]*")
    'a\\[1]\\*'
    """
    return re.sub(r"([\\*?\[ ])", r"\\\1", path)


def _user() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container without an entry for the user
        user = str(os.getuid())
    return re.sub(r"[<>\s]", "", user) or str(os.getuid())
