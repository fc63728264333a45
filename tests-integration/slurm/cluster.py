"""A real Slurm cluster on this machine, for people and for tests.

    python3 tests-integration/slurm/cluster.py up
    SLURM_CONF=<what it says> sinfo
    python3 tests-integration/slurm/cluster.py down

A controller with accounting and two nodes of 32 processors, all on the loopback. Partitions
``low`` (preempted by ``high``), ``high`` and ``short`` (10 minutes at most, and preempted after a
grace); a QOS ``tiny`` (two jobs a user). Jobs see this repository and the Python that started the cluster, at the
same paths. It runs in containers of podman or Docker, or else in namespaces.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).parents[1]))

from slurm.containers import Containers
from slurm.engine import ROLES, Engine, EngineError
from slurm.namespaces import Namespaces
from slurm.settings import Settings, names

__all__ = ["Cluster", "ClusterError", "ClusterUnavailableError"]

ENGINES: dict[str, Callable[[Settings], Engine]] = {
    "podman": lambda settings: Containers(settings, "podman"),
    "docker": lambda settings: Containers(settings, "docker"),
    "namespaces": Namespaces,
}
CLIENTS = ("sacct", "sbatch", "scancel", "scontrol", "sinfo", "squeue", "srun")
# Variables by which these commands take options that nobody wrote.
OPTIONS = tuple(f"{name.upper()}_" for name in CLIENTS)
START_S = 90
COMMAND_S = 30
POLL_S = 0.1
# A job stays in these, unless it is requeued.
FINAL = frozenset(
    {
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
        *("OUT_OF_MEMORY", "TIMEOUT"),
    }
)


class ClusterError(Exception):
    """The cluster, or a job on it, does not do what is waited for."""


class ClusterUnavailableError(ClusterError):
    """No cluster can be started on this machine; the message says why."""


class Cluster:
    """One running cluster. `up` makes it, `load` finds it again.

    Attributes:
        conf: The file that ``SLURM_CONF`` has to name.
        sbatch_env: The environment of this process, with that variable and without what
            would change the options of Slurm's commands.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.settings = engine.settings
        self.conf = engine.settings.folder / "slurm.conf"
        others = ("SLURM_", *OPTIONS)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(others)}
        self.sbatch_env = {**kept, "SLURM_CONF": str(self.conf)}

    # ------------------------------------------------------------ its life

    @classmethod
    def up(
        cls, name: str = "main", *, engine: str | None = None, mounts: Iterable[Path] = ()
    ) -> Cluster:
        """Start a cluster and wait until its nodes are idle.

        Args:
            name: Tells it from others of this user.
            engine: One of `ENGINES`; the first that works if None.
            mounts: More folders that jobs see, at the same paths.

        Raises:
            ClusterUnavailableError: If no engine works here.
            ClusterError: If it exists, or started and did not get ready.
            ValueError: If the name or the engine is none.
        """
        if engine not in {None, *ENGINES}:
            message = f"{engine!r} is none of {', '.join(ENGINES)}"
            raise ValueError(message)
        if missing := [command for command in CLIENTS if shutil.which(command) is None]:
            message = f"{', '.join(missing)} not found: install the package slurm-client"
            raise ClusterUnavailableError(message)
        choices = [engine] if engine else [*ENGINES]
        try:
            settings = Settings.choose(name, mounts, engine=choices[0])
        except FileExistsError as error:
            message = f"{error.filename} exists: take that cluster down first"
            raise ClusterError(message) from error
        reasons = []
        for choice in choices:
            settings.save(choice)
            cluster = cls(ENGINES[choice](settings))
            try:
                cluster.engine.prepare()
                for role in ROLES:
                    cluster.engine.start(role)
                cluster.wait_idle()
            except EngineError as error:
                reasons.append(f"{choice}: {error}")
                with contextlib.suppress(EngineError):
                    cluster.engine.remove()
            except BaseException:
                cluster.down()
                raise
            else:
                return cluster
        shutil.rmtree(settings.folder)
        raise ClusterUnavailableError("; ".join(reasons))

    @classmethod
    def load(cls, name: str = "main") -> Cluster:
        """Return a cluster that `up` started, in this process or another.

        Raises:
            ClusterError: If there is none of that name.
        """
        try:
            choice, settings = Settings.load(name)
        except FileNotFoundError as error:
            message = f"there is no cluster {name!r}"
            raise ClusterError(message) from error
        return cls(ENGINES[choice](settings))

    def down(self) -> None:
        """End the cluster and all its jobs, and remove all it wrote."""
        self.engine.remove()
        shutil.rmtree(self.settings.folder)

    # ------------------------------------------------------------ its commands

    def run(
        self, *argv: str, cwd: Path | None = None, stdin: str = "", check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of Slurm on the host.

        Raises:
            ClusterError: If it fails, and *check* is true.
        """
        done = subprocess.run(
            argv,
            cwd=cwd or self.settings.folder,
            env=self.sbatch_env,
            input=stdin,
            capture_output=True,
            check=False,
            encoding="utf-8",
            timeout=COMMAND_S,
        )
        if check and done.returncode:
            message = f"{argv} exited {done.returncode}: {done.stderr.strip()}"
            raise ClusterError(message)
        return done

    def sbatch(self, script: str, *options: str, cwd: Path | None = None) -> str:
        """Submit the lines of *script*, to be run by bash, and return the job's id.

        Raises:
            ClusterError: If it is refused.
        """
        argv = ("sbatch", "--parsable", *options)
        return self.run(*argv, cwd=cwd, stdin=f"#!/bin/bash\n{script}\n").stdout.strip()

    def states(self, job_id: str) -> list[str]:
        """Return the states of a job, or of each task of an array, as squeue names them."""
        argv = ("squeue", "--noheader", "--array", "--states=all", f"--jobs={job_id}")
        return self.run(*argv, "--format=%T").stdout.split()

    def job(self, job_id: str) -> dict[str, str]:
        """Return what scontrol shows of a job that the controller still knows."""
        text = self.run("scontrol", "--oneliner", "show", "job", job_id).stdout
        pairs = (word.partition("=") for word in text.split() if "=" in word)
        return {name: value for name, _, value in pairs}

    def accounted(self, job_id: str, *, duplicates: bool = False) -> list[str]:
        """Return the states of a job in accounting, which may lag by seconds."""
        argv = ("sacct", "--noheader", "--allocations", "--parsable2", "--format=State")
        more = ("--duplicates",) if duplicates else ()
        return self.run(*argv, *more, f"--jobs={job_id}").stdout.splitlines()

    # ------------------------------------------------------------ waiting

    def wait_until(
        self, condition: Callable[[], bool], *, what: str, deadline_s: float
    ) -> None:
        """Ask until *condition* holds.

        Raises:
            ClusterError: If it does not within *deadline_s*.
        """
        deadline = time.monotonic() + deadline_s
        while not condition():
            if time.monotonic() > deadline:
                message = f"after {deadline_s} s: not {what}\n{self.logs()}"
                raise ClusterError(message)
            time.sleep(POLL_S)

    def wait_for(
        self, job_id: str, states: str | Collection[str], deadline_s: float
    ) -> str:
        """Wait until a job, and each task of an array, is in one of *states*.

        Returns:
            The state; of an array, the states in use, joined by commas.

        Raises:
            ClusterError: If it is not within *deadline_s*, or has ended in another state.
        """
        wanted = {states} if isinstance(states, str) else set(states)
        deadline = time.monotonic() + deadline_s
        while True:
            now = set(self.states(job_id))
            if now and now <= wanted:
                return ",".join(sorted(now))
            if (now & FINAL) - wanted or time.monotonic() > deadline:
                shown = self.run("scontrol", "show", "job", job_id, check=False).stdout
                message = (
                    f"job {job_id} is {sorted(now)}, not {sorted(wanted)}\n"
                    f"{shown}\n{self.logs()}"
                )
                raise ClusterError(message)
            time.sleep(POLL_S)

    def wait_idle(self, deadline_s: float = START_S) -> None:
        """Wait until both nodes are idle.

        Raises:
            ClusterError: If they are not within *deadline_s*, or the controller has ended.
        """
        deadline = time.monotonic() + deadline_s
        argv = ("sinfo", "--noheader", "--Node", "--partition=low", "--format=%T")
        while True:
            # It would ask the DNS, were the file not there.
            if self.conf.exists():
                done = self.run(*argv, check=False)
                if done.stdout.split() == ["idle", "idle"]:
                    return
            if time.monotonic() > deadline or "ctl" not in self.engine.running():
                message = f"the nodes are not idle\n{self.logs()}"
                raise ClusterError(message)
            time.sleep(POLL_S)

    def logs(self, lines: int = 8) -> str:
        """Return the ends of the daemons' logs."""
        files = sorted(self.settings.folder.glob("log/*.log"))
        files += sorted(self.settings.folder.glob("*.out"))
        texts = ((file.name, file.read_text("utf-8", "replace")) for file in files)
        ends = ((name, "\n".join(text.splitlines()[-lines:])) for name, text in texts)
        return "\n".join(f"== {name}\n{end}" for name, end in ends)

    # ------------------------------------------------------------ faults

    def kill_node(self, name: str) -> None:
        """End a node and its jobs as a loss of power would."""
        self.engine.kill(name)

    def restart_node(self, name: str) -> None:
        """Start a killed node; `wait_idle` tells when it is back."""
        self.engine.start(name)

    def stop_controller(self, *, kill: bool = False) -> None:
        """End slurmctld; accounting and jobs go on.

        Args:
            kill: By SIGKILL, so that it loses what it had not written: up to some seconds.
        """
        number = "-KILL" if kill else "-TERM"
        self.engine.execute("ctl", ("pkill", number, "-x", "slurmctld"))
        self.wait_until(
            lambda: not self._controller_runs(), what="stopped", deadline_s=COMMAND_S
        )

    def _controller_runs(self) -> bool:
        listing = self.engine.execute("ctl", ("ps", "-A", "-o", "comm="))
        return "slurmctld" in listing.split()

    def start_controller(self) -> None:
        """Start slurmctld again and wait until it answers."""
        self.engine.execute("ctl", ("slurmctld",))
        self.wait_until(
            lambda: not self.run("sinfo", check=False).returncode,
            what="answering",
            deadline_s=COMMAND_S,
        )

    def restart_controller(self, *, kill: bool = False) -> None:
        """Stop and start slurmctld."""
        self.stop_controller(kill=kill)
        self.start_controller()


def describe(cluster: Cluster) -> str:
    """Return what a person needs to know of a cluster."""
    return (
        f"{cluster.settings.name}: {cluster.engine.name}, "
        f"running: {' '.join(sorted(cluster.engine.running())) or 'nothing'}\n"
        f"logs: {cluster.settings.folder / 'log'}\n"
        f"export SLURM_CONF={cluster.conf}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Start, show or end clusters; return the exit status."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("command", choices=["up", "down", "status"])
    parser.add_argument("--name", default="main", help="one of several clusters")
    parser.add_argument(
        "--engine", choices=ENGINES, help="the first that works if left out"
    )
    parser.add_argument(
        "--mount", type=Path, action="append", default=[], help="for jobs"
    )
    options = parser.parse_args(argv)
    said = ""
    try:
        if options.command == "up":
            cluster = Cluster.up(
                options.name, engine=options.engine, mounts=options.mount
            )
            said = describe(cluster)
        elif options.command == "down":
            Cluster.load(options.name).down()
        else:
            said = "\n".join(describe(Cluster.load(name)) for name in names())
            said = said or "no cluster"
    except (ClusterError, EngineError, OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    if said:
        sys.stdout.write(f"{said}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
