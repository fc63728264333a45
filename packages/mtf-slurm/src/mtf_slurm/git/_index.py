"""The index of a repository's user: copied, told from a later one, refused in a conflict.

Source: ``git-status(1)``, whose advice for each state is given here, too.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Collection
from pathlib import Path
from typing import NoReturn

from mtf_slurm.errors import SnapshotError
from mtf_slurm.git._filters import shown

__all__ = ["copy", "identity", "refuse_damaged", "refuse_unmerged"]

# What git keeps in its folder meanwhile, what that is, and the command that ends it. A rebase
# picks and merges on its way, so it comes first.
_STATES = (
    ("rebase-apply/applying", "`git am`", "git am --abort"),
    ("rebase-apply", "rebase", "git rebase --abort"),
    ("rebase-merge", "rebase", "git rebase --abort"),
    ("CHERRY_PICK_HEAD", "cherry-pick", "git cherry-pick --abort"),
    ("REVERT_HEAD", "revert", "git revert --abort"),
    ("MERGE_HEAD", "merge", "git merge --abort"),
    ("", "merge", "git reset --merge"),  # as of a stash
)


def refuse_unmerged(top: Path, git_dir: Path, unmerged: Collection[bytes]) -> None:
    """Refuse files in conflict.

    Args:
        top: The root of the working tree.
        git_dir: The folder of git that belongs to it.
        unmerged: The files, if any.

    Raises:
        SnapshotError: If there are some; it names the command that ends this state.
    """
    if unmerged:
        states = (state for state in _STATES if (git_dir / state[0]).exists())
        _, what, undo = next(states)
        reason = (
            f"is in the middle of a {what}: {shown(sorted(unmerged))} not resolved; resolve "
            f"and `git add` them, or `{undo}`, and submit again"
        )
        raise SnapshotError(top, reason)


def refuse_damaged(index: Path, copied: Path, error: SnapshotError) -> NoReturn:
    """Refuse an index by its own name, given what git says of the copy.

    Raises:
        SnapshotError: Always.
    """
    reason = (
        f"git cannot read this index: {error.reason.replace(str(copied), str(index))}; if it "
        f"is damaged, delete it and run `git reset`, which keeps the files"
    )
    raise SnapshotError(index, reason) from error


def copy(source: Path, target: Path) -> tuple[int, int] | None:
    """Copy an index, with its date: by that git knows which files may have changed since.

    Returns:
        The identity of what was copied; None if there is no index yet.

    Raises:
        SnapshotError: If it cannot be read.
        OSError: If the copy cannot be written.
    """
    try:
        with source.open("rb") as file:
            found = os.fstat(file.fileno())
            data = file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        reason = (
            f"this index of git cannot be read: {error.strerror}; give this user the right "
            f"to (`chmod u+r`), or ask its owner"
        )
        raise SnapshotError(source, reason) from error
    aside = target.with_name(f"{target.name}.{uuid.uuid4().hex}")
    aside.write_bytes(data)
    os.utime(aside, ns=(found.st_atime_ns, found.st_mtime_ns))
    aside.replace(target)
    return found.st_mtime_ns, found.st_ino


def identity(index: Path) -> tuple[int, int] | None:
    """Return what another index would have otherwise; None if there is none."""
    try:
        found = index.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_ino
