from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtf_config import ConfigFileError, _files

Write = Callable[[str, str | bytes], Path]
Refusal = Callable[..., str]
BASE = "experiment_name: a\nmodel: {type: m}\ndata: {dataset_name: d}\n"


def test_read_gives_values_and_places(write: Write) -> None:
    """A mapping comes back with the place of each value under the name given."""
    values, origins = _files.read(write("a.yaml", "a: 1\n"), "shown.yaml", ("s",))
    assert values == {"a": 1}
    assert str(origins["s", "a"]) == "shown.yaml:1:4"


def test_rewritten_file_is_read_anew(write: Write) -> None:
    """What is remembered of a file never outlives its content."""
    for number in range(3):
        assert _files.read(write("a.yaml", f"a: {number}\n"), "a")[0] == {"a": number}


@pytest.mark.parametrize("text", ["- 1\n", "text\n", "---\n", "3"])
def test_document_that_is_no_mapping(write: Write, refusal: Refusal, text: str) -> None:
    """A list, text or nothing at all where keys belong is refused at its place."""
    write("a.yaml", text)
    assert "the document is not a mapping: write `key: value` lines" in refusal("a.yaml")


def test_missing_file_names_the_nearest(write: Write, refusal: Refusal) -> None:
    """A mistyped name is answered with the file that is there, as the user would name it."""
    write("sub/simple.yaml", BASE)
    assert refusal("sub/simpel.yaml") == (
        "sub/simpel.yaml: no such file; did you mean sub/simple.yaml?"
    )


def test_missing_file_and_folder(tmp_path: Path, refusal: Refusal) -> None:
    """Where nothing is near, the folder that was searched is named, or that it lacks."""
    assert refusal("x.yaml") == f"x.yaml: no such file in {tmp_path}"
    assert refusal("no/x.yaml") == (
        f"no/x.yaml: no such file: there is no folder {tmp_path / 'no'}"
    )


@pytest.mark.parametrize("name", ["", ".", "sub", "sub/"])
def test_folder_is_no_file(write: Write, refusal: Refusal, name: str) -> None:
    """A folder is refused with what to name instead, and nothing is left open."""
    write("sub/a.yaml", BASE)
    assert refusal(name).endswith("is a folder; name the YAML file in it")


def test_named_pipe_is_refused_at_once(tmp_path: Path, refusal: Refusal) -> None:
    """A pipe nobody writes to is refused instead of waited for."""
    os.mkfifo(tmp_path / "pipe.yaml")
    assert refusal("pipe.yaml") == "pipe.yaml: is a pipe or a device, not a file"


def test_device_is_refused(refusal: Refusal) -> None:
    """An endless device is refused unread."""
    assert "is a pipe or a device" in refusal("/dev/zero")


@pytest.mark.parametrize("name", ["a\0b.yaml", "x" * 300, "x" * 300 + "/a.yaml"])
def test_impossible_names(refusal: Refusal, name: str) -> None:
    """A name that no file can have is an error of ours."""
    assert "cannot be read" in refusal(name)


def test_circle_of_links(tmp_path: Path, refusal: Refusal) -> None:
    """A link to itself is an error of ours."""
    Path(tmp_path, "loop.yaml").symlink_to("loop.yaml")
    assert refusal("loop.yaml").startswith("loop.yaml: cannot be read: Too many levels")


def test_file_below_a_file(write: Write, refusal: Refusal) -> None:
    """A path through a file is an error of ours."""
    write("a.yaml", BASE)
    assert refusal("a.yaml/b.yaml").startswith("a.yaml/b.yaml: cannot be read: Not a")


def test_name_that_is_not_utf_8(refusal: Refusal) -> None:
    """The message about a file name in another encoding can be printed."""
    message = refusal(os.fsdecode(b"\xff.yaml"))
    message.encode()
    assert message.startswith("\\udcff.yaml: no such file")


def test_100_mb_file_is_refused_unread(tmp_path: Path, refusal: Refusal) -> None:
    """A file of 100 MB is refused by its size."""
    with Path(tmp_path, "big.yaml").open("wb") as file:
        file.truncate(100 << 20)
    assert refusal("big.yaml") == (
        "big.yaml: 104857600 bytes, more than 1048576: this is no config"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_file_whose_size_is_not_known_is_read_whole() -> None:
    """A file that says it is empty, as in /proc, is read to its end."""
    raw = _files.read_bytes(Path("/proc/self/status"), "status")
    assert b"\nThreads:" in raw


def test_file_at_the_limit_is_read(write: Write) -> None:
    """As many bytes as are allowed are read, larger than what is remembered."""
    path = write("a.yaml", b"a: 1\n" + b"#" * ((1 << 20) - 5))
    assert _files.read(path, "a")[0] == {"a": 1}


def test_write_makes_folders_and_replaces(tmp_path: Path) -> None:
    """Text is written where asked, over what was there, and nothing is left aside."""
    path = tmp_path / "new" / "a.yaml"
    _files.write_atomically(path, "old")
    _files.write_atomically(path, "ä: 1\n")
    assert path.read_bytes() == "ä: 1\n".encode()
    assert [p.name for p in path.parent.iterdir()] == ["a.yaml"]


def test_written_file_has_the_usual_mode(tmp_path: Path) -> None:
    """Others may read what is saved, as the umask says."""
    path = tmp_path / "a.yaml"
    before = os.umask(0o027)
    try:
        _files.write_atomically(path, "a: 1\n")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_name_as_long_as_allowed_can_be_written(tmp_path: Path) -> None:
    """The file written aside needs no longer name than the file itself."""
    path = tmp_path / ("x" * 250 + ".yaml")
    _files.write_atomically(path, "a: 1\n")
    assert path.is_file()


@pytest.mark.parametrize("fault", ["text", "folder", "rename"])
def test_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """A write that fails midway leaves what was there, and no litter."""
    path = tmp_path / "a.yaml"
    path.write_text("old", "utf-8")
    text = "new"
    if fault == "text":
        text = "new\ud800"
    elif fault == "folder":
        path = path / "b.yaml"
    else:

        def refuse(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises((OSError, UnicodeEncodeError)):
        _files.write_atomically(path, text)
    assert Path(tmp_path, "a.yaml").read_text("utf-8") == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.yaml"]


def test_error_is_of_our_kind(tmp_path: Path) -> None:
    """What cannot be read is a ConfigFileError, whatever the system called it."""
    with pytest.raises(ConfigFileError, match="no such file"):
        _files.read(tmp_path / "x.yaml", "x.yaml")
