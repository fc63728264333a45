"""What is submitted, and what became of it.

Names, entry points and configs come from outside: they are checked here.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mtf_slurm.errors import SubmissionError

__all__ = [
    "NAME",
    "BatchSubmissionResult",
    "Experiment",
    "Submission",
    "checked_entry_point",
    "checked_name",
    "config_text",
    "dumped",
    "has_other_config",
    "told",
    "write_text",
]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SCRIPT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.-]*)*\.py")
_FUNCTION = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)


class Experiment(Protocol):
    """What is run once: named, and dumped to plain values."""

    @property
    def experiment_name(self) -> str:
        """Matches ``[A-Za-z0-9][A-Za-z0-9._-]{0,127}``."""

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """Return all values; with ``mode="json"`` such as JSON has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """What became of one experiment of a batch: a job, or the reason why not."""

    experiment_name: str
    job_id: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class BatchSubmissionResult:
    """One row for each experiment of a batch, in order.

    What failed can be submitted again with all the others: those that have a job keep it.
    """

    rows: tuple[Submission, ...]

    def __iter__(self) -> Iterator[Submission]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def job_ids(self) -> list[str]:
        """Of those that were submitted, in order."""
        return [row.job_id for row in self.rows if row.job_id is not None]

    @property
    def failed(self) -> list[Submission]:
        """The rows without a job."""
        return [row for row in self.rows if row.job_id is None]


def checked_name(name: object) -> str:
    """Return the name of an experiment.

    Raises:
        SubmissionError: If it is none.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        reason = (
            "this name is refused: at most 128 letters, digits, '.', '_' and '-', of which "
            "the first is a letter or a digit"
        )
        raise SubmissionError(repr(name), reason)
    return name


def checked_entry_point(name: str, entry_point: object) -> str | None:
    """Return what an experiment runs.

    Raises:
        SubmissionError: If it is neither a script nor a function.
    """
    if entry_point is None:
        return None
    text = entry_point if isinstance(entry_point, str) else ""
    is_script = _SCRIPT.fullmatch(text) or (text.startswith("/") and text.isprintable())
    is_function = _FUNCTION.fullmatch(text) is not None
    if is_function and re.split(r"[.:]", text)[0] in sys.stdlib_module_names:
        reason = f"entry_point is {text!r}, of Python itself: name a function of your own"
        raise SubmissionError(name, reason)
    if is_script or is_function:
        return text
    reason = (
        f"entry_point is {entry_point!r}: a script of the project, `train.py`, or "
        f"`package.module:function`"
    )
    raise SubmissionError(name, reason)


def dumped(experiment: Experiment) -> dict[str, Any]:
    """Return an experiment's config as plain values.

    Raises:
        SubmissionError: If it gives none.
    """
    try:
        values: object = experiment.model_dump(mode="json")
    except Exception as error:
        reason = f"its config cannot be dumped: {type(error).__name__}: {error}"
        raise SubmissionError(experiment.experiment_name, reason) from error
    if not isinstance(values, dict):
        reason = f"its config is dumped as {type(values).__name__}, which is no mapping"
        raise SubmissionError(experiment.experiment_name, reason)
    return values


def config_text(experiment: Experiment) -> str:
    """Return an experiment's config as JSON, which is YAML.

    Raises:
        SubmissionError: If JSON cannot hold it.
    """
    try:
        return json.dumps(dumped(experiment), indent=1, allow_nan=False) + "\n"
    except (TypeError, ValueError, RecursionError) as error:
        reason = f"its config is not what JSON can hold: {error}"
        raise SubmissionError(experiment.experiment_name, reason) from error


def write_text(folder: Path, name: str, text: str) -> None:
    """Write *text* as the config of the experiment *name*, into its folder; make that.

    Raises:
        SubmissionError: If it cannot be written; the one that was there stays.
    """
    # 10,000 experiments: a Path each is slow.
    path = f"{folder}/config.yaml"
    aside = f"{folder}/.config.{os.getpid()}"
    try:
        try:
            os.mkdir(folder)  # noqa: PTH102 -- as above
        except FileNotFoundError:
            folder.mkdir(parents=True)
        except FileExistsError:
            with suppress(FileNotFoundError):
                if Path(path).read_text(encoding="utf-8") == text:
                    return
        with open(aside, "w", encoding="utf-8") as file:  # noqa: PTH123 -- as above
            file.write(text)
        os.replace(aside, path)  # noqa: PTH105 -- as above
    except (OSError, UnicodeDecodeError) as error:
        with suppress(OSError):
            os.unlink(aside)  # noqa: PTH108 -- as above
        said = getattr(error, "strerror", None) or error
        reason = (
            f"{path} cannot be written: {said}; make room there, or see to its rights"
        )
        raise SubmissionError(name, reason) from error


def has_other_config(folder: Path, text: str) -> bool:
    """Tell whether the config that lies in an experiment's folder is surely not *text*."""
    try:
        there: object = json.loads((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False  # what is YAML is not read here
    return bool(there != json.loads(text))


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Say which file cannot be written, and what to do."""
    try:
        yield
    except OSError as error:
        reason = (
            f"cannot be written: {error.strerror or error}; make room there, or see to its "
            f"rights, and submit again"
        )
        raise SubmissionError(str(path), reason) from error
