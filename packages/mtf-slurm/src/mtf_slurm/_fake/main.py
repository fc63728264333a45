"""Run one command of a fake Slurm: ``<state folder> <command> <arguments>``."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtf_slurm._fake.commands import sbatch, scancel, scontrol
from mtf_slurm._fake.options import Refusal
from mtf_slurm._fake.queries import sacct, squeue
from mtf_slurm._fake.running import run, srun
from mtf_slurm._fake.store import Store

__all__ = ["main"]


def main(argv: list[str]) -> int:
    """Run one command; return its exit status."""
    store, command, rest = Store(Path(argv[0])), argv[1], argv[2:]
    if command == "_run":
        run(store, rest[0])
        return 0
    with (store.folder / "calls").open("a", encoding="utf-8") as calls:
        calls.write(json.dumps([command, *rest]) + "\n")
    if command == "srun":
        return srun(store, rest)
    fault = _fault(store, command)
    if fault and not fault["is_after"]:
        return _fail(fault)
    try:
        commands = {
            "sbatch": sbatch,
            "squeue": squeue,
            "sacct": sacct,
            "scancel": scancel,
            "scontrol": scontrol,
        }
        reply = commands[command](store, rest)
    except Refusal as error:
        sys.stderr.write(f"{command}: error: {error}\n")
        return error.status
    if fault:
        return _fail(fault)
    sys.stdout.write(reply)
    return 0


def _fault(store: Store, command: str) -> dict[str, Any] | None:
    """Take the next fault of a command."""
    if not store.read()["faults"].get(command):
        return None
    with store.open() as state:
        faults = state["faults"].get(command)
        return faults.pop(0) if faults else None


def _fail(fault: Mapping[str, Any]) -> int:
    if fault["is_hanging"]:
        while True:
            signal.pause()
    sys.stdout.write(fault["stdout"])
    sys.stderr.write(fault["stderr"])
    return int(fault["status"])
