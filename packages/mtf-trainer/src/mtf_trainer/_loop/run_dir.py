"""The folder of a run: made when missing, named by an id, used by one trainer at a time.

``run.json`` holds the id. With the folder's own identity in the file system it names the
run's snapshots in shared memory, so that neither another run that had the same path nor a
copy of the folder takes them for its own. ``.lock`` is locked while ``fit`` runs, against
other processes and other trainers of this one; the system lets go of it when the process
ends, however it ends.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

from mtf_trainer._saving.file_lock import FileLock, HeldHereError
from mtf_trainer.errors import CheckpointWriteError

__all__ = ["RunDir", "memory_id"]

_ID = re.compile(r"[0-9a-f]{32}")


class RunDir:
    """Holds the lock on *path* between ``with`` and its end.

    Raises:
        CheckpointWriteError: If the folder cannot be made, written or locked.
    """

    def __init__(self, path: Path) -> None:
        self.run_id = ""
        self._path = path / "run.json"
        self._lock_path = path / ".lock"
        self._lock = FileLock(self._lock_path)

    def __enter__(self) -> Self:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._acquire()
            self.run_id = self._read() or self._write()
        except OSError as error:
            self._lock.release()
            problem = f"cannot be used: {error.strerror or error}"
            raise CheckpointWriteError(self._path, problem) from error
        except CheckpointWriteError:
            self._lock.release()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.release()

    def check(self) -> None:
        """See that the folder is still there, and still this trainer's.

        Raises:
            CheckpointWriteError: If not: what is written would be lost, or be mixed with
                what another run writes.
        """
        try:
            if self._lock.is_in_place():
                return
            problem = (
                "was deleted or replaced during the training: this run no longer owns the "
                "folder; end what cleans it up, and run again"
            )
        except OSError as error:
            problem = f"cannot be found: {error.strerror or error}"
        raise CheckpointWriteError(self._lock_path, problem)

    def _acquire(self) -> None:
        try:
            self._lock.acquire()
        except BlockingIOError as error:
            here = isinstance(error, HeldHereError)
            who = "another trainer of this process" if here else "another process"
            problem = (
                f"{who} trains in this folder; wait for it, end it, or choose another "
                "run_dir"
            )
            raise CheckpointWriteError(self._path, problem) from error

    def _read(self) -> str | None:
        try:
            found = json.loads(self._path.read_bytes())["run_id"]
        except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return found if isinstance(found, str) and _ID.fullmatch(found) else None

    def _write(self) -> str:
        run_id = uuid.uuid4().hex
        aside = self._path.with_name(".run.json.tmp")
        with aside.open("w", encoding="utf-8") as file:
            file.write(json.dumps({"run_id": run_id}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        aside.replace(self._path)
        return run_id


def memory_id(folder: Path, run_id: str) -> str:
    """Return the name, 32 hexadecimal digits, of what *folder* has in shared memory."""
    found = folder.stat()
    text = f"{run_id} {found.st_dev} {found.st_ino}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]
