from __future__ import annotations

import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from mtf_trainer._saving import content as content_module
from mtf_trainer._saving import files
from mtf_trainer._saving.encryption import EncryptingFile, Keyring, generate_key
from mtf_trainer.checkpoint import CheckpointManager, Saved, Saver
from mtf_trainer.config import CheckpointSettings
from mtf_trainer.errors import (
    BackupError,
    CheckpointDamagedError,
    CheckpointWarning,
    CheckpointWriteError,
    EncryptionError,
    SnapshotError,
)

SETTINGS = CheckpointSettings(asynchronous=False, keep_last_n=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a place for checkpoints, which is not there yet."""
    return tmp_path / "run" / "checkpoints"


@pytest.fixture
def manager(folder: Path) -> CheckpointManager:
    """Keep two in a folder that is ready."""
    manager = CheckpointManager(folder, SETTINGS)
    manager.prepare()
    return manager


def content(value: int = 0) -> dict[str, Any]:
    """Return something to keep."""
    return {"value": value, "model": {"weight": torch.full((10,), float(value))}}


def save(manager: CheckpointManager, *epochs: int) -> list[Path]:
    """Save one checkpoint an epoch, 10 steps each."""
    for epoch in epochs:
        manager.save(content(epoch), epoch=epoch, global_step=10 * epoch, metrics={})
    return [saved.path for saved in manager.wait()]


def test_newest_is_loaded_and_the_oldest_go(manager: CheckpointManager) -> None:
    """Of three saved with two to keep, the last two remain."""
    paths = save(manager, 1, 2, 3)

    found = manager.load_newest()

    assert found is not None
    assert found[0] == paths[2]
    assert found[1]["value"] == 3
    assert manager.list() == [paths[2], paths[1]]


def test_nothing_there_is_none(tmp_path: Path) -> None:
    """An empty folder, or none at all, holds no checkpoint and is no error."""
    manager = CheckpointManager(tmp_path / "none", SETTINGS)

    assert manager.load_newest() is None
    assert manager.list() == []
    assert manager.poll() == []


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def _empty(path: Path) -> None:
    os.truncate(path, 0)


def _bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _no_digest(path: Path) -> None:
    path.with_name(f"{path.name}.sha256").unlink()


def _digest(path: Path) -> None:
    path.with_name(f"{path.name}.sha256").write_bytes(b"\xff\x00")


def _foreign(path: Path) -> None:
    path.write_bytes(b"no archive")
    resign(path)


def _list(path: Path) -> None:
    torch.save([1], path)
    resign(path)


def _link(path: Path) -> None:
    path.unlink()
    path.symlink_to("gone")


class Hostile:
    """Unpickling it would make a folder."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("/tmp/mtf-trainer-ran-hostile-code",)  # noqa: S108 - never made


def _hostile(path: Path) -> None:
    torch.save({"value": Hostile()}, path)
    resign(path)


def resign(path: Path) -> None:
    """Write the digest that the file has now."""
    files.put_digests(path, [files.sha256(path)])


DAMAGES = [
    (_cut, "its sha256 is"),
    (_empty, "is empty"),
    (_bit, "its sha256 is"),
    (_folder, "is not a file"),
    (_no_digest, "is missing"),
    (_digest, "is damaged"),
    (_foreign, "cannot be loaded as plain data"),
    (_list, "holds no dictionary"),
    (_link, "is not a file"),
    (_hostile, "cannot be loaded as plain data"),
]


@pytest.mark.parametrize(("damage", "problem"), DAMAGES)
def test_damaged_one_is_passed_over(
    manager: CheckpointManager, damage: Any, problem: str
) -> None:
    """However the newest is damaged, a warning names it and the one before is loaded."""
    older, newest = save(manager, 1, 2)
    damage(newest)

    with pytest.warns(CheckpointWarning, match=f"{newest}: .*{problem}"):
        found = manager.load_newest()

    assert found is not None
    assert found[0] == older
    assert not Path("/tmp/mtf-trainer-ran-hostile-code").exists()  # noqa: S108


def test_all_damaged_is_an_error(manager: CheckpointManager) -> None:
    """With nothing left to go on from, the run does not silently begin anew."""
    for path in save(manager, 1, 2):
        _cut(path)

    with (
        pytest.warns(CheckpointWarning),
        pytest.raises(CheckpointDamagedError, match="none of its 2 checkpoints"),
    ):
        manager.load_newest()


def test_unreadable_file_is_damaged(
    manager: CheckpointManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of the file system while reading is told by name."""
    (path,) = save(manager, 1)

    def fail(*_: object) -> str:
        raise OSError(5, "Input/output error")

    for name in ("sha256", "key_id_of"):
        with monkeypatch.context() as patch:
            patch.setattr(content_module, name, fail)
            with pytest.raises(
                CheckpointDamagedError, match="cannot be read: Input/output error"
            ):
                manager.load(path)


def test_what_is_saved_descends_from_what_was_loaded(manager: CheckpointManager) -> None:
    """After going back, the next certificate has the older checkpoint's as its parent."""
    first, second = save(manager, 1, 2)
    assert manager.parent == manager.load(second)["certificate"]["digest"]

    went_back_to = manager.load(first)["certificate"]["digest"]
    (third,) = save(manager, 3)

    assert manager.load(third)["certificate"]["parent"] == went_back_to
    again = CheckpointManager(third.parent, SETTINGS)
    assert again.parent is None
    again.load_newest()
    assert again.parent == manager.parent


def test_leftovers_of_an_interrupted_write_go(manager: CheckpointManager) -> None:
    """Files written aside, a digest without its checkpoint and a torn line are deleted."""
    (path,) = save(manager, 1)
    folder = path.parent
    (folder / "notes.txt").touch()
    kept = sorted(p.name for p in folder.iterdir())
    ledger = (folder / "chain.jsonl").read_bytes()
    (folder / "chain.jsonl").write_bytes(ledger + b'{"name": ')
    for name in (
        ".epoch_002_step_000020.ckpt.tmp",
        ".epoch_002_step_000020.ckpt.sha256.tmp",
        ".latest.ckpt.tmp",
        "epoch_002_step_000020.ckpt.sha256",
    ):
        (folder / name).touch()

    manager.prepare()

    assert sorted(p.name for p in folder.iterdir()) == kept
    assert (folder / "chain.jsonl").read_bytes() == ledger


@pytest.fixture
def sealed() -> Iterator[Path]:
    """Give a folder that this process may read and not write to."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield folder
    finally:
        if is_root:
            os.seteuid(0)
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_read_only_folder_is_found_at_the_start(sealed: Path) -> None:
    """A folder that cannot be written to is refused before any training."""
    for folder in (sealed / "checkpoints", sealed):
        with pytest.raises(CheckpointWriteError, match="Permission denied"):
            CheckpointManager(folder, SETTINGS).prepare()


def test_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    """A file where the folder belongs is a clear error, and holds no checkpoints."""
    (tmp_path / "checkpoints").touch()
    manager = CheckpointManager(tmp_path / "checkpoints", SETTINGS)

    with pytest.raises(CheckpointWriteError, match="cannot be written here: File exists"):
        manager.prepare()
    assert manager.list() == []


def encrypted(path: Path, *keys: str) -> CheckpointSettings:
    """Return settings with *keys* in a file of their own."""
    path.write_text("\n".join(keys), "utf-8")
    path.chmod(0o600)
    return replace(SETTINGS, encryption_key_file=path)


def test_encrypted_with_a_key_that_is_replaced(tmp_path: Path, folder: Path) -> None:
    """The new key writes and the old one still reads; without the right one it is told."""
    old, new = generate_key(), generate_key()
    with CheckpointManager(folder, encrypted(tmp_path / "a", old)) as manager:
        manager.prepare()
        (first,) = save(manager, 1)
    with CheckpointManager(folder, encrypted(tmp_path / "b", new, old)) as manager:
        assert manager.load(first)["value"] == 1
        (second,) = save(manager, 2)
    with CheckpointManager(folder, encrypted(tmp_path / "c", old)) as manager:
        with pytest.raises(
            EncryptionError, match=f"{second}: .*none of the 1 in key file"
        ):
            manager.load_newest()
        assert manager.load(first)["value"] == 1
    with pytest.raises(EncryptionError, match=f"{second}: .*no keys are given"):
        CheckpointManager(folder, SETTINGS).load_newest()


def test_bad_keys_are_found_at_the_start(tmp_path: Path, folder: Path) -> None:
    """A key that cannot be used is told before any training."""
    manager = CheckpointManager(folder, encrypted(tmp_path / "keys", "no key"))

    with pytest.raises(EncryptionError, match="line 1"):
        manager.prepare()


def test_altered_behind_its_digest_is_damaged(tmp_path: Path, folder: Path) -> None:
    """Who can write file and digest still cannot write what decrypts."""
    manager = CheckpointManager(folder, encrypted(tmp_path / "keys", generate_key()))
    older, newest = save(manager, 1, 2)
    for damage in (_cut, _bit):
        stored = newest.read_bytes()
        damage(newest)
        resign(newest)
        with pytest.warns(CheckpointWarning, match="cannot be decrypted: chunk 0 of 1"):
            found = manager.load_newest()
        assert found is not None
        assert found[0] == older
        newest.write_bytes(stored)


def test_encrypted_file_of_something_else(tmp_path: Path, folder: Path) -> None:
    """What decrypts, and is no plain data, is damaged as any other."""
    settings = encrypted(tmp_path / "keys", generate_key())
    manager = CheckpointManager(folder, settings)
    (path,) = save(manager, 1)
    keys = Keyring.from_settings(settings)
    assert keys is not None
    with path.open("wb") as file:
        writer = EncryptingFile(file, keys)
        writer.write(b"no archive")
        writer.finish()
    resign(path)

    with pytest.raises(CheckpointDamagedError, match="cannot be loaded as plain data"):
        manager.load(path)


def test_plain_one_among_the_encrypted_is_told(tmp_path: Path, folder: Path) -> None:
    """A run that is encrypted from now on goes on from a plain checkpoint, with a warning."""
    (path,) = save(CheckpointManager(folder, SETTINGS), 1)
    manager = CheckpointManager(folder, encrypted(tmp_path / "keys", generate_key()))

    with pytest.warns(CheckpointWarning, match=f"{path}: is not encrypted"):
        assert manager.load(path)["value"] == 1


def fail_to_save(*_: object, **__: object) -> Saved:
    """Stand in for a full disk."""
    raise CheckpointWriteError(Path("x.ckpt"), "cannot be written: No space left")


def test_stop_or_go_on_when_it_cannot_be_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As configured, a failed write is an error or a warning; the older ones stay."""
    for on_write_error in ("stop", "continue"):
        manager = CheckpointManager(
            folder, replace(SETTINGS, on_write_error=on_write_error)
        )
        save(manager, 1)
        with monkeypatch.context() as patch:
            patch.setattr(Saver, "save", fail_to_save)
            if on_write_error == "stop":
                with pytest.raises(CheckpointWriteError, match="No space left"):
                    save(manager, 2)
            else:
                with pytest.warns(CheckpointWarning, match="No space left"):
                    save(manager, 2)
        found = manager.load_newest()
        assert found is not None
        assert found[1]["value"] == 1


def test_copies_are_made_and_brought_back(tmp_path: Path, folder: Path) -> None:
    """A node that lost its disk goes on from the back-up, and the chain with it."""
    settings = replace(SETTINGS, backup_url=f"file://{tmp_path}/far", keep_last_n=1)
    manager = CheckpointManager(folder, settings)
    manager.prepare()
    save(manager, 1, 2)
    far = tmp_path / "far" / "run"
    assert sorted(p.name for p in far.iterdir()) == [
        "chain.jsonl",
        "epoch_002_step_000020.ckpt",
        "epoch_002_step_000020.ckpt.sha256",
    ]
    ledger = (folder / "chain.jsonl").read_bytes()
    shutil.rmtree(folder)
    manager = CheckpointManager(folder, settings)

    with pytest.warns(CheckpointWarning, match="was brought back from the back-up"):
        found = manager.load_newest()

    assert found is not None
    assert found[0] == folder / "epoch_002_step_000020.ckpt"
    assert found[1]["value"] == 2
    assert (folder / "chain.jsonl").read_bytes() == ledger
    (third,) = save(manager, 3)
    assert (
        manager.load(third)["certificate"]["parent"] == found[1]["certificate"]["digest"]
    )
    assert (far / third.name).exists()
    assert not (far / found[0].name).exists()


def test_damaged_here_and_good_there(tmp_path: Path, folder: Path) -> None:
    """When none here is good a copy takes the place of the damaged one."""
    settings = replace(SETTINGS, backup_url=f"file://{tmp_path}/far")
    manager = CheckpointManager(folder, settings)
    first, second = save(manager, 1, 2)
    _cut(first)
    _cut(second)

    with pytest.warns(CheckpointWarning) as told:
        found = manager.load_newest()

    assert found is not None
    assert found[0] == second
    assert [str(w.message).partition(" damaged")[0] for w in told][:2] == [
        "passed over a"
    ] * 2
    content_module.check_digest(second)

    _cut(tmp_path / "far" / "run" / second.name)
    _cut(second)
    with pytest.warns(CheckpointWarning) as told:
        found = manager.load_newest()
    assert found is not None
    assert found[0] == first
    assert [w for w in told if "is not what was copied" in str(w.message)]


def test_no_good_copy_is_an_error(tmp_path: Path, folder: Path) -> None:
    """A run whose copies are all damaged does not silently begin anew."""
    settings = replace(SETTINGS, backup_url=f"file://{tmp_path}/far")
    manager = CheckpointManager(folder, settings)
    assert manager.load_newest() is None
    (path,) = save(manager, 1)
    _bit(tmp_path / "far" / "run" / path.name)
    shutil.rmtree(folder)

    with (
        pytest.warns(CheckpointWarning, match="passed over a copy"),
        pytest.raises(BackupError, match="none of the 1 copies"),
    ):
        manager.load_newest()


def test_stop_or_go_on_when_it_cannot_be_copied(tmp_path: Path, folder: Path) -> None:
    """A copy that fails is told as configured; the checkpoint itself is there and counts."""
    (tmp_path / "far").touch()
    for on_write_error in ("stop", "continue"):
        settings = replace(
            SETTINGS, on_write_error=on_write_error, backup_url=f"file://{tmp_path}/far"
        )
        manager = CheckpointManager(folder, settings)
        if on_write_error == "stop":
            with pytest.raises(BackupError, match="could not be copied"):
                save(manager, 1)
        else:
            with pytest.warns(CheckpointWarning, match="could not be copied"):
                save(manager, 1)
        assert len(manager.list()) == 1
        assert manager.parent is not None


class FakeArea:
    """Memory of this process in the place of shared memory."""

    def __init__(self) -> None:
        self.held: list[dict[str, Any]] = []
        self.is_full = False

    def put(self, content: Mapping[str, Any], **_: int) -> Any:
        if self.is_full:
            message = "no room for 3 bytes"
            raise SnapshotError(message)
        if not isinstance(content["value"], int):
            message = "content.value: a function cannot be saved"
            raise TypeError(message)
        copy = {
            "value": content["value"],
            "model": {"weight": content["model"]["weight"].clone()},
        }
        self.held.append(copy)
        return copy

    def release(self, segment: Any) -> None:
        self.held = [each for each in self.held if each is not segment]

    def remove(self) -> None:
        self.held.clear()


class FakeWriter:
    """A thread in the place of a process; it waits for `go` before it writes."""

    def __init__(
        self, folder: Path, settings: CheckpointSettings, parent: str | None
    ) -> None:
        self.saver = Saver(folder, settings, parent=parent)
        self.go = threading.Event()
        self.thread: threading.Thread | None = None
        self.results: list[Saved | CheckpointWriteError] = []
        self.waits = 0
        self.is_closed = False

    def submit(
        self, segment: Any, *, epoch: int, global_step: int, metrics: Mapping[str, float]
    ) -> None:
        assert self.thread is None or not self.thread.is_alive()

        def write() -> None:
            self.go.wait(60)
            try:
                result: Saved | CheckpointWriteError = self.saver.save(
                    segment, epoch=epoch, global_step=global_step, metrics=metrics
                )
            except CheckpointWriteError as error:
                result = error
            self.results.append(result)

        self.thread = threading.Thread(target=write)
        self.thread.start()

    def poll(self) -> list[Saved | CheckpointWriteError]:
        found, self.results = self.results, []
        return found

    def wait(self) -> None:
        self.waits += 1
        self.go.set()
        if self.thread is not None:
            self.thread.join()

    def close(self) -> None:
        self.wait()
        self.is_closed = True


class Stage:
    """An asynchronous manager with stand-ins."""

    def __init__(self, folder: Path, settings: CheckpointSettings) -> None:
        self.area = FakeArea()
        self.writers: list[FakeWriter] = []
        self.manager = CheckpointManager(
            folder, settings, area=self.area, start_writer=self.start
        )
        self.manager.prepare()

    def start(self, *arguments: Any) -> FakeWriter:
        self.writers.append(FakeWriter(*arguments))
        return self.writers[-1]


MakeStage = Callable[..., Stage]


@pytest.fixture
def stage(folder: Path) -> Iterator[MakeStage]:
    """Make a stage, and close its manager in the end."""
    made: list[Stage] = []

    def make(**more: Any) -> Stage:
        made.append(Stage(folder, replace(SETTINGS, asynchronous=True, **more)))
        return made[-1]

    yield make
    for each in made:
        each.manager.close()
        assert all(writer.is_closed for writer in each.writers)
        assert each.area.held == []


def test_training_goes_on_while_it_is_written(stage: MakeStage) -> None:
    """What changes after `save` returned is not in the checkpoint."""
    it = stage()
    live = content(1)

    it.manager.save(live, epoch=1, global_step=10, metrics={})
    live["model"]["weight"].fill_(99)
    assert it.manager.poll() == []
    assert len(it.area.held) == 1
    (saved,) = it.manager.wait()

    assert it.area.held == []
    assert it.manager.poll() == it.manager.wait() == []
    assert torch.equal(it.manager.load(saved.path)["model"]["weight"], torch.ones(10))


def test_one_write_at_a_time(stage: MakeStage) -> None:
    """A save while another is under way waits for it; none is lost."""
    it = stage()

    for epoch in (1, 2):
        it.manager.save(content(epoch), epoch=epoch, global_step=epoch, metrics={})
    assert it.writers[0].waits == 1
    it.manager.save(content(3), epoch=3, global_step=3, metrics={}, wait=True)

    assert it.area.held == []
    assert [saved.path.name[:9] for saved in it.manager.poll()] == [
        "epoch_001",
        "epoch_002",
        "epoch_003",
    ]
    assert len(it.writers) == 1


def test_poll_tells_when_it_is_done(stage: MakeStage) -> None:
    """Once the writer is done, `poll` says so, and the memory is free."""
    it = stage()
    it.manager.save(content(1), epoch=1, global_step=1, metrics={})
    it.writers[0].wait()

    (saved,) = it.manager.poll()

    assert saved.path.exists()
    assert it.area.held == []


def test_going_back_starts_a_writer_that_knows_its_parent(stage: MakeStage) -> None:
    """The chain follows a load, though the writer lives elsewhere."""
    it = stage()
    first, second = save(it.manager, 1, 2)

    loaded = it.manager.load(first)
    (third,) = save(it.manager, 3)

    assert len(it.writers) == 2
    assert (
        it.manager.load(third)["certificate"]["parent"] == loaded["certificate"]["digest"]
    )
    assert (
        it.manager.load(second)["certificate"]["parent"]
        == loaded["certificate"]["digest"]
    )


@pytest.mark.parametrize("then", ["poll", "save", "wait", "load_newest"])
def test_failure_in_the_background_surfaces(
    stage: MakeStage, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    """Whatever is called next raises it once; the run can go on after it."""
    it = stage()
    (first,) = save(it.manager, 1)
    with monkeypatch.context() as patch:
        patch.setattr(Saver, "save", fail_to_save)
        it.manager.save(content(2), epoch=2, global_step=2, metrics={})
        it.writers[0].wait()

    call = partial(save, it.manager, 3) if then == "save" else getattr(it.manager, then)
    with pytest.raises(CheckpointWriteError, match="No space left"):
        call()

    assert it.manager.poll() == []
    assert it.manager.list() == [first]
    (third,) = save(it.manager, 3)
    found = it.manager.load_newest()
    assert found is not None
    assert found[0] == third


def test_failure_in_the_background_may_be_a_warning(
    stage: MakeStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ``continue`` the run is told, and goes on."""
    it = stage(on_write_error="continue")
    with monkeypatch.context() as patch:
        patch.setattr(Saver, "save", fail_to_save)
        it.manager.save(content(2), epoch=2, global_step=2, metrics={})
        with pytest.warns(CheckpointWarning, match="No space left"):
            assert it.manager.wait() == []


def test_failure_at_the_end_closes_all_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`close` raises what failed last, with process and memory given back."""
    it = Stage(folder, replace(SETTINGS, asynchronous=True))
    monkeypatch.setattr(Saver, "save", fail_to_save)
    it.manager.save(content(2), epoch=2, global_step=2, metrics={})

    with pytest.raises(CheckpointWriteError, match="No space left"):
        it.manager.close()

    assert it.writers[0].is_closed
    assert it.area.held == []
    it.manager.close()


def test_without_memory_it_is_written_here(stage: MakeStage) -> None:
    """Where shared memory does not suffice, training waits, which is told once."""
    it = stage()
    save(it.manager, 1)
    it.area.is_full = True

    with pytest.warns(CheckpointWarning, match="from now on: no room for 3 bytes"):
        (second,) = save(it.manager, 2)
    (third,) = save(it.manager, 3)

    assert it.writers[0].is_closed
    assert it.manager.list() == [third, second]


def test_content_that_cannot_be_copied_is_told(stage: MakeStage) -> None:
    """What cannot be saved is an error that names the checkpoint and the entry."""
    it = stage()

    with pytest.raises(
        CheckpointWriteError, match=r"epoch_001_step_000001.ckpt: .*content.value"
    ):
        it.manager.save({"value": print}, epoch=1, global_step=1, metrics={})


def test_notes_of_a_save_are_warnings(manager: CheckpointManager) -> None:
    """An old checkpoint that cannot be deleted does not stop the run."""
    first, _ = save(manager, 1, 2)
    _folder(first)

    with pytest.warns(CheckpointWarning, match=f"{first}: could not be deleted"):
        save(manager, 3)


def in_shared_memory(folder: Path) -> list[str]:
    """Return what lies in shared memory for *folder*."""
    run_id = uuid.uuid5(uuid.NAMESPACE_URL, folder.absolute().as_uri()).hex
    return [path.name for path in Path("/dev/shm").glob(f"*{run_id}*")]  # noqa: S108


@pytest.mark.slow
def test_with_the_real_memory_and_process(tmp_path: Path, folder: Path) -> None:
    """Through shared memory and another process comes what was given; nothing is left."""
    settings = replace(
        encrypted(tmp_path / "keys", generate_key()),
        asynchronous=True,
        backup_url=f"file://{tmp_path}/far",
        keep_last_n=1,
    )
    with CheckpointManager(folder, settings) as manager:
        manager.prepare()
        for epoch in (1, 2):
            live = {"model": {"weight": torch.full((100_000,), float(epoch))}}
            manager.save(live, epoch=epoch, global_step=epoch, metrics={"loss": 1.0})
            live["model"]["weight"].fill_(99)
        first, second = manager.wait()
        loaded = manager.load(second.path)

    assert torch.equal(loaded["model"]["weight"], torch.full((100_000,), 2.0))
    assert loaded["certificate"]["parent"] == first.digest
    assert 400_000 < second.path.stat().st_size < 420_000
    assert [p.name for p in manager.list()] == [second.path.name]
    assert (tmp_path / "far" / "run" / second.path.name).exists()
    assert in_shared_memory(folder) == []


KILLED = """
import os, signal, sys, time
from pathlib import Path
import torch
from mtf_trainer.checkpoint import CheckpointManager
from mtf_trainer.config import CheckpointSettings

torch.set_num_threads(1)
manager = CheckpointManager(Path(sys.argv[1]), CheckpointSettings())
manager.prepare()
weight = torch.full((5_000_000,), 7.0)
manager.save({"model": {"weight": weight}}, epoch=1, global_step=1, metrics={})
deadline_s = time.monotonic() + 60
while not any(Path(sys.argv[1]).glob("*epoch*")) and time.monotonic() < deadline_s:
    pass
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_training_is_killed_while_it_is_written(
    folder: Path, launch: Callable[..., Any]
) -> None:
    """The process that writes finishes, and the next start waits for it and goes on."""
    (died,) = launch("-c", KILLED, folder, timeout_s=120)
    assert died.code == -9, died.err

    with CheckpointManager(folder, replace(SETTINGS, asynchronous=True)) as manager:
        manager.prepare()
        found = manager.load_newest()

    assert found is not None
    assert torch.equal(found[1]["model"]["weight"], torch.full((5_000_000,), 7.0))
    assert in_shared_memory(folder) == []
