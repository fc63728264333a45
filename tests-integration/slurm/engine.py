"""What runs the three roles of the cluster: containers, or namespaces of their own.

An engine starts `entrypoint.sh` once for each role, can end one role as a loss of power
would, and takes all down. It knows nothing of Slurm.
"""

from __future__ import annotations

import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from slurm.settings import Settings

__all__ = ["HERE", "ROLES", "Engine", "EngineError", "run"]

HERE = Path(__file__).parent
# The hosts' names, and what entrypoint.sh is told on each.
ROLES = {"ctl": ("controller",), "n1": ("node", "n1"), "n2": ("node", "n2")}


class EngineError(Exception):
    """The cluster cannot run like this here; the message says why."""


def run(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    timeout_s: float = 60,
) -> str:
    """Return what *argv* wrote.

    Raises:
        EngineError: If it is missing, fails or takes too long.
    """
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(
            words,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        message = f"{words[0]}: {error}"
        raise EngineError(message) from error
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip()[-2000:]
        message = f"`{' '.join(words[:4])} ...` exited {done.returncode}: {said}"
        raise EngineError(message)
    return done.stdout.decode("utf-8", "replace")


class Engine(ABC):
    """Runs the roles of one cluster. Everything raises `EngineError` if it fails."""

    name: str

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @abstractmethod
    def prepare(self) -> None:
        """See that roles can run here, and make what is needed once on a machine."""

    @abstractmethod
    def start(self, role: str) -> None:
        """Start a role that never ran, or that was killed."""

    @abstractmethod
    def kill(self, role: str) -> None:
        """End every process of the role by SIGKILL, and wait until they are gone."""

    @abstractmethod
    def execute(self, role: str, argv: Sequence[str]) -> str:
        """Run a command beside the role's processes, and return what it wrote."""

    @abstractmethod
    def running(self) -> set[str]:
        """Return the roles that run."""

    @abstractmethod
    def remove(self) -> None:
        """End all roles. What is left of them is files in the cluster's folder."""
