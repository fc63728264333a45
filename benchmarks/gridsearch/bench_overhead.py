"""Overhead of a trivial local experiment: mtf-gridsearch beside joblib, Optuna, Ray Tune.

An experiment is a Python script that does nothing, in a process of its own, two at a time.
What a contender does around it is its overhead: the time of the whole search, divided by
the number of experiments. It differs in what it gives for that:

* ours: a folder, a config and output files an experiment, a journal flushed to disk, limits,
  usage, and experiments that outlive whoever started them;
* joblib and Optuna: a call of ``subprocess.run`` in each task or trial, with the output kept
  in memory; Optuna's journal file holds its trials, and an experiment dies unnoticed;
* Ray Tune: trials of a function in worker processes of Ray's own, if it is installed.

"threads" is the floor: two threads that call ``subprocess.run``. Each round of each
contender is a fresh process which warms up first; rounds alternate between contenders, so
that a change of the machine's speed meets all of them. The median round is shown, and the
median of the ratios within rounds.

    nox -s "bench(mtf-gridsearch)"
"""

# Each process loads the one contender that it runs.
# ruff: noqa: PLC0415

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

PLACES = 2
NUM_WARM_UP = 4

Search = Callable[[int], None]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run every contender that is installed, and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--experiments", type=int, default=100, help="a round")
    parser.add_argument("--rounds", type=int, default=5, help="of each contender")
    parser.add_argument("--quick", action="store_true", help="a short try: no result")
    parser.add_argument("--time", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.quick:
        options.experiments, options.rounds = 10, 1
    if options.time:
        print(time_one(options.time, options.experiments))
        return
    load = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start"
    print(
        f"Python {platform.python_version()}, {load}, {options.experiments} experiments, "
        f"{PLACES} at a time, median of {options.rounds} rounds\n"
    )
    compare(options.experiments, options.rounds)
    compare_starts(options.rounds)


class Contenders:
    """Every way to run a script *count* times; made in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.script = folder / "train.py"
        self.script.write_text("", encoding="utf-8")
        self.turn = 0
        self.closing = ExitStack()

    def run_once(self, number: int) -> int:
        """Run the script as a task of joblib or Optuna does."""
        command = [sys.executable, str(self.script), str(number)]
        return subprocess.run(command, check=True, capture_output=True).returncode

    def threads(self) -> Search:
        """Two threads of this process."""

        def search(count: int) -> None:
            with ThreadPoolExecutor(PLACES) as pool:
                list(pool.map(self.run_once, range(count)))

        return search

    def ours(self) -> Search:
        """A whole search: from its base config and grid to its summary."""
        from mtf_gridsearch import GridSearchExecutor, LocalLauncher, ParameterGrid

        launcher = LocalLauncher(self.script, max_running=PLACES)

        def search(count: int) -> None:
            self.turn += 1
            base = {"experiment_name": f"bench_{self.turn}", "x": 0}
            grid = ParameterGrid("x").add_parameter("x", list(range(count)))
            executor = GridSearchExecutor(launcher, experiments_dir=self.folder / "e")
            result = executor.execute_grid_search(base, [grid])
            assert result.is_complete, result.counts  # noqa: S101

        return search

    def launcher(self) -> Search:
        """The local launcher alone: folders and configs, no journal."""
        from mtf_gridsearch import LocalLauncher
        from mtf_gridsearch.testing import write_experiment

        launcher = LocalLauncher(self.script, max_running=PLACES)

        def search(count: int) -> None:
            self.turn += 1
            folder = self.folder / f"search_{self.turn}"
            left, running = list(range(count)), set[str]()
            while left or running:
                words = launcher.states(ids := list(running))
                running -= {i for i, w in zip(ids, words, strict=True) if w.is_final}
                while left and len(running) < PLACES:
                    experiment = write_experiment(folder, f"e{left.pop()}")
                    [entry] = launcher.submit([experiment], folder=folder)
                    running.add(str(entry.job_id))
                time.sleep(launcher.poll_interval_s)

        return search

    def joblib(self) -> Search:
        """Joblib's loky, each task a subprocess."""
        from joblib import Parallel, delayed

        def search(count: int) -> None:
            tasks = (delayed(self.run_once)(number) for number in range(count))
            Parallel(n_jobs=PLACES, backend="loky")(tasks)

        return search

    def optuna_memory(self) -> Search:
        """Optuna's ``optimize(n_jobs=2)``, trials in memory."""
        return self._optuna(lambda: None)

    def optuna_journal(self) -> Search:
        """The same with Optuna's journal file."""
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        def storage() -> JournalStorage:
            self.turn += 1
            path = self.folder / f"journal_{self.turn}.log"
            return JournalStorage(JournalFileBackend(str(path)))

        return self._optuna(storage)

    def _optuna(self, storage: Callable[[], Any]) -> Search:
        import optuna

        optuna.logging.disable_default_handler()

        def objective(trial: optuna.Trial) -> float:
            x = trial.suggest_int("x", 0, 1 << 30)
            return float(self.run_once(x))

        def search(count: int) -> None:
            sampler = optuna.samplers.RandomSampler(seed=0)
            study = optuna.create_study(storage=storage(), sampler=sampler)
            study.optimize(objective, n_trials=count, n_jobs=PLACES)

        return search

    def ray(self) -> Search:
        """Ray Tune, each trial a subprocess, as with the others."""
        import ray  # type: ignore[import-untyped, unused-ignore]
        from ray import tune

        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        # Ray refuses a folder inside of the interpreter's, where nox has TMPDIR.
        kept = tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True)
        ray_folder = self.closing.enter_context(kept)
        ray.init(
            num_cpus=PLACES,
            include_dashboard=False,
            log_to_driver=False,
            _temp_dir=ray_folder,
        )
        self.closing.callback(ray.shutdown)
        config = tune.RunConfig(storage_path=str(self.folder), verbose=0)

        def search(count: int) -> None:
            space = {"x": tune.grid_search(list(range(count)))}
            tune.Tuner(
                lambda trial: self.run_once(trial["x"]),
                param_space=space,
                run_config=config,
            ).fit()

        return search


CONTENDERS: dict[str, tuple[str, str, Callable[[Contenders], Search]]] = {
    "ours": ("mtf-gridsearch, a whole search", "mtf_gridsearch", Contenders.ours),
    "launcher": ("mtf-gridsearch, launcher alone", "mtf_gridsearch", Contenders.launcher),
    "threads": ("threads and subprocess.run", "subprocess", Contenders.threads),
    "joblib": ("joblib (loky)", "joblib", Contenders.joblib),
    "memory": ("Optuna, in memory", "optuna", Contenders.optuna_memory),
    "journal": ("Optuna, journal file", "optuna", Contenders.optuna_journal),
    "ray": ("Ray Tune", "ray", Contenders.ray),
}


def time_one(name: str, count: int) -> float:
    """Return the seconds that the contender *name* takes for one experiment."""
    with tempfile.TemporaryDirectory() as folder:
        contenders = Contenders(Path(folder))
        with contenders.closing:
            search = CONTENDERS[name][2](contenders)
            search(NUM_WARM_UP)
            start = time.perf_counter()
            search(count)
            return (time.perf_counter() - start) / count


def compare(count: int, rounds: int) -> None:
    """Time the contenders in turn; print the time of one experiment, and ratios."""
    seconds: dict[str, list[float]] = {
        name: []
        for name, (_, module, _) in CONTENDERS.items()
        if importlib.util.find_spec(module)
    }
    for _ in range(rounds):
        for name, measured in seconds.items():
            command = [sys.executable, __file__, "--time", name]
            done = subprocess.run(
                [*command, "--experiments", str(count)],
                check=False,
                capture_output=True,
                encoding="utf-8",
            )
            if done.returncode:
                sys.exit(done.stderr)
            measured.append(float(done.stdout.splitlines()[-1]))
    print(f"{'':34}{'ms/experiment':>14}{'over threads, ms':>18}{'time / ours':>13}")
    ours, floor = seconds["ours"], statistics.median(seconds["threads"])
    for name, (label, _, _) in CONTENDERS.items():
        if name not in seconds:
            print(f"{label:34}{'not installed':>14}")
            continue
        each = statistics.median(seconds[name])
        pairs = zip(seconds[name], ours, strict=True)
        ratio = statistics.median(other / our for other, our in pairs)
        print(f"{label:34}{each * 1e3:14.1f}{(each - floor) * 1e3:18.1f}{ratio:13.2f}")


def compare_starts(rounds: int) -> None:
    """Time the start of a runner and of a bare interpreter, each a fresh process."""
    from mtf_gridsearch.local import launcher, runner

    light = runner.START.replace("main(sys.argv[3:])", "")
    folders = launcher._FOLDERS  # noqa: SLF001 - what is measured
    programs = {
        "interpreter": ["-c", ""],
        "interpreter, -I -S": ["-I", "-S", "-c", ""],
        "runner": ["-I", "-S", "-c", light, *folders],
        "import mtf_gridsearch": ["-c", "import mtf_gridsearch"],
        "import of report": ["-c", "from mtf_gridsearch.report import report"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(10 * rounds):
        for name, arguments in programs.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True)
            seconds[name].append(time.perf_counter() - start)
    print(f"\n{'start of a process':34}{'ms':>14}")
    for name, measured in seconds.items():
        print(f"{name:34}{statistics.median(measured) * 1e3:14.1f}")


if __name__ == "__main__":
    main()
