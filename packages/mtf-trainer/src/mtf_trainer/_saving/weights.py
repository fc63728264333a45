"""Taking only a model's weights from a checkpoint, to train on from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from mtf_trainer._saving.content import check_digest, load_content
from mtf_trainer._saving.encryption import Keyring
from mtf_trainer._saving.files import digest_path
from mtf_trainer.config import CheckpointSettings
from mtf_trainer.errors import CheckpointDamagedError, CheckpointMismatchError

__all__ = ["LoadReport", "load_weights"]

_MOST_NAMES = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadReport:
    """What `load_weights` left as it was.

    Args:
        missing: Entries of the model that the checkpoint has not.
        unexpected: Entries of the checkpoint that the model has not.
        mismatched: Entries of both whose shapes differ.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()


def load_weights(
    path: Path,
    model: nn.Module,
    *,
    strict: bool = True,
    prefix: str = "",
    use_ema: bool = False,
    settings: CheckpointSettings | None = None,
) -> LoadReport:
    """Put the weights that *path* holds into *model*, and nothing else of it.

    Nothing is changed unless all fits that must. Tensors go where the model's are, and
    take their type.

    Args:
        path: A checkpoint; its digest is checked if it lies beside it. That of a sharded
            model is put together in this process.
        model: Not wrapped by Fabric, or wrapped: names are those of its ``state_dict``.
        strict: Whether every entry must be in both, with one shape; otherwise what
            differs is left out, and reported.
        prefix: Take the entries whose names begin so, without it: ``"encoder."`` loads
            an encoder from a whole model. Other entries are not looked at.
        use_ema: Whether to take the moving average, where there is one of an entry.
        settings: Name the keys of an encrypted checkpoint.

    Returns:
        The names of what was not loaded; empty if *strict*.

    Raises:
        CheckpointDamagedError: If it is not what was written.
        CheckpointMismatchError: If it does not fit, or nothing of it does; if it holds
            no moving average and that is asked for.
        EncryptionError: If it is encrypted, and the key is not at hand.
        ValueError: If the model is sharded.
    """
    if any(isinstance(value, DTensor) for value in model.state_dict().values()):
        message = "the model is sharded already: load its weights before that"
        raise ValueError(message)
    keys = None if settings is None else Keyring.from_settings(settings)
    try:
        if digest_path(path).exists():
            check_digest(path)
    except OSError as error:
        problem = f"cannot be read: {error.strerror or error}"
        raise CheckpointDamagedError(path, problem) from error
    content = load_content(path, keys)
    saved = _weights_in(path, content, use_ema=use_ema)
    saved = {k.removeprefix(prefix): v for k, v in saved.items() if k.startswith(prefix)}
    own = model.state_dict()
    report = LoadReport(
        missing=tuple(name for name in own if name not in saved),
        unexpected=tuple(name for name in saved if name not in own),
        mismatched=tuple(
            name
            for name in own
            if name in saved and _shape(saved[name]) != _shape(own[name])
        ),
    )
    fitting = {
        name: value
        for name, value in saved.items()
        if name in own and name not in report.mismatched
    }
    problems = _problems(report, saved, own) if strict else []
    if not problems and not fitting and own:
        problems = [f"holds no entry that fits the model{_under(prefix)}"]
    if problems:
        raise CheckpointMismatchError(path, "model", "; ".join(problems))
    model.load_state_dict(fitting, strict=False)
    return report


def _weights_in(
    path: Path, content: Mapping[str, Any], *, use_ema: bool
) -> dict[str, Any]:
    weights = content.get("model")
    if not isinstance(weights, dict):
        problem = "is missing; it is no checkpoint of mtf-trainer"
        raise CheckpointMismatchError(path, "model", problem)
    if not use_ema:
        return weights
    averages = content.get("ema")
    if not isinstance(averages, dict):
        problem = "it holds no moving average: the run had no ema_decay"
        raise CheckpointMismatchError(path, "ema", problem)
    return {**weights, **averages}


def _problems(
    report: LoadReport, saved: Mapping[str, Any], own: Mapping[str, Any]
) -> list[str]:
    problems = []
    if report.missing:
        problems.append(f"the checkpoint lacks {_some(report.missing)}")
    if report.unexpected:
        problems.append(f"the model lacks {_some(report.unexpected)}")
    if report.mismatched:
        told = [
            f"{name} (has shape {_shape(saved[name])}, the model needs {_shape(own[name])})"
            for name in report.mismatched
        ]
        problems.append(f"shapes differ: {_some(told)}")
    return problems


def _some(names: Sequence[str]) -> str:
    rest = len(names) - _MOST_NAMES
    more = f" and {rest} more" if rest > 0 else ""
    return ", ".join(names[:_MOST_NAMES]) + more


def _under(prefix: str) -> str:
    return f" under {prefix!r}" if prefix else ""


def _shape(value: object) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None
