"""What was frozen, and how a job gets it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from mtf_slurm.git import checkout
from mtf_slurm.git._plumbing import git_in

__all__ = ["CHECKOUT_SCRIPT", "ENVIRONMENT_SCRIPT", "Snapshot"]

CHECKOUT_SCRIPT = Path(checkout.__file__)  # needs nothing beside it: may be copied
ENVIRONMENT_SCRIPT = CHECKOUT_SCRIPT.with_name("environment.py")  # needs that beside it


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """The code of one moment, on a branch for each experiment.

    Attributes:
        repository: The folder of git that holds it, for a job to read.
        top: The root of the working tree that it was.
        prefix: The project's folder in it, with slashes; empty for the root itself.
        commit: The commit's id: the user's own where nothing differed from it.
        tree: Its tree's id, which a job proves.
        base: The commit that the user was on; None before the first.
        dirty: What differed from it as `git status` has it, one entry each: ``M path``
            changed, ``A`` added, ``D`` deleted, ``T`` now a link or a file, ``?`` unknown to
            git, ``R`` a repository whose files were frozen as files. Empty for the archive of
            a folder. Where line ends on disk are others than the commit's, by rules of git,
            that is no entry, but the tree has those on disk.
        branches: By experiment.
    """

    repository: Path
    top: Path
    prefix: str
    commit: str
    tree: str
    base: str | None
    dirty: tuple[str, ...]
    branches: Mapping[str, str]

    def arguments(self) -> tuple[str, ...]:
        """Return what ``checkout.py make`` and ``prove`` need beside ``--folder``."""
        return ("--repository", str(self.repository), "--commit", self.commit)

    def has(self, path: str) -> bool:
        """Return whether there is something at *path*, from the root, links not followed.

        Raises:
            SnapshotError: If git cannot read it.
        """
        return _has(self.repository, self.tree, path)

    def to_plain(self) -> dict[str, Any]:
        """Return all but the branches, as JSON has it."""
        return {
            "repository": str(self.repository),
            "top": str(self.top),
            "prefix": self.prefix,
            "commit": self.commit,
            "tree": self.tree,
            "base": self.base,
            "dirty": list(self.dirty),
        }


@lru_cache(maxsize=1024)
def _has(repository: Path, tree: str, path: str) -> bool:
    environ = checkout.git_environ(GIT_DIR=str(repository))
    asked = ("ls-tree", "--full-tree", tree, "--", path)  # whatever core.worktree says
    return git_in(repository, *asked, environ=environ) != b""
