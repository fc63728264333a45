"""Where a run's states lie: one file each, or a folder that all processes write.

A `Storage` writes and finds checkpoints, and brings a state into the form that a snapshot
in shared memory has. What it takes is the content as one process has it: what all have in
common, and under ``locals`` this process's own part. What it gives back has the parts of
all. Which of the two is used follows from how the model is kept: see `storage_for`.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, cast

from lightning.fabric import Fabric
from torch.distributed.tensor import DTensor

from mtf_trainer._loop.capture import Objects
from mtf_trainer._loop.form import read_resume
from mtf_trainer._ranks.collectives import gather, on_rank_zero
from mtf_trainer._ranks.sharding import is_sharded
from mtf_trainer._saving.commit import Marker
from mtf_trainer._saving.files import Fault, checkpoint_name, no_fault
from mtf_trainer._saving.folder_saver import FolderSaver
from mtf_trainer._saving.sharded import load_sharded, save_sharded
from mtf_trainer._saving.spread import (
    as_spread,
    check_places,
    put_in,
    spread_in,
    take_out,
)
from mtf_trainer.checkpoint import CheckpointManager, Saved
from mtf_trainer.config import CheckpointSettings
from mtf_trainer.errors import (
    CheckpointDamagedError,
    CheckpointMismatchError,
    CheckpointWarning,
    CheckpointWriteError,
)

__all__ = ["Folders", "OneFile", "Storage", "storage_for"]

Found = tuple[Path, dict[str, Any]]


class Storage(Protocol):
    """Keeps the states of one run. All processes have one."""

    needs_all: bool
    """Whether each process's snapshot is to hold more than its own part."""

    def prepare(self) -> None:
        """Make the folder, and put in order what an interrupted save left.

        Called in the first process, and `close` after it.

        Raises:
            MtfTrainerError: If checkpoints cannot be written there.
        """

    def close(self) -> None:
        """Finish what is being written.

        Raises:
            CheckpointWriteError: If that fails.
        """

    def save(
        self,
        content: Mapping[str, Any],
        *,
        epoch: int,
        global_step: int,
        metrics: Mapping[str, float],
        wait: bool,
    ) -> None:
        """Write a checkpoint; *wait* until it is proven. All processes call it together.

        Raises:
            CheckpointWriteError: In all processes, if it cannot be written.
        """

    def newest(self) -> Found | None:
        """Return the newest good checkpoint, in all processes, which call it together.

        Damaged ones are passed over with a warning.

        Raises:
            CheckpointError: In all processes, if none can be used, or it does not fit.
        """

    def finished(self, *, wait: bool) -> list[Saved]:
        """Return what was saved since this last told. Called in the first process.

        Raises:
            CheckpointWriteError: If a write failed, and that is to stop.
        """

    def pack(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Return *content* as a snapshot of this process has it; nothing is copied."""

    def unpack(self, place: Path, packed: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the content that was *packed*, found at *place*.

        None if it was packed by another number of processes, and so is in pieces.

        Raises:
            CheckpointMismatchError: If it does not fit.
        """

    def rescue(self, packed: Mapping[str, Any]) -> None:
        """Write a checkpoint of a snapshot, if one process has all that is in it.

        Raises:
            CheckpointWriteError: If that fails.
        """


def storage_for(
    folder: Path, settings: CheckpointSettings, fabric: Fabric, objects: Objects
) -> Storage:
    """Return the storage for how the model of *objects* is kept."""
    if is_sharded(fabric):
        return Folders(folder, settings, fabric, objects, fault=no_fault)
    return OneFile(folder, settings, fabric)


class OneFile:
    """One file for all, by the first process; for models that each process has whole.

    Args:
        folder: Where they lie.
        settings: See there.
        fabric: Launched.
    """

    needs_all = False

    def __init__(
        self, folder: Path, settings: CheckpointSettings, fabric: Fabric
    ) -> None:
        self._fabric = fabric
        self._manager = CheckpointManager(folder, settings)
        self.prepare = self._manager.prepare
        self.close = self._manager.close

    def save(
        self,
        content: Mapping[str, Any],
        *,
        epoch: int,
        global_step: int,
        metrics: Mapping[str, float],
        wait: bool,
    ) -> None:
        """See `Storage`."""
        parts = gather(self._fabric, content["locals"])

        def write() -> None:
            self._manager.save(
                {**content, "locals": parts},
                epoch=epoch,
                global_step=global_step,
                metrics=metrics,
                wait=wait,
            )

        on_rank_zero(self._fabric, write)

    def newest(self) -> Found | None:
        """See `Storage`: the first process chooses, all load it."""
        content: dict[str, Any] = {}

        def choose() -> Path | None:
            found = self._manager.load_newest()
            if found is None:
                return None
            content.update(found[1])
            return found[0]

        path = on_rank_zero(self._fabric, choose)
        if path is None:
            return None
        return path, content or self._manager.load(path)

    def finished(self, *, wait: bool) -> list[Saved]:
        """See `Storage`."""
        return self._manager.wait() if wait else self._manager.poll()

    def pack(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """See `Storage`."""
        return {**content, "locals": [content["locals"]]}

    def unpack(self, place: Path, packed: Mapping[str, Any]) -> dict[str, Any] | None:
        """See `Storage`."""
        if "pieces" in packed["locals"][0]:
            problem = "is spread over processes, and this run's is not"
            raise CheckpointMismatchError(place, "model", problem)
        return dict(packed)

    def rescue(self, packed: Mapping[str, Any]) -> None:
        """See `Storage`."""
        if self._fabric.world_size == 1:
            self._manager.save(
                packed,
                epoch=packed["resume"]["epoch"],
                global_step=packed["resume"]["global_step"],
                metrics=packed["metrics"],
                wait=True,
            )


class Folders:
    """A folder for each checkpoint, by all processes; for models spread over them.

    Training waits while one is written. A snapshot holds the pieces of its process, and
    is of use to as many processes only.

    Args:
        folder: Where they lie, where all processes can see them.
        settings: See there.
        fabric: Launched.
        objects: Whose tensors are loaded into.
        fault: See `mtf_trainer._saving.saver.Saver`.
    """

    needs_all = True

    def __init__(
        self,
        folder: Path,
        settings: CheckpointSettings,
        fabric: Fabric,
        objects: Objects,
        *,
        fault: Fault = no_fault,
    ) -> None:
        self._folder = folder
        self._settings = settings
        self._fabric = fabric
        self._objects = objects
        self._fault = fault
        self._manager = CheckpointManager(folder, replace(settings, asynchronous=False))
        self._parent: str | None = None
        self._saver: FolderSaver | None = None
        self._finished: list[Saved] = []

    def prepare(self) -> None:
        """See `Storage`."""
        self._manager.prepare()

    def close(self) -> None:
        """See `Storage`: nothing is ever under way."""

    def save(
        self,
        content: Mapping[str, Any],
        *,
        epoch: int,
        global_step: int,
        metrics: Mapping[str, float],
        wait: bool,  # noqa: ARG002 - it always does
    ) -> None:
        """See `Storage`."""
        began_s = time.monotonic()

        def finish(whole: dict[str, Any], marker: Marker) -> Saved:
            if self._saver is None:
                self._saver = FolderSaver(
                    self._folder, self._settings, parent=self._parent, fault=self._fault
                )
            return self._saver.finish(
                whole, marker, epoch=epoch, global_step=global_step, metrics=metrics
            )

        try:
            path = self._folder / checkpoint_name(epoch, global_step)
            saved = save_sharded(path, content, finish)
        except CheckpointWriteError as error:
            if self._settings.on_write_error == "stop":
                raise
            self._warn(str(error))
            return
        if self._fabric.is_global_zero:
            seconds = time.monotonic() - began_s
            self._finished.append(replace(saved, seconds=seconds))
        for message in saved.warnings:
            self._warn(message)

    def newest(self) -> Found | None:
        """See `Storage`."""
        paths = on_rank_zero(
            self._fabric, lambda: [(p, p.is_file()) for p in self._manager.list()]
        )
        for path, is_file in paths:
            if is_file:
                problem = "was saved whole, and this run's is spread over the processes"
                raise CheckpointMismatchError(path, "model", problem)
            try:
                content = load_sharded(path, lambda c: self._targets(path, c))  # noqa: B023 - called at once
            except CheckpointDamagedError as error:
                self._warn(f"passed over a damaged checkpoint: {error}")
                continue
            self._parent = content.get("certificate", {}).get("digest")
            self._saver = None
            return path, content
        if paths:
            problem = (
                f"none of its {len(paths)} checkpoints can be used; "
                "repair one, or move them away to start from the beginning"
            )
            raise CheckpointDamagedError(self._folder, problem)
        return None

    def finished(self, *, wait: bool) -> list[Saved]:  # noqa: ARG002 - one form for both
        """See `Storage`."""
        saved, self._finished = self._finished, []
        return saved

    def pack(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """See `Storage`."""
        spread: dict[str, DTensor] = {}
        packed: dict[str, Any] = take_out(dict(content), spread, {})
        pieces = {place: tensor.to_local() for place, tensor in spread.items()}
        return {**packed, "locals": [{**packed["locals"], "pieces": pieces}]}

    def unpack(self, place: Path, packed: Mapping[str, Any]) -> dict[str, Any] | None:
        """See `Storage`."""
        if packed.get("world_size") != self._fabric.world_size:
            return None
        content: dict[str, Any] = as_spread(place, dict(packed))
        own = dict(content["locals"][0])
        if "pieces" not in own:
            problem = "is whole, and this run's is spread over the processes"
            raise CheckpointMismatchError(place, "model", problem)
        pieces = own.pop("pieces")
        content["locals"] = [own]
        tensors = self._targets(place, content)
        check_places(place, content, tensors)
        targets = {e.place: tensors[e.place].to_local() for e in spread_in(content)}
        for name, local in targets.items():
            if local.shape != pieces[name].shape:
                problem = "is cut into other pieces than this run's"
                raise CheckpointMismatchError(place, name.strip("/"), problem)
        for name, local in targets.items():
            local.copy_(pieces[name])
        return cast(dict[str, Any], put_in(content, tensors))

    def rescue(self, packed: Mapping[str, Any]) -> None:
        """See `Storage`: what one process has is pieces."""

    def _targets(self, path: Path, content: dict[str, Any]) -> dict[str, DTensor]:
        read_resume(path, content)
        self._objects.check(path, content)
        return self._objects.targets(path, spread_in(content))

    def _warn(self, message: str) -> None:
        if self._fabric.is_global_zero:
            warnings.warn(message, CheckpointWarning, stacklevel=5)
