"""Copies of checkpoints at another address, through fsspec.

A run's copies lie under ``<backup_url>/<name of its folder>/``, so that runs with one
address in common keep apart. A checkpoint is copied once it is proven, read back and
digested there, and its digest is written last: a copy without it, or with another, does
not count. The ledger goes along, and what retention would delete there is deleted.

Credentials and endpoints come from where the file system of the address looks for them
(``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID`` and so on for ``s3://``; fsspec's own config).
Of an address that holds credentials messages show neither them nor the text of another
library's error, which might. The package ``fsspec`` is loaded when first used.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from mtf_trainer._saving.files import (
    age,
    aside_of,
    create,
    digest_line,
    flush,
    is_checkpoint_name,
    put_digests,
    sync_folder,
    writing,
)
from mtf_trainer._saving.ledger import LEDGER, Ledger
from mtf_trainer.errors import BackupError

__all__ = ["Backup", "redact"]

_BLOCK_BYTES = 2**24
_BUCKETS = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oci", "oss"}


def redact(url: str) -> str:
    """Return *url* without credentials.

    >>> redact("sftp://ann:secret@host/runs?token=abc")
    'sftp://***@host/runs?***'
    >>> redact("s3://bucket/runs")
    's3://bucket/runs'
    """
    head, scheme, rest = url.rpartition("://")
    credentials, at, place = rest.rpartition("@")
    place, mark, _ = re.split(r"([?#]|$)", place, maxsplit=1)
    shown = redact(head) if "://" in head else head
    hidden = f"{mark}***" if mark else ""
    return f"{shown}{scheme}{'***@' if credentials else at}{place}{hidden}"


class Backup:
    """The copies of one run's checkpoints.

    Args:
        url: An address of fsspec's.
        folder: The run's checkpoints, in the run's own folder.

    Raises:
        BackupError: If fsspec, or what it needs for such an address, is not installed.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self._url = url
        self._folder = folder
        try:
            import fsspec  # type: ignore[import-untyped]  # noqa: PLC0415 - an extra
        except ModuleNotFoundError as error:
            message = (
                "a back-up needs the package fsspec: pip install 'mtf-trainer[backup]'"
            )
            raise BackupError(message) from error
        with self._told("cannot be used"):
            self._fs, root = fsspec.core.url_to_fs(url)
            name = folder.absolute().parent.name
            self._root = f"{root.rstrip('/')}/{name}"

    def copy(self, path: Path, digest: str) -> None:
        """Copy the checkpoint *path*, whose bytes have the sha256 *digest*, and prove it.

        Raises:
            BackupError: If that fails, or another run's checkpoints lie there.
        """
        with self._told(f"{path.name} could not be copied"):
            rows = self._ledger_to_copy()
            self._put(path, path.name)
            size, found = self._fs.info(self._at(path.name))["size"], None
            if size == path.stat().st_size:
                found = self._digest(path.name)
            if found != digest:
                message = f"the copy of {path.name} reads back other bytes than were sent"
                self._raise(message)
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            self._fs.pipe_file(self._at(LEDGER), lines.encode())
            line = digest_line(digest, path.name).encode()
            self._fs.pipe_file(self._at(f"{path.name}.sha256"), line)

    def names(self) -> list[str]:
        """Return the names of the copies that have a digest, newest first.

        Raises:
            BackupError: If the address cannot be read.
        """
        with self._told("cannot be listed"):
            self._fs.invalidate_cache()
            try:
                found = self._fs.ls(self._root, detail=False)
            except FileNotFoundError:
                return []
        there = {PurePosixPath(name).name for name in found}
        named = [n for n in there if is_checkpoint_name(n) and f"{n}.sha256" in there]
        return sorted(named, key=lambda name: age(Path(name)), reverse=True)

    def delete(self, names: list[str]) -> None:
        """Delete the copies of *names*.

        Raises:
            BackupError: If that fails.
        """
        for name in names:
            with self._told(f"{name} could not be deleted"):
                self._fs.rm_file(self._at(f"{name}.sha256"))
                self._fs.rm_file(self._at(name))

    def fetch(self, name: str) -> Path:
        """Copy *name* back into the run's folder, whole or not at all, and return it.

        Raises:
            BackupError: If it cannot be read or written, or is not what was copied.
        """
        path = self._folder / name
        with self._told(f"{name} could not be brought back"):
            line = self._fs.cat_file(self._at(f"{name}.sha256")).decode()
            rows = self._remote_rows()
            self._folder.mkdir(parents=True, exist_ok=True)
            with writing(self._folder):
                self._fetch_into(path, line)
                ledger = Ledger(self._folder)
                known = ledger.read()
                ledger.append(row for row in rows if row not in known)
        return path

    def _fetch_into(self, path: Path, line: str) -> None:
        aside = aside_of(path)
        try:
            aside.unlink(missing_ok=True)
            with create(aside) as file:
                digest = self._digest(path.name, file.write)
                flush(file)
            if line != digest_line(digest, path.name):
                self._raise(f"the copy of {path.name} is not what was copied")
            put_digests(path, [digest])
            aside.replace(path)
            sync_folder(self._folder)
        finally:
            aside.unlink(missing_ok=True)

    def _ledger_to_copy(self) -> list[dict[str, Any]]:
        """Return the lines of the ledger here, behind those that only the copy has."""
        rows, remote = Ledger(self._folder).read(), self._remote_rows()
        known = {row.get("digest") for row in remote}
        ours = {row.get(key) for row in rows for key in ("digest", "parent")}
        if remote and not known & ours - {None}:
            message = (
                "another run's checkpoints lie there: give this run an address, or a "
                "folder, of its own"
            )
            self._raise(message)
        return [*(row for row in remote if row not in rows), *rows]

    def _remote_rows(self) -> list[dict[str, Any]]:
        try:
            data = self._fs.cat_file(self._at(LEDGER))
        except FileNotFoundError:
            return []
        rows = [json.loads(line) for line in data.splitlines()]
        return [row for row in rows if isinstance(row, dict)]

    def _put(self, path: Path, name: str) -> None:
        try:
            self._fs.put_file(str(path), self._at(name))
        except FileNotFoundError:
            protocols = self._fs.protocol
            kinds = {protocols} if isinstance(protocols, str) else set(protocols)
            # Where names need no folder, what is missing is the bucket: not ours to make.
            if kinds & _BUCKETS or not path.is_file():
                raise
            self._fs.makedirs(self._root, exist_ok=True)
            self._fs.put_file(str(path), self._at(name))

    def _digest(self, name: str, sink: Callable[[bytes], object] | None = None) -> str:
        self._fs.invalidate_cache()
        sha256 = hashlib.sha256()
        with self._fs.open(self._at(name), "rb") as file:
            while block := file.read(_BLOCK_BYTES):
                sha256.update(block)
                if sink is not None:
                    sink(block)
        return sha256.hexdigest()

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Raise whatever goes wrong as a BackupError that names the address."""
        try:
            yield
        except BackupError:
            raise
        except Exception as error:  # noqa: BLE001 - each file system has its own errors
            told = f"{type(error).__name__}: {error}".partition("\n")[0]
            if redact(self._url) != self._url:
                told = f"{type(error).__name__} (its text might show the credentials)"
            problem = f"{what}: {told}"
        else:
            return
        # Outside of the handler: an error that is chained is shown with its text.
        self._raise(problem)

    def _raise(self, problem: str) -> NoReturn:
        message = f"back-up at {redact(self._url)}: {problem}"
        raise BackupError(message) from None
