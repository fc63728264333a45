"""The commands of `mtf_slurm.testing.FakeSlurm`: a script of its own, without a daemon.

Run as ``_fake_slurm.py <state folder> <command> <arguments>``. All state lies in
``state.json`` of that folder, under one lock; whoever changes it starts what can run. Each
task that runs has a supervisor, ``_fake_slurm.py <state folder> _run <task>``.

What it takes is what this package and its followers use of Slurm; anything else is refused,
so that nothing seems to work that was never looked at.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = ["ENDED", "Refusal", "Store", "main", "split_options"]

ENDED = frozenset(
    {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED"}
)
_POLL_S = 0.01
_FLAGS = frozenset(
    {
        *("parsable", "parsable2", "requeue", "no-requeue", "exclusive", "noheader"),
        *("array-expand", "me", "allocations", "json", "duplicates", "quiet", "batch"),
        *("oneliner", "noconvert", "hold"),
    }
)
_SBATCH = frozenset(
    {
        *("parsable", "requeue", "no-requeue", "exclusive", "array", "comment", "chdir"),
        *("job-name", "output", "error", "open-mode", "time", "nodes", "ntasks-per-node"),
        *("cpus-per-task", "account", "partition", "qos", "constraint", "mem", "exclude"),
        *("gpus-per-node", "reservation", "nodelist", "nice", "dependency", "signal"),
        *("kill-on-invalid-dep", "ntasks", "export"),
    }
)


class Refusal(Exception):  # noqa: N818 -- what Slurm does
    """Slurm says no: its text, and its exit status."""

    def __init__(self, text: str, status: int = 1) -> None:
        super().__init__(text)
        self.status = status


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
            verdict = _dependency(task["options"].get("dependency", ""), tasks)
            if verdict == "never" and "kill-on-invalid-dep" in task["options"]:
                _end(task, "CANCELLED")
            count = running.get(task["base"], 0)
            is_full = task["limit"] is not None and count >= task["limit"]
            if verdict != "now" or is_full or free <= 0:
                task["reason"] = "Dependency" if verdict != "now" else "Resources"
                continue
            free -= 1
            running[task["base"]] = count + 1
            task |= {"state": "RUNNING", "reason": "None", "started": time.time()}  # noqa: TID251 -- a date
            flags = state["config"]["python_flags"]
            argv = [sys.executable, *flags, __file__, str(self.folder), "_run"]
            process = subprocess.Popen(
                [*argv, task["id"]],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            task["supervisor"] = process.pid
            process.returncode = 0  # another process waits for it: the init of this one


def _end(task: dict[str, Any], word: str, exit_code: str = "0:0") -> None:
    task |= {"state": word, "exit_code": exit_code, "ended": time.time()}  # noqa: TID251 -- a date


def _dependency(text: str, tasks: Mapping[str, Any]) -> str:
    """Return ``now``, ``later`` or ``never``."""
    verdict = "now"
    for part in filter(None, text.split(",")):
        kind, *ids = part.split(":")
        for job_id in ids:
            words = [t["state"] for t in tasks.values() if job_id in {t["id"], t["base"]}]
            if not all(word in ENDED for word in words):
                verdict = "later" if verdict == "now" else verdict
                continue
            is_ok = all(word == "COMPLETED" for word in words)
            if (kind == "afterok" and not is_ok) or (kind == "afternotok" and is_ok):
                return "never"
    return verdict


# ------------------------------------------------------------ reading options


def split_options(line: str) -> list[str]:
    r"""Split what follows ``#SBATCH`` as sbatch does.

    >>> split_options('--comment="a \\"b\\" #c" --nodes=1 # more')
    ['--comment=a "b" #c', '--nodes=1']
    """
    words: list[str] = []
    word, quote, at, is_open = "", "", 0, False
    while at < len(line):
        char = line[at]
        if char == "\\" and at + 1 < len(line):
            word, at, is_open = word + line[at + 1], at + 1, True
        elif quote:
            quote, word = ("", word) if char == quote else (quote, word + char)
        elif char in "'\"":
            quote, is_open = char, True
        elif char.isspace():
            if is_open:
                words.append(word)
            word, is_open = "", False
        elif char == "#" and not is_open:
            break
        else:
            word, is_open = word + char, True
        at += 1
    return [*words, word] if is_open else words


def _parse(
    argv: list[str], known: frozenset[str], *, stops: bool = False
) -> tuple[dict[str, str], list[str]]:
    """Return options by their long names, and other arguments."""
    options: dict[str, str] = {}
    others: list[str] = []
    left = list(argv)
    while left:
        word = left.pop(0)
        if not word.startswith("--"):
            others.append(word)
            if stops:
                return options, others + left
            continue
        name, equals, value = word[2:].partition("=")
        if name not in known:
            msg = f"unrecognized option '{word}'"
            raise Refusal(msg)
        if not equals and name not in _FLAGS and name != "array":
            if not left:
                msg = f"option '--{name}' requires an argument"
                raise Refusal(msg)
            value = left.pop(0)
        options[name] = value
    return options, others


def _indices(text: str) -> tuple[list[int], int | None]:
    spec, _, limit = text.partition("%")
    found: list[int] = []
    for part in spec.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if match is None:
            msg = "Batch job submission failed: Invalid job array specification"
            raise Refusal(msg)
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    return found, int(limit) if limit else None


# ------------------------------------------------------------ the commands


def sbatch(store: Store, argv: list[str]) -> str:
    """Take a job in."""
    options, others = _parse(argv, _SBATCH)
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
            written, _ = _parse(split_options(line[len("#SBATCH") :]), _SBATCH)
            options = {**written, **options}
        elif line.strip() and not line.startswith("#"):
            break
    indices: list[int | None] = [None]
    limit = None
    with store.open() as state:
        config = state["config"]
        if "array" in options:
            numbers, limit = _indices(options["array"])
            if max(numbers) >= config["max_array_size"]:
                msg = "Batch job submission failed: Invalid job array specification"
                raise Refusal(msg)
            indices = list(numbers)
        _check_limits(state, options, len(indices))
        base = str(state["next_id"])
        (store.folder / "scripts").mkdir(exist_ok=True)
        copy = store.folder / "scripts" / base
        copy.write_text(script, encoding="utf-8")
        copy.chmod(0o700)
        for index in indices:
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
    "N": lambda t: "n1" if t["state"] == "RUNNING" else "",
    "P": lambda t: t["options"].get("partition", "main"),
    "q": lambda t: t["options"].get("qos", "normal"),
    "u": lambda _: "user",
}


def squeue(store: Store, argv: list[str]) -> str:
    """List what the controller knows."""
    argv = ["--array-expand" if word == "--array" else word for word in argv]
    known = {"noheader", "array-expand", "states", "jobs", "format", "me", "name", "json"}
    options, _ = _parse(argv, frozenset(known))
    tasks = [t for t in store.read()["tasks"].values() if not t["is_forgotten"]]
    if "states" not in options:
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
    }


def _elapsed_s(task: Mapping[str, Any]) -> int:
    if task["started"] is None:
        return 0
    end = task["ended"] or time.time()  # noqa: TID251 -- a date
    return int(end - task["started"])


def _date(seconds: float | None) -> str:
    if seconds is None:
        return "Unknown"
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(seconds))


_OF_ACCOUNTING: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "jobid": lambda t: str(t["id"]),
    "jobidraw": lambda t: str(t["raw"]),
    "jobname": lambda t: str(t["name"]),
    "state": lambda t: t["state"] + " by 0" * (t["state"] == "CANCELLED"),
    "exitcode": lambda t: str(t["exit_code"]),
    "workdir": lambda t: str(t["folder"]),
    "comment": lambda _: "",  # as at sites that do not store it
    "partition": _OF_QUEUE["P"],
    "nodelist": lambda t: "None assigned" if t["started"] is None else "n1",
    "submit": lambda t: _date(t["submitted"]),
    "start": lambda t: _date(t["started"]),
    "end": lambda t: _date(t["ended"]),
    "elapsedraw": lambda t: str(_elapsed_s(t)),
    "restarts": lambda t: str(t["restarts"]),
    "user": _OF_QUEUE["u"],
}


def sacct(store: Store, argv: list[str]) -> str:
    """List what accounting knows: late, and for ever."""
    known = {"noheader", "allocations", "parsable2", "format", "jobs", "name"}
    more = {"starttime", "duplicates", "noconvert"}
    options, _ = _parse(argv, frozenset(known | more))
    state = store.read()
    config = state["config"]
    if not config["has_accounting"]:
        msg = "Slurm accounting storage is disabled"
        raise Refusal(msg)
    shown = time.time() - config["accounting_lag_s"]  # noqa: TID251 -- a date
    tasks = [task for task in state["tasks"].values() if task["submitted"] <= shown]
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


def scancel(store: Store, argv: list[str]) -> str:
    """End tasks."""
    _, ids = _parse(argv, frozenset({"quiet"}))
    missing = []
    with store.open() as state:
        for job_id in ids:
            found = [t for t in _named(state, job_id) if not t["is_forgotten"]]
            if not found:
                missing.append(job_id)
            for task in found:
                if task["state"] == "PENDING" and job_id == task["id"] != task["base"]:
                    del state["tasks"][task["id"]]  # before it began: no trace is left
                elif task["state"] == "PENDING":
                    _end(task, "CANCELLED")
                elif task["state"] == "RUNNING":
                    store.ask(task["id"], "cancel")
    if missing:
        msg = "\nscancel: error: ".join(
            f"Kill job error on job id {job_id}: Invalid job id specified"
            for job_id in missing
        )
        raise Refusal(msg)
    return ""


def _named(state: Mapping[str, Any], job_id: str) -> list[dict[str, Any]]:
    tasks = state["tasks"].values()
    return [task for task in tasks if job_id in {task["id"], task["base"], task["raw"]}]


def scontrol(store: Store, argv: list[str]) -> str:
    """Show the configuration, or requeue."""
    if argv[:2] == ["show", "config"]:
        size = store.read()["config"]["max_array_size"]
        return f"Configuration data as of now\nMaxArraySize            = {size}\n"
    if argv[:1] == ["ping"]:
        return "Slurmctld(primary) at fake is UP\n"
    if len(argv) == 2 and argv[0] == "requeue":  # noqa: PLR2004 -- it and its argument
        with store.open() as state:
            for job_id in argv[1].split(","):
                found = [t for t in _named(state, job_id) if not t["is_forgotten"]]
                if not found:
                    msg = f"Invalid job id specified for job {job_id}"
                    raise Refusal(msg)
                for task in found:
                    if task["state"] == "RUNNING":
                        store.ask(task["id"], "requeue")
                    elif task["state"] in ENDED:
                        _requeue(task)
        return ""
    msg = f"invalid keyword: {' '.join(argv)}"
    raise Refusal(msg)


def _requeue(task: dict[str, Any]) -> None:
    task |= {"state": "PENDING", "started": None, "ended": None, "exit_code": "0:0"}
    task["restarts"] += 1


# ------------------------------------------------------------ what runs


def srun(store: Store, argv: list[str]) -> int:
    """Run a step: the tasks of it as processes; return the highest exit status."""
    known = {"nodes", "ntasks", "ntasks-per-node", "cpus-per-task", "kill-on-bad-exit"}
    options, command = _parse(argv, frozenset(known), stops=True)
    count = int(options.get("ntasks", "1"))
    steps = store.folder / "steps" / os.environ["MTF_FAKE_TASK"]
    steps.mkdir(parents=True, exist_ok=True)
    children: list[subprocess.Popen[bytes]] = []

    def forward(number: int, _frame: object) -> None:
        for child in children:
            child.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, forward)
    for rank in range(count):
        own = {
            "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": str(rank),
            "SLURM_NTASKS": str(count),
            "SLURM_STEP_ID": "0",
            "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1",
        }
        children.append(subprocess.Popen(command, env={**os.environ, **own}))
        (steps / str(children[-1].pid)).touch()
    codes = [child.wait() for child in children]
    for child in children:
        (steps / str(child.pid)).unlink(missing_ok=True)
    return max(code if code >= 0 else 128 - code for code in codes)


def _run(store: Store, task_id: str) -> None:
    """Supervise a task that runs."""
    task = store.read()["tasks"].get(task_id)
    while task is None or task["state"] != "RUNNING" or task["supervisor"] != os.getpid():
        time.sleep(_POLL_S)  # whoever started this has not written the state yet
        task = store.read()["tasks"].get(task_id)
    ask = store.folder / "asks" / task_id
    ask.unlink(missing_ok=True)
    process = _start(task)
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
    if ask.exists():  # what it asked for itself, just before its end
        reason = ask.read_text(encoding="utf-8")
    if process is not None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    with store.open() as state:
        task = state["tasks"][task_id]
        ask.unlink(missing_ok=True)
        words = {"cancel": "CANCELLED", "time_out": "TIMEOUT", "preempt": "PREEMPTED"}
        is_requeued = reason == "requeue" or (
            reason in {"preempt", "fail_node"} and "no-requeue" not in task["options"]
        )
        if is_requeued:
            _requeue(task)
        elif reason:
            _end(task, words.get(reason, "NODE_FAIL"), "0:15")
        else:
            exit_code = f"{code}:0" if code >= 0 else f"0:{-code}"
            _end(task, "COMPLETED" if code == 0 else "FAILED", exit_code)


def _start(task: Mapping[str, Any]) -> subprocess.Popen[bytes] | None:
    environ = {
        **task["environ"],
        "SLURM_JOB_ID": task["raw"],
        "SLURM_JOB_NAME": task["name"],
        "SLURM_JOB_NODELIST": "n1",
        "SLURMD_NODENAME": "n1",
        "MTF_FAKE_TASK": task["id"],
    }
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
    if reason in {"preempt", "time_out"}:
        _warn(store, task, process, reason)
        if _is_over(process, config["grace_s"]):
            return True
    if reason != "fail_node":
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        if _is_over(process, config["kill_wait_s"]):
            return False
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
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
    for path in (store.folder / "steps" / str(task["id"])).glob("*"):
        with suppress(ProcessLookupError):
            os.kill(int(path.name), number)


def _is_over(process: subprocess.Popen[bytes], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return process.poll() is not None


# ------------------------------------------------------------ faults


def _fault(store: Store, command: str) -> dict[str, Any] | None:
    """Take the next fault of a command."""
    if not store.read()["faults"].get(command):
        return None
    with store.open() as state:
        faults = state["faults"].get(command)
        return faults.pop(0) if faults else None


def main(argv: list[str]) -> int:
    """Run one command; return its exit status."""
    store, command, rest = Store(Path(argv[0])), argv[1], argv[2:]
    if command == "_run":
        _run(store, rest[0])
        return 0
    with (store.folder / "calls").open("a", encoding="utf-8") as calls:
        calls.write(json.dumps([command, *rest]) + "\n")
    if command == "srun":
        return srun(store, rest)
    fault = _fault(store, command)
    if fault and not fault["is_after"]:
        return _fail(fault)
    try:
        commands = {
            "sbatch": sbatch,
            "squeue": squeue,
            "sacct": sacct,
            "scancel": scancel,
            "scontrol": scontrol,
        }
        reply = commands[command](store, rest)
    except Refusal as error:
        sys.stderr.write(f"{command}: error: {error}\n")
        return error.status
    if fault:
        return _fail(fault)
    sys.stdout.write(reply)
    return 0


def _fail(fault: Mapping[str, Any]) -> int:
    if fault["is_hanging"]:
        while True:
            signal.pause()
    sys.stdout.write(fault["stdout"])
    sys.stderr.write(fault["stderr"])
    return int(fault["status"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
