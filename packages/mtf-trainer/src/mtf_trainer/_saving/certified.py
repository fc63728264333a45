"""Whether a content that was read is the one its certificate, and its name, tell of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtf_trainer._saving.files import age, checkpoint_name, is_checkpoint_name
from mtf_trainer.certificate import Certificate, check
from mtf_trainer.errors import CheckpointDamagedError

__all__ = ["check_certificate"]


def check_certificate(path: Path, content: Mapping[str, Any]) -> None:
    """Accept *content*, read from *path*, if it is what certificate and name say.

    A good checkpoint under the name of a later one would be taken for the newest. Costs one SHA-256 over it. Of a sharded model, that has digests in place of tensors.

    Raises:
        CheckpointDamagedError: If it is not, or there is no such certificate.
    """
    _check_name(path, content.get("resume"))
    try:
        own = Certificate.from_plain(content.get("certificate"))
        differing = check(content, own)
    except (TypeError, ValueError) as error:
        raise CheckpointDamagedError(path, f"certificate: {error}") from error
    if differing:
        problem = f"certificate: is not of what is there: {', '.join(differing)}"
        raise CheckpointDamagedError(path, problem)


def _check_name(path: Path, resume: object) -> None:
    if not is_checkpoint_name(path.name) or not isinstance(resume, Mapping):
        return
    epoch, step = resume.get("epoch"), resume.get("global_step")
    if type(epoch) is type(step) is int and (epoch, step) != age(path):
        own = checkpoint_name(epoch, step)
        raise CheckpointDamagedError(path, f"holds the state of {own}: it was renamed")
