"""What a task runs, as its shell reads it: ``settings.sh`` for ``task.sh``.

Each value is quoted for the shell. Processes of several tasks or nodes meet at the address
of the node where srun runs, which Slurm tells each of them (``SLURM_LAUNCH_NODE_IPADDR``);
``MTF_MASTER_ADDR``, set by the launcher's ``setup``, goes before it.

Source: Slurm 22.05, ``srun(1)``; torch 2.10, ``torch.distributed.run``; Apptainer 1.3,
``apptainer exec``.
"""

from __future__ import annotations

import os
import shlex
import site
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from mtf_slurm.arrays import Code, Planned, Work
from mtf_slurm.errors import SnapshotError

__all__ = ["command_words", "shell_settings"]

_CALL = """\
import sys
from importlib import import_module
from operator import attrgetter
folder, module, function, config = sys.argv[1:]
sys.path[0] = folder
sys.argv = [function, config]
attrgetter(function)(import_module(module))(config)
"""

_MEET = """\
export MASTER_ADDR="${MTF_MASTER_ADDR:-$SLURM_LAUNCH_NODE_IPADDR}"
"""
# One process a task: what torch's own rendezvous by variables asks for.
_SRUN_STEP = f"""\
{_MEET}export RANK="$SLURM_PROCID" LOCAL_RANK="$SLURM_LOCALID" WORLD_SIZE="$SLURM_NTASKS"
exec "$@"
"""
# Its agent would end at the first warning, and the workers with it; they are to save. It makes
# 1 of any status of a worker but 0, so that of one which saved, or was ended by a signal that
# this agent does not heed, is told by a file. Where one fails, the agent's own status tells.
_TORCHRUN_STEP = f"""\
{_MEET}trap '' TERM USR1
export PET_SIGNALS_TO_HANDLE=SIGINT PET_RDZV_BACKEND=c10d
export PET_RDZV_ID="$MTF_JOB_ID.${{SLURM_RESTART_COUNT:-0}}"
export PET_RDZV_ENDPOINT="$MASTER_ADDR:$MASTER_PORT"
"$@"
status=$?
[ "$status" = 0 ] && [ -e "$MTF_EXPERIMENT_DIR/.$MTF_JOB_ID.saved" ] && exit 75
exit "$status"
"""
_TORCHRUN_WORKER = """\
"$@"
status=$?
case $status in
  75 | 138 | 143) : >"$MTF_EXPERIMENT_DIR/.$MTF_JOB_ID.saved" && exit 0 ;;
esac
exit "$status"
"""
# A shell cannot give back to a worker the signals that its agent ignores.
_HEED = """\
import os, signal, sys
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])
"""
# Where one process has started to end, how long the others may take, in seconds.
_LAST_S = 300


def shell_settings(
    experiments_folder: Path, planned: Planned, code: Code, *, is_redirected: bool = False
) -> str:
    """Return the lines that ``task.sh`` reads.

    Args:
        experiments_folder: Where experiments' folders lie.
        planned: The job.
        code: What it runs.
        is_redirected: Whether each experiment's output is led to its files by ``task.sh``,
            as it is where a job has several.

    Raises:
        SnapshotError: If its script is not in the frozen code.
    """
    settings = planned.work.settings
    snapshot = code.snapshot
    _check_script(planned.work.entry_point, code)
    # What is inside a container is not there for the checkout.
    own_python = None if settings.container else code.python
    top = (snapshot.top if snapshot else code.project_root).resolve()
    lines = [
        f"experiments_folder={shlex.quote(str(experiments_folder))}",
        f"project_root={shlex.quote(str(code.project_root))}",
        f"submitted_in={shlex.quote(_here())}",
        f"redirect={int(is_redirected or len(planned.names) > 1)}",
        f"requeue={int(settings.requeue)}",
        f"max_requeues={settings.max_requeues}",
        f"continue_on_timeout={int(settings.continue_on_timeout)}",
        f"time_s={planned.time_s}",
        f"signal_s={settings.warning_s}",
        f"cleanup={shlex.quote(code.cleanup)}",
        f"checkout_python={shlex.quote(own_python or sys.executable)}",
        f"checkout=({_quoted(snapshot.arguments() if snapshot else ())})",
        f"prefix={shlex.quote(snapshot.prefix if snapshot else '')}",
        f"top={shlex.quote(str(top))}",
        f"paths=({_quoted(_edited(top, planned.work, code) if snapshot else ())})",
        f"interpreter=({_quoted(_interpreter(experiments_folder, planned.work, code))})",
        f"launch_kind={settings.launch}",
        f"launch=({_quoted(_launch(planned.work))})",
        f"set_command() {{ command=({_command(experiments_folder, planned.work, code)}); }}",
    ]
    return "\n".join(lines) + "\n"


def command_words(work: Work, code: Code, config: Path) -> list[str]:
    """Return an experiment's own command, for people: what starts it is left out."""
    entry_point = work.entry_point
    if entry_point is None:
        return ["mtf", "run", str(config)]
    if _is_script(entry_point):
        entry_point = _in_project(entry_point, code)
        if not entry_point.startswith("/"):
            entry_point = f"$MTF_CODE_DIR/{entry_point}"
    return [_python(work, code), entry_point, str(config)]


def _quoted(words: Sequence[str]) -> str:
    return " ".join(map(shlex.quote, words))


def _here() -> str:
    """Return the folder that what is relative in the environment is relative to."""
    try:
        return str(Path.cwd())
    except FileNotFoundError:
        return "/"


def _edited(top: Path, work: Work, code: Code) -> list[str]:
    """Return folders below *top* that are installed to be edited, relative to it.

    As far as a line of a ``.pth`` file names them, in the environments that jobs use.
    """
    places = _places(work, code)
    found: dict[str, None] = {}
    for file in (each for place in places for each in sorted(place.glob("*.pth"))):
        with suppress(OSError, UnicodeDecodeError):
            for line in file.read_text(encoding="utf-8").splitlines():
                if line.strip() and not line.startswith(("#", "import ", "import\t")):
                    path = (file.parent / line.strip()).resolve()
                    if path.is_relative_to(top) and path.is_dir():
                        found[path.relative_to(top).as_posix()] = None
    return [*found]


def _places(work: Work, code: Code) -> Iterator[Path]:
    """Yield where packages of a job's environments lie: those of its venv and its python."""
    settings, python = work.settings, _python(work, code)
    if settings.container:
        return
    prefixes = [Path(settings.venv)] if settings.venv else []
    if "/" in python and python != sys.executable:
        prefixes.append(Path(python).parent.parent)
    for prefix in prefixes:
        yield from _within(prefix)
    if not prefixes and not settings.conda:
        yield from map(Path, site.getsitepackages())
        if site.ENABLE_USER_SITE:
            yield Path(site.getusersitepackages())


def _within(prefix: Path) -> Iterator[Path]:
    """Yield where packages lie that a Python of another environment imports."""
    yield from prefix.glob("lib*/python*/*-packages")
    try:
        about = (prefix / "pyvenv.cfg").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):  # a Python of its own
        yield from Path(site.getuserbase()).glob("lib/python*/site-packages")
        return
    said = {
        key.strip().lower(): value.strip()
        for key, _, value in (line.partition("=") for line in about.splitlines())
    }
    if said.get("include-system-site-packages", "").lower() == "true" and "home" in said:
        yield from _within(Path(said["home"]).parent)


def _in_project(script: str, code: Code) -> str:
    """Return a script's path from the project, if it is absolute and was frozen."""
    snapshot = code.snapshot
    if snapshot is None or not script.startswith("/"):
        return script
    named = os.path.relpath(script, code.project_root)
    inside = os.path.normpath(f"{snapshot.prefix or '.'}/{named}")
    for path in (inside, _from_top(script, snapshot.top)):
        if not _is_outside(path) and snapshot.has(path):
            return os.path.relpath(path, snapshot.prefix or ".")
    return script


def _from_top(path: str | Path, top: Path) -> str:
    """Return where *path* leads, from the top of the repository."""
    return os.path.relpath(os.path.realpath(path), os.path.realpath(top))


def _is_outside(path: str) -> bool:
    return path.split("/", 1)[0] == ".."


def _check_script(entry_point: str | None, code: Code) -> None:
    """Refuse a script of the project that a job's checkout would not have."""
    snapshot = code.snapshot
    is_script = entry_point is not None and entry_point.endswith(".py")
    if snapshot is None or entry_point is None or not is_script or entry_point[0] == "/":
        return
    script = code.project_root / entry_point
    behind = _from_top(script, snapshot.top)  # a folder may be a link
    named = os.path.normpath(f"{snapshot.prefix or '.'}/{entry_point}")
    is_there = script.exists() if _is_outside(behind) else snapshot.has(behind)
    if not is_there and not snapshot.has(named):
        reason = (
            "this script is not in the frozen code: it is not there, or git ignores it; "
            "name another entry_point, or `git add --force` it"
        )
        raise SnapshotError(script, reason)


def _is_script(entry_point: str) -> bool:
    return entry_point.endswith(".py") or entry_point.startswith("/")


def _python(work: Work, code: Code) -> str:
    settings = work.settings
    has_own = settings.venv or settings.conda or settings.container
    return code.python or ("python" if has_own else sys.executable)


def _launch(work: Work) -> list[str]:
    """Return what stands before the command: the words that start its processes."""
    settings = work.settings
    if settings.launch == "none":
        return []
    is_torchrun = settings.launch == "torchrun"
    tasks = 1 if is_torchrun else settings.ntasks_per_node
    cpus = settings.cpus_per_task * settings.ntasks_per_node // tasks
    count = settings.nodes * tasks
    words = [
        *("srun", f"--nodes={settings.nodes}", f"--ntasks={count}"),
        *(f"--ntasks-per-node={tasks}", f"--cpus-per-task={cpus}"),
        # One that saved and ended must not end those that still save; one that failed
        # must not leave others waiting for it for ever.
        *("--kill-on-bad-exit=0", f"--wait={_LAST_S}"),
    ]
    if is_torchrun:
        return [*words, "/bin/bash", "-c", _TORCHRUN_STEP, "step"]
    if count > 1:
        return [*words, "/bin/bash", "-c", _SRUN_STEP, "step"]
    return words


def _inside(experiments_folder: Path, work: Work, code: Code) -> list[str]:
    """Return what stands before a command that runs in a container; nothing for none."""
    settings = work.settings
    if not settings.container:
        return []
    gpus = ["--nv"] if settings.gpus_per_node else []
    folders = [str(experiments_folder)]
    folders += [] if code.snapshot else [str(code.project_root)]
    binds = [f"--bind={folder}" for folder in folders]
    return ["apptainer", "exec", *gpus, *binds, settings.container]


def _interpreter(experiments_folder: Path, work: Work, code: Code) -> list[str]:
    """Return the words that start what says on what the job runs."""
    python = _python(work, code)
    return [*_inside(experiments_folder, work, code), python, "-E", "-B"]


def _command(experiments_folder: Path, work: Work, code: Code) -> str:
    """Return the words of the experiment's command; ``$1`` is the path of its config."""
    settings = work.settings
    before = _inside(experiments_folder, work, code)
    python = _python(work, code)
    if settings.launch == "torchrun":
        counts = (
            f"--nnodes={settings.nodes}",
            f"--nproc-per-node={settings.ntasks_per_node}",
        )
        before += [python, "-m", "torch.distributed.run", *counts, "--max-restarts=0"]
        before += ["--no-python", "/bin/bash", "-c", _TORCHRUN_WORKER, "worker"]
        before += [python, "-I", "-S", "-c", _HEED]
    start = _quoted(before) + " " if before else ""
    entry_point = work.entry_point
    if entry_point is None:
        return f'{start}mtf run "$1"'
    if _is_script(entry_point):
        entry_point = _in_project(entry_point, code)
        where = "" if entry_point.startswith("/") else '"$code"/'
        return f'{start}{shlex.quote(python)} {where}{shlex.quote(entry_point)} "$1"'
    module, _, function = entry_point.partition(":")
    words = _quoted((python, "-c", _CALL))
    return f'{start}{words} "$code" {_quoted((module, function))} "$1"'
