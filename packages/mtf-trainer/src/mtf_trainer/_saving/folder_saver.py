"""The end of a save of a checkpoint that is a folder, in the first process.

All processes have written their files beside the folder's name, and brought them to the
disk. What is left is what `mtf_trainer._saving.saver` does for a file, in the same order: the
certificate, the part that all have in common, the marker; the line in the ledger; the
name. Then the link, and older ones go. A kill at any moment leaves folders that are whole,
and such as have names that no checkpoint has.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtf_trainer._saving.commit import MARKER, SHARED, Marker
from mtf_trainer._saving.files import aside_of, create, flush, replaced_by, sync_folder
from mtf_trainer._saving.saver import Saved, Saver
from mtf_trainer._saving.sharded import write_part

if TYPE_CHECKING:
    from mtf_trainer.certificate import Certificate

__all__ = ["FolderSaver"]


class FolderSaver(Saver):
    """Finishes the checkpoints of one run; its arguments are those of `Saver`."""

    _marker: Marker

    def finish(
        self,
        content: Mapping[str, Any],
        marker: Marker,
        *,
        epoch: int,
        global_step: int,
        metrics: Mapping[str, float],
    ) -> Saved:
        """Prove what was written, give it its name, and delete what is too old.

        Args:
            content: All of it, with digests in place of spread tensors.
            marker: Of all files but ``shared.pt``.
            epoch: Epochs finished.
            global_step: Optimizer steps taken.
            metrics: The last ones.

        Raises:
            CheckpointWriteError: As `Saver.save`.
        """
        self._marker = marker
        return self.save(content, epoch=epoch, global_step=global_step, metrics=metrics)

    def _write(
        self,
        path: Path,
        content: Mapping[str, Any],
        row: Mapping[str, Any],
        certificate: Certificate,
    ) -> None:
        aside, marker = aside_of(path), self._marker
        self._fault("certified")
        shared = {key: value for key, value in content.items() if key != "locals"}
        shared["certificate"] = certificate.to_plain()
        digest = write_part(aside / SHARED, marker.moment, shared)
        self._fault("written")
        marker = replace(marker, files={**marker.files, SHARED: digest})
        with create(aside / MARKER) as file:
            file.write(marker.to_json().encode())
            self._fault("marked")
            flush(file)
        sync_folder(aside)
        self._fault("proven")
        self._ledger.append([row])
        self._fault("in the ledger")
        old = replaced_by(path)
        if os.path.lexists(path):
            # A folder can take the place of none but an empty one.
            path.rename(old)
            self._fault("out of the way")
        aside.rename(path)
        self._fault("renamed")
        sync_folder(self._folder)
        self._parent = certificate.digest
        self._trust(path)
        self._fault("in place")
        shutil.rmtree(old, ignore_errors=True)

    def _delete(self, path: Path) -> bool:
        """Delete *path*, which is no checkpoint any more at whatever moment that stops."""
        if not path.is_dir():
            return super()._delete(path)
        aside = aside_of(path)
        try:
            path.rename(aside)
            self._fault("deleting")
            shutil.rmtree(aside)
        except OSError:
            return False
        return True
