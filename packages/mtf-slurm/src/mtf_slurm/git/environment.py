"""What code runs on here: Python, packages, system and CUDA, of the interpreter that asks.

A job's own interpreter runs a copy of this file as a script, with a copy of ``checkout.py``
beside it, and says so of itself::

    python -E environment.py --into FOLDER PATH [PATH ...]

Each PATH then holds it as JSON. Thousands of jobs run on the same, so FOLDER keeps one file
for each difference, named by its digest, of which each PATH is a hard link; where that cannot
be made, a copy. Node and date are not there: they would be another in each job, and Slurm
tells them. A file is there whole or not at all, whoever else writes it.

The script exits with 0, or with 1 and a line that says what is missing: no job need end for it.
With ``-E`` a module of the project cannot take the place of one that this file imports; packages
that the job finds by ``PYTHONPATH`` are listed all the same. With ``-s`` those that the user
installed for themselves (``pip install --user``) are not.

It does not know what the job imports of all this, nor what a container or module is called.
"""

# A job's Python may be old: here and in what this file needs of `checkout.py`, nothing is
# newer than Python 3.8 and its standard library.
from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import site
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

__all__ = ["environment", "link_whole", "main", "packages", "write_whole"]

# It lies beside this file: in the package, and in a job's folder.
_checkout = import_module(f"{__package__}.checkout" if __package__ else "checkout")
_without_secrets: Callable[[str], str] = _checkout.without_secrets

_USAGE = "environment.py: give it --into FOLDER PATH [PATH ...]\n"


def packages(path: Sequence[str] | None = None) -> list[str]:
    """Return what is installed here, sorted, as ``pip freeze`` says it.

    Of a package that is there twice, it is the one that is imported.

    Args:
        path: Where from; by default ``sys.path``.
    """
    found: dict[str, str] = {}
    for distribution in distributions(path=list(sys.path if path is None else path)):
        name, line = _line(distribution)
        if name:
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), line)
    return sorted(found.values(), key=str.lower)


def environment(path: Sequence[str] | None = None) -> dict[str, Any]:
    """Return what code runs on here: Python, packages, system and CUDA.

    Args:
        path: Where packages are imported from; by default ``sys.path``.
    """
    return {
        "python": sys.version,
        "executable": sys.executable,
        "platform": platform.platform(),
        "cuda": _cuda(),
        "packages": packages(path),
    }


def write_whole(path: str, text: str, *, mode: int = 0o644) -> None:
    """Make *path* a new file with *text*, in place of what is there.

    Args:
        path: Which.
        text: All of it.
        mode: Its rights, before the umask.

    Raises:
        OSError: If it cannot be written; then what was there stays, and nothing else does.
    """
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


def link_whole(first: str, path: str) -> bool:
    """Give the file *first* another name, *path*, in place of what is there.

    Returns:
        Whether it could be: not on another file system, nor past the number of names.
    """
    try:
        try:
            os.link(first, path)
        except FileExistsError:
            aside = _aside(path)
            os.link(first, aside)
            try:
                os.replace(aside, path)  # noqa: PTH105 -- as above
            finally:
                with suppress(FileNotFoundError):  # it stays if both were one file
                    os.unlink(aside)  # noqa: PTH108 -- as above
    except OSError:
        return False
    return True


def _aside(path: str) -> str:
    # On several nodes, and in containers, processes have the same ids.
    return f"{path}.{os.getpid()}.{time.monotonic_ns()}.{os.urandom(4).hex()}"


def _line(distribution: Distribution) -> tuple[str, str]:
    """Return a package's name and its line; neither where it does not say what it is."""
    try:
        about = distribution.metadata  # it is read anew each time
    except (OSError, ValueError):
        return "", ""
    if not {"Name", "Version"}.issubset(about):
        return "", ""  # a folder that an uninstaller left
    name, version = str(about["Name"]), about["Version"]
    try:
        return name, _source(distribution, name) or f"{name}=={version}"
    except (AttributeError, LookupError, OSError, TypeError, ValueError):
        return name, f"{name}=={version}"  # its source is not as the standard has it


def _source(distribution: Distribution, name: str) -> str:
    direct = json.loads(distribution.read_text("direct_url.json") or "{}")
    url = _without_secrets(str(direct.get("url", "")))
    if url and direct.get("dir_info", {}).get("editable"):
        return f"-e {url}  # {name}=={distribution.version}"
    if url and (vcs := direct.get("vcs_info")):
        return f"{name} @ {vcs['vcs']}+{url}@{vcs['commit_id']}"
    return url and f"{name} @ {url}"


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


def _import_path() -> list[str]:
    """Return where this interpreter imports from when it does heed the environment."""
    given = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    is_without = os.environ.get("PYTHONNOUSERSITE")
    return given + [p for p in sys.path if not (is_without and p == site.USER_SITE)]


def _keep(folder: str, text: str) -> str:
    """Return the file in *folder* that holds *text*; made if there is none."""
    data = text.encode("ascii")
    path = f"{folder}/{hashlib.sha256(data).hexdigest()}.json"
    with suppress(OSError):
        if Path(path).read_bytes() == data:  # else a node died before it was on disk
            return path
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_whole(path, text, mode=0o444)  # one file with many names
    return path


def _record(folder: str, paths: Sequence[str]) -> None:
    """Write all that can be, then raise the first error of those that cannot."""
    text = json.dumps(environment(_import_path()), indent=1) + "\n"
    kept = ""
    with suppress(OSError):  # it may be another user's
        kept = _keep(folder, text)
    failed = []
    for path in paths:
        try:
            if not kept or not link_whole(kept, path):
                write_whole(path, text, mode=0o444)
        except OSError as error:
            failed.append(error)
    if failed:
        raise failed[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status.

    Args:
        arguments: What follows the program's name; the process's own by default.
    """
    args = sys.argv[1:] if arguments is None else list(arguments)
    if args[:1] != ["--into"] or not args[2:]:
        sys.stderr.write(_USAGE)
        return 1
    try:
        _record(args[1], args[2:])
    except Exception as error:  # noqa: BLE001 -- whatever it is, the job goes on
        sys.stderr.write(f"environment.py: {_said(error)}\n")
        return 1
    return 0


def _said(error: Exception) -> str:
    kind = type(error).__name__
    return " ".join(f"{kind}: {error}".split())


if __name__ == "__main__":
    sys.exit(main())
