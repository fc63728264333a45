"""What was submitted: commit, dirty files, command and whence, in the experiment.

``code.json`` is of the snapshot and the same for all experiments of a batch: it is written
once and linked. ``submission.json`` is of one experiment. Both are for people and for
whoever repeats the run. The command is there as it is given, and addresses of packages
without names, passwords and queries.

Of Python, packages and CUDA, ``code.json`` knows those of the process that submits, as
``submitted_from``. What a job runs on may be another (``python=``, a venv, conda, a container,
another node): the job writes it into ``<job id>.environment.json``, see
`mtf_slurm.git.environment`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mtf_slurm.errors import SnapshotError
from mtf_slurm.git.environment import link_whole, write_whole

__all__ = ["CODE_NAME", "SUBMISSION_NAME", "write"]

CODE_NAME = "code.json"
SUBMISSION_NAME = "submission.json"


def write(
    folders: Mapping[str, Path],
    code: Mapping[str, Any],
    *,
    branches: Mapping[str, str],
    commands: Mapping[str, Sequence[str]],
) -> None:
    """Write both files for each experiment; those of an earlier submission are replaced.

    Args:
        folders: Of the experiments, by name; made where they are missing.
        code: What ``code.json`` says.
        branches: By experiment.
        commands: By experiment; one that is missing has none.

    Raises:
        SnapshotError: If a file cannot be written.
    """
    text = json.dumps(code, indent=1) + "\n"
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    first = ""
    for name, folder in folders.items():
        about = {
            "experiment_name": name,
            "branch": branches.get(name),
            "command": list(commands.get(name, ())),
            "submitted_at": at,
        }
        path = f"{folder}/{CODE_NAME}"
        try:
            if not folder.is_dir():
                folder.mkdir(parents=True, exist_ok=True)
            write_whole(f"{folder}/{SUBMISSION_NAME}", json.dumps(about, indent=1) + "\n")
            if not first or not link_whole(first, path):
                write_whole(path, text, mode=0o444)  # one file with many names
                first = path
        except OSError as error:
            reason = (
                f"what is submitted cannot be recorded there: {error.strerror or error}; make room, "
                f"or see to its rights"
            )
            raise SnapshotError(folder, reason) from error
