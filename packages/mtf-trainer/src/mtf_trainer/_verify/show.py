"""What one checkpoint holds, in words."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtf_trainer._saving.files import checkpoints_in, is_checkpoint_name
from mtf_trainer._saving.spread import Spread, as_spread
from mtf_trainer._verify.verify import load_checkpoint
from mtf_trainer.certificate import CONTENT_PARTS, PARTS, Certificate, certify, split
from mtf_trainer.config import CheckpointSettings
from mtf_trainer.errors import VerificationError

__all__ = ["describe", "find"]

_MOST_METRICS = 20
_WIDTH = 80
_MOST_KEYS = 34


def find(path: Path) -> Path:
    """Return the checkpoint at *path*, or the newest of the run there.

    Raises:
        VerificationError: If there is none.
    """
    if not path.is_dir() or is_checkpoint_name(path.resolve().name):
        return path.resolve()  # latest.ckpt is a link
    paths = checkpoints_in(path / "checkpoints") or checkpoints_in(path)
    if not paths:
        message = f"{path} holds no checkpoint"
        raise VerificationError(message)
    return paths[0]


def describe(path: Path, settings: CheckpointSettings, *, tensors: bool) -> Iterator[str]:
    """Give lines that say what the checkpoint *path* holds.

    Raises:
        VerificationError: If it cannot be loaded, or is no checkpoint.
        CheckpointDamagedError: If what stands for a spread tensor is malformed.
    """
    content = load_checkpoint(path, settings)
    try:
        found = certify(content, metrics_digest=None, parent=None)
    except (TypeError, ValueError) as error:
        message = f"{path.name} is no checkpoint: {error}"
        raise VerificationError(message) from error
    files = [path]
    if path.is_dir():
        content, files = as_spread(path, content), list(path.iterdir())
    yield f"{path.name}, {_size(sum(file.stat().st_size for file in files))}"
    yield from _state(content)
    yield from _certificate(content, found)
    yield ""
    yield from _sizes(content)
    if tensors:
        yield ""
        yield from (_line(place, tensor) for place, tensor in _tensors("", content))


def _state(content: Mapping[str, Any]) -> Iterator[str]:
    resume = _mapping(content.get("resume"))
    for title, value in (
        ("phase", resume.get("phase")),
        ("epochs finished", resume.get("epoch")),
        ("optimizer steps", resume.get("global_step")),
        ("batches of this epoch", _mapping(resume.get("train")).get("batch_idx")),
        ("batches of validation", _mapping(resume.get("val")).get("batch_idx")),
        ("saved at", resume.get("timestamp")),
        ("processes", len(_list(content.get("locals")))),
        ("metrics.jsonl", _size(content.get("metrics_bytes"))),
    ):
        yield _titled(title, value)
    metrics = _mapping(content.get("metrics"))
    for name in list(metrics)[:_MOST_METRICS]:
        yield _titled(f"last {name}", metrics[name])


def _certificate(content: Mapping[str, Any], found: Certificate) -> Iterator[str]:
    if "certificate" not in content:
        yield _titled("certificate", "none")
        return
    try:
        certificate = Certificate.from_plain(content["certificate"])
    except ValueError as error:
        yield from textwrap.wrap(f"certificate damaged: {error}", _WIDTH)
        return
    yield f"{'certificate':<12} {certificate.digest}"
    for part in PARTS:
        told = getattr(certificate, part) or "none"
        if part in CONTENT_PARTS and told != getattr(found, part):
            told = "DIFFERS"
        yield f"  {part:<10} {told}"
    if not certificate.is_consistent:
        yield "  its digest does not follow from its parts"


def _sizes(content: Mapping[str, Any]) -> Iterator[str]:
    for part, entries in split(content).items():
        tensors = [tensor for _, tensor in _tensors("", entries)]
        size = _size(sum(tensor.nbytes for tensor in tensors))
        line = f"{part:<10}{len(tensors):>6} tensors  {size:>10}  {_keys(entries)}"
        yield line.rstrip()


def _keys(entries: Mapping[str, Any]) -> str:
    text = ", ".join(str(key) for key in entries if key != "locals")
    return text if len(text) <= _MOST_KEYS else f"{text[:_MOST_KEYS]}..."


def _tensors(place: str, value: object) -> Iterator[tuple[str, Tensor]]:
    """Give the tensors in *value* and their places, in order."""
    if isinstance(value, Tensor):
        yield place, value
    elif isinstance(value, Spread):
        yield place, torch.empty(value.shape, dtype=value.dtype, device="meta")
    elif isinstance(value, Mapping | list | tuple):
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, each in pairs:
            under = f"{place}.{key}" if place else str(key)
            yield from _tensors(under, each)


def _line(place: str, tensor: Tensor) -> str:
    kind = str(tensor.dtype).removeprefix("torch.")
    return f"{place}  {kind} {list(tensor.shape)}  {_size(tensor.nbytes)}"


def _titled(title: str, value: object) -> str:
    text = "-" if value is None else str(value)
    return f"{title:<23} {text}"[:_WIDTH]


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _size(num_bytes: object) -> str:
    if not isinstance(num_bytes, int):
        return "-"
    for unit, width in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if num_bytes >= width:
            return f"{num_bytes / width:.1f} {unit}"
    return f"{num_bytes} B"
