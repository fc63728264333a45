from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mtf_trainer._memory.shared_memory import SnapshotArea
from mtf_trainer._saving import writer as writer_module
from mtf_trainer._saving.frames import frame, receive
from mtf_trainer._saving.writer import WriterProcess
from mtf_trainer.checkpoint import Saved
from mtf_trainer.config import CheckpointSettings
from mtf_trainer.errors import CheckpointWriteError

RUN_ID = "0123456789abcdef" * 2
DEADLINE_S = 60

# Does what the content says, so that a test decides when, and whether, a save ends.
STAND_IN = """
import os, sys, warnings
from dataclasses import dataclass
from pathlib import Path

from mtf_trainer.errors import CheckpointWriteError


@dataclass
class Saved:
    path: Path
    digest: str
    seconds: float
    backup_problem: str | None = None
    warnings: tuple[str, ...] = ()


class Saver:
    def __init__(self, folder, settings, *, parent):
        self.folder, self.settings, self.parent = folder, settings, parent

    def save(self, content, *, epoch, global_step, metrics):
        do, folder = content["do"], self.folder
        print("noise on stdout")
        if do == "wait":
            (folder / "pid").write_text(str(os.getpid()), "utf-8")
            (folder / "gate").open("rb").close()
        elif do == "die":
            print("the last words", file=sys.stderr, flush=True)
            os._exit(3)
        elif do == "refuse":
            raise CheckpointWriteError(folder / "x.ckpt", "the disk is full")
        elif do == "raise":
            raise ZeroDivisionError("unexpected")
        elif do == "noise":
            print("x" * 100_000, file=sys.stderr, flush=True)
        path = folder / f"{global_step}.ckpt"
        path.write_text(
            f"{[n for n in sys.modules if n.startswith('lightning')]} {os.getsid(0)} "
            f"{self.settings} {float(content['x'].sum())} {metrics}",
            "utf-8",
        )
        return Saved(path, f"after {self.parent}", 0.5, None, ("w",))
"""


def until(condition: Callable[[], Any]) -> None:
    """Wait until *condition* is true."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


@pytest.fixture
def area() -> Iterator[SnapshotArea]:
    """Return an area of shared memory."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        area = SnapshotArea(Path(folder), RUN_ID, 0)
        yield area
        area.remove()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder for checkpoints, with a gate that saves can be made to wait at."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    os.mkfifo(folder / "gate")
    return folder


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a module with a saver that does what the content says."""
    (tmp_path / "stand_in_saver.py").write_text(STAND_IN, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return "stand_in_saver"


@pytest.fixture
def writer(folder: Path, stand_in: str) -> Iterator[WriterProcess]:
    """Return a writer with the stand-in, closed at the end."""
    writer = WriterProcess(
        folder, CheckpointSettings(), parent=None, saver_module=stand_in
    )
    yield writer
    writer.close(0)


def submit(writer: WriterProcess, area: SnapshotArea, do: str, step: int) -> None:
    """Begin a job."""
    segment = area.put({"do": do, "x": torch.ones(step)}, epoch=1, global_step=step)
    writer.submit(segment, epoch=1, global_step=step, metrics={"loss": 0.5})
    area.release(segment)


def result(writer: WriterProcess) -> Saved | CheckpointWriteError:
    """Wait for what comes of the job."""
    assert writer.wait(DEADLINE_S)
    (result,) = writer.poll()
    return result


def pid_of(folder: Path) -> int:
    """Wait for a job that waits, and return the process it waits in."""
    path = folder / "pid"
    until(lambda: path.exists() and path.read_text("utf-8"))
    pid = int(path.read_text("utf-8"))
    path.unlink()
    return pid


def open_gate(folder: Path) -> None:
    """Let the job that waits go on."""
    (folder / "gate").open("wb").close()


def open_files() -> int:
    """Return how many files this process has open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def is_running(pid: int) -> bool:
    """Tell whether *pid* is there and not only waits to be reaped."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8")
        # Its first thread may have ended, and others not: it cannot be reaped then.
        num_threads = len(list(Path(f"/proc/{pid}/task").iterdir()))
    except OSError:
        return False
    return num_threads > 1 or stat.rpartition(")")[2].split()[0] not in "ZX"


@pytest.mark.slow
def test_checkpoints_are_written_by_the_real_saver(
    tmp_path: Path, area: SnapshotArea
) -> None:
    """Two checkpoints load as they were put, and the second descends from the first."""
    folder = tmp_path / "run" / "checkpoints"
    writer = WriterProcess(folder, CheckpointSettings(), parent=None)
    contents, saved = [], []
    for step in (1, 2):
        weight = torch.randn(50, 3)
        content: dict[str, Any] = {
            "resume": {"phase": "INIT"},
            "model": {"weight": weight, "tied": weight},
            "optimizers": [{"state": {0: {"exp_avg": torch.randn(3).bfloat16()}}}],
            "locals": [{"rng": {"torch": torch.get_rng_state()}}],
        }
        contents.append(content)
        segment = area.put(content, epoch=0, global_step=step)
        writer.submit(segment, epoch=0, global_step=step, metrics={"loss": 1.0 / step})
        found = result(writer)
        area.release(segment)
        assert isinstance(found, Saved)
        saved.append(found)
    writer.close()
    assert writer.poll() == []
    loaded = [torch.load(each.path, weights_only=True) for each in saved]
    for content, back in zip(contents, loaded, strict=True):
        assert torch.equal(back["model"]["weight"], content["model"]["weight"])
        state = content["optimizers"][0]["state"][0]["exp_avg"]
        assert torch.equal(back["optimizers"][0]["state"][0]["exp_avg"], state)
    tied = loaded[0]["model"]
    assert tied["weight"].data_ptr() == tied["tied"].data_ptr()
    assert [each.path.parent for each in saved] == [folder, folder]
    assert loaded[0]["certificate"]["digest"] == saved[0].digest
    assert loaded[1]["certificate"]["parent"] == saved[0].digest


@pytest.mark.slow
def test_one_process_does_many_jobs(
    writer: WriterProcess, area: SnapshotArea, folder: Path
) -> None:
    """Errors of a save are its job's alone; signals and what a save prints do nothing.

    A job can be handed over before the process is ready, a second one not before its end.
    """
    threads = threading.active_count()
    writer.start()
    assert writer.poll() == []
    submit(writer, area, "raise", 1)
    assert writer.busy
    assert threading.active_count() == threads
    found = result(writer)
    assert isinstance(found, CheckpointWriteError)
    assert found.path == folder
    assert found.problem == "cannot be written: ZeroDivisionError: unexpected"

    submit(writer, area, "refuse", 2)
    found = result(writer)
    assert isinstance(found, CheckpointWriteError)
    assert (found.path, found.problem) == (folder / "x.ckpt", "the disk is full")

    submit(writer, area, "wait", 3)
    pid = pid_of(folder)
    assert not writer.wait(0)
    assert not writer.wait(0.01)
    assert writer.poll() == []
    with pytest.raises(ValueError, match="epoch 1, step 3 is still being written"):
        submit(writer, area, "save", 4)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        os.kill(pid, number)
    open_gate(folder)
    assert isinstance(result(writer), Saved)
    assert os.getpriority(os.PRIO_PROCESS, pid) > os.getpriority(os.PRIO_PROCESS, 0)

    submit(writer, area, "noise", 5)
    assert result(writer) == Saved(
        path=folder / "5.ckpt", digest="after None", seconds=0.5, warnings=("w",)
    )
    told = (folder / "5.ckpt").read_text("utf-8")
    assert told.startswith("[] ")
    assert told.split()[1] == str(pid)
    assert told.endswith(" 5.0 {'loss': 0.5}")

    first = area.put({"do": "save", "x": torch.ones(1)}, epoch=0, global_step=6)
    earlier = SimpleNamespace(path=first.path, sequence=first.sequence)
    area.release(first)
    again = area.put({"do": "save", "x": torch.ones(1)}, epoch=0, global_step=7)
    assert again is first
    writer.submit(earlier, epoch=0, global_step=6, metrics={})
    assert "written again before it could be saved" in str(result(writer))
    again.unlink()
    writer.submit(again, epoch=0, global_step=7, metrics={})
    assert "No such file" in str(result(writer))


@pytest.mark.slow
def test_a_process_that_dies_fails_its_job_alone(
    writer: WriterProcess, area: SnapshotArea, folder: Path
) -> None:
    """The job in hand is an error that quotes it, the next has a new process.

    That goes on from the last checkpoint. A death between jobs costs nothing, and a hang
    ends with the time that close was given.
    """
    files = open_files()
    submit(writer, area, "wait", 1)
    killed = pid_of(folder)
    os.kill(killed, signal.SIGKILL)
    found = result(writer)
    assert isinstance(found, CheckpointWriteError)
    assert found.path == folder
    assert "epoch 1, step 1: the process that writes was ended by signal 9" in str(found)

    submit(writer, area, "wait", 2)
    idle = pid_of(folder)
    assert idle != killed
    open_gate(folder)
    assert isinstance(result(writer), Saved)
    os.kill(idle, signal.SIGKILL)
    until(lambda: not is_running(idle))

    submit(writer, area, "noise", 3)
    saved = result(writer)
    assert isinstance(saved, Saved)
    assert saved.digest == "after after None"
    submit(writer, area, "die", 4)
    told = str(result(writer))
    assert "ended with code 3; it wrote: " in told
    assert told.endswith("the last words")
    assert len(told) < 5000

    submit(writer, area, "wait", 5)
    hung = pid_of(folder)
    writer.close(0.01)
    assert "not finished within 0.01 s" in str(result(writer))
    writer.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in (killed, idle, hung))
    area.remove()
    assert open_files() == files


@pytest.mark.slow
def test_an_error_before_the_first_job_is_told_by_it(
    area: SnapshotArea, folder: Path
) -> None:
    """A saver that cannot be found ends the process, whose words are in the error."""
    writer = WriterProcess(
        folder, CheckpointSettings(), parent=None, saver_module="no_such_module"
    )
    submit(writer, area, "save", 1)
    assert "No module named 'no_such_module'" in str(result(writer))
    writer.close()


def test_a_process_that_cannot_be_started_is_an_error_of_the_job(
    writer: WriterProcess, area: SnapshotArea, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training hears of it as of any checkpoint that could not be written."""
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    submit(writer, area, "save", 1)
    (found,) = writer.poll()
    assert isinstance(found, CheckpointWriteError)
    assert "epoch 1, step 1: the process that writes cannot be started" in found.problem
    assert not writer.busy


@pytest.mark.parametrize(
    ("says", "told"),
    [
        (b"\xff\xff\xff\xff", "sent a message of 4,294,967,295 bytes, and was ended"),
        (b"", ""),
    ],
)
def test_a_process_that_says_what_it_should_not_is_ended(
    writer: WriterProcess,
    area: SnapshotArea,
    monkeypatch: pytest.MonkeyPatch,
    says: bytes,
    told: str,
) -> None:
    """Nonsense, or silence and an exit, is an error of the job."""
    ends = "; sys.stdin.read()" if says else ""
    boot = f"import os, sys; os.write(1, {says!r}){ends}"
    monkeypatch.setattr(writer_module, "_BOOT", boot)
    submit(writer, area, "save", 1)
    assert told in str(result(writer))


@pytest.mark.slow
def test_settings_arrive_as_they_are(
    folder: Path, area: SnapshotArea, stand_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings reach the saver; paths are absolute, and no key is on the command line."""
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("MTF_TEST_KEY", "secret")
    settings = CheckpointSettings(
        keep_last_n=7, encryption_key_file=Path("keys"), backup_url="s3://user:secret@x"
    )
    relative = Path(folder.name)
    writer = WriterProcess(relative, settings, parent="p", saver_module=stand_in)
    submit(writer, area, "wait", 1)
    pid = pid_of(folder)
    assert b"secret" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert b"MTF_TEST_KEY=secret" in Path(f"/proc/{pid}/environ").read_bytes()
    open_gate(folder)
    writer.close()
    found = result(writer)
    assert isinstance(found, Saved)
    assert (found.path, found.digest) == (relative / "1.ckpt", "after p")
    told = (folder / "1.ckpt").read_text("utf-8")
    assert "keep_last_n=7" in told
    assert f"encryption_key_file=PosixPath('{folder.parent / 'keys'}')" in told


TRAINER = """
import os, sys, torch
from pathlib import Path
from mtf_trainer._memory.shared_memory import SnapshotArea
from mtf_trainer._saving.writer import WriterProcess
from mtf_trainer.config import CheckpointSettings

area = SnapshotArea(Path(sys.argv[1]), sys.argv[2], 0)
writer = WriterProcess(
    Path(sys.argv[3]), CheckpointSettings(), parent=None, saver_module="stand_in_saver"
)
segment = area.put({"do": "wait", "x": torch.ones(2)}, epoch=1, global_step=1)
writer.submit(segment, epoch=1, global_step=1, metrics={})
if sys.argv[4] == "worker":
    if (pid := os.fork()) == 0:
        # As a loader's worker: it holds the pipes open after the training is gone.
        os.read(0, 1)
        os._exit(0)
    print(pid, flush=True)
writer.wait()
"""


@pytest.mark.slow
@pytest.mark.parametrize("other", ["alone", "worker"])
def test_a_job_is_finished_after_the_training_was_killed(
    tmp_path: Path, folder: Path, stand_in: str, other: str
) -> None:
    """The job in hand is written after a SIGKILL of the training, then the process ends.

    Also where a forked worker of the training keeps the pipes open.
    """
    del stand_in
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        trainer = subprocess.Popen(
            [sys.executable, "-c", TRAINER, memory, RUN_ID, folder, other],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.fspath(tmp_path)},
        )
        with trainer:
            pid = pid_of(folder)
            trainer.kill()
            trainer.wait(DEADLINE_S)
            assert trainer.stdout is not None
            assert not (folder / "1.ckpt").exists()
            open_gate(folder)
            until(lambda: not is_running(pid))
            assert (folder / "1.ckpt").exists()
            if other == "worker":
                worker = int(trainer.stdout.readline())
                assert is_running(worker)
        if other == "worker":
            until(lambda: not is_running(worker))


@pytest.mark.slow
def test_the_process_ends_with_its_orders(tmp_path: Path) -> None:
    """Without a greeting, or without jobs after it, the process ends at once, by itself."""
    command = [sys.executable, "-m", "mtf_trainer._saving.writer"]
    assert subprocess.run(command, input=b"", check=True, timeout=60).returncode == 0
    greeting = {
        "trainer": os.getpid(),
        "saver_module": "mtf_trainer._saving.saver",
        "folder": os.fspath(tmp_path),
        "settings": writer_module._settings_to_plain(CheckpointSettings()),
        "parent": None,
    }
    done = subprocess.run(command, input=frame(greeting), check=True, timeout=60)
    assert done.returncode == 0


def test_memory_that_the_next_training_took_is_not_saved(
    writer: WriterProcess, area: SnapshotArea
) -> None:
    """A killed training's writer that comes late finds another's content, and leaves it."""
    killed = area.put({"do": "save", "x": torch.ones(1)}, epoch=0, global_step=1)
    killed.unlink()
    later = SnapshotArea(killed.path.parent, RUN_ID, 0)
    segment = later.put({"do": "save", "x": torch.ones(1)}, epoch=0, global_step=2)
    assert segment.path == killed.path

    writer.submit(killed, epoch=0, global_step=1, metrics={})

    assert "written again before it could be saved" in str(result(writer))
    later.remove()


def test_jobs_are_done_by_serve(tmp_path: Path, area: SnapshotArea) -> None:
    """In this process: a job is saved, an error told, and the end of the pipe obeyed."""
    threads = torch.get_num_threads()
    jobs, to = os.pipe()
    answers, says = os.pipe()
    greeting = {
        "trainer": os.getpid(),
        "saver_module": "mtf_trainer._saving.saver",
        "folder": os.fspath(tmp_path / "checkpoints"),
        "settings": writer_module._settings_to_plain(CheckpointSettings()),
        "parent": None,
    }
    segment = area.put({"x": torch.ones(1)}, epoch=0, global_step=1)
    job = {"path": os.fspath(segment.path), "epoch": 0, "global_step": 1, "metrics": {}}
    try:
        for sequence in (segment.sequence, segment.sequence + 1):
            os.write(to, frame({**job, "sequence": sequence}))
        os.close(to)
        writer_module._serve(greeting, jobs, says)
        first, second = receive(answers), receive(answers)
        assert first is not None
        assert second is not None
        assert first["saved"]["path"].endswith("epoch_000_step_000001.ckpt")
        assert "written again" in second["problem"]
    finally:
        torch.set_num_threads(threads)
        for fd in (jobs, answers, says):
            os.close(fd)


def test_serve_ends_when_nobody_listens(tmp_path: Path) -> None:
    """An answer that cannot be given, or a training that is another process, is the end."""
    threads = torch.get_num_threads()
    jobs, to = os.pipe()
    answers, says = os.pipe()
    os.close(answers)
    greeting = {
        "trainer": -1,
        "saver_module": "mtf_trainer._saving.saver",
        "folder": os.fspath(tmp_path),
        "settings": writer_module._settings_to_plain(CheckpointSettings()),
        "parent": None,
    }
    try:
        os.write(to, frame({"path": "/none", "sequence": 0}))
        os.write(to, frame({"path": "/none", "sequence": 0}))
        writer_module._serve(greeting, jobs, says)
        assert receive(jobs) == {"path": "/none", "sequence": 0}
        writer_module._serve(greeting, jobs, says)
    finally:
        torch.set_num_threads(threads)
        for fd in (jobs, to, says):
            os.close(fd)


def test_a_training_killed_before_it_is_ready_leaves_nothing(tmp_path: Path) -> None:
    """While it loads torch there is nothing to finish: it ends with the training."""
    pid, gate = tmp_path / "pid", tmp_path / "gate"
    os.mkfifo(gate)
    slow_torch = (
        "import os; from pathlib import Path\n"
        f"Path({str(pid)!r}).write_text(str(os.getpid()), 'utf-8')\n"
        f"Path({str(gate)!r}).open('rb')\n"
    )
    (tmp_path / "torch.py").write_text(slow_torch, "utf-8")
    script = (
        "import sys; from pathlib import Path\n"
        "from mtf_trainer._saving.writer import WriterProcess\n"
        "from mtf_trainer.config import CheckpointSettings\n"
        "writer = WriterProcess(Path(sys.argv[1]), CheckpointSettings(), parent=None)\n"
        "writer.start()\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    ) as training:
        until(lambda: pid.exists() and pid.read_text("utf-8"))
        child = int(pid.read_text("utf-8"))
        assert is_running(child)

        training.kill()
        training.wait()

    until(lambda: not is_running(child))
