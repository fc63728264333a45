"""The process that supervises one experiment.

It starts once for each experiment, so it loads as little as can be: the C module beneath
``signal`` (that loads ``enum``, which costs more than all the rest), no site-packages, and
of its package only what stands beside it, without the package's own ``__init__``: see
`START`.

What it promises, on Linux:

* The experiment ends with its runner, however that ends: its process is killed by the kernel
  (``PR_SET_PDEATHSIG``), and its process group by a pipe which only the runner can write to
  (``F_SETSIG``, `fcntl(2)`).
* What an experiment leaves behind is killed when it ends, daemons included: they become
  children of the runner (``PR_SET_CHILD_SUBREAPER``, `prctl(2)`).
* The locks of the experiment and of its devices are free only when neither the runner nor
  the experiment's own process lives: both hold them.

Elsewhere an experiment whose runner was killed goes on, and counts as running until it ends.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]
import fcntl
import os
import select
import sys
import time

from mtf_gridsearch.local import _files, _processes

__all__ = ["START", "main"]

START = """\
import sys
for name, folder in zip(("mtf_gridsearch", "mtf_gridsearch.local"), sys.argv[1:]):
    package = sys.modules[name] = type(sys)(name)
    package.__path__ = [folder]
from mtf_gridsearch.local.runner import main
main(sys.argv[3:])
"""
"""Program that runs `main`; its first two arguments are the folders of the packages."""

_EXIT_TO_BE_CONTINUED = 75  # EX_TEMPFAIL of sysexits.h
_REASON_CHARS = 600
_PLACE_POLL_S = 0.1
_MEMORY_POLL_S = 0.5
_TOUCH_S = 3600.0  # what cleans temporary folders spares what is used
_LAST_KILL_S = 10.0
_WANTED = (signal.SIGTERM, signal.SIGCHLD, signal.SIGINT, signal.SIGHUP)


class Signals:
    """Signals as they come, one by one, for a loop that waits with a time-out."""

    def __init__(self) -> None:
        self._end, write_end = os.pipe()
        os.set_blocking(self._end, False)
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        for number in _WANTED:
            signal.signal(number, lambda *_: None)
        # Whoever starts this process blocks them, so that none is lost before this.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _WANTED)

    def wait(self, timeout_s: float) -> bool:
        """Wait for a signal; return whether one asked to end."""
        select.select([self._end], [], [], max(0.0, timeout_s))
        try:
            return signal.SIGTERM in os.read(self._end, 4096)
        except BlockingIOError:
            return False


class Place:
    """One of the places where experiments run, taken until both processes have ended.

    Args:
        folder: Of the locks.
        name: The devices, parted by commas, or a number.
    """

    def __init__(self, folder: str, name: str) -> None:
        self.name = name
        self._paths = [f"{folder}/{part.replace('/', '%2F')}" for part in name.split(",")]
        self.fds: list[int] = []

    def take(self) -> bool:
        """Take it; return whether it was free."""
        for path in sorted(self._paths):
            fd = _files.try_lock(path)
            if fd is None:
                for taken in self.fds:
                    os.close(taken)
                self.fds = []
                return False
            self.fds.append(fd)
        return True

    def touch(self) -> None:
        """Show that the locks are in use."""
        for fd in self.fds:
            os.utime(fd)


def _take_place(places: list[Place], signals: Signals) -> Place | None:
    """Wait for a free place; return None if asked to end before."""
    while True:
        for place in places:
            if place.take():
                return place
        if signals.wait(_PLACE_POLL_S):
            return None


def _start(command: list[str], environ: dict[str, str], fds: list[int]) -> int:
    """Start the experiment, to die with this process and to keep *fds*; return its id."""
    runner = os.getpid()
    life, life_end = os.pipe()
    # Until the handlers of this process are gone from the other, a signal would be lost.
    signal.pthread_sigmask(signal.SIG_BLOCK, _WANTED)
    pid = os.fork()
    if pid:
        os.close(life)
        try:  # noqa: SIM105 -- contextlib loads much
            os.setpgid(pid, pid)  # here too, so that it is done when this returns
        except OSError:
            pass  # it has been done, and a program runs already
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _WANTED)
        return pid
    try:
        os.setpgid(0, 0)
        _processes.die_with_parent()
        if os.getppid() != runner:
            os._exit(1)
        os.close(life_end)
        if hasattr(fcntl, "F_SETSIG"):
            fcntl.fcntl(life, fcntl.F_SETOWN, -os.getpid())
            fcntl.fcntl(life, fcntl.F_SETSIG, signal.SIGKILL)
            fcntl.fcntl(life, fcntl.F_SETFL, os.O_ASYNC)
        for fd in (life, *fds):
            os.set_inheritable(fd, True)  # noqa: FBT003
        for number in (*_WANTED, signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores these
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        os.execve(command[0], command, environ)  # noqa: S606
    except OSError as error:
        os.write(2, f"{command[0]} cannot be run: {error}\n".encode())
    finally:
        os._exit(127)


class Watch:
    """Waits for the experiment's end, keeps its limits, and cleans up behind it.

    Args:
        pid: Its process, which leads its group.
        time_limit_s: How long it may run; 0 where there is no limit.
        memory_limit_bytes: How much it may hold in memory; 0 where there is no limit.
        grace_s: How long it has to end by itself once it is asked to.
    """

    def __init__(
        self, pid: int, *, time_limit_s: float, memory_limit_bytes: int, grace_s: float
    ) -> None:
        self._pid = pid
        self._began_s = time.monotonic()
        self._time_limit_s = time_limit_s
        self._memory_limit_bytes = memory_limit_bytes
        self._grace_s = grace_s
        self._verdict: tuple[str, str] | None = None
        self._kill_at_s = float("inf")
        self._cpu_s = 0.0
        self._max_rss = 0

    def run(self, signals: Signals, place: Place) -> tuple[int, tuple[str, str] | None]:
        """Return how it ended, as `os.wait4` says, and why it was made to."""
        while not self._has_ended():
            is_asked = signals.wait(self._timeout_s())
            if self._has_ended():
                break  # by itself, before anything was done about it
            if is_asked:
                self._ask_to_end("cancelled", "it was cancelled")
            self._check_limits()
            place.touch()
        self._signal_group(signal.SIGKILL)
        code = self._reap(self._pid)
        self._kill_adopted(signals)
        return code, self._verdict

    def usage(self) -> dict[str, object]:
        """Return what it and its descendants used, of which the end was waited for."""
        unit = 1 if sys.platform == "darwin" else 1024
        return {
            "wall_s": round(time.monotonic() - self._began_s, 3),
            "cpu_s": round(self._cpu_s, 3),
            "max_rss_bytes": self._max_rss * unit,
        }

    def _has_ended(self) -> bool:
        """Tell whether the experiment's process is one to be waited for; reap others."""
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        while result := os.waitid(os.P_ALL, 0, flags):
            if result.si_pid == self._pid:
                return True  # not reaped, so that the id of its group stays its own
            self._reap(result.si_pid)
        return False

    def _reap(self, pid: int) -> int:
        _, code, used = os.wait4(pid, 0)
        self._cpu_s += used.ru_utime + used.ru_stime
        self._max_rss = max(self._max_rss, used.ru_maxrss)
        return code

    def _timeout_s(self) -> float:
        now = time.monotonic()
        until = min(now + _TOUCH_S, self._kill_at_s)
        if self._time_limit_s and self._verdict is None:
            until = min(until, self._began_s + self._time_limit_s)
        if self._memory_limit_bytes:
            until = min(until, now + _MEMORY_POLL_S)
        return until - now

    def _check_limits(self) -> None:
        now = time.monotonic()
        if self._time_limit_s and now - self._began_s >= self._time_limit_s:
            limit = f"{self._time_limit_s:g} s"
            self._ask_to_end("timeout", f"it ran longer than its limit of {limit}")
        if self._memory_limit_bytes:
            used = _processes.memory_bytes(self._memory_limit_bytes)
            if used > self._memory_limit_bytes:
                limit = f"{self._memory_limit_bytes:,} bytes"
                reason = (
                    f"it held {used:,} bytes in memory, more than its limit of {limit}"
                )
                self._verdict = self._verdict or ("failed", reason)
                self._kill_at_s = now
        if now >= self._kill_at_s:
            self._signal_group(signal.SIGKILL)
            self._kill_at_s = float("inf")

    def _ask_to_end(self, status: str, reason: str) -> None:
        if self._verdict is None:
            self._verdict = status, reason
            self._kill_at_s = time.monotonic() + self._grace_s
            # To its own process alone: what it started is its to end, while it saves.
            os.kill(self._pid, signal.SIGTERM)

    def _signal_group(self, number: int) -> None:
        try:  # noqa: SIM105 -- as above
            os.killpg(self._pid, number)
        except PermissionError:
            pass  # as macOS says of a zombie

    def _kill_adopted(self, signals: Signals) -> None:
        """Kill what the experiment left behind, for as long as more of it comes up."""
        give_up_s = time.monotonic() + _LAST_KILL_S
        while time.monotonic() < give_up_s:
            for pid in _processes.children(os.getpid()):
                try:  # noqa: SIM105 -- as above
                    os.kill(int(pid), signal.SIGKILL)
                except PermissionError:
                    pass  # it became another user's
            try:
                while result := os.waitid(
                    os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT
                ):
                    self._reap(result.si_pid)
            except ChildProcessError:
                return
            signals.wait(_PLACE_POLL_S)


def _verdict(
    code: int, verdict: tuple[str, str] | None, error_path: str
) -> tuple[str, str]:
    """Return the state that an experiment ended in, and why."""
    if verdict is not None:
        return verdict
    number = os.waitstatus_to_exitcode(code)
    if number == 0:
        return "succeeded", ""
    if number == _EXIT_TO_BE_CONTINUED:
        return "preempted", f"exit code {number}: it asks to be continued"
    if number < 0:
        what = f"killed by signal {-number} ({signal.strsignal(-number)})"
        if -number == signal.SIGKILL:
            what += ", from outside or because the machine had no memory left"
        return "failed", what
    lines = _files.tail(error_path).decode("utf-8", "replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return "failed", f"exit code {number}" + (f": {last[:_REASON_CHARS]}" if last else "")


def main(arguments: list[str]) -> None:
    """Supervise one experiment.

    Args:
        arguments: Its job's id; the number of the file that holds its lock; the three
            limits of `Watch`; the folder of the places, how many there are, the devices
            that they are, if they are; ``--``; its command.
    """
    job_path, lock_fd, time_limit_s, memory_limit_bytes, grace_s, *rest = arguments
    folder, count, *devices = rest[: rest.index("--")]
    command = rest[rest.index("--") + 1 :]
    os.setsid()
    signals = Signals()
    # From here on files are named from the folder, which may be moved meanwhile.
    folder_of_job, job_id = os.path.split(job_path)  # as above
    os.chdir(folder_of_job)
    path = job_id + ".job"
    began = _processes.began("self")
    _files.append_line(path, "runner", {"pid": os.getpid(), "began": began})
    _processes.adopt_orphans()
    names = devices or [str(number) for number in range(int(count))]
    place = _take_place([Place(folder, name) for name in names], signals)
    if place is None:
        _files.append_line(
            path, "ended", {"status": "cancelled", "reason": "before it began"}
        )
        return
    environ = dict(os.environ)
    if devices:
        environ |= {"MTF_DEVICE": place.name, "CUDA_VISIBLE_DEVICES": place.name}
    pid = _start(command, environ, [int(lock_fd), *place.fds])
    watch = Watch(
        pid,
        time_limit_s=float(time_limit_s),
        memory_limit_bytes=int(memory_limit_bytes),
        grace_s=float(grace_s),
    )
    _files.append_line(path, "running", {"pid": pid, "place": place.name})
    status, reason = _verdict(*watch.run(signals, place), job_id + ".err")
    end = {"status": status, **watch.usage(), "reason": reason}
    _files.append_line(path, "ended", end)
