"""What runs in the fake: steps, and the supervisor of each task."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mtf_slurm._fake.options import parse
from mtf_slurm._fake.store import Store, date, end, requeue

__all__ = ["run", "send", "srun"]

_POLL_S = 0.01
_LAST_S = 1.0  # of the batch shell, when its steps have been killed


def srun(_store: Store, argv: list[str]) -> int:
    """Run a step: the tasks of it as processes; return the highest exit status."""
    known = {"nodes", "ntasks", "ntasks-per-node", "cpus-per-task", "kill-on-bad-exit"}
    known |= {"wait"}
    options, command = parse(argv, frozenset(known), stops=True)
    count = int(options.get("ntasks", "1"))
    children: list[subprocess.Popen[bytes]] = []
    seen: set[int] = set()

    def forward(number: int, _frame: object) -> None:
        seen.add(number)
        for child in children:
            child.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, forward)
    for rank in range(count):
        own = {
            "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": str(rank),
            "SLURM_NTASKS": str(count),
            "SLURM_NNODES": options.get("nodes", "1"),
            "SLURM_STEP_ID": "0",
            "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1",
        }
        children.append(subprocess.Popen(command, env={**os.environ, **own}))
    codes = [child.wait() for child in children]
    for rank, code in enumerate(codes):
        if code:
            how = f"Exited with exit code {code}" if code > 0 else signal.strsignal(-code)
            sys.stderr.write(f"srun: error: n1: task {rank}: {how}\n")
    if signal.SIGTERM in seen and -signal.SIGKILL in codes:
        return 0  # as Slurm's does of a step that had to be killed
    return max(code if code >= 0 else 128 - code for code in codes)


def run(store: Store, task_id: str) -> None:
    """Supervise a task that runs."""
    task = store.read()["tasks"].get(task_id)
    while task is None or task["state"] != "RUNNING" or task["supervisor"] != os.getpid():
        time.sleep(_POLL_S)  # whoever started this has not written the state yet
        task = store.read()["tasks"].get(task_id)
    ask = store.folder / "asks" / task_id
    process = _start(store, task)
    config = store.read()["config"]
    reason = ""
    while process is not None and process.poll() is None:
        if ask.exists():
            reason = ask.read_text(encoding="utf-8")
            ask.unlink()
            if _stop(store, task, process, reason, config):
                reason = ""  # it took the hint, and ended by itself
            break
        time.sleep(_POLL_S)
    code = 1 if process is None else process.wait()
    send(store, task_id, signal.SIGKILL)
    with store.open() as state:
        task = state["tasks"][task_id]
        if ask.exists():  # what was asked for just before its end, perhaps by itself
            reason = ask.read_text(encoding="utf-8")
            ask.unlink()
        words = {"cancel": "CANCELLED", "time_out": "TIMEOUT", "preempt": "PREEMPTED"}
        words["requeue"] = "REQUEUED"
        is_requeued = reason == "requeue" or (
            reason in {"preempt", "fail_node"} and "no-requeue" not in task["options"]
        )
        if is_requeued:
            requeue(task, words.get(reason, "NODE_FAIL"))
        elif reason:
            end(task, words.get(reason, "NODE_FAIL"), "0:15")
        else:
            exit_code = f"{code}:0" if code >= 0 else f"0:{-code}"
            end(task, "COMPLETED" if code == 0 else "FAILED", exit_code)


def _start(store: Store, task: Mapping[str, Any]) -> subprocess.Popen[bytes] | None:
    environ = {
        **task["environ"],
        "SLURM_JOB_ID": task["raw"],
        "SLURM_JOB_NAME": task["name"],
        "SLURM_JOB_NODELIST": "n1",
        "SLURMD_NODENAME": "n1",
        **dict([_mark(store, task["id"]).split("=", 1)]),
    }
    if not store.read()["config"]["has_scontrol_on_nodes"]:
        bins = (str(store.folder / "bin"), str(store.folder / "node-bin"))
        environ["PATH"] = environ["PATH"].replace(*bins)
    if task["index"] is not None:
        environ |= {
            "SLURM_ARRAY_JOB_ID": task["base"],
            "SLURM_ARRAY_TASK_ID": str(task["index"]),
        }
    if task["restarts"]:
        environ["SLURM_RESTART_COUNT"] = str(task["restarts"])
    folder = Path(task["folder"])

    def path(option: str, default: str) -> Path:
        values = {"j": task["raw"], "A": task["base"], "a": str(task["index"]), "%": "%"}
        pattern = task["options"].get(option, default)
        return folder / re.sub("%([jAa%])", lambda m: str(values[m[1]]), pattern)

    out_path = path("output", "slurm-%j.out")
    try:
        with out_path.open("ab") as out, path("error", str(out_path)).open("ab") as err:
            return subprocess.Popen(
                [task["script"]],
                cwd=folder,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
    except OSError:
        return None


def _stop(
    store: Store,
    task: Mapping[str, Any],
    process: subprocess.Popen[bytes],
    reason: str,
    config: Mapping[str, Any],
) -> bool:
    """End a task as Slurm does: steps first, then all of it, then by force.

    Returns:
        Whether it ended by itself when it was warned.
    """
    if reason == "preempt":
        with store.open() as state:
            state["tasks"][task["id"]]["preempted"] = date(time.time())  # noqa: TID251
    if reason in {"preempt", "time_out"}:
        _warn(store, task, process, reason)
        if _is_over(process, config["grace_s"]):
            return True
    if reason != "fail_node":
        send(store, task["id"], signal.SIGTERM)
        if _is_over(process, config["kill_wait_s"]):
            return False
        send(store, task["id"], signal.SIGKILL, is_of_steps=True)
        if _is_over(process, _LAST_S):
            return False
    send(store, task["id"], signal.SIGKILL)
    return False


def _warn(
    store: Store, task: Mapping[str, Any], process: subprocess.Popen[bytes], reason: str
) -> None:
    """Send the first signal: to the steps, or to the batch shell where that was asked."""
    option = task["options"].get("signal", "")
    if reason == "time_out" and not option:
        return
    if reason == "time_out" and option.startswith("B:"):
        process.send_signal(signal.SIGUSR1)
        return
    number = signal.SIGTERM if reason == "preempt" else signal.SIGUSR1
    send(store, task["id"], number, is_of_steps=True)


def _mark(store: Store, task_id: str) -> str:
    """Return the variable by which the processes of a task are found."""
    return f"MTF_FAKE_TASK={store.folder}/{task_id}"


def send(store: Store, task_id: str, number: int, *, is_of_steps: bool = False) -> None:
    """Send a signal to all processes of a task, or to those of its steps."""
    mark = _mark(store, task_id).encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            variables = (folder / "environ").read_bytes().split(b"\0")
            is_of_step = any(v.startswith(b"SLURM_PROCID=") for v in variables)
            if mark in variables and (is_of_step or not is_of_steps):
                os.kill(int(folder.name), number)


def _is_over(process: subprocess.Popen[bytes], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return process.poll() is not None
