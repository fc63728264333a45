"""Where metrics go besides ``metrics.jsonl``.

A tracker is told each line in the first process, and told when the run goes back. Loads
no tracker's library: what is adapted here is an object that the caller has made.
"""

from __future__ import annotations

import glob
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from mtf_trainer._hooks import entries, has_state, naming, state_of, type_name

__all__ = ["Tracker", "Trackers", "WandbTracker"]

_METHODS = ("log_metrics", "log_params", "log_artifact", "rewind", "close")


class Tracker(Protocol):
    """Anything with these methods. It is used by one thread.

    One that remembers something of the run also has ``state_dict()`` and
    ``load_state_dict(state)``: its state is part of each checkpoint.
    """

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Record *values* at *step*, the number of optimizer steps taken.

        Called with steps that do not fall, but for `rewind`. Further values for the same
        step are added to it; for the same name at the same step the later one counts.
        """

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record settings of the run; again, for a run that goes on."""

    def log_artifact(self, path: Path) -> None:
        """Record the file *path*, as it is now."""

    def rewind(self, step: int) -> None:
        """Forget what was recorded for steps after *step*: they are done again."""

    def close(self) -> None:
        """Finish what is under way; nothing is called afterwards."""


class Trackers:
    """Several trackers as one. An error in one ends the run and says which.

    Args:
        trackers: Told in this order.
        where: Says in which phase the run is, for errors.

    Raises:
        TypeError: If one lacks a method, or has only one half of a state.
    """

    def __init__(
        self, trackers: Iterable[object], where: Callable[[], str] = lambda: "a tracker"
    ) -> None:
        self._trackers: Sequence[Any] = tuple(trackers)
        self._where = where
        for tracker in self._trackers:
            if isinstance(tracker, type):
                message = f"{tracker.__qualname__} is a class: pass an instance of it"
                raise TypeError(message)
            for name in _METHODS:
                if not callable(getattr(tracker, name, None)):
                    message = f"{type_name(tracker)} is no tracker: it has no {name}()"
                    raise TypeError(message)
            has_state(tracker)

    def __len__(self) -> int:
        return len(self._trackers)

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Tell every tracker *values* at *step*.

        Raises:
            CallbackError: If one raises; those after it are not told.
        """
        for tracker in self._trackers:
            with naming(tracker, self._where()):
                tracker.log_metrics(values, step)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Tell every tracker the settings of the run.

        Raises:
            CallbackError: If one raises; those after it are not told.
        """
        for tracker in self._trackers:
            with naming(tracker, self._where()):
                tracker.log_params(params)

    def log_artifact(self, path: Path) -> None:
        """Tell every tracker of the file *path*.

        Raises:
            CallbackError: If one raises; those after it are not told.
        """
        for tracker in self._trackers:
            with naming(tracker, self._where()):
                tracker.log_artifact(path)

    def rewind(self, step: int) -> None:
        """Tell every tracker that the run goes back to *step*.

        Raises:
            CallbackError: If one raises; those after it are not told.
        """
        for tracker in self._trackers:
            with naming(tracker, self._where()):
                tracker.rewind(step)

    def close(self) -> None:
        """Close every tracker, also those behind one that fails.

        Raises:
            CallbackError: The first error; later ones are in its notes.
        """
        failure: Exception | None = None
        for tracker in self._trackers:
            try:
                with naming(tracker, "close"):
                    tracker.close()
            except Exception as error:  # noqa: BLE001 - raised below
                if failure is None:
                    failure = error
                else:
                    failure.add_note(str(error))
        if failure is not None:
            raise failure

    def state_dict(self) -> list[dict[str, Any]]:
        """Return what each tracker remembers, as plain data; None if it has no state.

        Raises:
            CallbackError: If one fails, or its state is not plain data.
        """
        return [
            {"type": type_name(tracker), "state": state_of(tracker)}
            for tracker in self._trackers
        ]

    def load_state_dict(self, state: object) -> None:
        """Give each tracker back what one of its class remembered, in their order.

        Trackers may come and go between two runs of one training: one without a state
        there begins anew, and a state without a tracker is left out.

        Raises:
            CallbackError: If one does not take its state.
        """
        saved = list(entries(state) or ())
        for tracker in self._trackers:
            for index, entry in enumerate(saved):
                if entry["type"] == type_name(tracker):
                    del saved[index]
                    if entry["state"] is not None and has_state(tracker):
                        with naming(tracker, "load_state_dict"):
                            tracker.load_state_dict(entry["state"])
                    break


class WandbTracker:
    """Hands what is recorded to a run of Weights & Biases, which stays its owner's.

    A run that is open there cannot be rewound: values for a step below its last one are
    ignored. What was done again is therefore not sent, until the run is past the point
    it had reached before. After a restart the same values would come again, so nothing is
    missing; after a roll-back with another learning rate the values of before stay, which
    is a warning, once. With *reopen* the run is rewound on the server instead, by
    ``wandb.init(resume_from=...)``: in preview there, and not for every account
    (https://docs.wandb.ai/models/runs/rewind, 2026). Its owner finishes the run; one that
    was reopened is finished here.

    This class was tested against a stand-in for the run, not with the server.

    Args:
        run: What ``wandb.init`` returned.
        reopen: Called with a step after *run* was finished; returns the run cut off
            behind that step: ``lambda step: wandb.init(project=..., entity=...,
            resume_from=f"{run.id}?_step={step}")``.

    Raises:
        TypeError: If *run* is no such run.
    """

    def __init__(self, run: Any, *, reopen: Callable[[int], Any] | None = None) -> None:
        for name in ("log", "save", "finish"):
            if not callable(getattr(run, name, None)):
                message = f"{run!r} is no run of wandb: it has no {name}()"
                raise TypeError(message)
        self._run = run
        self._reopen = reopen
        self._is_ours = False
        self._last_step = 0
        self._held_until = 0
        self._told = False

    @property
    def run(self) -> Any:
        """The run that is recorded to now."""
        return self._run

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Record *values* at *step*, unless the run is past it."""
        if step >= self._held_until:
            self._run.log(dict(values), step=step)
            self._last_step = step

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Add *params* to the run's config."""
        self._run.config.update(dict(params), allow_val_change=True)

    def log_artifact(self, path: Path) -> None:
        """Upload the file *path* to the run's files, under its name."""
        name = glob.escape(str(path))
        self._run.save(name, base_path=str(path.parent), policy="now")

    def rewind(self, step: int) -> None:
        """Go back as far as is possible; see the class."""
        reached = max(self._last_step, self._reached_there())
        # The next step may be that of the run's last values: these are replaced.
        if reached <= step + 1:
            return
        if self._reopen is not None:
            self._run.finish()
            self._run = self._reopen(step)
            self._is_ours = True
            self._last_step, self._held_until = step, 0
            return
        self._held_until = max(reached, self._held_until)
        if not self._told:
            self._told = True
            message = (
                f"a run of Weights & Biases that is open cannot be rewound to step {step}: "
                f"it keeps what it has up to step {reached}, and the steps up to there are "
                "not sent again; see WandbTracker for what to do about it"
            )
            warnings.warn(message, UserWarning, stacklevel=2)

    def close(self) -> None:
        """Finish the run if it was reopened here."""
        if self._is_ours:
            self._run.finish()
            self._is_ours = False

    def _reached_there(self) -> int:
        """Return the lowest step the run takes, as for one resumed from another process."""
        step = getattr(self._run, "step", 0)
        return step if isinstance(step, int) else 0
