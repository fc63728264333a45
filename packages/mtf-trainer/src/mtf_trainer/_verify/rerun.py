"""Replays: the steps between two checkpoints of a run, trained again and compared.

Each replay runs in a process of its own, ``python -m mtf_trainer._verify.rerun``, on a copy of
what the run had when it stood at the earlier checkpoint. The user's function builds the
trainer and calls ``fit`` there; `mtf_trainer._verify.replay.TARGET` makes it stop at the place
of the later one. Processes that Fabric launches for further ranks have the same command
line, and so the same target.
"""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtf_trainer._saving.files import digest_path
from mtf_trainer._saving.ledger import LEDGER
from mtf_trainer._verify.chain import Link, read_chain
from mtf_trainer._verify.differences import differences
from mtf_trainer._verify.replay import TARGET, Target
from mtf_trainer._verify.verify import Report, Row, load_checkpoint, metrics_bytes_of
from mtf_trainer.certificate import PARTS, Certificate, MetricsDigest
from mtf_trainer.config import CheckpointSettings
from mtf_trainer.errors import MetricsFileError, VerificationError

__all__ = ["NoFunctionError", "Replay", "is_function_name", "pairs", "replay"]

_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_GRACE_S = 60.0
_CANNOT_REPLAY = (VerificationError, MetricsFileError, OSError, TypeError, ValueError)
_COMPARED = tuple(part for part in PARTS if part != "parent")
_NO_FUNCTION = 69  # how the process of a replay exits that finds none


class NoFunctionError(ValueError):
    """There is no such function to replay with, or its module cannot be imported."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Replay:
    """What came of training again from *start* to *end*.

    Args:
        start: Name of the checkpoint that it began from.
        end: Name of the one that it is compared with.
        num_steps: Optimizer steps between them.
        seconds: What it took, the start of the process included.
        problem: Why there is nothing to compare.
        differing: Parts that are not the same, bit for bit.
        differences: The first entries that are not.
    """

    start: str
    end: str
    num_steps: int
    seconds: float = 0.0
    problem: str | None = None
    differing: tuple[str, ...] = ()
    differences: tuple[str, ...] = ()

    @property
    def is_equal(self) -> bool:
        """Whether all parts are the same."""
        return self.problem is None and not self.differing


def is_function_name(text: str) -> bool:
    """Tell whether *text* has the form ``module:function``.

    >>> is_function_name("my_project.train:main"), is_function_name("train.py")
    (True, False)
    """
    return _FUNCTION.fullmatch(text) is not None


def pairs(report: Report, start: str | None) -> list[tuple[Row, Row]]:
    """Return what can be replayed: saves, both on disk, and one trained from the other.

    Args:
        report: What `verify` found.
        start: By default each checkpoint and its parent; with the name of one, this and
            the nearest on disk that were trained from it.
    """
    rows = {row.number: row for row in report.rows if row.number is not None}
    whole = {number for number, row in rows.items() if row.state == "whole"}
    found = []
    for number in sorted(whole):
        parent = rows[number].parent
        while start is not None and parent is not None and parent not in whole:
            parent = rows[parent].parent
        if parent in whole and start in (None, rows[parent].name):
            found.append((rows[parent], rows[number]))
    return found


def replay(
    run_dir: Path,
    pair: tuple[Row, Row],
    function: str,
    settings: CheckpointSettings,
    timeout_s: float,
) -> Replay:
    """Train again from the first of *pair* to the second, and compare.

    Args:
        run_dir: The run; nothing in it is changed.
        pair: As `pairs` gives it.
        function: ``module:function``; called with the folder of the replayed run.
        settings: Name the keys of encrypted checkpoints.
        timeout_s: After so many seconds the replay is ended.

    Raises:
        NoFunctionError: If *function* cannot be found.
    """
    start, end = pair
    steps = (end.global_step or 0) - (start.global_step or 0)
    seconds = 0.0
    try:
        child = load_checkpoint(run_dir / "checkpoints" / end.name, settings)
        with tempfile.TemporaryDirectory(prefix="mtf-replay-") as folder:
            copy = Path(folder) / "run"
            _prepare(run_dir, copy, start, settings)
            target = Path(folder) / "target.json"
            target.write_text(json.dumps(Target.at(child["resume"]).place), "utf-8")
            began_s = time.monotonic()
            exit_code = _run([str(copy), str(target), function], timeout_s)
            seconds = time.monotonic() - began_s
            content = _newest(copy, start, settings, exit_code)
            differing = _compare(content, child)
            told = tuple(differences(content, child)) if differing else ()
    except NoFunctionError:
        raise
    except _CANNOT_REPLAY as error:
        return Replay(
            start=start.name,
            end=end.name,
            num_steps=steps,
            seconds=seconds,
            problem=str(error),
        )
    return Replay(
        start=start.name,
        end=end.name,
        num_steps=steps,
        seconds=seconds,
        differing=differing,
        differences=told,
    )


def _prepare(run_dir: Path, copy: Path, start: Row, settings: CheckpointSettings) -> None:
    """Make *copy* what the run was when it stood at *start*."""
    source, folder = run_dir / "checkpoints", copy / "checkpoints"
    folder.mkdir(parents=True)
    # An id of its own: with that of the run it would take, and give back, its snapshots.
    run_json = json.dumps({"run_id": uuid.uuid4().hex})
    (copy / "run.json").write_text(run_json + "\n", "utf-8")
    path = source / start.name
    if path.is_dir():
        shutil.copytree(path, folder / path.name)
    else:
        for each in (path, digest_path(path)):
            shutil.copyfile(each, folder / each.name)
    with (source / LEDGER).open("rb") as file, (folder / LEDGER).open("wb") as out:
        for _ in range(start.number or 0):
            out.write(file.readline())
    content = load_checkpoint(folder / start.name, settings)
    certified = Certificate.from_plain(content["certificate"]).metrics
    size, metrics = metrics_bytes_of(content), run_dir / "metrics.jsonl"
    if certified is None:
        return
    if MetricsDigest(metrics).up_to(size) != certified:
        message = (
            f"the metrics up to {start.name} are no longer there: the run went on from "
            "an older checkpoint since"
        )
        raise VerificationError(message)
    with metrics.open("rb") as file:
        (copy / metrics.name).write_bytes(file.read(size))


def _run(arguments: Sequence[str], timeout_s: float) -> int:
    """Run this module with *arguments*, and return how it exited."""
    command = [sys.executable, "-m", "mtf_trainer._verify.rerun", *arguments]
    # What the user's function prints must not get into what this command prints.
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=2) as process:
        try:
            exit_code = process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            message = f"it was not there after {timeout_s:g} seconds"
            raise VerificationError(message) from error
        finally:
            _end(process)
    if exit_code == _NO_FUNCTION:
        raise NoFunctionError(arguments[-1])
    return exit_code


def _end(process: subprocess.Popen[bytes]) -> None:
    """End *process*, if it is still there: first as a scheduler would."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()


def _newest(
    copy: Path, start: Row, settings: CheckpointSettings, exit_code: int
) -> dict[str, Any]:
    """Return the last checkpoint that the replay wrote."""
    folder = copy / "checkpoints"
    new: list[Link] = [
        link
        for link in read_chain(folder / LEDGER).links
        if link.number > (start.number or 0)
    ]
    if not new:
        message = (
            f"{start.name} was not trained on from: the function wrote no checkpoint in "
            f"the folder it was called with, and its process exited with {exit_code}"
        )
        raise VerificationError(message)
    return load_checkpoint(folder / new[-1].name, settings)


def _compare(content: Mapping[str, Any], child: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the parts in which two checkpoints differ."""
    ours, theirs = (
        Certificate.from_plain(each.get("certificate")) for each in (content, child)
    )
    return tuple(p for p in _COMPARED if getattr(ours, p) != getattr(theirs, p))


def _resolve(function: str) -> Callable[[Path], object]:
    module, _, name = function.partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    if not callable(found):
        message = f"{function} is no function"
        raise TypeError(message)
    return found  # type: ignore[no-any-return]


def main(arguments: Sequence[str]) -> None:
    """Call the user's function in this process, with the target set."""
    run_dir, target, function = arguments
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    place = json.loads(Path(target).read_text("utf-8"))
    TARGET.set(Target(place))
    try:
        train = _resolve(function)
    except (ImportError, AttributeError, TypeError):
        traceback.print_exc()
        sys.exit(_NO_FUNCTION)
    train(Path(run_dir))


if __name__ == "__main__":
    main(sys.argv[1:])
