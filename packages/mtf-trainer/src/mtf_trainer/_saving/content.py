"""Reading a checkpoint: proven to be what was written, decrypted, loaded as plain data.

Loading runs no code.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any, cast

import torch

from mtf_trainer._saving.commit import check_files, is_committed, read_marker
from mtf_trainer._saving.encryption import DecryptingFile, Keyring, key_id_of
from mtf_trainer._saving.files import digest_path, first_line, recorded_digests, sha256
from mtf_trainer.errors import CheckpointDamagedError, EncryptionError

__all__ = ["check_digest", "load_content"]


def check_digest(path: Path) -> None:
    """Accept *path* if it is, byte for byte, what was written.

    Raises:
        CheckpointDamagedError: If it is not.
        OSError: If it cannot be read.
    """
    if is_committed(path):
        check_files(path, read_marker(path))
        return
    if not path.is_file():
        raise CheckpointDamagedError(path, "is not a file")
    if path.stat().st_size == 0:
        raise CheckpointDamagedError(path, "is empty")
    recorded = recorded_digests(path)
    found = sha256(path)
    if found not in recorded:
        problem = (
            f"its sha256 is {found}, and {digest_path(path).name} says "
            f"{' or '.join(recorded)}"
        )
        raise CheckpointDamagedError(path, problem)


def load_content(
    path: Path, keys: Keyring | None, *, device: str = "cpu"
) -> dict[str, Any]:
    """Return the content of *path*, decrypted if need be. Runs no code from it.

    Args:
        path: Its digest is not looked at; those of a folder are.
        keys: Those that may have encrypted it.
        device: Where its tensors go; on ``"meta"`` they have shapes and no values.

    Raises:
        CheckpointDamagedError: If it cannot be read, or is no dictionary of plain data.
        EncryptionError: If it is encrypted, and the key is not at hand.
    """
    if is_committed(path):
        from mtf_trainer._saving.sharded import load_whole  # noqa: PLC0415 - heavy

        return load_whole(path)
    problem = None
    try:
        if key_id_of(path) is None:
            content = torch.load(path, map_location=device, weights_only=True)
        else:
            content, problem = _load_encrypted(path, keys, device)
    except OSError as error:
        problem = f"cannot be read: {error.strerror or error}"
        raise CheckpointDamagedError(path, problem) from error
    except EncryptionError as error:
        message = f"{path}: {error}"
        raise EncryptionError(message) from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged file may make torch raise anything
        problem = f"cannot be loaded as plain data: {first_line(error)}"
        raise CheckpointDamagedError(path, problem) from error
    if problem is not None:
        raise CheckpointDamagedError(path, f"cannot be decrypted: {problem}")
    if not isinstance(content, dict):
        raise CheckpointDamagedError(path, "holds no dictionary")
    return content


def _load_encrypted(
    path: Path, keys: Keyring | None, device: str
) -> tuple[Any, str | None]:
    """Return content and None, or None and why it is not what was encrypted."""
    with path.open("rb") as file:
        reader = DecryptingFile(file, keys)
        if device == "meta":
            reader.prove()
        content = None
        if reader.problem is None:
            try:
                stream = cast("IO[bytes]", reader)
                content = torch.load(stream, map_location=device, weights_only=True)
            except Exception:
                if reader.problem is None:
                    raise
        return content, reader.problem
