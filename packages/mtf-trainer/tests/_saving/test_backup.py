from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]
import pytest
import torch
from fsspec.implementations.memory import (  # type: ignore[import-untyped]
    MemoryFileSystem,
)

from mtf_trainer._saving.backup import Backup, redact
from mtf_trainer._saving.content import check_digest
from mtf_trainer._saving.files import recorded_digests
from mtf_trainer._saving.ledger import Ledger
from mtf_trainer._saving.saver import Saved, Saver
from mtf_trainer.checkpoint import CheckpointManager
from mtf_trainer.config import CheckpointSettings
from mtf_trainer.errors import BackupError, CheckpointWarning

SETTINGS = CheckpointSettings(asynchronous=False, keep_last_n=2)
HAS_S3 = bool(find_spec("moto") and find_spec("s3fs"))


def save(saver: Saver, epoch: int, value: int | None = None) -> Saved:
    """Save one checkpoint, large enough for more than one block."""
    weight = torch.full((100,), float(epoch if value is None else value))
    return saver.save(
        {"model": {"weight": weight}, "resume": {"epoch": 1, "train": {}}},
        epoch=epoch,
        global_step=epoch,
        metrics={"loss": float(epoch)},
    )


@pytest.fixture
def memory() -> Iterator[dict[str, Any]]:
    """Give fsspec's files in memory, by path."""
    store: dict[str, Any] = MemoryFileSystem.store
    store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    yield store
    store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a place for the checkpoints of a run named so."""
    return tmp_path / "exp_001" / "checkpoints"


@pytest.fixture(scope="module", autouse=True)
def bucket() -> Iterator[str | None]:
    """Serve the protocol of S3 on loopback, and give an address in a bucket there.

    For all tests of this module: its threads and variables are no test's leak.
    """
    if not HAS_S3:
        yield None
        return
    import boto3  # type: ignore[import-untyped]  # noqa: PLC0415 - may be missing
    from moto.server import ThreadedMotoServer  # noqa: PLC0415

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "an-id")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.delenv("AWS_PROFILE", raising=False)
        client = boto3.client("s3")
        client.create_bucket(Bucket="runs")
        client.close()
        # Starts the threads that it keeps.
        fsspec.filesystem("s3").ls("runs")
        forget_s3()
        yield "s3://runs/some/where"
    server.stop()


@pytest.fixture(params=["memory", "file", "s3"])
def url(
    request: pytest.FixtureRequest, tmp_path: Path, bucket: str | None
) -> Iterator[str]:
    """Give an address of each kind, with nothing there."""
    if request.param == "memory":
        request.getfixturevalue("memory")
        yield "memory://far/away"
    elif request.param == "file":
        yield f"file://{tmp_path}/far/away"
    elif bucket is None:
        pytest.skip("moto and s3fs are not installed")
    else:
        yield bucket
        fs, root = fsspec.core.url_to_fs(bucket)
        fs.rm(root, recursive=True)
        forget_s3()


def forget_s3() -> None:
    """Close what s3fs keeps open for the next call."""
    from fsspec.asyn import get_loop  # type: ignore[import-untyped]  # noqa: PLC0415
    from s3fs import S3FileSystem  # type: ignore[import-untyped]  # noqa: PLC0415

    for fs in list(S3FileSystem._cache.values()):
        fs.close_session(get_loop(), fs.s3)
    S3FileSystem.clear_instance_cache()
    for thread in threading.enumerate():
        if "process_request_thread" in thread.name:  # the server's, one a connection
            thread.join(timeout=60)


def there(url: str) -> list[str]:
    """Return the names of the copies of the run, as another client sees them."""
    fs, root = fsspec.core.url_to_fs(url)
    fs.invalidate_cache()
    return sorted(Path(name).name for name in fs.ls(f"{root}/exp_001", detail=False))


def test_copies_follow_the_checkpoints(folder: Path, url: str) -> None:
    """Each is copied with its digest, what is too old goes there too, and comes back whole."""
    saver = Saver(folder, replace(SETTINGS, backup_url=url), parent=None)
    saved = [save(saver, epoch) for epoch in (1, 2, 3)]
    replaced = save(saver, 3, 9)

    assert [each.backup_problem for each in (*saved, replaced)] == [None] * 4
    kept = [each.path.name for each in saved[1:]]
    assert there(url) == sorted(
        ["chain.jsonl", *kept, *(f"{name}.sha256" for name in kept)]
    )
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.name != ".lock"}
    shutil.rmtree(folder)
    backup = Backup(url, folder)
    assert backup.names() == kept[::-1]

    path = backup.fetch(kept[1])

    check_digest(path)
    assert path.read_bytes() == before[path.name]
    assert (folder / "chain.jsonl").read_bytes() == before["chain.jsonl"]
    assert sorted(p.name for p in folder.iterdir() if p.name != ".lock") == [
        "chain.jsonl",
        path.name,
        f"{path.name}.sha256",
    ]


def test_nothing_there_yet(folder: Path, url: str) -> None:
    """An address that holds nothing has no copies, and that is no error."""
    if url.startswith("s3"):
        fs, root = fsspec.core.url_to_fs(url)
        fs.pipe_file(f"{root}/other", b"")
    assert Backup(url, folder).names() == []


def test_copy_that_is_not_whole_does_not_count(folder: Path, url: str) -> None:
    """One without its digest is not listed; one that differs from it is not brought back."""
    saver = Saver(folder, replace(SETTINGS, backup_url=url), parent=None)
    first, second = save(saver, 1), save(saver, 2)
    fs, root = fsspec.core.url_to_fs(url)
    fs.rm_file(f"{root}/exp_001/{second.path.name}.sha256")
    backup = Backup(url, folder)
    assert backup.names() == [first.path.name]
    before = first.path.read_bytes()

    fs.pipe_file(f"{root}/exp_001/{first.path.name}", before[:-1])
    with pytest.raises(BackupError, match="is not what was copied"):
        backup.fetch(first.path.name)

    assert first.path.read_bytes() == before
    assert not list(folder.glob("*.tmp"))
    check_digest(first.path)


@pytest.mark.parametrize("kept", [slice(None, -1), slice(1, None)])
def test_copies_are_read_back(
    folder: Path, memory: dict[str, Any], monkeypatch: pytest.MonkeyPatch, kept: slice
) -> None:
    """A store that keeps other bytes than it was sent, or fewer, is found."""
    settings = replace(SETTINGS, backup_url="memory://far")
    put = MemoryFileSystem.put_file

    def put_wrong(self: Any, here: str, far: str, **more: Any) -> None:
        put(self, here, far, **more)
        data = self.cat_file(far)
        self.pipe_file(far, data[kept] + b"x" * (kept.start or 0))

    monkeypatch.setattr(MemoryFileSystem, "put_file", put_wrong)
    saved = save(Saver(folder, settings, parent=None), 1)

    assert saved.backup_problem is not None
    assert "reads back other bytes than were sent" in saved.backup_problem
    assert not [name for name in memory if name.endswith(".sha256")]
    check_digest(saved.path)


def test_failure_leaves_the_checkpoint_and_the_older_copies(
    folder: Path, memory: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the store fails, what was copied before is as it was, and later ones work."""
    saver = Saver(folder, replace(SETTINGS, backup_url="memory://far"), parent=None)
    save(saver, 1)
    before = sorted(memory)

    def fail(*_: object, **__: object) -> None:
        message = "the network is away\nfor long"
        raise ConnectionError(message)

    monkeypatch.setattr(MemoryFileSystem, "put_file", fail)
    saved = save(saver, 2)
    monkeypatch.undo()

    assert saved.backup_problem == (
        "back-up at memory://far: epoch_002_step_000002.ckpt could not be copied: "
        "ConnectionError: the network is away"
    )
    assert sorted(memory) == before
    check_digest(saved.path)
    assert save(saver, 3).backup_problem is None
    assert sorted(memory) != before


def test_copies_that_cannot_be_deleted_are_told(
    folder: Path, memory: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy that is too old and stays is a problem of the back-up, and nothing worse."""
    settings = replace(SETTINGS, backup_url="memory://far", keep_last_n=1)
    saver = Saver(folder, settings, parent=None)
    save(saver, 1)

    def fail(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(MemoryFileSystem, "rm_file", fail)
    told = save(saver, 2).backup_problem

    assert told is not None
    assert "epoch_001_step_000001.ckpt could not be deleted: PermissionError" in told
    assert any(name.endswith("epoch_002_step_000002.ckpt") for name in memory)


def test_another_runs_copies_are_not_touched(
    tmp_path: Path, memory: dict[str, Any]
) -> None:
    """A run whose folder has the name of another's does not overwrite its copies."""
    settings = replace(SETTINGS, backup_url="memory://far")
    save(Saver(tmp_path / "a" / "exp_001" / "checkpoints", settings, parent=None), 1)
    before = {name: file.getvalue() for name, file in memory.items()}

    other = tmp_path / "b" / "exp_001" / "checkpoints"
    told = save(Saver(other, settings, parent=None), 1, 5).backup_problem

    assert told is not None
    assert "another run's checkpoints lie there" in told
    assert {name: file.getvalue() for name, file in memory.items()} == before
    elsewhere = tmp_path / "b" / "exp_002" / "checkpoints"
    assert save(Saver(elsewhere, settings, parent=None), 1).backup_problem is None


def test_lost_ledger_is_no_other_run(folder: Path, memory: dict[str, Any]) -> None:
    """A run that lost its folder goes on with its copies, and with the lines they had."""
    settings = replace(SETTINGS, backup_url="memory://far")
    saver = Saver(folder, settings, parent=None)
    first = save(saver, 1)
    shutil.rmtree(folder)

    assert save(saver, 2).backup_problem is None

    (ledger,) = (file for name, file in memory.items() if name.endswith("chain.jsonl"))
    assert ledger.getvalue().count(b"\n") == 2
    assert first.digest.encode() in ledger.getvalue()
    assert len(Ledger(folder).read()) == 1


def test_best_copies_stay_as_well(folder: Path, memory: dict[str, Any]) -> None:
    """The copies follow the same wishes, also those of before the folder was lost."""
    settings = replace(SETTINGS, backup_url="memory://far", keep_last_n=1, keep_best_k=1)
    saver = Saver(folder, settings, parent=None)
    for epoch in (1, 2, 3):
        save(saver, epoch)
    shutil.rmtree(folder)
    manager = CheckpointManager(folder, settings)
    with pytest.warns(CheckpointWarning, match="brought back"):
        manager.load_newest()

    save(Saver(folder, settings, parent=manager.parent), 4)

    assert {Path(name).name for name in memory if name.endswith(".ckpt")} == {
        "epoch_001_step_000001.ckpt",
        "epoch_004_step_000004.ckpt",
    }


def test_what_is_missing_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without fsspec the extra is named, and for an unknown address what it lacks."""
    with pytest.raises(BackupError, match=r"never://x: cannot be used: ValueError"):
        Backup("never://x", folder)
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(BackupError, match=r"mtf-trainer\[backup\]"):
        Backup("memory://x", folder)


@pytest.mark.skipif(not HAS_S3, reason="moto and s3fs are not installed")
def test_missing_bucket_is_not_made(folder: Path) -> None:
    """A bucket that does not exist is told: a slip of the pen makes no bucket."""
    settings = replace(SETTINGS, backup_url="s3://slip/of/the/pen")

    told = save(Saver(folder, settings, parent=None), 1).backup_problem

    assert told is not None
    assert told.startswith("back-up at s3://slip/of/the/pen: epoch_001")
    fs, _ = fsspec.core.url_to_fs("s3://slip")
    assert not fs.exists("slip")
    forget_s3()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://bucket/runs", "s3://bucket/runs"),
        ("/a/folder", "/a/folder"),
        ("sftp://ann:pass@word@host/x", "sftp://***@host/x"),
        ("sftp://ann@host/x", "sftp://***@host/x"),
        ("ftp://ann:pa/ss?word@host/x", "ftp://***@host/x"),
        ("https://host/x?token=secret", "https://host/x?***"),
        ("https://host/x#secret?y", "https://host/x#***"),
        (
            "simplecache::sftp://a:b@c/d::sftp://e:f@g/h?i=j",
            "simplecache::sftp://***@c/d::sftp://***@g/h?***",
        ),
    ],
)
def test_credentials_are_not_shown(url: str, shown: str) -> None:
    """Whatever stands before the host or behind the path is left out."""
    assert redact(url) == shown


def test_errors_show_no_credentials(
    folder: Path, memory: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the message nor what it is chained to holds a part of the credentials."""
    assert memory == {}

    def fail(*_: object, **__: object) -> None:
        message = "cannot log in as ann with hunter2 at memory://ann:hunter2@far"
        raise PermissionError(message)

    monkeypatch.setattr(MemoryFileSystem, "ls", fail)
    backup = Backup("memory://ann:hunter2@far", folder)

    with pytest.raises(BackupError) as caught:
        backup.names()

    error: BaseException | None = caught.value
    assert "memory://***@far: cannot be listed: PermissionError" in str(error)
    while error is not None:
        assert "hunter2" not in str(error)
        error = error.__cause__ or (
            None if error.__suppress_context__ else error.__context__
        )


def test_damaged_ledger_there_is_told(folder: Path, memory: dict[str, Any]) -> None:
    """A ledger that others wrote is an error of the back-up, and lines of no use go."""
    settings = replace(SETTINGS, backup_url="memory://far")
    saver = Saver(folder, settings, parent=None)
    first = save(saver, 1)
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/far/exp_001/chain.jsonl", b"no json\n")
    with pytest.raises(BackupError, match="could not be brought back: JSONDecodeError"):
        Backup("memory://far", folder).fetch(first.path.name)

    fs.pipe_file("/far/exp_001/chain.jsonl", b"[1]\n")
    Backup("memory://far", folder).fetch(first.path.name)
    assert len(Ledger(folder).read()) == 1
    assert len(recorded_digests(first.path)) == 1
    assert memory
