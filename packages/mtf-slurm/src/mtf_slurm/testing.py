"""A Slurm for tests: its commands on ``PATH``, jobs that really run, faults on demand.

    with FakeSlurm(tmp_path / "slurm") as slurm:
        monkeypatch.setenv("PATH", slurm.path)
        job_id = SLURMLauncher(...).submit_single_experiment(config)

There is no daemon and no network: ``sbatch``, ``squeue``, ``sacct``, ``scancel``, ``scontrol``
and ``srun`` share a folder, and jobs are processes of this machine. What is not a part of
Slurm that this package uses is refused. Nothing waits for a fixed time: faults and the ends
of jobs happen when they are asked for.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from mtf_slurm._fake.running import send
from mtf_slurm._fake.store import Store, argv_of

__all__ = ["NO_ANSWER", "FakeSlurm"]

NO_ANSWER = "Unable to contact slurm controller (connect failure)"
"""What Slurm's commands say while there is no controller."""

_COMMANDS = ("sacct", "sbatch", "scancel", "scontrol", "squeue", "srun")


class FakeSlurm:
    """A Slurm in a folder; a context manager, whose end ends all jobs.

    Args:
        folder: Where it lies; it is made.
        num_slots: Tasks that run at once.
        max_array_size: Indices of arrays lie below it.
        max_submit: Tasks that may wait or run; None for any number.
        partitions: Which there are; None for all.
        has_accounting: Whether ``sacct`` answers.
        accounting_lag_s: How late it shows jobs, in seconds.
        grace_s: Between the first signal of a preemption or a time limit and the next.
        kill_wait_s: Between SIGTERM and SIGKILL, in seconds.
        has_scontrol_on_nodes: Whether jobs find ``scontrol`` on their ``PATH``.
        scheduler_parameters: As ``scontrol show config`` has them.
        python_flags: Of the interpreter that runs the commands.
    """

    def __init__(  # noqa: PLR0913 -- each is set by name
        self,
        folder: Path,
        *,
        num_slots: int = 8,
        max_array_size: int = 1001,
        max_submit: int | None = None,
        partitions: Collection[str] | None = None,
        has_accounting: bool = True,
        accounting_lag_s: float = 0.0,
        grace_s: float = 5.0,
        kill_wait_s: float = 5.0,
        has_scontrol_on_nodes: bool = True,
        scheduler_parameters: str = "",
        python_flags: Sequence[str] = ("-I", "-S"),
    ) -> None:
        self.folder = folder.absolute()
        for part in ("bin", "node-bin", "asks"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        config = {
            "num_slots": num_slots,
            "max_array_size": max_array_size,
            "max_submit": max_submit,
            "partitions": None if partitions is None else sorted(partitions),
            "has_accounting": has_accounting,
            "accounting_lag_s": accounting_lag_s,
            "grace_s": grace_s,
            "kill_wait_s": kill_wait_s,
            "is_held": False,
            "down_nodes": [],
            "has_scontrol_on_nodes": has_scontrol_on_nodes,
            "scheduler_parameters": scheduler_parameters,
            "python_flags": list(python_flags),
        }
        state = {"next_id": 1, "tasks": {}, "faults": {}, "config": config}
        (self.folder / "state.json").write_text(json.dumps(state), encoding="utf-8")
        self._store = Store(self.folder)
        for command in _COMMANDS:
            path = self.folder / "bin" / command
            line = f'exec {shlex.join(argv_of(self.folder, python_flags, command))} "$@"'
            path.write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
            path.chmod(0o755)
            on_nodes = self.folder / "node-bin" / command
            if command == "scontrol":  # the machine's own is hidden
                line = f"echo {command}: command not found >&2; exit 127"
                on_nodes.write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
                on_nodes.chmod(0o755)
            else:
                on_nodes.symlink_to(path)

    @property
    def path(self) -> str:
        """What ``PATH`` has to be."""
        return f"{self.folder / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End all jobs at once, and wait until they are gone."""
        with self._store.open() as state:
            state["config"] |= {"is_held": True, "grace_s": 0.0, "kill_wait_s": 0.0}
        tasks = self._store.read()["tasks"].values()
        for task in tasks:
            if task["state"] == "RUNNING":
                self._store.ask(task["id"], "fail_node")
        deadline = time.monotonic() + 10
        for task in tasks:
            while (pid := task["supervisor"]) and _lives(pid):
                if time.monotonic() > deadline:  # pragma: no cover -- it did not end
                    os.kill(pid, signal.SIGKILL)
                    send(self._store, task["id"], signal.SIGKILL)
                    break
                time.sleep(0.01)

    # ------------------------------------------------------------ look

    def calls(self, command: str | None = None) -> list[list[str]]:
        """Return the commands that were run, with their arguments, in order."""
        path = self.folder / "calls"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        calls = [json.loads(line) for line in lines]
        return [call for call in calls if command in {None, call[0]}]

    def tasks(self) -> dict[str, dict[str, Any]]:
        """Return all tasks by id, with ``state``, ``restarts``, ``options`` and more."""
        return dict(self._store.read()["tasks"])

    # ------------------------------------------------------------ make things happen

    def configure(self, **config: Any) -> None:
        """Change what the constructor set.

        Besides, ``is_held`` keeps jobs from starting, and ``down_nodes`` are those that
        ``scontrol show node`` says do not respond.

        Raises:
            ValueError: If there is no such setting.
        """
        with self._store.open() as state:
            if unknown := config.keys() - state["config"].keys():
                msg = f"{sorted(unknown)}: there are {sorted(state['config'])}"
                raise ValueError(msg)
            state["config"] |= config

    def fail(  # noqa: PLR0913 -- each is set by name
        self,
        command: str,
        stderr: str = f"error: {NO_ANSWER}",
        *,
        times: int = 1,
        status: int = 1,
        stdout: str = "",
        is_after: bool = False,
        is_hanging: bool = False,
    ) -> None:
        """Let the next runs of a command fail.

        Args:
            command: Which, such as ``sbatch``.
            stderr: What it says.
            times: How many runs.
            status: Its exit status.
            stdout: What it writes.
            is_after: Whether it does what it should, and only its answer is lost.
            is_hanging: Whether it hangs until it is killed.
        """
        fault = {
            "stderr": f"{command}: {stderr}\n" if stderr else "",
            "status": status,
            "stdout": stdout,
            "is_after": is_after,
            "is_hanging": is_hanging,
        }
        with self._store.open() as state:
            state["faults"].setdefault(command, []).extend([fault] * times)

    def preempt(self, task_id: str) -> None:
        """Take a running task's place away; it is requeued unless it asked not to be."""
        self._ask(task_id, "preempt")

    def time_out(self, task_id: str) -> None:
        """Let a running task reach its time limit."""
        self._ask(task_id, "time_out")

    def fail_node(self, task_id: str) -> None:
        """Kill the node of a running task; it is requeued unless it asked not to be."""
        self._ask(task_id, "fail_node")

    def forget(self, *task_ids: str) -> None:
        """Let the controller forget tasks, as it does some minutes after their end."""
        with self._store.open() as state:
            for task_id in task_ids:
                state["tasks"][task_id]["is_forgotten"] = True

    def _ask(self, task_id: str, what: str) -> None:
        word = self.tasks()[task_id]["state"]
        if word != "RUNNING":
            msg = f"{task_id} is {word}, not RUNNING"
            raise ValueError(msg)
        self._store.ask(task_id, what)


def _lives(pid: int) -> bool:
    with suppress(ChildProcessError):
        if os.waitpid(pid, os.WNOHANG) == (pid, 0):
            return False
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] != "Z"
