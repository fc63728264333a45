"""The settings of a run, checked when made. Loads neither torch nor lightning."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

__all__ = [
    "CheckpointSettings",
    "CommHook",
    "GenericTrainerConfig",
    "GuardSettings",
    "Limits",
    "Reaction",
    "SchedulerInterval",
    "SnapshotSettings",
    "check_count",
    "how_to_write",
]

SchedulerInterval = Literal["step", "epoch"]
Reaction = Literal["ignore", "stop", "skip", "rollback"]
CommHook = Literal["none", "fp16", "bf16", "powersgd"]

_SEEDS = 2**32


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointSettings:
    """When checkpoints are written, how, and which of them stay.

    Args:
        every_n_epochs: Epochs between checkpoints; None for none by epochs.
        every_n_steps: Optimizer steps between checkpoints; None for none by steps.
        every_n_minutes: Minutes between checkpoints; None for none by time.
        keep_last_n: How many of the newest stay.
        keep_every_n_epochs: Those of every n-th epoch's end stay as well.
        keep_best_k: So many of those at the end of an epoch with the best `monitor` stay
            as well; needs `every_n_epochs`.
        monitor: A name among the metrics of validation (of training without one).
        mode: Whether the best `monitor` is the smallest or the largest.
        asynchronous: Whether a process of its own writes while training goes on.
        on_write_error: Whether a checkpoint that cannot be written stops the run, or is
            a warning after which it goes on.
        backup_url: An address of fsspec's to which whole checkpoints are copied.
        encryption_key_file: File of keys, one a line, base64: the first encrypts, all
            decrypt.
        encryption_key_env: Name of a variable that holds the same.
    """

    every_n_epochs: int | None = 1
    every_n_steps: int | None = None
    every_n_minutes: float | None = None
    keep_last_n: int = 3
    keep_every_n_epochs: int | None = None
    keep_best_k: int = 0
    monitor: str = "loss"
    mode: Literal["min", "max"] = "min"
    asynchronous: bool = True
    on_write_error: Literal["stop", "continue"] = "stop"
    backup_url: str | None = None
    encryption_key_file: Path | None = None
    encryption_key_env: str | None = None

    def __post_init__(self) -> None:
        """Check every value."""
        check_count("keep_last_n", self.keep_last_n, least=1)
        check_count("keep_best_k", self.keep_best_k, least=0)
        if self.keep_best_k and self.every_n_epochs is None:
            message = (
                "keep_best_k needs every_n_epochs: metrics are those of whole epochs"
            )
            raise ValueError(message)
        for name in ("every_n_epochs", "every_n_steps", "keep_every_n_epochs"):
            _check_optional_count(name, getattr(self, name))
        _check_positive("every_n_minutes", self.every_n_minutes)
        _check_text("monitor", self.monitor)
        _check_choice("mode", self.mode, ("min", "max"))
        _check_type("asynchronous", self.asynchronous, bool)
        _check_choice("on_write_error", self.on_write_error, ("stop", "continue"))
        for name in ("backup_url", "encryption_key_env"):
            if getattr(self, name) is not None:
                _check_text(name, getattr(self, name))
        if self.encryption_key_file is not None:
            _check_type("encryption_key_file", self.encryption_key_file, Path)
            if self.encryption_key_env is not None:
                message = "encryption_key_file and encryption_key_env are both given: which one?"
                raise ValueError(message)


@dataclass(frozen=True, kw_only=True, slots=True)
class SnapshotSettings:
    """Copies of the whole state in this node's shared memory, for after a SIGKILL.

    Args:
        enabled: Whether they are taken.
        max_overhead: Share of the training time they may take, above 0 and below 1: the
            interval between two is chosen by what they are measured to cost.
        every_n_steps: A fixed interval instead, in optimizer steps.
        folder: Where they lie: a file system in memory.
    """

    enabled: bool = True
    max_overhead: float = 0.035
    every_n_steps: int | None = None
    folder: Path = Path("/dev/shm")  # noqa: S108 - shared memory, opened with care

    def __post_init__(self) -> None:
        """Check every value."""
        _check_type("enabled", self.enabled, bool)
        _check_positive("max_overhead", self.max_overhead)
        if self.max_overhead >= 1:
            message = f"max_overhead must be below 1, not {self.max_overhead}"
            raise ValueError(message)
        _check_optional_count("every_n_steps", self.every_n_steps)
        _check_type("folder", self.folder, Path)


@dataclass(frozen=True, kw_only=True, slots=True)
class GuardSettings:
    """What is watched for, and what is done about it.

    A reaction is ``"ignore"``, ``"stop"`` (``fit`` raises), ``"skip"`` (the optimizer
    step is left out) or ``"rollback"`` (back to the last checkpoint, with every learning
    rate times `rollback_lr_factor`).

    Args:
        step_deadline_s: Without a step for so long, every thread's stack is written to
            stderr and the process ends; None for no deadline.
        on_nonfinite: Reaction to a loss or gradient norm that is not finite. All but
            ``"skip"`` look when metrics are written and before a checkpoint is, and wait
            for the device then only; ``"skip"`` looks at each step.
        on_explosion: Reaction to a loss above `explosion_factor` times the median of the
            lines of metrics before it; not ``"skip"``.
        explosion_factor: See there; above 1.
        on_memory_growth: Reaction to this process using `memory_growth_factor` times
            what it used once 100 steps were done; ``"ignore"`` or ``"stop"``. It looks
            every 100 steps: what grows faster needs `Limits.max_memory_bytes`.
        memory_growth_factor: See there; above 1.
        rollback_lr_factor: Above 0, at most 1.
        max_rollbacks: After so many in one call of ``fit``, the next one stops it.
    """

    step_deadline_s: float | None = None
    on_nonfinite: Reaction = "stop"
    on_explosion: Reaction = "ignore"
    explosion_factor: float = 10.0
    on_memory_growth: Reaction = "ignore"
    memory_growth_factor: float = 2.0
    rollback_lr_factor: float = 0.5
    max_rollbacks: int = 3

    def __post_init__(self) -> None:
        """Check every value."""
        _check_positive("step_deadline_s", self.step_deadline_s)
        _check_choice("on_nonfinite", self.on_nonfinite, get_args(Reaction))
        _check_choice("on_explosion", self.on_explosion, ("ignore", "stop", "rollback"))
        _check_choice("on_memory_growth", self.on_memory_growth, ("ignore", "stop"))
        for name in ("explosion_factor", "memory_growth_factor"):
            value = getattr(self, name)
            _check_positive(name, value)
            if value <= 1:
                message = f"{name} must be above 1, not {value}"
                raise ValueError(message)
        _check_positive("rollback_lr_factor", self.rollback_lr_factor)
        if self.rollback_lr_factor > 1:
            message = (
                f"rollback_lr_factor must be at most 1, not {self.rollback_lr_factor}"
            )
            raise ValueError(message)
        check_count("max_rollbacks", self.max_rollbacks, least=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a call of ``fit`` may use; at a limit it saves and stops as for a signal.

    Args:
        max_time_s: Seconds from the call of ``fit``.
        end_time: When the job ends, seconds since 1970; by default what
            ``SLURM_JOB_END_TIME`` says, if it is set. The run stops early enough before
            it to save, by what saving was measured to take.
        grace_s: Seconds kept free before `end_time` besides that.
        max_memory_bytes: Resident memory of this process, looked at once a second, behind
            a batch. If it is used before the first step, ``fit`` raises `ValueError`.
    """

    max_time_s: float | None = None
    end_time: float | None = None
    grace_s: float = 30.0
    max_memory_bytes: int | None = None

    def __post_init__(self) -> None:
        """Check every value."""
        for name in ("max_time_s", "end_time", "max_memory_bytes"):
            _check_positive(name, getattr(self, name))
        if self.grace_s != 0:
            _check_positive("grace_s", self.grace_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class GenericTrainerConfig:
    """What a `GenericTrainer` needs to know besides its objects.

    >>> GenericTrainerConfig(run_dir=Path("runs/a"), gradient_accumulation_steps=0)
    Traceback (most recent call last):
    ValueError: gradient_accumulation_steps must be at least 1, not 0

    Args:
        run_dir: The one folder the trainer writes to; made when missing.
        seed: Seeds Python, NumPy (when imported) and torch as a new run begins, process
            *n* with ``seed + n``; with the epoch it gives the order of samples, and with
            epoch and index what a dataset draws for a sample. 0 to 2**32 - 1.
        gradient_accumulation_steps: Batches that make one optimizer step. A shorter
            window at the end of an epoch makes a step too; each sample in a window
            weighs the same, if the step function returns the mean over its batch.
        max_grad_norm: Gradients are scaled down to this 2-norm; ``None`` for never
            (no norm is reported then).
        log_every_n_steps: Optimizer steps between two training lines in
            ``metrics.jsonl``; an epoch's last steps are always written.
        scheduler_interval: Whether schedulers step after each optimizer step
            (``"step"``) or after each epoch's training (``"epoch"``). One that needs a
            metric (``ReduceLROnPlateau``) steps at the end of each epoch.
        deterministic: Whether torch must use deterministic algorithms, and raise where
            it has none; for as long as ``fit`` runs.
        compile: Whether the model goes through ``torch.compile``.
        gradient_checkpointing: Whether the model's
            ``gradient_checkpointing_enable()`` is called; a model without is refused.
        ema_decay: Keep a moving average of the weights with this decay, which
            validation, testing and prediction use; None for none.
        label_smoothing: For `GenericTrainer.cross_entropy`, which the step must call.
        comm_hook: How DDP sends gradients; ``"powersgd"`` compresses them to rank
            `powersgd_rank`.
        powersgd_rank: See there.
        skip_to_resume: Whether to read a stream that cannot say where it is from its
            beginning, and pass over what was used; such a stream is refused otherwise.
        checkpoint: When and how checkpoints are written.
        snapshot: Copies in shared memory.
        guard: Hangs and divergence.
        limits: Time and memory.
        show_progress: Whether the first process reports on stderr.
        handle_signals: Whether INT, TERM and USR1 make ``fit`` save and stop. Only ever
            so in the main thread, and only while ``fit`` runs.

    Raises:
        TypeError: If a value is of the wrong type.
        ValueError: If a value is out of its range.
    """

    run_dir: Path
    seed: int = 0
    gradient_accumulation_steps: int = 1
    max_grad_norm: float | None = 1.0
    log_every_n_steps: int = 50
    scheduler_interval: SchedulerInterval = "epoch"
    deterministic: bool = False
    compile: bool = False
    gradient_checkpointing: bool = False
    ema_decay: float | None = None
    label_smoothing: float = 0.0
    comm_hook: CommHook = "none"
    powersgd_rank: int = 1
    skip_to_resume: bool = False
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    snapshot: SnapshotSettings = field(default_factory=SnapshotSettings)
    guard: GuardSettings = field(default_factory=GuardSettings)
    limits: Limits = field(default_factory=Limits)
    show_progress: bool = True
    handle_signals: bool = True

    def __post_init__(self) -> None:
        """Check every value."""
        _check_type("run_dir", self.run_dir, Path)
        if "\0" in str(self.run_dir):
            message = f"run_dir must have no NUL character, as {str(self.run_dir)!r} has"
            raise ValueError(message)
        check_count("seed", self.seed, least=0)
        if self.seed >= _SEEDS:
            message = f"seed must be below {_SEEDS}, not {self.seed}"
            raise ValueError(message)
        for name in ("gradient_accumulation_steps", "log_every_n_steps", "powersgd_rank"):
            check_count(name, getattr(self, name), least=1)
        for name in (
            "deterministic",
            "compile",
            "gradient_checkpointing",
            "skip_to_resume",
            "show_progress",
            "handle_signals",
        ):
            _check_type(name, getattr(self, name), bool)
        for name, kind in (
            ("checkpoint", CheckpointSettings),
            ("snapshot", SnapshotSettings),
            ("guard", GuardSettings),
            ("limits", Limits),
        ):
            _check_type(name, getattr(self, name), kind)
        _check_choice(
            "scheduler_interval", self.scheduler_interval, get_args(SchedulerInterval)
        )
        _check_choice("comm_hook", self.comm_hook, get_args(CommHook))
        _check_positive("max_grad_norm", self.max_grad_norm)
        _check_share("ema_decay", 0.0 if self.ema_decay is None else self.ema_decay)
        _check_share("label_smoothing", self.label_smoothing)


def _check_type(name: str, value: object, kind: type) -> None:
    if not isinstance(value, kind):
        message = f"{name} must be a {kind.__name__}, not {value!r}"
        raise TypeError(message)


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        message = f"{name} must be {' or '.join(map(repr, choices))}, not {value!r}"
        raise ValueError(message)


def _check_text(name: str, value: object) -> None:
    _check_type(name, value, str)
    if not value:
        message = f"{name} must not be empty"
        raise ValueError(message)


def check_count(name: str, value: object, *, least: int) -> None:
    """Raise unless *value* is a whole number of at least *least*.

    Raises:
        TypeError: If it is no whole number.
        ValueError: If it is smaller.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        message = f"{name} must be a whole number, not {value!r}"
        raise TypeError(message)
    if value < least:
        message = f"{name} must be at least {least}, not {value}"
        raise ValueError(message)


def _check_optional_count(name: str, value: object) -> None:
    if value is not None:
        check_count(name, value, least=1)


def _check_number(name: str, value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        message = f"{name} must be a number, not {value!r}{how_to_write(value)}"
        raise TypeError(message)
    return value


def how_to_write(value: object) -> str:
    """Return what to add to an error about *value* where a number was meant, or nothing.

    >>> how_to_write("1e-3"), how_to_write("1e-9"), how_to_write("fast")
    (': YAML takes it for text, write 0.001', ': YAML takes it for text, write 1.0e-09', '')
    """
    try:
        number = float(value) if isinstance(value, str) else math.nan
    except ValueError:
        return ""
    if not math.isfinite(number):
        return ""
    digits = repr(number)
    # For YAML 1.1 a number with an exponent has a point as well.
    told = digits if "." in digits else digits.replace("e", ".0e")
    return f": YAML takes it for text, write {told}"


def _check_positive(name: str, value: object) -> None:
    if value is None:
        return
    number = _check_number(name, value)
    if not (math.isfinite(number) and number > 0):
        message = f"{name} must be above 0 and finite, not {number}"
        raise ValueError(message)


def _check_share(name: str, value: object) -> None:
    number = _check_number(name, value)
    if not 0 <= number < 1:
        message = f"{name} must be at least 0 and below 1, not {number}"
        raise ValueError(message)
