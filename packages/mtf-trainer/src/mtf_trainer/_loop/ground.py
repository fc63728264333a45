"""Whether the files of a run still are where it believes them to be.

A folder may be deleted under a run, or replaced by another run's. What is written then is
lost, or does harm: it is looked at before each save, and at the end.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtf_trainer._loop.run_dir import RunDir
from mtf_trainer._saving.files import checkpoints_in
from mtf_trainer._saving.ledger import Ledger
from mtf_trainer.config import CheckpointSettings
from mtf_trainer.errors import CheckpointWarning, CheckpointWriteError, MetricsFileError
from mtf_trainer.metrics import MetricsWriter

__all__ = ["Ground"]


class Ground:
    """The folder and the metrics of a run, in the first process; empty in others.

    Args:
        settings: Whether a lost folder stops the run.

    Attributes:
        folder: Of the run, as long as it is open.
        metrics: Likewise.
        is_lost: Whether it was told that the folder is lost, and the run goes on.
    """

    def __init__(self, settings: CheckpointSettings) -> None:
        self.folder: RunDir | None = None
        self.metrics: MetricsWriter | None = None
        self.is_lost = False
        self._settings = settings

    def check(self) -> None:
        """See that the folder is this run's.

        Raises:
            CheckpointWriteError: If not.
        """
        if self.folder is not None:
            self.folder.check()

    def look_at_chain(self, path: Path, content: Mapping[str, Any]) -> None:
        """Warn if the ledger beside *path*, which a run goes on from, is not whole.

        Raises:
            CheckpointWriteError: If it cannot be read.
        """
        ledger = Ledger(path.parent)
        try:
            problem = ledger.problem(content.get("certificate", {}).get("digest"))
        except OSError as error:
            told = f"cannot be read: {error.strerror or error}"
            raise CheckpointWriteError(ledger.path, told) from error
        if problem is not None:
            message = (
                f"{ledger.path} {problem}: the chain of certificates begins anew from "
                f"{path.name}, and verify does not find it whole before that"
            )
            warnings.warn(message, CheckpointWarning, stacklevel=6)

    def is_owned(self) -> bool:
        """Tell whether what is written still reaches the run's folder, and no other's.

        Called in the first process.

        Raises:
            CheckpointWriteError: If it was deleted or replaced, and that is to stop.
            MetricsFileError: If the file of metrics was, and the folder was not.
        """
        try:
            self.check()
        except CheckpointWriteError as error:
            if self._settings.on_write_error == "stop":
                raise
            if not self.is_lost:
                self.is_lost = True
                message = f"{error}; nothing more is written there"
                warnings.warn(message, CheckpointWarning, stacklevel=4)
            return False
        if self.metrics is not None:
            self.metrics.check()
        return True

    def let_go(self) -> bool:
        """Give up the metrics if the folder is lost and the run goes on; tell whether."""
        try:
            owned = self.is_owned()
        except (CheckpointWriteError, MetricsFileError):
            return False
        if not owned:
            self.metrics = None
        return not owned

    def newest_left(self, checkpoint: Path | None) -> Path | None:
        """Return the newest checkpoint that is still there, *checkpoint* or an older one.

        Raises:
            CheckpointWriteError: As `is_owned`.
            MetricsFileError: Likewise.
        """
        if not self.is_owned():
            return None
        if checkpoint is None or checkpoint.exists():
            return checkpoint
        message = f"{checkpoint} was deleted during the training"
        warnings.warn(message, CheckpointWarning, stacklevel=5)
        return next(iter(checkpoints_in(checkpoint.parent)), None)
