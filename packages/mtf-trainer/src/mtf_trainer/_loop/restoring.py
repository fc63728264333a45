"""Taking a saved state over into a run: checked, fitted to the processes of now, loaded."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric

from mtf_trainer._data.source import Source
from mtf_trainer._loop.capture import Objects
from mtf_trainer._loop.form import locals_of, read_resume, reading
from mtf_trainer._loop.loop_state import LoopState, local_for
from mtf_trainer._loop.run import Run
from mtf_trainer.config import GenericTrainerConfig
from mtf_trainer.errors import CheckpointMismatchError, CheckpointWarning, DataError
from mtf_trainer.state import LocalState, ResumeState, RNGState

__all__ = ["Restoring", "layout_of"]


class Restoring:
    """Puts states back into one run.

    Args:
        config: The settings.
        fabric: Launched.
        at: Where the loop stands; changed.
        objects: Likewise.
    """

    def __init__(
        self,
        config: GenericTrainerConfig,
        fabric: Fabric,
        at: LoopState,
        objects: Objects,
    ) -> None:
        self._config = config
        self._fabric = fabric
        self._at = at
        self._objects = objects

    def restore(
        self, run: Run, place: Path, content: Mapping[str, Any], own: LocalState | None
    ) -> tuple[int, RNGState]:
        """Take over *content*, found at *place*.

        Args:
            run: Its sources, guard and trackers take over theirs.
            place: For errors.
            content: With the parts of all processes.
            own: This process's own part, where it is not among those.

        Returns:
            The size of the file of metrics at that time, and where this process's random
            streams belong.

        Raises:
            CheckpointError: If it does not fit, or is malformed; it names the entry.
            DataError: If the data cannot go on from it.
        """
        fabric, at = self._fabric, self._at
        resume = read_resume(place, content)
        self._objects.check(place, content)
        self._check_layout(run, place, resume, content["layout"])
        same_number = content["world_size"] == fabric.world_size
        if own is None:
            parts = locals_of(place, content, content["world_size"])
            if not same_number:
                self._warn_of_processes(place, len(parts))
            with reading(place, "locals"):
                own = local_for(
                    parts, fabric.global_rank, fabric.world_size, self._config.seed
                )
                with _telling(place, "train_cursor"):
                    cursors = [part.train_cursor for part in parts]
                    own.train_cursor = _adopt(run.train, cursors)
                with _telling(place, "val_cursor"):
                    cursors = [part.val_cursor for part in parts]
                    own.val_cursor = _adopt(run.val, cursors)
        for name, missing in (
            ("grads", resume.train.window_batches > 0 and own.grads is None),
            ("train_cursor", resume.train.batch_idx > 0 and own.train_cursor is None),
        ):
            if missing:
                problem = "is none, and the state is inside of an epoch"
                raise CheckpointMismatchError(place, f"locals.{name}", problem)
        with reading(place, "guard"):
            run.guard.load_state_dict(content["guard"])
        self._objects.load(content, place)
        with reading(place, "locals"):
            at.load(resume, content, own, fabric)
        self._objects.load_local(place, own, same_number=same_number)
        run.trackers.rewind(at.global_step)
        return int(content["metrics_bytes"]), own.rng

    def _check_layout(
        self, run: Run, place: Path, resume: ResumeState, saved: Mapping[str, Any]
    ) -> None:
        inside = resume.train.batch_idx > 0
        for name, value in layout_of(run, self._config.seed).items():
            before = saved.get(name, value)
            if before == value:
                continue
            if inside:
                problem = (
                    f"was {before} and is {value}: the rest of an epoch needs what its "
                    "beginning had"
                )
                raise CheckpointMismatchError(place, f"layout.{name}", problem)
            if self._fabric.is_global_zero:
                message = f"{place}: {name} was {before} and is {value} from here on"
                warnings.warn(message, CheckpointWarning, stacklevel=4)

    def _warn_of_processes(self, place: Path, before: int) -> None:
        if self._fabric.is_global_zero:
            message = (
                f"{place} was written by {before} processes and is continued by "
                f"{self._fabric.world_size}: the order of samples is the same, what "
                "processes draw from their own streams is not"
            )
            warnings.warn(message, CheckpointWarning, stacklevel=4)


def layout_of(run: Run, seed: int) -> dict[str, int | str]:
    """Return what must not differ inside an epoch, by name."""
    return {**run.train.layout(), "seed": seed}


@contextmanager
def _telling(place: Path, key: str) -> Iterator[None]:
    """Name the place in errors of the data."""
    try:
        yield
    except DataError as error:
        message = f"{place}: locals.{key}: {error}"
        raise DataError(message) from error


def _adopt(source: Source | None, cursors: list[Any]) -> Any:
    present = [cursor for cursor in cursors if cursor is not None]
    if source is None or len(present) < len(cursors) or not present:
        return None
    return source.adopt(present)
