"""The fake's commands that only look: squeue and sacct."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

from mtf_slurm._fake.options import Refusal, parse
from mtf_slurm._fake.store import ENDED, Store, date

__all__ = ["sacct", "squeue"]


def _nodes(task: Mapping[str, Any]) -> str:
    count = int(task["options"].get("nodes", "1"))
    return "n1" if count == 1 else f"n[1-{count}]"


_OF_QUEUE: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "i": lambda t: str(t["id"]),
    "A": lambda t: str(t["raw"]),
    "F": lambda t: str(t["base"]),
    "K": lambda t: "N/A" if t["index"] is None else str(t["index"]),
    "j": lambda t: str(t["name"]),
    "T": lambda t: str(t["state"]),
    "k": lambda t: t["options"].get("comment", "(null)"),
    "Z": lambda t: str(t["folder"]),
    "r": lambda t: str(t["reason"]),
    "N": lambda t: "" if t["started"] is None else _nodes(t),
    "S": lambda t: "N/A" if t["started"] is None else date(t["started"]),
    "P": lambda t: t["options"].get("partition", "main"),
    "q": lambda t: t["options"].get("qos", "normal"),
    "u": lambda _: "user",
}


def squeue(store: Store, argv: list[str]) -> str:
    """List what the controller knows."""
    argv = ["--array-expand" if word == "--array" else word for word in argv]
    known = {"noheader", "array-expand", "states", "jobs", "format", "me", "name", "json"}
    options, _ = parse(argv, frozenset(known | {"version", "start"}))
    if "version" in options:
        return "slurm 22.05.8\n"
    tasks = _asked(store.read(), options)
    if "json" in options:
        return json.dumps({"jobs": [_as_json(task) for task in tasks], "errors": []})
    form = options.get("format", "%i %P %j %u %T")
    lines = []
    for task in tasks:

        def field(match: re.Match[str], task: Mapping[str, Any] = task) -> str:
            if match[1] not in _OF_QUEUE:
                msg = f"Invalid job format specification: {match[1]}"
                raise Refusal(msg)
            return _OF_QUEUE[match[1]](task)

        lines.append(re.sub(r"%(.)", field, form) + "\n")
    return "".join(lines)


def _asked(
    state: Mapping[str, Any], options: Mapping[str, str]
) -> list[Mapping[str, Any]]:
    tasks = [t for t in state["tasks"].values() if not t["is_forgotten"]]
    if "start" in options:
        tasks = [task for task in tasks if task["state"] == "PENDING"]
    elif "states" not in options:
        tasks = [task for task in tasks if task["state"] not in ENDED]
    elif options["states"] != "all":
        wanted = options["states"].upper().split(",")
        tasks = [task for task in tasks if task["state"] in wanted]
    if "jobs" in options:
        ids = options["jobs"].split(",")
        tasks = [task for task in tasks if {task["id"], task["base"]} & {*ids}]
        if not tasks and len(ids) == 1:
            msg = "slurm_load_jobs error: Invalid job id specified"
            raise Refusal(msg)
    if "name" in options:
        tasks = [task for task in tasks if task["name"] in options["name"].split(",")]
    return tasks


def _as_json(task: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "job_id": int(task["raw"]),
        "array_job_id": 0 if task["index"] is None else int(task["base"]),
        "array_task_id": task["index"],
        "job_state": task["state"],
        "state_reason": task["reason"],
        "name": task["name"],
        "comment": task["options"].get("comment", ""),
        "current_working_directory": task["folder"],
        "nodes": _OF_QUEUE["N"](task),
        "restart_cnt": task["restarts"],
        "start_time": int(task["started"] or 0),
        "exit_code": int(task["exit_code"].partition(":")[0]) << 8,
        "array_task_string": "",
    }


def _cpus(task: Mapping[str, Any]) -> int:
    keys = ("nodes", "ntasks-per-node", "cpus-per-task")
    return math.prod(int(task["options"].get(key, "1")) for key in keys)


def _minutes(text: str) -> int:
    days, dash, clock = text.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if dash or len(parts) == 3:  # noqa: PLR2004 -- hours, minutes, seconds
        hours, minutes, seconds = [*parts, 0, 0][:3]
    else:
        hours, (minutes, seconds) = 0, [*parts, 0][:2]
    return int(days or 0) * 1440 + hours * 60 + minutes + (seconds > 0)


def _elapsed_s(task: Mapping[str, Any]) -> int:
    if task["started"] is None:
        return 0
    end = task["ended"] or time.time()  # noqa: TID251 -- a date
    return int(end - task["started"])


_OF_ACCOUNTING: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "jobid": lambda t: str(t["id"]),
    "jobidraw": lambda t: str(t["raw"]),
    "jobname": lambda t: str(t["name"]),
    "state": lambda t: t["state"] + " by 0" * (t["state"] == "CANCELLED"),
    "exitcode": lambda t: str(t["exit_code"]),
    "workdir": lambda t: str(t["folder"]),
    "comment": lambda _: "",  # as at sites that do not store it
    "partition": _OF_QUEUE["P"],
    "nodelist": lambda t: "None assigned" if t["started"] is None else _nodes(t),
    "submit": lambda t: date(t["submitted"]),
    "start": lambda t: date(t["started"]),
    "end": lambda t: date(t["ended"]),
    "elapsedraw": lambda t: str(_elapsed_s(t)),
    "restarts": lambda t: str(t["restarts"]),
    "alloccpus": lambda t: str(_cpus(t)),
    "nnodes": lambda t: t["options"].get("nodes", "1"),
    "totalcpu": lambda _: "00:00:00",
    "reqmem": lambda t: t["options"].get("mem", ""),
    "alloctres": lambda t: (
        ""
        if t["started"] is None
        else f"billing={_cpus(t)},cpu={_cpus(t)},node={t['options'].get('nodes', '1')}"
    ),
    "timelimitraw": lambda t: str(_minutes(t["options"].get("time", "60"))),
    "ntasks": lambda _: "",  # of steps, which are not kept
    "maxrss": lambda _: "",
    "tresusageintot": lambda _: "",
    "tresusageinave": lambda _: "",
    "user": _OF_QUEUE["u"],
}


def sacct(store: Store, argv: list[str]) -> str:
    """List what accounting knows: late, and for ever."""
    known = {"noheader", "allocations", "parsable2", "format", "jobs", "name"}
    more = {"starttime", "duplicates", "noconvert"}
    options, _ = parse(argv, frozenset(known | more))
    state = store.read()
    config = state["config"]
    if not config["has_accounting"]:
        msg = "Slurm accounting storage is disabled"
        raise Refusal(msg)
    shown = time.time() - config["accounting_lag_s"]  # noqa: TID251 -- a date
    tasks = [task for task in state["tasks"].values() if task["submitted"] <= shown]
    if "duplicates" in options:
        tasks = [{**task, **run} for task in tasks for run in (*task["earlier"], {})]
    if "jobs" in options:
        ids = {*options["jobs"].split(",")}
        tasks = [task for task in tasks if {task["id"], task["base"]} & ids]
    if "name" in options:
        tasks = [task for task in tasks if task["name"] in options["name"].split(",")]
    lines = []
    for task in tasks:
        cells = []
        for name in options.get("format", "JobID,State").lower().split(","):
            if name not in _OF_ACCOUNTING:
                msg = f"Invalid field requested: {name!r}"
                raise Refusal(msg)
            cells.append(_OF_ACCOUNTING[name](task))
        lines.append("|".join(cells) + "\n")
    return "".join(lines)
