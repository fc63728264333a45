from __future__ import annotations

import math
import struct
import sys
from collections import OrderedDict
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtf_trainer import _canonical
from mtf_trainer._canonical import digest_of

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
)
PLAIN = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=4)
    ),
    max_leaves=20,
)


def encoded(value: object) -> bytes:
    """Return the bytes that are digested."""
    pieces: list[bytes] = []
    _canonical._Encoder(lambda piece: pieces.append(bytes(piece))).feed(value)
    return b"".join(pieces)


class Decoder:
    """Reads the encoding back, from its description alone."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def take(self, size: int) -> bytes:
        taken, self.data = self.data[:size], self.data[size:]
        assert len(taken) == size
        return taken

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def value(self) -> Any:  # noqa: C901, PLR0911 - one case a kind
        match self.take(1):
            case b"N":
                return None
            case b"T":
                return True
            case b"F":
                return False
            case b"I":
                return int.from_bytes(self.take(self.u64()), "little", signed=True)
            case b"D":
                return struct.unpack("<d", self.take(8))[0]
            case b"S":
                return self.take(self.u64()).decode("utf-8", "surrogatepass")
            case b"B":
                return self.take(self.u64())
            case b"L":
                return [self.value() for _ in range(self.u64())]
            case b"M":
                return {self.value(): self.value() for _ in range(self.u64())}
            case b"X":
                name = self.value()
                shape = [self.u64() for _ in range(self.u64())]
                width = getattr(torch, name).itemsize
                return name, shape, self.take(math.prod(shape) * width)
        message = "no such tag"
        raise AssertionError(message)


@given(PLAIN)
def test_encoding_can_be_read_back(value: Any) -> None:
    """What is encoded is found again, exactly: so nothing else has the same encoding."""
    decoder = Decoder(encoded(value))

    again = decoder.value()

    assert repr(_sorted(again)) == repr(_sorted(value))
    assert decoder.data == b""


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return sorted(((k, _sorted(v)) for k, v in value.items()), key=repr)
    if isinstance(value, list):
        return [_sorted(each) for each in value]
    return value


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.complex64,
        torch.int64,
        torch.uint8,
        torch.bool,
    ],
)
def test_tensor_is_its_type_shape_and_bytes(dtype: torch.dtype) -> None:
    """A tensor of each kind of number decodes to its dtype, shape and memory."""
    tensor = torch.tensor([[0, 1, 1], [1, 0, 1]]).to(dtype)

    name, shape, data = Decoder(encoded(tensor)).value()

    assert name == str(dtype).removeprefix("torch.")
    assert shape == [2, 3]
    assert list(data) == tensor.view(torch.uint8).reshape(-1).tolist()


def test_kinds_that_look_alike_differ() -> None:
    """Values that compare equal, or whose text is equal, have digests of their own."""
    values: list[Any] = [
        *(None, True, False, 1, 0, 1.0, 0.0, -0.0, "1", b"1", "", b"", [], {}),
        *([1], [[1]], [1, [2]], [[1], 2], {"1": 1}, {1: 1}, 2**64, -(2**64), 255, -1),
        *(float("nan"), float("inf"), struct.unpack("<d", b"\1\0\0\0\0\0\xf8\x7f")[0]),
        *(torch.zeros(()), torch.zeros(1), torch.zeros(0), torch.zeros(0, 2)),
        *(torch.zeros(2, 3), torch.zeros(3, 2), torch.zeros(6), -torch.zeros(6)),
        *(torch.zeros(6, dtype=torch.int32), torch.full((1,), float("nan"))),
        torch.tensor([0x7FC00001], dtype=torch.int32).view(torch.float32),
    ]

    assert len({digest_of(value) for value in values}) == len(values)


def test_form_of_a_container_does_not_count() -> None:
    """Order of keys, tuples and ordered dictionaries change nothing."""
    one = digest_of({"a": [1, 2], "b": {}})

    assert digest_of(OrderedDict([("b", {}), ("a", (1, 2))])) == one


def test_kind_makes_it_a_list() -> None:
    """The digest with a kind is that of a list, whose errors tell places in the value."""
    assert digest_of({"a": 1}, (1, "rng")) == digest_of([1, "rng", {"a": 1}])
    with pytest.raises(TypeError, match=r"^a: "):
        digest_of({"a": object()}, (1, "rng"))


def test_place_and_strides_of_a_tensor_do_not_count() -> None:
    """Views, transposed, expanded and conjugate ones are their elements in order."""
    x_AB = torch.arange(12.0).reshape(3, 4)
    z_A = torch.tensor([1 + 2j, 3 - 1j])
    for tensor in (
        x_AB.T,
        x_AB[:, ::2],
        x_AB[1:],
        x_AB[:1].expand(3, 4),
        x_AB.requires_grad_(),
        torch.nn.Parameter(x_AB),
        z_A.conj(),
        z_A.conj().imag,
    ):
        plain = tensor.detach().clone().contiguous().resolve_conj().resolve_neg()
        assert digest_of(tensor) == digest_of(plain)


def test_pieces_of_a_large_tensor_follow_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However small the pieces, contiguous or not, the bytes are the same."""
    x_ABC = torch.arange(2 * 5 * 7).reshape(2, 5, 7)
    whole = [encoded(x_ABC), encoded(x_ABC.permute(2, 0, 1).contiguous())]

    for chunk_bytes in (1, 24, 100):
        monkeypatch.setattr(_canonical, "_CHUNK_BYTES", chunk_bytes)
        assert [encoded(x_ABC), encoded(x_ABC.permute(2, 0, 1))] == whole


def test_bytes_of_a_number_are_the_lowest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with the highest first, each number, or half of one, is turned."""
    monkeypatch.setattr(sys, "byteorder", "big")

    z_A = torch.tensor([1 + 2j], dtype=torch.complex64)

    assert encoded(torch.tensor([1, 2], dtype=torch.int16))[-4:] == b"\0\1\0\2"
    assert encoded(z_A)[-8:] == struct.pack(">ff", 1, 2)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"a": [0, object()]}, "a.1: .* not a object"),
        ({"a": {1, 2}}, "a: .* not a set"),
        ({"w": torch.eye(2).to_sparse()}, "w: .*sparse_coo"),
        ({"w": torch.empty(2, device="meta")}, "w: .* meta"),
    ],
)
def test_what_has_no_encoding_is_refused(value: Any, told: str) -> None:
    """Anything but plain data and dense tensors is an error that says where it is."""
    with pytest.raises(TypeError, match=told):
        digest_of(value)


def test_endless_content_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list in itself, and one that names another a billion times over, are errors."""
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(ValueError, match="without end"):
        digest_of(endless)

    wide: Any = []
    for _ in range(40):
        wide = [wide] * 10
    monkeypatch.setattr(_canonical, "_MAX_ENTRIES", 1000)
    with pytest.raises(ValueError, match="without end"):
        digest_of(wide)
