"""One checkpoint, written so that a kill at any moment loses nothing.

The order is what makes it so. Content is written under another name, brought to the disk
and read back; its certificate goes into the ledger; the digest takes its place, beside
that of a checkpoint of the same name if there is one; only then the checkpoint takes its
name. Whatever moment the process ends at, each checkpoint in the folder is whole and its
digest beside it. ``latest.ckpt`` is a relative link to the newest.

Then it is backed up, and only then do older ones go. This module knows nothing of models,
and runs wherever it is called: in the training process or in one of its own.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import torch

from mtf_trainer._saving.backup import Backup
from mtf_trainer._saving.content import check_digest, load_content
from mtf_trainer._saving.encryption import EncryptingFile, Keyring
from mtf_trainer._saving.files import (
    LATEST,
    Fault,
    HashingFile,
    age,
    aside_of,
    checkpoint_name,
    checkpoints_in,
    create,
    delete,
    digest_path,
    first_line,
    flush,
    no_fault,
    put_digests,
    recorded_digests,
    sha256,
    sync_folder,
    writing,
)
from mtf_trainer._saving.ledger import Ledger, is_epoch_end, plain_values
from mtf_trainer._saving.retention import Entry, to_delete
from mtf_trainer.config import CheckpointSettings
from mtf_trainer.errors import (
    BackupError,
    CheckpointDamagedError,
    CheckpointError,
    CheckpointWriteError,
    MetricsFileError,
)

if TYPE_CHECKING:
    from mtf_trainer.certificate import Certificate, MetricsDigest

__all__ = ["Saved", "Saver"]

_CANNOT_SAVE = (
    OSError,
    RuntimeError,
    pickle.PicklingError,
    AttributeError,
    TypeError,
    ValueError,
    MetricsFileError,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """A checkpoint that was written and proven.

    Args:
        path: Where it lies.
        digest: That of its certificate: the parent of the next.
        seconds: What it took.
        backup_problem: Why there is no copy of it at the back-up address.
        warnings: What else did not go as it should, and harms nothing.
    """

    path: Path
    digest: str
    seconds: float
    backup_problem: str | None = None
    warnings: tuple[str, ...] = ()


class Saver:
    """Writes the checkpoints of one run, one at a time.

    Args:
        folder: Where they lie; made when missing. ``metrics.jsonl`` lies beside it.
        settings: Retention, encryption and back-up.
        parent: Digest of the certificate that the run began from; None for none.
        fault: Called with the name of each place between two steps.

    Raises:
        EncryptionError: If the keys cannot be used.
        BackupError: If what the address of the back-up needs is not installed.
    """

    def __init__(
        self,
        folder: Path,
        settings: CheckpointSettings,
        *,
        parent: str | None,
        fault: Fault = no_fault,
    ) -> None:
        self._folder = folder
        self._settings = settings
        self._parent = parent
        self._fault = fault
        self._keys = Keyring.from_settings(settings)
        url = settings.backup_url
        self._backup = None if url is None else Backup(url, folder)
        self._ledger = Ledger(folder)
        self._metrics: MetricsDigest | None = None
        self._good: dict[str, tuple[int, ...]] = {}

    def save(
        self,
        content: Mapping[str, Any],
        *,
        epoch: int,
        global_step: int,
        metrics: Mapping[str, float],
    ) -> Saved:
        """Write *content*, prove it, link it, copy it, and delete what is too old.

        Args:
            content: Plain data and tensors, with string keys.
            epoch: Epochs finished.
            global_step: Optimizer steps taken.
            metrics: The last ones; `CheckpointSettings.monitor` is looked up here.

        Raises:
            CheckpointWriteError: If it cannot be written; all that were written before
                are there, and whole.
        """
        start_s = time.monotonic()
        path = self._folder / checkpoint_name(epoch, global_step)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with writing(self._folder):
                certificate = self._certify(content)
                row = {
                    "name": path.name,
                    "epoch": epoch,
                    "global_step": global_step,
                    "is_epoch_end": is_epoch_end(content),
                    "values": plain_values(metrics),
                    **certificate.to_plain(),
                }
                self._write(path, content, row, certificate)
                self._link(path.name)
                warnings: list[str] = []
                problem = self._back_up(path)
                try:
                    self._retain(path, warnings)
                except OSError as error:
                    warnings.append(f"{path}: older ones stay: {error}")
        except CheckpointError:
            raise
        except _CANNOT_SAVE as error:
            raise CheckpointWriteError(path, _why_not_written(error)) from error
        return Saved(
            path=path,
            digest=certificate.digest,
            seconds=time.monotonic() - start_s,
            backup_problem=problem,
            warnings=tuple(warnings),
        )

    def _certify(self, content: Mapping[str, Any]) -> Certificate:
        from mtf_trainer.certificate import MetricsDigest, certify  # noqa: PLC0415 - late

        path = self._folder.parent / "metrics.jsonl"
        if self._metrics is None:
            self._metrics = MetricsDigest(path)
        num_bytes = content.get("metrics_bytes")
        digest = None
        # Without its metrics a state is still worth saving; `verify` tells what lacks.
        with contextlib.suppress(MetricsFileError, FileNotFoundError):
            digest = None if num_bytes is None else self._metrics.up_to(num_bytes)
            if num_bytes:
                # The training does not wait for this disk: lines become durable here.
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        return certify(content, metrics_digest=digest, parent=self._parent)

    def _write(
        self,
        path: Path,
        content: Mapping[str, Any],
        row: Mapping[str, Any],
        certificate: Certificate,
    ) -> None:
        aside = aside_of(path)
        self._fault("certified")
        try:
            aside.unlink(missing_ok=True)
            whole = {**content, "certificate": certificate.to_plain()}
            digest = self._write_aside(aside, whole)
            self._prove(aside, digest)
            self._fault("proven")
            self._ledger.append([row])
            self._fault("in the ledger")
            before = [known for known in _digests_of(path) if known != digest]
            put_digests(path, [digest, *before], self._fault)
            self._fault("digest in place")
            aside.replace(path)
            self._fault("renamed")
            sync_folder(self._folder)
            self._parent = certificate.digest
            self._trust(path)
            self._fault("in place")
            if before:
                put_digests(path, [digest], self._fault)
        except Exception:
            # The digest stays: a rename that was reported as failed may have been done.
            delete(aside)
            delete(aside_of(digest_path(path)))
            raise

    def _write_aside(self, aside: Path, content: dict[str, Any]) -> str:
        with create(aside) as file:
            self._fault("opened")
            hashing = HashingFile(file)
            if self._keys is None:
                torch.save(content, cast(BinaryIO, hashing))
            else:
                encrypting = EncryptingFile(hashing, self._keys)
                torch.save(content, cast(BinaryIO, encrypting))
                self._fault("last chunk")
                encrypting.finish()
            self._fault("written")
            flush(file)
        return hashing.hexdigest()

    def _prove(self, aside: Path, digest: str) -> None:
        """Read back what was written, as a later process will."""
        if sha256(aside) != digest:
            message = "reads back other bytes than were written"
            raise OSError(message)
        try:
            load_content(aside, self._keys, device="meta")
        except CheckpointDamagedError as error:
            message = f"could not be loaded again: it {error.problem}"
            raise TypeError(message) from error

    def _link(self, name: str) -> None:
        link = self._folder / LATEST
        aside = aside_of(link)
        try:
            aside.unlink(missing_ok=True)
            aside.symlink_to(name)
            self._fault("link made")
            aside.replace(link)
            sync_folder(self._folder)
        except OSError as error:
            delete(aside)
            problem = f"cannot be made a link to {name}: {error.strerror or error}"
            raise CheckpointWriteError(link, problem) from error
        self._fault("linked")

    def _back_up(self, path: Path) -> str | None:
        if self._backup is None:
            return None
        settings = self._settings
        try:
            self._backup.copy(path, recorded_digests(path)[0])
            self._fault("backed up")
            rows = self._rows()
            entries = [self._entry(name, rows) for name in self._backup.names()]
            self._backup.delete(_too_old(entries, self._entry(path.name, rows), settings))
        except BackupError as error:
            return str(error)
        return None

    def _retain(self, current: Path, warnings: list[str]) -> None:
        paths = checkpoints_in(self._folder)
        older = [path for path in paths if age(path) < age(current)]
        if len(older) < self._settings.keep_last_n:
            return
        rows = self._rows()
        entries = [
            self._entry(path.name, rows, is_good=self._is_good(path)) for path in older
        ]
        for name in _too_old(entries, self._entry(current.name, rows), self._settings):
            # The digest goes last: without its checkpoint it is a leftover, whereas
            # a checkpoint without its digest would look damaged.
            for victim in (self._folder / name, digest_path(self._folder / name)):
                if not self._delete(victim):
                    warnings.append(f"{victim}: could not be deleted")
                    break
                self._fault("deleted")

    def _delete(self, path: Path) -> bool:
        """Delete *path*, and tell whether it is gone."""
        return delete(path)

    def _rows(self) -> dict[str, dict[str, Any]]:
        return {str(row.get("name")): row for row in self._ledger.read()}

    def _entry(
        self, name: str, rows: Mapping[str, dict[str, Any]], *, is_good: bool = True
    ) -> Entry:
        row = rows.get(name, {})
        values = row.get("values")
        metric = values.get(self._settings.monitor) if isinstance(values, dict) else None
        epoch, global_step = age(Path(name))
        return Entry(
            name=name,
            epoch=epoch,
            global_step=global_step,
            metric=metric if isinstance(metric, int | float) else None,
            is_epoch_end=row.get("is_epoch_end") is True,
            is_good=is_good,
        )

    def _trust(self, path: Path) -> None:
        """Take *path* for what was written, for as long as nobody touches it."""
        self._good[path.name] = _signature(path)

    def _is_good(self, path: Path) -> bool:
        """Tell whether *path* is what was written; each is read once."""
        try:
            if self._good.get(path.name) != (signature := _signature(path)):
                check_digest(path)
                self._good[path.name] = signature
        except (OSError, CheckpointDamagedError):
            return False
        return True


def _too_old(
    entries: list[Entry], current: Entry, settings: CheckpointSettings
) -> list[str]:
    return to_delete(
        entries,
        current,
        keep_last_n=settings.keep_last_n,
        keep_every_n_epochs=settings.keep_every_n_epochs,
        keep_best_k=settings.keep_best_k,
        mode=settings.mode,
    )


def _digests_of(path: Path) -> list[str]:
    try:
        return recorded_digests(path) if path.exists() else []
    except CheckpointDamagedError:
        return []


def _signature(path: Path) -> tuple[int, ...]:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    stats = [file.stat() for file in files]
    return tuple(n for s in stats for n in (s.st_size, s.st_mtime_ns, s.st_ino))


def _why_not_written(error: BaseException) -> str:
    # torch's writer reports its own trouble in place of the file's: look behind it.
    cause = error.__cause__ or error.__context__
    if isinstance(error, RuntimeError) and isinstance(cause, OSError):
        error = cause
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be written: {error.strerror}"
    return f"cannot be written: {first_line(error)}"
