"""``python -m mtf_config``: check, show and compare configs, export the schema.

Exit codes: 0 all is well, 1 a config is wrong, 2 the command line is.
"""

# ruff: noqa: T201 - a command prints

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Sequence

from mtf_config.difference import diff
from mtf_config.errors import MtfConfigError
from mtf_config.json_schema import json_schema
from mtf_config.manager import ConfigurationManager, to_yaml

__all__ = ["main"]

_EXAMPLES = """\
examples:
  python -m mtf_config validate configs/*.yaml
  python -m mtf_config show configs/base.yaml optimizer.lr=3e-4 --origins
  python -m mtf_config diff configs/a.yaml configs/b.yaml
  python -m mtf_config schema > experiment.schema.json
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    options = _parse(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file's name need not be text, nor the terminal speak Unicode.
        sys.stdout.reconfigure(errors="backslashreplace")
    manager = ConfigurationManager()
    try:
        if options.command == "schema":
            print(json.dumps(json_schema(), indent=2))
            return 0
        if options.command == "validate":
            return _validate(manager, options.files)
        if options.command == "diff":
            left, right = (manager.load(path) for path in (options.left, options.right))
            for difference in diff(left, right):
                print(difference)
            return 0
        return _show(
            manager, options.file, options.overrides, with_origins=options.origins
        )
    except MtfConfigError as error:
        print(error, file=sys.stderr)
        return 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse takes no further KEY=VALUE once it has seen an option.
    if rest and (options.command != "show" or any(a.startswith("-") for a in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides += rest
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mtf_config",
        description="Check, show and compare experiment configs.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    validate = commands.add_parser("validate", help="report every problem of every file")
    validate.add_argument("files", nargs="+", metavar="FILE")
    show = commands.add_parser("show", help="print a config as it is composed")
    show.add_argument("file", metavar="FILE")
    show.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    show.add_argument(
        "--origins", action="store_true", help="say where each value came from"
    )
    difference = commands.add_parser(
        "diff", help="print the keys in which two configs differ"
    )
    difference.add_argument("left", metavar="FILE")
    difference.add_argument("right", metavar="FILE")
    commands.add_parser("schema", help="print the JSON Schema, for editors")
    return parser


def _validate(manager: ConfigurationManager, files: Sequence[str]) -> int:
    results = manager.load_batch(files)
    for path, result in zip(files, results, strict=True):
        print(f"{path}: {'valid' if result.is_valid else 'not valid'}")
        for problem in result.problems:
            print(f"  {problem}")
    return 0 if all(result.is_valid for result in results) else 1


def _show(
    manager: ConfigurationManager,
    file: str,
    overrides: Sequence[str],
    *,
    with_origins: bool,
) -> int:
    config = manager.load(file, overrides)
    if not with_origins:
        print(to_yaml(config), end="")
        return 0
    rows = [
        (f"{key} = {json.dumps(value)}", str(config.provenance(key)))
        for key, value in _leaves(config.model_dump(mode="json"), "")
    ]
    width = max(len(left) for left, _ in rows)
    print(*(f"{left:<{width}}  {right}" for left, right in rows), sep="\n")
    return 0


def _leaves(values: dict[str, object], at: str) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    for name, value in values.items():
        key = f"{at}.{name}" if at else name
        rows += (
            _leaves(value, key) if isinstance(value, dict) and value else [(key, value)]
        )
    return rows


if __name__ == "__main__":
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read, `head` for one, has read enough; keep Python from complaining.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)
