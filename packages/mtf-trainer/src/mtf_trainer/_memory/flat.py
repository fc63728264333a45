"""A nested content apart from its tensors, and together again.

What is left when the tensors are taken out, the skeleton, is JSON in which every object
has one member that names what it stands for. Reading it runs no code, and the same
content gives the same bytes. Dictionaries keep their order, integers their size, floats
their bits. Tensors that are the same view of the same memory are kept once, and are one
tensor again afterwards; other overlaps are not kept.

Knows nothing of files or shared memory.
"""

from __future__ import annotations

import base64
import json
import math
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["DTYPES", "TensorSpec", "flatten", "tensor_specs", "unflatten"]

_NAMES = (
    *(
        "float16",
        "bfloat16",
        "float32",
        "float64",
        "complex32",
        "complex64",
        "complex128",
    ),
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"),
    *("float8_e8m0fnu", "float4_e2m1fn_x2"),
)

DTYPES: dict[str, torch.dtype] = {
    n: getattr(torch, n) for n in _NAMES if hasattr(torch, n)
}
"""The types a tensor may have, by the name that is written."""

TensorSpec = tuple[torch.dtype, tuple[int, ...]]

_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MAX_DEPTH = 100
_MAX_DIMS = 64
_SMALL = 2**53
_BROKEN = (
    *(ValueError, TypeError, LookupError, AttributeError, RecursionError),
    struct.error,
)
_FLOAT = struct.Struct(">d")


def flatten(content: Any) -> tuple[bytes, list[Tensor]]:
    """Take *content* apart; nothing is copied.

    >>> skeleton, tensors = flatten({"a": [torch.zeros(2), 0.5]})
    >>> skeleton
    b'{"tensors":[["float32",[2]]],"tree":{"dict":[["a",[{"tensor":0},0.5]]]}}'

    Args:
        content: Dictionaries with keys that are strings or integers, lists, tuples,
            counters, integers, floats, strings, booleans, None, bytes and dense tensors
            on any device that has data. Ordered dictionaries become dictionaries,
            parameters become tensors.

    Raises:
        TypeError: If anything else is in it, or it is nested in itself; names where.
    """
    taken = _Taken()
    try:
        tree = _encode(content, taken, _MAX_DEPTH)
    except _Refused as refused:
        where = ".".join(map(str, refused.path[:10])) or "the content"
        message = (
            f"{where} {refused}; only plain data (dictionaries, lists, tuples, numbers, "
            "strings, booleans, bytes, None) and dense tensors can be saved"
        )
        raise TypeError(message) from None
    document = {"tensors": taken.specs, "tree": tree}
    text = json.dumps(document, allow_nan=False, separators=(",", ":"))
    return text.encode(), taken.tensors


def tensor_specs(skeleton: bytes) -> list[TensorSpec]:
    """Return type and shape of each tensor that *skeleton* needs, in order.

    Raises:
        ValueError: If it is no skeleton.
    """
    return _specs(_parse(skeleton))


def unflatten(skeleton: bytes, tensors: Sequence[Tensor]) -> Any:
    """Put *tensors* where `flatten` took them from.

    Raises:
        ValueError: If *skeleton* is no skeleton, or does not fit *tensors*.
    """
    document = _parse(skeleton)
    found = [(t.dtype, tuple(t.shape)) for t in tensors]
    if found != _specs(document):
        message = "the tensors are not those that the skeleton was made from"
        raise ValueError(message)
    try:
        return _decode(document["tree"], tensors)
    except _BROKEN as error:
        raise _no_skeleton(error) from error


class _Taken:
    """The tensors met so far, each once."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.specs: list[tuple[str, list[int]]] = []
        self._by_address: dict[int, list[int]] = {}

    def index(self, tensor: Tensor) -> int:
        name = _DTYPE_NAMES.get(tensor.dtype)
        if name is None:
            message = f"is a tensor of {tensor.dtype}"
            raise _Refused(message)
        if tensor.layout is not torch.strided or tensor.is_meta:
            kind = "meta" if tensor.is_meta else tensor.layout
            message = f"is a tensor without dense data ({kind})"
            raise _Refused(message)
        # Those without elements all lie nowhere.
        address = tensor.data_ptr() or id(tensor)
        known = self._by_address.get(address)
        if known is None:
            known = self._by_address[address] = []
        for index in known:
            if _view(tensor) == _view(self.tensors[index]):
                return index
        known.append(len(self.tensors))
        self.tensors.append(tensor.detach() if tensor.requires_grad else tensor)
        self.specs.append((name, list(tensor.shape)))
        return known[-1]


def _view(tensor: Tensor) -> tuple[object, ...]:
    signs = tensor.is_conj(), tensor.is_neg()
    return tensor.dtype, tensor.device, tensor.shape, tensor.stride(), *signs


class _Refused(Exception):  # noqa: N818 - becomes a TypeError that names the place
    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.path: list[str | int] = []


def _encode(value: Any, taken: _Taken, depth: int) -> Any:
    encode = _ENCODERS.get(type(value))
    if encode is None:
        message = f"is a {type(value).__module__}.{type(value).__qualname__}"
        raise _Refused(message)
    if depth == 0:
        message = f"is nested more than {_MAX_DEPTH} deep, or in itself"
        raise _Refused(message)
    return encode(value, taken, depth - 1)


def _encode_items(
    items: Iterable[tuple[Any, Any]], taken: _Taken, depth: int
) -> list[Any]:
    encoded = []
    for at, value in items:
        try:
            encoded.append(_encode(value, taken, depth))
        except _Refused as refused:
            refused.path.insert(0, at)
            raise
    return encoded


def _encode_pairs(pairs: dict[Any, Any], taken: _Taken, depth: int) -> list[Any]:
    values = _encode_items(pairs.items(), taken, depth)
    return [[_encode_key(k), value] for k, value in zip(pairs, values, strict=True)]


def _encode_key(key: object) -> Any:
    if type(key) is str:
        return key
    if type(key) is int:
        return {"int": hex(key)}
    message = f"has the key {key!r}, neither string nor integer"
    raise _Refused(message)


_Encode = Callable[[Any, _Taken, int], Any]
_AS_IT_IS: _Encode = lambda value, *_: value  # noqa: E731
_ENCODE_DICT: _Encode = lambda value, *rest: {"dict": _encode_pairs(value, *rest)}  # noqa: E731
_ENCODE_TENSOR: _Encode = lambda value, taken, _: {"tensor": taken.index(value)}  # noqa: E731

_ENCODERS: dict[type, _Encode] = {
    Tensor: _ENCODE_TENSOR,
    nn.Parameter: _ENCODE_TENSOR,
    str: _AS_IT_IS,
    bool: _AS_IT_IS,
    type(None): _AS_IT_IS,
    int: lambda v, *_: v if -_SMALL < v < _SMALL else {"int": hex(v)},
    float: lambda v, *_: v if math.isfinite(v) else {"float": _FLOAT.pack(v).hex()},
    bytes: lambda v, *_: {"bytes": base64.b64encode(v).decode()},
    list: lambda v, *rest: _encode_items(enumerate(v), *rest),
    tuple: lambda v, *rest: {"tuple": _encode_items(enumerate(v), *rest)},
    dict: _ENCODE_DICT,
    OrderedDict: _ENCODE_DICT,
    Counter: lambda v, *rest: {"counter": _encode_pairs(v, *rest)},
}


def _parse(skeleton: bytes) -> dict[str, Any]:
    try:
        document = json.loads(skeleton)
    except _BROKEN as error:
        raise _no_skeleton(error) from error
    if not isinstance(document, dict) or document.keys() != {"tensors", "tree"}:
        message = "it has other parts"
        raise _no_skeleton(message)
    return document


def _specs(document: dict[str, Any]) -> list[TensorSpec]:
    try:
        return [(DTYPES[name], _shape(sizes)) for name, sizes in document["tensors"]]
    except _BROKEN as error:
        raise _no_skeleton(error) from error


def _shape(sizes: Any) -> tuple[int, ...]:
    if len(sizes) > _MAX_DIMS or not all(
        type(size) is int and 0 <= size < 2**62 for size in sizes
    ):
        message = "impossible shape"
        raise ValueError(message)
    return tuple(sizes)


def _decode(node: Any, tensors: Sequence[Tensor]) -> Any:
    if isinstance(node, list):
        return [_decode(each, tensors) for each in node]
    if not isinstance(node, dict):
        return node
    ((tag, inner),) = node.items()
    if tag in ("dict", "counter"):
        pairs = {_key(key): _decode(value, tensors) for key, value in inner}
        return pairs if tag == "dict" else Counter(pairs)
    if tag == "tuple":
        return tuple(_decode(each, tensors) for each in inner)
    if tag == "tensor":
        return tensors[inner]
    return _SCALARS[tag](inner)


def _key(key: Any) -> str | int:
    if isinstance(key, str):
        return key
    ((_, digits),) = key.items()
    return int(digits, 16)


def _float(text: str) -> float:
    value: float = _FLOAT.unpack(bytes.fromhex(text))[0]
    return value


_SCALARS: dict[str, Callable[[str], Any]] = {
    "int": lambda text: int(text, 16),
    "float": _float,
    "bytes": lambda text: base64.b64decode(text, validate=True),
}


def _no_skeleton(why: object) -> ValueError:
    return ValueError(f"not a skeleton of a content: {why}")
