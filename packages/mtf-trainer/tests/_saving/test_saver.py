from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mtf_trainer._saving import files
from mtf_trainer._saving import saver as saver_module
from mtf_trainer._saving.content import check_digest
from mtf_trainer._saving.encryption import generate_key, key_id_of
from mtf_trainer._saving.ledger import Ledger
from mtf_trainer._saving.saver import Saved, Saver
from mtf_trainer.certificate import Certificate, check
from mtf_trainer.checkpoint import CheckpointManager
from mtf_trainer.config import CheckpointSettings
from mtf_trainer.errors import CheckpointWriteError

SETTINGS = CheckpointSettings(asynchronous=False, keep_last_n=2)
ERRORS = {
    5: "Input/output error",
    16: "Device or resource busy",
    116: "Stale file handle",
}


class KilledError(BaseException):
    """What a SIGKILL would be, if a test could go on after it."""


def content(
    value: int = 0, size: int = 10, *, batch_idx: int = 1, window_batches: int = 0
) -> dict[str, Any]:
    """Return something to keep, by default of the inside of an epoch."""
    train = {"batch_idx": batch_idx, "window_batches": window_batches}
    return {
        "resume": {"epoch": 1, "train": train, "timestamp": "now"},
        "model": {"weight": torch.full((size,), float(value))},
        "value": value,
    }


def save(saver: Saver, epoch: int, value: int | None = None, **more: Any) -> Saved:
    """Save one checkpoint, 10 steps an epoch."""
    value = epoch if value is None else value
    batch_idx = more.pop("batch_idx", 0)
    return saver.save(
        content(value, batch_idx=batch_idx, **more),
        epoch=epoch,
        global_step=10 * epoch,
        metrics={"loss": float(value)},
    )


def names(folder: Path) -> list[str]:
    """Return what lies in *folder* and shows, in order."""
    return sorted(
        p.name for p in folder.iterdir() if p.name not in {".lock", "chain.jsonl"}
    )


def newest(folder: Path) -> int:
    """Return the value in the newest checkpoint; a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = CheckpointManager(folder, SETTINGS).load_newest()
    assert found is not None
    assert torch.equal(
        found[1]["model"]["weight"], torch.full((10,), float(found[1]["value"]))
    )
    value: int = found[1]["value"]
    return value


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a place for checkpoints, which is not there yet."""
    return tmp_path / "run" / "checkpoints"


def test_checkpoint_is_what_others_can_read(folder: Path) -> None:
    """Plain torch loads it, ``sha256sum -c`` accepts its digest, the link is relative."""
    saved = save(Saver(folder, SETTINGS, parent=None), 5)

    assert saved.path.name == "epoch_005_step_000050.ckpt"
    assert torch.load(saved.path, weights_only=True)["value"] == 5
    sha256sum(folder)
    latest = folder / "latest.ckpt"
    assert str(latest.readlink()) == saved.path.name
    assert names(folder) == [saved.path.name, f"{saved.path.name}.sha256", "latest.ckpt"]
    assert saved.seconds > 0
    assert (saved.backup_problem, saved.warnings) == (None, ())


def sha256sum(folder: Path) -> None:
    """Let another program check every digest."""
    for beside in folder.glob("*.sha256"):
        subprocess.run(
            ["sha256sum", "--strict", "-c", beside.name],
            cwd=folder,
            check=True,
            capture_output=True,
            timeout=60,
        )


def test_certificates_make_a_chain(folder: Path) -> None:
    """Each checkpoint has its certificate, and a line in the ledger with its parent's."""
    folder.mkdir(parents=True)
    (folder.parent / "metrics.jsonl").write_bytes(b"12345")
    saver = Saver(folder, SETTINGS, parent="f" * 64)
    first = saver.save(
        {**content(1), "metrics_bytes": 5}, epoch=1, global_step=10, metrics={}
    )
    second = save(saver, 2)

    held = [torch.load(each.path, weights_only=True) for each in (first, second)]
    certificates = [Certificate.from_plain(each["certificate"]) for each in held]
    assert [c.parent for c in certificates] == ["f" * 64, first.digest]
    assert [c.digest for c in certificates] == [first.digest, second.digest]
    assert certificates[0].metrics is not None
    assert certificates[1].metrics is None
    assert all(check(h, c) == () for h, c in zip(held, certificates, strict=True))
    rows = Ledger(folder).read()
    assert [row["name"] for row in rows] == [first.path.name, second.path.name]
    assert [Certificate.from_plain(row) for row in rows] == certificates
    assert rows[1]["values"] == {"loss": 2.0}
    assert [row["is_epoch_end"] for row in rows] == [False, True]


def test_state_is_saved_without_its_metrics(folder: Path) -> None:
    """Where the metrics are lost the state is saved all the same, and says so."""
    saver = Saver(folder, SETTINGS, parent=None)

    saved = saver.save(
        {**content(), "metrics_bytes": 9}, epoch=1, global_step=1, metrics={}
    )

    assert torch.load(saved.path, weights_only=True)["certificate"]["metrics"] is None


def record(
    folder: Path, settings: CheckpointSettings, prepare: Callable[[Saver], Any]
) -> list[str]:
    """Return the places that the last save of *prepare* passes."""
    places: list[str] = []
    saver = Saver(folder, settings, parent=None, fault=places.append)
    prepare(saver)
    return places


def killed_at(number: int) -> Callable[[str], None]:
    """Return a hook that ends everything at the place of that number."""
    passed = []

    def fault(place: str) -> None:
        passed.append(place)
        if len(passed) == number:
            raise KilledError(place)

    return fault


def test_places_have_names(folder: Path) -> None:
    """A save that replaces one and deletes another passes every place there is."""
    settings = replace(SETTINGS, keep_last_n=1)
    for epoch in (1, 2):
        save(Saver(folder, settings, parent=None), epoch)
    shutil.copy(
        folder / "epoch_002_step_000020.ckpt", folder / "epoch_001_step_000010.ckpt"
    )

    places = record(folder, settings, lambda saver: save(saver, 2, 3))

    assert places == [
        "certified",
        "opened",
        "written",
        "proven",
        "in the ledger",
        "digest written",
        "digest in place",
        "renamed",
        "in place",
        "digest written",
        "link made",
        "linked",
        "deleted",
        "deleted",
    ]


@pytest.mark.parametrize("epoch", [2, 3], ids=["replaced", "new"])
@pytest.mark.parametrize("keep_last_n", [1, 2])
def test_kill_at_any_place_leaves_the_old_or_the_new(
    tmp_path: Path, epoch: int, keep_last_n: int
) -> None:
    """Wherever it ends, the newest is whole, nothing is passed over, and saving goes on."""
    settings = replace(SETTINGS, keep_last_n=keep_last_n)
    number, ended = 0, False
    while not ended:
        number += 1
        folder = tmp_path / str(number)
        saver = Saver(folder, settings, parent=None)
        save(saver, 1)
        save(saver, 2)
        try:
            save(Saver(folder, settings, parent=None, fault=killed_at(number)), epoch, 9)
            ended = True
        except KilledError:
            pass

        value = newest(folder)
        assert value in {2, 9}
        manager = CheckpointManager(folder, settings)
        manager.prepare()
        assert newest(folder) == value
        assert not [name for name in names(folder) if name.endswith(".tmp")]
        assert all(is_listed(folder, path) for path in manager.list())
        manager.save(content(9), epoch=epoch, global_step=10 * epoch, metrics={})
        assert newest(folder) == 9
        assert len(manager.list()) == keep_last_n
        sha256sum(folder)
    assert number > 10


def is_listed(folder: Path, path: Path) -> bool:
    """Tell whether the certificate inside *path* stands in the ledger."""
    held = torch.load(path, weights_only=True)["certificate"]
    return any(
        row["name"] == path.name and row["digest"] == held["digest"]
        for row in Ledger(folder).read()
    )


@pytest.mark.slow
def test_kills_one_after_the_other(tmp_path: Path) -> None:
    """Two kills at any two places, without a start between them, lose nothing either."""
    folder = tmp_path / "places"
    save(Saver(folder, SETTINGS, parent=None), 2)
    num_places = len(record(folder, SETTINGS, lambda saver: save(saver, 2, 9)))
    for first in range(1, num_places + 1):
        for second in range(1, num_places + 1):
            folder = tmp_path / f"{first}-{second}"
            save(Saver(folder, SETTINGS, parent=None), 2)
            for value, number in ((8, first), (9, second)):
                saver = Saver(folder, SETTINGS, parent=None, fault=killed_at(number))
                with pytest.raises(KilledError):
                    save(saver, 2, value)
                assert newest(folder) in {2, 8, 9}


KILL = """
import os, signal, sys
from pathlib import Path
import torch
from mtf_trainer._saving.saver import Saver
from mtf_trainer.config import CheckpointSettings

def run(folder, number):
    passed = []
    def fault(place):
        passed.append(place)
        if len(passed) == number:
            os.kill(os.getpid(), signal.SIGKILL)
    settings = CheckpointSettings(keep_last_n=1)
    for value in (2, 9):
        content = {"model": {"weight": torch.full((10,), float(value))}, "value": value}
        hook = fault if value == 9 else (lambda place: None)
        Saver(folder, settings, parent=None, fault=hook).save(
            content, epoch=2, global_step=20, metrics={})

torch.set_num_threads(1)
number = 0
while True:
    number += 1
    pid = os.fork()
    if pid == 0:
        run(Path(sys.argv[1]) / str(number), number)
        os._exit(0)
    if os.waitpid(pid, 0)[1] == 0:
        break
print(number)
"""


@pytest.mark.slow
def test_sigkill_at_any_place(tmp_path: Path, launch: Callable[..., Any]) -> None:
    """The same holds for a process that the system really kills."""
    (told,) = launch("-c", KILL, tmp_path)

    assert told.code == 0, told.err
    values = [newest(tmp_path / str(n)) for n in range(1, int(told.out) + 1)]
    assert values == sorted(values)
    assert set(values) == {2, 9}


@contextmanager
def files_up_to(size_bytes: int) -> Iterator[None]:
    """Let no file grow beyond *size_bytes*, as a full disk would not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_leaves_the_last_good_one(folder: Path) -> None:
    """A write that does not fit is a clear error; nothing of it stays, nothing is lost."""
    saver = Saver(folder, SETTINGS, parent=None)
    first = save(saver, 1)
    before = names(folder)

    with (
        files_up_to(20_000),
        pytest.raises(
            CheckpointWriteError, match=r"epoch_002.*cannot be written: File too large"
        ),
    ):
        save(saver, 2, size=100_000)

    assert names(folder) == before
    assert newest(folder) == 1
    save(saver, 2)
    assert Ledger(folder).read()[-1]["parent"] == first.digest


@pytest.mark.parametrize("epoch", [1, 2], ids=["replaced", "new"])
@pytest.mark.parametrize("number", ERRORS)
def test_rename_that_fails_leaves_the_last_good_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int, epoch: int
) -> None:
    """Whichever rename fails, as on a network's disk, the older content is there whole."""
    saver = Saver(folder, SETTINGS, parent=None)
    save(saver, 1)
    rename = Path.replace
    calls: list[Path] = []
    failing = 0

    def fail(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == failing:
            raise OSError(number, ERRORS[number])
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", fail)
    is_saved = False
    while not is_saved:
        failing += 1
        calls.clear()
        with suppress_write_error(folder, ERRORS[number]):
            save(saver, epoch, 7)
            is_saved = True
        assert newest(folder) in {1, 7}
        assert not [name for name in names(folder) if name.endswith(".tmp")]
    assert failing > 2
    assert newest(folder) == 7


@contextmanager
def suppress_write_error(folder: Path, reason: str) -> Iterator[None]:
    """Let a save fail for *reason*, named with a file of *folder*."""
    try:
        yield
    except CheckpointWriteError as error:
        if error.path.parent != folder or reason not in error.problem:
            raise


def test_rename_that_is_done_and_reported_as_failed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that renames and then loses the answer leaves a whole checkpoint too."""
    saver = Saver(folder, SETTINGS, parent=None)
    save(saver, 1)
    rename = Path.replace

    def fail(self: Path, target: Path) -> Path:
        rename(self, target)
        if target.suffix == ".ckpt":
            raise OSError(116, ERRORS[116])
        return target

    for epoch in (1, 2):
        monkeypatch.setattr(Path, "replace", fail)
        with pytest.raises(CheckpointWriteError, match="Stale file handle"):
            save(saver, epoch, 5 + epoch)
        monkeypatch.undo()
        assert newest(folder) == 5 + epoch


@pytest.mark.parametrize("call", ["fsync", "open"])
def test_failing_disk_leaves_the_last_good_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """When bringing bytes or names to the disk fails, the one before is untouched."""
    saver = Saver(folder, SETTINGS, parent=None)
    save(saver, 1)

    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(CheckpointWriteError, match="cannot be written: Input/output"):
        save(saver, 2)
    monkeypatch.undo()

    assert newest(folder) == 1
    assert not [name for name in names(folder) if name.endswith(".tmp")]


def test_vanished_folder_is_made_again(folder: Path) -> None:
    """Who deletes the whole folder loses what was in it, and not the run."""
    saver = Saver(folder, SETTINGS, parent=None)
    save(saver, 1)
    shutil.rmtree(folder.parent)

    save(saver, 2)

    assert newest(folder) == 2


def test_folder_that_vanishes_meanwhile_is_a_clear_error(folder: Path) -> None:
    """What is written to a folder that goes away in between is told as not written."""

    def fault(place: str) -> None:
        if place == "proven":
            shutil.rmtree(folder)

    with pytest.raises(CheckpointWriteError, match="No such file or directory"):
        save(Saver(folder, SETTINGS, parent=None, fault=fault), 1)


@pytest.fixture
def sealed() -> Iterator[Path]:
    """Give a folder that this process may read and not write to."""
    place = Path(tempfile.mkdtemp())
    save(Saver(place / "c", SETTINGS, parent=None), 1)
    (place / "c").chmod(0o555)
    is_root = os.geteuid() == 0
    if is_root:
        place.chmod(0o755)
        os.seteuid(65534)
    try:
        yield place / "c"
    finally:
        if is_root:
            os.seteuid(0)
        (place / "c").chmod(0o755)
        shutil.rmtree(place)


def test_read_only_folder(sealed: Path) -> None:
    """A folder that can be read and not written to is told, and stays as it is."""
    with pytest.raises(CheckpointWriteError, match=r"epoch_002.*Permission denied"):
        save(Saver(sealed, SETTINGS, parent=None), 2)

    assert newest(sealed) == 1


def test_written_bytes_are_read_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that returns other bytes than it took is found before an older one goes."""
    saver = Saver(folder, SETTINGS, parent=None)
    save(saver, 1)
    save(saver, 2)
    before = names(folder)
    monkeypatch.setattr(saver_module, "sha256", lambda _: "0" * 64)

    with pytest.raises(CheckpointWriteError, match="reads back other bytes"):
        save(saver, 3)

    assert names(folder) == before


class Hostile:
    """Unpickling it would make a folder."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("/tmp/mtf-trainer-ran-hostile-code",)  # noqa: S108 - never made


def test_content_beyond_plain_data_is_refused(folder: Path) -> None:
    """What could not be loaded without running code is refused now, not at the resume."""
    saver = Saver(folder, SETTINGS, parent=None)
    save(saver, 1)

    for value in (Hostile(), lambda: 0, object()):
        with pytest.raises(CheckpointWriteError, match="cannot be written"):
            saver.save({"value": value}, epoch=2, global_step=20, metrics={})

    assert newest(folder) == 1
    assert not Path("/tmp/mtf-trainer-ran-hostile-code").exists()  # noqa: S108


def test_what_only_the_reader_refuses_is_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that cannot be loaded as plain data is never given a checkpoint's name."""
    saver = Saver(folder, SETTINGS, parent=None)

    def torch_save(content: dict[str, Any], file: Any) -> None:
        torch_save_really({**content, "value": Hostile()}, file)

    torch_save_really = torch.save
    monkeypatch.setattr(torch, "save", torch_save)
    with pytest.raises(
        CheckpointWriteError, match="could not be loaded again: it cannot"
    ):
        save(saver, 1)

    assert names(folder) == []


def test_folder_in_the_links_place_is_a_clear_error(folder: Path) -> None:
    """A folder named latest.ckpt is not deleted; the checkpoint itself is there."""
    saver = Saver(folder, SETTINGS, parent=None)
    save(saver, 1)
    latest = folder / "latest.ckpt"
    latest.unlink()
    latest.mkdir()

    with pytest.raises(CheckpointWriteError, match=r"latest.ckpt: cannot be made a link"):
        save(saver, 2)

    assert latest.is_dir()
    assert newest(folder) == 2
    assert ".latest.ckpt.tmp" not in names(folder)


def test_dangling_link_is_renewed(folder: Path) -> None:
    """A latest link that leads nowhere hinders neither loading nor saving."""
    saver = Saver(folder, SETTINGS, parent=None)
    save(saver, 1)
    latest = folder / "latest.ckpt"
    latest.unlink()
    latest.symlink_to("gone.ckpt")
    assert newest(folder) == 1

    saved = save(saver, 2)

    assert latest.resolve() == saved.path.resolve()


def test_what_lies_aside_is_no_hindrance(folder: Path) -> None:
    """A file, or a link, where the next one is to be written aside is replaced."""
    saver = Saver(folder, SETTINGS, parent=None)
    save(saver, 1)
    victim = folder / "victim"
    victim.write_text("mine", "utf-8")
    (folder / ".epoch_002_step_000020.ckpt.tmp").symlink_to(victim)
    (folder / ".epoch_002_step_000020.ckpt.sha256.tmp").symlink_to(victim)
    (folder / ".latest.ckpt.tmp").touch()

    save(saver, 2)

    assert victim.read_text("utf-8") == "mine"
    assert newest(folder) == 2


def test_lock_is_no_link(folder: Path) -> None:
    """A link in the place of the lock is not followed."""
    folder.mkdir(parents=True)
    (folder / ".lock").symlink_to(folder / "victim")

    with pytest.raises(CheckpointWriteError, match="cannot be written"):
        save(Saver(folder, SETTINGS, parent=None), 1)

    assert not (folder / "victim").exists()


def test_the_oldest_go_and_the_best_stay(folder: Path) -> None:
    """The last two, every fourth epoch's end, and the one with the least loss remain."""
    settings = replace(SETTINGS, keep_every_n_epochs=4, keep_best_k=1)
    losses = {1: 3.0, 2: 0.5, 3: float("nan"), 4: 2.0, 5: 0.7, 6: 0.6, 7: 0.8}
    for epoch, loss in losses.items():
        # A new one each time: what counts lies in the folder.
        Saver(folder, settings, parent=None).save(
            content(epoch, batch_idx=0),
            epoch=epoch,
            global_step=epoch,
            metrics={"loss": loss},
        )

    assert [p.name[:9] for p in reversed(CheckpointManager(folder, settings).list())] == [
        "epoch_002",
        "epoch_004",
        "epoch_006",
        "epoch_007",
    ]
    assert len(list(folder.glob("*.sha256"))) == 4


def test_stop_inside_an_epoch_is_no_end_of_one(folder: Path) -> None:
    """Of two checkpoints with one number of epochs, the one between epochs stays."""
    settings = replace(SETTINGS, keep_last_n=1, keep_every_n_epochs=2)
    saver = Saver(folder, settings, parent=None)
    save(saver, 2)
    saver.save(content(), epoch=2, global_step=25, metrics={})
    save(saver, 3)

    assert sorted(p.name for p in folder.glob("*.ckpt")) == [
        "epoch_002_step_000020.ckpt",
        "epoch_003_step_000030.ckpt",
        "latest.ckpt",
    ]


def test_stop_before_an_epochs_first_step_counts_as_the_end_before(folder: Path) -> None:
    """What takes the place of the best, with the same weights, stays as the best does."""
    settings = replace(SETTINGS, keep_last_n=1, keep_every_n_epochs=2, keep_best_k=1)
    saver = Saver(folder, settings, parent=None)
    for epoch, loss in enumerate([0.1, 0.3, 0.2, 0.4], start=1):
        for batches in (0, 2):
            saver.save(
                content(epoch, batch_idx=batches, window_batches=batches),
                epoch=epoch,
                global_step=10 * epoch,
                metrics={"loss": loss},
            )

    kept = CheckpointManager(folder, settings).list()
    assert [path.name[:9] for path in kept] == ["epoch_004", "epoch_002", "epoch_001"]


def test_newer_ones_are_never_deleted(folder: Path) -> None:
    """Saving an older epoch again, as after a damaged one, deletes older ones only."""
    settings = replace(SETTINGS, keep_last_n=1)
    saver = Saver(folder, settings, parent=None)
    newer = save(saver, 5)

    older = save(saver, 4)

    assert CheckpointManager(folder, settings).list() == [newer.path, older.path]


def test_damaged_ones_count_for_nothing(folder: Path) -> None:
    """With two damaged among them, the good ones that shall stay are all there."""
    saver = Saver(folder, SETTINGS, parent=None)
    first, second = save(saver, 1), save(saver, 2)
    third = Saver(folder, replace(SETTINGS, keep_last_n=9), parent=None)
    damaged = [save(third, 3), save(third, 4)]
    damaged[0].path.write_bytes(b"x")
    damaged[1].path.unlink()
    damaged[1].path.mkdir()

    told = save(saver, 5)
    assert {first.path, second.path} & set(folder.iterdir()) == {second.path}
    assert damaged[0].path.exists()
    assert told.warnings == ()

    told = save(saver, 6)
    assert not damaged[0].path.exists()
    assert told.warnings == (f"{damaged[1].path}: could not be deleted",)
    assert not second.path.exists()
    assert newest(folder) == 6


def test_unreadable_ledger_deletes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it is not known which are the best, all stay, and it is told."""
    saver = Saver(folder, replace(SETTINGS, keep_last_n=1), parent=None)
    save(saver, 1)

    def fail(_: Ledger) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Ledger, "read", fail)
    told = save(saver, 2)

    assert "older ones stay" in told.warnings[0]
    assert len(list(folder.glob("epoch*.ckpt"))) == 2


def test_ledger_of_anything_is_no_hindrance(folder: Path) -> None:
    """Lines that others wrote give no metric, and no error."""
    settings = replace(SETTINGS, keep_last_n=1, keep_best_k=1)
    saver = Saver(folder, settings, parent=None)
    save(saver, 1)
    rows: list[dict[str, Any]] = [
        {"name": "epoch_001_step_000010.ckpt", "values": values}
        for values in (3, {"loss": "low"}, {"loss": [1]})
    ]
    for row in rows:
        with Ledger(folder).path.open("ab") as file:
            file.write(json.dumps(row).encode() + b"\n")

    save(saver, 2)

    assert newest(folder) == 2
    assert len(list(folder.glob("epoch*.ckpt"))) == 1


def encrypted(tmp_path: Path) -> CheckpointSettings:
    """Return settings with a key."""
    path = tmp_path / "keys"
    path.write_text(f"{generate_key()}\n", "utf-8")
    path.chmod(0o600)
    return replace(SETTINGS, encryption_key_file=path)


def test_nothing_plain_reaches_the_disk(tmp_path: Path, folder: Path) -> None:
    """The file aside is encrypted from its first byte, at every place on the way."""
    settings = encrypted(tmp_path)
    marker = re.compile(b"SECRET-MARKER|archive/data")
    seen: dict[str, int] = {}

    def fault(place: str) -> None:
        stored = b"".join(p.read_bytes() for p in folder.iterdir() if p.is_file())
        assert not marker.search(stored)
        seen[place] = len(stored)

    saver = Saver(folder, settings, parent=None, fault=fault)
    text = "SECRET-MARKER" * 200_000
    saved = saver.save({"text": text}, epoch=1, global_step=1, metrics={})

    assert 1_000_000 < seen["last chunk"] < len(text)
    assert key_id_of(saved.path) is not None
    check_digest(saved.path)
    manager = CheckpointManager(folder, settings)
    assert manager.load(saved.path)["text"] == text
    sha256sum(folder)


def test_error_behind_an_error_is_told() -> None:
    """What torch's writer says in place of the file's own error is looked behind."""
    behind = RuntimeError("unexpected pos 64 vs 0")
    behind.__context__ = OSError(28, "No space left on device")

    assert (
        saver_module._why_not_written(behind)
        == "cannot be written: No space left on device"
    )
    assert saver_module._why_not_written(OSError("odd")) == "cannot be written: odd"


def test_damaged_digest_of_the_replaced_one_is_no_hindrance(folder: Path) -> None:
    """Replacing a damaged checkpoint needs nothing of it."""
    saver = Saver(folder, SETTINGS, parent=None)
    saved = save(saver, 1)
    files.digest_path(saved.path).write_bytes(b"\xff")

    save(saver, 1, 4)

    assert newest(folder) == 4
