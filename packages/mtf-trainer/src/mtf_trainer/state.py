"""Where a run stands, as plain data that loads without running any code.

`ResumeState` names the phase about to begin and the streams of random numbers there.
Its plain form holds dictionaries, lists, numbers, strings, ``None`` and tensors only,
so that ``torch.load(..., weights_only=True)`` reads it back. In this version it
describes the edge of an epoch; nothing inside one.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

import torch

from mtf_trainer.phases import Phase

__all__ = ["STATE_VERSION", "RNGState", "ResumeState", "UnknownVersionError"]

STATE_VERSION = 1

_LEGACY_SEEDS = 2**32


class UnknownVersionError(ValueError):
    """The plain form of a `ResumeState` has a version other than ours."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RNGState:
    """The random streams of one process.

    >>> state = RNGState.capture()
    >>> drawn = random.random()
    >>> state.restore()
    >>> random.random() == drawn
    True

    Args:
        python: As ``random.getstate()`` gives it.
        numpy: NumPy's global generator as ``(name, keys, position, has_gauss, gauss)``;
            None if NumPy was not imported.
        torch_cpu: Shape ``(num_bytes,)``, uint8.
        cuda: One such tensor per device; empty if CUDA was not in use.
    """

    python: tuple[Any, ...]
    numpy: tuple[Any, ...] | None
    torch_cpu: torch.Tensor
    cuda: tuple[torch.Tensor, ...]

    @classmethod
    def capture(cls) -> Self:
        """Return the streams of this process as they are now."""
        numpy = sys.modules.get("numpy")
        numpy_state = None
        if numpy is not None:
            name, keys, *rest = numpy.random.get_state()
            numpy_state = (str(name), keys.tolist(), *rest)
        in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        cuda = torch.cuda.get_rng_state_all() if in_use else ()
        return cls(
            python=random.getstate(),
            numpy=numpy_state,
            torch_cpu=torch.get_rng_state(),
            cuda=tuple(cuda),
        )

    def restore(self) -> None:
        """Put the streams of this process back.

        NumPy's is left alone if NumPy is not imported, and CUDA's if this process
        has another number of devices.
        """
        random.setstate(self.python)
        numpy = sys.modules.get("numpy")
        if numpy is not None and self.numpy is not None:
            numpy.random.set_state(self.numpy)
        torch.set_rng_state(self.torch_cpu)
        if self.cuda and len(self.cuda) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(list(self.cuda))

    @staticmethod
    def seed(seed: int) -> None:
        """Start every stream of this process from *seed*."""
        random.seed(seed)
        numpy = sys.modules.get("numpy")
        if numpy is not None:
            numpy.random.seed(seed % _LEGACY_SEEDS)
        torch.manual_seed(seed)

    def to_plain(self) -> dict[str, Any]:
        """Return plain data that `from_plain` reads."""
        version, internal, gauss = self.python
        return {
            "python": [version, list(internal), gauss],
            "numpy": None if self.numpy is None else list(self.numpy),
            "torch_cpu": self.torch_cpu,
            "cuda": list(self.cuda),
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """Rebuild what `to_plain` gave.

        Raises:
            ValueError: If *plain* is not of that form.
        """
        try:
            version, internal, gauss = plain["python"]
            numpy = plain["numpy"]
            state = cls(
                python=(version, tuple(internal), gauss),
                numpy=None if numpy is None else tuple(numpy),
                torch_cpu=plain["torch_cpu"],
                cuda=tuple(plain["cuda"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            message = f"not a state of random streams: {error!r}"
            raise ValueError(message) from error
        if not all(isinstance(t, torch.Tensor) for t in (state.torch_cpu, *state.cuda)):
            message = "not a state of random streams: torch's states must be tensors"
            raise ValueError(message)
        return state


@dataclass(frozen=True, kw_only=True, slots=True)
class ResumeState:
    """Where a run stands.

    Args:
        phase: The phase about to begin.
        epoch: Epochs finished.
        global_step: Optimizer steps taken.
        rng: The random streams of each process, by rank.
        timestamp: When it was taken, ISO 8601 in UTC.
        version: The version of this form.
    """

    phase: Phase
    epoch: int
    global_step: int
    rng: tuple[RNGState, ...]
    timestamp: str
    version: int = STATE_VERSION

    @classmethod
    def now(
        cls, *, phase: Phase, epoch: int, global_step: int, rng: tuple[RNGState, ...]
    ) -> Self:
        """Return a state stamped with the present time."""
        stamp = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(
            phase=phase, epoch=epoch, global_step=global_step, rng=rng, timestamp=stamp
        )

    def to_plain(self) -> dict[str, Any]:
        """Return plain data that `from_plain` reads."""
        return {
            "version": self.version,
            "phase": str(self.phase),
            "epoch": self.epoch,
            "global_step": self.global_step,
            "rng": [state.to_plain() for state in self.rng],
            "timestamp": self.timestamp,
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """Rebuild what `to_plain` gave.

        Raises:
            UnknownVersionError: If another version of this form was written.
            ValueError: If *plain* is not of that form.
        """
        version = plain.get("version")
        if version != STATE_VERSION:
            message = (
                f"has version {version!r} of the resume state; this mtf-trainer reads "
                f"version {STATE_VERSION} only: use the mtf-trainer that wrote it"
            )
            raise UnknownVersionError(message)
        try:
            return cls(
                phase=Phase(plain["phase"]),
                epoch=int(plain["epoch"]),
                global_step=int(plain["global_step"]),
                rng=tuple(RNGState.from_plain(state) for state in plain["rng"]),
                timestamp=str(plain["timestamp"]),
            )
        except (KeyError, TypeError) as error:
            message = f"not a resume state: {error!r}"
            raise ValueError(message) from error
