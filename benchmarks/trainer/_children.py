"""What the benchmarks of the trainer share: contenders in processes of their own."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from typing import Any

import torch

__all__ = ["describe", "parser_for", "result_of"]


def parser_for(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """Return a parser of what all of them take: how much, and as what child."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    help_ = "of each contender: %(default)s"
    parser.add_argument("--rounds", type=int, default=rounds, help=help_)
    parser.add_argument("--quick", action="store_true", help="a short try: no result")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    return parser


def result_of(script: str, *arguments: object) -> Any:
    """Run ``script --child arguments``, and return the JSON of its last line.

    Exits, with what the process wrote to stderr, if it fails.
    """
    done = subprocess.run(
        [sys.executable, script, "--child", *map(str, arguments)],
        check=False,
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def describe() -> str:
    """Say what measures, and how busy it is besides."""
    load = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start"
    return f"Python {platform.python_version()}, torch {torch.__version__}, {load}"
