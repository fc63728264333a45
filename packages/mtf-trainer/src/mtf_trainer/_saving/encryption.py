"""Encryption at rest: authenticated, in chunks, so that it streams.

A file is a header and chunks. The header holds a magic number, the size of a chunk, the
id of the key and 32 random bytes, from which and the key a key of the file's own is
derived (HKDF with SHA-256). Each chunk is encrypted with AES-256-GCM; its nonce is its
number and whether it is the last, and the header is authenticated with each. So a chunk
that was altered, moved, left out, added, or taken from another file is found. This is
the STREAM construction (Hoang, Reyhanitabar, Rogaway, Vizar, 2015).

Nothing of the plain bytes but their number shows. A key never appears in a message; its
id, a digest of it, does. The package ``cryptography`` is loaded when a key is first used.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
import stat
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self

from mtf_trainer.config import CheckpointSettings
from mtf_trainer.errors import EncryptionError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = ["DecryptingFile", "EncryptingFile", "Keyring", "generate_key", "key_id_of"]

_MAGIC = b"MTFENC\x00\x01"
_HEADER = struct.Struct("<8sI16s32s")
_TAG_BYTES = 16
_KEY_BYTES = 32
_CHUNK_BYTES = 2**20
_MOST_CHUNK_BYTES = 2**26


def generate_key() -> str:
    """Return a new key as a line for a file of keys: base64 of 32 random bytes.

    >>> len(generate_key())
    44
    """
    return base64.b64encode(os.urandom(_KEY_BYTES)).decode("ascii")


def key_id_of(path: Path) -> str | None:
    """Return the id of the key that encrypted *path*; None if nothing did.

    Raises:
        OSError: If it cannot be read.
    """
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
    if len(header) < _HEADER.size or not header.startswith(_MAGIC):
        return None
    return bytes(_HEADER.unpack(header)[2]).hex()


class Keyring:
    """Keys by their ids: the first encrypts, all decrypt.

    Args:
        keys: 32 bytes each, at least one.
        source: Where they are from, for messages.
    """

    def __init__(self, keys: list[bytes], source: str) -> None:
        self._keys = {_key_id(key): key for key in keys}
        self._first = keys[0]
        self.source = source

    @classmethod
    def from_settings(cls, settings: CheckpointSettings) -> Self | None:
        """Read the keys that *settings* name; None if they name none.

        Raises:
            EncryptionError: If they are missing, malformed, or in a file that others may
                read; if the package ``cryptography`` is not installed.
        """
        if settings.encryption_key_file is not None:
            source = f"key file {settings.encryption_key_file}"
            text = _read_key_file(settings.encryption_key_file)
        elif settings.encryption_key_env is not None:
            source = f"variable {settings.encryption_key_env}"
            text = os.environ.get(settings.encryption_key_env, "")
        else:
            return None
        _need_cryptography()
        return cls(_parse(text, source), source)

    def __repr__(self) -> str:
        return f"Keyring({len(self._keys)} keys from {self.source})"

    def current(self) -> tuple[bytes, bytes]:
        """Return id and bytes of the key that encrypts."""
        return _key_id(self._first), self._first

    def find(self, key_id: bytes) -> bytes:
        """Return the key with *key_id*.

        Raises:
            EncryptionError: If there is none.
        """
        if key_id not in self._keys:
            message = (
                f"it was encrypted with key {key_id.hex()}, which is none of the "
                f"{len(self._keys)} in {self.source}: add the one that was used then"
            )
            raise EncryptionError(message)
        return self._keys[key_id]


class EncryptingFile:
    """Encrypts what is written to it into *file*; `finish` writes the last chunk.

    Args:
        file: Anything with ``write``; not closed.
        keys: The first of them encrypts.
        chunk_bytes: Plain bytes in each chunk but the last.
    """

    def __init__(
        self, file: Any, keys: Keyring, *, chunk_bytes: int = _CHUNK_BYTES
    ) -> None:
        key_id, key = keys.current()
        salt = os.urandom(32)
        self._header = _HEADER.pack(_MAGIC, chunk_bytes, key_id, salt)
        self._cipher = _cipher(key, salt)
        self._file = file
        self._chunk_bytes = chunk_bytes
        self._buffer = bytearray()
        self._count = 0
        file.write(self._header)

    def write(self, data: bytes | memoryview) -> int:
        """Take *data*; whole chunks go on, what may be the last one waits."""
        view = memoryview(data).cast("B")
        at = 0
        while at < len(view):
            if len(self._buffer) == self._chunk_bytes:
                self._put(is_last=False)
            part = view[at : at + self._chunk_bytes - len(self._buffer)]
            self._buffer += part
            at += len(part)
        return len(view)

    def flush(self) -> None:
        """Do nothing: a chunk is written when it is full."""

    def finish(self) -> None:
        """Write the last chunk."""
        self._put(is_last=True)

    def _put(self, *, is_last: bool) -> None:
        nonce = _nonce(self._count, is_last=is_last)
        self._file.write(self._cipher.encrypt(nonce, bytes(self._buffer), self._header))
        self._buffer.clear()
        self._count += 1


class DecryptingFile(io.RawIOBase):
    """The plain bytes of an encrypted *file*, at any place; each chunk is authenticated.

    A chunk that is not what was written reads as the end of the file, and `problem` says
    so from then on: readers in C lose an exception. Look at it before using what was read.

    Args:
        file: An encrypted file, open at its beginning; not closed.
        keys: Those that may have encrypted it; None for none.

    Raises:
        EncryptionError: If none of them did.
    """

    def __init__(self, file: BinaryIO, keys: Keyring | None) -> None:
        super().__init__()
        self.problem: str | None = None
        self._file = file
        self._header = file.read(_HEADER.size)
        _, chunk_bytes, key_id, salt = _HEADER.unpack(self._header)
        if keys is None:
            message = (
                f"it is encrypted with key {key_id.hex()}, and no keys are given: "
                "name their encryption_key_file or encryption_key_env"
            )
            raise EncryptionError(message)
        self._cipher = _cipher(keys.find(key_id), salt)
        self._chunk_bytes = chunk_bytes
        self._at = 0
        self._held = (-1, b"")
        body = file.seek(0, os.SEEK_END) - _HEADER.size
        self._count, self._size = 0, 0
        if not 0 < chunk_bytes <= _MOST_CHUNK_BYTES:
            self.problem = "its header is damaged"
        else:
            self._count = max(1, -(-body // (chunk_bytes + _TAG_BYTES)))
            self._size = max(0, body - self._count * _TAG_BYTES)
            # That it ends where it should is known once the last chunk is proven.
            self._chunk(self._count - 1)

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

    def seekable(self) -> bool:
        """Tell that it can be read anywhere."""
        return True

    def tell(self) -> int:
        """Return the place in the plain bytes."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place in the plain bytes, and return it."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill *buffer* as far as the file goes, and return how far."""
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view) and self._at < self._size and self.problem is None:
            number, within = divmod(self._at, self._chunk_bytes)
            part = self._chunk(number)[within : within + len(view) - done]
            view[done : done + len(part)] = part
            done += len(part)
            self._at += len(part)
        return done if self.problem is None else 0

    def read(self, size: int | None = -1) -> bytes:
        """Return *size* bytes, fewer at the end; all that follow for -1 or None."""
        left = max(0, self._size - self._at)
        wanted = left if size is None or size < 0 else min(size, left)
        buffer = bytearray(wanted)
        return bytes(buffer[: self.readinto(buffer)])

    def prove(self) -> None:
        """Authenticate every chunk; `problem` tells of the first that is not right."""
        for number in range(self._count):
            if self.problem is not None:
                return
            self._chunk(number)

    def _chunk(self, number: int) -> bytes:
        if self._held[0] == number:
            return self._held[1]
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - an extra

        stride = self._chunk_bytes + _TAG_BYTES
        self._file.seek(_HEADER.size + number * stride)
        nonce = _nonce(number, is_last=number == self._count - 1)
        try:
            data = self._cipher.decrypt(nonce, self._file.read(stride), self._header)
        except InvalidTag:
            self.problem = f"chunk {number} of {self._count} is not what was encrypted"
            data = b""
        self._held = (number, data)
        return bytes(data)


def _read_key_file(path: Path) -> str:
    try:
        mode = path.stat().st_mode
        text = path.read_text("ascii")
    except OSError as error:
        message = f"key file {path} cannot be read: {error.strerror or error}"
        raise EncryptionError(message) from error
    except UnicodeDecodeError:
        message = f"key file {path} is not text: it must hold base64, one key a line"
        raise EncryptionError(message) from None
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        message = f"key file {path} is open to everyone: chmod 600 it"
        raise EncryptionError(message)
    return text


def _parse(text: str, source: str) -> list[bytes]:
    keys = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            key = base64.b64decode(line.strip(), validate=True)
        except (binascii.Error, ValueError):
            # The decoder's own error is left out: it would show the line in a traceback.
            key = b""
        if len(key) != _KEY_BYTES:
            message = f"{source}: line {number} is not base64 of {_KEY_BYTES} bytes"
            raise EncryptionError(message)
        keys.append(key)
    if not keys:
        message = f"{source} holds no key"
        raise EncryptionError(message)
    return keys


def _need_cryptography() -> None:
    try:
        import cryptography  # noqa: F401, PLC0415 - an extra
    except ModuleNotFoundError as error:
        message = (
            "encryption needs the package cryptography: "
            "pip install 'mtf-trainer[encryption]'"
        )
        raise EncryptionError(message) from error


def _cipher(key: bytes, salt: bytes) -> AESGCM:
    _need_cryptography()
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415 - an extra
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF  # noqa: PLC0415

    hkdf = HKDF(algorithm=hashes.SHA256(), length=_KEY_BYTES, salt=salt, info=_MAGIC)
    return AESGCM(hkdf.derive(key))


def _key_id(key: bytes) -> bytes:
    return hashlib.sha256(b"mtf-trainer key id\x00" + key).digest()[:16]


def _nonce(number: int, *, is_last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([is_last])
