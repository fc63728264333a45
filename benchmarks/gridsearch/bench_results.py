"""Results of many experiments: read, counted, ranked, written and shown, each on the clock.

The folder is such as an executor leaves: a journal with three lines an experiment, among
them failed, stopped and unfinished ones. Each round is a fresh process, which imports
everything first; what is timed is what a user waits for from `SearchResults.read` to the
printed table. The median round is shown, of the CPU time of the process.

    nox -s "bench(mtf-gridsearch)"
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import rich.console

from mtf_gridsearch.export import to_csv
from mtf_gridsearch.identity import identity_of
from mtf_gridsearch.importance import importance
from mtf_gridsearch.results import SearchResults

METRICS = ("train/loss", "val/loss", "val/accuracy")


def write_journal(folder: Path, num_experiments: int) -> None:
    """Write the journal of a search of which one in ten has no result."""
    rng = random.Random(0)  # noqa: S311 -- a benchmark, no secret
    lines = []
    for number in range(num_experiments):
        parameters = {
            "optimizer.lr": 10 ** rng.uniform(-5, -1),
            "model.depth": rng.randrange(1, 9),
            "model.type": rng.choice(["mlp", "conv", "transformer"]),
            "seed": number,
        }
        identity = identity_of(parameters)
        name = f"digits__{identity}"
        about = {"name": name, "identity": identity, "parameters": parameters}
        lines.append({"event": "planned", "at": 1.0} | about)
        if number % 20 == 0:
            continue
        about = {"name": name, "job_id": f"{name}.1"}
        lines.append({"event": "submitted", "at": 2.0} | about)
        about |= {"status": "failed" if number % 20 == 1 else "succeeded", "reason": ""}
        about |= {"metrics": {m: _summary(rng) for m in METRICS}}
        about |= {"usage": {"wall_s": 60.0, "cpu_s": 50.0, "max_rss_bytes": 10**9}}
        lines.append({"event": "ended", "at": 3.0} | about)
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (folder / "journal.jsonl").write_text(text, encoding="utf-8")


def _summary(rng: random.Random) -> list[float]:
    low, last, high = sorted(rng.random() for _ in range(3))
    return [last, 9, low, 3, high, 1]


def measure(folder: Path) -> dict[str, float]:
    """Return seconds by step, all in this process."""
    console = rich.console.Console(file=io.StringIO(), width=200)
    marks = [("", time.process_time())]

    def mark(step: str) -> None:
        marks.append((step, time.process_time()))

    results = SearchResults.read(folder)
    mark("read")
    console.print(results.table("val/loss", "min"))
    mark("table, 20 best shown")
    results.write_summary()
    mark("results_summary.json")
    taken = {step: now - before for (_, before), (step, now) in pairwise(marks)}
    taken = {"all of these": sum(taken.values())} | taken
    marks = [("", time.process_time())]
    results.pareto({"train/loss": "min", "val/accuracy": "max"})
    mark("pareto front of two")
    importance(results, "val/loss")
    mark("importance")
    to_csv(results, folder / "results.csv")
    mark("CSV")
    return taken | {step: now - before for (_, before), (step, now) in pairwise(marks)}


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiments", type=int, default=10_000, metavar="N")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        print(json.dumps(measure(options.child)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_journal(Path(folder), options.experiments)
        size = (Path(folder) / "journal.jsonl").stat().st_size / 1e6
        argv = [sys.executable, __file__, "--child", folder]
        rounds = [
            json.loads(subprocess.run(argv, check=True, capture_output=True).stdout)
            for _ in range(options.rounds)
        ]
    print(f"{options.experiments} experiments, a journal of {size:.1f} MB;", end=" ")
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores")
    print(f"median of {options.rounds} processes, CPU seconds (least to most)")
    for step in rounds[0]:
        values = [taken[step] for taken in rounds]
        low, high = min(values), max(values)
        print(f"{step:24} {statistics.median(values):7.3f}  ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
