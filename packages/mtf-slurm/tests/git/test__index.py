from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from mtf_slurm.errors import SnapshotError
from mtf_slurm.git import _index, _plumbing
from mtf_slurm.git.freeze import Choice, freeze


@pytest.fixture
def torn(repo: Any) -> Any:
    """A repository with two branches that change one line."""
    repo.git("checkout", "-q", "-b", "side")
    repo.write("train.py", "side\n")
    repo.commit()
    repo.git("checkout", "-q", "main")
    repo.write("train.py", "main\n")
    repo.commit()
    repo.git("config", "user.name", "U")
    repo.git("config", "user.email", "u@example.org")
    return repo


@pytest.mark.parametrize(
    ("command", "what", "undo"),
    [
        ("merge side", "merge", "git merge --abort"),
        ("rebase side", "rebase", "git rebase --abort"),
        ("rebase --apply side", "rebase", "git rebase --abort"),
        ("cherry-pick side", "cherry-pick", "git cherry-pick --abort"),
        ("revert HEAD~1 --no-edit -m 1", "revert", "git revert --abort"),
        ("am -3 side.patch", "`git am`", "git am --abort"),
        ("stash apply", "merge", "git reset --merge"),
    ],
)
def test_each_conflict_has_its_way_out(
    torn: Any, command: str, what: str, undo: str
) -> None:
    """The error names the command that ends the state; after it, the code is frozen."""
    if command.startswith("am"):
        patch = torn.git("format-patch", "-1", "side", "--stdout")
        torn.write("side.patch", patch + "\n")
    elif command.startswith("stash"):
        torn.git("checkout", "-q", "side~1")
        torn.write("train.py", "stashed\n")
        torn.git("stash")
        torn.git("checkout", "-q", "main")
    elif command.startswith("revert"):
        torn.git("merge", "-q", "-s", "ours", "side")
        torn.write("train.py", "later\n")
        torn.commit()
        command = "revert --no-edit HEAD~2"
    torn.git(*command.split(), check=False)
    found = _plumbing.find(torn.path)
    assert found is not None
    said = f"is in the middle of a {what}: 'train.py' not resolved"
    with pytest.raises(SnapshotError) as caught:
        freeze(found, Choice())
    assert said in str(caught.value)
    assert f"`{undo}`" in str(caught.value)
    torn.git(*undo.split()[1:])
    assert freeze(found, Choice()).tree


def test_a_copy_has_the_date(tmp_path: Path) -> None:
    """What is copied is told by date and file; where there is none, there is no identity."""
    index = tmp_path / "index"
    assert _index.copy(index, tmp_path / "copy") is None
    assert _index.identity(index) is None
    index.write_bytes(b"x")
    os.utime(index, ns=(5, 7))
    assert _index.copy(index, tmp_path / "copy") == _index.identity(index)
    assert (tmp_path / "copy").stat().st_mtime_ns == 7
    assert (tmp_path / "copy").read_bytes() == b"x"


def test_an_index_that_cannot_be_read(tmp_path: Path) -> None:
    """The error names it, and what to do."""
    (tmp_path / "index").mkdir()
    with pytest.raises(SnapshotError, match=r"index: .*cannot be read: Is a directory"):
        _index.copy(tmp_path / "index", tmp_path / "copy")


def test_an_index_that_is_damaged(repo: Any) -> None:
    """It is named as the user knows it, with the way out, which keeps the files."""
    repo.write(".git/index", b"DIRCdamaged")
    found = _plumbing.find(repo.path)
    assert found is not None
    with pytest.raises(SnapshotError) as caught:
        freeze(found, Choice())
    said = str(caught.value)
    assert said.startswith(f"{repo.path}/.git/index: git cannot read this index: ")
    assert "mtf-index-" not in said
    assert "delete it and run `git reset`" in said
    (repo.path / ".git" / "index").unlink()
    repo.git("reset")
    assert freeze(found, Choice()).dirty == ()
