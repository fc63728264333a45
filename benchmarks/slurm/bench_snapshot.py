"""Time a code snapshot, and a job's checkout of it, beside git's own commands, in one run.

Each contender has its own copy of a repository of N small files in folders of 100. Before
each turn one file that git knows is changed and one that it does not know is added. What
each does beyond that differs and is said in its row. Turns alternate between contenders, so
that a change of the machine's speed meets all of them; the median turn is shown, on the
clock, processes of git included.

    nox -s "bench(mtf-slurm)"
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mtf_slurm.git import GitManager

ENVIRON = {
    **{name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
    "GIT_CONFIG_GLOBAL": os.devnull,
    **dict.fromkeys(("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"), "bench"),
    **dict.fromkeys(("GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"), "bench@localhost"),
}
TURN = itertools.count()


def main(arguments: Sequence[str] | None = None) -> None:
    """Time submitters, batches and jobs; print a table for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=10_000, help="in the repository")
    parser.add_argument("--experiments", type=int, default=10_000, help="of a batch")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each contender")
    options = parser.parse_args(arguments)
    version = git("version").decode("ascii").strip()
    print(
        f"Python {platform.python_version()}, {version}, {options.files:,} files, median of "
        f"{options.rounds} turns\n"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = make_repository(folder / "0", options.files)
        submitting(folder, first, options.rounds)
        batching(folder, first, options.experiments)
        running(folder, first, max(3, options.rounds // 3))


def git(*args: str, cwd: Path | None = None) -> bytes:
    """Run git and return its output."""
    return subprocess.check_output(["git", *args], cwd=cwd, env=ENVIRON)


def make_repository(folder: Path, count: int) -> Path:
    """Make a repository that was in use for a while."""
    for index in range(count):
        path = folder / f"package_{index // 100:03}" / f"module_{index:05}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"VALUE = {index}\n" * 40, encoding="utf-8")
    git("init", "--quiet", cwd=folder)
    git("config", "gc.auto", "0", cwd=folder)  # nothing runs behind what is timed
    git("add", "--all", cwd=folder)
    git("commit", "--quiet", "--message=first", cwd=folder)
    git("gc", "--quiet", cwd=folder)
    settle(folder)
    return folder


def settle(folder: Path) -> None:
    """Wait until no file is as young as the index: git reads such files again and again."""
    time.sleep(1.1)
    git("update-index", "--refresh", "-q", "--force-write-index", cwd=folder)


def copy(first: Path, folder: Path) -> Path:
    """Copy a repository, and let git know the copies."""
    shutil.copytree(first, folder, symlinks=True)
    git("update-index", "--refresh", "-q", cwd=folder)
    settle(folder)
    return folder


def edit(repository: Path) -> None:
    """Change one file and add one."""
    turn = next(TURN)
    changed = repository / "package_000" / "module_00000.py"
    changed.write_text(f"VALUE = {turn}\n", encoding="utf-8")
    (repository / f"added_{turn}.py").write_text(f"{turn}\n", encoding="utf-8")


def submitting(folder: Path, first: Path, rounds: int) -> None:
    """Time who freezes what is on disk."""
    places = {name: copy(first, folder / name) for name in ("ours", "stash", "commit")}
    manager = GitManager(places["ours"])

    def commit() -> None:
        git("add", "--all", cwd=places["commit"])
        git("commit", "--quiet", "--message=snapshot", cwd=places["commit"])

    contenders: dict[str, tuple[str, Path, Callable[[], object]]] = {
        "ours": ("GitManager.snapshot", places["ours"], lambda: manager.snapshot("a")),
        "stash": (
            "git stash create (no untracked files, no branch)",
            places["stash"],
            lambda: git("stash", "create", cwd=places["stash"]),
        ),
        "commit": ("git add -A && git commit (moves HEAD)", places["commit"], commit),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, (_, repository, freeze) in contenders.items():
            edit(repository)
            time.sleep(0.05)  # nobody submits within a tick of saving
            seconds[name].append(timed(freeze))
    show("submitting", {name: c[0] for name, c in contenders.items()}, seconds)


def batching(folder: Path, first: Path, count: int) -> None:
    """Time one snapshot for many experiments, and their records."""
    repository = copy(first, folder / "batch")
    names = [f"experiment_{index:05}" for index in range(count)]
    folders = {name: folder / "experiments" / name for name in names}
    for path in folders.values():
        path.mkdir(parents=True)
    manager = GitManager(repository)
    edit(repository)
    one_s = timed(lambda: manager.snapshot(names, batch="search"))
    each_s = timed(lambda: manager.snapshot(names))
    snapshot = manager.snapshot(names, batch="search")
    record_s = timed(lambda: manager.record(snapshot, folders))
    print(f"{f'{count:,} experiments':52}{'s':>8}")
    print(f"{'one snapshot, one branch for the batch':52}{one_s:8.2f}")
    print(f"{'one snapshot, a branch each':52}{each_s:8.2f}")
    print(f"{'what runs, recorded in each folder':52}{record_s:8.2f}\n")


def running(folder: Path, first: Path, rounds: int) -> None:
    """Time a job's checkout."""
    repository = copy(first, folder / "job")
    edit(repository)
    manager = GitManager(repository)
    snapshot = manager.snapshot("a")
    target = folder / "checkout"

    def archive() -> None:
        target.mkdir()
        packed = git("archive", snapshot.commit, cwd=repository)
        subprocess.run(["tar", "-x"], input=packed, cwd=target, check=True)

    contenders: dict[str, tuple[str, Callable[[], object]]] = {
        "ours": ("checkout, and proof", lambda: manager.checkout(snapshot, target)),
        "proof": ("proof of what is there", lambda: manager.checkout(snapshot, target)),
        "worktree": (
            "git worktree add --detach (no proof)",
            lambda: git(
                *("worktree", "add", "--quiet", "--detach", str(target), snapshot.commit),
                cwd=repository,
            ),
        ),
        "archive": ("git archive | tar -x (no proof)", archive),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, (_, make) in contenders.items():
            seconds[name].append(timed(make))
            if name != "ours":  # whose folder is proven next
                shutil.rmtree(target)
                git("worktree", "prune", cwd=repository)
    show("a job's start", {name: c[0] for name, c in contenders.items()}, seconds)


def timed(action: Callable[[], object]) -> float:
    """Return how long it takes, in seconds."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def show(
    what: str, titles: Mapping[str, str], seconds: Mapping[str, list[float]]
) -> None:
    """Print the medians, and the median ratios to ours of the same round."""
    print(f"{what:52}{'ms':>8}{'worst':>8}{'time / ours':>13}")
    for name, measured in seconds.items():
        pairs = zip(measured, seconds["ours"], strict=True)
        ratio = statistics.median(a / b for a, b in pairs)
        median_ms = statistics.median(measured) * 1e3
        worst_ms = max(measured) * 1e3
        print(f"{titles[name]:52}{median_ms:8.0f}{worst_ms:8.0f}{ratio:13.2f}")
    print()


if __name__ == "__main__":
    main(sys.argv[1:])
