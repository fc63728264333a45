"""Checkpoints on disk: whole or absent, proven before an older one goes.

A checkpoint ``epoch_005_step_001234.ckpt`` is what ``torch.save`` writes, and loads with
plain ``torch.load(path, weights_only=True)`` unless it is encrypted. Beside it lies its
digest, in the form that ``sha256sum -c`` checks; ``chain.jsonl`` has the certificates of
all, and ``latest.ckpt`` is a relative link to the newest.

`CheckpointManager` is what a training holds. Asynchronously, the content is copied once
into shared memory, and a process of its own writes it from there, while training goes on.

This module knows nothing of models: content is a dictionary of plain data and tensors.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mtf_trainer._saving.background import Area, Background, StartWriter
from mtf_trainer._saving.backup import Backup
from mtf_trainer._saving.certified import check_certificate
from mtf_trainer._saving.commit import is_committed
from mtf_trainer._saving.content import check_digest, load_content
from mtf_trainer._saving.encryption import Keyring, generate_key, key_id_of
from mtf_trainer._saving.files import (
    LATEST,
    aside_of,
    checkpoint_name,
    checkpoints_in,
    put_in_order,
    sync_folder,
    writing,
)
from mtf_trainer._saving.ledger import Ledger
from mtf_trainer._saving.save_schedule import SaveSchedule
from mtf_trainer._saving.saver import Saved, Saver
from mtf_trainer._saving.weights import LoadReport, load_weights
from mtf_trainer.config import CheckpointSettings
from mtf_trainer.errors import (
    BackupError,
    CheckpointDamagedError,
    CheckpointMismatchError,
    CheckpointWarning,
    CheckpointWriteError,
    SnapshotError,
)

__all__ = [
    "LATEST",
    "CheckpointManager",
    "LoadReport",
    "SaveSchedule",
    "Saved",
    "Saver",
    "checkpoint_name",
    "generate_key",
    "load_weights",
]


class CheckpointManager:
    """The checkpoints of one run, for the one process of it that saves.

    Args:
        folder: Where they lie; made by `prepare`.
        settings: When to keep, how to write, what to do when that fails.
        area: Shared memory to copy into; by default one of its own, made when first
            needed and given back by `close`.
        start_writer: Makes the process that writes.
    """

    def __init__(
        self,
        folder: Path,
        settings: CheckpointSettings,
        *,
        area: Area | None = None,
        start_writer: StartWriter | None = None,
    ) -> None:
        self._folder = folder
        self._settings = settings
        self._background: Background | None = None
        if settings.asynchronous:
            self._background = Background(folder, settings, area, start_writer)
        self._parent: str | None = None
        self._saver: Saver | None = None
        self._finished: list[Saved] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def parent(self) -> str | None:
        """Digest of the certificate that the next checkpoint descends from.

        That of the last one saved or loaded.
        """
        return self._parent

    def prepare(self) -> None:
        """Make the folder, and delete what an interrupted write left in it.

        A process that still writes there, left by a training that was killed, finishes
        first.

        Raises:
            CheckpointWriteError: If the folder cannot be made or written to.
            EncryptionError: If there are to be keys, and they cannot be used.
            BackupError: If what the address of the back-up needs is not installed.
        """
        Keyring.from_settings(self._settings)
        self._backup()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with writing(self._folder):
                put_in_order(self._folder)
                probe = aside_of(self._folder / LATEST)
                probe.touch()
                probe.unlink()
                Ledger(self._folder).cut()
            sync_folder(self._folder.parent)
        except OSError as error:
            problem = f"checkpoints cannot be written here: {error.strerror or error}"
            raise CheckpointWriteError(self._folder, problem) from error
        if self._background is not None:
            self._background.prepare()

    def load(self, path: Path) -> dict[str, Any]:
        """Return the content of *path*, its tensors on the CPU. Runs no code from it.

        What is saved next descends from it. A write under way is waited for first.

        Raises:
            CheckpointDamagedError: If it is not what was written, or cannot be read.
            EncryptionError: If it is encrypted, and the key is not at hand.
            CheckpointWriteError: If the write under way failed, and that is to stop.
            BackupError: The same of its copy.
        """
        self._settle()
        content = self._load(path)
        self._descend_from(content)
        return content

    def load_newest(self) -> tuple[Path, dict[str, Any]] | None:
        """Return the newest whole checkpoint; None if there are none at all.

        Damaged ones are passed over, each with a `CheckpointWarning` that names it. If
        none in the folder is good, the newest good copy at the back-up address is
        brought back into it. What is saved next descends from what is returned.

        Raises:
            CheckpointDamagedError: If there are checkpoints, and all are damaged: to
                start anew then would waste what might be repaired.
            CheckpointMismatchError: If the newest good one is of a sharded model.
            EncryptionError: If the newest is encrypted, and the key is not at hand.
            CheckpointWriteError: If the write under way failed, and that is to stop; if
                a copy cannot be brought back.
            BackupError: If the copies cannot be listed; if the write under way was not
                copied, and that is to stop.
        """
        self._settle()
        paths = self.list()
        found = self._newest_here(paths) or self._newest_copy()
        if found is None and paths:
            problem = (
                f"none of its {len(paths)} checkpoints can be used; "
                "repair one, or move them away to start from the beginning"
            )
            raise CheckpointDamagedError(self._folder, problem)
        self._descend_from({} if found is None else found[1])
        return found

    def save(
        self,
        content: Mapping[str, Any],
        *,
        epoch: int,
        global_step: int,
        metrics: Mapping[str, float],
        wait: bool = False,
    ) -> None:
        """Write *content*; asynchronously, copy it and return.

        One write is under way at most: another is waited for first. `poll` and `wait`
        return what was saved.

        Args:
            content: Plain data and tensors, with string keys. It may be changed as soon
                as this returns.
            epoch: Epochs finished.
            global_step: Optimizer steps taken.
            metrics: The last ones.
            wait: Whether to return only once it is written and proven.

        Raises:
            CheckpointWriteError: If it, or the write that was under way, failed and that
                is to stop; the older checkpoints are there then.
            BackupError: If it could not be copied, and that is to stop; the checkpoint
                is there then.
        """
        self._settle()
        # A process that is still to be started would only keep a caller who waits.
        ready = self._background is not None and self._background.is_started
        if (ready or not wait) and self._submit(content, epoch, global_step, metrics):
            if wait:
                self._settle()
            return
        try:
            if self._saver is None or self._background is not None:
                self._saver = Saver(self._folder, self._settings, parent=self._parent)
            result: Saved | CheckpointWriteError = self._saver.save(
                content, epoch=epoch, global_step=global_step, metrics=metrics
            )
        except CheckpointWriteError as error:
            result = error
        self._take([result])

    def poll(self) -> list[Saved]:
        """Return what was saved since this, or `wait`, last told; waits for nothing.

        Raises:
            CheckpointWriteError: If a write failed, and that is to stop.
            BackupError: If a copy could not be made, and that is to stop.
        """
        self._settle(wait=False)
        saved, self._finished = self._finished, []
        return saved

    def wait(self) -> list[Saved]:
        """Wait until nothing is being written, and return what `poll` would.

        Raises:
            CheckpointWriteError: If a write failed, and that is to stop.
            BackupError: If a copy could not be made, and that is to stop.
        """
        self._settle()
        saved, self._finished = self._finished, []
        return saved

    def close(self) -> None:
        """Finish what is being written, and give back process and memory.

        Raises:
            CheckpointWriteError: If a write failed, and that is to stop.
            BackupError: If a copy could not be made, and that is to stop.
        """
        try:
            self._settle()
        finally:
            if self._background is not None:
                self._background.close()

    def _load(self, path: Path) -> dict[str, Any]:
        try:
            check_digest(path)
            is_plain = path.is_dir() or key_id_of(path) is None
        except OSError as error:
            problem = f"cannot be read: {error.strerror or error}"
            raise CheckpointDamagedError(path, problem) from error
        keys = Keyring.from_settings(self._settings)
        if is_plain and keys is not None:
            message = f"{path}: is not encrypted, though there are keys"
            warnings.warn(message, CheckpointWarning, stacklevel=4)
        content = load_content(path, keys)
        if not path.is_dir():  # a folder's is of its parts, which were put together here
            check_certificate(path, content)
        return content

    def _newest_here(self, paths: list[Path]) -> tuple[Path, dict[str, Any]] | None:
        for path in paths:
            if is_committed(path):
                problem = (
                    "is spread over processes: go on with Fabric's ModelParallelStrategy, "
                    "or take its weights with load_weights"
                )
                raise CheckpointMismatchError(path, "model", problem)
            try:
                return path, self._load(path)
            except CheckpointDamagedError as error:
                message = f"passed over a damaged checkpoint: {error}"
                warnings.warn(message, CheckpointWarning, stacklevel=3)
        return None

    def _newest_copy(self) -> tuple[Path, dict[str, Any]] | None:
        backup = self._backup()
        if backup is None:
            return None
        names = backup.names()
        for name in names:
            try:
                path = backup.fetch(name)
                content = self._load(path)
            except (BackupError, CheckpointDamagedError) as error:
                message = f"passed over a copy: {error}"
                warnings.warn(message, CheckpointWarning, stacklevel=3)
            else:
                message = f"{path} was brought back from the back-up"
                warnings.warn(message, CheckpointWarning, stacklevel=3)
                return path, content
        if names:
            message = f"none of the {len(names)} copies at the back-up can be used"
            raise BackupError(message)
        return None

    def _backup(self) -> Backup | None:
        url = self._settings.backup_url
        return None if url is None else Backup(url, self._folder)

    def _descend_from(self, content: Mapping[str, Any]) -> None:
        certificate = content.get("certificate")
        parent = certificate.get("digest") if isinstance(certificate, dict) else None
        self._parent = parent if isinstance(parent, str) else None
        self._saver = None
        if self._background is not None:
            self._background.end_writer()

    def _submit(
        self,
        content: Mapping[str, Any],
        epoch: int,
        global_step: int,
        metrics: Mapping[str, float],
    ) -> bool:
        """Begin to write; tell whether shared memory could be used."""
        if self._background is None:
            return False
        try:
            self._background.submit(
                content,
                epoch=epoch,
                global_step=global_step,
                metrics=metrics,
                parent=self._parent,
            )
        except SnapshotError as error:
            self._background.close()
            self._background = None
            message = f"training waits for checkpoints to be written from now on: {error}"
            warnings.warn(message, CheckpointWarning, stacklevel=3)
            return False
        except TypeError as error:
            path = self._folder / checkpoint_name(epoch, global_step)
            problem = f"cannot be written: {error}"
            self._take([CheckpointWriteError(path, problem)])
        return True

    def _settle(self, *, wait: bool = True) -> None:
        """Take what came of the write under way."""
        if self._background is not None:
            self._take(self._background.results(wait=wait))

    def _take(self, results: list[Saved | CheckpointWriteError]) -> None:
        """Take note of what was saved, and tell what was not, as the settings say."""
        problems: list[CheckpointWriteError | BackupError] = []
        for result in results:
            if isinstance(result, CheckpointWriteError):
                problems.append(result)
                continue
            self._finished.append(result)
            self._parent = result.digest
            if result.backup_problem is not None:
                problems.append(BackupError(result.backup_problem))
            for message in result.warnings:
                warnings.warn(message, CheckpointWarning, stacklevel=4)
        for problem in problems:
            if self._settings.on_write_error == "stop":
                raise problem
            warnings.warn(str(problem), CheckpointWarning, stacklevel=4)

    def list(self) -> list[Path]:
        """Return the checkpoints in the folder, whole or not, newest first."""
        return checkpoints_in(self._folder)
