from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mtf_trainer import (
    CheckpointSettings,
    CheckpointWarning,
    CheckpointWriteError,
    MetricsFileError,
)
from mtf_trainer._loop.ground import Ground
from mtf_trainer._loop.run_dir import RunDir
from mtf_trainer.metrics import MetricsWriter

STOPS = CheckpointSettings()
GOES_ON = CheckpointSettings(on_write_error="continue")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunDir]:
    """Hold a run's folder."""
    with RunDir(tmp_path / "run") as folder:
        yield folder


def ground(settings: CheckpointSettings, folder: RunDir) -> Ground:
    """Return that of a run in *folder*."""
    made = Ground(settings)
    made.folder = folder
    return made


def test_other_processes_have_nothing_to_lose() -> None:
    """Without folder and metrics all is well."""
    empty = Ground(STOPS)

    empty.check()

    assert empty.is_owned()
    assert not empty.is_lost


def test_lost_folder_is_told_once_or_stops(folder: RunDir, tmp_path: Path) -> None:
    """As it is set; while it is there, nothing is told."""
    stops, goes_on = ground(STOPS, folder), ground(GOES_ON, folder)
    assert stops.is_owned()
    assert goes_on.is_owned()
    assert not goes_on.let_go()
    shutil.rmtree(tmp_path / "run")

    with pytest.raises(CheckpointWriteError, match="was deleted or replaced"):
        stops.is_owned()
    assert not stops.let_go()
    with pytest.warns(CheckpointWarning, match="nothing more is written there") as told:
        found = [goes_on.is_owned(), goes_on.is_owned(), goes_on.let_go()]
    assert found == [False, False, True]
    assert len(told) == 1
    assert goes_on.is_lost


def test_lost_metrics_stop_where_the_folder_is_there(
    folder: RunDir, tmp_path: Path
) -> None:
    """They are no checkpoint: what is set for those is not asked."""
    path = tmp_path / "run" / "metrics.jsonl"
    goes_on = ground(GOES_ON, folder)
    with MetricsWriter(path, keep_bytes=0) as goes_on.metrics:
        assert goes_on.is_owned()
        path.unlink()

        with pytest.raises(MetricsFileError, match="was deleted or replaced"):
            goes_on.is_owned()
        assert not goes_on.let_go()


def test_newest_checkpoint_that_is_left_is_told(folder: RunDir, tmp_path: Path) -> None:
    """The one that was known, or else an older one, or none; with a warning then."""
    goes_on = ground(GOES_ON, folder)
    older, newer = (
        tmp_path / "run" / f"epoch_001_step_00000{number}.ckpt" for number in (1, 2)
    )
    older.touch()
    newer.touch()
    assert goes_on.newest_left(None) is None
    assert goes_on.newest_left(newer) == newer

    newer.unlink()
    with pytest.warns(CheckpointWarning, match="000002.ckpt was deleted during"):
        assert goes_on.newest_left(newer) == older
    older.unlink()
    with pytest.warns(CheckpointWarning, match="000002.ckpt was deleted during"):
        assert goes_on.newest_left(newer) is None
    shutil.rmtree(tmp_path / "run")
    with pytest.warns(CheckpointWarning, match="nothing more is written there"):
        assert goes_on.newest_left(newer) is None


def test_chain_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    """It names the file."""
    (tmp_path / "chain.jsonl").mkdir()

    with pytest.raises(CheckpointWriteError, match=r"chain\.jsonl: cannot be read"):
        Ground(CheckpointSettings()).look_at_chain(tmp_path / "a.ckpt", {})
