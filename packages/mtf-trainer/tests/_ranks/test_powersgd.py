from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import HashStore

from mtf_trainer._ranks.powersgd import PowerSGD


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """Make this process the only one of a group over gloo."""
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def sent(powersgd: PowerSGD, *gradients: Tensor) -> list[Tensor]:
    """Return what becomes of *gradients*."""
    numbered = {number: gradient.clone() for number, gradient in enumerate(gradients)}
    powersgd.reduce(numbered, is_last=True)
    return list(numbered.values())


def noise(*shape: int) -> Tensor:
    """Return numbers that are the same each time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_matrix_of_low_rank_is_sent_whole() -> None:
    """What has the rank of the factors loses nothing; vectors are never compressed."""
    matrix = noise(20, 2) @ noise(2, 30)
    got = sent(PowerSGD(2, start_step=0), matrix.view(20, 5, 6), noise(20))

    torch.testing.assert_close(got[0], matrix.view(20, 5, 6))
    assert torch.equal(got[1], noise(20))


def test_first_steps_are_sent_in_full() -> None:
    """Until the given step gradients stay as they are, and afterwards they do not."""
    powersgd = PowerSGD(1, start_step=2)
    results = [sent(powersgd, noise(20, 30))[0] for _ in range(3)]

    assert [torch.equal(result, noise(20, 30)) for result in results] == [
        True,
        True,
        False,
    ]


def test_what_is_lost_comes_later() -> None:
    """Over many steps the sum of what was sent nears the sum of the gradients."""
    powersgd = PowerSGD(4, start_step=0)
    total = sum(sent(powersgd, noise(20, 30))[0] for _ in range(60))

    mean = total / 60
    assert (mean - noise(20, 30)).norm() < 0.2 * noise(20, 30).norm()


def test_half_precision_keeps_its_type() -> None:
    """Factors are of at least 32 bits, gradients of their own type."""
    got = sent(PowerSGD(1, start_step=0), noise(20, 30).bfloat16())[0]

    assert got.dtype == torch.bfloat16
    assert got.isfinite().all()


def test_step_that_is_not_finite_is_forgotten() -> None:
    """It shows in that step, for a loss scaler to see, and in none after it."""
    powersgd = PowerSGD(1, start_step=0)
    sent(powersgd, noise(20, 30))

    assert not sent(powersgd, torch.full((20, 30), torch.inf))[0].isfinite().any()
    for _ in range(2):
        after = sent(powersgd, noise(20, 30))[0]
        assert after.isfinite().all()
    assert after.norm() > 0.1 * noise(20, 30).norm()


def test_zeros_stay_zeros() -> None:
    """Gradients that vanish divide by nothing."""
    assert not sent(PowerSGD(1, start_step=0), torch.zeros(20, 30))[0].any()


def test_state_goes_on_bitwise() -> None:
    """A state that was saved sends what the other would have sent."""
    first, second = PowerSGD(2, start_step=0), PowerSGD(2, start_step=0)
    for _ in range(3):
        sent(first, noise(20, 30))
    second.load_state_dict(first.state_dict(), [torch.Size([20, 30])])

    assert torch.equal(sent(first, noise(20, 30))[0], sent(second, noise(20, 30))[0])


@pytest.mark.parametrize("shapes", [[(30, 20)], [], [()]])
def test_state_of_another_model_is_refused(shapes: list[tuple[int, ...]]) -> None:
    """Errors of one parameter are never added to another."""
    first = PowerSGD(1, start_step=0)
    sent(first, noise(20, 30))

    with pytest.raises(ValueError, match="another parameter 0"):
        PowerSGD(1, start_step=0).load_state_dict(
            first.state_dict(), [torch.Size(shape) for shape in shapes]
        )
