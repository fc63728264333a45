from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mtf_trainer._saving.encryption import generate_key
from mtf_trainer._saving.files import LATEST, digest_line, sha256
from mtf_trainer._saving.ledger import LEDGER
from mtf_trainer._saving.saver import Saver
from mtf_trainer._verify import verify as verify_module
from mtf_trainer._verify.verify import Report, load_checkpoint, verify
from mtf_trainer.certificate import certify
from mtf_trainer.config import CheckpointSettings
from mtf_trainer.errors import VerificationError

PLAIN = CheckpointSettings()


class Run:
    """A run whose checkpoints the real `Saver` writes."""

    def __init__(self, path: Path, settings: CheckpointSettings = PLAIN) -> None:
        self.path = path
        self.settings = settings
        self.folder = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        path.mkdir()
        self.metrics.touch()
        self.begin(None)

    def begin(self, parent: str | None, keep_bytes: int = 0) -> None:
        """Start a process that goes on from *parent*."""
        self.saver = Saver(self.folder, self.settings, parent=parent)
        with self.metrics.open("r+b") as file:
            file.truncate(keep_bytes)

    def save(self, step: int, **changes: Any) -> str:
        """Write a line of metrics and a checkpoint; return its certificate's digest."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "loss": 1 / step}) + "\n")
        content = self.content(step) | changes
        return self.saver.save(content, epoch=0, global_step=step, metrics={}).digest

    def content(self, step: int) -> dict[str, Any]:
        """Return what a checkpoint after *step* holds."""
        return {
            "resume": {"phase": "TRAIN_BATCH_END", "epoch": 0, "global_step": step},
            "model": {"w": torch.full((3,), float(step))},
            "optimizers": [{"lr": 0.1}],
            "locals": [{"rng": {"torch_cpu": torch.get_rng_state()}}],
            "metrics_bytes": self.metrics.stat().st_size,
        }

    def checkpoint(self, step: int) -> Path:
        """Return the path of the one after *step*."""
        return self.folder / f"epoch_000_step_{step:06d}.ckpt"

    def rewrite(self, step: int, change: Callable[[dict[str, Any]], None]) -> None:
        """Change a checkpoint as someone would who also mends its digest."""
        path = self.checkpoint(step)
        content = torch.load(path, weights_only=True)
        change(content)
        torch.save(content, path)
        self.mend(step)

    def mend(self, step: int) -> None:
        """Make the file beside a checkpoint say what its bytes are."""
        path = self.checkpoint(step)
        beside = path.with_name(f"{path.name}.sha256")
        beside.write_text(digest_line(sha256(path), path.name), "utf-8")

    def lines(self) -> list[dict[str, Any]]:
        """Return the lines of the ledger."""
        text = (self.folder / LEDGER).read_text("utf-8")
        return [json.loads(line) for line in text.splitlines()]

    def write_lines(self, lines: list[dict[str, Any]]) -> None:
        """Replace the ledger."""
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (self.folder / LEDGER).write_text(text, "utf-8")

    def verify(self) -> Report:
        """Return what is found."""
        return verify(self.path, self.settings)

    def problems(self) -> list[str]:
        """Return what is wrong, with its place."""
        return [f"{each.place}: {each.what}" for each in self.verify().problems]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return a run of five saves, of which the last three are on disk."""
    run = Run(tmp_path / "run")
    for step in range(1, 6):
        run.save(step)
    return run


def test_untouched_run_is_whole(run: Run) -> None:
    """Every save is found, with its parent; those that retention took stand as lines."""
    report = run.verify()

    assert report.is_whole
    assert not report.notes
    assert [row.state for row in report.rows] == ["gone", "gone", *["whole"] * 3]
    assert [row.parent for row in report.rows] == [None, 1, 2, 3, 4]
    assert [row.global_step for row in report.rows] == [1, 2, 3, 4, 5]
    assert report.metrics_checked == run.metrics.stat().st_size


def test_metrics_may_have_grown(run: Run) -> None:
    """What a run wrote after its last checkpoint is no part of it."""
    with run.metrics.open("a", encoding="utf-8") as file:
        file.write("more, and torn")

    assert run.verify().is_whole


def test_run_taken_up_at_an_older_checkpoint_is_a_branch(run: Run) -> None:
    """A continuation of an older save is whole, told of, and counts for the metrics."""
    lines = run.lines()
    size = torch.load(run.checkpoint(3), weights_only=True)["metrics_bytes"]
    run.begin(lines[2]["digest"], keep_bytes=size)
    run.save(7)

    report = run.verify()

    assert report.is_whole
    assert report.rows[-1].parent == 3
    assert "line 6 goes on from line 3" in report.notes[0]
    assert report.metrics_checked == run.metrics.stat().st_size


def test_run_begun_again_is_told_of(run: Run) -> None:
    """A save without a parent behind others is a new beginning, and no gap."""
    run.begin(None)
    run.save(9)

    report = run.verify()

    assert report.is_whole
    assert "line 6 has no parent" in report.notes[0]


def test_save_that_was_cut_off_is_harmless(run: Run) -> None:
    """A line whose checkpoint never took its place, and a torn line, are no problem."""
    content = run.content(5) | {"model": {"w": torch.zeros(3)}}
    lines = run.lines()
    stub = certify(content, metrics_digest="a" * 64, parent=lines[-1]["digest"])
    run.write_lines([*lines, lines[-1] | stub.to_plain()])
    with (run.folder / LEDGER).open("a", encoding="utf-8") as file:
        file.write('{"name": "epo')

    report = run.verify()

    assert report.is_whole
    assert report.rows[-1].state == "gone"
    assert report.rows[-2].state == "whole"
    assert "cut short" in report.notes[0]


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda c: c["model"]["w"].add_(1), "weights differs"),
        (lambda c: c["optimizers"][0].update(lr=0.2), "optimizer differs"),
        (lambda c: c["locals"][0]["rng"]["torch_cpu"].add_(1), "rng differs"),
        (lambda c: c.update(extra=1), "data differs"),
        (lambda c: c.update(model={}, extra=1), "weights, data differ"),
    ],
)
def test_changed_part_is_named(run: Run, change: Any, parts: str) -> None:
    """Whoever changes a checkpoint and mends its digest is found, with what changed."""
    run.rewrite(5, change)

    assert run.problems() == [
        f"epoch_000_step_000005.ckpt: is not what was certified: {parts}",
        "latest.ckpt: does not point to a checkpoint here that is whole",
    ]
    assert run.verify().rows[4].state == "bad"


def test_forged_certificate_is_not_that_of_the_line(run: Run) -> None:
    """A checkpoint certified anew, with other weights, is not what its line says."""

    def forge(content: dict[str, Any]) -> None:
        old = content.pop("certificate")
        content["model"]["w"].add_(1)
        new = certify(content, metrics_digest=old["metrics"], parent=old["parent"])
        content["certificate"] = new.to_plain()

    run.rewrite(4, forge)

    (problem,) = run.problems()
    assert (
        problem == "epoch_000_step_000004.ckpt: is not what line 4 says: weights differs"
    )


def test_forged_line_breaks_the_chain(run: Run) -> None:
    """Whoever forges a line as well has to forge all that were trained from it."""
    lines = run.lines()
    lines[2] |= certify({}, metrics_digest=None, parent=lines[1]["digest"]).to_plain()
    run.write_lines(lines)

    assert run.problems()[0] == (
        "chain.jsonl, line 4: its parent is no line before it: the chain has a gap"
    )
    assert "epoch_000_step_000003.ckpt: is not what line 3 says" in run.problems()[1]


@pytest.mark.parametrize("part", ["weights", "metrics", "parent"])
def test_changed_digest_in_a_line_is_found(run: Run, part: str) -> None:
    """The digest of a line follows from its parts, also where nothing else is left."""
    lines = run.lines()
    lines[1][part] = "0" * 64
    run.write_lines(lines)

    assert run.problems()[0].endswith("line 2: its digest does not follow from its parts")


@pytest.mark.parametrize(
    "change",
    [
        {"is_epoch_end": True},
        {"is_epoch_end": 0},
        {"values": {"loss": 0.0}},
        {"values": None},
    ],
)
def test_what_retention_goes_by_follows_from_the_checkpoint(
    run: Run, change: dict[str, Any]
) -> None:
    """A line that would make retention keep or delete another checkpoint is found."""
    lines = run.lines()
    lines[3] |= change
    run.write_lines(lines)

    (name,) = change
    (problem, *_) = run.problems()
    assert problem == (
        f"epoch_000_step_000004.ckpt: is not what line 4 says: {name} differs"
    )


def test_removed_line_is_a_gap(run: Run) -> None:
    """A line that is missing is found by the one that was trained from it."""
    lines = run.lines()
    run.write_lines([lines[0], *lines[2:]])

    (problem,) = run.problems()
    assert problem.startswith("chain.jsonl, line 2: its parent is no line before it")


def test_lines_in_another_order_are_a_gap(run: Run) -> None:
    """A parent must come before what was trained from it."""
    lines = run.lines()
    run.write_lines([lines[1], lines[0], *lines[2:]])

    assert "chain.jsonl, line 1: its parent is no line before it" in run.problems()[0]


def test_missing_ledger_is_a_problem(run: Run) -> None:
    """Checkpoints without a chain prove nothing."""
    (run.folder / LEDGER).unlink()

    report = run.verify()

    assert report.problems[0].what == "is missing"
    assert report.problems[1].what == "has no line in the ledger"
    assert [row.number for row in report.rows] == [None] * 3


def test_unreadable_ledger_is_a_problem(run: Run) -> None:
    """A folder where the ledger should be is named."""
    (run.folder / LEDGER).unlink()
    (run.folder / LEDGER).mkdir()

    assert run.problems()[0] == "chain.jsonl: is not a file"


class Hostile:
    """Runs a command when unpickled by one who does not look."""

    def __reduce__(self) -> Any:
        return os.system, ("touch was_run",)  # noqa: TID251 - as an attacker would


def test_hostile_checkpoint_runs_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint that would run a command is refused, and does not run it."""
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Hostile()}, run.checkpoint(4))
    run.mend(4)

    (problem,) = run.problems()
    assert problem == (
        "epoch_000_step_000004.ckpt: is refused: it names posix.system, which is no "
        "plain data"
    )
    assert not (tmp_path / "was_run").exists()


def test_damage_is_named_wherever_it_is(run: Run) -> None:
    """Other bytes, no bytes, a missing digest, and what is no checkpoint, each."""
    data = bytearray(run.checkpoint(3).read_bytes())
    data[len(data) // 2] ^= 1
    run.checkpoint(3).write_bytes(data)
    run.checkpoint(4).with_name(f"{run.checkpoint(4).name}.sha256").unlink()
    run.checkpoint(5).write_bytes(b"")
    torch.save({"a": 1}, run.checkpoint(6))
    run.mend(6)
    for step, cut in ((7, b"\x80\x02abc"), (8, b"\x80\x04\x95"), (9, b"PK\3\4abc")):
        run.checkpoint(step).write_bytes(cut)
        run.mend(step)

    told = "\n".join(run.problems())

    assert "step_000003.ckpt: its sha256 is" in told
    assert "step_000004.ckpt: its digest epoch_000_step_000004.ckpt.sha256 is mis" in told
    assert "step_000005.ckpt: is empty" in told
    assert "step_000006.ckpt: holds no certificate" in told
    assert "step_000007.ckpt: cannot be loaded as plain data: pop from" in told
    assert "step_000008.ckpt: holds more than plain data, or is damaged" in told
    assert "step_000009.ckpt: cannot be loaded as plain data" in told


@pytest.mark.parametrize("kind", ["folder", "link", "pipe"])
def test_only_files_are_read(run: Run, tmp_path: Path, kind: str) -> None:
    """A folder, a link and a pipe with the name of a checkpoint are problems at once."""
    path = run.checkpoint(4)
    path.rename(tmp_path / "elsewhere")
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    else:
        os.mkfifo(path)

    told = "was not committed" if kind == "folder" else "is not a file"
    (problem,) = run.problems()
    assert problem.startswith(f"epoch_000_step_000004.ckpt: {told}")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"certificate": None}, "not a certificate: no mapping"),
        ({"certificate": {"version": 7}}, "a certificate of version 7"),
        ({"resume": None}, "is not what was certified: data differs"),
        ({"x": object}, "is refused: it names object,"),
    ],
)
def test_malformed_content_is_a_problem(run: Run, change: Any, told: str) -> None:
    """Whatever a checkpoint holds in place of what it should, it is told, not raised."""
    run.rewrite(4, lambda content: content.update(change))

    assert told in run.problems()[0]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"resume": 3}, "should have the name of no checkpoint"),
        ({"resume": {"epoch": 0}}, "should have the name of no checkpoint"),
        ({"resume": {"epoch": 0, "global_step": 8}}, "the name epoch_000_step_000008"),
        ({"metrics_bytes": -1}, "does not say how long"),
        ({"metrics": 3}, "is not what line 5 says: values differs"),
        ({"metrics": {"loss": 10**400}}, "is not what line 5 says: values differs"),
    ],
)
def test_certified_nonsense_is_a_problem(run: Run, change: Any, told: str) -> None:
    """A checkpoint with a line of its own must still be what its name says."""
    old = run.lines()[-1]

    def forge(content: dict[str, Any]) -> None:
        del content["certificate"]
        content |= change
        new = certify(content, metrics_digest=old["metrics"], parent=old["parent"])
        content["certificate"] = new.to_plain()

    run.rewrite(5, forge)
    certificate = torch.load(run.checkpoint(5), weights_only=True)["certificate"]
    run.write_lines([*run.lines()[:-1], old | certificate])

    assert told in run.problems()[0]


def test_checkpoint_deleted_meanwhile_is_no_problem(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the retention of a live run is faster than the check, the line stands."""

    def gone_before_it_is_read(path: Path, settings: CheckpointSettings) -> Any:
        if path == run.checkpoint(3):
            path.unlink()
        return load_checkpoint(path, settings)

    monkeypatch.setattr(verify_module, "load_checkpoint", gone_before_it_is_read)

    report = run.verify()

    assert report.is_whole
    assert report.rows[2].state == "gone"


def test_metrics_cut_or_changed_are_found(run: Run) -> None:
    """A file of metrics that is shorter, other, or missing is named with the place."""
    whole = run.metrics.read_bytes()
    run.metrics.write_bytes(whole[:-1])
    size = len(whole)
    assert run.problems()[0] == (
        f"metrics.jsonl: has {size - 1} bytes, and should have at least {size}, as "
        "epoch_000_step_000005.ckpt says"
    )

    run.metrics.write_bytes(b"X" + whole[1:])
    (problem,) = run.problems()
    assert "are not those that epoch_000_step_000003.ckpt was saved with" in problem

    run.metrics.unlink()
    assert "is missing" in run.problems()[0]


def test_metrics_that_nobody_certified_are_not_looked_at(tmp_path: Path) -> None:
    """A checkpoint that says nothing of metrics is whole without any."""
    run = Run(tmp_path / "run")
    content = run.content(1)
    del content["metrics_bytes"]
    run.saver.save(content, epoch=0, global_step=1, metrics={})
    run.metrics.unlink()

    assert run.verify().is_whole


def test_link_to_the_newest_is_checked(run: Run) -> None:
    """It must be a link, to a whole checkpoint in this folder; an older one is told of."""
    link = run.folder / LATEST
    link.unlink()
    assert run.problems() == ["latest.ckpt: is missing"]
    for target in ("epoch_000_step_000001.ckpt", str(run.checkpoint(5)), "/etc/passwd"):
        link.symlink_to(target)
        assert "does not point to a checkpoint here" in run.problems()[0]
        link.unlink()
    link.symlink_to(run.checkpoint(4).name)
    assert run.verify().is_whole
    assert "is not the newest" in run.verify().notes[0]
    link.unlink()
    link.touch()
    assert run.problems() == ["latest.ckpt: is no link"]


def test_first_save_may_lack_the_link(tmp_path: Path) -> None:
    """A run killed just before its first checkpoint was linked has lost nothing."""
    run = Run(tmp_path / "run")
    run.save(1)
    (run.folder / LATEST).unlink()

    report = run.verify()

    assert report.is_whole
    assert "the next save makes it" in report.notes[0]


def test_encrypted_run_needs_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the key it is whole; without, and with another, the message says so."""
    monkeypatch.setenv("RIGHT", generate_key())
    monkeypatch.setenv("WRONG", generate_key())
    run = Run(tmp_path / "run", CheckpointSettings(encryption_key_env="RIGHT"))
    run.save(1)

    assert run.verify().is_whole
    for settings in (PLAIN, CheckpointSettings(encryption_key_env="WRONG")):
        problem = verify(run.path, settings).problems[0]
        assert "key" in problem.what
        assert str(tmp_path) not in problem.what


def test_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    """What the system refuses is told as it tells it."""
    with pytest.raises(VerificationError, match=r"OSError: .* too long"):
        load_checkpoint(tmp_path / ("x" * 300), PLAIN)


def test_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    """Where nothing was ever saved there is nothing to prove."""
    with pytest.raises(VerificationError, match="no folder of a run"):
        verify(tmp_path, PLAIN)
