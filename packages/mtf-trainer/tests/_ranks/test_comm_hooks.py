from __future__ import annotations

from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import HashStore
from torch.nn.parallel import DistributedDataParallel

from mtf_trainer._ranks.comm_hooks import CommState, ddp_state, load_ddp_state, register

KINDS = ("none", "fp16", "bf16", "powersgd")
SAVED_AT = (0, 1, 3)


@pytest.fixture(scope="module")
def told(
    launch: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> list[list[dict[str, Any]]]:
    """Return what two processes saw, and two others that went on from their state."""
    spec = spec_from_file_location("ranks", Path(__file__).parents[1] / "run_ranks.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("hooks")
    return [module.run_pair(launch, name, folder) for name in ("hooks", "hooks_resumed")]


@pytest.fixture
def alone() -> Any:
    """Make this process the only one of a group over gloo."""
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", SAVED_AT)
def test_resumed_run_is_the_undisturbed_one(
    told: list[list[dict[str, Any]]], kind: str, steps: int
) -> None:
    """Saved in the middle of a window and gone on in new processes: the same bytes."""
    wholes, resumed = told

    for whole, again in zip(wholes, resumed, strict=True):
        assert again[f"{kind}_{steps}"]["digest"] == whole[kind]["digest"]


@pytest.mark.slow
def test_hooks_do_something(told: list[list[dict[str, Any]]]) -> None:
    """Each hook rounds gradients in a way of its own."""
    assert len({told[0][0][kind]["digest"] for kind in KINDS}) == len(KINDS)


@pytest.mark.slow
@pytest.mark.parametrize("steps", SAVED_AT)
def test_buckets_are_rebuilt_before_the_first_step(
    told: list[list[dict[str, Any]]], steps: int
) -> None:
    """From the first synchronised pass on, a new process has the buckets of the old."""
    wholes, resumed = told

    for whole, again in zip(wholes, resumed, strict=True):
        for kind in KINDS:
            lasting = whole[kind]["buckets"]
            assert len(lasting) > 1
            assert [n for bucket in lasting for n in bucket] != list(range(12))[::-1]
            saved = again[f"{kind}_{steps}"]
            assert saved["saved"] == saved["before"] == (lasting if steps else None)


@pytest.mark.slow
def test_buffers_of_each_process_are_kept(told: list[list[dict[str, Any]]]) -> None:
    """Inside a window they differ, are taken from no other, and are saved by each."""
    one, other = (rank["none_1"] for rank in told[1])

    assert not one["sync"]
    assert one["norm"] != other["norm"]
    assert one["buffers"] == [
        "norm.num_batches_tracked",
        "norm.running_mean",
        "norm.running_var",
    ]


def test_no_ddp_has_no_state() -> None:
    """A model of one process needs no hook, and has nothing to save."""
    model = nn.Linear(2, 2)

    assert register(model, "none") is None
    assert ddp_state(model) is None
    assert load_ddp_state(model, None)
    with pytest.raises(ValueError, match="needs the ddp strategy"):
        register(model, "fp16")


@pytest.mark.usefixtures("alone")
def test_sparse_gradients_are_refused() -> None:
    """They cannot be cast or factored; without a hook their buckets stay as they are."""
    model = DistributedDataParallel(nn.Embedding(4, 2, sparse=True))

    with pytest.raises(ValueError, match="sparse"):
        register(model, "bf16")
    model(torch.tensor([1])).sum().backward()
    state = ddp_state(model)
    assert state is not None
    assert state["buckets"] is None
    assert load_ddp_state(model, state)


def hooked(kind: Any, rank: int = 1) -> tuple[nn.Module, CommState]:
    """Return a small model and the state of its hook."""
    model = DistributedDataParallel(nn.Linear(20, 20))
    state = register(model, kind, powersgd_rank=rank, powersgd_start_step=0)
    assert state is not None
    return model, state


@pytest.mark.usefixtures("alone")
def test_state_of_another_hook_is_refused() -> None:
    """Errors that one hook owes cannot be paid by another, nor at another rank."""
    model, state = hooked("powersgd")
    model(torch.ones(1, 20)).sum().backward()
    saved = state.state_dict()

    with pytest.raises(ValueError, match="comm_hook is 'fp16'"):
        hooked("fp16")[1].load_state_dict(saved)
    with pytest.raises(ValueError, match="powersgd_rank is 2"):
        hooked("powersgd", rank=2)[1].load_state_dict(saved)
    hooked("powersgd")[1].load_state_dict(saved)


@pytest.mark.usefixtures("alone")
def test_other_buckets_are_told() -> None:
    """A DDP set up with other sizes goes on, and says that its buckets are others."""
    model = nn.Sequential(*(nn.Linear(20, 20) for _ in range(4)))
    small = DistributedDataParallel(model, bucket_cap_mb=1e-3)
    small(torch.ones(1, 20)).sum().backward()
    state = ddp_state(small)
    assert state is not None

    assert not load_ddp_state(DistributedDataParallel(model), state)
    assert load_ddp_state(DistributedDataParallel(model, bucket_cap_mb=1e-3), state)
    frozen = DistributedDataParallel(nn.Linear(20, 20))
    assert not load_ddp_state(frozen, state | {"buffers": {}})
