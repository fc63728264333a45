"""Prove that a training resumes exactly: stop it at every safe point and compare.

For tests of this package, and of trainings built on it: whether *your* model, data and
step can be continued bit for bit is something a test can say::

    def make(run_dir: Path) -> tuple[GenericTrainer, Callable[[], FitResult]]: ...


    whole = run_whole(make, tmp_path / "whole")
    for edge in whole.edges:
        assert run_with_stops(make, tmp_path / str(edge), [edge]) == whole.outcome

Stops are at named edges, not timed. One edge is passed on: see `mtf_trainer.phases`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mtf_trainer.certificate import Certificate
from mtf_trainer.checkpoint import CheckpointManager
from mtf_trainer.config import CheckpointSettings
from mtf_trainer.phases import Phase
from mtf_trainer.result import FitResult, StopReason
from mtf_trainer.trainer import GenericTrainer

__all__ = [
    "Edge",
    "Make",
    "Outcome",
    "Whole",
    "outcome_of",
    "run_whole",
    "run_with_stops",
]

Make = Callable[[Path], tuple[GenericTrainer, Callable[[], FitResult]]]
"""Makes all anew, as a new process would: a trainer with this ``run_dir``, and its fit."""


@dataclass(frozen=True, slots=True)
class Edge:
    """The safe point before *phase*, met for the *visit*-th time, from 1."""

    phase: Phase
    visit: int

    def __str__(self) -> str:
        return f"{self.phase}-{self.visit}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run left behind: digests of its last checkpoint's parts, and its metrics."""

    weights: str
    optimizer: str
    rng: str
    data: str
    metrics: bytes


@dataclass(frozen=True, slots=True)
class Whole:
    """An undisturbed run: the edges it passed, in order, and its outcome."""

    edges: tuple[Edge, ...]
    outcome: Outcome


def run_whole(make: Make, run_dir: Path) -> Whole:
    """Run undisturbed.

    Raises:
        ValueError: If the run does not come to its end.
    """
    seen: list[Edge] = []
    visits: Counter[Phase] = Counter()

    def probe(phase: Phase) -> bool:
        visits[phase] += 1
        seen.append(Edge(phase, visits[phase]))
        return False

    trainer, fit = make(run_dir)
    trainer.probe = probe
    _check_end(fit())
    return Whole(tuple(seen), outcome_of(run_dir))


def run_with_stops(make: Make, run_dir: Path, stops: Sequence[Edge]) -> Outcome:
    """Run, stop at each of *stops*, go on with all made anew, to the end.

    Args:
        make: See `Make`.
        run_dir: A new folder.
        stops: In the order in which they come. Of the last edge of all, before
            TRAINING_COMPLETE, nothing is left to continue.

    Raises:
        ValueError: If a stop is never met, or the run does not come to its end.
    """
    visits: Counter[Phase] = Counter()
    for edge in stops:
        trainer, fit = make(run_dir)
        trainer.probe = _until(edge, visits)
        result = fit()
        if result.reason is not StopReason.INTERRUPTED:
            if edge.phase is Phase.TRAINING_COMPLETE:
                return outcome_of(run_dir)
            message = f"{edge} was never met: the run ended with {result.reason}"
            raise ValueError(message)
        # The edge a run stopped at is the first that the next one meets.
        visits[trainer.phase] -= 1
    _, fit = make(run_dir)
    _check_end(fit())
    return outcome_of(run_dir)


def outcome_of(run_dir: Path) -> Outcome:
    """Return what the finished run in *run_dir* left behind.

    Raises:
        ValueError: If there is no checkpoint.
    """
    folder = run_dir / "checkpoints"
    content = CheckpointManager(folder, CheckpointSettings(asynchronous=False)).load(
        (folder / "latest.ckpt").resolve()
    )
    parts = Certificate.from_plain(content["certificate"])
    return Outcome(
        weights=parts.weights,
        optimizer=parts.optimizer,
        rng=parts.rng,
        data=parts.data,
        metrics=(run_dir / "metrics.jsonl").read_bytes(),
    )


def _until(edge: Edge, visits: Counter[Phase]) -> Callable[[Phase], bool]:
    def probe(phase: Phase) -> bool:
        visits[phase] += 1
        return phase is edge.phase and visits[phase] == edge.visit

    return probe


def _check_end(result: FitResult) -> None:
    if result.exit_code:
        message = f"the run ended with {result.reason}"
        raise ValueError(message)
