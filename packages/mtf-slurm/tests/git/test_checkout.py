from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mtf_slurm.git import checkout
from mtf_slurm.git.checkout import CheckoutError, make, prove, remove

SCRIPT = Path(checkout.__file__)


@pytest.fixture
def full(repo: Any) -> Any:
    """A repository with every kind of file."""
    repo.write("run.sh", "#!/bin/sh\n").chmod(0o755)
    repo.write("a/b/c/deep.py", "deep\n")
    repo.write("a.b", "sorts between a and a/\n")
    repo.write("a-b", "so does this\n")
    repo.write("empty")
    (repo.path / "link").symlink_to("a/b")
    (repo.path / "dangling").symlink_to("/nowhere")
    repo.commit()
    return repo


def head(repo: Any) -> str:
    """Return the user's commit."""
    commit: str = repo.git("rev-parse", "HEAD")
    return commit


def test_the_checkout_is_the_commit(full: Any, tmp_path: Path) -> None:
    """Files, executable bits and links are those of the commit; git's own diff agrees."""
    made = make(full.path, head(full), tmp_path / "jobs/made")
    assert made == tmp_path / "jobs/made"
    args = ("--git-dir", str(full.path / ".git"), "--work-tree", str(made))
    assert full.git(*args, "status", "--porcelain", "--untracked-files=all") == ""
    assert (made / "link").readlink() == Path("a/b")
    assert os.access(made / "run.sh", os.X_OK)
    assert not (made / ".git").exists()
    assert prove(full.path, head(full), made) == made


def test_the_repository_is_only_read(full: Any, tmp_path: Path) -> None:
    """No worktree, ref, index or hook of the repository is made, changed or run."""
    hook = full.write(".git/hooks/post-checkout", "#!/bin/sh\ntouch hook-ran\n")
    hook.chmod(0o755)
    shutil.copy(hook, full.path / ".git/hooks/post-index-change")
    before = full.fingerprint()
    made = make(full.path, head(full), tmp_path / "made")
    prove(full.path, head(full), made)
    assert full.fingerprint() == before
    assert not (made / "hook-ran").exists()


@pytest.mark.parametrize(
    ("meddle", "said"),
    [
        (lambda made: (made / "train.py").write_bytes(b"other"), "1 changed: 'train.py'"),
        (lambda made: (made / "train.py").unlink(), "1 missing: 'train.py'"),
        (lambda made: (made / "torch.py").write_bytes(b"x"), "1 extra: 'torch.py'"),
        (lambda made: (made / "run.sh").chmod(0o644), "1 changed: 'run.sh'"),
        (lambda made: (made / "empty").chmod(0o755), "1 changed: 'empty'"),
        (lambda made: shutil.rmtree(made / "a"), "1 missing: 'a/b/c/deep.py'"),
    ],
)
def test_any_difference_is_found(
    full: Any, tmp_path: Path, meddle: Callable[[Path], object], said: str
) -> None:
    """A changed, missing or extra file, or executable bit, is named, and nothing is used."""
    made = make(full.path, head(full), tmp_path / "made")
    meddle(made)
    with pytest.raises(CheckoutError, match=said):
        prove(full.path, head(full), made)
    with pytest.raises(CheckoutError, match="remove it and make it anew"):
        make(full.path, head(full), made)
    assert make(full.path, head(full), made, replace=True) == made
    prove(full.path, head(full), made)


def test_a_link_is_not_what_it_leads_to(full: Any, tmp_path: Path) -> None:
    """A file replaced by a link to a file of the same bytes differs."""
    made = make(full.path, head(full), tmp_path / "made")
    (made / "train.py").rename(tmp_path / "elsewhere")
    (made / "train.py").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckoutError, match=r"changed: 'train\.py'"):
        prove(full.path, head(full), made)


@pytest.mark.parametrize("target", ["a/", "./a", "a//b", "../x/", "a/./b/", "///x"])
def test_links_are_as_they_are_written(repo: Any, tmp_path: Path, target: str) -> None:
    """A link whose target could be written shorter is the commit's, and no other is."""
    (repo.path / "link").symlink_to(target)
    repo.commit()
    made = make(repo.path, head(repo), tmp_path / "made")
    assert os.readlink(made / "link") == target  # noqa: PTH115 -- a Path is written shorter
    (made / "link").unlink()
    (made / "link").symlink_to(Path(target))
    with pytest.raises(CheckoutError, match="changed: 'link'"):
        prove(repo.path, head(repo), made)


def test_a_working_tree_that_is_configured(repo: Any, tmp_path: Path) -> None:
    """What the commit holds is listed whole, wherever the user's working tree is said to be."""
    repo.git("config", "core.worktree", str(repo.path))
    repo.git("config", "filter.swap.clean", "tr a-z A-Z")
    repo.git("config", "filter.swap.smudge", "tr A-Z a-z")
    repo.write(".gitattributes", "*.up filter=swap\n")
    repo.write("a.up", "abc\n")
    repo.commit()
    made = make(repo.path / ".git", head(repo), tmp_path / "made")
    assert (made / "a.up").read_bytes() == b"abc\n"


def test_special_files_are_refused(full: Any, tmp_path: Path) -> None:
    """A pipe in the folder is named, and not read."""
    made = make(full.path, head(full), tmp_path / "made")
    os.mkfifo(made / "pipe")
    with pytest.raises(CheckoutError, match="pipe is no file, folder or link"):
        prove(full.path, head(full), made)


def test_empty_folders_are_no_difference(full: Any, tmp_path: Path) -> None:
    """Git knows no empty folders, and so they change no tree."""
    made = make(full.path, head(full), tmp_path / "made")
    (made / "out").mkdir()
    prove(full.path, head(full), made)


def test_submodules_are_empty_folders(repo: Any, tmp_path: Path) -> None:
    """A commit's link to another repository is an empty folder; filled, it differs."""
    repo.git("update-index", "--add", "--cacheinfo", f"160000,{head(repo)},lib")
    repo.git("commit", "-q", "-m", "link")
    repo.git("config", "submodule.recurse", "true")
    made = make(repo.path, head(repo), tmp_path / "made")
    assert list((made / "lib").iterdir()) == []
    (made / "lib/in.py").write_bytes(b"in")
    with pytest.raises(CheckoutError, match=r"1 missing: 'lib'; 1 extra: 'lib/in\.py'"):
        prove(repo.path, head(repo), made)


def test_sparse_and_odd_settings_change_nothing(full: Any, tmp_path: Path) -> None:
    """A sparse checkout of the user's, or a setting for odd file systems, is not the job's."""
    full.git("sparse-checkout", "set", "--cone", "pkg")
    full.git("config", "core.symlinks", "false")
    full.git("config", "core.fileMode", "false")
    made = make(full.path, head(full), tmp_path / "made")
    assert (made / "a/b/c/deep.py").exists()
    assert (made / "link").is_symlink()


def test_a_replaced_commit_is_not_followed(repo: Any, tmp_path: Path) -> None:
    """A ref that makes git show another commit in its place is not heeded."""
    first = head(repo)
    repo.write("train.py", "other\n")
    repo.git("replace", first, repo.commit())
    made = make(repo.path, first, tmp_path / "made")
    assert (made / "train.py").read_text(encoding="utf-8") == "print('one')\n"


def test_filters_are_proven_and_rules_not_applied(repo: Any, tmp_path: Path) -> None:
    """Filters make files and are proven; what rules of line ends would make is undone."""
    repo.write(".gitattributes", "*.txt text eol=crlf\n*.up* filter=swap\n* ident\n")
    repo.git("config", "filter.swap.clean", "tr a-z A-Z")
    repo.git("config", "filter.swap.smudge", "tr A-Z a-z")
    repo.write("a.txt", "one\ntwo\n")
    repo.write('"new\nline".txt', "one\ntwo\n")
    repo.write("id.py", "# $Id$\n")
    repo.write("a.up", "text\n")
    odd = ('"new\nline".up', "return.up\r")
    for name in odd:
        repo.write(name, "text\n")
    commit = repo.commit()
    repo.git("config", "core.autocrlf", "true")
    made = make(repo.path, commit, tmp_path / "made")
    assert (made / "a.txt").read_bytes() == b"one\ntwo\n"
    assert (made / '"new\nline".txt').read_bytes() == b"one\ntwo\n"
    assert (made / "train.py").read_bytes() == b"print('one')\n"
    assert (made / "a.up").read_bytes() == b"text\n"
    assert {(made / name).read_bytes() for name in odd} == {b"text\n"}
    assert (made / "id.py").read_bytes() == b"# $Id$\n"
    prove(repo.path, commit, made)
    (made / "a.txt").write_bytes(b"one\r\ntwo\r\n")
    (made / "a.up").write_bytes(b"other\n")
    with pytest.raises(CheckoutError, match=r"2 changed: 'a\.txt', 'a\.up'"):
        prove(repo.path, commit, made)


def test_filters_without_a_way_back_are_proven(repo: Any, tmp_path: Path) -> None:
    """A file that its filter cannot make into the commit's again is what git makes of that."""
    repo.git("config", "filter.once.clean", "cat; echo cleaned")
    repo.git("config", "filter.once.smudge", "cat; echo smudged")
    repo.write("a.txt", b"one\n")
    repo.write(".gitattributes", "*.txt filter=once\n")
    made = make(repo.path, repo.commit(), tmp_path / "made")
    assert (made / "a.txt").read_bytes() == b"one\ncleaned\nsmudged\n"
    (made / "a.txt").write_bytes(b"one\nsmudged\n")
    with pytest.raises(CheckoutError, match=r"1 changed: 'a\.txt'"):
        prove(repo.path, head(repo), made)


@pytest.mark.parametrize("rule", ["", "*.bin filter=swap\n"])
def test_damaged_files_are_found(repo: Any, tmp_path: Path, rule: str) -> None:
    """A file whose stored bytes became others' is refused, by a filter or not."""
    repo.git("config", "filter.swap.smudge", "tr a-z A-Z")
    repo.write(".gitattributes", rule)
    repo.write("a.bin", "right\n")
    commit = repo.commit()
    good = make(repo.path, commit, tmp_path / "good")
    oid = repo.git("rev-parse", f"{commit}:a.bin")
    target = repo.path / ".git/objects" / oid[:2] / oid[2:]
    target.chmod(0o644)
    target.write_bytes(zlib.compress(b"blob 6\0wrong\n"))
    with pytest.raises(CheckoutError, match=rf"'a\.bin': .*{oid}, is damaged.*git fsck"):
        make(repo.path, commit, tmp_path / "made")
    (good / "a.bin").write_bytes(b"WRONG\n" if rule else b"wrong\n")
    with pytest.raises(CheckoutError, match="is damaged" if rule else "1 changed"):
        prove(repo.path, commit, good)


def test_a_filter_that_the_node_lacks_is_told(repo: Any, tmp_path: Path) -> None:
    """Where a needed filter's program is missing, the error says so and nothing is left."""
    repo.write("a.bin", "pointer\n")
    repo.write(".gitattributes", "*.bin filter=lfs\n*.txt filter\n")
    repo.write("b.txt", "no filter is named\n")
    commit = repo.commit()
    made = tmp_path / "jobs/made"
    unknown = r"'a\.bin' .*filter 'lfs', which git does not have here.*git lfs install"
    with pytest.raises(CheckoutError, match=unknown):
        make(repo.path, commit, made)
    assert list((tmp_path / "jobs").iterdir()) == []
    repo.git("config", "filter.lfs.smudge", "cat")
    make(repo.path, commit, made)
    assert (made / "a.bin").read_text(encoding="utf-8") == "pointer\n"
    repo.git("config", "--unset", "filter.lfs.smudge")
    with pytest.raises(CheckoutError, match=unknown):
        prove(repo.path, commit, made)
    remove(made)
    repo.git("config", "filter.lfs.smudge", "no-such-program-here")
    with pytest.raises(CheckoutError, match="this node lacks its program"):
        make(repo.path, commit, made)
    assert list((tmp_path / "jobs").iterdir()) == []


def test_large_files_by_pointers(repo: Any, tmp_path: Path) -> None:
    """A filter like git-lfs's, with its store in the repository, gives the job the data."""
    store = repo.path / ".git/store"
    store.mkdir()
    clean = f"f=$(mktemp); cat >$f; h=$(sha256sum <$f | cut -c1-64); mv $f {store}/$h; echo $h"
    repo.git("config", "filter.lfs.clean", clean)
    repo.git("config", "filter.lfs.smudge", f"read h; cat {store}/$h")
    repo.git("config", "filter.lfs.required", "true")
    repo.write(".gitattributes", "*.bin filter=lfs\n")
    data = bytes(range(256)) * 5000
    repo.write("a.bin", data)
    commit = repo.commit()
    assert int(repo.git("cat-file", "-s", f"{commit}:a.bin")) == 65
    made = make(repo.path, commit, tmp_path / "made")
    assert (made / "a.bin").read_bytes() == data


def test_sha256_and_the_empty_tree(make_repo: Callable[..., Any], tmp_path: Path) -> None:
    """Ids of SHA-256 are computed too, and the commit of nothing is an empty folder."""
    repo = make_repo("new", "--object-format=sha256")
    repo.commit()
    assert list(make(repo.path, head(repo), tmp_path / "empty").iterdir()) == []
    repo.write("a/b.py", "b\n")
    repo.commit()
    made = make(repo.path, head(repo), tmp_path / "made")
    assert (made / "a/b.py").exists()


def test_any_way_to_name_the_repository(repo: Any, tmp_path: Path) -> None:
    """Its folder, its .git, a linked working tree and a bare clone all do."""
    repo.git("worktree", "add", "-q", "-b", "side", str(tmp_path / "linked"))
    repo.git("clone", "-q", "--bare", ".", str(tmp_path / "bare"))
    repo.write("HEAD", "a file of that name\n")
    commit = head(repo)
    for name in ("repo", "repo/.git", "linked", "bare"):
        make(tmp_path / name, commit, tmp_path / "made" / name.replace("/", "_"))


@pytest.mark.parametrize(
    "commit", ["HEAD", "main", "abc", "0" * 39, "-" + "0" * 39, "0" * 40]
)
def test_only_a_commits_whole_id_will_do(repo: Any, tmp_path: Path, commit: str) -> None:
    """A name, which may mean another commit tomorrow, or an id of none is refused."""
    with pytest.raises(CheckoutError, match=r"not a commit's id in full|cat-file"):
        make(repo.path, commit, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_a_damaged_commit_is_found(repo: Any, tmp_path: Path) -> None:
    """A commit whose bytes are another's is refused: its id is computed here."""
    first = head(repo)
    repo.write("train.py", "evil\n")
    second = repo.commit()
    objects = repo.path / ".git/objects"
    target = objects / first[:2] / first[2:]
    target.unlink()
    shutil.copy(objects / second[:2] / second[2:], target)
    with pytest.raises(CheckoutError, match=r"is damaged: run `git fsck`|cat-file"):
        make(repo.path, first, tmp_path / "made")


def test_many_make_one_folder(full: Any, tmp_path: Path) -> None:
    """Of many that make the same folder at once all get it, whole, and nothing is left."""
    commit, target = head(full), tmp_path / "jobs/made"
    with ThreadPoolExecutor(max_workers=8) as pool:
        made = list(pool.map(lambda _: make(full.path, commit, target), range(16)))
    assert set(made) == {target}
    prove(full.path, commit, target)
    assert {path.name for path in target.parent.iterdir()} == {"made", ".made.checkout"}


def test_unwritable_place_is_an_error(full: Any, tmp_path: Path) -> None:
    """Where a file stands in the way the system's reason is told."""
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OSError, match="file"):
        make(full.path, head(full), tmp_path / "file/made")
    with pytest.raises(OSError, match="file"):
        make(full.path, head(full), tmp_path / "file")


def test_removal_by_policy(repo: Any, tmp_path: Path) -> None:
    """Kept for people after a failure, or always, if so chosen; removed else; once is enough."""
    made = make(repo.path, head(repo), tmp_path / "jobs/made")
    assert not remove(made, when="never")
    assert not remove(made, when="success", status=1)
    assert made.is_dir()
    with pytest.raises(ValueError, match="one of always, success, never"):
        remove(made, when="sometimes")
    assert remove(made, when="success", status=0)
    assert list((tmp_path / "jobs").iterdir()) == []
    assert not remove(made)
    assert remove(make(repo.path, head(repo), made))


def test_removal_of_what_was_not_made_is_refused(repo: Any, tmp_path: Path) -> None:
    """A folder of someone's own is never removed, nor those that only look alike."""
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(CheckoutError, match="was not made as a checkout and stays"):
        remove(other)
    with pytest.raises(CheckoutError, match="was not made as a checkout and stays"):
        make(repo.path, head(repo), other, replace=True)
    made = make(repo.path, head(repo), tmp_path / "a")
    for name in (".a.b.12345678.part", ".ab.12345678.part", ".a.12345678.part"):
        (tmp_path / name).mkdir()
    remove(made)
    assert {path.name for path in tmp_path.iterdir()} >= {
        ".a.b.12345678.part",
        ".ab.12345678.part",
        "other",
    }
    assert not (tmp_path / ".a.12345678.part").exists()


def test_removal_that_was_cut_short_is_finished(repo: Any, tmp_path: Path) -> None:
    """After a kill between the steps the next removal leaves nothing."""
    made = make(repo.path, head(repo), tmp_path / "jobs/made")
    made.rename(tmp_path / "jobs/.made.12345678.part")
    assert remove(made)
    assert list((tmp_path / "jobs").iterdir()) == []


def bare(*args: str, cwd: Path, path: str = os.environ["PATH"]) -> Any:
    """Run Python with next to nothing in its environment."""
    return subprocess.run(
        [sys.executable, "-I", "-S", *args],
        cwd=cwd,
        env={"PATH": path},
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=60,
    )


@pytest.mark.slow
def test_a_copy_of_the_script_needs_nothing_else(full: Any, tmp_path: Path) -> None:
    """On a bare node, alone, it makes, proves and removes, and says what is wrong."""
    alone = tmp_path / "node"
    alone.mkdir()
    script = str(shutil.copy(SCRIPT, alone / "run_me.py"))
    code = ("--folder", str(alone / "code"))
    source = ("--repository", str(full.path), "--commit", head(full))
    done = bare(script, "make", *source, *code, cwd=alone)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert bare(script, "prove", *source, *code, cwd=alone).returncode == 0
    (alone / "code/train.py").write_text("other", encoding="utf-8")
    done = bare(script, "prove", *source, *code, cwd=alone)
    assert done.returncode == 1
    assert "1 changed: 'train.py'" in done.stderr
    assert bare(script, "make", *source, *code, "--replace", cwd=alone).returncode == 0
    kept = bare(script, "remove", *code, "--when", "success", "--status", "3", cwd=alone)
    assert kept.returncode == 0
    assert (alone / "code").exists()
    assert bare(script, "remove", *code, cwd=alone).returncode == 0
    assert not (alone / "code").exists()
    done = bare(script, "remove", *code, "--when", "x", cwd=alone)
    assert (done.returncode, "one of always" in done.stderr) == (1, True)
    assert bare(script, "dance", cwd=alone).returncode == 2


def test_commands_in_this_process(
    full: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command line does the same where it is called as a function."""
    code = ["--folder", str(tmp_path / "code")]
    source = ["--repository", str(full.path), "--commit", head(full)]
    assert checkout.main(["make", *source, *code]) == 0
    assert checkout.main(["prove", *source, *code]) == 0
    assert checkout.main(["remove", *code]) == 0
    assert checkout.main(["prove", *source, *code]) == 1
    assert capsys.readouterr().err.startswith("checkout.py: ")


def test_a_node_without_git_is_told_so(
    full: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without git, or without the repository, the error says which is missing."""
    commit = head(full)
    with pytest.raises(CheckoutError, match="there is no folder"):
        make(tmp_path / "gone", commit, tmp_path / "made")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CheckoutError, match="there is no git on PATH"):
        make(full.path, commit, tmp_path / "made")


def test_git_that_takes_too_long_is_ended(full: Any) -> None:
    """A command that does not end is killed at its time-out, and the error says so."""
    with pytest.raises(CheckoutError, match=r"took longer than 0\.2 s"):
        checkout.run_git(
            *("-c", "alias.wait=!exec sleep 60", "wait"),
            cwd=full.path,
            environ=checkout.git_environ(),
            timeout_s=0.2,
        )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:hunter2@h/x.git: refused", "https://***@h/x.git: refused"),
        ("https://u:hunt/er2@h/x", "https://***@h/x"),
        ("https://u:hunt@er2@h/x", "https://***@h/x"),
        ("https://u:hunt?er#2@h/x", "https://***@h/x"),
        ("'https://h/x.git?token=hunter2' is gone", "'https://h/x.git?*** is gone"),
        ("git+https://h/x#hunter2", "git+https://h/x?***"),
        ("https://hunter2@h/a https://h/b", "https://***@h/a https://h/b"),
        ("https://h/a?x=https://u:hunter2@g", "https://h/a?***"),
        ("file:///a@b and me@h:c.git, why?", "file:///a@b and me@h:c.git, why?"),
        ("https://h:443/@scope/x", "https://***@scope/x"),
        ("https://h/@scope/x", "https://h/@scope/x"),
    ],
)
def test_secrets_in_addresses(text: str, shown: str) -> None:
    """Whatever of an address may be a secret is not shown; the rest of the text is."""
    assert checkout.without_secrets(text) == shown


def test_errors_hold_no_credentials(full: Any) -> None:
    """What git says of an address is shown without the name and password in it."""
    address = "https://user:hunter2@127.0.0.1:1/x.git"
    with pytest.raises(CheckoutError) as raised:
        checkout.run_git(
            *("ls-remote", "--heads", "--quiet", "--exit-code", "--", address),
            *("x" * 100 for _ in range(10)),
            cwd=full.path,
            environ=checkout.git_environ(),
        )
    assert "hunter2" not in str(raised.value)
    assert "-- https://***@127.0.0.1:1/x.git xxx" in str(raised.value)
    assert "x" * 100 + " ..." not in str(raised.value)


def test_variables_of_access_reach_git(monkeypatch: pytest.MonkeyPatch) -> None:
    """How the user gets at repositories is kept, and what leads git elsewhere is not."""
    kept = {
        *("GIT_SSH", "GIT_SSH_COMMAND", "GIT_ASKPASS", "SSH_AUTH_SOCK", "SSH_ASKPASS"),
        *("GIT_SSL_CAINFO", "GIT_CONFIG_GLOBAL", "GIT_CONFIG_KEY_0", "GIT_EXEC_PATH"),
    }
    dropped = {
        *("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE", "GIT_OBJECT_DIRECTORY"),
        *("GIT_COMMON_DIR", "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_NAMESPACE"),
        *("GIT_LFS_SKIP_SMUDGE", "GIT_CONFIG_KEY_X", "GIT_SSHX", "GIT_CONFIG"),
    }
    for name in kept | dropped:
        monkeypatch.setenv(name, "x")
    found = checkout.git_environ()
    assert {name for name in found if found[name] == "x"} >= kept
    assert not dropped & found.keys()
    assert found["GIT_TERMINAL_PROMPT"] == "0"
