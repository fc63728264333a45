from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from mtf_trainer import checkpoint
from mtf_trainer.checkpoint import CheckpointStore
from mtf_trainer.errors import (
    CheckpointDamagedError,
    CheckpointWarning,
    CheckpointWriteError,
)


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    """Keep two in a folder that is ready."""
    store = CheckpointStore(tmp_path / "checkpoints", keep_last_n=2)
    store.prepare()
    return store


def content(value: int = 0, size: int = 10) -> dict[str, Any]:
    """Return something to keep."""
    return {"value": value, "weight": torch.full((size,), float(value))}


def save(store: CheckpointStore, *epochs: int) -> list[Path]:
    """Save one checkpoint per epoch, 10 steps each."""
    return [store.save(content(e), epoch=e, global_step=10 * e) for e in epochs]


def names(folder: Path) -> list[str]:
    """Return what lies in *folder*, in order."""
    return sorted(path.name for path in folder.iterdir())


def test_saved_checkpoint_is_what_others_can_read(store: CheckpointStore) -> None:
    """Plain torch loads it, ``sha256sum -c`` accepts its digest, the link is relative."""
    (path,) = save(store, 5)

    assert path.name == "epoch_005_step_000050.ckpt"
    assert torch.load(path, weights_only=True)["value"] == 5
    subprocess.run(
        ["sha256sum", "--strict", "-c", f"{path.name}.sha256"],
        cwd=path.parent,
        check=True,
        capture_output=True,
        timeout=60,
    )
    latest = path.parent / "latest.ckpt"
    assert str(latest.readlink()) == path.name
    assert names(path.parent) == [path.name, f"{path.name}.sha256", "latest.ckpt"]


def test_newest_is_loaded_and_the_oldest_go(store: CheckpointStore) -> None:
    """Of three saved with two to keep, the last two remain, each with its digest."""
    paths = save(store, 1, 2, 3)

    found = store.load_newest()

    assert found is not None
    assert found[0] == paths[2]
    assert found[1]["value"] == 3
    assert store.list() == [paths[2], paths[1]]
    assert len(names(paths[0].parent)) == 5


def test_order_is_by_number(tmp_path: Path) -> None:
    """Epoch 1000 is newer than epoch 999, though its name sorts before."""
    store = CheckpointStore(tmp_path / "c", keep_last_n=9)
    store.prepare()

    paths = save(store, 999, 1000)

    assert store.list() == [paths[1], paths[0]]


def test_nothing_there_is_none(tmp_path: Path) -> None:
    """An empty folder, or none at all, holds no checkpoint and is no error."""
    assert CheckpointStore(tmp_path / "none", keep_last_n=1).load_newest() is None


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
    digest = checkpoint._sha256(path)
    path.with_name(f"{path.name}.sha256").write_text(f"{digest}  {path.name}\n", "utf-8")


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
    store: CheckpointStore, damage: Any, problem: str
) -> None:
    """However the newest is damaged, a warning names it and the one before is loaded."""
    older, newest = save(store, 1, 2)
    damage(newest)

    with pytest.warns(CheckpointWarning, match=f"{newest}: .*{problem}"):
        found = store.load_newest()

    assert found is not None
    assert found[0] == older
    assert not Path("/tmp/mtf-trainer-ran-hostile-code").exists()  # noqa: S108


def test_all_damaged_is_an_error(store: CheckpointStore) -> None:
    """With nothing left to go on from, the run does not silently begin anew."""
    for path in save(store, 1, 2):
        _cut(path)

    with (
        pytest.warns(CheckpointWarning),
        pytest.raises(CheckpointDamagedError, match="none of its 2 checkpoints"),
    ):
        store.load_newest()


def test_unreadable_file_is_damaged(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of the file system while reading is told by name."""
    (path,) = save(store, 1)

    def fail(_: Path) -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(checkpoint, "_sha256", fail)

    with pytest.raises(
        CheckpointDamagedError, match="cannot be read: Input/output error"
    ):
        store.load(path)


def test_dangling_link_is_renewed(store: CheckpointStore) -> None:
    """A latest link that leads nowhere hinders neither loading nor saving."""
    (first,) = save(store, 1)
    latest = first.parent / "latest.ckpt"
    latest.unlink()
    latest.symlink_to("gone.ckpt")

    found = store.load_newest()
    (second,) = save(store, 2)

    assert found is not None
    assert found[0] == first
    assert latest.resolve() == second


def test_leftovers_of_an_interrupted_write_go(store: CheckpointStore) -> None:
    """Files written aside, and a digest without its checkpoint, are deleted at the start."""
    (path,) = save(store, 1)
    folder = path.parent
    kept = [*names(folder), "notes.txt"]
    (folder / "notes.txt").touch()
    for name in (
        ".epoch_002_step_000020.ckpt.tmp",
        ".epoch_002_step_000020.ckpt.sha256.tmp",
        ".latest.ckpt.tmp",
        "epoch_002_step_000020.ckpt.sha256",
    ):
        (folder / name).touch()

    store.prepare()

    assert names(folder) == kept


def test_interrupted_write_does_not_hinder_the_next(store: CheckpointStore) -> None:
    """A file, or a link, where the next one is to be written aside is replaced."""
    (path,) = save(store, 1)
    victim = path.parent / "victim"
    victim.write_text("mine", "utf-8")
    (path.parent / ".epoch_002_step_000020.ckpt.tmp").symlink_to(victim)
    (path.parent / ".latest.ckpt.tmp").touch()

    save(store, 2)

    assert victim.read_text("utf-8") == "mine"
    assert len(store.list()) == 2


@contextmanager
def files_up_to(size_bytes: int) -> Iterator[None]:
    """Let no file grow beyond *size_bytes*, as a full disk would not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_leaves_the_last_good_one(store: CheckpointStore) -> None:
    """A write that does not fit is a clear error; nothing of it stays, nothing is lost."""
    (good,) = save(store, 1)
    before = names(good.parent)

    with (
        files_up_to(20_000),
        pytest.raises(
            CheckpointWriteError, match=r"epoch_002.*cannot be written: File too large"
        ),
    ):
        store.save(content(2, size=100_000), epoch=2, global_step=20)

    assert names(good.parent) == before
    assert store.load(good)["value"] == 1


@pytest.mark.parametrize("call", ["fsync", "open"])
def test_failing_disk_leaves_the_last_good_one(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """When bringing bytes or names to the disk fails, the one before is untouched."""
    (good,) = save(store, 1)

    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(CheckpointWriteError, match="cannot be written: Input/output"):
        save(store, 2)
    monkeypatch.undo()

    assert store.load(good)["value"] == 1
    assert not [name for name in names(good.parent) if name.endswith(".tmp")]


def test_written_bytes_are_read_back(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that returns other bytes than it took is found before an older one goes."""
    good = save(store, 1, 2)
    monkeypatch.setattr(checkpoint, "_sha256", lambda _: "0" * 64)

    with pytest.raises(CheckpointWriteError, match="reads back other bytes"):
        save(store, 3)

    assert store.list() == [good[1], good[0]]


def test_content_beyond_plain_data_is_refused_when_saved(store: CheckpointStore) -> None:
    """What could not be loaded without running code is refused now, not at the resume."""
    (good,) = save(store, 1)

    with pytest.raises(CheckpointWriteError, match="more than plain data"):
        store.save({"value": Hostile()}, epoch=2, global_step=20)
    with pytest.raises(CheckpointWriteError, match=r"cannot be written: .*pickle"):
        store.save({"value": lambda: 0}, epoch=2, global_step=20)

    assert store.list() == [good]


def test_folder_in_the_links_place_is_a_clear_error(store: CheckpointStore) -> None:
    """A folder named latest.ckpt is not deleted; the checkpoint itself is there."""
    (path,) = save(store, 1)
    latest = path.parent / "latest.ckpt"
    latest.unlink()
    latest.mkdir()

    with pytest.raises(CheckpointWriteError, match="cannot be written"):
        save(store, 2)

    assert latest.is_dir()
    assert [store.load(p)["value"] for p in store.list()] == [2, 1]
    assert ".latest.ckpt.tmp" not in names(path.parent)


def test_retention_never_deletes_a_newer_one(tmp_path: Path) -> None:
    """Saving an older epoch again, as after a damaged one, deletes older ones only."""
    store = CheckpointStore(tmp_path / "c", keep_last_n=1)
    store.prepare()
    (newer,) = save(store, 5)

    (saved,) = save(store, 4)

    assert store.list() == [newer, saved]


def test_undeletable_old_one_is_a_warning(store: CheckpointStore) -> None:
    """An old one that cannot be deleted does not stop the run."""
    first, _ = save(store, 1, 2)
    _folder(first)

    with pytest.warns(
        CheckpointWarning, match=re.escape(f"{first}: could not be deleted")
    ):
        save(store, 3)


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
            CheckpointStore(folder, keep_last_n=1).prepare()


def test_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    """A file where the folder belongs is a clear error, and holds no checkpoints."""
    (tmp_path / "checkpoints").touch()
    store = CheckpointStore(tmp_path / "checkpoints", keep_last_n=1)

    with pytest.raises(CheckpointWriteError, match="cannot be written here: File exists"):
        store.prepare()
    assert store.list() == []
