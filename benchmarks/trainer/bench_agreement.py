"""Cost of agreeing to stop: beside a reduction at every step, in two processes over gloo.

A step is a multiplication of matrices, 1 to 2 ms on one thread, and a reduction of 262,144
numbers, as of gradients. After it the processes ask one another whether to stop: through
the trainer's own `StopAgreement`, or by an ``all_reduce`` of one number, which each of them
waits for, as a loop by hand does; or not at all. What is shown is the mean of that call
alone, in the process where it takes longer: on the clock, and as CPU time of the calling
thread. The first 200 steps are left out.

Each round of each contender is two fresh processes; rounds alternate, medians are shown.

    python benchmarks/trainer/bench_agreement.py --quick
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from _children import describe, parser_for, result_of
from lightning.fabric import Fabric

from mtf_trainer._ranks.agreement import StopAgreement

RANKS = 2
WARM_UP = 200

Agree = Callable[[], bool]


class _TwoProcesses(Fabric):
    """As much of Fabric as the agreement asks of it; the processes are ours."""

    @property
    def world_size(self) -> int:
        return RANKS


def agreement() -> Agree:
    """Ask as the trainer does."""
    return partial(StopAgreement(_TwoProcesses(accelerator="cpu")).reached, wanted=False)


def reduction() -> Agree:
    """Ask by a reduction, and wait for it."""
    flag = torch.zeros(1, dtype=torch.int64)

    def agree() -> bool:
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())

    return agree


def nothing() -> Agree:
    """Ask nobody: what is shown then is the clocks' own time."""
    return lambda: False


CONTENDERS: dict[str, tuple[str, Callable[[], Agree]]] = {
    "nothing": ("nothing but the clocks", nothing),
    "agreement": ("mtf-trainer", agreement),
    "reduction": ("all_reduce at every step", reduction),
}


def time_one(name: str, meeting: str, rank: int, steps: int) -> tuple[float, float]:
    """Return the microseconds of a call, on the clock and of its thread's CPU time."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=RANKS
    )
    agree = CONTENDERS[name][1]()
    x = torch.randn(512, 512)
    wall, cpu = [], []
    for _ in range(WARM_UP + steps):
        dist.all_reduce(x @ x)
        start, start_cpu = time.perf_counter_ns(), time.thread_time_ns()
        agree()
        cpu.append(time.thread_time_ns() - start_cpu)
        wall.append(time.perf_counter_ns() - start)
    dist.barrier()
    dist.destroy_process_group()
    means = (statistics.fmean(found[WARM_UP:]) / 1e3 for found in (wall, cpu))
    return next(means), next(means)


def compare(steps: int, rounds: int) -> None:
    """Time the contenders in turn; print a table."""
    measured: dict[str, list[tuple[float, ...]]] = {name: [] for name in CONTENDERS}
    for _ in range(rounds):
        for name, found in measured.items():
            with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
                meeting = Path(folder, "meeting")
                child = partial(result_of, __file__, name, meeting)
                each = pool.map(child, (f"{rank}/{steps}" for rank in range(RANKS)))
                found.append(tuple(map(max, *each)))
    print("| | a call, us | CPU, us |")
    print("|---|---:|---:|")
    for name, found in measured.items():
        wall_us, cpu_us = map(statistics.median, zip(*found, strict=True))
        print(f"| {CONTENDERS[name][0]} | {wall_us:.1f} | {cpu_us:.1f} |")


def main(arguments: Sequence[str] | None = None) -> None:
    """Time both ways, in processes of their own."""
    options = parser_for(__doc__, rounds=5).parse_args(arguments)
    if options.child:
        name, meeting, which = options.child
        rank, _, num_steps = which.partition("/")
        print(json.dumps(time_one(name, meeting, int(rank), int(num_steps))))
        return
    steps, rounds = (300, 1) if options.quick else (3000, options.rounds)
    print(f"{describe()}; {steps} steps, median of {rounds} rounds\n")
    compare(steps, rounds)


if __name__ == "__main__":
    main()
