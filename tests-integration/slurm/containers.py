"""The cluster in containers of podman or Docker, one for each role, on the host's network.

No container is privileged. The image is built when it is missing, of the host's own
distribution, so that the host's Slurm commands speak the version of the daemons and its
virtual environments find their C library. Where mmdebstrap is installed the base comes
from the mirrors that apt is set up with, and from a registry of images otherwise.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from slurm.engine import HERE, ROLES, Engine, EngineError, run
from slurm.settings import Settings

__all__ = ["Containers", "Distribution"]

IMAGE = "localhost/mtf-slurm"
BUILT_FROM = ("Containerfile", "entrypoint.sh", "slurm.conf.in", "slurmdbd.conf.in")
BUILD_S = 1800


class Distribution(NamedTuple):
    """A distribution of Linux: ``debian``, ``12``, ``bookworm``."""

    kind: str
    version: str
    codename: str

    @classmethod
    def of_this_machine(cls) -> Distribution:
        """Return this machine's if its packages have the names we use, else Debian."""
        try:
            release = platform.freedesktop_os_release()
        except OSError:
            release = {}
        if release.get("ID") in {"debian", "ubuntu"} and "VERSION_ID" in release:
            return cls(
                *(release[key] for key in ("ID", "VERSION_ID", "VERSION_CODENAME"))
            )
        return cls("debian", "12", "bookworm")


class Containers(Engine):
    """Runs roles with *command*, which is ``podman`` or ``docker``."""

    def __init__(self, settings: Settings, command: str) -> None:
        super().__init__(settings)
        self.name = command
        self.distribution = Distribution.of_this_machine()

    def _engine(self, *argv: str | Path, timeout_s: float = 60) -> str:
        # crun, podman's first choice, refuses version 1 of cgroups.
        old = not Path("/sys/fs/cgroup/cgroup.controllers").exists()
        choice = ("--runtime=runc",) if old and self.name == "podman" else ()
        env = {"CONTAINERS_CONF": str(HERE / "containers.conf"), **os.environ}
        return run((self.name, *choice, *argv), env=env, timeout_s=timeout_s)

    def _container(self, role: str) -> str:
        return f"{self.settings.name}-{role}"

    @cached_property
    def image(self) -> str:
        """The image's name; another one whenever a file that it is built from changes."""
        digest = hashlib.sha256(repr(self.distribution).encode())
        for name in BUILT_FROM:
            digest.update((HERE / name).read_bytes())
        return f"{IMAGE}:{digest.hexdigest()[:12]}"

    def prepare(self) -> None:
        """Build the image if it is missing, and remove older ones.

        Raises:
            EngineError: If there is no engine, or the image cannot be built.
        """
        if shutil.which(self.name) is None:
            message = f"{self.name} is not installed"
            raise EngineError(message)
        if self.name == "podman" and os.geteuid():
            message = "podman can keep users apart for root only"
            raise EngineError(message)
        known = self._engine("images", "--format={{.Repository}}:{{.Tag}}").split()
        if self.image in known:
            return
        sys.stderr.write(f"building {self.image} with {self.name}\n")
        self._engine(
            *("build", "--network=host", f"--build-arg=BASE={self._base(known)}"),
            *(f"--tag={self.image}", f"--file={HERE / 'Containerfile'}", HERE),
            timeout_s=BUILD_S,
        )
        for old in known:
            if old.startswith(f"{IMAGE}:"):
                with contextlib.suppress(EngineError):  # a cluster runs on it
                    self._engine("rmi", old)

    def _base(self, known: Sequence[str]) -> str:
        kind, version, _ = self.distribution
        base = f"localhost/{kind}:{version}"
        if base in known:
            return base
        if shutil.which("mmdebstrap") is None:
            return f"{kind}:{version}"
        self._make_base(base)
        return base

    def _make_base(self, base: str) -> None:
        kind, _, codename = self.distribution
        form = "deb $(REPO_URI) $(RELEASE) $(COMPONENT)"
        which = ("Created-By: Packages", f"Origin: {kind.title()}")
        sources = run(
            ("apt-get", "indextargets", f"--format={form}", *which)
        ).splitlines()
        if not sources:
            message = "apt knows no packages: run `apt-get update`"
            raise EngineError(message)
        archive = self.settings.folder / "base.tar"
        log = self.settings.folder / "mmdebstrap.log"
        make = ("mmdebstrap", "--variant=minbase", f"--logfile={log}", codename)
        try:
            run((*make, archive, *sources), timeout_s=BUILD_S)
            self._engine("import", archive, base, timeout_s=BUILD_S)
        finally:
            archive.unlink(missing_ok=True)

    def arguments(self, role: str) -> tuple[str, ...]:
        """Return what makes the container of *role*; compose.yaml says the same."""
        folders = (self.settings.folder, *self.settings.mounts)
        # Jobs run as users of this machine.
        files = ("/etc/passwd", "/etc/group")
        variables = self.settings.environment.items()
        return (
            *(f"--name={self._container(role)}", f"--hostname={role}", "--network=host"),
            *(f"--label=mtf-slurm={self.settings.name}", "--pids-limit=-1"),
            "--shm-size=1g",
            *(f"--add-host={name}:127.0.0.1" for name in ROLES),
            *(f"--env={name}={value}" for name, value in variables),
            *(f"--volume={path}:{path}" for path in folders),
            *(f"--volume={path}:{path}:ro" for path in files),
            *(self.image, *ROLES[role]),
        )

    def start(self, role: str) -> None:
        """Start the role's container, as it was if it was killed."""
        if role in self._roles("--all"):
            self._engine("start", self._container(role))
        else:
            self._engine("run", "--detach", *self.arguments(role))

    def kill(self, role: str) -> None:
        """Kill the role's container, if it runs."""
        if role in self.running():
            self._engine("kill", "--signal=KILL", self._container(role))
            self._engine("wait", self._container(role))

    def execute(self, role: str, argv: Sequence[str]) -> str:
        """Run a command in the role's container."""
        return self._engine("exec", self._container(role), *argv)

    def running(self) -> set[str]:
        """Return the roles whose containers run."""
        return self._roles()

    def _roles(self, *options: str) -> set[str]:
        label = f"--filter=label=mtf-slurm={self.settings.name}"
        names = self._engine("ps", *options, label, "--format={{.Names}}").split()
        return {name.rpartition("-")[2] for name in names}

    def remove(self) -> None:
        """Remove the containers."""
        if roles := sorted(self.running()):  # which podman would give 10 s to end
            with contextlib.suppress(EngineError):  # one has ended by itself
                self._engine("kill", "--signal=KILL", *map(self._container, roles))
        if roles := sorted(self._roles("--all")):
            self._engine("rm", "--force", "--volumes", *map(self._container, roles))
        if os.geteuid():  # what root in a container wrote, only root can remove
            folder = self.settings.folder
            empty = ("find", self.image, str(folder), "-mindepth", "1", "-delete")
            self._engine(
                "run",
                "--rm",
                "--network=none",
                f"--volume={folder}:{folder}",
                "--entrypoint",
                *empty,
            )
