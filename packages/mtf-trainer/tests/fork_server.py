"""Starts Python processes that have torch and Lightning already: forks of itself.

To import them takes seconds, and more than most processes of these tests do afterwards.
Each line that it is sent is an order: ``{"run": [PATH, ...] or ["-c", CODE, ...], "cwd":
..., "environ": {...}, "stdout": PATH, "stderr": PATH}`` is answered with the id of a new
process, ``{"wait": ID}`` with that one's exit code, when it has ended. Such a process is
as if ``python PATH ...`` had started it, in a session of its own; variables that torch
reads as it is imported are those of this one.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from typing import Any


def become(order: dict[str, Any]) -> None:
    """Run what is ordered, in the forked process."""
    os.setsid()
    os.environ.clear()
    os.environ.update(order["environ"])
    os.chdir(order["cwd"])
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    opened = [
        os.open(os.devnull, os.O_RDONLY),
        os.open(order["stdout"], flags),
        os.open(order["stderr"], flags),
    ]
    for number, descriptor in enumerate(opened):
        os.dup2(descriptor, number)
        os.close(descriptor)
    first, *arguments = order["run"]
    if first == "-c":
        sys.argv = ["-c", *arguments[1:]]
        sys.path[0] = ""
        names = {"__name__": "__main__", "__builtins__": __builtins__}
        exec(compile(arguments[0], "<string>", "exec"), names)  # noqa: S102 - the test's own
    else:
        sys.argv = order["run"]
        sys.path[0] = os.path.dirname(first)  # noqa: PTH120 - as Python does
        runpy.run_path(first, run_name="__main__")


def main() -> None:
    """Obey until there are no more orders; return in each forked process, too."""
    import torch.distributed.fsdp  # noqa: F401, PLC0415
    from lightning.fabric.strategies import model_parallel  # noqa: F401, PLC0415

    import mtf_trainer.testing  # noqa: F401, PLC0415

    while line := sys.stdin.readline():
        order = json.loads(line)
        if "wait" in order:
            _, status = os.waitpid(order["wait"], 0)
            answer = os.waitstatus_to_exitcode(status)
        elif (answer := os.fork()) == 0:
            become(order)
            return
        print(answer, flush=True)  # noqa: T201 - the answer


if __name__ == "__main__":
    main()
