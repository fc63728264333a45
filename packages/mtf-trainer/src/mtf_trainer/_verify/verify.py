"""Proof that a run's checkpoints are what was written, each trained from the one before.

`verify` trusts nothing it reads: neither the ledger, nor the checkpoints, which are
loaded without running any code, nor the metrics. What it proves is that all of these fit
each other. Whoever can write all of them can make another run that fits as well: keep the
last digest of a run elsewhere to tell the two apart.
"""

from __future__ import annotations

import os
import pickle
import re
import stat
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mtf_trainer._saving.content import check_digest, load_content
from mtf_trainer._saving.encryption import Keyring
from mtf_trainer._saving.files import LATEST, checkpoint_name, checkpoints_in
from mtf_trainer._saving.ledger import LEDGER, is_epoch_end, plain_values
from mtf_trainer._saving.sharded import load_certified
from mtf_trainer._verify.chain import Chain, Link, Problem, read_chain
from mtf_trainer.certificate import PARTS, Certificate, MetricsDigest, check
from mtf_trainer.config import CheckpointSettings
from mtf_trainer.errors import MetricsFileError, MtfTrainerError, VerificationError

__all__ = ["Report", "Row", "load_checkpoint", "metrics_bytes_of", "verify"]

_FORBIDDEN = re.compile(r"\bGLOBAL ([\w.]+)")

State = Literal["whole", "gone", "bad"]


@dataclass(kw_only=True, slots=True)
class Row:
    """A save, and what is left of it.

    Args:
        number: Its line in the ledger; None for a checkpoint that has none.
        name: File name of the checkpoint.
        global_step: Optimizer steps taken; None where only the name is known.
        parent: Line of the checkpoint it was trained from; None for the beginning.
        state: ``"gone"`` if it is not on disk: deleted, replaced by a later one of its
            name, or cut off before it got there.
        differing: Which parts are not what was certified.
        digest: That of its certificate; None if it has none.
    """

    number: int | None
    name: str
    global_step: int | None
    parent: int | None
    state: State
    differing: tuple[str, ...] = ()
    digest: str | None = None


@dataclass(kw_only=True, slots=True)
class Report:
    """What `verify` found.

    Args:
        rows: All saves, in order.
        problems: Why the run is not whole.
        notes: What is as it may be, and worth to know.
        metrics_checked: Bytes of the metrics that are what was certified.
    """

    rows: list[Row] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    metrics_checked: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether there is no problem."""
        return not self.problems

    @property
    def on_disk(self) -> list[Row]:
        """The saves that are whole, and there."""
        return [row for row in self.rows if row.state == "whole"]

    def add(self, place: str, what: str) -> None:
        """Add a problem."""
        self.problems.append(Problem(place, what))


def verify(run_dir: Path, settings: CheckpointSettings) -> Report:
    """Check all that is left of the run in *run_dir*.

    Args:
        run_dir: The folder of the run.
        settings: Name the keys of encrypted checkpoints.

    Raises:
        VerificationError: If there is nothing to check.
    """
    folder = run_dir / "checkpoints"
    if not checkpoints_in(folder) and not os.path.lexists(folder / LEDGER):
        message = f"{run_dir} is no folder of a run that has saved a checkpoint"
        raise VerificationError(message)
    report = Report()
    try:
        chain = read_chain(folder / LEDGER)
    except OSError as error:
        chain = Chain()
        report.add(LEDGER, f"cannot be read: {error.strerror or error}")
    report.problems += chain.problems
    if chain.is_torn:
        report.notes.append(
            f"the last line of {LEDGER} is cut short: a save was cut off there, and "
            "nothing was lost but that save"
        )
    report.rows = _trace(chain.links, report)
    links = {link.number: link for link in chain.links}
    sizes: dict[int, int] = {}
    for path in reversed(checkpoints_in(folder)):
        found = _examine(path, settings, chain.links)
        if found.problem is None or os.path.lexists(path):  # else it was deleted just now
            _enter(report, path, found)
        if found.problem is None and found.number is not None:
            sizes[found.number] = found.metrics_bytes
    _check_metrics(run_dir / "metrics.jsonl", links, sizes, report)
    _check_latest(folder, report)
    return report


def metrics_bytes_of(content: Mapping[str, Any]) -> int:
    """Return how long the file of metrics was; 0 if *content* does not say.

    Raises:
        ValueError: If what it says is no length.
    """
    size = content.get("metrics_bytes", 0)
    if type(size) is not int or size < 0:
        message = "does not say how long the file of metrics was"
        raise ValueError(message)
    return size


def load_checkpoint(path: Path, settings: CheckpointSettings) -> dict[str, Any]:
    """Return the content of *path*, if its digest is right. Runs no code from it.

    That of a sharded model has digests, which were checked, in place of its tensors.

    Raises:
        VerificationError: If it cannot be loaded; it says why.
    """
    mode = path.lstat().st_mode if os.path.lexists(path) else stat.S_IFREG
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        message = "is not a file"
        raise VerificationError(message)
    try:
        if stat.S_ISDIR(mode):
            return load_certified(path)
        check_digest(path)
        with warnings.catch_warnings(action="ignore"):
            return load_content(path, Keyring.from_settings(settings))
    except MtfTrainerError as error:
        told = getattr(error, "problem", None) or str(error).removeprefix(f"{path}: ")
        if (place := getattr(error, "path", path)) != path:
            told = f"{place.name}: {told}"
        if isinstance(error.__cause__, pickle.UnpicklingError):
            # torch's own message goes on to tell how to run it all the same.
            told = "holds more than plain data, or is damaged"
            if named := _FORBIDDEN.search(str(error.__cause__)):
                told = f"is refused: it names {named[1]}, which is no plain data"
        raise VerificationError(told) from error
    except (OSError, MemoryError) as error:
        message = f"cannot be loaded: {type(error).__name__}: {error}"
        raise VerificationError(message) from error


def _trace(links: list[Link], report: Report) -> list[Row]:
    """Follow each line to its parent."""
    lines: dict[str, int] = {}
    rows = []
    for previous, link in zip([None, *links], links, strict=False):
        place = f"{LEDGER}, line {link.number}"
        certificate = link.certificate
        parent = None
        if not certificate.is_consistent:
            report.add(place, "its digest does not follow from its parts")
        if certificate.parent is not None:
            parent = lines.get(certificate.parent)
            if parent is None:
                report.add(place, "its parent is no line before it: the chain has a gap")
            elif previous is not None and parent != lines[previous.certificate.digest]:
                report.notes.append(
                    f"line {link.number} goes on from line {parent}, not from the one "
                    "before it: the run was taken up again there"
                )
        elif previous is not None:
            report.notes.append(
                f"line {link.number} has no parent: the run was begun again there"
            )
        lines[certificate.digest] = link.number
        rows.append(
            Row(
                number=link.number,
                name=link.name,
                global_step=link.global_step,
                parent=parent,
                state="gone",
                digest=certificate.digest,
            )
        )
    return rows


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    """What one checkpoint is, and the line it belongs to."""

    problem: str | None = None
    number: int | None = None
    differing: tuple[str, ...] = ()
    metrics_bytes: int = 0


def _examine(path: Path, settings: CheckpointSettings, links: list[Link]) -> _Found:
    # A save that was cut off before its checkpoint took its name leaves a line of the
    # same name behind that of the one which is still there.
    named = [link for link in reversed(links) if link.name == path.name]
    newest = named[0].number if named else None
    try:
        content = load_checkpoint(path, settings)
        own = _own_certificate(content)
        differing = check(content, own)
        size = metrics_bytes_of(content)
    except (VerificationError, TypeError, ValueError) as error:
        return _Found(problem=str(error), number=newest)
    line = next((link for link in named if link.certificate == own), None)
    number = None if line is None else line.number
    problem = None
    if differing:
        problem = f"is not what was certified: {_listed(differing)}"
    elif not named:
        problem = "has no line in the ledger"
    elif line is None:
        differing = _differing(own, named[0].certificate)
        problem = f"is not what line {newest} says: {_listed(differing)}"
    elif differing := _misjudged(line, content):
        problem = f"is not what line {number} says: {_listed(differing)}"
    elif _name_of(content) != path.name:
        problem = (
            f"holds what should have the name {_name_of(content) or 'of no checkpoint'}"
        )
    return _Found(
        problem=problem,
        number=newest if number is None else number,
        differing=differing,
        metrics_bytes=size,
    )


def _own_certificate(content: Mapping[str, Any]) -> Certificate:
    if "certificate" not in content:
        message = "holds no certificate"
        raise ValueError(message)
    return Certificate.from_plain(content["certificate"])


def _name_of(content: Mapping[str, Any]) -> str | None:
    """Return the file name for the place where the run stood, if *content* tells it."""
    resume = content.get("resume")
    if not isinstance(resume, Mapping):
        return None
    epoch, step = resume.get("epoch"), resume.get("global_step")
    if type(epoch) is not int or type(step) is not int:
        return None
    return checkpoint_name(epoch, step)


def _misjudged(line: Link, content: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the entries of *line* for retention that do not follow from *content*."""
    try:
        values = plain_values(content.get("metrics", {}))
    except (AttributeError, TypeError, ValueError, OverflowError):
        values = None
    told = {"is_epoch_end": line.is_epoch_end, "values": line.values}
    true = {"is_epoch_end": is_epoch_end(content), "values": values}
    return tuple(
        name
        for name, value in true.items()
        if type(told[name]) is not type(value) or told[name] != value
    )


def _differing(one: Certificate, other: Certificate) -> tuple[str, ...]:
    return tuple(
        part for part in PARTS if getattr(one, part) != getattr(other, part)
    ) or ("digest",)


def _listed(parts: tuple[str, ...]) -> str:
    return f"{', '.join(parts)} {'differs' if len(parts) == 1 else 'differ'}"


def _enter(report: Report, path: Path, found: _Found) -> None:
    """Put what was found into the report's row for it."""
    row = next((r for r in report.rows if r.number == found.number), None)
    if found.number is None or row is None:
        row = Row(number=None, name=path.name, global_step=None, parent=None, state="bad")
        report.rows.append(row)
    row.state = "whole" if found.problem is None else "bad"
    row.differing = found.differing
    if found.problem is not None:
        report.add(path.name, found.problem)


def _check_metrics(
    path: Path, links: Mapping[int, Link], sizes: Mapping[int, int], report: Report
) -> None:
    """Compare the metrics with what the newest checkpoint and those before it say."""
    if not sizes:
        return
    rows = {row.number: row for row in report.rows}
    number: int | None = max(sizes)
    branch = []
    while number is not None:
        branch.append(number)
        number = rows[number].parent
    reader = MetricsDigest(path)
    for number in sorted(set(branch) & set(sizes), key=lambda each: sizes[each]):
        link, size = links[number], sizes[number]
        if link.certificate.metrics is None:
            continue
        try:
            digest = reader.up_to(size)
        except MetricsFileError as error:
            report.add(path.name, f"{error.problem}, as {link.name} says")
            return
        if digest != link.certificate.metrics:
            what = f"its first {size} bytes are not those that {link.name} was saved with"
            report.add(path.name, what)
            return
        report.metrics_checked = size


def _check_latest(folder: Path, report: Report) -> None:
    """See that the link to the newest checkpoint points to a good one."""
    good = [row.name for row in report.on_disk]
    try:
        target = str((folder / LATEST).readlink())
    except FileNotFoundError:
        if len(good) > 1:
            report.add(LATEST, "is missing")
        elif good:
            report.notes.append(f"{LATEST} is missing: the next save makes it")
        return
    except OSError:
        report.add(LATEST, "is no link")
        return
    if target not in good:
        report.add(LATEST, "does not point to a checkpoint here that is whole")
    elif target != good[-1]:
        report.notes.append(f"{LATEST} points to {target}, which is not the newest")
