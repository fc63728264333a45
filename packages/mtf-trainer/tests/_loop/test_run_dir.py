from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mtf_trainer._loop.run_dir import RunDir
from mtf_trainer.errors import CheckpointWriteError

HOLD = """
import sys
from pathlib import Path
from mtf_trainer._loop.run_dir import RunDir
with RunDir(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""

FORK = """
import os, signal, sys
from pathlib import Path
from mtf_trainer._loop.run_dir import RunDir
with RunDir(Path(sys.argv[1])):
    began, begins = os.pipe()
    if os.fork() == 0:
        os.fork()
        os.write(begins, b"x")
        os.read(int(sys.argv[2]), 1)
        os._exit(0)
    for _ in range(2):
        os.read(began, 1)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_id_is_made_once(tmp_path: Path) -> None:
    """A new folder gets an id, which the next opening finds; another folder has another."""
    with RunDir(tmp_path / "a" / "b") as first:
        pass
    with RunDir(tmp_path / "a" / "b") as again:
        pass
    with RunDir(tmp_path / "c") as other:
        pass

    assert first.run_id == again.run_id != other.run_id
    text = (tmp_path / "c" / "run.json").read_text("utf-8")
    assert json.loads(text) == {"run_id": other.run_id}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"run_id": "../x"}', '{"run_id": 3}'])
def test_what_is_no_id_is_replaced(tmp_path: Path, text: str) -> None:
    """A file that holds something else gets an id of the right form."""
    (tmp_path / "run.json").write_text(text, "utf-8")

    with RunDir(tmp_path) as opened:
        assert len(opened.run_id) == 32
    with RunDir(tmp_path) as again:
        assert again.run_id == opened.run_id


def test_second_process_is_refused(tmp_path: Path) -> None:
    """While a process trains in a folder another is told so; when it is gone, it may."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(CheckpointWriteError, match="another process trains in this"),
            RunDir(tmp_path),
        ):
            pass
        holder.kill()
    with RunDir(tmp_path) as opened:
        assert opened.run_id


def test_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    """What a killed trainer forked, and what that forked, lets the next one start."""
    read_end, write_end = os.pipe()
    holder = subprocess.run(
        [sys.executable, "-c", FORK, str(tmp_path), str(read_end)],
        check=False,
        pass_fds=[read_end],
        stdout=subprocess.DEVNULL,
    )
    try:
        assert holder.returncode == -signal.SIGKILL
        with RunDir(tmp_path) as opened:
            assert opened.run_id
    finally:
        os.close(write_end)
        os.close(read_end)


def test_copy_of_the_folder_leaves_it_locked(tmp_path: Path) -> None:
    """Reading all files of a folder that is trained in lets no other process in."""
    with RunDir(tmp_path / "run"):
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        second = subprocess.run(
            [sys.executable, "-c", HOLD, str(tmp_path / "run")],
            check=False,
            capture_output=True,
            encoding="utf-8",
        )
    assert second.returncode == 1
    assert "another process trains in this folder" in second.stderr
    with RunDir(tmp_path / "copy"):
        pass


def test_second_trainer_of_the_process_is_refused(tmp_path: Path) -> None:
    """The folder is one trainer's in this process too, by whatever name it is called."""
    (tmp_path / "link").symlink_to("run")
    told = "another trainer of this process trains in this folder"
    with RunDir(tmp_path / "run") as first:
        with pytest.raises(CheckpointWriteError, match=told), RunDir(tmp_path / "link"):
            pass
        first.check()
    with RunDir(tmp_path / "link") as second:
        second.check()


@pytest.mark.parametrize("how", ["folder", "lock", "replaced"])
def test_lost_folder_is_noticed(tmp_path: Path, how: str) -> None:
    """A folder, or a lock, that was deleted or replaced is no longer this trainer's."""
    folder = tmp_path / "run"
    with RunDir(folder) as opened:
        opened.check()
        if how == "lock":
            (folder / ".lock").unlink()
        else:
            shutil.rmtree(folder)
        if how == "replaced":
            folder.mkdir()
            (folder / ".lock").touch()
        with pytest.raises(
            CheckpointWriteError, match=r"\.lock: was deleted or replaced"
        ):
            opened.check()


def test_folder_that_cannot_be_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that fails is told as such."""

    def fail(_: int) -> None:
        raise OSError(5, os.strerror(5))

    with RunDir(tmp_path) as opened, monkeypatch.context() as patch:
        patch.setattr(os, "fstat", fail)
        with pytest.raises(CheckpointWriteError, match="cannot be found: Input/output"):
            opened.check()


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """A file in the folder's place is an error with its name."""
    (tmp_path / "file").touch()

    with (
        pytest.raises(CheckpointWriteError, match=r"file/x/run\.json: cannot be used"),
        RunDir(tmp_path / "file" / "x"),
    ):
        pass
