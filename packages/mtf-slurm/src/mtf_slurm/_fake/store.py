"""The state of a fake Slurm, in a folder, under one lock; and what starts jobs.

Whoever changes the state starts what can run. Each task that runs has a supervisor.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mtf_slurm._fake.options import indices

__all__ = ["ENDED", "Store", "argv_of", "date", "end", "named", "requeue"]


ENDED = frozenset(
    {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED"}
)

# With `-I` a script's own folder is not searched; this package's is enough.
_START = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); "
    "from mtf_slurm._fake.main import main; sys.exit(main(sys.argv[1:]))"
)


def argv_of(folder: Path, flags: Sequence[str], command: str) -> list[str]:
    """Return what runs a command of the Slurm in *folder*; its arguments follow."""
    packages = str(Path(__file__).parents[2])
    return [sys.executable, *flags, "-c", _START, packages, str(folder), command]


class Store:
    """The state, in a folder.

    Args:
        folder: Which is there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def open(self) -> Iterator[dict[str, Any]]:
        """Yield the state; it is written when the block ends, and what can run is run."""
        with (self.folder / "lock").open("a", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            path = self.folder / "state.json"
            state = json.loads(path.read_text(encoding="utf-8"))
            yield state
            self._start_what_can(state)
            aside = path.with_suffix(".part")
            aside.write_text(json.dumps(state), encoding="utf-8")
            aside.replace(path)

    def read(self) -> dict[str, Any]:
        """Return the state as it is."""
        text = (self.folder / "state.json").read_text(encoding="utf-8")
        return dict(json.loads(text))

    def ask(self, task_id: str, what: str) -> None:
        """Ask the supervisor of a running task for its end."""
        path = self.folder / "asks" / task_id
        if not path.exists():
            aside = path.with_suffix(".part")
            aside.write_text(what, encoding="utf-8")
            aside.replace(path)

    def _start_what_can(self, state: dict[str, Any]) -> None:
        if state["config"]["is_held"]:
            return
        tasks = state["tasks"]
        running: dict[str, int] = {}
        for task in tasks.values():
            if task["state"] == "RUNNING":
                running[task["base"]] = running.get(task["base"], 0) + 1
        free = state["config"]["num_slots"] - sum(running.values())
        for task in tasks.values():
            if task["state"] != "PENDING":
                continue
            verdict = _verdict(task, tasks)
            if verdict == "never" and "kill-on-invalid-dep" in task["options"]:
                end(task, "CANCELLED")
            count = running.get(task["base"], 0)
            is_full = task["limit"] is not None and count >= task["limit"]
            if verdict != "now" or is_full or free <= 0:
                task["reason"] = "Dependency" if verdict != "now" else "Resources"
                continue
            free -= 1
            (self.folder / "asks" / task["id"]).unlink(missing_ok=True)
            running[task["base"]] = count + 1
            task |= {"state": "RUNNING", "reason": "None", "started": time.time()}  # noqa: TID251 -- a date
            argv = argv_of(self.folder, state["config"]["python_flags"], "_run")
            # A job may start others; its own variables are not theirs.
            own = ("MTF_FAKE_TASK", "SLURM_PROCID")
            process = subprocess.Popen(
                [*argv, task["id"]],
                env={k: v for k, v in os.environ.items() if k not in own},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            task["supervisor"] = process.pid
            process.returncode = 0  # another process waits for it: the init of this one


def date(seconds: float | None) -> str:
    """Return a time as Slurm writes it."""
    if seconds is None:
        return "Unknown"
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(seconds))


def end(task: dict[str, Any], word: str, exit_code: str = "0:0") -> None:
    """Note how a task ended."""
    task |= {"state": word, "exit_code": exit_code, "ended": time.time()}  # noqa: TID251 -- a date


def _verdict(task: Mapping[str, Any], tasks: Mapping[str, Any]) -> str:
    """Return what a task's dependencies say: ``now``, ``later`` or ``never``."""
    verdict = "now"
    for part in filter(None, task["options"].get("dependency", "").split(",")):
        kind, *ids = part.split(":")
        for named_id in ids:
            job_id = named_id
            if kind == "aftercorr" and task["index"] is not None:
                job_id = f"{named_id}_{task['index']}"
            words = [t["state"] for t in tasks.values() if job_id in {t["id"], t["base"]}]
            if not all(word in ENDED for word in words):
                verdict = "later" if verdict == "now" else verdict
                continue
            is_ok = all(word == "COMPLETED" for word in words)
            if (kind in {"afterok", "aftercorr"} and not is_ok) or (
                kind == "afternotok" and is_ok
            ):
                return "never"
    return verdict


def named(state: Mapping[str, Any], job_id: str) -> list[dict[str, Any]]:
    """Return the tasks that an id means: of a job, a task, or some of an array."""
    base, bracket, spec = job_id.partition("_[")
    wanted = {job_id}
    if bracket and spec.endswith("]"):
        wanted = {f"{base}_{index}" for index in indices(spec[:-1])[0]}
    tasks = state["tasks"].values()
    return [task for task in tasks if wanted & {task["id"], task["base"], task["raw"]}]


def requeue(task: dict[str, Any], word: str) -> None:
    """Let a task wait again; accounting keeps the run that was, which ended as *word*."""
    if task["state"] == "RUNNING":
        end(task, word, "0:0")
    keys = ("state", "exit_code", "started", "ended")
    task["earlier"].append({key: task[key] for key in keys})
    task |= {"state": "PENDING", "started": None, "ended": None, "exit_code": "0:0"}
    task |= {"restarts": task["restarts"] + 1, "preempted": None}
