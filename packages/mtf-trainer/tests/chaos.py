# ruff: noqa: T201 - it speaks to a terminal
"""SIGKILL a training at random moments, again and again, and compare what comes out.

``python chaos.py --kills 1000 --seed 0 FOLDER``: trains the small run of ``exact_runs``
in a forked child, kills the child after a time drawn from the seed, starts it again, and
so on until it is complete; then a new run, until so many kills are done. Each run must
end with the bytes of one that was never killed: weights, optimizer, streams, metrics.
Kills fall into steps, saves (by the training process or by the one that writes for it),
snapshots, validation and start-up alike.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from exact_runs import maker
from lightning.fabric import Fabric

from mtf_trainer import CheckpointSettings, SnapshotSettings
from mtf_trainer._loop.run_dir import memory_id
from mtf_trainer.testing import Make, outcome_of, run_whole

EPOCHS = 12
FAILED = 3


def make_for(number: int) -> Make:
    """Return what makes run *number*: every kind of saving in turn."""
    made: Make = maker(
        Fabric(accelerator="cpu", devices=1),
        [],
        accumulation=1 + number % 2,
        workers=2 if number % 5 == 4 else 0,
        epochs=EPOCHS,
        checkpoint=CheckpointSettings(
            every_n_steps=7, asynchronous=number % 3 == 2, keep_last_n=2
        ),
        snapshot=SnapshotSettings(enabled=number % 4 != 3, every_n_steps=3),
    )
    return made


def train(number: int, run_dir: Path) -> None:
    """Be the child: train, and exit with what came of it."""
    code = FAILED
    try:
        trainer, fit = make_for(number)(run_dir)
        del trainer
        result = fit()
        (run_dir / "lost.txt").write_text(str(result.steps_lost), "utf-8")
        code = result.exit_code
    except BaseException:  # noqa: BLE001 - a forked child must not come back
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def run_killed(
    number: int, run_dir: Path, draws: random.Random, most: int
) -> Counter[str]:
    """Train in children, killed at random moments at most *most* times, to the end.

    Raises:
        RuntimeError: If a child ends by itself, and not well.
    """
    told: Counter[str] = Counter()
    while True:
        pid = os.fork()
        if pid == 0:
            train(number, run_dir)
        killer = None
        if told["kills"] < most:
            killer = threading.Timer(draws.uniform(0.0, 0.8), _kill, (pid,))
            killer.start()
        _, status = os.waitpid(pid, 0)
        if killer is not None:
            killer.cancel()
            killer.join()
        code = os.waitstatus_to_exitcode(status)
        if code == 0:
            return told
        if code != -signal.SIGKILL:
            message = f"run {number} ended by itself with {code}: see above"
            raise RuntimeError(message)
        told["kills"] += 1
        told["saves cut short"] += any(
            path.name.endswith(".tmp") for path in run_dir.rglob(".*")
        )


def _kill(pid: int) -> None:
    # The child is not waited for yet, so the id is still its own.
    os.kill(pid, signal.SIGKILL)


def main() -> int:
    """Kill as often as asked; print what came out, and fail if anything differed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the runs are made")
    parser.add_argument("--kills", type=int, default=1000, help="%(default)s")
    parser.add_argument("--seed", type=int, default=0, help="%(default)s")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    draws = random.Random(arguments.seed)  # noqa: S311 - moments, no secret
    total: Counter[str] = Counter()
    wrong: list[int] = []
    expected: dict[int, Any] = {}
    memory_ids: set[str] = set()
    began = time.monotonic()
    number = 0
    while total["kills"] < arguments.kills:
        kind = number % 60
        if kind not in expected:
            whole = arguments.folder / f"whole{kind}"
            expected[kind] = run_whole(make_for(kind), whole).outcome
            shutil.rmtree(whole)
        run_dir = arguments.folder / f"run{number}"
        most = arguments.kills - total["kills"]
        total += run_killed(kind, run_dir, draws, most)
        total["runs"] += 1
        run_id = json.loads((run_dir / "run.json").read_text("utf-8"))["run_id"]
        memory_ids.add(memory_id(run_dir, run_id))
        if outcome_of(run_dir) == expected[kind]:
            shutil.rmtree(run_dir)
        else:
            wrong.append(number)
        number += 1
        if sys.stderr.isatty() or number % 10 == 0:
            print(f"{total['kills']} of {arguments.kills} kills", file=sys.stderr)
    found = Path("/dev/shm").glob(f"mtf-{os.getuid()}-*")  # noqa: S108 - not ours alone
    left = [path for path in found if path.name.split("-")[2] in memory_ids]
    told = {
        **total,
        "seed": arguments.seed,
        "wrong": wrong,
        "left in shared memory": len(left),
        "minutes": round((time.monotonic() - began) / 60, 1),
    }
    print(json.dumps(told))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
