"""The fake's commands that change something: sbatch, scancel, scontrol."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtf_slurm._fake.options import Refusal, indices, parse, split_options
from mtf_slurm._fake.store import ENDED, Store, end, named, requeue

__all__ = ["sbatch", "scancel", "scontrol"]

_STATES = ("IDLE", "DOWN+NOT_RESPONDING")

_SBATCH = frozenset(
    {
        *("parsable", "requeue", "no-requeue", "exclusive", "array", "comment", "chdir"),
        *("job-name", "output", "error", "open-mode", "time", "nodes", "ntasks-per-node"),
        *("cpus-per-task", "account", "partition", "qos", "constraint", "mem", "exclude"),
        *("gpus-per-node", "reservation", "nodelist", "nice", "dependency", "signal"),
        *("kill-on-invalid-dep", "ntasks", "export"),
    }
)


def sbatch(store: Store, argv: list[str]) -> str:
    """Take a job in."""
    options, others = parse(argv, _SBATCH)
    if len(others) != 1:
        msg = "Batch script missing"
        raise Refusal(msg)
    path = Path(others[0])
    try:
        script = path.read_text(encoding="utf-8")
    except OSError as error:
        msg = f"Unable to open file {path}"
        raise Refusal(msg) from error
    if not script.startswith("#!"):
        msg = "This does not look like a batch script."
        raise Refusal(msg)
    for line in script.splitlines()[1:]:
        if line.startswith("#SBATCH"):
            written, _ = parse(split_options(line[len("#SBATCH") :]), _SBATCH)
            options = {**written, **options}
        elif line.strip() and not line.startswith("#"):
            break
    numbers: list[int | None] = [None]
    limit = None
    with store.open() as state:
        config = state["config"]
        if "array" in options:
            asked, limit = indices(options["array"])
            if max(asked) >= config["max_array_size"]:
                msg = "Batch job submission failed: Invalid job array specification"
                raise Refusal(msg)
            numbers = list(asked)
        _check_limits(state, options, len(numbers))
        base = str(state["next_id"])
        (store.folder / "scripts").mkdir(exist_ok=True)
        copy = store.folder / "scripts" / base
        copy.write_text(script, encoding="utf-8")
        copy.chmod(0o700)
        for index in numbers:
            task_id = base if index is None else f"{base}_{index}"
            state["tasks"][task_id] = {
                "id": task_id,
                "raw": str(state["next_id"]),
                "base": base,
                "index": index,
                "limit": limit,
                "options": options,
                "script": str(copy),
                "folder": options.get("chdir", str(Path.cwd())),
                "name": options.get("job-name", path.name),
                "environ": dict(os.environ),
                "state": "PENDING",
                "reason": "None",
                "exit_code": "0:0",
                "restarts": 0,
                "submitted": time.time(),  # noqa: TID251 -- a date
                "started": None,
                "ended": None,
                "preempted": None,
                "earlier": [],
                "is_forgotten": False,
                "supervisor": None,
            }
            state["next_id"] += 1
    return f"{base}\n" if "parsable" in options else f"Submitted batch job {base}\n"


def _check_limits(state: Mapping[str, Any], options: Mapping[str, str], num: int) -> None:
    config = state["config"]
    partition = options.get("partition")
    known = config["partitions"]
    if partition and known is not None and not {*partition.split(",")} <= {*known}:
        msg = (
            f"invalid partition specified: {partition}\nsbatch: error: Batch job "
            f"submission failed: Invalid partition name specified"
        )
        raise Refusal(msg)
    active = sum(task["state"] not in ENDED for task in state["tasks"].values())
    if config["max_submit"] is not None and active + num > config["max_submit"]:
        msg = (
            "QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed: Job "
            "violates accounting/QOS policy (job submit limit, user's size and/or time "
            "limits)"
        )
        raise Refusal(msg)


def scancel(store: Store, argv: list[str]) -> str:
    """End tasks."""
    _, ids = parse(argv, frozenset({"quiet"}))
    missing = []
    with store.open() as state:
        for job_id in ids:
            found = [t for t in named(state, job_id) if not t["is_forgotten"]]
            if not found:
                missing.append(job_id)
            bases = {task["base"] for task in found}
            all_of_them = [t for t in state["tasks"].values() if t["base"] in bases]
            for task in found:
                if task["state"] == "PENDING" and len(found) < len(all_of_them):
                    del state["tasks"][task["id"]]  # before it began: no trace is left
                elif task["state"] == "PENDING":
                    end(task, "CANCELLED")
                elif task["state"] == "RUNNING":
                    store.ask(task["id"], "cancel")
    if missing:
        msg = "\nscancel: error: ".join(
            f"Kill job error on job id {job_id}: Invalid job id specified"
            for job_id in missing
        )
        raise Refusal(msg)
    return ""


def scontrol(store: Store, argv: list[str]) -> str:
    """Show the configuration or jobs, or requeue."""
    match argv:
        case ["ping"]:
            return "Slurmctld(primary) at fake is UP\n"
        case ["show", "config"]:
            config = store.read()["config"]
            return (
                f"Configuration data as of now\n"
                f"MaxArraySize            = {config['max_array_size']}\n"
                f"SchedulerParameters     = {config['scheduler_parameters'] or '(null)'}\n"
            )
        case ["show", "job", "--oneliner", job_id]:
            return "".join(
                f"JobId={t['raw']} JobState={t['state']} Restarts={t['restarts']} "
                f"PreemptTime={t['preempted'] or 'None'}\n"
                for t in _shown(store.read(), job_id)
            )
        case ["--oneliner", "show", "node", nodes]:
            down = store.read()["config"]["down_nodes"]
            return "".join(
                f"NodeName={name} State={_STATES[name in down]} Partitions=main\n"
                for name in _expanded(nodes)
            )
        case ["requeue", job_ids]:
            return _requeue(store, job_ids.split(","))
        case _:
            msg = f"invalid keyword: {' '.join(argv)}"
            raise Refusal(msg)


def _requeue(store: Store, job_ids: list[str]) -> str:
    """Requeue what can be, and then tell what cannot."""
    refusals = []
    with store.open() as state:
        for job_id in job_ids:
            try:
                found = _shown(state, job_id)
            except Refusal as error:
                refusals.append(str(error))
                continue
            for task in found:
                if task["state"] == "RUNNING":
                    store.ask(task["id"], "requeue")
                elif task["state"] in ENDED:
                    requeue(task, "REQUEUED")
                else:
                    refusals.append(f"Job is pending execution for job {task['id']}")
    if refusals:
        raise Refusal("\n".join(refusals))
    return ""


def _expanded(nodes: str) -> list[str]:
    names = []
    for part in re.findall(r"[^,\[]+(?:\[[^\]]*\])?", nodes):
        prefix, bracket, spec = part.partition("[")
        numbers = indices(spec.rstrip("]"))[0] if bracket else [""]
        names += [f"{prefix}{number}" for number in numbers]
    return names


def _shown(state: Mapping[str, Any], job_id: str) -> list[dict[str, Any]]:
    found = [task for task in named(state, job_id) if not task["is_forgotten"]]
    if not found:
        msg = f"Invalid job id specified for job {job_id}"
        raise Refusal(msg)
    return found
