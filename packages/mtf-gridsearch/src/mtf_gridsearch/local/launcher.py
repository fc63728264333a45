"""Run experiments as processes of this machine.

Each experiment has a runner, a small process which supervises it and outlives whoever
submitted it: a search that is killed finds its experiments again. State lies in the folders
of the experiments alone (`mtf_gridsearch.local.attempt`), under locks that the kernel frees,
so any process may ask and any may submit. The folder must be on a file system whose locks
(`flock(2)`) hold for all machines that use it.

Knows nothing of searches, and starts nothing through a shell.
"""

from __future__ import annotations

import math
import operator
import os
import re
import shutil
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from mtf_gridsearch.errors import LauncherError
from mtf_gridsearch.launcher import Experiment, JobState, Submission
from mtf_gridsearch.local import _call, _files, runner
from mtf_gridsearch.local.attempt import NAME, Attempt, Outcome, lock_within, newest

__all__ = ["LocalLauncher"]

_FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_DEVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")
_PATIENCE_S = 20.0
_POLL_S = 0.005
_LONGEST_POLL_S = 0.25

# Runners that this process started and has not waited for; a launcher may be gone by then.
_runners: set[int] = set()


class LocalLauncher:
    """A `mtf_gridsearch.launcher.Launcher` of processes on this machine.

    An experiment runs in its own folder, with standard output and error in
    ``<job_id>.out`` and ``<job_id>.err``, and with these environment variables:
    ``MTF_EXPERIMENT_DIR`` (its folder), ``MTF_JOB_ID``, and, of a place that is a device,
    ``MTF_DEVICE`` and ``CUDA_VISIBLE_DEVICES``. Its exit code says how it went: 0 succeeded,
    75 it was interrupted and asks to be continued (``preempted``), anything else failed.
    To be ended it gets SIGTERM, which it may use to save its work, and SIGKILL when the
    grace is over. What it started is killed when it has ended.

    An experiment that has succeeded is not run again: submitting it returns the job that did.

    Args:
        entry_point: Path of a Python script, which gets the path of the config as its
            argument; or ``package.module:function``, called with that path.
        max_running: How many run at once in one folder, by default as many as there are
            processors; further ones are ``pending``. Left out where there are devices.
        devices: What to give to one experiment each, such as ``("0", "1")``, or
            ``("0,1", "2,3")`` for two GPUs each. A device is given to one experiment of
            this user on this machine at a time, whichever search it belongs to.
        time_limit_s: How long an experiment may run, in seconds; then it is ended, and its
            state is ``timeout``.
        memory_limit_bytes: How much an experiment and what it started may hold in memory
            together, in bytes; looked at twice a second. With more it is killed, and has
            failed. Needs Linux.
        grace_s: Between SIGTERM and SIGKILL, in seconds.
        env: Environment variables to set besides those of this process.
        python: The interpreter that runs experiments, by default the one that runs this.

    Raises:
        LauncherError: If there is no such script or interpreter, the entry point is none,
            or a limit cannot be kept on this system.
        ValueError: If a number is out of range, a device is given twice, or devices and
            *max_running* are both given.
    """

    def __init__(  # noqa: PLR0913 -- each is set by name
        self,
        entry_point: str | Path,
        *,
        max_running: int | None = None,
        devices: Sequence[str | int] = (),
        time_limit_s: float | None = None,
        memory_limit_bytes: int | None = None,
        grace_s: float = 10.0,
        env: Mapping[str, str] | None = None,
        python: str | Path = sys.executable,
    ) -> None:
        self._devices = _checked_devices(devices)
        if self._devices and max_running is not None:
            msg = "give devices or max_running: with devices, each runs one experiment"
            raise ValueError(msg)
        if max_running is None:
            max_running = len(self._devices) or _num_processors()
        self.max_running: int | None = _at_least("max_running", max_running, 1)
        self._num_places = max_running
        for name, limit in (("time_limit_s", time_limit_s), ("grace_s", grace_s)):
            if limit is not None and not (math.isfinite(limit) and limit > 0):
                msg = f"{name} is {limit}: give a number of seconds above 0"
                raise ValueError(msg)
        if memory_limit_bytes is not None:
            _at_least("memory_limit_bytes", memory_limit_bytes, 1)
            if not Path("/proc/self/statm").exists():
                msg = "memory_limit_bytes needs Linux: there is no /proc here"
                raise LauncherError(msg)
        self.time_limit_s = time_limit_s
        self._limits = (
            str(time_limit_s or 0),
            str(memory_limit_bytes or 0),
            str(grace_s),
        )
        arguments = _arguments(str(entry_point))
        self._command = [_found_python(python), *arguments]
        # What tells searches apart that must not mix.
        self.entry_point = arguments[0] if len(arguments) == 1 else str(entry_point)
        self._env = _checked_env(env or {})
        self._submitted_s = time.monotonic()

    @property
    def poll_interval_s(self) -> float:
        """A tenth of the time since the last start, within bounds.

        So the end of short experiments is seen soon, and long ones are left in peace.
        """
        passed_s = time.monotonic() - self._submitted_s
        return min(max(passed_s / 10, _POLL_S), _LONGEST_POLL_S)

    def submit(
        self, experiments: Sequence[Experiment], *, folder: Path
    ) -> list[Submission]:
        """Start *experiments*, and return one entry for each, in order.

        See `mtf_gridsearch.launcher.Launcher.submit`.

        Raises:
            LauncherError: If there is no such folder, or the locks of devices cannot be
                made; nothing has been started then.
        """
        folder = Path(os.path.abspath(folder))  # noqa: PTH100 -- without following links
        if not folder.is_dir():
            msg = f"{folder}: there is no such folder; make it, with the configs in it"
            raise LauncherError(msg)
        places = self._places(folder)
        self._submitted_s = time.monotonic()
        _reap()
        return [self._submit(experiment, folder, places) for experiment in experiments]

    def states(self, job_ids: Sequence[str]) -> list[JobState]:
        """Return one state a job, in order; ``unknown`` for what is no job of this kind."""
        _reap()
        attempts = [Attempt.of(job_id) for job_id in job_ids]
        return [JobState.UNKNOWN if a is None else a.state() for a in attempts]

    def cancel(self, job_ids: Sequence[str]) -> None:
        """Ask jobs to end, without waiting for them. What has ended stays as it is."""
        _reap()
        for job_id in job_ids:
            if attempt := Attempt.of(job_id):
                attempt.cancel(_PATIENCE_S)

    def command(self, experiment: Experiment, *, folder: Path) -> list[str]:
        """Return what `submit` would run, without its supervision; touches nothing."""
        config = Path(folder).absolute() / experiment.experiment_name / "config.yaml"
        return [*self._command, str(config)]

    def outcomes(self, job_ids: Sequence[str]) -> list[Outcome]:
        """Return why jobs failed and what they used; nothing is known before their ends."""
        attempts = map(Attempt.of, job_ids)
        return [attempt.outcome() if attempt else Outcome() for attempt in attempts]

    def latest(self, names: Sequence[str], *, folder: Path) -> list[str | None]:
        """Return the last job of each experiment in *folder*; None where none is known."""
        jobs: list[str | None] = []
        for name in names:
            attempt = None
            with suppress(OSError):
                attempt = newest(Path(os.path.abspath(folder)) / name)  # noqa: PTH100 -- as in submit
            is_known = attempt is not None and attempt.state() is not JobState.UNKNOWN
            jobs.append(attempt.job_id if attempt is not None and is_known else None)
        return jobs

    def _places(self, folder: Path) -> list[str]:
        """Return what a runner is told about places, of which it takes one."""
        locks = _device_locks() if self._devices else folder / ".places"
        try:
            locks.mkdir(exist_ok=True)
        except OSError as error:
            msg = f"{locks}: cannot be made: {error.strerror or error}"
            raise LauncherError(msg) from error
        return [str(locks), str(self._num_places), *self._devices]

    def _submit(
        self, experiment: Experiment, folder: Path, places: list[str]
    ) -> Submission:
        name = experiment.experiment_name
        try:
            return Submission(
                experiment_name=name, job_id=self._start(name, folder, places)
            )
        except (LauncherError, OSError, ValueError) as error:
            return Submission(experiment_name=name, error=str(error))

    def _start(self, name: object, folder: Path, places: list[str]) -> str:
        """Start an experiment unless it runs or has succeeded; return its job's id."""
        if not isinstance(name, str) or not NAME.fullmatch(name):
            msg = (
                f"the name {name!r} is refused: at most 128 letters, digits, '.', '_' "
                f"and '-', of which the first is a letter or a digit"
            )
            raise LauncherError(msg)
        place = folder / name
        if not (place / "config.yaml").is_file():
            msg = f"{place / 'config.yaml'}: there is no such file; write it first"
            raise LauncherError(msg)
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline:
            with _lock_of_submitters(folder):
                last = newest(place)
                state = JobState.UNKNOWN if last is None else last.state()
                if last is not None and state in _KEPT:
                    return last.job_id
                lock_fd = _files.try_lock(str(place / ".lock"))
                if lock_fd is not None:
                    try:
                        number = 1 if last is None else last.number + 1
                        return self._spawn(Attempt(place, number), lock_fd, places)
                    finally:
                        os.close(lock_fd)
            time.sleep(
                _POLL_S
            )  # someone looks at the lock, or the last attempt just ended
        msg = f"{place / '.lock'} is held, by none of its attempts: end what holds it"
        raise LauncherError(msg)

    def _spawn(self, attempt: Attempt, lock_fd: int, places: list[str]) -> str:
        job_id = attempt.job_id
        attempt.create()
        config = attempt.folder / "config.yaml"
        lock_number = 3 if lock_fd != 3 else 4  # noqa: PLR2004 -- the first that is free
        arguments = [
            *(sys.executable, *_RUNNER_FLAGS, "-c", runner.START, *_FOLDERS),
            *(job_id, str(lock_number), *self._limits, *places),
            *("--", *self._command, str(config)),
        ]
        output = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        pid = os.posix_spawn(
            sys.executable,
            arguments,
            self._environ(attempt),
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, job_id + ".out", output, 0o666),
                (os.POSIX_SPAWN_OPEN, 2, job_id + ".err", output, 0o666),
                (os.POSIX_SPAWN_DUP2, lock_fd, lock_number),
            ],
            setsigmask=_BLOCKED,
        )
        _runners.add(pid)
        return job_id

    def _environ(self, attempt: Attempt) -> dict[str, str]:
        environ = {"PYTHONUNBUFFERED": "1", **os.environ, **self._env}
        environ.pop("MTF_DEVICE", None)
        if paths := environ.get("PYTHONPATH"):  # experiments run in their own folders
            absolute = map(os.path.abspath, paths.split(os.pathsep))
            environ["PYTHONPATH"] = os.pathsep.join(absolute)
        environ["MTF_EXPERIMENT_DIR"] = str(attempt.folder)
        environ["MTF_JOB_ID"] = attempt.job_id
        return environ


# What an experiment is not started again from.
_KEPT = frozenset({JobState.PENDING, JobState.RUNNING, JobState.SUCCEEDED})

# Neither variables nor site-packages.
_RUNNER_FLAGS = ("-I", "-S")
_PACKAGE = Path(runner.__file__).parents[1]
_FOLDERS = (str(_PACKAGE), str(_PACKAGE / "local"))

# Until the runner is ready to hear of them.
_BLOCKED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def _reap() -> None:
    """Take note of the ends of runners that this process started."""
    for pid in list(_runners):
        with suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG) == (0, 0):
                continue
        _runners.discard(pid)


@contextmanager
def _lock_of_submitters(folder: Path) -> Iterator[None]:
    """Let one process at a time decide whether an experiment in *folder* is to start."""
    path = folder / ".launch.lock"
    fd = lock_within(path, _PATIENCE_S)
    if fd is None:
        msg = f"{path} is held for too long: end the process that hangs with it"
        raise LauncherError(msg)
    try:
        yield
    finally:
        os.close(fd)


def _device_locks() -> Path:
    """Return the folder of the locks of devices, which is this user's alone."""
    folder = Path(tempfile.gettempdir()) / f"mtf-devices-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        info = folder.lstat()
    except OSError as error:
        msg = f"{folder}: cannot be made: {error.strerror or error}"
        raise LauncherError(msg) from error
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid():
        msg = f"{folder} is another user's: set TMPDIR to a folder of your own"
        raise LauncherError(msg)
    return folder


def _arguments(entry_point: str) -> list[str]:
    """Return the arguments that make an interpreter run an entry point."""
    script = Path(entry_point)
    if script.is_file():
        return [os.path.abspath(script)]  # noqa: PTH100 -- without following links
    if _FUNCTION.fullmatch(entry_point):
        module, _, function = entry_point.partition(":")
        return [_call.__file__, str(Path.cwd()), module, function]
    msg = (
        f"entry point {entry_point!r} is no script that exists in {Path.cwd()}, and not of "
        f"the form package.module:function"
    )
    raise LauncherError(msg)


def _found_python(python: str | Path) -> str:
    path = shutil.which(python)
    if not path:
        msg = f"there is no interpreter {str(python)!r}; give the path of one"
        raise LauncherError(msg)
    return os.path.abspath(path)  # noqa: PTH100 -- links lead out of an environment


def _checked_devices(devices: Sequence[str | int]) -> tuple[str, ...]:
    if isinstance(devices, str):
        msg = f"devices is the text {devices!r}: give a list, such as ['0', '1']"
        raise TypeError(msg)
    names = tuple(str(device) for device in devices)
    parts = [part for name in names for part in name.split(",")]
    for part in parts:
        if not _DEVICE.fullmatch(part):
            msg = f"{part!r} names no device: give an index, or a name such as GPU-8a2f"
            raise ValueError(msg)
    if len(set(parts)) < len(parts):
        msg = f"a device is given twice in {list(names)}: each runs one experiment"
        raise ValueError(msg)
    return names


def _checked_env(env: Mapping[str, str]) -> dict[str, str]:
    for name, value in env.items():
        if not name or "=" in name or "\0" in name + value:
            msg = f"{name!r} cannot be set in an environment"
            raise ValueError(msg)
    return dict(env)


def _at_least(name: str, value: int, least: int) -> int:
    if operator.index(value) < least:
        msg = f"{name} is {value}: give {least} or more"
        raise ValueError(msg)
    return value


def _num_processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
