from __future__ import annotations

import os
import sys
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from mtf_slurm.errors import SnapshotError
from mtf_slurm.git import _filters, _plumbing
from mtf_slurm.git._exact import write
from mtf_slurm.git.checkout import by_attributes


def check(repo: Any, tmp_path: Path) -> None:
    """Check what is staged and lies there."""
    found = _plumbing.find(repo.path)
    assert found is not None
    index = tmp_path / "index"
    repo.git("read-tree", f"--index-output={index}", repo.git("write-tree"))
    _, stored = write(found, index)

    def git(*args: str | bytes, stdin: bytes) -> bytes:
        return found.git(*args, index=index, stdin=stdin)

    asked = ("filter", "working-tree-encoding")
    filters, encoded = by_attributes(git, stored, *asked)
    [on_disk] = by_attributes(git, stored, "filter", where=())
    made = {
        path: (stored[path].split()[2], (repo.path / os.fsdecode(path)).stat().st_size)
        for path in filters
    }
    _filters.check(found, index, filters, on_disk, made, encoded=encoded)


@pytest.fixture
def swap(repo: Any) -> Any:
    """A repository with a filter that makes large letters of small ones, and back."""
    repo.git("config", "filter.swap.clean", "tr a-z A-Z")
    repo.git("config", "filter.swap.smudge", "tr A-Z a-z")
    repo.write(".gitattributes", "f/** filter=swap\n")
    return repo


@pytest.mark.parametrize("num_bytes", [1, 7, 1 << 20])
def test_what_filters_make_is_compared(
    swap: Any, tmp_path: Path, num_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of files of each name and size those are refused that differ, however git's output comes."""
    monkeypatch.setattr(_filters, "_CHUNK_BYTES", num_bytes)
    monkeypatch.setattr(_filters, "_NUM_SHOWN", 99)
    names = [" a", "\tb", "c\nd", "e\r", '"f', "g h", "i ", "-j", "\udcff", *"klm"]
    for name in names:
        data = {"k": "", "l": "no newline", "m": "\n"}.get(name, "text\n" * 20)
        swap.write(f"f/{name}", data)
    swap.git("add", "--all")
    check(swap, tmp_path)
    before = {name: (swap.path / "f" / name).read_bytes() for name in names}
    for change in (bytes.upper, lambda data: data + b"x", lambda data: data[:-1]):
        changed = {name for name in names if change(before[name]) != before[name]}
        for name in changed:
            swap.write(f"f/{name}", change(before[name]))
        with pytest.raises(SnapshotError, match="is not what lies there") as caught:
            check(swap, tmp_path)
        listed = ", ".join(repr(f"f/{name}") for name in sorted(changed, key=os.fsencode))
        assert f"would make of {listed} is not" in str(caught.value)
        for name in changed:
            swap.write(f"f/{name}", before[name])
    check(swap, tmp_path)


SERVER = """\
import sys
read, out = sys.stdin.buffer.read, sys.stdout.buffer

def pieces():
    while size := int(read(4) or sys.exit(), 16):
        yield read(size - 4)

def say(*lines):
    for line in lines:
        out.write(b"%04x" % (len(line) + 4) + line)
    out.write(b"0000")
    out.flush()

list(pieces()), say(b"git-filter-server\\n", b"version=2\\n")
list(pieces()), say(b"capability=clean\\n", b"capability=smudge\\n")
while command := list(pieces()):
    data = b"".join(pieces())
    say(b"status=success\\n")
    say(data.upper() if command[0] == b"command=clean\\n" else data.lower())
    say()
"""


def test_a_filter_that_is_one_process_for_all(swap: Any, tmp_path: Path) -> None:
    """What it makes is compared too, file by file, as git-lfs is asked."""
    server = tmp_path / "server.py"
    server.write_text(SERVER, encoding="utf-8")
    swap.git("config", "filter.swap.process", f"{sys.executable} -I {server}")
    for number in range(1, 20):
        swap.write(f"f/{number}", f"text {number}\n" * number)
    swap.git("add", "--all")
    assert swap.git("cat-file", "blob", ":f/1") == "TEXT 1"
    check(swap, tmp_path)
    swap.write("f/7", "other\n")
    with pytest.raises(SnapshotError, match="would make of 'f/7' is not what lies there"):
        check(swap, tmp_path)


def test_nothing_is_written_for_what_filters_make(
    swap: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No room for temporary files is needed, and none is left."""
    swap.write("f/a", "a\n" * (1 << 20))
    swap.git("add", "--all")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    check(swap, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"home", "repo", "index"}


def test_a_filter_that_fails_is_told(swap: Any, tmp_path: Path) -> None:
    """The file and the fix are named, also where the filter is not marked as required."""
    swap.write("f/a", "a\n")
    swap.git("add", "--all")
    swap.git("config", "filter.swap.smudge", "false")
    with pytest.raises(
        SnapshotError, match=r"f/a: smudge filter .* failed; have filters"
    ):
        check(swap, tmp_path)


def test_other_rules_on_disk_are_refused(swap: Any, tmp_path: Path) -> None:
    """A file whose frozen rules name a filter is not taken as another rule stored it."""
    swap.write("f/a", "a\n")
    swap.git("add", "--all")
    swap.write("f/.gitattributes", "a -filter\n")
    with pytest.raises(SnapshotError, match=r"frozen rules have 'f/a' .* on disk: have"):
        check(swap, tmp_path)


@pytest.fixture
def clean(repo: Any) -> Any:
    """A repository with filters that only clean."""
    repo.git("config", "filter.strip.clean", "grep -v output || true")
    repo.git("config", "filter.strip.smudge", "cat")
    pointer = "printf 'version https://git-lfs.github.com/spec/v1\\n'"
    repo.git("config", "filter.point.clean", f"cat >/dev/null; {pointer}")
    repo.git("config", "filter.point.smudge", "")
    repo.write(".gitattributes", "*.bin filter=point\n*.x filter=strip\n")
    return repo


@pytest.mark.parametrize("smudge", ["cat", ""])
@pytest.mark.parametrize("rules", ["", "text=auto", "text eol=lf ident"])
def test_a_filter_that_only_cleans_is_taken_at_its_word(
    clean: Any, tmp_path: Path, smudge: str, rules: str
) -> None:
    """It may strip lines, also where rules of git that change nothing are in force."""
    clean.git("config", "filter.strip.smudge", smudge)
    clean.write(".gitattributes", f"*.x filter=strip {rules}\n")
    clean.write("a.x", "code\noutput $Id: x $\n")
    clean.write("all.x", "output\n")
    clean.git("add", "--all")
    check(clean, tmp_path)


def test_a_pointer_in_place_of_data_is_refused(clean: Any, tmp_path: Path) -> None:
    """A filter that only cleans and leaves a pointer took the data away."""
    clean.write("b.bin", "data")
    clean.git("add", "--all")
    with pytest.raises(SnapshotError, match=r"of 'b\.bin' is not what lies there"):
        check(clean, tmp_path)


@pytest.mark.parametrize(
    ("config", "rule", "data"),
    [
        ("true", "", b"a\r\noutput\r\n"),
        ("input", "", b"a\r\noutput\r\n"),
        ("false", "text eol=lf", b"a\r\nb\r\n"),
        ("false", "text", b"a\r\nb\n"),
        ("false", "eol=crlf", b"a\r\nb\n"),
        ("false", "eol=crlf", b"a\nb\n"),
        ("false", "ident", b"$Id: mine $\n"),
        ("false", "ident", b"$Id$\n"),
        ("false", "working-tree-encoding=UTF-16", "a\noutput\n".encode("utf-16-le")),
    ],
)
def test_what_a_filter_that_only_cleans_does_not_strip(
    clean: Any, tmp_path: Path, config: str, rule: str, data: bytes
) -> None:
    """Line ends, keywords or an encoding that rules of git change are not passed off as its."""
    clean.git("config", "core.autocrlf", config)
    clean.write(".gitattributes", f"*.x filter=strip {rule}\n")
    clean.write("a.x", data)
    clean.git("add", "--all", check=False)
    with pytest.raises(SnapshotError, match=r"of 'a\.x' is not .* `\*\.bin -filter`"):
        check(clean, tmp_path)


def test_files_that_vanish_are_not_the_same(tmp_path: Path) -> None:
    """One that is gone when it is compared is no error of its own: it has changed."""
    assert not _filters._is_same(tmp_path, b"gone", [b""])
    assert not _filters._is_stripped(tmp_path, b"gone", b"")


def test_output_that_ends_early(tmp_path: Path) -> None:
    """Files of which git said nothing are not taken for the same."""
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "out").write_bytes(b"mark\nx\n")
    with FileIO(tmp_path / "out") as output:
        assert _filters._same(output, b"\nmark\n", tmp_path, [b"a", b"b"]) == {b"a"}


def test_many_names_are_cut() -> None:
    """An error shows the first names, and how many more there are."""
    assert _filters.shown([b"a", b"\xff"]) == "'a', '\\udcff'"
    assert _filters.shown([b"a"] * 7) == "'a', 'a', 'a', 'a', 'a' and 2 more"
