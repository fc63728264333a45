"""What a checkpoint holds, in digests: one for each kind of state, chained to its parent.

A `Certificate` has a SHA-256 of each of five parts, of its parent's certificate, and of
all of these together. Every key of a checkpoint's content feeds exactly one part:

========= ==========================================================================
part      keys of the content
========= ==========================================================================
weights   ``model``, ``ema``, ``buffers`` (those not in the model's ``state_dict``);
          ``ddp`` (buffers) of each process
optimizer ``optimizers``, ``schedulers``, ``precision``; ``grads`` and ``comm`` of each
          process
rng       ``rng`` of each process
data      all others, known or not: ``resume`` without its ``timestamp``, cursors and
          means of each process, ``metrics``, ``layout``, ``callbacks``, and so on
metrics   none: the first ``metrics_bytes`` bytes of ``metrics.jsonl``
========= ==========================================================================

``certificate``, where the content keeps its own, and ``resume.timestamp`` feed none, so
that the same state has the same certificate whenever it is written.

What is digested is the canonical encoding (see `mtf_trainer._canonical`) of ``[version,
part, entries]``; for the whole, of a dictionary of the others and the version.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

from mtf_trainer._canonical import digest_of
from mtf_trainer.errors import MetricsFileError

__all__ = [
    "CERTIFICATE_VERSION",
    "CONTENT_PARTS",
    "PARTS",
    "Certificate",
    "MetricsDigest",
    "certify",
    "check",
]

CERTIFICATE_VERSION = 1

CONTENT_PARTS: Final = ("weights", "optimizer", "rng", "data")
PARTS: Final = (*CONTENT_PARTS, "metrics", "parent")

_HEX: Final = re.compile(r"[0-9a-f]{64}")
_PART_OF_KEY: Final = {
    "model": "weights",
    "ema": "weights",
    "buffers": "weights",
    "optimizers": "optimizer",
    "schedulers": "optimizer",
    "precision": "optimizer",
}
_PART_OF_LOCAL_KEY: Final = {
    "ddp": "weights",
    "grads": "optimizer",
    "comm": "optimizer",
    "rng": "rng",
}
_CHUNK_BYTES: Final = 1 << 24


@dataclass(frozen=True, kw_only=True, slots=True)
class Certificate:
    """Digests of a checkpoint, each 64 lower-case hexadecimal digits.

    Args:
        weights: See the table above, as for the next three.
        optimizer: See there.
        rng: See there.
        data: See there.
        metrics: Of the metrics written until then; None if there was no file.
        parent: The `digest` of the checkpoint this one was trained from; None if it was
            trained from the beginning.
        digest: Of all of the above and `version`.
        version: Of the encoding.
    """

    weights: str
    optimizer: str
    rng: str
    data: str
    metrics: str | None
    parent: str | None
    digest: str
    version: int = CERTIFICATE_VERSION

    @property
    def is_consistent(self) -> bool:
        """Whether `digest` follows from the rest."""
        return self.digest == _digest_of_parts(self.to_plain())

    def to_plain(self) -> dict[str, Any]:
        """Return plain data that `from_plain` reads."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: object) -> Self:
        """Rebuild what `to_plain` gave; other keys beside are passed over.

        Raises:
            ValueError: If *plain* is not of that form, or of another version.
        """
        if not isinstance(plain, Mapping):
            message = "not a certificate: no mapping"
            raise ValueError(message)  # noqa: TRY004 - what a file holds, not an argument
        version = plain.get("version")
        if type(version) is not int or version != CERTIFICATE_VERSION:
            message = (
                f"a certificate of version {ascii(version)[:40]}; this mtf-trainer reads "
                f"version {CERTIFICATE_VERSION}"
            )
            raise ValueError(message)
        digests: dict[str, Any] = {}
        for name in (*PARTS, "digest"):
            value = plain.get(name)
            may_be_none = name in ("metrics", "parent") and name in plain
            if not (isinstance(value, str) and _HEX.fullmatch(value)) and not (
                value is None and may_be_none
            ):
                message = f"not a certificate: {name} is no SHA-256 in hexadecimal"
                raise ValueError(message)
            digests[name] = value
        return cls(**digests)


def certify(
    content: Mapping[str, Any], *, metrics_digest: str | None, parent: str | None
) -> Certificate:
    """Return the certificate of a checkpoint's *content*.

    >>> import torch
    >>> content = {"model": {"w": torch.zeros(2)}, "resume": {"timestamp": "now"}}
    >>> one = certify(content, metrics_digest=None, parent=None)
    >>> one.is_consistent, check(content, one)
    (True, ())
    >>> content["model"]["w"][0] = -0.0
    >>> check(content, one)
    ('weights',)

    Tensors may be on any device, and are not copied where they are on the CPU and
    contiguous.

    Args:
        content: Dictionaries, lists, numbers, strings, bytes, None and dense tensors.
        metrics_digest: As `MetricsDigest.up_to` gives it.
        parent: `Certificate.digest` of the checkpoint it was trained from.

    Raises:
        TypeError: If *content* holds something else; it says where.
        ValueError: If *content* is nested too deep, or without end.
    """
    plain: dict[str, Any] = {
        name: digest_of(entries, (CERTIFICATE_VERSION, name))
        for name, entries in split(content).items()
    }
    plain |= {"metrics": metrics_digest, "parent": parent, "version": CERTIFICATE_VERSION}
    return Certificate(**plain, digest=_digest_of_parts(plain))


def check(content: Mapping[str, Any], certificate: Certificate) -> tuple[str, ...]:
    """Return the names of the parts of *content* that are not what *certificate* says.

    ``"digest"`` is among them if the certificate contradicts itself. Metrics and parent
    lie outside the content, and are not looked at.

    Raises:
        TypeError: As `certify`.
        ValueError: As `certify`.
    """
    found = certify(
        content, metrics_digest=certificate.metrics, parent=certificate.parent
    )
    differing = [
        name
        for name in CONTENT_PARTS
        if getattr(found, name) != getattr(certificate, name)
    ]
    if not certificate.is_consistent:
        differing.append("digest")
    return tuple(differing)


class MetricsDigest:
    """The digest of a growing file's beginning; reads each byte once.

    What was read is read again if the file is another one, shorter than before, or has
    other bytes just before the place where reading stopped.

    Args:
        path: The file of metrics; it need not exist yet.
    """

    _TAIL_BYTES: Final = 4096

    def __init__(self, path: Path) -> None:
        self._path = path
        self._forget()

    def _forget(self) -> None:
        self._sha256 = hashlib.sha256()
        self._num_read = 0
        self._tail = b""
        self._identity: tuple[int, int] | None = None

    def up_to(self, num_bytes: int) -> str | None:
        """Return the SHA-256 of the first *num_bytes* bytes.

        None if *num_bytes* is 0 and there is no file.

        Raises:
            MetricsFileError: If the file cannot be read, or is shorter.
        """
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError as error:
            if num_bytes == 0:
                return None
            raise MetricsFileError(self._path, "is missing") from error
        except OSError as error:
            raise self._failure(error) from error
        try:
            self._read(fd, num_bytes)
        except OSError as error:
            self._forget()
            raise self._failure(error) from error
        finally:
            os.close(fd)
        return self._sha256.hexdigest()

    def _read(self, fd: int, num_bytes: int) -> None:
        status = os.fstat(fd)
        identity = status.st_dev, status.st_ino
        before = self._num_read - len(self._tail)
        if (
            identity != self._identity
            or num_bytes < self._num_read
            or os.pread(fd, len(self._tail), before) != self._tail
        ):
            self._forget()
        self._identity = identity
        while self._num_read < num_bytes:
            wanted = min(_CHUNK_BYTES, num_bytes - self._num_read)
            chunk = os.pread(fd, wanted, self._num_read)
            if not chunk:
                has = self._num_read
                self._forget()
                problem = f"has {has} bytes, and should have at least {num_bytes}"
                raise MetricsFileError(self._path, problem)
            self._sha256.update(chunk)
            self._num_read += len(chunk)
            self._tail = (self._tail + chunk[-self._TAIL_BYTES :])[-self._TAIL_BYTES :]

    def _failure(self, error: OSError) -> MetricsFileError:
        return MetricsFileError(self._path, f"cannot be read: {error.strerror or error}")


def split(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the entries of each part."""
    parts: dict[str, dict[str, Any]] = {name: {} for name in CONTENT_PARTS}
    for key, value in content.items():
        if key == "certificate":
            continue
        if key == "locals" and _is_list_of_mappings(value):
            for name, part in parts.items():
                part[key] = [_of_part(name, local) for local in value]
        elif key == "resume" and isinstance(value, Mapping):
            resume = {name: each for name, each in value.items() if name != "timestamp"}
            parts["data"][key] = resume
        else:
            parts[_PART_OF_KEY.get(key, "data")][key] = value
    return parts


def _is_list_of_mappings(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(x, Mapping) for x in value)


def _of_part(name: str, local: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in local.items()
        if _PART_OF_LOCAL_KEY.get(key, "data") == name
    }


def _digest_of_parts(plain: Mapping[str, Any]) -> str:
    return digest_of({name: value for name, value in plain.items() if name != "digest"})
