from __future__ import annotations

import json
import os
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
    """A forked child, as a loader's worker is, holds nothing when its parent is gone."""
    script = HOLD.replace(
        'print("held", flush=True)\n    sys.stdin.read()',
        "import os, time\n    if os.fork() == 0:\n        os.close(0); time.sleep(60)\n"
        '    os.write(1, b"held\\n"); os._exit(0)',
    ).replace("os.close(0); time.sleep(60)", "os.read(int(sys.argv[2]), 1); os._exit(0)")
    read_end, write_end = os.pipe()
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), str(read_end)],
        check=True,
        pass_fds=[read_end],
        stdout=subprocess.DEVNULL,
    )
    with RunDir(tmp_path) as opened:
        assert opened.run_id
    os.write(write_end, b"x")
    os.close(write_end)
    os.close(read_end)


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """A file in the folder's place is an error with its name."""
    (tmp_path / "file").touch()

    with (
        pytest.raises(CheckpointWriteError, match=r"file/x/run\.json: cannot be used"),
        RunDir(tmp_path / "file" / "x"),
    ):
        pass
