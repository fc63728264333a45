from __future__ import annotations

import getpass
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from mtf_slurm.errors import GitLockTimeoutError, SnapshotError
from mtf_slurm.git import GitManager, GitOperationLock
from mtf_slurm.git.freeze import Choice
from mtf_slurm.git.snapshot import CHECKOUT_SCRIPT

BRANCH = re.compile(r"slurm-job/([\w.-]+)/\d{8}T\d{6}\.\d{6}Z/([0-9a-f]{8})")
DEADLINE_S = 120.0


def heads(repo: Any) -> dict[str, str]:
    """Return the commit of each branch."""
    lines = repo.git(
        "for-each-ref", "--format=%(refname:lstrip=2) %(objectname)", "refs/heads"
    )
    return dict(line.split() for line in lines.splitlines())


def test_a_submission_freezes_the_code_on_a_branch(repo: Any) -> None:
    """The branch is named as promised, over the user's commit, and holds what is on disk."""
    base = repo.git("rev-parse", "HEAD")
    repo.write("train.py", "changed\n")
    repo.write("new.py", "new\n")
    snapshot = GitManager(repo.path).snapshot("lr_0.1")
    branch = snapshot.branches["lr_0.1"]
    match = BRANCH.fullmatch(branch)
    assert match is not None
    assert match.groups() == ("lr_0.1", snapshot.commit[:8])
    assert heads(repo) == {"main": base, branch: snapshot.commit}
    assert repo.git("rev-parse", f"{branch}^", f"{branch}^{{tree}}").split() == [
        base,
        snapshot.tree,
    ]
    assert repo.show(branch, "train.py") == "changed"
    assert snapshot.dirty == ("? new.py", "M train.py")
    assert (snapshot.base, snapshot.prefix, snapshot.top) == (base, "", repo.path)


def test_the_commit_is_the_users_where_nothing_differs(repo: Any) -> None:
    """No commit is made where the user's own says it all."""
    base = repo.git("rev-parse", "HEAD")
    snapshot = GitManager(repo.path).snapshot("a")
    assert (snapshot.commit, snapshot.dirty) == (base, ())


def test_nothing_of_the_users_is_touched(repo: Any, tmp_path: Path) -> None:
    """After all that a submission does, only objects, branches and a lock file are new."""
    repo.write("train.py", "stashed\n")
    repo.git("stash")
    repo.write("train.py", "staged\n")
    repo.git("add", "train.py")
    repo.write("train.py", "on disk\n")
    repo.git("config", "core.logAllRefUpdates", "always")
    repo.git("config", "commit.gpgSign", "true")
    for hook in (
        *("pre-commit", "commit-msg", "post-commit", "post-checkout", "pre-push"),
        *("reference-transaction", "post-index-change", "post-rewrite", "pre-auto-gc"),
    ):
        path = repo.write(f".git/hooks/{hook}", f"#!/bin/sh\ntouch {tmp_path}/ran\n")
        path.chmod(0o755)
    before = repo.fingerprint()
    git = GitManager(repo.path)
    snapshot = git.snapshot(["a", "b"])
    git.checkout(snapshot, tmp_path / "made")
    git.record(snapshot, {"a": tmp_path / "a"})
    git.prune(older_than=timedelta(days=1))
    after = repo.fingerprint()
    after.pop(".git/mtf-slurm.lock")
    assert after == before
    assert not (tmp_path / "ran").exists()


def test_a_folder_of_a_repository_is_a_project(repo: Any, tmp_path: Path) -> None:
    """All of the repository is frozen; patterns and the checkout are of the folder."""
    repo.write("pkg/experiments/a/config.yaml", "a: 1\n")
    repo.write("experiments/notes", "notes\n")
    repo.write("pkg/new.py", "new\n")
    git = GitManager(repo.path / "pkg")
    snapshot = git.snapshot("a")
    assert snapshot.prefix == "pkg"
    assert snapshot.dirty == ("? experiments/notes", "? pkg/new.py")
    made = git.checkout(snapshot, tmp_path / "made")
    assert made == tmp_path / "made/pkg"
    assert (made / "new.py").exists()


def test_folders_that_are_left_out(repo: Any, tmp_path: Path) -> None:
    """They may lie beside the project, or elsewhere; a project in one cannot be frozen."""
    repo.write("sub/a.py")
    repo.write("runs*[1]/e/x")
    repo.write("runs1/y")
    left_out = [
        repo.path / "runs*[1]",
        repo.path / "none",
        tmp_path / "elsewhere",
        tmp_path,
    ]
    snapshot = GitManager(repo.path / "sub", leave_out=left_out).snapshot("e")
    assert repo.names(snapshot.commit) == {
        *("train.py", "pkg/util.py", "sub/a.py", "runs1/y")
    }
    for folder in (repo.path, repo.path / "sub"):
        with pytest.raises(SnapshotError, match="project lies in the folder of its"):
            GitManager(repo.path / "sub", leave_out=[folder])


def test_patterns_of_a_folder_with_an_odd_name(repo: Any) -> None:
    """Characters that a pattern would heed stand for themselves in a folder's name."""
    repo.write("a[1] *!/experiments/x", "x\n")
    repo.write("a[1] *!/code.py", "code\n")
    repo.write("a1 b!/experiments/x", "x\n")
    snapshot = GitManager(repo.path / "a[1] *!").snapshot("a")
    assert snapshot.dirty == ("? a1 b!/experiments/x", "? a[1] *!/code.py")


def test_a_link_to_the_project_will_do(repo: Any, tmp_path: Path) -> None:
    """A project named through a link is the one it leads to."""
    (tmp_path / "link").symlink_to(repo.path / "pkg")
    assert GitManager(tmp_path / "link").snapshot("a").prefix == "pkg"


def test_a_submodule_is_a_project(
    repo: Any, make_repo: Callable[..., Any], tmp_path: Path
) -> None:
    """A project that is a submodule has its own snapshots, with git's folder elsewhere."""
    library = make_repo("library")
    library.write("lib.py", "lib\n")
    library.commit()
    add = ("-c", "protocol.file.allow=always", "submodule", "--quiet", "add")
    repo.git(*add, str(library.path), "lib")
    repo.write("lib/new.py", "new\n")
    git = GitManager(repo.path / "lib")
    snapshot = git.snapshot("a")
    assert snapshot.dirty == ("? new.py",)
    made = git.checkout(snapshot, tmp_path / "made")
    assert sorted(path.name for path in made.iterdir()) == ["lib.py", "new.py"]


def test_bytes_and_bits_on_disk_come_through(repo: Any, tmp_path: Path) -> None:
    """Whatever the rules for line ends, the job's bytes and bits are those on disk."""
    repo.git("config", "--global", "core.autocrlf", "true")
    repo.git("config", "core.fileMode", "false")
    repo.write(
        ".gitattributes",
        "*.bat eol=crlf\n*.id ident\n*.u16 working-tree-encoding=UTF-16\n",
    )
    wide = "h\u00e9\r\n".encode("utf-16")
    files = {
        "crlf.py": b"a\r\nb\r\n",
        "run.sh": b"#!/bin/sh\n",
        "mixed.txt": b"a\r\nb\n",
        "lf.bat": b"a\nb\n",
        "crlf.bat": b"a\r\nb\r\n",
        "mine.id": b"$Id: mine $\n",
        "wide.u16": wide,
    }
    for name, data in files.items():
        repo.write(name, data)
    repo.commit()
    clean = {"clean.py": b"a\r\nb\r\n", "clean.u16": wide}
    for name, data in clean.items():
        repo.write(name, data)
    repo.git("add", ".")
    repo.write("new.py", b"a\r\n")
    (repo.path / "run.sh").chmod(0o755)
    (repo.path / "new.py").chmod(0o755)
    assert repo.git("status", "--porcelain").splitlines() == [
        *("A  clean.py", "A  clean.u16", "?? new.py"),
    ]
    git = GitManager(repo.path)
    snapshot = git.snapshot("a")
    assert snapshot.dirty == ("A clean.py", "A clean.u16", "? new.py")
    made = git.checkout(snapshot, tmp_path / "made")
    for name, data in {**files, **clean, "new.py": b"a\r\n"}.items():
        assert (made / name).read_bytes() == data
        assert os.access(made / name, os.X_OK) == (name in {"run.sh", "new.py"})
    assert git.checkout(snapshot, tmp_path / "made") == made


def test_a_project_that_its_repository_ignores_is_refused(
    make_repo: Callable[..., Any],
) -> None:
    """Where a repository around the project ignores it, nothing is frozen, and that is said."""
    dotfiles = make_repo("dotfiles")
    dotfiles.write(".gitignore", "*\n")
    dotfiles.write("project/train.py", "train\n")
    git = GitManager(dotfiles.path / "project")
    with pytest.raises(
        SnapshotError, match=r"project: nothing of it .*ignores it; .*git init"
    ):
        git.snapshot("a")
    assert git.branches() == []
    dotfiles.git("add", "--force", "project/train.py")
    assert git.snapshot("a").prefix == "project"


def test_a_partial_clone_is_completed(
    repo: Any, make_repo: Callable[..., Any], tmp_path: Path
) -> None:
    """What a partial clone lacks is fetched at submission, so that no job needs the remote."""
    repo.write("far/away.py", "away\n")
    repo.commit()
    repo.git("config", "uploadpack.allowFilter", "true")
    repo.git("config", "uploadpack.allowAnySHA1InWant", "true")
    clone = make_repo("unused").path.with_name("clone")
    args = ("--filter=blob:none", "--sparse", f"file://{repo.path}", str(clone))
    repo.git("clone", "-q", *args)
    partial = type(repo)(clone)
    partial.write("train.py", "changed\n")
    away = repo.path.with_name("away")
    repo.path.rename(away)
    with pytest.raises(
        SnapshotError, match=r"(?s)partial clone lacks 2 objects.*whole clone$"
    ):
        GitManager(clone).snapshot("a")
    away.rename(repo.path)
    before = partial.fingerprint()
    git = GitManager(clone)
    snapshot = git.snapshot("a")
    assert partial.fingerprint() == before
    assert snapshot.dirty == ("M train.py",)
    repo.path.rename(away)
    made = git.checkout(snapshot, tmp_path / "made")
    assert (made / "far/away.py").read_bytes() == b"away\n"
    assert git.snapshot("b").tree == snapshot.tree


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_anothers_repository_is_refused(repo: Any) -> None:
    """Where git distrusts the owner of the repository its advice is handed on."""
    for path in (repo.path, repo.path / ".git"):
        os.chown(path, 12345, -1)
    with pytest.raises(SnapshotError, match=r"safe\.directory"):
        GitManager(repo.path)


def test_before_the_first_commit_there_is_no_parent(
    make_repo: Callable[..., Any], tmp_path: Path
) -> None:
    """The first snapshot of a repository without a commit has none before it, and runs."""
    repo = make_repo("new")
    repo.write("train.py", "train\n")
    git = GitManager(repo.path)
    snapshot = git.snapshot("a")
    assert snapshot.base is None
    assert repo.git("rev-list", "--count", snapshot.commit) == "1"
    assert (git.checkout(snapshot, tmp_path / "made") / "train.py").exists()


def test_who_submits_needs_no_configuration(
    repo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a name in git's config, or of the user at all, there is a commit still."""
    repo.write("train.py", "changed\n")
    monkeypatch.setenv("LOGNAME", "some <one>\n")
    commit = GitManager(repo.path).snapshot("a").commit
    assert repo.git("log", "-1", "--format=%an", commit) == "someone (mtf-slurm)"
    assert repo.git("log", "-1", "--format=%s", commit) == "Snapshot for a"

    def unknown() -> str:
        raise KeyError

    monkeypatch.setattr(getpass, "getuser", unknown)
    commit = GitManager(repo.path).snapshot(["b", "c", "d"]).commit
    assert repo.git("log", "-1", "--format=%an", commit) == f"{os.getuid()} (mtf-slurm)"
    assert repo.git("log", "-1", "--format=%s", commit) == "Snapshot for b and 2 more"


def test_a_batch_has_one_commit(repo: Any) -> None:
    """Many experiments share tree and commit, with a branch each, or one where so named."""
    repo.write("train.py", "changed\n")
    git = GitManager(repo.path)
    names = [f"e{i}" for i in range(20)]
    each = git.snapshot(names)
    assert list(each.branches) == names
    for name, branch in each.branches.items():
        assert branch.startswith(f"slurm-job/{name}/")
    assert set(heads(repo).values()) == {each.commit, repo.git("rev-parse", "main")}
    one = git.snapshot(names, batch="search")
    assert list(one.branches) == names
    assert len(set(one.branches.values())) == 1
    assert len(heads(repo)) == 1 + 20 + 1
    assert [branch.experiment_name for branch in git.branches()][-1] == "search"


@pytest.mark.parametrize(
    ("names", "batch"), [([], None), ("../x", None), (["a", "a"], None), (["a"], "-x")]
)
def test_bad_names_freeze_nothing(repo: Any, names: Any, batch: str | None) -> None:
    """A name that cannot have a branch is refused before anything is written."""
    before = repo.fingerprint()
    with pytest.raises(ValueError, match="name"):
        GitManager(repo.path).snapshot(names, batch=batch)
    assert repo.fingerprint() == before
    assert list(heads(repo)) == ["main"]


def test_code_edited_after_submission_does_not_run(repo: Any, tmp_path: Path) -> None:
    """A job that imports only after the code was edited, removed or committed runs the old."""
    repo.write("late.py", "VALUE = 'old'\n")
    repo.write(
        "train.py",
        "import sys\nprint('ready', flush=True)\nsys.stdin.readline()\n"
        "import late\nprint(late.VALUE)\n",
    )
    git = GitManager(repo.path)
    snapshot = git.snapshot("a")
    repo.write("late.py", "VALUE = 'edited before the job began'\n")
    made = git.checkout(snapshot, tmp_path / "made")
    job = subprocess.Popen(
        [sys.executable, "train.py"],
        cwd=made,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    assert job.stdout is not None
    assert job.stdout.readline() == "ready\n"
    repo.write("late.py", "VALUE = 'edited while it ran'\n")
    repo.commit()
    repo.git("checkout", "-q", "--orphan", "other")
    repo.git("rm", "-rfq", ".")
    out, _ = job.communicate("go\n", timeout=DEADLINE_S)
    assert (out, job.returncode) == ("old\n", 0)


def test_a_checkout_that_differs_is_an_error(repo: Any, tmp_path: Path) -> None:
    """What was edited in the checkout is not passed off as the snapshot."""
    git = GitManager(repo.path)
    snapshot = git.snapshot("a")
    made = git.checkout(snapshot, tmp_path / "made")
    (made / "train.py").write_text("edited", encoding="utf-8")
    with pytest.raises(SnapshotError, match=r"1 changed: 'train\.py'"):
        git.checkout(snapshot, tmp_path / "made")
    git.checkout(snapshot, tmp_path / "made", replace=True)


def test_the_jobs_command_is_given(repo: Any, tmp_path: Path) -> None:
    """The script with the snapshot's arguments makes the checkout, with nothing else there."""
    snapshot = GitManager(repo.path).snapshot("a")
    argv = [sys.executable, "-I", str(CHECKOUT_SCRIPT), "make", *snapshot.arguments()]
    argv += ["--folder", str(tmp_path / "made")]
    subprocess.run(argv, check=True, timeout=DEADLINE_S, env={"PATH": os.environ["PATH"]})
    assert (tmp_path / "made/train.py").exists()


def test_what_was_submitted_is_recorded(repo: Any, tmp_path: Path) -> None:
    """Commit, tree, dirty files and command lie in the folder, and on what submits runs."""
    repo.write("train.py", "changed\n")
    git = GitManager(repo.path)
    snapshot = git.snapshot("a")
    git.record(snapshot, {"a": tmp_path / "a"}, commands={"a": ["python", "train.py"]})
    code = json.loads((tmp_path / "a/code.json").read_bytes())
    assert code["commit"] == snapshot.commit
    assert code["tree"] == snapshot.tree
    assert code["dirty"] == ["M train.py"]
    assert f"pytest=={pytest.__version__}" in code["submitted_from"]["packages"]
    submission = json.loads((tmp_path / "a/submission.json").read_bytes())
    assert submission["command"] == ["python", "train.py"]
    assert submission["branch"] == snapshot.branches["a"]


@pytest.mark.slow
def test_fifty_submitters_at_once(repo: Any) -> None:
    """Of fifty processes that submit at one moment each gets the one right branch."""
    repo.write("train.py", "changed\n")
    repo.write("new.py", "new\n")
    tree = GitManager(repo.path).snapshot("first").tree
    before = repo.fingerprint()
    code = (
        "import sys\n"
        "from mtf_slurm.git import GitManager\n"
        f"git = GitManager({str(repo.path)!r})\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "print(git.snapshot(sys.argv[1]).branches[sys.argv[1]])\n"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, f"e{i // 2}"],  # two of each name
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        for i in range(50)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    made = [process.communicate(timeout=DEADLINE_S)[0].strip() for process in started]
    assert len(set(made)) == 50
    found = heads(repo)
    for i, branch in enumerate(made):
        match = BRANCH.fullmatch(branch)
        assert match is not None
        assert match[1] == f"e{i // 2}"
        assert found[branch].startswith(match[2])
    assert {repo.git("rev-parse", f"{branch}^{{tree}}") for branch in made} == {tree}
    assert repo.fingerprint() == before
    assert repo.git("fsck", "--full") == ""


@pytest.mark.slow
def test_submitting_while_others_commit_and_prune(repo: Any) -> None:
    """Commits, switches of branch and pruning meanwhile spoil no snapshot."""
    repo.write("pkg/one.py", "same\n")
    repo.write("pkg/two.py", "same\n")
    repo.commit()
    git = GitManager(repo.path)
    stop = threading.Event()

    def work() -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            repo.write("pkg/one.py", f"{turn}\n")
            repo.write("pkg/two.py", f"{turn}\n")
            repo.git("commit", "-qam", "turn", check=False)
            stop.wait(0.3)

    def submit(i: int) -> str | None:
        try:
            snapshot = GitManager(repo.path).snapshot(f"e{i}")
        except SnapshotError as error:
            # The user is at work all the time: said, not frozen half.
            said = re.search("another git command|files change", str(error))
            return None if said else str(error)
        git.prune(older_than=timedelta(days=1))
        return snapshot.commit

    worker = threading.Thread(target=work)
    worker.start()
    try:
        with ThreadPoolExecutor(max_workers=4) as pool:
            commits = [commit for commit in pool.map(submit, range(16)) if commit]
    finally:
        stop.set()
        worker.join(DEADLINE_S)
    assert commits
    assert len(git.branches()) == len(commits)
    # A tree that a second try replaced is left to git's own collection.
    assert repo.git("fsck", "--full", "--no-dangling") == ""


def test_snapshots_are_pushed(repo: Any, tmp_path: Path) -> None:
    """A remote gets the commit under each branch's name; a batch's one branch goes once."""
    bare = tmp_path / "remote.git"
    subprocess.run(["git", "init", "-q", "--bare", str(bare)], check=True, timeout=60)
    repo.write("train.py", "changed\n")
    git = GitManager(repo.path)
    snapshot = git.snapshot(["a", "b"], batch="search")
    git.push(snapshot, f"file://{bare}")
    there = repo.git("ls-remote", f"file://{bare}")
    assert there == f"{snapshot.commit}\trefs/heads/{snapshot.branches['a']}"


def test_a_push_goes_the_users_way(
    repo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command for ssh that the user's environment names is asked; its error names where."""
    asked = tmp_path / "asked"
    ssh = tmp_path / "ssh"
    ssh.write_text(f'#!/bin/sh\necho "$@" > {asked}; exit 1\n', encoding="utf-8")
    ssh.chmod(0o755)
    monkeypatch.setenv("GIT_SSH_COMMAND", str(ssh))
    git = GitManager(repo.path)
    with pytest.raises(
        SnapshotError, match=r"git push .*-- me@host:code\.git refs/heads"
    ):
        git.push(git.snapshot("a"), "me@host:code.git")
    assert "me@host git-receive-pack 'code.git'" in asked.read_text(encoding="utf-8")


def test_pruning_waits_for_another_that_prunes(repo: Any) -> None:
    """Two do not prune at once: the second names the first, and goes on after it."""
    git = GitManager(repo.path, lock_timeout_s=0.1)
    git.snapshot(["a", "b"])
    with (
        GitOperationLock(repo.path / ".git/mtf-slurm.lock"),
        ThreadPoolExecutor(max_workers=1) as pool,
        pytest.raises(GitLockTimeoutError, match=f"process {os.getpid()} on"),
    ):
        pool.submit(git.prune, older_than=timedelta(0)).result(DEADLINE_S)
    gone = git.prune(older_than=timedelta(0), keep=["b"])
    assert [branch.experiment_name for branch in gone] == ["a"]
    assert [branch.experiment_name for branch in git.branches()] == ["b"]


def test_outside_a_repository_is_refused(tmp_path: Path) -> None:
    """Without a repository the error names both ways out."""
    with pytest.raises(SnapshotError, match=r"in no git repository.*git init.*archive="):
        GitManager(tmp_path)


def test_outside_a_repository_the_folder_is_archived(tmp_path: Path) -> None:
    """By choice the whole folder is kept, and given to jobs and proven like any commit."""
    code = tmp_path / "code"
    (code / "experiments/a").mkdir(parents=True)
    (code / "pkg").mkdir()
    (code / "train.py").write_bytes(b"one")
    (code / "pkg/util.py").write_bytes(b"util")
    (code / ".gitignore").write_bytes(b"*.log\n")
    for noise in ("x.log", "experiments/a/config.yaml", "pkg/__pycache__/util.pyc"):
        (code / noise).parent.mkdir(exist_ok=True)
        (code / noise).write_bytes(b"noise")
    names = {path for path in code.rglob("*") if path.is_file()}
    git = GitManager(
        code, archive=code / "kept/code.git", choice=Choice(include_untracked=False)
    )
    first = git.snapshot("a")
    (code / "train.py").write_bytes(b"two")
    (code / "pkg/util.py").unlink()
    second = git.snapshot("a")
    assert (first.base, first.dirty) == (None, ())
    old = git.checkout(first, tmp_path / "old")
    assert {str(p.relative_to(old)) for p in old.rglob("*") if p.is_file()} == {
        "train.py",
        "pkg/util.py",
        ".gitignore",
    }
    assert (old / "train.py").read_bytes() == b"one"
    new = git.checkout(second, tmp_path / "new")
    assert sorted(path.name for path in new.iterdir()) == [".gitignore", "train.py"]
    assert (new / "train.py").read_bytes() == b"two"
    (new / "train.py").write_bytes(b"six")
    with pytest.raises(SnapshotError, match=r"1 changed: 'train\.py'"):
        git.checkout(second, tmp_path / "new")
    left = {p for p in code.rglob("*") if p.is_file() and "kept" not in p.parts}
    assert left == names - {code / "pkg/util.py"}
    assert git.snapshot("a").tree == second.tree
    assert len(git.branches()) == 3


def test_archives_of_the_same_bytes_are_the_same(tmp_path: Path) -> None:
    """Names, bytes and executable bits make an archive's id, and nothing else does."""
    trees: set[str] = set()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.sh").write_bytes(b"run")
        (tmp_path / name / "run.sh").chmod(0o755 if name == "one" else 0o700)
        os.utime(tmp_path / name / "run.sh", (1, len(trees)))
        git = GitManager(tmp_path / name, archive=tmp_path / f"{name}.git")
        trees.add(git.snapshot("a").tree)
    assert len(trees) == 1
    (tmp_path / "two/run.sh").chmod(0o644)
    trees.add(
        GitManager(tmp_path / "two", archive=tmp_path / "two.git").snapshot("a").tree
    )
    assert len(trees) == 2


def test_many_archive_at_once(tmp_path: Path) -> None:
    """Submitters that share an archive do not get into each other's way."""
    code = tmp_path / "code"
    code.mkdir()
    (code / "train.py").write_bytes(b"train")

    def submit(i: int) -> str:
        git = GitManager(code, archive=tmp_path / "code.git")
        return git.snapshot(f"e{i}").tree

    with ThreadPoolExecutor(max_workers=6) as pool:
        assert len(set(pool.map(submit, range(12)))) == 1
    assert len(GitManager(code, archive=tmp_path / "code.git").branches()) == 12
