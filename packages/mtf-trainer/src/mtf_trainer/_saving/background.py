"""Writing while training goes on: shared memory, and a process that writes from it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from mtf_trainer._saving.saver import Saved
from mtf_trainer.config import CheckpointSettings, SnapshotSettings
from mtf_trainer.errors import CheckpointWriteError

__all__ = ["Area", "Background", "StartWriter", "Writer", "area_of"]


class Area(Protocol):
    """Shared memory that whole contents are copied into."""

    def put(self, content: Mapping[str, Any], *, epoch: int, global_step: int) -> Any:
        """Copy *content*, and return where it lies now.

        Raises:
            SnapshotError: If there is not the memory.
        """

    def release(self, segment: Any) -> None:
        """Take back what `put` returned."""

    def remove(self) -> None:
        """Give all the memory back."""


class Writer(Protocol):
    """Writes what lies in shared memory, in a process of its own."""

    def submit(
        self, segment: Any, *, epoch: int, global_step: int, metrics: Mapping[str, float]
    ) -> None:
        """Begin to write *segment*, which stays as it is until `poll` tells the end."""

    def poll(self) -> list[Saved | CheckpointWriteError]:
        """Return what came of those that are finished, each once."""

    def wait(self) -> object:
        """Return once all that were submitted are finished."""

    def close(self) -> None:
        """End the process."""


StartWriter = Callable[[Path, CheckpointSettings, str | None], Writer]


class Background:
    """One write at a time in a process that is started when first needed.

    Args:
        folder: Where the checkpoints lie.
        settings: For the process that writes.
        area: Shared memory; by default one of the folder's own, given back by `close`.
        start_writer: Makes the process.
    """

    def __init__(
        self,
        folder: Path,
        settings: CheckpointSettings,
        area: Area | None,
        start_writer: StartWriter | None,
    ) -> None:
        self._folder = folder
        self._settings = settings
        self._area = area
        self._owns_area = area is None
        self._start_writer = start_writer or _start_writer
        self._writer: Writer | None = None
        self._segment: Any = None

    @property
    def is_started(self) -> bool:
        """Whether there is a process."""
        return self._writer is not None

    def prepare(self) -> None:
        """Give back what a training that was killed left in memory of the folder's own."""
        if self._owns_area:
            area_of(self._folder).remove()

    def submit(
        self,
        content: Mapping[str, Any],
        *,
        epoch: int,
        global_step: int,
        metrics: Mapping[str, float],
        parent: str | None,
    ) -> None:
        """Copy *content* and begin to write it; nothing must be under way.

        Raises:
            SnapshotError: If there is not the memory.
        """
        if self._area is None:
            self._area = area_of(self._folder)
        self._segment = self._area.put(content, epoch=epoch, global_step=global_step)
        if self._writer is None:
            self._writer = self._start_writer(self._folder, self._settings, parent)
        self._writer.submit(
            self._segment, epoch=epoch, global_step=global_step, metrics=metrics
        )

    def results(self, *, wait: bool) -> list[Saved | CheckpointWriteError]:
        """Return what came of the write under way, if it is finished."""
        if self._segment is None or self._writer is None:
            return []
        if wait:
            self._writer.wait()
        found = self._writer.poll()
        if found:
            self._release()
        return found

    def end_writer(self) -> None:
        """End the process; another has to be told what its checkpoints descend from."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._release()

    def close(self) -> None:
        """Give back process and memory; again is harmless."""
        self.end_writer()
        if self._owns_area and self._area is not None:
            self._area.remove()
            self._area = None

    def _release(self) -> None:
        if self._segment is not None and self._area is not None:
            self._area.release(self._segment)
        self._segment = None


def area_of(folder: Path) -> Area:
    """Return memory of *folder*'s own: what a kill left of it is found again."""
    from mtf_trainer._memory.shared_memory import SnapshotArea  # noqa: PLC0415 - when needed

    run_id = uuid.uuid5(uuid.NAMESPACE_URL, folder.absolute().as_uri()).hex
    return SnapshotArea(SnapshotSettings().folder, run_id, 0)


def _start_writer(
    folder: Path, settings: CheckpointSettings, parent: str | None
) -> Writer:
    from mtf_trainer._saving.writer import WriterProcess  # noqa: PLC0415 - when needed

    return WriterProcess(folder, settings, parent=parent)
