from __future__ import annotations

import re
import subprocess
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtf_slurm.errors import SnapshotError
from mtf_slurm.git import _plumbing, branches
from mtf_slurm.git.branches import branch_name, check_names, create, delete, listed, push

NAMES = st.from_regex(
    r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", fullmatch=True
) | st.from_regex(r"[a-b]([.]|lock|-){0,12}", fullmatch=True)
LONG_AGO = datetime(2020, 1, 2, 3, 4, 5, 678, tzinfo=UTC)


def found(repo: Any) -> _plumbing.Repository:
    """Return where the parts of a repository are."""
    repository = _plumbing.find(repo.path)
    assert repository is not None
    return repository


def heads(repo: Any) -> set[str]:
    """Return the names of all branches."""
    out: str = repo.git("for-each-ref", "--format=%(refname:lstrip=2)", "refs/heads")
    return set(out.split())


def aged(repo: Any, name: str, days: int) -> str:
    """Make a branch whose name says that it is that old."""
    commit = repo.git("rev-parse", "HEAD")
    branch = branch_name(name, datetime.now(UTC) - timedelta(days=days), commit)
    repo.git("update-ref", f"refs/heads/{branch}", commit)
    return branch


def test_the_name_says_whose_when_and_what() -> None:
    """Experiment, moment and commit stand in the name, in this order."""
    assert branch_name("lr_0.1", LONG_AGO, "0123456789abcdef") == (
        "slurm-job/lr_0.1/20200102T030405.000678Z/01234567"
    )


@settings(max_examples=60, deadline=None)
@given(name=NAMES, other=NAMES)
def test_every_name_of_an_experiment_makes_a_branch(name: str, other: str) -> None:
    """Git accepts the branch of any experiment's name, and different names differ."""
    branch = branch_name(name, LONG_AGO, "0" * 40)
    # The rules of git-check-ref-format(1), on each component.
    for part in branch.split("/"):
        assert not part.startswith(".")
        assert not part.endswith(".lock")
        assert ".." not in part
        assert re.fullmatch(r"[\w.+-]+", part, re.ASCII)
    assert (branch == branch_name(other, LONG_AGO, "0" * 40)) == (name == other)


@pytest.mark.parametrize(
    "name", ["a.lock", "a..b", "a...", "a.lock.lock", "x" * 128, "a-"]
)
def test_odd_names_come_back(repo: Any, name: str) -> None:
    """A name that git would not take as it is makes a branch, and is read back from it."""
    commit = repo.git("rev-parse", "HEAD")
    made = create(found(repo), [name], commit)
    assert heads(repo) == {"main", made[name]}
    (branch,) = listed(found(repo))
    assert (branch.experiment_name, branch.commit) == (name, commit)
    assert branch.name == made[name]


@pytest.mark.parametrize(
    "name", ["", ".a", "-a", "a/b", "../a", "a b", "a\n", "a;b", "a+b", "x" * 129, "ü"]
)
def test_what_is_no_name_is_refused(name: str) -> None:
    """A name that could mean another path, option or ref is refused."""
    with pytest.raises(ValueError, match="is no name of an experiment"):
        branch_name(name, LONG_AGO, "0" * 40)


def test_names_are_told_apart() -> None:
    """No name at all, or one that comes twice, is refused."""
    with pytest.raises(ValueError, match="no experiment is named"):
        check_names([])
    with pytest.raises(ValueError, match="'a' comes 3 times"):
        check_names(["a", "b", "a", "a"])


@pytest.mark.parametrize("taken", ["slurm-job/b", "slurm-job"])
def test_all_branches_or_none(repo: Any, taken: str) -> None:
    """Where a branch leaves no room for one, none is made, and the error says what to do."""
    commit = repo.git("rev-parse", "HEAD")
    repo.git("update-ref", f"refs/heads/{taken}", commit)
    with pytest.raises(SnapshotError, match=f"`git branch -m {taken} <another name>`"):
        create(found(repo), ["a", "b", "c"], commit)
    assert heads(repo) == {"main", taken}


def test_branches_of_what_is_not_there(repo: Any) -> None:
    """Another failure of git's is told as git says it."""
    with pytest.raises(SnapshotError, match=r"update-ref.*1{40}"):
        create(found(repo), ["a"], "1" * 40)


def test_two_of_one_moment_get_a_branch_each(
    repo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the branch of this microsecond is taken, the next one's is made."""
    commit = repo.git("rev-parse", "HEAD")
    moments = [LONG_AGO, LONG_AGO, LONG_AGO + timedelta(microseconds=1)]

    class Clock:
        @staticmethod
        def now(_: object) -> datetime:
            return moments.pop(0)

    with monkeypatch.context() as patched:
        patched.setattr(branches, "datetime", Clock)
        first = create(found(repo), ["a"], commit)["a"]
        second = create(found(repo), ["a"], commit)["a"]
    assert first != second
    assert heads(repo) == {"main", first, second}


def test_no_reflog_is_written(repo: Any) -> None:
    """Making and deleting branches leaves no trace among the reflogs."""
    repo.git("config", "core.logAllRefUpdates", "always")
    logs = sorted((repo.path / ".git/logs").rglob("*"))
    create(found(repo), ["a"], repo.git("rev-parse", "HEAD"))
    assert delete(found(repo), older_than=timedelta(0))
    assert sorted((repo.path / ".git/logs").rglob("*")) == logs


def test_old_branches_are_deleted_and_others_stay(repo: Any, tmp_path: Path) -> None:
    """By age; kept are named ones, checked-out ones, young ones, and whatever is not ours."""
    old, kept_branch = aged(repo, "old", 40), aged(repo, "kept", 40)
    kept_experiment, young = aged(repo, "waiting", 40), aged(repo, "young", 10)
    in_use = aged(repo, "in_use", 40)
    repo.git("worktree", "add", "-q", str(tmp_path / "linked"), in_use)
    repo.git("branch", "slurm-job/notes/of/mine")
    repo.git("branch", "slurm-jobs/other")
    repo.git("pack-refs", "--all")
    gone = delete(
        found(repo), older_than=timedelta(days=30), keep=[kept_branch, "waiting"]
    )
    assert [branch.name for branch in gone] == [old]
    assert heads(repo) == {
        "main",
        kept_branch,
        kept_experiment,
        young,
        in_use,
        "slurm-job/notes/of/mine",
        "slurm-jobs/other",
    }
    assert delete(found(repo), older_than=timedelta(days=400)) == []


def test_branches_are_listed_oldest_first(repo: Any) -> None:
    """By the moment in their names, whatever the experiments' names."""
    names = [aged(repo, "b", 1), aged(repo, "a", 3), aged(repo, "c", 2)]
    branches_found = listed(found(repo))
    assert [branch.name for branch in branches_found] == [names[1], names[2], names[0]]
    assert not any(branch.is_checked_out for branch in branches_found)


def test_branches_are_pushed(repo: Any, tmp_path: Path) -> None:
    """A remote, by name or address, gets the branches, more than one call can carry."""
    bare = tmp_path / "remote.git"
    subprocess.run(["git", "init", "-q", "--bare", str(bare)], check=True, timeout=60)
    repo.git("remote", "add", "origin", f"file://{bare}")
    hook = repo.write(".git/hooks/pre-push", "#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    commit = repo.git("rev-parse", "HEAD")
    made = create(found(repo), [f"e{i}" for i in range(3)], commit)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(branches, "_NUM_PUSHED", 2)
        push(found(repo), "origin", list(made.values()))
    push(found(repo), f"file://{bare}", [made["e0"]])
    there = repo.git("ls-remote", f"file://{bare}").splitlines()
    assert Counter(there) == Counter(
        f"{commit}\trefs/heads/{name}" for name in made.values()
    )


def test_pushes_that_cannot_be_are_told(repo: Any, tmp_path: Path) -> None:
    """A missing remote or a refusal is an error with git's words; an option is no remote."""
    made = list(create(found(repo), ["a"], repo.git("rev-parse", "HEAD")).values())
    with pytest.raises(SnapshotError, match="not appear to be a git repo"):
        push(found(repo), f"file://{tmp_path}/missing.git", made)
    for remote in ("", "--upload-pack=touch x"):
        with pytest.raises(ValueError, match="the name of a remote, or an address"):
            push(found(repo), remote, made)
    bare = tmp_path / "remote.git"
    subprocess.run(["git", "init", "-q", "--bare", str(bare)], check=True, timeout=60)
    refuse = bare / "hooks/pre-receive"
    refuse.write_text("#!/bin/sh\necho no snapshots here\nexit 1\n", encoding="utf-8")
    refuse.chmod(0o755)
    with pytest.raises(SnapshotError, match="no snapshots here"):
        push(found(repo), f"file://{bare}", made)
