from __future__ import annotations

import base64
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtf_trainer._saving import encryption
from mtf_trainer._saving.encryption import (
    DecryptingFile,
    EncryptingFile,
    Keyring,
    generate_key,
    key_id_of,
)
from mtf_trainer.config import CheckpointSettings
from mtf_trainer.errors import EncryptionError

KEYS = Keyring([bytes(range(32))], "a test")
OTHERS = Keyring([bytes(32), bytes(range(32))], "another test")
HEADER = 60


def encrypt(data: bytes, *, chunk_bytes: int = 16, keys: Keyring = KEYS) -> bytes:
    """Return what a file of *data* holds."""
    sink = io.BytesIO()
    file = EncryptingFile(sink, keys, chunk_bytes=chunk_bytes)
    file.write(data)
    file.flush()
    file.finish()
    return sink.getvalue()


def decrypt(data: bytes, keys: Keyring = KEYS) -> tuple[bytes, str | None]:
    """Return the plain bytes, and what is wrong with them."""
    reader = DecryptingFile(io.BytesIO(data), keys)
    return reader.read(), reader.problem


@given(pieces=st.lists(st.binary(max_size=70), max_size=6), chunk=st.integers(1, 40))
def test_round_trip(pieces: list[bytes], chunk: int) -> None:
    """However it is cut into writes and chunks, what comes back is what went in."""
    sink = io.BytesIO()
    file = EncryptingFile(sink, KEYS, chunk_bytes=chunk)
    assert [file.write(memoryview(piece)) for piece in pieces] == [len(p) for p in pieces]
    file.finish()

    assert decrypt(sink.getvalue()) == (b"".join(pieces), None)


@given(
    data=st.binary(max_size=100),
    moves=st.lists(
        st.tuples(st.integers(-20, 120), st.integers(0, 2), st.integers(0, 50))
    ),
)
def test_reads_like_a_file(data: bytes, moves: list[tuple[int, int, int]]) -> None:
    """Seeking and reading gives at every place what a file of the plain bytes gives."""
    reader, plain = DecryptingFile(io.BytesIO(encrypt(data)), KEYS), io.BytesIO(data)
    assert reader.readable()
    assert reader.seekable()
    for offset, whence, size in moves:
        at = max(0, offset + (0, plain.tell(), len(data))[whence])
        plain.seek(at)
        assert reader.seek(offset, whence) == reader.tell() == at
        assert reader.read(size) == plain.read(size)
    plain.seek(0)
    reader.seek(0)
    buffer, expected = bytearray(33), bytearray(33)
    assert reader.readinto(buffer) == plain.readinto(expected)
    assert buffer == expected


@given(
    data=st.binary(max_size=70),
    at=st.integers(min_value=0),
    flip=st.integers(1, 255),
)
def test_every_byte_is_authenticated(data: bytes, at: int, flip: int) -> None:
    """A change of any byte, header included, is found, whatever it would decrypt to."""
    stored = bytearray(encrypt(data))
    at %= len(stored)
    stored[at] ^= flip

    if at < 8:
        return  # the magic number: then it is no encrypted file
    if 12 <= at < 28:
        with pytest.raises(EncryptionError, match="which is none of the 1"):
            decrypt(bytes(stored))
        return
    found, problem = decrypt(bytes(stored))
    assert problem is not None
    assert found == b""


@given(data=st.binary(min_size=1, max_size=80), cut=st.integers(min_value=1))
def test_cut_short_is_found(data: bytes, cut: int) -> None:
    """A file that ends early, between two chunks as well, is found before any byte is read."""
    stored = encrypt(data)
    length = HEADER + cut % (len(stored) - HEADER)

    found, problem = decrypt(stored[:length])

    assert (found, problem is None) == (b"", False)


def test_moved_added_and_foreign_chunks_are_found() -> None:
    """Chunks in another order, twice, behind the end, or of another file are found."""
    stored = encrypt(b"a" * 16 + b"b" * 16 + b"c" * 16)
    other = encrypt(b"x" * 48)
    head, a, b, c = (
        stored[:HEADER],
        *(stored[HEADER + 32 * n : HEADER + 32 * (n + 1)] for n in range(3)),
    )

    assert decrypt(head + a + b + c) == (b"a" * 16 + b"b" * 16 + b"c" * 16, None)
    for wrong in (
        head + b + a + c,
        head + a + b + c + c,
        head + a + a + c,
        head + a + b,
        head + a + c,
        head + a + b + other[HEADER + 64 :],
        other[:HEADER] + a + b + c,
        head,
    ):
        reader = DecryptingFile(io.BytesIO(wrong), KEYS)
        reader.prove()
        assert reader.problem is not None
        assert reader.read() == b""


def test_hostile_header_costs_no_memory() -> None:
    """A chunk size beyond reason is refused, not allocated."""
    stored = bytearray(encrypt(b"abc"))
    for size in (0, 2**32 - 1):
        stored[8:12] = size.to_bytes(4, "little")

        assert decrypt(bytes(stored)) == (b"", "its header is damaged")


def test_nothing_plain_and_nothing_twice(tmp_path: Path) -> None:
    """The stored bytes hold no plain ones, and differ each time."""
    data = b"weights of a model " * 1000
    first, second = (encrypt(data, chunk_bytes=1000) for _ in range(2))

    assert b"weights" not in first
    assert first[HEADER : HEADER + 1000] != second[HEADER : HEADER + 1000]
    path = tmp_path / "file"
    path.write_bytes(first)
    assert key_id_of(path) is not None
    path.write_bytes(data)
    assert key_id_of(path) is None
    path.write_bytes(first[:20])
    assert key_id_of(path) is None


def test_rotation() -> None:
    """The first key encrypts, and all decrypt; without the right one it says which."""
    old = encrypt(b"old")

    assert decrypt(old, OTHERS) == (b"old", None)
    new = encrypt(b"new", keys=OTHERS)
    with pytest.raises(
        EncryptionError, match=r"encrypted with key [0-9a-f]{32}, .* 1 in a test"
    ):
        decrypt(new)
    with pytest.raises(EncryptionError, match="no keys are given"):
        DecryptingFile(io.BytesIO(new), None)


def key_file(path: Path, text: str, mode: int = 0o600) -> CheckpointSettings:
    """Write a file of keys, and return settings that name it."""
    path.write_text(text, "utf-8")
    path.chmod(mode)
    return CheckpointSettings(encryption_key_file=path)


def test_keys_from_a_file_and_a_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both hold the same lines; blank ones do not count; without a setting there is none."""
    lines = f"{generate_key()}\n\n{generate_key()}\n"
    monkeypatch.setenv("MTF_TEST_KEYS", lines)
    from_file = Keyring.from_settings(key_file(tmp_path / "keys", lines, 0o640))
    from_variable = Keyring.from_settings(
        CheckpointSettings(encryption_key_env="MTF_TEST_KEYS")
    )

    assert from_file is not None
    assert from_variable is not None
    assert from_file.current() == from_variable.current()
    first = base64.b64decode(lines.splitlines()[0])
    assert from_file.current()[1] == first
    assert repr(from_variable) == "Keyring(2 keys from variable MTF_TEST_KEYS)"
    assert Keyring.from_settings(CheckpointSettings()) is None


SHORT = "c2VjcmV0IHNlY3JldCBzZWNyZXQ="


@pytest.mark.parametrize(
    ("text", "mode", "problem"),
    [
        ("", 0o600, "holds no key"),
        (f"{SHORT}\n", 0o600, "line 1 is not base64 of 32 bytes"),
        (f"\n{SHORT[:-1]}!\n", 0o600, "line 2 is not base64 of 32 bytes"),
        ("schl\u00fcssel", 0o600, "is not text"),
        pytest.param(generate_key(), 0o604, "open to everyone: chmod 600", id="read"),
        pytest.param(generate_key(), 0o602, "open to everyone", id="write"),
    ],
)
def test_bad_key_file_is_a_clear_error(
    tmp_path: Path, text: str, mode: int, problem: str
) -> None:
    """The error names the file and line, and never shows what stands there."""
    settings = key_file(tmp_path / "keys", text, mode)

    with pytest.raises(EncryptionError, match=problem) as caught:
        Keyring.from_settings(settings)

    shown = "".join(
        str(e) for e in (caught.value, caught.value.__cause__, caught.value.__context__)
    )
    assert str(tmp_path / "keys") in shown
    assert not text.strip() or text.strip() not in shown


def test_missing_keys_are_a_clear_error(tmp_path: Path) -> None:
    """A file that is not there and a variable that is not set are named."""
    missing = CheckpointSettings(encryption_key_file=tmp_path / "none")
    with pytest.raises(EncryptionError, match="none cannot be read: No such file"):
        Keyring.from_settings(missing)
    with pytest.raises(EncryptionError, match="variable MTF_TEST_NONE holds no key"):
        Keyring.from_settings(CheckpointSettings(encryption_key_env="MTF_TEST_NONE"))


def test_without_cryptography_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the package is not installed, the error says what to install."""
    settings = key_file(tmp_path / "keys", generate_key())
    monkeypatch.setitem(sys.modules, "cryptography", None)

    with pytest.raises(EncryptionError, match=r"mtf-trainer\[encryption\]"):
        Keyring.from_settings(settings)


@pytest.mark.slow
def test_import_loads_no_cryptography() -> None:
    """What a run does not use is not loaded."""
    code = (
        "import sys, mtf_trainer._saving.encryption, mtf_trainer._saving.backup;"
        "print(any(m in sys.modules for m in ('cryptography', 'fsspec')))"
    )
    told = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )

    assert told.stdout.strip() == "False"


def test_key_ids_tell_keys_apart() -> None:
    """An id is no part of the key, and differs for each."""
    keys = [os.urandom(32) for _ in range(50)]
    ids = {encryption._key_id(key) for key in keys}

    assert len(ids) == 50
    assert not any(key_id in key for key_id in ids for key in keys)
