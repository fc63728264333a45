"""Where a run stands, as plain data that loads without running any code.

`ResumeState` names the phase about to begin, what of the epoch is done, and the streams
of random numbers there. Its plain form holds dictionaries, lists, numbers, strings,
``None`` and tensors only, so that ``torch.load(..., weights_only=True)`` reads it back.

What each process has for itself (streams, cursors, sums, half gathered gradients) is a
`LocalState`; a checkpoint has one for each rank. What is the same in all processes is in
the `ResumeState`'s own fields.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Self, TypeVar

import torch

from mtf_trainer.phases import Phase

__all__ = [
    "STATE_VERSION",
    "LocalState",
    "RNGState",
    "ResumeState",
    "TrainMicroState",
    "UnknownVersionError",
    "ValMicroState",
]

STATE_VERSION = 2

_LEGACY_SEEDS = 2**32

T = TypeVar("T", "TrainMicroState", "ValMicroState")


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

    @classmethod
    def seeded(cls, seed: int) -> Self:
        """Return the streams that `seed` would start, and leave this process's alone."""
        before = cls.capture()
        cls.seed(seed)
        streams = cls.capture()
        before.restore()
        return streams

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
            state.check()
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            message = f"not a state of random streams: {error!r}"
            raise ValueError(message) from error
        return state

    def check(self) -> None:
        """Raise if `restore` would, as far as that shows without the streams.

        Raises:
            TypeError: If a part is of another form.
            ValueError: Likewise.
            RuntimeError: Likewise.
        """
        random.Random().setstate(self.python)  # noqa: S311 - no secrets
        torch.Generator().set_state(self.torch_cpu)
        devices: tuple[object, ...] = self.cuda
        for each in devices:
            if not isinstance(each, torch.Tensor) or each.dtype is not torch.uint8:
                message = "a device's state is of bytes"
                raise TypeError(message)
        if self.numpy is not None and (numpy := sys.modules.get("numpy")) is not None:
            numpy.random.RandomState().set_state(self.numpy)


@dataclass(kw_only=True, slots=True)
class TrainMicroState:
    """What of an epoch's training is done: the same in all processes.

    Args:
        batch_idx: Micro-batches whose gradients each process has gathered.
        window_batches: Those of them in the optimizer step that is not taken yet.
        closes_window: Whether the last of them ended its window.
        is_last: Whether the last of them was the epoch's last.
        stepped: Whether the optimizer step of that window is done.
        optimizers: Indices of the optimizers that the window is for; none for all.
        skipped: Steps that were left out since the last line of metrics.
        epoch_sums: By name, the sum of a metric over the epoch's lines so far, and the
            number of samples in it.
    """

    batch_idx: int = 0
    window_batches: int = 0
    closes_window: bool = False
    is_last: bool = False
    stepped: bool = False
    optimizers: list[int] = field(default_factory=list)
    skipped: int = 0
    epoch_sums: dict[str, list[float]] = field(default_factory=dict)


@dataclass(kw_only=True, slots=True)
class ValMicroState:
    """What of a validation is done: the same in all processes.

    Args:
        batch_idx: Micro-batches that each process has evaluated.
        is_last: Whether the last of them ended it.
    """

    batch_idx: int = 0
    is_last: bool = False


def _micro(kind: type[T], name: str, plain: Mapping[str, Any]) -> T:
    """Return a *kind* of *plain*, which has all of its entries, each of its own kind.

    Raises:
        ValueError: If it has not.
    """
    whole: dict[str, Any] = asdict(kind())
    if not isinstance(plain, Mapping):
        message = f"not a resume state: {name} is {plain!r}"
        raise ValueError(message)  # noqa: TRY004 - what a file holds, not an argument
    for key in {*whole, *plain}:
        if key not in plain or type(plain[key]) is not type(whole.get(key)):
            message = f"not a resume state: {name}.{key} is {plain.get(key)!r}"
            raise ValueError(message)
    return kind(**plain)


@dataclass(kw_only=True, slots=True)
class LocalState:
    """What one process has for itself.

    Args:
        rng: Its random streams.
        train_cursor: Place in the training data behind the last batch used; None at the
            beginning of an epoch.
        val_cursor: The same of the validation data.
        window_samples: Samples of this process in the open window.
        window_unit: The unit of weight there, where one is needed; else 0.
        grad_norm: That of the last optimizer step, where it is still to be written.
        train_means: As `Means.state_dict` gives it.
        val_means: By loader.
        grads: Gradients by name of the parameter, in the middle of a window; else None.
        ddp: What DDP keeps for itself, as `mtf_trainer._ranks.comm_hooks.ddp_state` gives it; else None.
        comm: State of the gradients' communication hook; else None.
    """

    rng: RNGState
    train_cursor: dict[str, Any] | None = None
    val_cursor: dict[str, Any] | None = None
    window_samples: int = 0
    window_unit: int = 0
    grad_norm: float | None = None
    train_means: dict[str, Any] = field(default_factory=dict)
    val_means: dict[str, dict[str, Any]] = field(default_factory=dict)
    grads: dict[str, torch.Tensor] | None = None
    ddp: dict[str, Any] | None = None
    comm: dict[str, Any] | None = None

    def to_plain(self) -> dict[str, Any]:
        """Return plain data that `from_plain` reads."""
        plain = {name: getattr(self, name) for name in self.__slots__}
        plain["rng"] = self.rng.to_plain()
        return plain

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """Rebuild what `to_plain` gave.

        Raises:
            ValueError: If *plain* is not of that form.
        """
        try:
            return cls(**{**plain, "rng": RNGState.from_plain(plain["rng"])})
        except (KeyError, TypeError) as error:
            message = f"not the state of a process: {error!r}"
            raise ValueError(message) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class ResumeState:
    """Where a run stands, at a safe point.

    Args:
        phase: The phase about to begin.
        epoch: Epochs finished.
        global_step: Optimizer steps taken.
        train: What of this epoch's training is done.
        val: What of this epoch's validation is done; None outside a validation.
        rng: The random streams of each process, by rank.
        timestamp: When it was taken, ISO 8601 in UTC.
        version: The version of this form.
    """

    phase: Phase
    epoch: int
    global_step: int
    train: TrainMicroState
    val: ValMicroState | None
    rng: tuple[RNGState, ...]
    timestamp: str
    version: int = STATE_VERSION

    @staticmethod
    def now() -> str:
        """Return the time stamp of the present."""
        return datetime.now(UTC).isoformat(timespec="seconds")

    def to_plain(self) -> dict[str, Any]:
        """Return plain data that `from_plain` reads, without the random streams."""
        return {
            "version": self.version,
            "phase": str(self.phase),
            "epoch": self.epoch,
            "global_step": self.global_step,
            "train": asdict(self.train),
            "val": None if self.val is None else asdict(self.val),
            "timestamp": self.timestamp,
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any], rng: tuple[RNGState, ...] = ()) -> Self:
        """Rebuild what `to_plain` gave, with the random streams from elsewhere.

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
                train=_micro(TrainMicroState, "train", plain["train"]),
                val=None
                if plain["val"] is None
                else _micro(ValMicroState, "val", plain["val"]),
                rng=rng,
                timestamp=str(plain["timestamp"]),
            )
        except (KeyError, TypeError) as error:
            message = f"not a resume state: {error!r}"
            raise ValueError(message) from error
