"""``python -m mtf_gridsearch``: run a search, see what it would do, look at its results.

Exit codes: 0 all experiments succeeded, or there was nothing to run; 1 some did not; 2 it
could not be done, and standard error says why; 130 it was stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtf_gridsearch.errors import GridSearchError, LauncherError

if TYPE_CHECKING:
    from mtf_gridsearch.executor import GridSearchResult
    from mtf_gridsearch.records import Status

__all__ = ["main"]

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what *arguments* say, by default those of the process; return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.do(options))
    except (GridSearchError, OSError, ValueError) as error:
        sys.stderr.write(f"mtf_gridsearch: {error}\n")
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m mtf_gridsearch")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, text, mode in (
        ("run", "run what is missing of a search, here", "local"),
        ("plan", "tell what `run` would do; touch nothing", "dry_run"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(do=_run, mode=mode)
        _add_search(command)
    command = commands.add_parser("results", help="show what came out of a search")
    command.set_defaults(do=_results)
    command.add_argument("folder", type=Path, help="of the search")
    _add_metric(command, required=False)
    command.add_argument("--csv", type=Path, help="write a table to this file")
    command.add_argument("--parquet", type=Path, help="the same, typed (extra `parquet`)")
    command = commands.add_parser("compare", help="compare two searches by a metric")
    command.set_defaults(do=_compare)
    command.add_argument("left", type=Path, help="folder of a search")
    command.add_argument("right", type=Path, help="folder of another")
    _add_metric(command, required=True)
    return parser


def _add_search(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("search", type=Path, help="a YAML file with name, grids and base")
    add("--base", type=Path, help="a YAML file with the base config, if not in the first")
    add(
        "--entry-point",
        help="a script, or package.module:function; by default the base's",
    )
    add(
        "--experiments",
        type=Path,
        default=Path("experiments"),
        help="where folders of searches lie; by default %(default)s",
    )
    add("--folder", type=Path, help="of the search, instead of one named by the time")
    add("--new", action="store_true", help="start anew, whatever there is of that name")
    add("--only", choices=["failed"], help="run again what failed or ran out of time")
    add("--max-running", type=int, help="how many at once; by default one a processor")
    add("--devices", help="give each experiment one of these, as in 0,1")
    add("--time-limit", type=float, metavar="SECONDS", help="of each experiment")
    add("--memory-limit", type=int, metavar="BYTES", help="of each experiment")


def _add_metric(command: argparse.ArgumentParser, *, required: bool) -> None:
    command.add_argument("--metric", required=required, help="ranks the experiments")
    command.add_argument(
        "--mode", choices=["min", "max"], default="min", help="is better"
    )
    command.add_argument("--rows", type=int, default=20, help="at most; %(default)s")


def _run(options: argparse.Namespace) -> int:
    from mtf_gridsearch import _yaml, search_file  # noqa: PLC0415 -- only where used
    from mtf_gridsearch._live import SilentView  # noqa: PLC0415
    from mtf_gridsearch._supply import GridSearch, Search  # noqa: PLC0415
    from mtf_gridsearch.executor import GridSearchExecutor  # noqa: PLC0415

    base = None if options.base is None else _yaml.load(options.base)
    definition = search_file.read(options.search)
    search: Search
    if definition.bayesian is not None:
        search = definition.bayesian_search(base, only=options.only)
    else:
        rule = definition.early_stopping
        search = GridSearch(definition.search(base), only=options.only, rule=rule)
    entry_point = (
        options.entry_point
        or definition.entry_point
        or search.to_plain()["base"].get("entry_point")
    )
    executor = GridSearchExecutor(
        _launcher(options, entry_point),
        experiments_dir=options.experiments,
        folder=options.folder,
        new=options.new,
        early_stopping=definition.early_stopping,
        view=SilentView() if options.mode == "dry_run" else None,
    )
    result = executor.execute(search, options.mode)
    if result.dry_run is not None:
        sys.stdout.write(f"{result.dry_run}\n")
        return 0
    _say(result)
    return 0 if result.is_complete else 1


def _launcher(options: argparse.Namespace, entry_point: Any) -> Any:
    """Return the launcher that the options describe; None if nothing says what to run.

    Raises:
        LauncherError: If nothing does, and there is something to run.
    """
    from mtf_gridsearch.local.launcher import LocalLauncher  # noqa: PLC0415

    if not isinstance(entry_point, str):
        if options.mode == "dry_run":
            return None
        message = (
            f"nothing says what to run: give --entry-point train.py (or package.module:"
            f"function), or write `entry_point: train.py` into {options.search}"
        )
        raise LauncherError(message)
    return LocalLauncher(
        entry_point,
        max_running=options.max_running,
        devices=options.devices.split(",") if options.devices else (),
        time_limit_s=options.time_limit,
        memory_limit_bytes=options.memory_limit,
    )


def _say(result: GridSearchResult) -> None:
    counts = _counted(result.counts)
    if result.dropped:
        counts += f"; no longer in the grid: {_counted(result.counts_dropped)}"
    if result.num_not_begun:
        counts = f"{counts}, {result.num_not_begun} not begun".removeprefix(", ")
    sys.stdout.write(f"{result.folder}: {counts}\n")


def _counted(counts: Mapping[Status, int]) -> str:
    return ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))


def _results(options: argparse.Namespace) -> int:
    from rich import print as show  # noqa: PLC0415 -- only where used

    from mtf_gridsearch.export import to_csv, to_parquet  # noqa: PLC0415
    from mtf_gridsearch.results import SearchResults  # noqa: PLC0415

    results = SearchResults.read(options.folder)
    if options.csv is not None:
        to_csv(results, options.csv)
    if options.parquet is not None:
        to_parquet(results, options.parquet)
    show(results.table(options.metric, options.mode, limit=options.rows))
    return 0


def _compare(options: argparse.Namespace) -> int:
    from rich import print as show  # noqa: PLC0415 -- only where used

    from mtf_gridsearch.compare import compare  # noqa: PLC0415
    from mtf_gridsearch.results import SearchResults  # noqa: PLC0415

    left, right = SearchResults.read(options.left), SearchResults.read(options.right)
    comparison = compare(left, right, options.metric, options.mode)
    show(comparison.table(limit=options.rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
