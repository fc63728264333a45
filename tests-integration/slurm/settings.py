"""Where a cluster lies on this machine: its folder, its ports, and what its jobs see."""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import os
import re
import socket
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

__all__ = ["Settings", "clusters_folder", "job_folders", "names"]

FIRST_PORT = 16817
NUM_PORTS = 4
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
# The image has its own; a folder of the host's would hide it.
SYSTEM = tuple(
    map(Path, ("/", "/bin", "/etc", "/lib", "/lib64", "/sbin", "/usr", "/var"))
)


def clusters_folder() -> Path:
    """Return the folder of this user's clusters; a short path, as sockets need one.

    Raises:
        PermissionError: If another user has made it.
    """
    folder = Path(tempfile.gettempdir()).resolve() / f"mtf-slurm-{os.getuid()}"
    folder.mkdir(mode=0o755, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        message = f"{folder} belongs to another user"
        raise PermissionError(message)
    return folder


def names() -> list[str]:
    """Return the names of this user's clusters."""
    return sorted(path.parent.name for path in clusters_folder().glob("*/cluster.json"))


def job_folders(more: Iterable[Path] = ()) -> tuple[Path, ...]:
    """Return what jobs need to see: the repository, this Python, and *more*."""
    repository = Path(__file__).parents[2]
    own = (repository, Path(sys.prefix), Path(sys.base_prefix), *more)
    folders: list[Path] = []
    for path in sorted({path.resolve() for path in own}):
        inside = any(path.is_relative_to(folder) for folder in folders)
        if not inside and path not in SYSTEM:
            folders.append(path)
    return tuple(folders)


def ports_are_free(first: int) -> bool:
    """Return whether nothing listens on the ports of a cluster that begin at *first*."""
    with contextlib.ExitStack() as stack:
        for port in range(first, first + NUM_PORTS):
            listener = stack.enter_context(socket.socket())
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                return False
    return True


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from choosing names and ports."""
    with (folder / ".lock").open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What one cluster is made with.

    Attributes:
        name: Of the cluster, unique on this machine.
        folder: Where all that it writes goes.
        port: The first of four free ones of the loopback.
        users: Who may submit jobs, besides root.
        mounts: What jobs see of this machine, at the same paths.
    """

    name: str
    folder: Path
    port: int
    users: tuple[str, ...]
    mounts: tuple[Path, ...]

    @classmethod
    def choose(cls, name: str, mounts: Iterable[Path], *, engine: str) -> Self:
        """Make a folder for a new cluster, keep ports for it, and `save` it.

        Raises:
            ValueError: If *name* is not short and simple.
            FileExistsError: If there is a cluster of that name.
        """
        if NAME.fullmatch(name) is None:
            message = f"{name!r} does not match {NAME.pattern}"
            raise ValueError(message)
        clusters = clusters_folder()
        with locked(clusters):
            saved = (path.read_text("utf-8") for path in clusters.glob("*/cluster.json"))
            taken = {json.loads(text)["port"] for text in saved}
            ports = range(FIRST_PORT, FIRST_PORT + 1000, NUM_PORTS)
            free = (port for port in ports if port not in taken and ports_are_free(port))
            settings = cls(
                name=f"mtf-slurm-{os.getuid()}-{name}",
                folder=clusters / name,
                port=next(free),
                users=tuple({getpass.getuser()} - {"root"}),
                mounts=job_folders(mounts),
            )
            settings.folder.mkdir()
            settings.save(engine)
        return settings

    def save(self, engine: str) -> None:
        """Write down what runs the cluster, and with what."""
        text = json.dumps({**asdict(self), "engine": engine}, default=str)
        (self.folder / "cluster.json").write_text(text, "utf-8")

    @classmethod
    def load(cls, name: str) -> tuple[str, Self]:
        """Return what `save` wrote of a cluster.

        Raises:
            FileNotFoundError: If there is none of that name.
        """
        file = clusters_folder() / name / "cluster.json"
        saved = json.loads(file.read_text("utf-8"))
        settings = cls(
            name=saved["name"],
            folder=file.parent,
            port=saved["port"],
            users=tuple(saved["users"]),
            mounts=tuple(map(Path, saved["mounts"])),
        )
        return saved["engine"], settings

    @property
    def environment(self) -> dict[str, str]:
        """What entrypoint.sh reads, and the commands of Slurm beside it."""
        return {
            "MTF_SLURM_STATE": str(self.folder),
            "MTF_SLURM_PORT": str(self.port),
            "MTF_SLURM_USERS": ",".join(self.users),
            # Without a file to read, the commands of Slurm would ask the DNS for one.
            "SLURM_CONF": str(self.folder / "daemons" / "slurm.conf"),
        }
