"""The branches that hold snapshots: their names, making, listing and ending.

A branch is ``slurm-job/<experiment_name>/<timestamp>/<commit_hash[:8]>``. Git's names allow
less than experiments': a dot after a dot, and that of a final ``.lock``, is written ``+``,
which no experiment's name has; so names are told apart still, and read back.

Source: ``git-check-ref-format(1)``, ``git-update-ref(1)``.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from mtf_slurm.errors import SnapshotError
from mtf_slurm.git._plumbing import Repository

__all__ = ["Branch", "branch_name", "check_names", "create", "delete", "listed", "push"]

_PREFIX = "refs/heads/"
_ROOT = "slurm-job"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_BRANCH = re.compile(_ROOT + r"/([^/]+)/(\d{8}T\d{6}\.\d{6}Z)/([0-9a-f]{8})")
_TAKEN = re.compile(rf"'{_PREFIX}({_ROOT}[^']*)' exists; cannot create")
_STAMP = "%Y%m%dT%H%M%S.%fZ"
_NUM_ATTEMPTS = 4
_NUM_PUSHED = 500  # refs a call: they are arguments


@dataclass(frozen=True, kw_only=True, slots=True)
class Branch:
    """A snapshot's branch.

    Attributes:
        name: Without ``refs/heads/``.
        experiment_name: Whose.
        made_at: When.
        commit: Its commit's id.
        is_checked_out: Whether some working tree is on it.
    """

    name: str
    experiment_name: str
    made_at: datetime
    commit: str
    is_checked_out: bool


def branch_name(experiment_name: str, made_at: datetime, commit: str) -> str:
    """Return the branch of a snapshot.

    >>> branch_name("lr_0.1", datetime(2026, 1, 2, tzinfo=UTC), "0123456789" * 4)
    'slurm-job/lr_0.1/20260102T000000.000000Z/01234567'

    Raises:
        ValueError: If the experiment's name is not ``[A-Za-z0-9][A-Za-z0-9._-]{0,127}``.
    """
    check_names([experiment_name])
    name = re.sub(r"(?<=\.)\.|\.(?=lock$)", "+", experiment_name)
    return f"{_ROOT}/{name}/{made_at.astimezone(UTC).strftime(_STAMP)}/{commit[:8]}"


def check_names(experiment_names: Sequence[str]) -> None:
    """Refuse names that cannot have a branch each.

    Raises:
        ValueError: If there is none, or one is none of an experiment or comes twice.
    """
    if not experiment_names:
        msg = "no experiment is named, so the snapshot would have no branch"
        raise ValueError(msg)
    for name, count in Counter(experiment_names).items():
        if not _NAME.fullmatch(name):
            msg = (
                f"{name!r} is no name of an experiment: it begins with a letter or digit, "
                f"and has up to 127 more, dots, underscores and dashes"
            )
            raise ValueError(msg)
        if count > 1:
            msg = f"the name {name!r} comes {count} times: each experiment has its own"
            raise ValueError(msg)


def create(repository: Repository, names: Sequence[str], commit: str) -> dict[str, str]:
    """Make a branch for each name, all or none; return the branches by name.

    Raises:
        SnapshotError: If they cannot be made.
        ValueError: If a name is none of an experiment.
    """
    for attempt in itertools.count(1):
        now = datetime.now(UTC)
        found = {name: branch_name(name, now, commit) for name in names}
        lines = (f"create {_PREFIX}{branch}\0{commit}\0" for branch in found.values())
        try:
            _update_refs(repository, "".join(lines))
            break
        except SnapshotError as error:
            # Two submitters in one microsecond: the next one is free.
            if attempt < _NUM_ATTEMPTS:
                continue
            if (taken := _TAKEN.search(error.reason)) is None:
                raise
            reason = (
                f"there is a branch {taken[1]!r}, so git can make none below that name: "
                f"rename it, `git branch -m {taken[1]} <another name>`"
            )
            raise SnapshotError(repository.top, reason) from error
    return found


def listed(repository: Repository) -> list[Branch]:
    """Return the snapshots' branches, oldest first. Others' are left out.

    Raises:
        SnapshotError: If git cannot list them.
    """
    wanted = "%(refname:lstrip=2)%00%(objectname)%00%(worktreepath)"
    args = ("for-each-ref", f"--format={wanted}", f"{_PREFIX}{_ROOT}/")
    found = []
    for line in repository.git(*args).decode("utf-8", "surrogateescape").splitlines():
        name, commit, worktree = line.split("\0")
        if match := _BRANCH.fullmatch(name):
            stamp = datetime.strptime(match[2], _STAMP).replace(tzinfo=UTC)
            branch = Branch(
                name=name,
                experiment_name=match[1].replace("+", "."),
                made_at=stamp,
                commit=commit,
                is_checked_out=bool(worktree),
            )
            found.append(branch)
    return sorted(found, key=lambda branch: (branch.made_at, branch.name))


def delete(
    repository: Repository, *, older_than: timedelta, keep: Collection[str] = ()
) -> list[Branch]:
    """Delete branches made longer ago than *older_than*; return them.

    Args:
        repository: Which.
        older_than: By the time in their names.
        keep: Branches or experiments to leave. One that is checked out stays too.

    Raises:
        SnapshotError: If git cannot; then none is deleted.
    """
    limit = datetime.now(UTC) - older_than
    old = [
        branch
        for branch in listed(repository)
        if branch.made_at < limit
        and not branch.is_checked_out
        and not {branch.name, branch.experiment_name} & set(keep)
    ]
    if old:
        lines = (f"delete {_PREFIX}{branch.name}\0{branch.commit}\0" for branch in old)
        _update_refs(repository, "".join(lines))
    return old


def push(repository: Repository, remote: str, names: Sequence[str]) -> None:
    """Push branches to *remote*, under the same names. No hook runs.

    Args:
        repository: Which.
        remote: Its name, or an address.
        names: Of the branches.

    Raises:
        ValueError: If *remote* is empty or begins with a dash.
        SnapshotError: If the remote cannot be reached, or refuses.
    """
    if not remote or remote.startswith("-"):
        msg = f"remote is {remote!r}: the name of a remote, or an address"
        raise ValueError(msg)
    for start in range(0, len(names), _NUM_PUSHED):
        refs = [f"{_PREFIX}{name}" for name in names[start : start + _NUM_PUSHED]]
        options = ("--quiet", "--no-verify", "--no-signed", "--recurse-submodules=no")
        specs = (f"{ref}:{ref}" for ref in refs)
        repository.git("push", *options, "--no-follow-tags", "--", remote, *specs)


def _update_refs(repository: Repository, lines: str) -> None:
    repository.git("update-ref", "-z", "--stdin", stdin=lines.encode("ascii"))
