"""The command line: ``python -m mtf_trainer verify | show | keygen``.

Exit codes: 0 if all is well; 1 if a run is not whole, a replay is not equal, or a
checkpoint cannot be loaded; 2 if the command was not given as it should be.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mtf_trainer.errors import MtfTrainerError

if TYPE_CHECKING:
    from mtf_trainer.config import CheckpointSettings

__all__ = ["main"]

_PROGRAM = "python -m mtf_trainer"
_EXIT_CODES = """\
exit code: 0 whole, and all replays equal; 1 not so; 2 mistake in the command
"""
_VERIFY = """\
Proves that the checkpoints in a run's folder are what was written, and that
each was trained from the one before. chain.jsonl has a line for every save: the
SHA-256 of weights, optimizer, random streams, data position and metrics, that
of the line it was trained from, and one of all of these. Each checkpoint that
is still on disk is loaded, without running any code in it, and compared with
its line; so are metrics.jsonl and the link latest.ckpt. Lines of checkpoints
that were deleted in the meantime stand.
"""
_VERIFY_EXAMPLES = f"""\
examples:
  {_PROGRAM} verify runs/a
  {_PROGRAM} verify runs/a --json > report.json
  {_PROGRAM} verify runs/a --key-file ~/keys.txt

  Train again, from each checkpoint to the one after it, and compare the bits.
  train.py has a function main(run_dir) that makes the trainer with this run_dir
  and calls fit; the run itself is not touched:
  {_PROGRAM} verify runs/a --replay train:main
  {_PROGRAM} verify runs/a --replay train:main \\
      --from epoch_003_step_000300.ckpt

{_EXIT_CODES}"""
_SHOW_EXAMPLES = f"""\
examples:
  {_PROGRAM} show runs/a
  {_PROGRAM} show runs/a/checkpoints/latest.ckpt --tensors

exit code: 0; 1 if it cannot be loaded; 2 mistake in the command
"""
_KEYGEN_EXAMPLES = f"""\
Prints a new key, for CheckpointSettings(encryption_key_file=...). To change
keys, put the new one on the first line and leave the old ones below it.

example:
  (umask 077; {_PROGRAM} keygen > keys.txt)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what *arguments*, by default the command line's, say; return the exit code."""
    options = _parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        return int(options.command(options))
    except MtfTrainerError as error:
        from mtf_trainer._verify.report import printable  # noqa: PLC0415 - loads torch

        sys.stderr.write(f"{_PROGRAM}: {printable(str(error))}\n")
        return int(options.exit_code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=_PROGRAM,
        description="Look at what mtf-trainer wrote.",
        epilog=f"{_PROGRAM} COMMAND --help tells more, with examples.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    layout = argparse.RawDescriptionHelpFormatter

    verify = commands.add_parser(
        "verify",
        help="prove that a run's checkpoints are whole",
        description=_VERIFY,
        epilog=_VERIFY_EXAMPLES,
        formatter_class=layout,
    )
    verify.add_argument("run_dir", metavar="RUN_DIR", type=Path)
    verify.add_argument("--json", action="store_true", help="print JSON")
    verify.add_argument(
        "--replay",
        metavar="MODULE:FUNCTION",
        help="train again with this function of yours, and compare",
    )
    verify.add_argument(
        "--from",
        dest="start",
        metavar="NAME",
        help="replay from this checkpoint alone, to the nearest ones after it",
    )
    verify.add_argument(
        "--replay-timeout",
        type=float,
        default=86400.0,
        metavar="SECONDS",
        help="end a replay that takes longer (default: a day)",
    )
    _add_keys(verify)
    verify.set_defaults(command=_verify, exit_code=2, parser=verify)

    show = commands.add_parser(
        "show",
        help="tell what a checkpoint holds",
        description="Tells what a checkpoint, or the newest one of a run, holds.",
        epilog=_SHOW_EXAMPLES,
        formatter_class=layout,
    )
    show.add_argument("path", metavar="CHECKPOINT|RUN_DIR", type=Path)
    show.add_argument("--tensors", action="store_true", help="list every tensor")
    _add_keys(show)
    show.set_defaults(command=_show, exit_code=1, parser=show)

    keygen = commands.add_parser(
        "keygen",
        help="print a new key for encryption",
        description=_KEYGEN_EXAMPLES,
        formatter_class=layout,
    )
    keygen.set_defaults(command=_keygen, exit_code=2)
    return parser


def _add_keys(parser: argparse.ArgumentParser) -> None:
    keys = parser.add_mutually_exclusive_group()
    keys.add_argument(
        "--key-file", type=Path, metavar="FILE", help="keys of encrypted checkpoints"
    )
    keys.add_argument(
        "--key-env", metavar="NAME", help="environment variable with these keys"
    )


def _settings(options: argparse.Namespace) -> CheckpointSettings:
    from mtf_trainer.config import CheckpointSettings  # noqa: PLC0415 - help needs none

    if options.key_env == "":
        options.parser.error("--key-env needs a name")
    return CheckpointSettings(
        encryption_key_file=options.key_file, encryption_key_env=options.key_env
    )


def _verify(options: argparse.Namespace) -> int:
    from mtf_trainer._saving.encryption import Keyring  # noqa: PLC0415
    from mtf_trainer._verify.report import as_json, as_text  # noqa: PLC0415 - loads torch
    from mtf_trainer._verify.rerun import (  # noqa: PLC0415
        NoFunctionError,
        is_function_name,
        pairs,
        replay,
    )
    from mtf_trainer._verify.verify import verify  # noqa: PLC0415

    function = options.replay
    if function is None and options.start is not None:
        options.parser.error("--from needs --replay")
    if function is not None and not is_function_name(function):
        options.parser.error(f"--replay needs MODULE:FUNCTION, not {function!r}")
    if options.replay_timeout <= 0:
        options.parser.error("--replay-timeout needs a number above 0")
    settings = _settings(options)
    Keyring.from_settings(settings)
    report = verify(options.run_dir, settings)
    replays = []
    for pair in [] if function is None else pairs(report, options.start):
        sys.stderr.write(f"replaying {pair[0].name} to {pair[1].name}\n")
        try:
            replays.append(
                replay(options.run_dir, pair, function, settings, options.replay_timeout)
            )
        except NoFunctionError:
            options.parser.error(f"--replay {function}: not found, see above")
    if function is not None and not replays:
        whose = options.start or "any checkpoint on disk"
        what = f"nothing to replay: no whole checkpoint on disk was trained from {whose}"
        report.add("--replay", what)
    if options.json:
        print(as_json(options.run_dir, report, replays))  # noqa: T201 - its purpose
    else:
        print(as_text(report, replays))  # noqa: T201 - its purpose
    return 0 if report.is_whole and all(each.is_equal for each in replays) else 1


def _show(options: argparse.Namespace) -> int:
    from mtf_trainer._verify.report import printable  # noqa: PLC0415 - loads torch
    from mtf_trainer._verify.show import describe, find  # noqa: PLC0415

    settings = _settings(options)
    for line in describe(find(options.path), settings, tensors=options.tensors):
        print(printable(" ".join(line.splitlines())))  # noqa: T201 - its purpose
    return 0


def _keygen(options: argparse.Namespace) -> int:
    from mtf_trainer._saving.encryption import generate_key  # noqa: PLC0415

    del options
    print(generate_key())  # noqa: T201 - its purpose
    return 0


if __name__ == "__main__":
    sys.exit(main())
