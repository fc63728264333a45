"""Where two contents of checkpoints differ, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor

__all__ = ["differences"]

_CLIP = 30
_PASSED_OVER = {"certificate", "resume.timestamp"}


def differences(one: Any, other: Any, most: int = 5) -> list[str]:
    """Return the first *most* entries of *one* that differ from those of *other*.

    >>> differences({"a": 1, "w": torch.zeros(4)}, {"a": 2, "w": torch.ones(4)})
    ['a: 1 and 2', 'w: 4 of 4 numbers, by up to 1']

    Certificates and time stamps are passed over. Where there are more, the last item says
    so.
    """
    found = list(islice(_walk("", one, other), most + 1))
    return [*found[:most], "and more"] if len(found) > most else found


def _walk(place: str, one: Any, other: Any) -> Iterator[str]:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        yield from _of_tensors(place, one, other)
    elif isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in [*one, *(key for key in other if key not in one)]:
            under = f"{place}.{key}" if place else str(key)
            if under in _PASSED_OVER:
                continue
            if key not in one or key not in other:
                yield f"{under}: only in the {'first' if key in one else 'second'}"
            else:
                yield from _walk(under, one[key], other[key])
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple):
        if len(one) != len(other):
            yield f"{place}: {len(one)} items and {len(other)} items"
        for index, (a, b) in enumerate(zip(one, other, strict=False)):
            yield from _walk(f"{place}.{index}", a, b)
    elif type(one) is not type(other) or repr(one) != repr(other):
        yield f"{place}: {_told(one)} and {_told(other)}"


def _of_tensors(place: str, one: Tensor, other: Tensor) -> Iterator[str]:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        yield f"{place}: {_told(one)} and {_told(other)}"
        return
    bytes_NW, others_NW = (
        t.detach().reshape(-1).contiguous().view(torch.uint8).view(-1, t.element_size())
        for t in (one, other)
    )
    num_differing = int((bytes_NW != others_NW).any(1).sum())
    if num_differing:
        wide = torch.complex128 if one.is_complex() else torch.float64
        most = float((one.to(wide) - other.to(wide)).abs().max())
        yield f"{place}: {num_differing} of {one.numel()} numbers, by up to {most:.3g}"


def _told(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    text = ascii(value)
    return text if len(text) <= _CLIP else f"{text[:_CLIP]}..."
