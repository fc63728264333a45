"""Whether a content that was read is the one its own certificate was made of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtf_trainer.certificate import Certificate, check
from mtf_trainer.errors import CheckpointDamagedError

__all__ = ["check_certificate"]


def check_certificate(path: Path, content: Mapping[str, Any]) -> None:
    """Accept *content*, read from *path*, if it is what its own certificate says.

    Costs one SHA-256 over it. Of a sharded model, that has digests in place of tensors.

    Raises:
        CheckpointDamagedError: If it is not, or there is no such certificate.
    """
    try:
        own = Certificate.from_plain(content.get("certificate"))
        differing = check(content, own)
    except (TypeError, ValueError) as error:
        raise CheckpointDamagedError(path, f"certificate: {error}") from error
    if differing:
        problem = f"certificate: is not of what is there: {', '.join(differing)}"
        raise CheckpointDamagedError(path, problem)
