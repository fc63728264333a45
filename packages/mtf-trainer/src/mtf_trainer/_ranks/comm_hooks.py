"""How DDP sends gradients, and what of DDP must be saved for a run to go on exactly.

**Buckets.** DDP adds up gradients in buckets. The first backward pass of a process uses
buckets in the order of the parameters; before the second forward pass they are built anew,
in the order in which gradients arrived. With three processes or more, in which order a
number's summands are added depends on its place in a bucket, so a process that goes on
from a checkpoint would round its first step otherwise than one that was never stopped.
Therefore the buckets are part of the state, and are made the same before the first step:
by a backward pass through nothing but the parameters, in the saved order, with zeros.
That is not possible for models with sparse gradients or for DDP's ``static_graph``; there
that first step may differ in its last bits if there are three processes or more.

**Buffers**, such as those of batch normalisation, are taken from the first process at the
beginning of a forward pass, unless the pass before it was without an exchange of gradients
(inside a window of gradient accumulation, and in evaluation). DDP keeps the latter in
``require_forward_param_sync``. Until then each process has its own, so they are state of
each process, as is that flag.

Nothing else that Python can see in DDP lasts from one pass to the next; gradients are
those of the parameters.
"""

from __future__ import annotations

from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.autograd.function import once_differentiable
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from mtf_trainer._ranks.powersgd import PowerSGD
from mtf_trainer.config import CommHook

__all__ = ["CommState", "ddp_state", "load_ddp_state", "register"]

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}

_Buckets = list[list[int]]

# What each module's buckets are, once they are built anew: they stay so.
_known: WeakKeyDictionary[nn.Module, _Buckets] = WeakKeyDictionary()


class CommState:
    """What a hook keeps between steps, in one process; made by `register`.

    Args:
        kind: Which hook.
        model: The module whose gradients it sends.
        powersgd: If that is the hook.
    """

    def __init__(
        self, kind: CommHook, model: DistributedDataParallel, powersgd: PowerSGD | None
    ) -> None:
        self.kind = kind
        self.paused = False
        self._powersgd = powersgd
        self._parameters = list(model.module.parameters())
        self._numbers = {id(p): n for n, p in enumerate(self._parameters)}

    def state_dict(self) -> dict[str, Any]:
        """Return the state of this process: plain data, and the tensors themselves."""
        powersgd = None if self._powersgd is None else self._powersgd.state_dict()
        return {"kind": self.kind, "powersgd": powersgd}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned in this process of an earlier run.

        Raises:
            ValueError: If it is of another hook, rank or model.
        """
        if state["kind"] != self.kind:
            message = (
                f"comm_hook is {self.kind!r}, and the state to go on from was made with "
                f"{state['kind']!r}"
            )
            raise ValueError(message)
        if self._powersgd is not None:
            shapes = [parameter.shape for parameter in self._parameters]
            self._powersgd.load_state_dict(state["powersgd"], shapes)

    def send(self, bucket: GradBucket) -> Future[Tensor]:
        """Average the gradients in *bucket* over all processes."""
        buffer = bucket.buffer()
        if self.paused:
            return _done(buffer)
        if self._powersgd is None:
            return _send_as(_DTYPES[self.kind], buffer)
        numbers = [self._numbers[id(p)] for p in bucket.parameters()]
        gradients = dict(zip(numbers, bucket.gradients(), strict=True))
        self._powersgd.reduce(gradients, is_last=bucket.is_last())
        return _done(buffer)


def register(
    model: nn.Module,
    kind: CommHook,
    *,
    powersgd_rank: int = 1,
    powersgd_start_step: int = 100,
) -> CommState | None:
    """Let *model* send its gradients as *kind* says; None for ``"none"``.

    To be called once, before the first backward pass. ``"fp16"`` and ``"bf16"`` send them
    in that type, already divided by the number of processes; ``"powersgd"`` sends them
    in full for *powersgd_start_step* steps, and then as factors of *powersgd_rank*.

    Args:
        model: What ``fabric.setup`` returned under the ``ddp`` strategy, or DDP itself.
        kind: Which hook.
        powersgd_rank: See there.
        powersgd_start_step: See there.

    Raises:
        ValueError: If *model* is not in DDP, or *kind* does not suit it.
    """
    if kind == "none":
        return None
    ddp = _ddp_of(model)
    if ddp is None:
        message = f"comm_hook {kind!r} needs the ddp strategy and several processes"
        raise ValueError(message)
    if any(_reduced(ddp)[1]):
        message = f"comm_hook {kind!r} cannot send sparse gradients: use 'none'"
        raise ValueError(message)
    powersgd = None
    if kind == "powersgd":
        powersgd = PowerSGD(powersgd_rank, start_step=powersgd_start_step)
    state = CommState(kind, ddp, powersgd)
    # DDP compares annotations, if there are any, with classes.
    ddp.register_comm_hook(state, lambda state, bucket: state.send(bucket))
    return state


def ddp_state(model: nn.Module) -> dict[str, Any] | None:
    """Return what this process's DDP must be given back; None without DDP.

    All processes call it together, between two phases. It is plain data, and the buffers
    themselves.
    """
    ddp = _ddp_of(model)
    if ddp is None:
        return None
    return {
        "buckets": _buckets(ddp),
        "require_forward_param_sync": ddp.require_forward_param_sync,
        "buffers": dict(_buffers(ddp.module)),
    }


def load_ddp_state(model: nn.Module, state: dict[str, Any] | None) -> bool:
    """Give back what `ddp_state` returned in this process of an earlier run.

    All processes call it together, before the first forward pass. Gradients stay as they
    are. Does nothing without DDP or *state*.

    Returns:
        Whether the buckets are those of the earlier run. They are not if DDP was set up
        with other sizes, or in the cases that are told at the top.
    """
    ddp = _ddp_of(model)
    if ddp is None or state is None:
        return True
    ddp.require_forward_param_sync = state["require_forward_param_sync"]
    with torch.no_grad():
        for name, buffer in _buffers(ddp.module):
            if name in state["buffers"]:
                buffer.copy_(state["buffers"][name])
    wanted = state["buckets"]
    if wanted is None:
        return True
    if _buckets(ddp) is None and not ddp.static_graph:
        _build_buckets(ddp, wanted)
    return bool(_buckets(ddp) == wanted)


def _ddp_of(model: nn.Module) -> DistributedDataParallel | None:
    found = (m for m in model.modules() if isinstance(m, DistributedDataParallel))
    return next(found, None)


def _reduced(ddp: DistributedDataParallel) -> tuple[list[Tensor], list[bool]]:
    """Return the parameters whose gradients are sent, and which gradients are sparse."""
    parameters, sparse = ddp._build_params_for_reducer()  # type: ignore[no-untyped-call]  # noqa: SLF001
    return cast(list[Tensor], parameters), cast(list[bool], sparse)


def _buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Return the buffers that are part of the state of *module*, by name."""
    kept = set(module.state_dict(keep_vars=True))
    return [(name, buffer) for name, buffer in module.named_buffers() if name in kept]


def _buckets(ddp: DistributedDataParallel) -> _Buckets | None:
    """Return the numbers of the parameters in each bucket; None if not the lasting ones.

    Also None with sparse gradients, where they cannot be seen.
    """
    known = _known.get(ddp)
    if known is not None or any(_reduced(ddp)[1]):
        return known
    # Those that the next forward pass would build are built now: it is the same to DDP.
    if ddp.reducer._rebuild_buckets():  # noqa: SLF001
        ddp._has_rebuilt_buckets = True  # noqa: SLF001
    if not ddp._has_rebuilt_buckets:  # noqa: SLF001
        return None
    numbers = {id(p): number for number, p in enumerate(ddp.module.parameters())}
    buckets = ddp.reducer._get_zeros_like_grad_buckets()  # noqa: SLF001
    known = _known[ddp] = [[numbers[id(p)] for p in b.parameters()] for b in buckets]
    return known


def _build_buckets(ddp: DistributedDataParallel, buckets: _Buckets) -> None:
    """Let DDP see gradients arrive in the order of *buckets*, and build its own by that."""
    reduced, _ = _reduced(ddp)
    every = list(ddp.module.parameters())
    order = [
        every[number] for bucket in buckets for number in bucket if number < len(every)
    ]
    if {id(p) for p in order} != {id(p) for p in reduced}:
        return
    gradients = [parameter.grad for parameter in reduced]
    hooks = [state for _, state in ddp._comm_hooks if isinstance(state, CommState)]  # noqa: SLF001
    for state in hooks:
        state.paused = True
    try:
        for parameter in reduced:
            parameter.grad = None
        with torch.enable_grad():
            # On the device of the parameters, where one thread keeps the order.
            end = torch.zeros((), device=order[0].device, requires_grad=True)
            for parameter in reversed(order):
                end = _Link.apply(end, parameter)  # type: ignore[no-untyped-call]
            ddp.reducer.prepare_for_forward()
            ddp.reducer.prepare_for_backward([])
            end.backward()  # type: ignore[no-untyped-call]
    finally:
        for state in hooks:
            state.paused = False
        for parameter, gradient in zip(reduced, gradients, strict=True):
            parameter.grad = gradient


class _Link(torch.autograd.Function):
    """One of a chain; backwards, its parameter gets zeros before the next link is asked."""

    @staticmethod
    def forward(ctx: Any, before: Tensor, parameter: Tensor) -> Tensor:
        ctx.parameter = parameter
        return before.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, torch.zeros_like(ctx.parameter)


def _send_as(dtype: torch.dtype, buffer: Tensor) -> Future[Tensor]:
    small = buffer.div_(dist.get_world_size()).to(dtype)
    work = dist.all_reduce(small, async_op=True)

    def widen(_: Future[list[Tensor]]) -> Tensor:
        return buffer.copy_(small)

    return cast(Future[Tensor], work.get_future().then(widen))


def _done(buffer: Tensor) -> Future[Tensor]:
    devices: list[int | str | torch.device] = []
    if buffer.device.type != "cpu":
        devices.append(buffer.device)
    future: Future[Tensor] = Future(devices=devices)
    future.set_result(buffer)
    return future
