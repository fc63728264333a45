"""What one call of ``fit`` holds besides the live objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mtf_trainer._distributed import StopAgreement
from mtf_trainer._means import Means
from mtf_trainer._signals import StopSignals
from mtf_trainer.metrics import MetricsWriter
from mtf_trainer.progress import Progress

__all__ = ["Run", "Window"]


@dataclass(slots=True)
class Window:
    """Batches whose gradients make one optimizer step.

    Losses are means over a batch, so each is weighted by its samples. Since a window's
    size is known only at its end, the unit is what a full window of batches like the
    first would hold; a window that differs is corrected before its step.

    >>> window = Window(full=2)
    >>> window.weight(4), window.weight(4), window.close()
    (0.5, 0.5, 1.0)
    >>> window.weight(4), window.close()  # cut short: 0.5 * 2.0 is the mean again
    (0.5, 2.0)
    """

    full: int
    batches: int = 0
    samples: int = 0
    unit: int = 1

    def weight(self, num_samples: int) -> float:
        """Count a batch, and return the factor for its loss."""
        if self.batches == 0:
            self.unit = max(1, num_samples) * self.full
        self.batches += 1
        self.samples += num_samples
        return num_samples / self.unit

    def close(self) -> float:
        """Return the factor for the gathered gradients, and start anew."""
        factor = self.unit / max(1, self.samples)
        self.batches = self.samples = 0
        return factor


@dataclass(slots=True, kw_only=True)
class Run:
    """Counters, signals and outputs of one call of ``fit``."""

    signals: StopSignals
    agreement: StopAgreement
    means: Means
    window: Window
    metrics: MetricsWriter | None = None
    progress: Progress | None = None
    num_batches: int | None = None
    checkpoint: Path | None = None
    _totals: dict[str, tuple[float, int]] = field(default_factory=dict)

    def stop(self) -> bool:
        """Tell, alike in all processes, whether to stop here."""
        return self.agreement.reached(wanted=self.signals.received is not None)

    def settle(self) -> bool:
        """Tell the same at the edge of an epoch, for certain."""
        return self.agreement.settled(wanted=self.signals.received is not None)

    def begin(self, label: str, num_batches: int | None) -> None:
        """Start a part of an epoch."""
        self.num_batches = num_batches
        if self.progress is not None:
            self.progress.begin(label, num_batches)

    def end(self, means: Mapping[str, float]) -> None:
        """Finish a part of an epoch."""
        if self.progress is not None:
            told = (f"{name} {value:.4g}" for name, value in means.items())
            self.progress.end("  ".join(told))

    def add_to_epoch(self, means: Mapping[str, float], counts: Mapping[str, int]) -> None:
        """Count *means* over *counts* samples towards the epoch's."""
        for name, mean in means.items():
            total, num_samples = self._totals.get(name, (0.0, 0))
            more = counts[name]
            self._totals[name] = (total + mean * more, num_samples + more)

    def epoch_means(self) -> dict[str, float]:
        """Return the means over the epoch, and start anew."""
        means = {name: total / max(1, n) for name, (total, n) in self._totals.items()}
        self._totals.clear()
        return means
