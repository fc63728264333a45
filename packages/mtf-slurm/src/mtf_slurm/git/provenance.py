"""What ran: commit, dirty files, packages, Python, CUDA and command, in the experiment.

``code.json`` is of the snapshot and the same for all experiments of a batch: it is written
once and linked. ``submission.json`` is of one experiment. Both are for people and for
whoever repeats the run. The command is there as it is given, and addresses of packages
without names, passwords and queries.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

from mtf_slurm.errors import SnapshotError
from mtf_slurm.git.checkout import without_secrets

__all__ = ["CODE_NAME", "SUBMISSION_NAME", "environment", "packages", "write"]

CODE_NAME = "code.json"
SUBMISSION_NAME = "submission.json"


def packages() -> list[str]:
    """Return what is installed here, sorted, as ``pip freeze`` says it."""
    return sorted({line for d in distributions() if (line := _line(d))}, key=str.lower)


def environment() -> dict[str, Any]:
    """Return what code runs on here: Python, packages, machine and CUDA."""
    return {
        "python": sys.version,
        "executable": sys.executable,
        "platform": platform.platform(),
        "cuda": _cuda(),
        "packages": packages(),
    }


def write(
    folders: Mapping[str, Path],
    code: Mapping[str, Any],
    *,
    branches: Mapping[str, str],
    commands: Mapping[str, Sequence[str]],
) -> None:
    """Write both files for each experiment; those of an earlier submission are replaced.

    Args:
        folders: Of the experiments, by name; made where they are missing.
        code: What ``code.json`` says.
        branches: By experiment.
        commands: By experiment; one that is missing has none.

    Raises:
        SnapshotError: If a file cannot be written.
    """
    text = json.dumps(code, indent=1) + "\n"
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    first = ""
    for name, folder in folders.items():
        about = {
            "experiment_name": name,
            "branch": branches.get(name),
            "command": list(commands.get(name, ())),
            "submitted_at": at,
        }
        path = f"{folder}/{CODE_NAME}"
        try:
            if not folder.is_dir():
                folder.mkdir(parents=True, exist_ok=True)
            _replace(f"{folder}/{SUBMISSION_NAME}", json.dumps(about, indent=1) + "\n")
            if not first or not _link(first, path):
                _replace(path, text, mode=0o444)  # one file with many names
                first = path
        except OSError as error:
            reason = (
                f"what runs cannot be recorded there: {error.strerror or error}; make room, "
                f"or see to its rights"
            )
            raise SnapshotError(folder, reason) from error


def _link(first: str, path: str) -> bool:
    """Give the file *first* another name, *path*; return whether it could be."""
    try:
        try:
            os.link(first, path)
        except FileExistsError:
            aside = _aside(path)
            os.link(first, aside)
            os.replace(aside, path)  # noqa: PTH105 -- as below
    except OSError:
        return False  # another file system, or too many names
    return True


def _replace(path: str, text: str, *, mode: int = 0o644) -> None:
    aside = _aside(path)
    # 10,000 experiments: a Path each is slow.
    fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with open(fd, "w", encoding="utf-8") as file:  # noqa: PTH123 -- as above
            file.write(text)
        os.replace(aside, path)  # noqa: PTH105 -- as above
    except BaseException:
        with suppress(OSError):
            os.unlink(aside)  # noqa: PTH108 -- as above
        raise


def _aside(path: str) -> str:
    return f"{path}.{os.getpid()}.{time.monotonic_ns()}"


def _line(distribution: Distribution) -> str:
    if "Name" not in distribution.metadata:
        return ""  # a folder that an uninstaller left
    name, version = distribution.metadata["Name"], distribution.version
    direct: dict[str, Any] = {}
    with suppress(ValueError):
        direct = json.loads(distribution.read_text("direct_url.json") or "{}")
    url = without_secrets(str(direct.get("url", "")))
    if not url:
        return f"{name}=={version}"
    if direct.get("dir_info", {}).get("editable"):
        return f"-e {url}  # {name}=={version}"
    if vcs := direct.get("vcs_info"):
        return f"{name} @ {vcs['vcs']}+{url}@{vcs['commit_id']}"
    return f"{name} @ {url}"


def _cuda() -> dict[str, Any]:
    """Return what is known of CUDA without loading any of it."""
    found: dict[str, Any] = {}
    with suppress(OSError):
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
        found["driver"] = text.splitlines()[0]
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:
        found["toolkit"] = home
        with suppress(OSError, ValueError, LookupError, TypeError):
            about = json.loads(Path(home, "version.json").read_text(encoding="utf-8"))
            found["toolkit_version"] = about["cuda"]["version"]
    if devices := os.environ.get("CUDA_VISIBLE_DEVICES"):
        found["visible_devices"] = devices
    return found
