from __future__ import annotations

import errno
import os
import stat
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mtf_slurm.errors import SnapshotError
from mtf_slurm.git import _plumbing, checkout
from mtf_slurm.git import freeze as freeze_module
from mtf_slurm.git.freeze import Choice, Frozen, freeze

EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"


def frozen(repo: Any, **choice: Any) -> Frozen:
    """Freeze a repository."""
    found = _plumbing.find(repo.path)
    assert found is not None
    return freeze(found, Choice(**choice))


def test_what_is_as_committed_is_the_commits_tree(repo: Any) -> None:
    """A clean repository freezes to the tree of its commit, with nothing dirty."""
    tree = repo.git("rev-parse", "HEAD^{tree}")
    assert frozen(repo) == Frozen(
        tree=tree, head=repo.git("rev-parse", "HEAD"), head_tree=tree, dirty=()
    )


def test_what_is_on_disk_is_frozen(repo: Any) -> None:
    """Changed, staged, deleted, new, linked and executable files are as they are on disk."""
    repo.write(".gitignore", "*.log\n")
    repo.write("old.py", "old\n")
    repo.write("to_link", "text\n")
    repo.commit()
    repo.write("train.py", "staged\n")
    repo.git("add", "train.py")
    repo.write("train.py", "on disk\n")
    (repo.path / "pkg/util.py").chmod(0o755)
    (repo.path / "old.py").unlink()
    (repo.path / "to_link").unlink()
    (repo.path / "to_link").symlink_to("/does/not/exist")
    repo.write("staged_new.py", "new\n")
    repo.git("add", "staged_new.py")
    repo.write("unknown.py", "unknown\n")
    repo.write("noise.log", "noise\n")

    found = frozen(repo)

    listed = {
        name: about.split()[0]
        for about, name in (
            line.split("\t")
            for line in repo.git("ls-tree", "-r", found.tree).splitlines()
        )
    }
    assert listed == {
        ".gitignore": "100644",
        "pkg/util.py": "100755",
        "staged_new.py": "100644",
        "to_link": "120000",
        "train.py": "100644",
        "unknown.py": "100644",
    }
    assert repo.show(found.tree, "train.py") == "on disk"
    assert repo.show(found.tree, "to_link") == "/does/not/exist"
    assert found.dirty == (
        "D old.py",
        "M pkg/util.py",
        "A staged_new.py",
        "T to_link",
        "M train.py",
        "? unknown.py",
    )


def test_untracked_files_are_a_choice(repo: Any) -> None:
    """Without untracked files, what git does not know is left out, and what it knows is not."""
    repo.write("unknown.py", "unknown\n")
    repo.write("train.py", "changed\n")
    found = frozen(repo, include_untracked=False)
    assert repo.names(found.tree) == {"train.py", "pkg/util.py"}
    assert found.dirty == ("M train.py",)


def test_patterns_exclude_untracked_files_only(repo: Any) -> None:
    """A pattern keeps out what git does not know; a tracked file it matches stays in."""
    repo.write("data/known.txt", "known\n")
    repo.commit()
    repo.write("data/known.txt", "changed\n")
    repo.write("data/unknown.txt", "unknown\n")
    repo.write("pkg/data/other.txt", "other\n")
    found = frozen(repo, exclude=("/data/",))
    assert repo.names(found.tree) == {
        "train.py",
        "pkg/util.py",
        "data/known.txt",
        "pkg/data/other.txt",
    }
    assert repo.show(found.tree, "data/known.txt") == "changed"


def test_too_much_that_is_unknown_is_refused(repo: Any) -> None:
    """Data that nobody ignored is refused with its size and the biggest files."""
    repo.write("big.bin", b"x" * 3_000_000)
    repo.write("small.bin", b"x")
    with pytest.raises(
        SnapshotError, match=r"2 files .* 2\.9 MiB, .* 1\.0 MiB.*'big\.bin'"
    ):
        frozen(repo, max_untracked_bytes=1 << 20)
    assert "big.bin" in repo.names(frozen(repo).tree)


def test_what_a_repository_within_knows_is_not_unknown(
    repo: Any, make_repo: Callable[..., Any]
) -> None:
    """Of a clone or submodule, only what it does not know itself counts for the limit."""
    nested = make_repo("repo/vendor/clone")
    nested.write("known.bin", b"x" * 3_000_000)
    nested.commit()
    nested.write("unknown.py", "x")
    names = repo.names(frozen(repo, max_untracked_bytes=1000).tree)
    assert {"vendor/clone/known.bin", "vendor/clone/unknown.py"} <= names
    nested.write("unknown.py", "x" * 1001)
    with pytest.raises(SnapshotError, match=r"1 files .*clone/unknown\.py"):
        frozen(repo, max_untracked_bytes=1000)


def test_nothing_of_the_users_is_touched(repo: Any) -> None:
    """Index, working tree, HEAD, stash, reflogs, config and dates stay; no hook runs."""
    repo.write("train.py", "stashed\n")
    repo.git("stash")
    repo.write("train.py", "staged\n")
    repo.git("add", "train.py")
    repo.write("train.py", "on disk\n")
    repo.write("unknown.py", "unknown\n")
    for hook in (
        "pre-commit",
        "post-index-change",
        "reference-transaction",
        "post-commit",
    ):
        path = repo.write(f".git/hooks/{hook}", "#!/bin/sh\ntouch ../hook-ran hook-ran\n")
        path.chmod(0o755)
    before = repo.fingerprint()
    frozen(repo)
    assert repo.fingerprint() == before


def test_configuration_runs_nothing(repo: Any, tmp_path: Path) -> None:
    """A monitor of files that the config names is not asked, and cannot hide a change."""
    ran = tmp_path / "ran"
    monitor = repo.write(".git/monitor", f"#!/bin/sh\ntouch {ran}\nprintf 'token\\0'\n")
    monitor.chmod(0o755)
    repo.git("config", "core.fsmonitor", str(monitor))
    repo.git("status")
    assert ran.exists()
    ran.unlink()
    repo.write("train.py", "print('two')\n")
    found = frozen(repo)
    assert not ran.exists()
    assert repo.show(found.tree, "train.py") == "print('two')"


def test_the_environments_git_variables_mean_nothing(
    repo: Any, make_repo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Variables that name another repository, index or working tree change nothing."""
    other = make_repo("other")
    tree = frozen(repo).tree
    for name, value in {
        "GIT_DIR": str(other.path / ".git"),
        "GIT_WORK_TREE": str(other.path),
        "GIT_INDEX_FILE": str(other.path / "index"),
        "GIT_OBJECT_DIRECTORY": str(other.path / "objects"),
        "GIT_COMMON_DIR": str(other.path / ".git"),
        "GIT_NAMESPACE": "elsewhere",
        "GIT_CEILING_DIRECTORIES": str(repo.path),
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "core.worktree",
        "GIT_CONFIG_VALUE_0": str(other.path),
        "GIT_LITERAL_PATHSPECS": "0",
        "GIT_PREFIX": "pkg/",
        "GIT_TRACE": "1",
    }.items():
        monkeypatch.setenv(name, value)
    assert frozen(repo).tree == tree
    assert list((other.path / ".git/objects").rglob("??/*")) == []


@pytest.mark.parametrize("mark", ["--assume-unchanged", "--skip-worktree"])
def test_marks_hide_no_change(repo: Any, mark: str) -> None:
    """A change of a file that is marked as unchanged is frozen, and the mark stays."""
    repo.git("update-index", mark, "train.py")
    repo.write("train.py", "hidden\n")
    before = repo.fingerprint()
    assert repo.show(frozen(repo).tree, "train.py") == "hidden"
    assert repo.fingerprint() == before


def test_sparse_files_stay_in_the_tree(repo: Any) -> None:
    """What a sparse checkout leaves away is in the tree as it was committed."""
    repo.write("far/away.py", "away\n")
    repo.commit()
    repo.git("sparse-checkout", "set", "--cone", "pkg")
    assert not (repo.path / "far").exists()
    repo.write("pkg/util.py", "changed\n")
    found = frozen(repo)
    assert repo.show(found.tree, "far/away.py") == "away"
    assert found.dirty == ("M pkg/util.py",)


def test_intent_to_add_is_added(repo: Any) -> None:
    """A file of which git knows only that it will be added has its content."""
    repo.write("new.py", "new\n")
    repo.git("add", "--intent-to-add", "new.py")
    found = frozen(repo, include_untracked=False)
    assert repo.show(found.tree, "new.py") == "new"


@pytest.mark.parametrize(
    "setting",
    [
        "core.splitIndex=true",
        "index.version=4",
        "core.untrackedCache=true",
        "core.ignoreStat=true",
    ],
)
def test_kinds_of_index(repo: Any, setting: str) -> None:
    """Whatever the user's index is like, changes are seen and it stays as it is."""
    repo.git("config", *setting.split("="))
    repo.git("update-index", "--force-write-index", check=False)
    repo.git("update-index", "--refresh")
    repo.write("more.py", "more\n")
    repo.commit()
    repo.write("train.py", "changed\n")
    repo.write("unknown.py", "unknown\n")
    before = repo.fingerprint()
    found = frozen(repo)
    assert found.dirty == ("M train.py", "? unknown.py")
    assert repo.show(found.tree, "train.py") == "changed"
    after = repo.fingerprint()
    assert {k: v for k, v in after.items() if "sharedindex" not in k} == {
        k: v for k, v in before.items() if "sharedindex" not in k
    }


def test_dates_of_the_index_are_kept(repo: Any) -> None:
    """A change in the second in which the index was written, of the same size, is seen."""
    for turn in range(5):  # not all fall within one second
        repo.write("train.py", f"print('{turn}aa')\n")
        repo.git("add", "train.py")
        repo.write("train.py", f"print('{turn}bb')\n")
        assert repo.show(frozen(repo).tree, "train.py") == f"print('{turn}bb')"


def test_unresolved_merge_is_refused(repo: Any) -> None:
    """In a merge with conflicts the error names the file and the way out; then it works."""
    repo.git("checkout", "-q", "-b", "side")
    repo.write("train.py", "side\n")
    repo.commit()
    repo.git("checkout", "-q", "main")
    repo.write("train.py", "main\n")
    repo.commit()
    repo.git("merge", "side", check=False)
    before = repo.fingerprint()
    with pytest.raises(SnapshotError, match=r"middle of a merge: 'train\.py'.*git add"):
        frozen(repo)
    assert repo.fingerprint() == before
    repo.write("train.py", "both\n")
    repo.git("add", "train.py")
    assert (repo.path / ".git/MERGE_HEAD").exists()
    assert repo.show(frozen(repo).tree, "train.py") == "both"


def test_index_in_use_is_waited_for(repo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another git command holds the index nothing is frozen; once it ends, all is."""
    lock = repo.write(".git/index.lock")
    monkeypatch.setattr(freeze_module, "_INDEX_LOCK_WAIT_S", 0.05)
    with pytest.raises(SnapshotError, match=r"index\.lock: another git command"):
        frozen(repo)
    monkeypatch.setattr(freeze_module, "_INDEX_LOCK_WAIT_S", 60.0)
    found: list[Frozen] = []
    waiting = threading.Thread(target=lambda: found.append(frozen(repo)))
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()
    lock.unlink()
    waiting.join(30)
    assert found[0].dirty == ()


def test_before_the_first_commit(make_repo: Callable[..., Any]) -> None:
    """Where nothing was committed, not even staged, the files are frozen all the same."""
    repo = make_repo("new")
    assert frozen(repo) == Frozen(tree=EMPTY_TREE, head=None, head_tree=None, dirty=())
    repo.write("a.py", "a\n")
    repo.write("b.py", "b\n")
    repo.git("add", "a.py")
    found = frozen(repo)
    assert found.head is None
    assert found.dirty == ("A a.py", "? b.py")
    assert repo.names(found.tree) == {"a.py", "b.py"}


def test_damaged_head_is_an_error(repo: Any) -> None:
    """A commit that cannot be read is not taken for none."""
    commit = repo.git("rev-parse", "HEAD")
    (repo.path / f".git/objects/{commit[:2]}/{commit[2:]}").unlink()
    with pytest.raises(SnapshotError, match=r"HEAD names a commit that .* `git fsck`"):
        frozen(repo)


def test_a_file_that_is_none_any_more_is_refused(repo: Any) -> None:
    """What git knows for a file and is a pipe now is named, with the ways out."""
    (repo.path / "train.py").unlink()
    os.mkfifo(repo.path / "train.py")
    os.mkfifo(repo.path / "unknown")
    with pytest.raises(
        SnapshotError, match=r"/train\.py: is neither .* `git rm --cached`"
    ):
        frozen(repo)
    repo.git("rm", "--cached", "-q", "train.py")
    assert repo.names(frozen(repo).tree) == {"pkg/util.py"}


def test_linked_working_tree_has_its_own_index(repo: Any, tmp_path: Path) -> None:
    """In a linked working tree its own files are frozen, not the main one's."""
    repo.git("worktree", "add", "-q", "-b", "side", str(tmp_path / "linked"))
    linked = type(repo)(tmp_path / "linked")
    linked.write("train.py", "linked\n")
    repo.write("train.py", "main\n")
    assert repo.show(frozen(linked).tree, "train.py") == "linked"
    assert repo.show(frozen(repo).tree, "train.py") == "main"


def test_files_and_folders_change_places(repo: Any) -> None:
    """A file that became a folder, a folder a file, and a folder a link are frozen so."""
    repo.write("was_file", "file\n")
    repo.write("was_folder/a", "a\n")
    repo.write("to_link/a", "a\n")
    repo.write("target/a", "other\n")
    repo.commit()
    (repo.path / "was_file").unlink()
    repo.write("was_file/in", "in\n")
    (repo.path / "was_folder/a").unlink()
    (repo.path / "was_folder").rmdir()
    repo.write("was_folder", "file now\n")
    (repo.path / "to_link/a").unlink()
    (repo.path / "to_link").rmdir()
    (repo.path / "to_link").symlink_to("target")
    found = frozen(repo)
    assert repo.names(found.tree) == {
        "train.py",
        "pkg/util.py",
        "was_file/in",
        "was_folder",
        "to_link",
        "target/a",
    }
    assert repo.show(found.tree, "to_link") == "target"


def test_submodules_are_frozen_as_files(repo: Any, make_repo: Callable[..., Any]) -> None:
    """Files of a submodule, and of one within it, are in the tree as they are on disk."""
    inner, middle = make_repo("inner"), make_repo("middle")
    inner.write("inner.py", "inner\n")
    inner.commit()
    middle.write("middle.py", "middle\n")
    middle.write(".gitignore", "*.log\n")
    middle.commit()
    add = ("-c", "protocol.file.allow=always", "submodule", "--quiet", "add")
    middle.git(*add, str(inner.path), "sub")
    middle.commit()
    repo.git(*add, str(middle.path), "lib")
    repo.git(
        *("-c", "protocol.file.allow=always", "submodule", "--quiet", "update"),
        *("--init", "--recursive"),
    )
    repo.commit()
    repo.write("lib/middle.py", "edited\n")
    repo.write("lib/new.py", "new\n")
    repo.write("lib/noise.log", "noise\n")
    (repo.path / "lib/.gitmodules").unlink()
    found = frozen(repo)
    assert {name for name in repo.names(found.tree) if name.startswith("lib/")} == {
        "lib/.gitignore",
        "lib/middle.py",
        "lib/new.py",
        "lib/sub/inner.py",
    }
    assert repo.show(found.tree, "lib/middle.py") == "edited"
    assert found.dirty == ("R lib",)
    known = frozen(repo, include_untracked=False)
    assert "lib/new.py" not in repo.names(known.tree)


def test_submodule_that_is_not_there_stays_a_link(
    repo: Any, make_repo: Callable[..., Any]
) -> None:
    """A submodule that nobody initialised is frozen as what it is: a commit's id."""
    library = make_repo("library")
    library.write("lib.py", "lib\n")
    commit = library.commit()
    repo.git("update-index", "--add", "--cacheinfo", f"160000,{commit},lib")
    (repo.path / "lib").mkdir()
    repo.git("commit", "-q", "-m", "link")
    found = frozen(repo)
    assert found.dirty == ()
    assert f"160000 commit {commit}\tlib" in repo.git("ls-tree", found.tree)


def test_repositories_within_are_frozen_as_files(
    repo: Any, make_repo: Callable[..., Any]
) -> None:
    """A clone that lies in the project is frozen with it; one in a merge is refused."""
    nested = make_repo("repo/vendor/clone")
    nested.write("deep/in.py", "in\n")
    nested.commit()
    nested.write("unknown.py", "unknown\n")
    deeper = make_repo("repo/vendor/clone/deeper")
    deeper.write("deepest.py", "deepest\n")
    found = frozen(repo)
    assert {name for name in repo.names(found.tree) if name.startswith("vendor/")} == {
        "vendor/clone/deep/in.py",
        "vendor/clone/unknown.py",
        "vendor/clone/deeper/deepest.py",
    }
    assert found.dirty == ("R vendor/clone",)
    blob = nested.git("hash-object", "-w", "--stdin", stdin="x")
    lines = "".join(f"100644 {blob} {stage}\tdeep/in.py\n" for stage in (1, 2))
    nested.git("update-index", "--index-info", stdin=f"0 {'0' * 40}\tdeep/in.py\n{lines}")
    with pytest.raises(SnapshotError, match=r"vendor/clone: is in the middle of a merge"):
        frozen(repo)


def test_settings_hide_no_file(repo: Any) -> None:
    """Names that differ in case, or that Windows or macOS would mistake, are all frozen."""
    repo.git("config", "core.ignoreCase", "true")
    repo.git("config", "core.protectNTFS", "true")
    repo.git("config", "core.protectHFS", "true")
    (repo.path / "train.py").rename(repo.path / "Train.py")
    for name in ("pkg/UTIL.py", "git~1", ".git ", ".g\u200cit"):
        repo.write(name, "x\n")
    assert repo.names(frozen(repo).tree) == {
        *("Train.py", "pkg/util.py", "pkg/UTIL.py", "git~1", ".git ", ".g\u200cit"),
    }


@pytest.mark.parametrize("setting", ["core.trustctime=false", "core.checkStat=minimal"])
def test_settings_hide_no_change(repo: Any, setting: str) -> None:
    """A change that keeps size and date is seen, whatever git is told to compare."""
    path = repo.path / "train.py"
    old_ns = 1_600_000_000_000_000_000
    os.utime(path, ns=(old_ns, old_ns))
    repo.git("update-index", "--refresh")
    repo.git("config", *setting.split("="))
    probe = repo.write(".git/probe")
    while int(probe.stat().st_ctime) == int(path.stat().st_ctime):
        probe.touch()  # until another second: many a git knows no parts of one
    repo.write("train.py", "print('two')\n")
    os.utime(path, ns=(old_ns, old_ns))
    assert repo.git("diff", "--name-only") == ""
    assert repo.show(frozen(repo).tree, "train.py") == "print('two')"


def test_files_that_git_does_not_take_are_refused(repo: Any) -> None:
    """A file that git passes over without a word is named, and no tree is given."""
    repo.write(".GIT", "x")
    with pytest.raises(SnapshotError, match=r"git cannot take '\.GIT'.*rename"):
        frozen(repo)


def test_filters_that_are_missing_are_refused(repo: Any) -> None:
    """Where attributes name a filter that git has not, pointers are not passed off as data."""
    repo.write(".gitattributes", "*.bin filter=lfs\n")
    repo.write("a.bin", "version https://git-lfs.github.com/spec/v1\n")
    repo.commit()
    with pytest.raises(SnapshotError, match=r"'a\.bin' .* filter 'lfs'.*git lfs install"):
        frozen(repo)
    repo.git("config", "filter.lfs.smudge", "cat")
    assert frozen(repo).dirty == ()


def test_a_submodule_without_its_repository_is_frozen_as_files(
    repo: Any, make_repo: Callable[..., Any]
) -> None:
    """Where the .git of a submodule was not copied along, its files are frozen still."""
    library = make_repo("library")
    library.write("lib.py", "lib\n")
    commit = library.commit()
    for name in ("lib", "file", "link"):
        repo.git("update-index", "--add", "--cacheinfo", f"160000,{commit},{name}")
    repo.git("commit", "-q", "-m", "links")
    repo.write("lib/lib.py", "edited\n")
    repo.write("lib/noise.log", "noise\n")
    repo.write("lib/.gitignore", "*.log\n")
    repo.write("file", "a file now\n")
    (repo.path / "link").symlink_to("lib")
    for choice in ({}, {"include_untracked": False}):
        found = frozen(repo, **choice)
        assert repo.show(found.tree, "lib/lib.py") == "edited"
        assert repo.show(found.tree, "file") == "a file now"
        assert repo.show(found.tree, "link") == "lib"
        assert "lib/noise.log" not in repo.names(found.tree)
        assert found.dirty == ("T file", "R lib", "T link")


def test_a_repository_within_that_points_elsewhere(
    repo: Any, make_repo: Callable[..., Any], tmp_path: Path
) -> None:
    """A clone whose configuration names another working tree is frozen as it lies there."""
    nested = make_repo("repo/vendor")
    nested.write("known.py", "known\n")
    nested.commit()
    nested.write("unknown.py", "unknown\n")
    for name in ("deep", "file", "gone"):
        nested.git("update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},{name}")
    nested.write("deep/deep.py", "deep\n")
    nested.write("file", "file\n")
    nested.git("config", "core.worktree", str(tmp_path))
    names = {name for name in repo.names(frozen(repo).tree) if name.startswith("vendor/")}
    assert names == {
        *("vendor/known.py", "vendor/unknown.py", "vendor/deep/deep.py", "vendor/file"),
    }


def test_an_unreadable_repository_within_is_refused(repo: Any) -> None:
    """A submodule whose .git leads nowhere is named."""
    repo.git("update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},lib")
    repo.write("lib/.git", "gitdir: ../nowhere\n")
    repo.write("lib/lib.py", "lib\n")
    with pytest.raises(SnapshotError, match=r"lib: .*not a git repository"):
        frozen(repo)


def test_an_index_that_cannot_be_read_is_told(
    repo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index of another user, and a full folder for its copy, are named with the fix."""
    index = repo.path / ".git/index"
    open_path = Path.open

    def refuse(path: Path, *args: Any) -> Any:
        if path == index:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return open_path(path, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        with pytest.raises(
            SnapshotError, match=r"index: .*Permission denied; .*chmod u\+r"
        ):
            frozen(repo)
    monkeypatch.setattr(tempfile, "tempdir", str(repo.path / "missing"))
    with pytest.raises(SnapshotError, match=r"cannot be copied: .*missing.*set TMPDIR"):
        frozen(repo)


def test_filters_run_and_their_failure_is_told(repo: Any) -> None:
    """A file goes through the filter that its attributes name; if that fails, so does it."""
    repo.write(".gitattributes", "*.up filter=upper\n")
    repo.git("config", "filter.upper.clean", "tr a-z A-Z")
    repo.git("config", "filter.upper.smudge", "tr A-Z a-z")
    repo.git("config", "filter.upper.required", "true")
    repo.write("a.up", "text\n")
    assert repo.show(frozen(repo).tree, "a.up") == "TEXT"
    repo.git("config", "filter.upper.clean", "false")
    with pytest.raises(SnapshotError, match="filter"):
        frozen(repo)


LFS = "filter=lfs diff=lfs merge=lfs -text"


@pytest.fixture
def lfs(repo: Any) -> Any:
    """A repository with a filter that keeps data elsewhere, as git-lfs does."""
    store = repo.path / ".git" / "store"
    store.mkdir()
    script = repo.write(
        ".git/lfs",
        "#!/bin/bash\n"
        f'if [ "$1" = clean ]; then cat >{store}/new; h=$(sha256sum <{store}/new)\n'
        f'mv {store}/new "{store}/${{h%% *}}"; echo "pointer ${{h%% *}}"\n'
        'elif [ "$2" = --skip ]; then cat\n'
        f'else read -r _ h; cat "{store}/$h"; fi\n',
    )
    script.chmod(0o700)
    repo.git("config", "filter.lfs.clean", f"{script} clean")
    repo.git("config", "filter.lfs.smudge", f"{script} smudge")
    repo.write(".gitattributes", f"*.bin {LFS}\n")
    repo.write("data.bin", "data\n" * 30)
    repo.commit()
    return repo


def test_data_of_a_filter_is_what_it_makes(lfs: Any) -> None:
    """What lies there is stored as the filter keeps it, where that gives the same back."""
    found = frozen(lfs)
    assert found.tree == lfs.git("rev-parse", "HEAD^{tree}")
    assert lfs.show(found.tree, "data.bin").startswith("pointer ")


def test_data_that_a_filter_would_leave_away_is_refused(lfs: Any) -> None:
    """Set up to pass over data that lies there, the filter would give a job the pointer."""
    lfs.git("config", "filter.lfs.smudge", f"{lfs.path}/.git/lfs smudge --skip")
    other = r"what their filters would make of 'data\.bin' is not .* --skip-smudge"
    with pytest.raises(SnapshotError, match=other):
        frozen(lfs)
    lfs.write(".git/info/attributes", "*.bin -filter\n")
    assert lfs.show(frozen(lfs).tree, "data.bin") == ("data\n" * 30).strip()


@pytest.mark.parametrize("key", ["smudge", "process"])
def test_a_filter_whose_program_is_missing_is_refused(lfs: Any, key: str) -> None:
    """It is an error also where it is not required, and git would go on without."""
    lfs.git("config", f"filter.lfs.{key}", "no-such-program-here")
    with pytest.raises(SnapshotError, match=r"data\.bin: smudge filter lfs failed"):
        frozen(lfs)


def test_pointers_that_lie_there(lfs: Any) -> None:
    """A pointer is frozen where the filter leaves it, and refused where it makes data of it."""
    pointer = lfs.git("cat-file", "blob", "HEAD:data.bin") + "\n"
    lfs.git("config", "filter.lfs.clean", "cat")
    lfs.write("data.bin", pointer)
    lfs.git("add", "data.bin")
    with pytest.raises(SnapshotError, match=r"of 'data\.bin' is not what lies there"):
        frozen(lfs)
    lfs.git("config", "filter.lfs.smudge", f"{lfs.path}/.git/lfs smudge --skip")
    assert lfs.show(frozen(lfs).tree, "data.bin") == pointer.strip()


def test_files_that_change_while_they_are_read_are_read_again(repo: Any) -> None:
    """A file that changes once meanwhile is frozen as it is afterwards."""
    repo.write(".gitattributes", "*.x filter=meddle\n")
    repo.commit()
    repo.git(
        *("config", "filter.meddle.clean"),
        "cat; test -e .git/done || { touch .git/done; echo later >> train.py; }",
    )
    repo.write("a.x", "a\n")
    found = frozen(repo)
    assert repo.show(found.tree, "train.py") == "print('one')\nlater"


def test_files_that_change_all_the_time_are_refused(repo: Any) -> None:
    """Where files never rest, the error names them and no tree is given."""
    repo.write(".gitattributes", "*.x filter=meddle\n")
    repo.commit()
    repo.git("config", "filter.meddle.clean", "cat; echo later >> train.py")
    repo.write("a.x", "a\n")
    with pytest.raises(SnapshotError, match=r"files change .*'train\.py'.* try again"):
        frozen(repo)


def test_failure_by_a_change_is_no_failure(repo: Any) -> None:
    """Where git fails because a file changed under it, it is asked again."""
    repo.write(".gitattributes", "*.x filter=meddle\n")
    repo.commit()
    repo.git("config", "filter.meddle.required", "true")
    repo.git("config", "filter.meddle.smudge", "cat")
    repo.git(
        *("config", "filter.meddle.clean"),
        "cat; test -e .git/done || { touch .git/done; echo later >> train.py; exit 1; }",
    )
    repo.write("a.x", "a\n")
    assert repo.show(frozen(repo).tree, "train.py") == "print('one')\nlater"


def test_index_that_changes_meanwhile_is_read_again(repo: Any) -> None:
    """What the user stages while files are read is seen."""
    repo.write(".gitattributes", "*.x filter=meddle\n")
    repo.commit()
    repo.git(
        *("config", "filter.meddle.clean"),
        "cat; test -e .git/done || { touch .git/done; cp .git/index .git/index.new; "
        "mv .git/index.new .git/index; }",
    )
    repo.write("a.x", "a\n")
    inode = (repo.path / ".git/index").stat().st_ino
    assert "a.x" in repo.names(frozen(repo).tree)
    assert (repo.path / ".git/index").stat().st_ino != inode


def test_special_files_are_no_code(repo: Any) -> None:
    """A pipe among the files is left out, and holds nothing up."""
    os.mkfifo(repo.path / "pipe")
    assert repo.names(frozen(repo).tree) == {"train.py", "pkg/util.py"}


def test_sha256_repositories(make_repo: Callable[..., Any]) -> None:
    """A repository whose ids are SHA-256 is frozen with such ids, deletions included."""
    repo = make_repo("new", "--object-format=sha256")
    repo.write("a.py", "a\n")
    repo.write("b.py", "b\n")
    repo.commit()
    (repo.path / "a.py").unlink()
    repo.write("b.py", "changed\n")
    found = frozen(repo)
    assert len(found.tree) == 64
    assert repo.names(found.tree) == {"b.py"}


HOSTILE = [
    "-rf",
    "--all",
    "new\nline",
    "tab\there",
    " \" quotes ' ",
    "$(touch x)",
    "a;b",
    "*",
    "[a]",
    ":(exclude)x",
    "!bang",
    "#hash",
    "back\\slash",
    "\udcff\udcfe",  # no UTF-8
    "ümlaut",
    "~",
    "@",
    "HEAD",
    "0 0000\tx",
    "\x01\x7f",
    "a" * 255,
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_come_through(repo: Any, tmp_path: Path, name: str) -> None:
    """A file of any name is frozen, changed, checked out and deleted like any other."""
    repo.write(f"folder {name}"[:255] + f"/{name}", "in a folder of the kind")
    top = repo.path / name
    top.write_bytes(b"top")
    top.chmod(0o755)
    found = frozen(repo)
    commit = repo.git("commit-tree", "-m", "x", found.tree)
    made = checkout.make(repo.path, commit, tmp_path / "made")
    assert (made / name).read_bytes() == b"top"
    assert (made / name).stat().st_mode & stat.S_IXUSR
    repo.commit()
    top.write_bytes(b"changed")
    assert [line for line in frozen(repo).dirty if line[2:] == name] == [f"M {name}"]
    top.unlink()
    assert [line for line in frozen(repo).dirty if line[2:] == name] == [f"D {name}"]


IDENTITY = [f"GIT_{r}_{k}" for r in ("AUTHOR", "COMMITTER") for k in ("NAME", "EMAIL")]
NAMES = st.binary(min_size=1, max_size=12).filter(
    lambda b: b not in {b".", b".."} and not set(b) & {0, 47} and b.lower()[:4] != b".git"
)


@pytest.mark.slow
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(files=st.dictionaries(NAMES, st.binary(max_size=20), max_size=6))
@example(files={b"a": b"", b"a.b": b"", b"a-b": b""})
def test_any_names_and_bytes_come_through(
    tmp_path_factory: pytest.TempPathFactory, files: dict[bytes, bytes]
) -> None:
    """Whatever names and bytes files have, the job gets them all and nothing else."""
    where = tmp_path_factory.mktemp("any")
    repo = where / "repo"
    checkout.run_git("init", "-q", str(repo), cwd=where, environ=checkout.git_environ())
    folders = sorted(files)[:2]
    expected = {}
    for name, content in files.items():
        for prefix in (b"", *(folder + b"_/" for folder in folders)):
            path = repo / os.fsdecode(prefix + name)
            if not path.parent.exists():
                path.parent.mkdir()
            if path.is_dir() or path.parent.is_file():
                continue
            path.write_bytes(content)
            expected[prefix + name] = content
    found = _plumbing.find(repo)
    assert found is not None
    tree = freeze(found, Choice(exclude=())).tree
    commit = found.git(
        "commit-tree", tree, extra=dict.fromkeys(IDENTITY, "x"), stdin=b"x"
    )
    made = checkout.make(repo, commit.decode().strip(), where / "made")
    got = {
        os.fsencode(path.relative_to(made)): path.read_bytes()
        for path in made.rglob("*")
        if path.is_file()
    }
    assert got == expected


def test_recent_changes_are_waited_for(
    repo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that changed within a tick of the clock are looked at again after it."""
    waits: list[float] = []
    monkeypatch.setattr(freeze_module, "_TICK_NS", 3_600_000_000_000)
    monkeypatch.setattr(time, "sleep", waits.append)
    frozen(repo)
    assert 3600.0 in waits
