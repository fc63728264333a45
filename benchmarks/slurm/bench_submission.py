"""Time submissions to a real Slurm, and count what following jobs asks of it.

A cluster is started in containers (see tests-integration/slurm) and taken down at the end;
its partition takes jobs and starts none, so that nothing runs beside what is timed. Every
contender submits the same number of jobs that would run a script with one argument; what it
does beyond that is said in its row. Turns alternate; the median is shown, on the clock, and
of the CPU time of the process and its children. Jobs are cancelled between turns.

    nox -s "bench(mtf-slurm)"
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import submitit
from submitit.slurm.slurm import SlurmExecutor

from mtf_slurm.command import Commands
from mtf_slurm.follow.monitor import JobMonitor
from mtf_slurm.launcher import SLURMLauncher

sys.path.insert(0, str(Path(__file__).parents[2] / "tests-integration"))
from slurm.cluster import Cluster, ClusterUnavailableError

NUM_FILES = 1000
HOUR_S = 3600.0
CLEAR_S = 300
TURN = itertools.count()


@dataclass(frozen=True)
class Plain:
    """An experiment."""

    experiment_name: str
    values: dict[str, Any] = field(default_factory=dict)

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """Return its values; JSON has them all."""
        del mode
        return self.values


def train(index: int) -> int:
    """Be what submitit's jobs would run."""
    return index


def main(arguments: Sequence[str] | None = None) -> None:
    """Start a cluster, time submissions, count questions; print a table for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--singles", type=int, default=1_000, help="one by one; 0: none")
    parser.add_argument("--follow", type=int, default=5_000, help="jobs; 0: none")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender")
    options = parser.parse_args(arguments)
    try:
        cluster = Cluster.up(f"bench-{os.getpid()}")
    except ClusterUnavailableError as error:
        sys.exit(f"no Slurm cluster on this machine: {error}")
    os.environ["SLURM_CONF"] = str(cluster.conf)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        version = cluster.run("sbatch", "--version").stdout.strip()
        print(
            f"Python {platform.python_version()}, {version} in {cluster.engine.name}, "
            f"submitit {submitit.__version__}, a project of {NUM_FILES:,} files, median of "
            f"{options.rounds} turns\n"
        )
        cluster.run("scontrol", "update", "PartitionName=low", "State=DOWN")
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make_project(folder)
            for size in options.sizes:
                submitting(cluster, folder, size, options.rounds, arrays(folder))
            if options.singles:
                submitting(cluster, folder, options.singles, 1, singles(cluster, folder))
            if options.follow:
                following(cluster, folder, options.follow)
    finally:
        cluster.down()


def make_project(folder: Path) -> None:
    """Make a repository of some size."""
    root = folder / "project"
    for index in range(NUM_FILES):
        path = root / f"package_{index // 100:02}" / f"module_{index:04}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"VALUE = {index}\n" * 40, encoding="utf-8")
    (root / "train.py").write_text("", encoding="utf-8")
    user = ("-c", "user.name=bench", "-c", "user.email=bench@localhost")
    for args in (("init", "-q"), ("add", "."), (*user, "commit", "-qm", "first")):
        subprocess.run(["git", *args], cwd=root, check=True)


Submit = Callable[[Path, int], Sequence[object]]


def launcher(folder: Path, experiments: Path, **more: Any) -> SLURMLauncher:
    """Return a launcher whose experiments lie in a folder of their own."""
    return SLURMLauncher(
        project_root=folder / "project",
        experiments_folder=experiments,
        entry_point="train.py",
        **more,
    )


def with_mtf(folder: Path, **more: Any) -> Submit:
    """Return what writes configs, freezes the code and submits."""

    def submit(place: Path, size: int) -> Sequence[object]:
        edited = folder / "project" / "package_00" / "module_0000.py"
        edited.write_text(f"VALUE = {next(TURN)}\n", encoding="utf-8")
        batch = [Plain(f"exp_{index:05}", {"lr": index}) for index in range(size)]
        result = launcher(folder, place, **more).submit_experiment_batch(batch)
        if result.failed:
            sys.exit(str(result.failed[0].error))
        return result.job_ids

    return submit


def executor(place: Path) -> SlurmExecutor:
    """Return submitit's way to Slurm."""
    made = SlurmExecutor(folder=place)
    made.update_parameters(time=60, ntasks_per_node=1, cpus_per_task=1)
    return made


def with_submitit_array(place: Path, size: int) -> Sequence[object]:
    """Submit one array of pickled calls."""
    return executor(place).map_array(train, range(size))


def with_submitit_singles(place: Path, size: int) -> Sequence[object]:
    """Submit pickled calls, a job each."""
    own = executor(place)
    return [own.submit(train, index) for index in range(size)]


def arrays(folder: Path) -> dict[str, Submit]:
    """Return who submits arrays."""
    return {
        "mtf-slurm (configs, frozen code, an array)": with_mtf(folder),
        "mtf-slurm, freeze_code=False": with_mtf(folder, freeze_code=False),
        "submitit map_array (pickles, an array)": with_submitit_array,
    }


def singles(cluster: Cluster, folder: Path) -> dict[str, Submit]:
    """Return who submits a job for each experiment; the first is ours, in an array."""

    def with_sbatch(place: Path, size: int) -> Sequence[object]:
        script = place / "job.sh"
        script.write_text("#!/bin/bash\ntrue\n", encoding="utf-8")
        argv = ("sbatch", "--parsable", "--output=/dev/null", str(script))
        return [cluster.run(*argv, str(index)).stdout for index in range(size)]

    return {
        "mtf-slurm (configs, frozen code, an array)": with_mtf(folder),
        "mtf-slurm, max_array_size=1: a job each": with_mtf(folder, max_array_size=1),
        "submitit submit, a job each": with_submitit_singles,
        "sbatch in a loop (nothing else)": with_sbatch,
    }


def submitting(
    cluster: Cluster, folder: Path, size: int, rounds: int, who: Mapping[str, Submit]
) -> None:
    """Time submissions of so many experiments."""
    seconds: dict[str, list[float]] = {title: [] for title in who}
    cpu_seconds: dict[str, list[float]] = {title: [] for title in who}
    for _ in range(rounds):
        for title, submit in who.items():
            place = folder / f"turn_{next(TURN)}"
            place.mkdir()
            start, start_cpu = time.perf_counter(), sum(os.times()[:4])
            jobs = submit(place, size)
            seconds[title].append(time.perf_counter() - start)
            cpu_seconds[title].append(sum(os.times()[:4]) - start_cpu)
            if len(jobs) != size:
                sys.exit(f"{title}: {len(jobs)} jobs of {size}")
            clear(cluster)
    ours = next(iter(seconds.values()))
    head = f"{'s':>8}{'worst':>8}{'time / ours':>13}{'CPU s':>8}"
    print(f"{f'{size:,} experiments':52}{head}")
    for title, measured in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(measured, ours, strict=True))
        median_s = statistics.median(measured)
        cpu_s = statistics.median(cpu_seconds[title])
        row = f"{median_s:8.2f}{max(measured):8.2f}{ratio:13.1f}{cpu_s:8.2f}"
        print(f"{title:52}{row}")
    print(flush=True)


def clear(cluster: Cluster) -> None:
    """Cancel all jobs, and wait until the controller has done so."""
    cluster.run("scancel", "--partition=low")
    cluster.wait_until(
        lambda: not cluster.run("squeue", "--noheader").stdout,
        what="cleared",
        deadline_s=CLEAR_S,
    )


@dataclass(frozen=True, kw_only=True)
class Counting(Commands):
    """Notes each command that is run."""

    ran: list[str] = field(default_factory=list)

    def once(
        self,
        argv: Sequence[str],
        *,
        cwd: str | None = None,
        extra: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> str:
        """Run a command."""
        self.ran.append(argv[0])
        return super().once(argv, cwd=cwd, extra=extra, pass_fds=pass_fds)


def following(cluster: Cluster, folder: Path, size: int) -> None:
    """Follow jobs for an hour of the monitor's clock, which waits for nothing."""
    print(f"{f'an hour of following {size:,} jobs':52}{'calls':>8}{'ms each':>9}")
    for title, has_news in (("nothing changes", False), ("a job ends each time", True)):
        place = folder / f"turn_{next(TURN)}"
        place.mkdir()
        job_ids = [str(job_id) for job_id in with_mtf(folder)(place, size)]
        now = [0.0]
        commands = Counting(num_attempts=1)
        monitor = JobMonitor(
            job_ids=job_ids, commands=commands, clock=partial(now.__getitem__, 0)
        )
        spent_s = 0.0
        left = iter(job_ids)
        while now[0] < HOUR_S:
            if has_news:
                cluster.run("scancel", next(left))
            start = time.perf_counter()
            monitor.poll()
            spent_s += time.perf_counter() - start
            now[0] += max(monitor.due_in_s, 0.001)
        count = len(commands.ran)
        print(f"{title:52}{count:8}{spent_s / count * 1e3:9.0f}")
        clear(cluster)
    print()


if __name__ == "__main__":
    main(sys.argv[1:])
