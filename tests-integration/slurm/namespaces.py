"""The cluster without containers: each role in namespaces of its own, by root.

The daemons are the machine's own. A role has its own host name, processes, shared memory
and view of `/etc/hosts`, and the files of the machine.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from slurm.engine import HERE, ROLES, Engine, EngineError, run

__all__ = ["Namespaces"]

DAEMONS = ("mariadb-install-db", "mariadbd", "munged", "slurmctld", "slurmd", "slurmdbd")
PACKAGES = (
    "mariadb-client-core mariadb-server-core munge slurmctld slurmd slurmdbd "
    "slurm-wlm-basic-plugins slurm-wlm-mysql-plugin"
)
DEADLINE_S = 20
# $0 is the log, $1 the file that tells who holds the namespaces: a pid, and when it started.
OUTSIDE = """
echo "$$ $(cut -d' ' -f22 </proc/$$/stat)" >"$1.new"
mv "$1.new" "$1"
shift
exec "$@" </dev/null >>"$0" 2>&1
"""
INSIDE = """
mount --bind "$0" /etc/hosts
mount -t tmpfs -o size=1g,mode=1777 tmpfs /dev/shm
hostname "$1"
shift
# Stays, as the first process has to wait for orphans.
"$@" || exit
"""


def started(pid: int) -> str:
    """Return when a process started, in the kernel's ticks; empty if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait until *condition* holds.

    Raises:
        EngineError: If it does not soon.
    """
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            message = f"gave up waiting until {what}"
            raise EngineError(message)
        time.sleep(0.02)


class Namespaces(Engine):
    """Runs roles under ``unshare``."""

    name = "namespaces"

    def prepare(self) -> None:
        """See that the daemons are installed.

        Raises:
            EngineError: If one is not, or if they could not be started.
        """
        if os.geteuid():
            message = "without containers, only root can start the cluster"
            raise EngineError(message)
        missing = [name for name in DAEMONS if shutil.which(name) is None]
        if missing:
            told = f"install the packages {PACKAGES}"
            message = f"{', '.join(missing)} not found: {told}"
            raise EngineError(message)

    def _holder(self, role: str) -> int:
        """Return the process that holds the role's namespaces; 0 if it has ended."""
        file = self.settings.folder / f"{role}.pid"
        if not file.exists():
            return 0
        pid, ticks = file.read_text("utf-8").split()
        return int(pid) if started(int(pid)) == ticks else 0

    def _first(self, role: str) -> int:
        """Return the first process inside; 0 if there is none."""
        holder = self._holder(role)
        file = Path(f"/proc/{holder}/task/{holder}/children")
        children = file.read_text("utf-8").split() if holder else []
        return int(children[0]) if children else 0

    def start(self, role: str) -> None:
        """Start the role in new namespaces, as no child of this process."""
        folder = self.settings.folder
        hosts = folder / "hosts"
        others = Path("/etc/hosts").read_text("utf-8")
        hosts.write_text(f"127.0.0.1 {' '.join(ROLES)}\n{others}", "utf-8")
        (folder / f"{role}.pid").unlink(missing_ok=True)
        run(
            (
                *("setsid", "--fork", "sh", "-ec", OUTSIDE),
                *(f"{folder / role}.out", f"{folder / role}.pid"),
                *("unshare", "--mount", "--uts", "--ipc", "--pid", "--fork"),
                *("--kill-child", "--mount-proc", "sh", "-ec", INSIDE, str(hosts), role),
                *(str(HERE / "entrypoint.sh"), *ROLES[role]),
            ),
            env={**os.environ, **self.settings.environment},
        )
        wait_until(lambda: bool(self._first(role)), f"{role} has started")

    def kill(self, role: str) -> None:
        """Kill the holder and, with the first process, all that is inside."""
        holder, first = self._holder(role), self._first(role)
        for pid in filter(None, (first, holder)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(
            lambda: not started(first) and not started(holder), f"{role} has ended"
        )

    def execute(self, role: str, argv: Sequence[str]) -> str:
        """Run a command in the role's namespaces.

        Raises:
            EngineError: If the role does not run, or the command fails.
        """
        if not (first := self._first(role)):
            message = f"{role} does not run"
            raise EngineError(message)
        enter = ("nsenter", f"--target={first}", "--mount", "--uts", "--pid", "--root")
        return run((*enter, *argv), env={**os.environ, **self.settings.environment})

    def running(self) -> set[str]:
        """Return the roles whose namespaces are held."""
        return {role for role in ROLES if self._first(role)}

    def remove(self) -> None:
        """Kill all roles."""
        for role in ROLES:
            self.kill(role)
