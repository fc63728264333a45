from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mtf_slurm.git import GitManager
from mtf_slurm.git.snapshot import CHECKOUT_SCRIPT, Snapshot


def test_a_snapshot_is_plain_data() -> None:
    """All but the branches goes into JSON, and a job's arguments name repository and commit."""
    snapshot = Snapshot(
        repository=Path("/r/.git"),
        top=Path("/r"),
        prefix="pkg",
        commit="c" * 40,
        tree="d" * 40,
        base=None,
        dirty=("M \udcff",),
        branches={"a": "slurm-job/a"},
    )
    assert snapshot.arguments() == ("--repository", "/r/.git", "--commit", "c" * 40)
    assert json.loads(json.dumps(snapshot.to_plain())) == {
        "repository": "/r/.git",
        "top": "/r",
        "prefix": "pkg",
        "commit": "c" * 40,
        "tree": "d" * 40,
        "base": None,
        "dirty": ["M \udcff"],
    }


def test_what_a_snapshot_has(repo: Any) -> None:
    """Files, links and folders of the frozen tree are there, and what lies there since is not."""
    (repo.path / "link").symlink_to("nowhere")
    snapshot = GitManager(repo.path).snapshot("a")
    repo.write("later.py")
    there = {
        path for path in ("train.py", "pkg", "link", "later.py") if snapshot.has(path)
    }
    assert there == {"train.py", "pkg", "link"}


def test_what_a_snapshot_has_with_a_working_tree_that_is_configured(repo: Any) -> None:
    """Where the user's working tree is said to be changes nothing."""
    repo.git("config", "core.worktree", str(repo.path))
    snapshot = GitManager(repo.path).snapshot("a")
    assert snapshot.has("train.py")
    assert not snapshot.has("other.py")


def test_the_script_is_there() -> None:
    """What a job is to run lies beside the package, as a file."""
    assert CHECKOUT_SCRIPT.name == "checkout.py"
    assert CHECKOUT_SCRIPT.is_file()
