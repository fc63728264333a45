"""Gradient compression by low-rank factors, with a state that can be saved.

PowerSGD (Vogels, Karimireddy, Jaggi: "PowerSGD: Practical Low-Rank Gradient Compression
for Distributed Optimization", 2019, algorithms 1 and 2): each gradient matrix ``M`` is sent
as ``P (n, r)`` and ``Q (m, r)``; what is lost is added to the next gradient of the same
process.

torch has it as ``powerSGD_hook``, which is not used here. It starts reductions from the
callbacks of others; on the CPU these run in the threads of gloo, so with two or more
buckets under way the processes start them in different orders, and gloo aborts the
process ("Received data size doesn't match expected size") or, where sizes happen to
match, adds up what does not belong together. Its state is kept by the index of a bucket,
and buckets change after the first backward pass. Here all is done in the thread that
calls, in order, and the state is kept by parameter.

While a bucket is reduced, the backward pass waits: nothing overlaps.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["PowerSGD"]

# A matrix is left as it is unless its factors are less than half its size.
_LEAST_GAIN = 2


class PowerSGD:
    """Averages gradients over all processes, by matrices of rank *rank*.

    Legend: n, m the rows and columns of a gradient; r the rank of its factors.

    Args:
        rank: Of the factors, at least 1.
        start_step: Reductions that are made in full before the first compressed one.
    """

    def __init__(self, rank: int, *, start_step: int) -> None:
        self._rank = rank
        self._start_step = start_step
        self._step = 0
        self._errors: dict[int, Tensor] = {}
        self._qs: dict[int, Tensor] = {}

    def reduce(self, gradients: dict[int, Tensor], *, is_last: bool) -> None:
        """Replace *gradients*, by number of parameter, by their means over all processes.

        All processes call it with the same parameters in the same order; *is_last* ends
        a step.
        """
        small = dict(gradients)
        large: dict[int, Tensor] = {}
        if self._step >= self._start_step:
            for number, gradient in gradients.items():
                if self._pays(gradient):
                    large[number] = small.pop(number).flatten(1)
        self._step += is_last
        matrices = {number: self._with_error(number, g) for number, g in large.items()}
        ps_nr = {
            number: m_nm @ self._q(number, m_nm) for number, m_nm in matrices.items()
        }
        _average([*small.values(), *ps_nr.values()])
        for number, m_nm in matrices.items():
            p_nr = torch.linalg.qr(ps_nr[number])[0]
            ps_nr[number] = p_nr
            self._qs[number] = m_nm.T @ p_nr
        _average([self._qs[number] for number in matrices])
        for number, m_nm in matrices.items():
            q_mr = self._qs[number]
            large[number].copy_(ps_nr[number] @ q_mr.T)
            # With what is not finite in it (a loss scaler skips such a step), no
            # factor or error would ever be finite again.
            self._errors[number] = (m_nm - large[number]).nan_to_num_(0, 0, 0)
            self._qs[number] = q_mr.nan_to_num_(0, 0, 0)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of this process, as plain data and the tensors themselves."""
        return {
            "rank": self._rank,
            "step": self._step,
            "errors": {str(number): e for number, e in self._errors.items()},
            "qs": {str(number): q for number, q in self._qs.items()},
        }

    def load_state_dict(self, state: dict[str, Any], shapes: list[torch.Size]) -> None:
        """Take over what `state_dict` returned, for parameters of *shapes*.

        Raises:
            ValueError: If it is of other parameters, or of another rank of factors.
        """
        if state["rank"] != self._rank:
            message = (
                f"powersgd_rank is {self._rank}, and the state to go on from was made "
                f"with {state['rank']}"
            )
            raise ValueError(message)
        for number, error in state["errors"].items():
            shape = shapes[int(number)] if int(number) < len(shapes) else torch.Size()
            if len(shape) == 0 or error.shape != (shape[0], shape[1:].numel()):
                message = f"the state of PowerSGD is of another parameter {number}"
                raise ValueError(message)
        self._step = state["step"]
        self._errors = {int(number): e.clone() for number, e in state["errors"].items()}
        self._qs = {int(number): q.clone() for number, q in state["qs"].items()}

    def _pays(self, gradient: Tensor) -> bool:
        if gradient.dim() < 2:  # noqa: PLR2004 - a vector
            return False
        n, m = gradient.shape[0], gradient[0].numel()
        return (n + m) * min(n, m, self._rank) * _LEAST_GAIN < n * m

    def _with_error(self, number: int, gradient: Tensor) -> Tensor:
        """Return the gradient in the precision of the factors, with what is still owed."""
        # Factors of half a precision could not be made orthogonal.
        m_nm = gradient.to(torch.promote_types(gradient.dtype, torch.float32), copy=True)
        error = self._errors.get(number)
        return m_nm if error is None else m_nm.add_(error.to(m_nm.device))

    def _q(self, number: int, m_nm: Tensor) -> Tensor:
        q_mr = self._qs.get(number)
        if q_mr is None:
            rank = min(*m_nm.shape, self._rank)
            generator = torch.Generator().manual_seed(number)
            q_mr = torch.randn(m_nm.shape[1], rank, generator=generator)
        return q_mr.to(m_nm)


def _average(tensors: list[Tensor]) -> None:
    """Replace *tensors* by their means over all processes, in one reduction a type."""
    for dtype in dict.fromkeys(t.dtype for t in tensors):
        alike = [t for t in tensors if t.dtype == dtype]
        flat = torch.cat([t.reshape(-1) for t in alike]).div_(dist.get_world_size())
        dist.all_reduce(flat)
        means = torch.split(flat, [t.numel() for t in alike])
        for tensor, mean in zip(alike, means, strict=True):
            tensor.copy_(mean.view_as(tensor))
