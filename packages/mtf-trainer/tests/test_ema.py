from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mtf_trainer.ema import WeightAverage

DECAY = 0.9


class Tied(nn.Module):
    """Two names for one weight, a frozen one, buffers, and one that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight
        self.norm = nn.BatchNorm1d(5)
        self.frozen = nn.Linear(5, 2)
        self.frozen.requires_grad_(requires_grad=False)
        self.table = nn.Parameter(torch.arange(3), requires_grad=False)
        self.register_buffer("scratch", torch.zeros(2), persistent=False)

    def forward(self, indices_B: Tensor) -> Tensor:
        """Return two values for each index."""
        return cast(Tensor, self.frozen(self.norm(self.head(self.embed(indices_B)))))


@pytest.fixture
def model() -> Tied:
    """Return a model with weights that are the same each time."""
    torch.manual_seed(0)
    return Tied()


def train(model: nn.Module, steps: int = 3) -> Iterator[None]:
    """Take optimizer steps; yield after each."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.3)
    for step in range(steps):
        optimizer.zero_grad()
        model(torch.tensor([0, 1, 2, step])).square().mean().backward()
        optimizer.step()
        yield


def copied(state: dict[str, Any]) -> dict[str, Tensor]:
    """Return *state* with tensors of its own."""
    return {name: value.clone() for name, value in state.items()}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Tell whether two states have the same names and the same bits."""
    return one.keys() == other.keys() and all(
        value.dtype == other[name].dtype and torch.equal(value, other[name])
        for name, value in one.items()
    )


def test_the_average_is_that_of_the_formula(model: Tied) -> None:
    """Bit by bit: weights are averaged tensor by tensor, all else is copied."""
    ema = WeightAverage(model, DECAY)
    expected = copied(model.state_dict())
    expected["head.weight"] = expected["embed.weight"]
    averaged = {"embed.weight", "norm.weight", "norm.bias"}

    for _ in train(model):
        ema.update()
        for name, value in model.state_dict().items():
            if name in averaged:
                expected[name].lerp_(value, 1 - DECAY)
            elif name != "head.weight":
                expected[name].copy_(value)

    average = ema.state_dict()
    assert same(average, expected)
    assert not torch.equal(average["embed.weight"], model.embed.weight)
    assert average["norm.num_batches_tracked"] == 3


def test_tied_weights_stay_tied(model: Tied) -> None:
    """A weight with two names is averaged and exchanged once."""
    ema = WeightAverage(model, DECAY)
    for _ in train(model):
        ema.update()

    average = ema.state_dict()
    assert average["embed.weight"] is average["head.weight"]
    ema.swap()
    assert model.head.weight is model.embed.weight
    assert torch.equal(model.head.weight, ema.state_dict()["embed.weight"])


def test_frozen_weights_stay_what_they_are(model: Tied) -> None:
    """The average of a weight that does not change is that weight, to the bit."""
    ema = WeightAverage(model, 0.999)
    before = copied(model.frozen.state_dict())
    for _ in train(model):
        ema.update()

    average = ema.state_dict()
    assert all(
        torch.equal(average[f"frozen.{name}"], value) for name, value in before.items()
    )


def test_a_weight_that_is_thawed_is_averaged(model: Tied) -> None:
    """What is frozen at first and trained later takes part."""
    ema = WeightAverage(model, DECAY)
    with torch.no_grad():
        expected = model.frozen.bias.clone()
        model.frozen.bias.add_(1.0)
        expected.lerp_(model.frozen.bias, 1 - DECAY)

    ema.update()

    assert torch.equal(ema.state_dict()["frozen.bias"], expected)


def test_swapping_exchanges_and_puts_back(model: Tied) -> None:
    """Both states are the same bits whichever way, and the model has the other one."""
    ema = WeightAverage(model, DECAY)
    for _ in train(model):
        ema.update()
    weights, average = copied(model.state_dict()), copied(ema.state_dict())
    places = [parameter.data_ptr() for parameter in model.parameters()]

    for swapped in (True, False, True, False):
        ema.swap()
        assert ema.swapped is swapped
        assert same(ema.state_dict(), average)
        assert same(ema.live_state_dict(), weights)
        assert same(model.state_dict(), average if swapped else weights)

    assert [parameter.data_ptr() for parameter in model.parameters()] == places


def test_swapping_does_not_change_the_training(model: Tied) -> None:
    """A run that swaps after each step ends with the bits of one that never does."""
    other = copy.deepcopy(model)
    averages = WeightAverage(model, DECAY), WeightAverage(other, DECAY)

    for _ in train(model):
        averages[0].update()
        averages[0].swap()
        averages[0].swap()
    for _ in train(other):
        averages[1].update()

    assert same(model.state_dict(), other.state_dict())
    assert same(averages[0].state_dict(), averages[1].state_dict())


def test_the_average_does_not_follow_while_swapped(model: Tied) -> None:
    """To average the average with itself is refused."""
    ema = WeightAverage(model, DECAY)
    ema.swap()

    with pytest.raises(RuntimeError, match="swapped"):
        ema.update()


@pytest.mark.parametrize("saved_swapped", [False, True])
@pytest.mark.parametrize("loaded_swapped", [False, True])
def test_an_average_goes_on_from_its_state(
    model: Tied, *, saved_swapped: bool, loaded_swapped: bool
) -> None:
    """Saved and loaded either way round, average and weights are those of before."""
    ema = WeightAverage(model, DECAY)
    for _ in train(model):
        ema.update()
    if saved_swapped:
        ema.swap()
    weights, average = copied(ema.live_state_dict()), copied(ema.state_dict())
    other = Tied()
    other.load_state_dict(weights)
    again = WeightAverage(other, DECAY)
    if loaded_swapped:
        again.swap()

    again.load_state_dict(average)

    assert same(again.state_dict(), average)
    assert same(again.live_state_dict(), weights)
    assert same(other.state_dict(), average if loaded_swapped else weights)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_averaged_in_32_bits(dtype: torch.dtype) -> None:
    """A small step of the average is kept; weights come back from a swap to the bit."""
    model = nn.Linear(2, 1, bias=False).to(dtype)
    nn.init.ones_(model.weight)
    ema = WeightAverage(model, 0.999)
    nn.init.constant_(model.weight, 1.5)
    expected = torch.ones(1, 2).lerp_(torch.full((1, 2), 1.5), 1.0 - 0.999)

    ema.update()
    ema.swap()

    assert ema.state_dict()["weight"].dtype == torch.float32
    assert torch.equal(ema.state_dict()["weight"], expected)
    assert torch.equal(model.weight, expected.to(dtype))
    assert torch.equal(ema.live_state_dict()["weight"], torch.full((1, 2), 1.5).to(dtype))
    ema.load_state_dict({"weight": torch.full((1, 2), 3.0)})
    assert torch.equal(model.weight, torch.full((1, 2), 3.0).to(dtype))
    ema.swap()
    assert torch.equal(model.weight, torch.full((1, 2), 1.5).to(dtype))
    assert torch.equal(ema.state_dict()["weight"], torch.full((1, 2), 3.0))


def test_complex_weights_are_averaged() -> None:
    """A complex weight is a weight."""
    model = nn.ParameterList([nn.Parameter(torch.zeros(2, dtype=torch.complex64))])
    ema = WeightAverage(model, 0.5)
    with torch.no_grad():
        model[0].fill_(2j)

    ema.update()

    assert torch.equal(ema.state_dict()["0"], torch.full((2,), 1j))


class Extra(nn.Module):
    """Has a state beside weights and buffers."""

    def get_extra_state(self) -> dict[str, int]:
        """Return something that is no tensor."""
        return {"seen": 7}

    def set_extra_state(self, state: Any) -> None:
        """Take it back."""


def test_what_is_no_weight_is_the_model_s_own() -> None:
    """Extra state and a model without weights pass through unchanged."""
    model = Extra()
    ema = WeightAverage(model, DECAY)

    ema.update()
    ema.swap()
    ema.load_state_dict(ema.state_dict())

    assert ema.state_dict() == {"_extra_state": {"seen": 7}}
    assert ema.live_state_dict() == {"_extra_state": {"seen": 7}}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda s: s.pop("norm.bias"), "has nothing as norm.bias, the model needs"),
        (lambda s: s.update({"norm.bias": torch.zeros(4)}), r"has shape \(4,\) as norm"),
        (lambda s: s.update({"norm.bias": 1.0}), "has nothing as norm.bias"),
        (lambda s: s.update(other=torch.zeros(1)), "has other, the model has not"),
    ],
)
def test_a_state_of_another_model_is_refused(
    model: Tied, change: Callable[[dict[str, Any]], object], problem: str
) -> None:
    """The first name that does not fit is told, and nothing is taken over."""
    ema = WeightAverage(model, DECAY)
    before = copied(ema.state_dict())
    state: dict[str, Any] = {name: value + 1 for name, value in before.items()}
    change(state)

    with pytest.raises(ValueError, match=problem):
        ema.load_state_dict(state)

    assert same(ema.state_dict(), before)


def check_wrapped(wrapped: nn.Module, model: Tied) -> None:
    """Train *model* through what wraps it, and compare with a bare one."""
    bare = copy.deepcopy(model)
    one, other = WeightAverage(wrapped, DECAY), WeightAverage(bare, DECAY)
    for _ in train(model):
        one.update()
    for _ in train(bare):
        other.update()

    assert one.state_dict().keys() == wrapped.state_dict().keys()
    for left, right in (
        (one.state_dict(), other.state_dict()),
        (one.live_state_dict(), other.live_state_dict()),
    ):
        assert all(map(torch.equal, left.values(), right.values()))
    one.swap()
    assert all(map(torch.equal, model.state_dict().values(), other.state_dict().values()))


def test_a_model_that_fabric_set_up(model: Tied) -> None:
    """Names are those of the model's own state, and the average is the same."""
    wrapped = Fabric(accelerator="cpu", devices=1).setup_module(model)

    check_wrapped(wrapped, model)
    assert "embed.weight" in WeightAverage(wrapped, DECAY).state_dict()


def test_a_model_that_is_compiled(model: Tied) -> None:
    """What torch.compile returns is averaged through, by its own names."""
    check_wrapped(cast(nn.Module, torch.compile(model, backend="eager")), model)


def test_a_model_in_ddp(model: Tied) -> None:
    """What DDP wraps is averaged through, by its own names."""
    model.table = nn.Parameter(torch.zeros(3), requires_grad=False)
    store = torch.distributed.HashStore()  # type: ignore[attr-defined]
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        check_wrapped(DistributedDataParallel(model), model)
    finally:
        torch.distributed.destroy_process_group()
