# ruff: noqa: T201 - it speaks to a terminal
"""SIGKILL a search at random moments, again and again, and count what its experiments did.

``python chaos.py --kills 200 --seed 0 FOLDER``: runs searches of a dozen experiments in a
process of their own, each on top of the local launcher. After a time drawn from the seed it
kills the executor, a runner, an experiment's own process, or executor and runner at once;
starts the executor again if it is gone; and so on until the search is complete; then the
next search, until so many kills are done.

Each attempt takes a lock that the kernel frees at its death, and says so if another one
holds it: that would be two at once. It writes a line when it begins, and one when its work
is done. Of each experiment the journal must hold one success; the job that succeeded must
have begun once and done its work once; none may have begun after that. Work that was done
by a job which was killed before its runner could note its end is done again, and counted.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from mtf_gridsearch.executor import GridSearchExecutor
from mtf_gridsearch.grid import ParameterGrid
from mtf_gridsearch.journal import JOURNAL_NAME, read_records
from mtf_gridsearch.local.launcher import LocalLauncher
from mtf_gridsearch.records import Status
from mtf_gridsearch.report import report

NUM_EXPERIMENTS = 12
NUM_RUNNING = 3
MOST_S = 1.2
DEADLINE_S = 120.0
TARGETS = ("executor", "runner", "experiment", "both")
OFTEN = {"node_failed": 1000, "unknown": 1000}


def work(config: str) -> None:
    """Be an experiment: hold the lock, write, work a little, write."""
    job_id = os.environ["MTF_JOB_ID"]
    folder = Path(config).parent
    log = folder.parent / "work.log"
    with (folder / "proof.lock").open("w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            append(log, "overlap", job_id)
            raise
        append(log, "begin", job_id)
        for step in range(1, 6):
            time.sleep(0.03)
            report(step, loss=1 / step)
        append(log, "done", job_id)


def append(log: Path, word: str, job_id: str) -> None:
    """Write one line in one call."""
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(fd, f"{word} {job_id}\n".encode())
    finally:
        os.close(fd)


def search(folder: Path) -> None:
    """Be the executor: run the search in *folder*, or go on with it; repair what failed."""
    grid = ParameterGrid("seeds").add_parameter("seed", list(range(NUM_EXPERIMENTS)))
    launcher = LocalLauncher(__file__, max_running=NUM_RUNNING, grace_s=1.0)
    executor = GridSearchExecutor(launcher, folder=folder, retry=OFTEN)
    base = {"experiment_name": "chaos", "seed": 0}
    result = executor.execute_grid_search(base, grid)
    while not result.is_complete:  # an experiment that was killed has failed
        result = executor.execute_grid_search(base, grid, only="failed")


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Start an executor; what it says is kept beside the folder."""
    with folder.with_suffix(".log").open("ab") as log:
        command = [sys.executable, __file__, "--search", str(folder)]
        return subprocess.Popen(command, stdout=log, stderr=log)


def processes(folder: Path) -> dict[str, list[int]]:
    """Return the runners and the experiments of the search in *folder*."""
    mark = b"MTF_EXPERIMENT_DIR=" + os.fsencode(folder) + b"/"
    found: dict[str, list[int]] = {"runner": [], "experiment": []}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes():
                command = (process / "cmdline").read_bytes()
                kind = "runner" if b"\0--\0" in command else "experiment"
                found[kind].append(int(process.name))
        except OSError:
            continue  # it has ended
    return found


def kill(target: str, executor: int, folder: Path, draws: random.Random) -> Counter[str]:
    """Kill what *target* says, as far as it is there; return what was killed."""
    killed: Counter[str] = Counter()
    if target in ("executor", "both"):
        os.kill(executor, signal.SIGKILL)
        killed["executor"] += 1
    if target != "executor":
        kind = "runner" if target == "both" else target
        if pids := processes(folder)[kind]:
            try:
                os.kill(draws.choice(sorted(pids)), signal.SIGKILL)
                killed[kind] += 1
            except ProcessLookupError:
                pass  # it has ended meanwhile
    return killed


def run_killed(folder: Path, draws: random.Random, most: int) -> Counter[str]:
    """Run one search to its end under at most *most* kills; return who was killed.

    Raises:
        RuntimeError: If an executor fails by itself, or the search does not come to its end.
    """
    killed: Counter[str] = Counter()
    deadline = time.monotonic() + DEADLINE_S
    executor = start(folder)
    try:
        while time.monotonic() < deadline:
            try:
                code = executor.wait(
                    draws.uniform(0, MOST_S) if killed.total() < most else DEADLINE_S
                )
            except subprocess.TimeoutExpired:
                one_is_left = killed.total() == most - 1
                target = draws.choice(TARGETS[:3] if one_is_left else TARGETS)
                killed += kill(target, executor.pid, folder, draws)
                continue
            if code == 0:
                return killed
            if code != -signal.SIGKILL:
                message = f"{folder}: the executor exited with {code}: see its .log"
                raise RuntimeError(message)
            executor = start(folder)
    finally:
        executor.kill()
        executor.wait()
    message = f"{folder}: not complete after {DEADLINE_S:g} s"
    raise RuntimeError(message)


def faults(folder: Path) -> tuple[list[str], int]:
    """Return what is wrong with a search that has ended, and how much was done twice."""
    wrong: list[str] = []
    lines = [
        line.split() for line in (folder / "work.log").read_text("utf-8").split("\n")
    ]
    words = [(line[0], line[1]) for line in lines if line]
    rows = [json.loads(row) for row in (folder / JOURNAL_NAME).read_bytes().splitlines()]
    records = read_records(folder)
    if len(records) != NUM_EXPERIMENTS:
        wrong.append(f"{len(records)} experiments")
    repeated = 0
    for name, record in records.items():
        ends = [r for r in rows if r["event"] == "ended" and r["name"] == name]
        # In the journal, paths begin at the folder.
        jobs = [r["job_id"] for r in ends if r["status"] == "succeeded"]
        successes = [str(folder.absolute() / job) for job in jobs]
        mine = [(w, job) for w, job in words if Path(job).parent.name == name]
        if record.status is not Status.SUCCEEDED or len(successes) != 1:
            wrong.append(f"{name}: {record.status}, {len(successes)} successes")
            continue
        counts = Counter(mine)
        if any(word == "overlap" for word, _ in mine):
            wrong.append(f"{name}: two attempts at once")
        if counts["begin", successes[0]] != 1 or counts["done", successes[0]] != 1:
            wrong.append(
                f"{name}: the job that succeeded did its work otherwise than once"
            )
        if mine and mine[-1] != ("done", successes[0]):
            wrong.append(f"{name}: something came after its success")
        repeated += sum(word == "done" for word, _ in mine) - 1
    if any(processes(folder).values()):
        wrong.append("processes are left")
    return wrong, repeated


def main() -> int:
    """Kill as often as asked; print what came out, and fail if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the searches are made")
    parser.add_argument("--kills", type=int, default=200, help="%(default)s")
    parser.add_argument("--seed", type=int, default=0, help="%(default)s")
    parser.add_argument("--search", action="store_true", help="be an executor")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    if arguments.search:
        search(folder)
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    draws = random.Random(arguments.seed)  # noqa: S311 - moments, no secret
    killed: Counter[str] = Counter()
    wrong: dict[str, list[str]] = {}
    number = repeated = 0
    began = time.monotonic()
    while killed.total() < arguments.kills:
        place = folder / f"search{number}"
        killed += run_killed(place, draws, arguments.kills - killed.total())
        found, again = faults(place)
        repeated += again
        if found:
            wrong[place.name] = found
        else:
            shutil.rmtree(place)
        number += 1
        if sys.stderr.isatty() or number % 10 == 0:
            print(f"{killed.total()} of {arguments.kills} kills", file=sys.stderr)
    told: dict[str, Any] = {
        "kills": killed.total(),
        **{f"{kind}s killed": count for kind, count in sorted(killed.items())},
        "searches": number,
        "experiments": number * NUM_EXPERIMENTS,
        "done again": repeated,
        "wrong": wrong,
        "seed": arguments.seed,
        "minutes": round((time.monotonic() - began) / 60, 1),
    }
    print(json.dumps(told))
    return 1 if wrong else 0


if __name__ == "__main__":
    if "MTF_JOB_ID" in os.environ:
        work(sys.argv[1])
    else:
        sys.exit(main())
