"""Files of attempts: what was written is read, whole lines alone."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from mtf_gridsearch.local import _files


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Return where the file of an attempt may be."""
    return str(tmp_path / "a.1.job")


def test_lines_are_read_back(path: str) -> None:
    """Each word has its fields, in text, whatever they hold."""
    _files.create_file(path, "submitted", {"boot": "b", "at": 3})
    _files.append_line(path, "ended", {"reason": "a=b\tc\nd ü \x1b[0m", "wall_s": 0.5})
    assert _files.parse_lines(Path(path).read_bytes()) == {
        "submitted": {"boot": "b", "at": "3"},
        "ended": {"reason": "a=b c d ü  [0m", "wall_s": "0.5"},
    }


def test_room_is_taken_at_once(path: str) -> None:
    """Lines that follow go where the file has its bytes already."""
    _files.create_file(path, "submitted", {})
    size_bytes = Path(path).stat().st_size
    _files.append_line(path, "ended", {"reason": "x" * 600})
    assert Path(path).stat().st_size == size_bytes == 4096


def test_more_than_there_is_room_for(path: str) -> None:
    """A line that does not fit makes the file longer, and is read."""
    _files.create_file(path, "submitted", {})
    _files.append_line(path, "ended", {"reason": "x" * 5000})
    lines = _files.parse_lines(Path(path).read_bytes())
    assert lines["ended"]["reason"] == "x" * 5000


def test_a_torn_line_counts_for_nobody(path: str) -> None:
    """What a kill tore off is not read, and the next line takes its place."""
    _files.create_file(path, "submitted", {})
    data = Path(path).read_bytes().rstrip(b" ")
    Path(path).write_bytes(data + b"ended\tstatus=succeeded\treason=very long")
    assert list(_files.parse_lines(Path(path).read_bytes())) == ["submitted"]
    _files.append_line(path, "running", {"pid": 3})
    lines = _files.parse_lines(Path(path).read_bytes())
    assert lines == {"submitted": {}, "running": {"pid": "3"}}


def test_a_file_that_is_there_is_not_made_again(path: str) -> None:
    """Two submitters cannot take the same number."""
    _files.create_file(path, "submitted", {"at": 1})
    with pytest.raises(FileExistsError):
        _files.create_file(path, "submitted", {"at": 2})
    assert _files.parse_lines(Path(path).read_bytes()) == {"submitted": {"at": "1"}}


def test_no_room(path: str) -> None:
    """A file that cannot have its length is taken back, a line is refused."""
    _files.create_file(path, "submitted", {})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match="is the disk full"):
            _files.append_line(path, "ended", {"reason": "x" * 5000})
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        with pytest.raises(OSError, match="is the disk full"):
            _files.create_file(path + "2", "submitted", {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not Path(path + "2").exists()


def test_one_holds_a_lock(tmp_path: Path) -> None:
    """A lock is had once, until it is closed; its file stays."""
    path = str(tmp_path / "lock")
    fd = _files.try_lock(path)
    assert fd is not None
    assert _files.try_lock(path) is None
    os.close(fd)
    fd = _files.try_lock(path)
    assert fd is not None
    os.close(fd)


def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock that cannot be had is no lock that others hold."""

    def flock(fd: int, operation: int) -> None:
        raise OSError(95, "Operation not supported", fd, operation)

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(OSError, match="not supported"):
        _files.try_lock(str(tmp_path / "lock"))


def test_tail(tmp_path: Path) -> None:
    """Of a long file, its last bytes; of a short one, all."""
    path = tmp_path / "err"
    path.write_bytes(b"x" * 9000 + b"end")
    assert _files.tail(str(path)) == b"x" * 4093 + b"end"
    path.write_bytes(b"end")
    assert _files.tail(str(path)) == b"end"
