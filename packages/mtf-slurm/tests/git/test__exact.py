from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from mtf_slurm.errors import SnapshotError
from mtf_slurm.git import _plumbing
from mtf_slurm.git._exact import Look, exact, write


def compared(repo: Any, tmp_path: Path, *paths: str) -> tuple[str, str | None]:
    """Freeze what is staged; return that tree, and the one that is as on disk."""
    found = _plumbing.find(repo.path)
    assert found is not None
    index = tmp_path / "index"
    repo.git("read-tree", f"--index-output={index}", repo.git("write-tree"))
    tree, stored = write(found, index)
    looks: dict[bytes, Look | None] = {b"gone": None}
    for path in paths:
        status = (repo.path / path).lstat()
        look = (status.st_ctime_ns, status.st_ino, status.st_mode, status.st_size)
        looks[os.fsencode(path)] = look
    return tree, exact(found, index, stored, looks)


def test_a_tree_that_is_as_on_disk_is_kept(repo: Any, tmp_path: Path) -> None:
    """Files, executables, links and folders that need no change make no new tree."""
    (repo.path / "train.py").chmod(0o755)
    (repo.path / "link").symlink_to("nowhere")
    repo.git("add", "--all")
    tree, new = compared(repo, tmp_path, "train.py", "pkg/util.py", "link", "pkg")
    assert new is None
    assert repo.names(tree) == {"train.py", "pkg/util.py", "link"}


def test_other_bytes_and_bits_are_those_on_disk(repo: Any, tmp_path: Path) -> None:
    """Many files with line ends or bits that git left out are all stored as they lie there."""
    repo.git("config", "core.autocrlf", "input")
    repo.git("config", "core.fileMode", "false")
    names = ["-rf", "new\nline", '"quoted', *(f"f{i}" for i in range(300))]
    for name in names:
        repo.write(name, f"{name}\r\n").chmod(0o755)
    repo.git("add", "--all")
    tree, new = compared(repo, tmp_path, *names)
    assert repo.git("cat-file", "-s", f"{tree}:f7") == "3"
    assert new is not None
    lines = repo.git("ls-tree", "-z", new).split("\0")
    kept = {line.partition("\t")[2]: line.split()[:3] for line in lines if line}
    for name in names:
        data = repo.git("hash-object", "--no-filters", "--", name)
        assert kept[name] == ["100755", "blob", data]


def test_what_a_filter_makes_is_kept(repo: Any, tmp_path: Path) -> None:
    """A file of a filter keeps the filter's bytes, and gets its bit."""
    repo.git("config", "filter.long.clean", "cat; echo more")
    repo.git("config", "filter.long.smudge", "head -n 1")
    repo.git("config", "core.fileMode", "false")
    repo.write(".gitattributes", "*.x filter=long\n")
    repo.write("a.x", "a\n").chmod(0o755)
    repo.git("add", "--all")
    tree, new = compared(repo, tmp_path, "a.x")
    assert new is not None
    assert repo.show(new, "a.x") == repo.show(tree, "a.x") == "a\nmore"
    assert repo.git("ls-tree", new, "a.x").startswith("100755 ")


def test_encodings_that_keep_the_size(repo: Any, tmp_path: Path) -> None:
    """What lies there is stored, also where git made as many other bytes of it."""
    data = "\u00e9\u00e9".encode("utf-16-le")
    repo.write(".gitattributes", "*.x working-tree-encoding=UTF-16LE\n")
    repo.write("a.x", data)
    repo.write("b.x", "ab".encode("utf-16-le"))
    repo.git("add", "--all")
    tree, new = compared(repo, tmp_path, "a.x", "b.x")
    assert repo.git("cat-file", "-s", f"{tree}:a.x") == str(len(data))
    assert new is not None
    for name in ("a.x", "b.x"):
        raw = repo.git("hash-object", "--no-filters", "--", name)
        assert repo.git("rev-parse", f"{tree}:{name}") != raw
        assert repo.git("rev-parse", f"{new}:{name}") == raw


@pytest.mark.parametrize(
    ("target", "fix"),
    [
        ("{top}/pkg/util.py", "ln -sfn util.py 'pkg/a link'"),
        ("{top}/pkg/", "ln -sfn . 'pkg/a link'"),
        ("{top}/../other/train.py", "ln -sfn ../train.py 'pkg/a link'"),
        ("{top}/relative", "ln -sfn ../relative 'pkg/a link'"),
        ("{top}", "ln -sfn .. 'pkg/a link'"),
    ],
)
def test_links_to_what_is_frozen(
    repo: Any, tmp_path: Path, target: str, fix: str
) -> None:
    """One by an absolute path, however it is named, is refused with the command that mends it."""
    (tmp_path / "other").symlink_to(repo.path)
    (repo.path / "relative").symlink_to("/usr")
    (repo.path / "pkg" / "a link").symlink_to(target.format(top=repo.path))
    repo.git("add", "--all")
    with pytest.raises(
        SnapshotError, match=re.escape(f"relative, `{fix}` in {repo.path}")
    ):
        compared(repo, tmp_path, "pkg/a link")


def test_links_to_what_is_not_frozen(repo: Any, tmp_path: Path) -> None:
    """One to data that git ignores, or to what is elsewhere, is a way there for a job, too."""
    repo.write(".gitignore", "data\n")
    repo.write("data/a")
    for name, target in (("a", repo.path / "data"), ("b", "/usr"), ("c", "train.py")):
        (repo.path / name).symlink_to(target)
    repo.git("add", "--all")
    assert compared(repo, tmp_path, *"abc")[1] is None


@pytest.mark.parametrize("kind", ["file", "link"])
def test_files_that_are_not_in_the_tree_are_named(
    repo: Any, tmp_path: Path, kind: str
) -> None:
    """A file or link that git left out, or has for a repository, is an error by name."""
    for name in ("a.log", "lib"):
        if kind == "file":
            repo.write(name, "x")
        else:
            (repo.path / name).symlink_to("x")
    repo.git("rm", "-rfq", "--cached", ".")
    repo.git("update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},lib")
    with pytest.raises(SnapshotError, match=r"git cannot take 'a\.log', 'lib': rename"):
        compared(repo, tmp_path, "a.log", "lib")


def test_links_of_a_system_without_them_are_kept(repo: Any, tmp_path: Path) -> None:
    """Where git has a file for a link on disk, the tree has the link still."""
    repo.git("config", "core.symlinks", "false")
    blob = repo.git("hash-object", "-w", "--stdin", stdin="train.py")
    repo.git("update-index", "--add", "--cacheinfo", f"120000,{blob},link")
    repo.write("link", "train.py")
    assert compared(repo, tmp_path, "link")[1] is None


def test_rules_that_are_not_on_disk_count(repo: Any, tmp_path: Path) -> None:
    """A missing filter is found where only a sparse tree's rules name it."""
    repo.write("far/.gitattributes", "*.bin filter=lfs\n")
    repo.write("far/a.bin", "pointer\n")
    repo.commit()
    repo.git("sparse-checkout", "set", "--cone", "pkg")
    with pytest.raises(SnapshotError, match=r"'far/a\.bin' .* filter 'lfs'"):
        compared(repo, tmp_path)


@pytest.mark.parametrize("rule", ["filter=same", "working-tree-encoding=UTF-16LE"])
def test_rules_that_are_on_disk_alone(repo: Any, tmp_path: Path, rule: str) -> None:
    """What a filter or encoding made of a file is not frozen where a job has not its rule."""
    repo.git("config", "filter.same.clean", "tr a b")
    repo.git("config", "filter.same.smudge", "tr b a")
    repo.write(".git/info/exclude", ".gitattributes\n")
    repo.write(".gitattributes", f"*.x {rule}\n")
    repo.write("a.x", "\u00e9\u00e9".encode("utf-16-le") if "U" in rule else "aaaa")
    repo.git("add", "--all")
    tree, new = compared(repo, tmp_path, "a.x")
    assert repo.git("cat-file", "-s", f"{tree}:a.x") == "4"  # so its size tells nothing
    assert new is not None
    raw = repo.git("hash-object", "--no-filters", "--", "a.x")
    assert repo.git("rev-parse", f"{tree}:a.x") != raw
    assert repo.git("rev-parse", f"{new}:a.x") == raw
