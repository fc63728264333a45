from __future__ import annotations

import io
import math
import struct
from collections import Counter, OrderedDict
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mtf_trainer._memory.flat import DTYPES, flatten, tensor_specs, unflatten

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
)
contents = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner)
    ),
    max_leaves=20,
)


def there_and_back(content: Any) -> Any:
    """Take *content* apart and put copies of its tensors together again."""
    skeleton, tensors = flatten(content)
    return unflatten(skeleton, [each.clone().contiguous() for each in tensors])


@given(contents)
def test_plain_data_comes_back_as_it_was(content: Any) -> None:
    """Any nesting of plain data comes back equal, and of the same types."""
    assert repr(there_and_back(content)) == repr(content)


@given(contents)
def test_the_same_content_gives_the_same_bytes(content: Any) -> None:
    """The skeleton of what came back is, byte for byte, the one it came from."""
    assert flatten(there_and_back(content))[0] == flatten(content)[0]


@pytest.mark.parametrize(
    "value", [math.nan, -math.nan, math.inf, -math.inf, -0.0, 5e-324, 2**-1074 * 3]
)
def test_floats_keep_their_bits(value: float) -> None:
    """Not-a-numbers with their sign, infinities, -0 and denormals keep every bit."""
    assert struct.pack("<d", there_and_back(value)) == struct.pack("<d", value)


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("name", sorted(DTYPES))
def test_every_type_of_tensor(name: str) -> None:
    """A tensor of each type comes back with its type, shape and bytes."""
    data = torch.arange(48, dtype=torch.uint8) % 2
    tensor = data.view(DTYPES[name]).view(3, -1)
    back = there_and_back({"x": tensor})["x"]
    assert back.dtype == tensor.dtype
    assert back.shape == tensor.shape
    assert torch.equal(back.view(torch.uint8), tensor.view(torch.uint8))


def test_tensors_of_every_form() -> None:
    """Transposed, strided, expanded, conjugated, empty and 0-dim tensors come back equal."""
    x = torch.arange(12.0).view(3, 4)
    z = torch.tensor([1 + 2j, 3 - 1j])
    content = [x.T, x[:, ::2], x[:1].expand(3, 4), z.conj(), torch.empty(0, 3), x[1, 2]]
    for back, was in zip(there_and_back(content), content, strict=True):
        assert torch.equal(back, was)
        assert back.shape == was.shape


def test_tied_tensors_are_kept_once_and_shared_again() -> None:
    """The same view met twice is one tensor, before and after; another view is another."""
    weight = nn.Parameter(torch.randn(3, 3))
    content = {"a": weight, "b": weight.detach(), "c": weight.detach().T}
    skeleton, tensors = flatten(content)
    assert len(tensors) == 2
    back = unflatten(skeleton, tensors)
    assert back["a"] is back["b"]
    assert back["a"] is not back["c"]


def test_a_view_and_its_conjugate_are_not_tied() -> None:
    """Two tensors in the same memory that read differently stay two."""
    z = torch.tensor([1 + 2j])
    assert len(flatten([z, z.conj()])[1]) == 2
    assert len(flatten([torch.empty(0), torch.empty(0)])[1]) == 2


def test_kinds_that_are_kept_and_kinds_that_become_plain() -> None:
    """Tuples and counters stay; ordered dictionaries and parameters become plain."""
    content = {
        "betas": (0.9, 0.999),
        "milestones": Counter({3: 1}),
        "state": OrderedDict(a=nn.Parameter(torch.ones(1))),
        "integer keys": {0: "a", -1: "b"},
    }
    back = there_and_back(content)
    assert back["betas"] == (0.9, 0.999)
    assert type(back["milestones"]) is Counter
    assert back["milestones"] == {3: 1}
    assert type(back["state"]) is dict
    assert type(back["state"]["a"]) is torch.Tensor
    assert not back["state"]["a"].requires_grad
    assert back["integer keys"] == {0: "a", -1: "b"}


def test_what_comes_back_loads_as_plain_data() -> None:
    """A real optimizer's and scheduler's state goes through, and torch loads it safely."""
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4])
    content = {
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict()],
        "schedulers": [scheduler.state_dict()],
    }
    file = io.BytesIO()
    torch.save(there_and_back(content), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    optimizer.load_state_dict(loaded["optimizers"][0])
    scheduler.load_state_dict(loaded["schedulers"][0])
    assert loaded["optimizers"][0]["param_groups"][0]["betas"] == (0.9, 0.999)
    assert torch.equal(
        loaded["optimizers"][0]["state"][0]["exp_avg"],
        optimizer.state_dict()["state"][0]["exp_avg"],
    )


class _Subclass(torch.Tensor):
    pass


QUANTIZED = torch.empty(2, dtype=torch.uint8).view(torch.quint8)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (object(), "builtins.object"),
        ({1, 2}, "builtins.set"),
        (torch.float32, "torch.dtype"),
        (torch.ones(2).as_subclass(_Subclass), "_Subclass"),
        (torch.ones(2).to_sparse(), "without dense data"),
        (torch.ones(2, device="meta"), "meta"),
        (QUANTIZED, "quint8"),
        ({True: 1}, "the key True"),
    ],
)
def test_anything_else_is_refused_with_its_place(value: Any, told: str) -> None:
    """What cannot be saved is a TypeError that says where it is and what."""
    content = {"model": {}, "callbacks": [{}, {}, {"state": value}]}
    with pytest.raises(TypeError, match=r"^callbacks\.2\.state ") as caught:
        flatten(content)
    assert told in str(caught.value)


def test_a_content_that_is_nothing_but_wrong() -> None:
    """At the top there is no place to name."""
    with pytest.raises(TypeError, match=r"^the content is a builtins\.object"):
        flatten(object())


def test_what_is_nested_in_itself_is_refused() -> None:
    """A cycle ends in an error, not in a crash."""
    content: dict[str, Any] = {}
    content["a"] = [content]
    with pytest.raises(TypeError, match="in itself"):
        flatten(content)


@pytest.mark.parametrize(
    "skeleton",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'{"tensors":[],"tree":{}}',
        b'{"tensors":[],"tree":{"a":1,"b":2}}',
        b'{"tensors":[],"tree":{"tensor":0}}',
        b'{"tensors":[],"tree":{"tensor":-1}}',
        b'{"tensors":[],"tree":{"tensor":"0"}}',
        b'{"tensors":[],"tree":{"pickle":"gASVAAAA"}}',
        b'{"tensors":[],"tree":{"dict":[[1,2]]}}',
        b'{"tensors":[],"tree":{"dict":[["a"]]}}',
        b'{"tensors":[],"tree":{"dict":5}}',
        b'{"tensors":[],"tree":{"float":"00"}}',
        b'{"tensors":[],"tree":{"bytes":"!"}}',
        b'{"tensors":[["object",[]]],"tree":0}',
        b'{"tensors":[["float32",[-1]]],"tree":0}',
        b'{"tensors":[["float32",[true]]],"tree":0}',
        b'{"tensors":[["float32"]],"tree":0}',
        b'{"tensors":5,"tree":0}',
        b'{"tensors":[],"tree":' + b"[" * 100_000,
        b'{"tensors":[],"tree":' + b"[" * 900 + b"]" * 900 + b"}",
    ],
)
def test_a_hostile_skeleton_is_a_value_error(skeleton: bytes) -> None:
    """Whatever is no skeleton is told as that, and runs nothing."""
    try:
        content = unflatten(skeleton, [])
    except ValueError:
        return
    # Deep lists are harmless where the interpreter reads them.
    assert isinstance(content, list)


@given(st.binary())
def test_random_bytes_are_a_value_error(skeleton: bytes) -> None:
    """No bytes bring anything down."""
    with pytest.raises(ValueError, match="not a skeleton"):
        tensor_specs(skeleton)


def test_tensors_must_be_those_of_the_skeleton() -> None:
    """Another number, type or shape of tensors is refused."""
    skeleton, tensors = flatten([torch.zeros(2)])
    assert tensor_specs(skeleton) == [(torch.float32, (2,))]
    for wrong in ([], [torch.zeros(3)], [torch.zeros(2).long()], [*tensors, *tensors]):
        with pytest.raises(ValueError, match="not those"):
            unflatten(skeleton, wrong)
