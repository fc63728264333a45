"""Combinations a second, random access and memory: grids beside their peers, in one run.

Every contender gets the same seven parameters of ten values each, ten million
combinations in all, and yields mappings by key; Hydra's basic sweeper, which lists
everything before it yields the first, gets a tenth or less and yields lists of texts, as
it does. The last two rows are what peers have no counterpart for: the same grid with a
constraint, an exclusion and a conditional parameter. Each round of each contender is a
fresh process on one core; rounds alternate between contenders, so that a change of the
machine's speed meets all of them; the median round is shown. Memory is the peak that
Python's own allocator saw while combinations were listed and dropped, measured apart
since watching it costs time.

    nox -s "bench(mtf-gridsearch)"
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import tracemalloc
from argparse import SUPPRESS
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from sklearn.model_selection import ParameterGrid as TheirGrid

from mtf_gridsearch.grid import ParameterGrid

NUM_PARAMETERS = 7
NUM_VALUES = 10
NUM_ALL = NUM_VALUES**NUM_PARAMETERS
VALUES = {
    f"section.parameter_{i}": list(range(NUM_VALUES)) for i in range(NUM_PARAMETERS)
}

Measured = dict[str, float | None]


def ours() -> ParameterGrid:
    """Return the grid of free parameters."""
    grid = ParameterGrid("free")
    for key, values in VALUES.items():
        grid.add_parameter(key, values)
    return grid


def ours_tied() -> ParameterGrid:
    """Return the grid with parameters that depend on each other."""
    grid = ParameterGrid("tied")
    *keys, last = VALUES
    for key in keys:
        grid.add_parameter(key, VALUES[key])
    grid.add_parameter(last, VALUES[last], only_when=f"{keys[0]} > 0")
    grid.where(f"{keys[1]} * {keys[4]} <= 60")
    return grid.exclude({keys[2]: 3, keys[5]: 3})


class Peer:
    """What a contender can do; None where it cannot."""

    def __init__(
        self,
        label: str,
        start: Callable[[int], Iterator[Any]],
        make: Callable[[], Any] | None,
        most: int = NUM_ALL,
    ) -> None:
        self.label = label
        self.start = start
        self.make = make
        self.most = most


def hydra_combinations(count: int) -> Iterator[Any]:
    """Let Hydra's sweeper list *count* combinations, the smallest power of ten above."""
    num = next(n for n in range(1, NUM_PARAMETERS + 1) if NUM_VALUES**n >= count)
    arguments = [
        f"{key}={','.join(map(str, values))}"
        for key, values in list(VALUES.items())[:num]
    ]
    overrides = OverridesParser.create().parse_overrides(arguments)
    (batch,) = BasicSweeper.split_arguments(overrides, None)
    return iter(batch)


PEERS = {
    "ours": Peer("mtf-gridsearch", lambda _: iter(ours()), ours),
    "sklearn": Peer(
        "scikit-learn ParameterGrid",
        lambda _: iter(TheirGrid(VALUES)),
        lambda: TheirGrid(VALUES),
    ),
    "hydra": Peer("Hydra basic sweeper", hydra_combinations, None, NUM_ALL // 10),
    "tied": Peer(
        "mtf-gridsearch, tied parameters", lambda _: iter(ours_tied()), ours_tied
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run every contender and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Formatter)
    parser.add_argument(
        "--count", type=int, default=1_000_000, help="combinations listed"
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each contender")
    parser.add_argument("--measure", metavar="NAME", help=SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        print(json.dumps(measure(PEERS[options.measure], options.count)))
        return
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(
        f"Python {platform.python_version()}, scikit-learn {version('scikit-learn')}, Hydra "
        f"{version('hydra-core')}, one core, {NUM_ALL:,} combinations of {NUM_PARAMETERS} "
        f"parameters, {options.count:,} listed, median of {options.rounds} rounds\n"
    )
    compare(options.count, options.rounds)


class _Formatter(
    argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter
):
    """Keep the text's lines, show the defaults."""


def measure(peer: Peer, count: int) -> Measured:
    """Return what *peer* takes, in seconds and bytes."""
    list(itertools.islice(peer.start(10), 10))  # warms up: imports, first calls
    start = time.perf_counter()
    next(peer.start(peer.most))
    first_s = time.perf_counter() - start

    count = min(count, peer.most)
    start = time.process_time()
    for _ in itertools.islice(peer.start(count), count):
        pass
    listing_s = (time.process_time() - start) / count

    tracemalloc.start()
    for _ in itertools.islice(peer.start(count // 10), count // 10):
        pass
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    reaching_s = None
    if peer.make is not None:
        grid = peer.make()
        indices = range(0, len(grid), len(grid) // 50_000)
        start = time.process_time()
        for index in indices:
            grid[index]
        reaching_s = (time.process_time() - start) / len(indices)
    return {"first": first_s, "list": listing_s, "reach": reaching_s, "peak": peak_bytes}


def compare(count: int, rounds: int) -> None:
    """Measure the contenders in turn; print what they do, and the ratios to ours."""
    found: dict[str, list[Measured]] = {name: [] for name in PEERS}
    for _ in range(rounds):
        for name, measured in found.items():
            done = subprocess.run(
                [sys.executable, __file__, "--measure", name, "--count", str(count)],
                check=True,
                stdout=subprocess.PIPE,
                encoding="utf-8",
            )
            measured.append(json.loads(done.stdout))
    print(
        f"{'':32}{'listed/s':>12}{'time / ours':>12}{'reached/s':>12}{'time / ours':>12}"
        f"{'first, ms':>11}{'peak, MB':>10}"
    )
    for name, peer in PEERS.items():
        cells = [f"{peer.label:32}"]
        for key in ("list", "reach"):
            seconds = _median(found[name], key)
            own = _median(found["ours"], key)
            if seconds is None or own is None:
                cells.append(f"{'-':>12}{'-':>12}")
            else:
                cells.append(f"{1 / seconds:12,.0f}{seconds / own:12.2f}")
        first_s, peak = _median(found[name], "first"), _median(found[name], "peak")
        cells.append(f"{(first_s or 0) * 1e3:11.2f}{(peak or 0) / 1e6:10.1f}")
        print("".join(cells))
    print(
        f"\nPeak is that of a tenth of the listed; the first of Hydra is that of "
        f"{PEERS['hydra'].most:,}, which it lists before."
    )


def _median(measured: Sequence[Measured], key: str) -> float | None:
    values = [each[key] for each in measured]
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


if __name__ == "__main__":
    main()
