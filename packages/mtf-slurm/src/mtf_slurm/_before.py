"""What a submission writes over in experiments' folders, to be put back if Slurm refuses it.

An experiment whose last job has ended keeps that job where another is refused: then its
config, and what is recorded of its code, are of that job, which may be requeued.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from mtf_slurm.git.provenance import CODE_NAME, SUBMISSION_NAME

__all__ = ["Before"]

_CONFIG = "config.yaml"
_NAMES = (_CONFIG, CODE_NAME, SUBMISSION_NAME)


class Before:
    """Files of experiments as they were.

    Args:
        folder: Of the experiments.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, dict[str, bytes]] = {}
        self._written: dict[str, bytes] = {}

    def note(self, names: Iterable[str]) -> None:
        """Read the files of experiments that have had a job."""
        for name in names:
            self._files[name] = {}
            for file in _NAMES:
                with suppress(OSError):
                    path = self._folder / name / file
                    self._files[name][file] = path.read_bytes()

    def wrote(self, configs: Mapping[str, str]) -> None:
        """Note which configs are written over them; others are users' own."""
        self._written = {name: text.encode() for name, text in configs.items()}

    def put_back(self, names: Iterable[str]) -> None:
        """Write them as they were, as far as that can be done."""
        for name in names:
            for file, data in self._files.get(name, {}).items():
                path = self._folder / name / file
                aside = path.with_name(f".{file}.{os.getpid()}")
                try:
                    there = path.read_bytes()
                    is_ours = file != _CONFIG or there == self._written.get(name)
                    if there != data and is_ours:
                        aside.write_bytes(data)
                        aside.replace(path)
                except OSError:
                    with suppress(OSError):
                        aside.unlink()
