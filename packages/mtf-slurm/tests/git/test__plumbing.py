from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtf_slurm.errors import SnapshotError
from mtf_slurm.git import GitManager
from mtf_slurm.git._plumbing import Repository, find, git_in, init_archive
from mtf_slurm.git.checkout import git_environ


def test_a_repository_is_found_from_any_folder_in_it(repo: Any) -> None:
    """From the root or below, all parts are found by their full paths."""
    git_dir = repo.path / ".git"
    expected = Repository(
        top=repo.path, git_dir=git_dir, common_dir=git_dir, index=git_dir / "index"
    )
    assert find(repo.path) == expected
    assert find(repo.path / "pkg") == expected


def test_a_linked_working_tree_shares_objects(repo: Any, tmp_path: Path) -> None:
    """A linked working tree has its own index, and its repository's refs and objects."""
    repo.git("worktree", "add", "-q", "-b", "side", str(tmp_path / "linked"))
    found = find(tmp_path / "linked")
    assert found is not None
    assert found.common_dir == repo.path / ".git"
    assert found.index == repo.path / ".git/worktrees/linked/index"


def test_outside_there_is_none(tmp_path: Path) -> None:
    """A folder in no repository has none, and one that is missing is an error."""
    assert find(tmp_path) is None
    with pytest.raises(SnapshotError, match="is no folder: name the root of the project"):
        find(tmp_path / "missing")


@pytest.mark.parametrize("inside", ["bare", "repo/.git", "repo/.git/refs"])
def test_repositories_without_files_are_refused(
    repo: Any, tmp_path: Path, inside: str
) -> None:
    """A bare repository, and the folder of git itself, hold no code to freeze."""
    repo.git("clone", "-q", "--bare", ".", str(tmp_path / "bare"))
    with pytest.raises(SnapshotError, match="bare repository, which has no code"):
        find(tmp_path / inside)


def test_a_bare_repositorys_working_tree_is_fine(repo: Any, tmp_path: Path) -> None:
    """A working tree linked to a bare repository has code, and is found."""
    repo.git("clone", "-q", "--bare", ".", str(tmp_path / "bare"))
    repo.git(
        "-C", str(tmp_path / "bare"), "worktree", "add", "-q", str(tmp_path / "linked")
    )
    found = find(tmp_path / "linked")
    assert found is not None
    assert found.common_dir == tmp_path / "bare"


@pytest.mark.parametrize("damage", ["HEAD", "config"])
def test_what_git_cannot_read_is_an_error(repo: Any, damage: str) -> None:
    """A repository that git refuses is not taken for none."""
    repo.write(f".git/{damage}", "[damaged")
    with pytest.raises(
        SnapshotError, match="git cannot read its repository: `git rev-parse"
    ):
        find(repo.path)


def test_line_break_in_the_path_is_refused(make_repo: Callable[..., Any]) -> None:
    """A path that would be read as two is refused, not misread."""
    with pytest.raises(SnapshotError, match="has a line break: move the repository"):
        find(make_repo("odd\nname").path)


def test_missing_and_old_git(
    repo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No git, or one that is too old, is named with what is needed."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SnapshotError, match="there is no git on PATH"):
        find(repo.path)
    git = tmp_path / "git"
    for said, expected in {
        "git version 1.8.3.1": "1.8.3.1 is too old: load one of 2.31 or newer",
        "git version 2.9.5 (Odd)": "2.9.5 .Odd. is too old",
        "git version 2.50.1": "git cannot read its repository",
        "odd": "git cannot read its repository",
    }.items():
        git.write_text(
            "#!/bin/sh\n"
            f'for last; do :; done; [ "$last" = version ] && echo "{said}" || exit 129\n',
            encoding="utf-8",
        )
        git.chmod(0o755)
        with pytest.raises(SnapshotError, match=expected):
            find(repo.path)


def test_git_that_cannot_be_run_is_an_error(
    repo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A git that the system will not run is told as such."""
    found = find(repo.path)
    assert found is not None
    git = tmp_path / "git"
    git.write_text("no program", encoding="utf-8")
    git.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SnapshotError, match="git cannot be run there"):
        found.git("version")


def test_an_index_is_used_only_where_it_is_named(repo: Any) -> None:
    """A command without an index sees none, and cannot write the user's."""
    found = find(repo.path)
    assert found is not None
    assert found.git("ls-files") == b""
    with pytest.raises(SnapshotError, match="read-tree"):
        found.git("read-tree", "HEAD")
    assert repo.git("ls-files") == "pkg/util.py\ntrain.py"
    assert git_in(repo.path / "pkg", "ls-files", environ=git_environ()) == b"util.py\n"


def test_an_archive_is_made_once(tmp_path: Path) -> None:
    """The repository for a folder without one is made where it is named, and found again."""
    code = tmp_path / "code"
    code.mkdir()
    first = init_archive(tmp_path / "kept/code.git", code)
    again = init_archive(tmp_path / "kept/code.git", code)
    assert first == again
    assert first.is_archive
    assert first.oid_digits == 40
    assert not (first.git_dir / "hooks").exists()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SnapshotError, match=r"code\.git: .* cannot be made one: .*empty"):
        init_archive(tmp_path / "file/code.git", code)


def test_an_archive_may_be_an_empty_folder(tmp_path: Path) -> None:
    """A folder that somebody made for the archive, and put nothing into, becomes it."""
    (tmp_path / "code").mkdir()
    (tmp_path / "kept").mkdir()
    assert init_archive(tmp_path / "kept", tmp_path / "code").is_archive


def test_an_archive_where_bare_repositories_are_not_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user who has git use only the bare repositories that are named gets one all the same."""
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "safe.bareRepository")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "explicit")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_bytes(b"")
    manager = GitManager(tmp_path / "code", archive=tmp_path / "kept")
    snapshot = manager.snapshot("a")
    assert snapshot.has("a.py")
    made = manager.checkout(snapshot, tmp_path / "made")
    assert (made / "a.py").is_file()
    assert [branch.experiment_name for branch in manager.branches()] == ["a"]
    assert init_archive(tmp_path / "kept", tmp_path / "code").is_archive


@pytest.mark.parametrize("kind", ["objects", "refs"])
def test_where_this_user_cannot_write(repo: Any, kind: str) -> None:
    """The folder is named with what to do, and git's own words follow."""
    found = find(repo.path)
    assert found is not None
    commit = repo.git("rev-parse", "HEAD")
    names = ["heads"] if kind == "refs" else [f"{number:02x}" for number in range(256)]
    for name in names:
        path = repo.path / ".git" / kind / name
        shutil.rmtree(path, ignore_errors=True)
        path.write_bytes(b"")  # a file: not even root can write in it
    asked = ("hash-object", "-w", "--stdin")
    if kind == "refs":
        asked = ("update-ref", "refs/heads/x", commit)
    where = rf"{repo.path}/\.git/{kind}/\w+: this user cannot write there.*chmod"
    with pytest.raises(SnapshotError, match=f"{where}.*git says: `git {asked[0]}"):
        found.git(*asked)


@pytest.mark.parametrize("place", ["repo/.git", "bare", "repo"])
def test_no_other_repository_becomes_an_archive(
    repo: Any, tmp_path: Path, place: str
) -> None:
    """A repository of the user's, named by mistake, is refused and stays as it is."""
    repo.git("clone", "-q", "--bare", ".", str(tmp_path / "bare"))
    (tmp_path / "code").mkdir()
    before = repo.fingerprint()
    with pytest.raises(SnapshotError, match=r"is no archive of snapshots.*not there yet"):
        init_archive(tmp_path / place, tmp_path / "code")
    assert repo.fingerprint() == before


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_the_users_variables_for_configuration_count(
    repo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that is trusted by variables of configuration is trusted here, too."""
    for path in (repo.path, repo.path / ".git"):
        os.chown(path, 12345, -1)
    with pytest.raises(SnapshotError, match=r"safe\.directory"):
        find(repo.path)
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "safe.directory")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", str(repo.path))
    assert find(repo.path) is not None


def test_the_environment_of_each_call_counts(
    repo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A way to git that is set right later is seen by a repository that was found before."""
    found = find(repo.path)
    assert found is not None
    with monkeypatch.context() as patched:
        patched.setenv("PATH", "/nonexistent")
        with pytest.raises(SnapshotError, match="no git on PATH"):
            found.git("status")
    monkeypatch.setenv("GIT_SSH_COMMAND", "echo second >&2; exit 1; :")
    assert found.git("rev-parse", "--is-inside-work-tree") == b"true\n"
    with pytest.raises(SnapshotError, match="second"):
        found.git("ls-remote", "ssh://nowhere.invalid/x")
