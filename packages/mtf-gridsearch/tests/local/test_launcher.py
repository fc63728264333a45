"""What happens to experiments, submitters and runners, with real processes."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mtf_gridsearch.errors import LauncherError
from mtf_gridsearch.launcher import JobState, Launcher, Submission
from mtf_gridsearch.local import _files, runner
from mtf_gridsearch.local import launcher as module
from mtf_gridsearch.local.attempt import Outcome
from mtf_gridsearch.local.launcher import LocalLauncher
from mtf_gridsearch.testing import PlainExperiment, write_experiment

WAIT = """
import time
from pathlib import Path
Path("here").touch()
deadline = time.monotonic() + 300
while not Path("go_on").exists() and time.monotonic() < deadline:
    time.sleep(0.005)
"""

WaitFor = Callable[[Callable[[], object]], None]


class Place:
    """A folder of a search, a script, and what is done with them."""

    def __init__(self, folder: Path, wait_for: WaitFor) -> None:
        self.folder, self.wait_for = folder, wait_for
        folder.mkdir()

    def script(self, text: str) -> Path:
        path = self.folder.parent / f"script_{abs(hash(text))}.py"
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    def launcher(self, text: str, **options: Any) -> LocalLauncher:
        return LocalLauncher(self.script(text), **options)

    def entry(self, launcher: LocalLauncher, name: str = "a") -> Submission:
        experiment = write_experiment(self.folder, name)
        [entry] = launcher.submit([experiment], folder=self.folder)
        return entry

    def submit(self, launcher: LocalLauncher, name: str = "a") -> str:
        entry = self.entry(launcher, name)
        assert entry.job_id is not None, entry.error
        return entry.job_id

    def until(self, launcher: LocalLauncher, job_id: str, state: JobState) -> None:
        def is_reached() -> bool:
            [now] = launcher.states([job_id])
            if now.is_final or state.is_final:
                assert now in {state, JobState.PENDING, JobState.RUNNING}, (
                    now,
                    launcher.outcomes([job_id])[0].reason,
                )
            return now is state

        self.wait_for(is_reached)

    def run(self, text: str, name: str = "a", **options: Any) -> tuple[JobState, str]:
        launcher = self.launcher(text, **options)
        job_id = self.submit(launcher, name)
        self.wait_for(lambda: launcher.states([job_id])[0].is_final)
        return launcher.states([job_id])[0], launcher.outcomes([job_id])[0].reason


@pytest.fixture
def place(tmp_path: Path, wait_for: WaitFor) -> Place:
    """Return the folder of a search, empty."""
    return Place(tmp_path / "search", wait_for)


@pytest.fixture
def _own_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the locks of devices apart from those of others on this machine."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def facts(job_id: str, word: str) -> dict[str, str]:
    """Return what the file of an attempt says."""
    return _files.parse_lines(Path(f"{job_id}.job").read_bytes())[word]


def is_alive(pid: int | str) -> bool:
    """Tell whether a process runs; one that waits to be reaped does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def test_fits_the_protocol(place: Place) -> None:
    """The launcher is one, to a type checker too, and does not depend on its object."""
    launcher: Launcher = place.launcher("", max_running=3)
    assert launcher.max_running == 3
    assert launcher.poll_interval_s > 0


def test_asks_less_often_as_time_goes_by(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Soon after a start the end may come soon; later a tenth of the time is soon."""
    clock = iter([100.0, 100.0, 101.0, 200.0, 200.0, 200.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    launcher = place.launcher("")
    intervals = [launcher.poll_interval_s for _ in range(3)]
    launcher.submit([], folder=place.folder)
    intervals.append(launcher.poll_interval_s)
    monkeypatch.undo()
    assert intervals == [0.005, 0.1, 0.25, 0.005]


def test_output_goes_to_files(place: Place) -> None:
    """What an experiment prints lies beside its config, named by its job."""
    launcher = place.launcher("import sys; print('ä'); print('oh', file=sys.stderr)")
    job_id = place.submit(launcher)
    place.until(launcher, job_id, JobState.SUCCEEDED)
    assert Path(job_id).name == "a.1"
    assert (place.folder / "a" / "a.1.out").read_text("utf-8") == "ä\n"
    assert (place.folder / "a" / "a.1.err").read_text("utf-8") == "oh\n"


def test_output_is_there_before_the_end(place: Place) -> None:
    """A line that was printed can be read while the experiment runs."""
    launcher = place.launcher("print('begun')\n" + WAIT)
    job_id = place.submit(launcher)
    output = Path(job_id + ".out")
    place.wait_for(lambda: output.exists() and output.read_text("utf-8") == "begun\n")
    launcher.cancel([job_id])
    place.until(launcher, job_id, JobState.CANCELLED)


def test_environment(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """An experiment knows its folder and its job, and has what it was given."""
    monkeypatch.setenv("MTF_DEVICE", "7")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*map(str, sys.path), "lib"]))
    text = """
    import json, os, sys
    print(json.dumps([dict(os.environ), os.getcwd(), sys.argv, sys.stdin.read()]))
    """
    launcher = place.launcher(text, env={"ANSWER": "4 2"})
    job_id = place.submit(launcher)
    place.until(launcher, job_id, JobState.SUCCEEDED)
    environ, folder, argv, given = json.loads(Path(job_id + ".out").read_text("utf-8"))
    assert environ["ANSWER"] == "4 2"
    assert environ["MTF_JOB_ID"] == job_id
    assert environ["MTF_EXPERIMENT_DIR"] == folder == str(place.folder / "a")
    assert "MTF_DEVICE" not in environ
    assert environ["PYTHONPATH"].split(os.pathsep)[-1] == str(Path.cwd() / "lib")
    assert argv[1:] == [str(place.folder / "a" / "config.yaml")]
    assert given == ""


def test_environment_without_a_path(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not set here is not set there."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    state, _ = place.run("import os; assert 'PYTHONPATH' not in os.environ")
    assert state is JobState.SUCCEEDED


def test_a_crash_touches_no_other(place: Place) -> None:
    """An experiment that raises has failed, for the reason it gave; another goes on."""
    launcher = place.launcher(
        "import os\nif 'bad' in os.getcwd(): raise ValueError('oh')"
    )
    good, bad = place.submit(launcher, "good"), place.submit(launcher, "bad")
    place.until(launcher, bad, JobState.FAILED)
    place.until(launcher, good, JobState.SUCCEEDED)
    assert launcher.outcomes([bad])[0].reason == "exit code 1: ValueError: oh"
    assert launcher.outcomes([good])[0].reason == ""


def test_a_failure_that_says_nothing(place: Place) -> None:
    """Without a word on standard error, the reason is the exit code."""
    assert place.run("raise SystemExit(3)") == (JobState.FAILED, "exit code 3")


def test_exit_code_75_asks_to_be_continued(place: Place) -> None:
    """The code of a trainer that was stopped and saved makes the job preempted."""
    state, reason = place.run("raise SystemExit(75)")
    assert state is JobState.PREEMPTED
    assert "to be continued" in reason


def test_a_killed_experiment(place: Place) -> None:
    """``kill -9`` of an experiment is its failure, named; what runs beside it goes on."""
    launcher = place.launcher(WAIT)
    doomed, other = place.submit(launcher, "doomed"), place.submit(launcher, "other")
    place.until(launcher, doomed, JobState.RUNNING)
    os.kill(int(facts(doomed, "running")["pid"]), signal.SIGKILL)
    place.until(launcher, doomed, JobState.FAILED)
    assert "killed by signal 9" in launcher.outcomes([doomed])[0].reason
    (place.folder / "other" / "go_on").touch()
    place.until(launcher, other, JobState.SUCCEEDED)


def test_other_signals_are_named(place: Place) -> None:
    """A crash of the interpreter says by which signal."""
    state, reason = place.run("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert (state, reason) == (
        JobState.FAILED,
        "killed by signal 11 (Segmentation fault)",
    )


FAMILY = """
import os, subprocess, sys
from pathlib import Path
sleeper = "import time; time.sleep(300)"
child = subprocess.Popen([sys.executable, "-c", sleeper])
forked = os.fork() or os.execv(sys.executable, [sys.executable, "-c", sleeper])
# Started by a process that is gone, in a session of its own: a daemon.
daemon = subprocess.run(
    [sys.executable, "-c", "import subprocess, sys; print(subprocess.Popen("
     f"[sys.executable, '-c', {sleeper!r}], start_new_session=True,"
     " stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).pid)"],
    capture_output=True, check=True,
).stdout.decode()
Path("family.part").write_text(f"{os.getpid()} {child.pid} {forked} {daemon}")
Path("family.part").rename("family")
"""


def test_a_killed_runner_takes_its_experiment_along(place: Place) -> None:
    """``kill -9`` of a runner ends the experiment and what it started, asked or not."""
    launcher = place.launcher(FAMILY + WAIT)
    job_id = place.submit(launcher)
    family = place.folder / "a" / "family"
    place.wait_for(family.exists)
    *group, daemon = family.read_text("utf-8").split()
    place.until(launcher, job_id, JobState.RUNNING)
    pid = facts(job_id, "runner")["pid"]
    os.kill(int(pid), signal.SIGKILL)
    place.wait_for(lambda: not any(map(is_alive, group)))
    place.until(launcher, job_id, JobState.NODE_FAILED)
    reason = launcher.outcomes([job_id])[0].reason
    assert f"runner, process {pid}, was killed" in reason
    assert not is_alive(daemon)
    assert launcher.outcomes([job_id])[0] == place.launcher("").outcomes([job_id])[0]


def test_after_a_killed_runner_it_can_be_run_again(place: Place) -> None:
    """A new attempt follows, also if nobody asked how the lost one was."""
    first = place.launcher(WAIT)
    lost = place.submit(first)
    place.until(first, lost, JobState.RUNNING)
    os.kill(int(facts(lost, "runner")["pid"]), signal.SIGKILL)
    second = place.launcher("")
    place.wait_for(lambda: place.submit(second) != lost)
    again = place.submit(second)
    place.until(second, again, JobState.SUCCEEDED)
    assert Path(again).name == "a.2"
    assert second.states([lost, again]) == [JobState.NODE_FAILED, JobState.SUCCEEDED]


def test_orphans_that_end_meanwhile(place: Place) -> None:
    """What an experiment lost sight of is waited for, and takes nothing from its end."""
    text = """
    import os, subprocess, sys, time
    from pathlib import Path
    code = (
        "import os; from pathlib import Path; "
        "os.fork() or (Path('o').write_text(str(os.getpid()), 'utf-8'), os.rename('o', 'orphan'))"
    )
    subprocess.run([sys.executable, "-c", code])
    while not Path("orphan").exists():
        time.sleep(0.01)
    while Path("/proc", Path("orphan").read_text("utf-8")).exists():  # until it is reaped
        time.sleep(0.01)
    sys.exit(5)
    """
    assert place.run(text) == (JobState.FAILED, "exit code 5")


def test_what_is_left_behind_is_killed(place: Place) -> None:
    """When an experiment has ended, nothing that it started lives, daemons included."""
    launcher = place.launcher(FAMILY)
    job_id = place.submit(launcher)
    place.until(launcher, job_id, JobState.SUCCEEDED)
    family = (place.folder / "a" / "family").read_text("utf-8").split()
    assert len(family) == 4
    assert not any(map(is_alive, family))


SUBMITTER = """
import os, sys
from pathlib import Path
from mtf_gridsearch.local.attempt import Outcome
from mtf_gridsearch.local.launcher import LocalLauncher
from mtf_gridsearch.testing import write_experiment
script, folder, number = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
launcher = LocalLauncher(script, max_running=10)
batch = [write_experiment(folder, name) for name in "abc"]
print(*(entry.job_id for entry in launcher.submit(batch, folder=folder)), flush=True)
os.kill(0 if number == 2 else os.getpid(), number)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_experiments_survive_their_submitter(place: Place, number: int) -> None:
    """A submitter is killed, or its group gets Ctrl-C: its experiments go on, are found."""
    script = place.script(WAIT)
    command = [
        sys.executable,
        "-c",
        SUBMITTER,
        str(script),
        str(place.folder),
        str(int(number)),
    ]
    process = subprocess.run(
        command,
        capture_output=True,
        encoding="utf-8",
        check=False,
        start_new_session=True,
    )
    assert process.returncode == -number, process.stderr
    ids = process.stdout.split()
    launcher = place.launcher("")
    for job_id in ids:
        place.until(launcher, job_id, JobState.RUNNING)
    assert [place.submit(launcher, name) for name in "abc"] == ids
    for name in "abc":
        (place.folder / name / "go_on").touch()
    for job_id in ids:
        place.until(launcher, job_id, JobState.SUCCEEDED)


def test_ended_while_nobody_looked(place: Place) -> None:
    """An experiment that succeeded without its submitter's knowing is not run again."""
    first = place.launcher("open('runs', 'a', encoding='utf-8').write('x')")
    job_id = place.submit(first)
    place.until(first, job_id, JobState.SUCCEEDED)
    assert place.submit(place.launcher("")) == job_id
    assert (place.folder / "a" / "runs").read_text("utf-8") == "x"


RACER = """
import sys, time
from pathlib import Path
from mtf_gridsearch.local.attempt import Outcome
from mtf_gridsearch.local.launcher import LocalLauncher
from mtf_gridsearch.testing import PlainExperiment
script, folder, number = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
launcher = LocalLauncher(script, max_running=3)
batch = [PlainExperiment(f"e{i}") for i in range(12)]
Path(folder.parent, "ready" + number).touch()
while not Path(folder.parent, "go").exists():
    pass
print(*(entry.job_id or entry.error for entry in launcher.submit(batch, folder=folder)))
"""


@pytest.mark.slow
def test_processes_that_submit_at_the_same_instant(place: Place) -> None:
    """Four processes submit the same experiments at once: each is started once."""
    script = place.script("open('runs', 'a', encoding='utf-8').write('x')")
    for i in range(12):
        write_experiment(place.folder, f"e{i}")
    command = [sys.executable, "-c", RACER, str(script), str(place.folder)]
    processes = [
        subprocess.Popen([*command, str(n)], stdout=subprocess.PIPE, encoding="utf-8")
        for n in range(4)
    ]
    parent = place.folder.parent
    place.wait_for(lambda: all((parent / f"ready{n}").exists() for n in range(4)))
    (parent / "go").touch()
    replies = [process.communicate()[0].split() for process in processes]
    assert replies[0] == [str(place.folder / f"e{i}" / f"e{i}.1") for i in range(12)]
    assert replies.count(replies[0]) == 4
    launcher = place.launcher("")
    place.wait_for(lambda: {*launcher.states(replies[0])} == {JobState.SUCCEEDED})
    runs = [(place.folder / f"e{i}" / "runs").read_text("utf-8") for i in range(12)]
    assert runs == ["x"] * 12


def test_time_limit(place: Place) -> None:
    """What runs too long is asked to end, and may save; the state says why."""
    text = """
    import signal, time
    def save(*_):
        open("saved", "w", encoding="utf-8").close()
        raise SystemExit(0)
    signal.signal(signal.SIGTERM, save)
    while True:
        time.sleep(0.01)
    """
    state, reason = place.run(text, time_limit_s=5.0)
    assert state is JobState.TIMEOUT
    assert reason == "it ran longer than its limit of 5 s"
    assert (place.folder / "a" / "saved").exists()


DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + WAIT


def test_time_limit_of_the_deaf(place: Place) -> None:
    """What does not end when it is asked to is killed when its grace is over."""
    state, reason = place.run(DEAF, time_limit_s=0.4, grace_s=0.1)
    assert state is JobState.TIMEOUT
    assert "limit of 0.4 s" in reason


def test_cancel_of_the_deaf(place: Place) -> None:
    """Cancelling ends what ignores it; asking twice is as asking once."""
    launcher = place.launcher(DEAF, grace_s=0.2)
    job_id = place.submit(launcher)
    place.wait_for((place.folder / "a" / "here").exists)
    launcher.cancel([job_id])
    launcher.cancel([job_id])
    place.until(launcher, job_id, JobState.CANCELLED)
    assert launcher.outcomes([job_id])[0].reason == "it was cancelled"


def test_cancel_right_after_submit(place: Place) -> None:
    """A runner that has only just been started can be cancelled, and loses nothing."""
    launcher = place.launcher(WAIT)
    job_id = place.submit(launcher)
    launcher.cancel([job_id])
    place.until(launcher, job_id, JobState.CANCELLED)


def test_cancel_of_what_waits(place: Place) -> None:
    """An experiment without a place is pending; cancelled, it never begins."""
    launcher = place.launcher(WAIT, max_running=1)
    first = place.submit(launcher, "first")
    place.until(launcher, first, JobState.RUNNING)
    second = place.submit(launcher, "second")
    place.wait_for(lambda: "runner" in Path(second + ".job").read_text("utf-8"))
    assert launcher.states([second]) == [JobState.PENDING]
    launcher.cancel([second])
    place.until(launcher, second, JobState.CANCELLED)
    assert launcher.outcomes([second])[0].reason == "before it began"
    assert not (place.folder / "second" / "here").exists()
    launcher.cancel([first])
    place.until(launcher, first, JobState.CANCELLED)


def test_its_own_end_comes_first(place: Place) -> None:
    """A cancel that comes after the end, before it is noted, changes nothing."""
    launcher = place.launcher(WAIT)
    job_id = place.submit(launcher)
    place.until(launcher, job_id, JobState.RUNNING)
    pid = int(facts(job_id, "runner")["pid"])
    experiment = facts(job_id, "running")["pid"]
    os.kill(pid, signal.SIGSTOP)
    (place.folder / "a" / "go_on").touch()
    place.wait_for(lambda: not is_alive(experiment))
    launcher.cancel([job_id])
    os.kill(pid, signal.SIGCONT)
    place.until(launcher, job_id, JobState.SUCCEEDED)


def test_memory_limit(place: Place) -> None:
    """What an experiment and its children hold together is limited; more is its end."""
    text = """
    import subprocess, sys
    hold = "x = bytearray(80 << 20); import time; time.sleep(300)"
    for process in [subprocess.Popen([sys.executable, "-c", hold]) for _ in range(2)]:
        process.wait()
    """
    state, reason = place.run(text, memory_limit_bytes=120 << 20)
    assert state is JobState.FAILED
    assert "more than its limit of 125,829,120 bytes" in reason


def test_usage(place: Place) -> None:
    """The end of an experiment says what it used, its children included."""
    text = """
    import subprocess, sys, time
    code = "import time; x = bytearray(50 << 20)\\nwhile time.process_time() < .2: pass"
    subprocess.run([sys.executable, "-c", code])
    """
    launcher = place.launcher(text)
    job_id = place.submit(launcher)
    assert launcher.outcomes([job_id])[0] == Outcome()
    place.until(launcher, job_id, JobState.SUCCEEDED)
    usage = launcher.outcomes([job_id])[0]
    assert usage.wall_s is not None
    assert usage.cpu_s is not None
    assert usage.max_rss_bytes is not None
    assert usage.wall_s >= 0.2
    assert usage.cpu_s >= 0.2
    assert 50 << 20 <= usage.max_rss_bytes < 1 << 30


EXCLUSIVE = """
import os, time
from pathlib import Path
device = os.environ["MTF_DEVICE"]
assert device == os.environ["CUDA_VISIBLE_DEVICES"]
marks = [Path.cwd().parent.parent / f"in_use_{part}" for part in device.split(",")]
for mark in marks:
    mark.touch(exist_ok=False)  # fails if another has it
time.sleep(0.05)
for mark in marks:
    mark.unlink()
print(device)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("_own_devices")
def test_no_device_is_given_to_two(place: Place) -> None:
    """Launchers and searches that know nothing of each other never share a device."""
    other = Place(place.folder.parent / "other", place.wait_for)
    launchers = [
        (place, place.launcher(EXCLUSIVE, devices=(0, "1"))),
        (place, place.launcher(EXCLUSIVE, devices=("1", "0"))),
        (other, other.launcher(EXCLUSIVE, devices=["0,1"])),
    ]
    jobs = [
        (launcher, at.submit(launcher, f"e{number}_{turn}"))
        for turn in range(3)
        for number, (at, launcher) in enumerate(launchers)
    ]
    for launcher, job_id in jobs:
        place.until(launcher, job_id, JobState.SUCCEEDED)
    used = {Path(job_id + ".out").read_text("utf-8").strip() for _, job_id in jobs}
    assert used <= {"0", "1", "0,1"}
    assert "0,1" in used


@pytest.mark.usefixtures("_own_devices")
def test_a_device_is_free_after_its_runner_was_killed(place: Place) -> None:
    """The next experiment gets the device, once the one before is gone."""
    launcher = place.launcher(WAIT, devices=["MIG-1/2/3"])
    assert launcher.max_running == 1
    first, second = place.submit(launcher, "first"), place.submit(launcher, "second")
    running = first if "running" in _words(place, launcher, first, second) else second
    os.kill(int(facts(running, "runner")["pid"]), signal.SIGKILL)
    place.until(launcher, running, JobState.NODE_FAILED)
    left = second if running == first else first
    place.until(launcher, left, JobState.RUNNING)
    launcher.cancel([left])
    place.until(launcher, left, JobState.CANCELLED)


def _words(place: Place, launcher: LocalLauncher, *ids: str) -> Sequence[str]:
    """Return the words about the first job, once one of them runs."""
    place.wait_for(lambda: JobState.RUNNING in launcher.states(ids))
    return list(_files.parse_lines(Path(f"{ids[0]}.job").read_bytes()))


@pytest.mark.usefixtures("_own_devices")
def test_the_locks_of_another_user_are_refused(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of locks that someone else made could be used against us."""
    uid = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    folder = Path(tempfile.gettempdir()) / f"mtf-devices-{uid + 1}"
    folder.mkdir()
    with pytest.raises(LauncherError, match="is another user's"):
        place.entry(place.launcher("", devices=["0"]))
    folder.rmdir()
    folder.write_text("", encoding="utf-8")
    with pytest.raises(LauncherError, match="cannot be made"):
        place.entry(place.launcher("", devices=["0"]))


def test_a_function_of_a_module(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry point can be a function of a module that lies where the search began."""
    parent = place.folder.parent
    (parent / "my_code.py").write_text(
        "import sys\ndef train(path):\n    print(path, sys.argv)\n    return 1\n"
        "class Other:\n    def stop(path):\n        sys.exit(75)\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(parent)
    train, stop = LocalLauncher("my_code:train"), LocalLauncher("my_code:Other.stop")
    monkeypatch.chdir("/")
    first, second = place.submit(train, "a"), place.submit(stop, "b")
    place.until(train, first, JobState.SUCCEEDED)
    place.until(stop, second, JobState.PREEMPTED)
    config = str(place.folder / "a" / "config.yaml")
    assert Path(first + ".out").read_text("utf-8") == f"{config} ['train', {config!r}]\n"


def test_a_module_that_is_missing(place: Place) -> None:
    """A function that cannot be found is the experiment's failure, with its reason."""
    launcher = LocalLauncher("no_such_module:train")
    job_id = place.submit(launcher)
    place.until(launcher, job_id, JobState.FAILED)
    assert "No module named 'no_such_module'" in launcher.outcomes([job_id])[0].reason


def test_an_interpreter_that_has_gone(place: Place) -> None:
    """What cannot be executed has failed, and says so."""
    python = place.folder.parent / "python"
    python.symlink_to(sys.executable)
    launcher = place.launcher("", python=python)
    python.unlink()
    job_id = place.submit(launcher)
    place.until(launcher, job_id, JobState.FAILED)
    reason = launcher.outcomes([job_id])[0].reason
    assert f"{python} cannot be run: [Errno 2]" in reason


def test_relative_folders(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job's id holds wherever it is asked for."""
    monkeypatch.chdir(place.folder.parent)
    launcher = place.launcher("")
    write_experiment(place.folder, "a")
    [entry] = launcher.submit([PlainExperiment("a")], folder=Path("search"))
    assert entry.job_id == str(place.folder / "a" / "a.1")
    monkeypatch.chdir("/")
    place.until(launcher, entry.job_id, JobState.SUCCEEDED)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_running": 0}, "max_running is 0"),
        ({"max_running": 2, "devices": ["0"]}, "give devices or max_running"),
        ({"devices": ["0", "1,0"]}, "a device is given twice"),
        ({"devices": ["0", ""]}, "'' names no device"),
        ({"devices": ["--"]}, "'--' names no device"),
        ({"devices": ["../x"]}, "names no device"),
        ({"time_limit_s": 0}, "time_limit_s is 0"),
        ({"time_limit_s": float("nan")}, "time_limit_s is nan"),
        ({"grace_s": -1}, "grace_s is -1"),
        ({"memory_limit_bytes": 0}, "memory_limit_bytes is 0"),
        ({"env": {"A=B": "x"}}, "cannot be set"),
        ({"env": {"A": "x\0y"}}, "cannot be set"),
    ],
)
def test_bad_options(place: Place, options: dict[str, Any], message: str) -> None:
    """What makes no sense is refused when the launcher is made."""
    with pytest.raises(ValueError, match=message):
        place.launcher("", **options)


def test_devices_are_no_text(place: Place) -> None:
    """``"01"`` would be taken for two devices."""
    with pytest.raises(TypeError, match="give a list"):
        place.launcher("", devices="01")


@pytest.mark.parametrize("entry_point", ["missing.py", "module", "a:b:c", "a b:c", ""])
def test_bad_entry_points(entry_point: str) -> None:
    """An entry point is a script that exists, or names a function."""
    with pytest.raises(LauncherError, match="is no script that exists"):
        LocalLauncher(entry_point)


def test_an_interpreter_that_is_missing(place: Place) -> None:
    """An interpreter that cannot be found is refused before anything runs."""
    with pytest.raises(LauncherError, match="there is no interpreter"):
        place.launcher("", python="no-such-python")


def test_no_memory_limit_without_linux(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit that could not be kept is refused."""
    monkeypatch.setattr(Path, "exists", lambda _: False)
    with pytest.raises(LauncherError, match="needs Linux"):
        place.launcher("", memory_limit_bytes=1)


def test_processors_without_linux(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a place for each processor, or one where their number is not known."""
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert place.launcher("").max_running == 1


def test_a_name_that_is_no_text(place: Place) -> None:
    """Whatever calls itself an experiment is checked."""
    [entry] = place.launcher("").submit(
        [PlainExperiment(3)],  # type: ignore[arg-type]
        folder=place.folder,
    )
    assert entry.job_id is None
    assert "the name 3 is refused" in str(entry.error)


def test_places_that_cannot_be_made(place: Place) -> None:
    """Where nothing can be started, nothing pretends to be."""
    (place.folder / ".places").write_text("", encoding="utf-8")
    with pytest.raises(LauncherError, match="cannot be made"):
        place.entry(place.launcher(""))


def test_a_lock_that_none_of_its_attempts_holds(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A foreign holder makes an entry that names the file, after some patience."""
    monkeypatch.setattr(module, "_PATIENCE_S", 0.1)
    write_experiment(place.folder, "a")
    fd = _files.try_lock(str(place.folder / "a" / ".lock"))
    assert fd is not None
    entry = place.entry(place.launcher(""))
    os.close(fd)
    assert "is held, by none of its attempts" in str(entry.error)


def test_a_submitter_that_hangs(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits too long for another submitter says so, and starts nothing."""
    monkeypatch.setattr(module, "_PATIENCE_S", 0.1)
    fd = _files.try_lock(str(place.folder / ".launch.lock"))
    assert fd is not None
    entry = place.entry(place.launcher(""))
    os.close(fd)
    assert "is held for too long" in str(entry.error)
    assert not list(place.folder.glob("a/*.job"))


def test_waits_for_one_that_is_just_ending(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed attempt whose runner still holds the lock delays the next, no more."""
    launcher = place.launcher("raise SystemExit(1)")
    first = place.submit(launcher)
    place.until(launcher, first, JobState.FAILED)
    place.wait_for(lambda: not is_alive(facts(first, "runner")["pid"]))
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(place.folder / "a" / ".lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    holder.stdout.readline()
    try_lock = _files.try_lock
    waited: list[str] = []

    def watched(path: str) -> int | None:
        fd = try_lock(path)
        if fd is None and not waited:
            waited.append(path)
            holder.communicate()  # which ends it
        return fd

    monkeypatch.setattr(_files, "try_lock", watched)
    second = place.submit(launcher)
    assert waited == [str(place.folder / "a" / ".lock")]
    assert Path(second).name == "a.2"
    place.until(launcher, second, JobState.FAILED)


HOLDER = """
import fcntl, sys
file = open(sys.argv[1], encoding="utf-8")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_damaged_files_of_attempts(place: Place) -> None:
    """What cannot be read is unknown, is left where it is, and hinders no new attempt."""
    launcher = place.launcher("")
    write_experiment(place.folder, "a")
    damaged = place.folder / "a" / "a.4.job"
    damaged.write_bytes(b"\xff\0 no attempt")
    job_id = str(damaged.with_suffix(""))
    assert launcher.states([job_id]) == [JobState.UNKNOWN]
    launcher.cancel([])
    again = place.submit(launcher)
    assert Path(again).name == "a.5"
    place.until(launcher, again, JobState.SUCCEEDED)
    assert damaged.read_bytes() == b"\xff\0 no attempt"


def test_a_config_that_is_a_folder(place: Place) -> None:
    """Only a file is a config."""
    (place.folder / "a" / "config.yaml").mkdir(parents=True)
    [entry] = place.launcher("").submit([PlainExperiment("a")], folder=place.folder)
    assert "there is no such file" in str(entry.error)


CRAMPED = """
import resource, sys
from pathlib import Path
from mtf_gridsearch.local.attempt import Outcome
from mtf_gridsearch.local.launcher import LocalLauncher
from mtf_gridsearch.testing import PlainExperiment
launcher = LocalLauncher(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
[entry] = launcher.submit([PlainExperiment("a")], folder=Path(sys.argv[2]))
print(entry.job_id, entry.error)
"""


@pytest.mark.usefixtures("unmeasured")
def test_no_room_for_the_file_of_an_attempt(place: Place) -> None:
    """What could not be noted is not started, and leaves no file that says it was."""
    write_experiment(place.folder, "a")
    command = [sys.executable, "-c", CRAMPED, str(place.script("")), str(place.folder)]
    reply = subprocess.run(
        command, capture_output=True, encoding="utf-8", check=True
    ).stdout
    assert reply.startswith("None ")
    assert "only a part of it could be written" in reply
    assert not list(place.folder.glob("a/a.*"))
    launcher = place.launcher("")
    place.until(launcher, place.submit(launcher), JobState.SUCCEEDED)


@pytest.mark.usefixtures("unmeasured")
def test_the_end_can_be_noted_on_a_full_disk(place: Place) -> None:
    """From its beginning, the file of an attempt has room for its end."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    launcher = place.launcher("import sys\nsys.exit('x' * 5000)")
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        job_id = place.submit(launcher)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    place.until(launcher, job_id, JobState.FAILED)
    assert launcher.outcomes([job_id])[0].reason == "exit code 1: " + "x" * 600
    assert Path(job_id + ".job").stat().st_size == 4096


def test_a_runner_that_was_asked_to_end(place: Place) -> None:
    """SIGTERM from whoever shuts the machine down cancels, and is noted."""
    launcher = place.launcher(WAIT)
    job_id = place.submit(launcher)
    place.until(launcher, job_id, JobState.RUNNING)
    os.kill(int(facts(job_id, "runner")["pid"]), signal.SIGTERM)
    place.until(launcher, job_id, JobState.CANCELLED)


def test_runners_that_somebody_else_reaped(place: Place) -> None:
    """A program that waits for all its children does not confuse the launcher."""
    launcher = place.launcher("")
    job_id = place.submit(launcher)
    [pid] = module._runners
    os.waitpid(pid, 0)
    assert launcher.states([job_id]) == [JobState.SUCCEEDED]
    assert not module._runners


def test_the_runner_imports_nothing_heavy() -> None:
    """A runner starts once for each experiment: it loads no module but light ones."""
    code = runner.START.replace("main(sys.argv[3:])", "print(*sys.modules)")
    command = [sys.executable, "-I", "-S", "-c", code, *module._FOLDERS]
    loaded = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    heavy = {"re", "enum", "json", "pathlib", "signal", "subprocess", "ctypes", "typing"}
    assert "mtf_gridsearch.local.runner" in loaded.stdout
    assert not heavy & set(loaded.stdout.split())


def test_durations_are_not_taken_from_the_clock(place: Place) -> None:
    """The usage of an experiment is not more than what passed here."""
    before = time.monotonic()
    launcher = place.launcher("")
    job_id = place.submit(launcher)
    place.until(launcher, job_id, JobState.SUCCEEDED)
    wall_s = launcher.outcomes([job_id])[0].wall_s
    assert wall_s is not None
    assert 0 <= wall_s <= time.monotonic() - before


def test_tells_what_it_would_run(place: Place) -> None:
    """The command ends in the config's path, and asking for it makes nothing."""
    launcher = place.launcher("raise SystemExit(1)", time_limit_s=5.0)
    command = launcher.command(PlainExperiment("new"), folder=place.folder)

    assert command[0] == sys.executable
    assert command[-1] == str(place.folder / "new" / "config.yaml")
    assert launcher.time_limit_s == 5.0
    assert not (place.folder / "new").exists()


def test_tells_the_last_job_of_an_experiment(place: Place) -> None:
    """Of one that was run twice the second; of what was never run, or is unread, none."""
    launcher = place.launcher("raise SystemExit(1)")
    for _ in range(2):
        job_id = place.submit(launcher)
        place.until(launcher, job_id, JobState.FAILED)
    assert launcher.latest(["a", "b"], folder=place.folder) == [job_id, None]
    Path(f"{job_id}.job").write_bytes(b"")
    assert launcher.latest(["a"], folder=place.folder) == [None]
