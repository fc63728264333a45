"""Run git on one repository, and find where its parts are.

Every command has this repository, index and working tree by name, wherever the process's
own ``GIT_*`` variables lead, and runs no hook. Source: ``git(1)``, ``git-rev-parse(1)``.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mtf_slurm.errors import SnapshotError
from mtf_slurm.git.checkout import TIMEOUT_S, CheckoutError, git_environ, run_git

__all__ = ["Repository", "find", "git_in", "init_archive"]

_MIN_VERSION = (2, 31)  # rev-parse --path-format
_MARK = "mtf-slurm.archive"  # in the config of an archive
_WHERE = ("--git-dir", "--git-common-dir", "--git-path", "index", "--show-toplevel")


@dataclass(frozen=True, kw_only=True)
class Repository:
    """Where a repository is.

    Attributes:
        top: The root of its working tree.
        git_dir: Of this working tree.
        common_dir: Of all its working trees: what holds objects and refs.
        index: The user's.
        is_archive: Whether it is no user's repository, but made for a folder without one.
    """

    top: Path
    git_dir: Path
    common_dir: Path
    index: Path
    is_archive: bool = False

    def git(
        self,
        *args: str | bytes,
        index: Path | None = None,
        stdin: bytes = b"",
        extra: Mapping[str, str] | None = None,
        timeout_s: float = TIMEOUT_S,
        output: int = subprocess.PIPE,
    ) -> bytes:
        """Run git in the root of the working tree; return its output.

        Args:
            args: Its command and that command's arguments.
            index: The index to work on. Without one, an empty one that cannot be written.
            stdin: What it reads.
            extra: More of its environment.
            timeout_s: When to give up, in seconds.
            output: Where it writes; nothing is returned then.

        Raises:
            SnapshotError: If it fails; or this user may not write what git stores.
        """
        none = self.common_dir / "no-index" / "index"  # read as empty, cannot be written
        environ = git_environ(
            GIT_DIR=str(self.git_dir),
            GIT_WORK_TREE=str(self.top),
            GIT_INDEX_FILE=str(index or none),
            **(extra or {}),
        )
        try:
            return git_in(
                self.top,
                *args,
                environ=environ,
                stdin=stdin,
                timeout_s=timeout_s,
                output=output,
            )
        except SnapshotError as error:
            objects = self.common_dir / "objects"
            for place in (objects, *objects.glob("??"), self.common_dir / "refs/heads"):
                if not os.access(place, os.W_OK | os.X_OK):
                    reason = (
                        f"this user cannot write there, where git keeps what is frozen: see "
                        f"to its rights (`chmod u+rwx`, or ask its owner), or submit from a "
                        f"clone of your own; git says: {error.reason}"
                    )
                    raise SnapshotError(place, reason) from error
            raise

    @cached_property
    def oid_digits(self) -> int:
        """How many digits an id has: 40, or 64 with SHA-256."""
        said = self.git("rev-parse", "--show-object-format")
        return 64 if said.strip() == b"sha256" else 40


def git_in(
    folder: Path,
    *args: str | bytes,
    environ: Mapping[str, str],
    stdin: bytes = b"",
    timeout_s: float = TIMEOUT_S,
    output: int = subprocess.PIPE,
) -> bytes:
    """Run git in *folder*; return its output.

    Raises:
        SnapshotError: If it fails.
    """
    try:
        return run_git(
            *args,
            cwd=folder,
            environ=environ,
            stdin=stdin,
            timeout_s=timeout_s,
            output=output,
        )
    except CheckoutError as error:
        raise SnapshotError(folder, str(error)) from error
    except OSError as error:
        raise SnapshotError(folder, f"git cannot be run there: {error}") from error


def find(folder: Path) -> Repository | None:
    """Return the repository that holds *folder*; None if none does.

    Raises:
        SnapshotError: If git cannot work with it: it is bare, or owned by another user, or
            git is missing or too old.
    """
    if not folder.is_dir():
        reason = "is no folder: name the root of the project"
        raise SnapshotError(folder, reason)
    environ = git_environ()
    try:
        said = run_git(
            *("rev-parse", "--path-format=absolute", *_WHERE), cwd=folder, environ=environ
        )
    except CheckoutError as error:
        _check_version(folder)
        if _is_bare(folder):
            reason = "is in a bare repository, which has no code to freeze: name a clone"
            raise SnapshotError(folder, reason) from error
        if not any(
            _holds_git(path) for path in (folder.resolve(), *folder.resolve().parents)
        ):
            return None
        raise SnapshotError(folder, f"git cannot read its repository: {error}") from error
    parts = os.fsdecode(said).split("\n")[:-1]
    if len(parts) != len(_WHERE) - 1:
        reason = "its path has a line break: move the repository"
        raise SnapshotError(folder, reason)
    git_dir, common_dir, index, top = map(Path, parts)
    return Repository(top=top, git_dir=git_dir, common_dir=common_dir, index=index)


def init_archive(store: Path, folder: Path) -> Repository:
    """Return the repository *store*, made if missing, which keeps snapshots of *folder*.

    Raises:
        SnapshotError: If it cannot be made, or is something else already.
    """
    if not _is_archive(store):
        try:
            store.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(
                prefix=".archive-", dir=store.parent
            ) as aside:
                made = Path(aside, "made")
                made.mkdir()
                # No template: its hooks and excludes are for repositories of people.
                args = ("init", "--quiet", "--bare", "--template=", ".")
                git_in(made, *args, environ=git_environ())
                named = git_environ(GIT_DIR=str(made))  # some look for no bare ones
                git_in(made, "config", _MARK, "true", environ=named)
                made.rename(store)
        except OSError as error:
            if not _is_archive(store):  # else another process was first
                reason = (
                    f"is no archive of snapshots, and cannot be made one: {error}; name a "
                    f"folder that is empty or not there yet"
                )
                raise SnapshotError(store, reason) from error
    store = store.resolve()
    index = store / "index"
    return Repository(
        top=folder.resolve(),
        git_dir=store,
        common_dir=store,
        index=index,
        is_archive=True,
    )


def _check_version(folder: Path) -> None:
    said = git_in(folder, "version", environ=git_environ()).decode("utf-8", "replace")
    numbers = said.removeprefix("git version ").split(".")
    try:
        version = (int(numbers[0]), int(numbers[1]))
    except (ValueError, IndexError):
        return  # a build with a name of its own
    if version < _MIN_VERSION:
        least = ".".join(map(str, _MIN_VERSION))
        raise SnapshotError(
            folder, f"{said.strip()} is too old: load one of {least} or newer"
        )


def _is_archive(store: Path) -> bool:
    """Return whether *store* is an archive that was made here, and no user's repository."""
    args = ("config", "--file", str(store / "config"), "--get", _MARK)
    try:
        return run_git(*args, cwd=Path("/"), environ=git_environ()) == b"true\n"
    except CheckoutError:
        return False


def _is_bare(folder: Path) -> bool:
    try:
        said = run_git(
            *("rev-parse", "--is-inside-work-tree"), cwd=folder, environ=git_environ()
        )
    except CheckoutError:
        return False
    return said.strip() == b"false"


def _holds_git(folder: Path) -> bool:
    return os.path.lexists(folder / ".git") or (
        (folder / "HEAD").is_file() and (folder / "objects").is_dir()
    )
