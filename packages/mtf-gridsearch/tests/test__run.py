from __future__ import annotations

import signal
from pathlib import Path
from threading import Thread

import pytest

from mtf_gridsearch._run import interrupts, summarise, take_up, what_is_left
from mtf_gridsearch.errors import SearchFolderError
from mtf_gridsearch.journal import Journal
from mtf_gridsearch.launcher import Launcher
from mtf_gridsearch.local.launcher import LocalLauncher
from mtf_gridsearch.records import ExperimentRecord, Status


def record(
    number: int, status: Status, reason: str = "", *, is_dropped: bool = False
) -> ExperimentRecord:
    """Return what is known of an experiment."""
    return ExperimentRecord(
        experiment_name=f"e{number}",
        identity=f"{number:016x}",
        parameters={"n": number},
        status=status,
        reason=reason,
        is_dropped=is_dropped,
    )


def test_what_is_left_is_told_with_the_command_that_runs_it() -> None:
    """Failures, refusals and interruptions each name their own; what was dropped none."""
    known = [
        record(1, Status.FAILED),
        record(2, Status.MISSING, "could not be started: no room"),
        record(3, Status.CANCELLED),
        record(4, Status.NODE_FAILED, is_dropped=True),
        record(5, Status.SUCCEEDED),
    ]
    records = {r.experiment_name: r for r in known}
    assert list(what_is_left(records, "the same", is_repair=False)) == [
        '1 failed; only="failed" (--only failed) runs those again.',
        "1 could not be started; the same tries those again.",
        "1 did not end; the same starts those again.",
    ]
    *_, last = what_is_left(records, "the same", is_repair=True)
    assert last == (
        '1 did not end; the command without only="failed" (--only failed) starts those '
        "again."
    )
    assert not list(what_is_left({"e5": known[4]}, "the same", is_repair=True))


def test_a_folder_that_is_gone_is_told_of(tmp_path: Path) -> None:
    """Where nothing can be listed or written, the folder is named."""
    (tmp_path / "t.py").touch()
    launcher: Launcher = LocalLauncher(tmp_path / "t.py")
    journal = Journal(tmp_path)
    journal.close()
    with pytest.raises(SearchFolderError, match="gone: it cannot be read"):
        take_up(journal, launcher, tmp_path / "gone")
    (tmp_path / "results_summary.json").mkdir()
    with pytest.raises(SearchFolderError, match="cannot be written"):
        summarise(tmp_path)


def test_ctrl_c_is_heard_once_and_then_as_before() -> None:
    """The first calls the function, the second raises; in another thread nothing changes."""
    calls: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    with interrupts(lambda: calls.append(1)):
        signal.raise_signal(signal.SIGINT)
        assert calls == [1]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before

    def elsewhere() -> None:
        with interrupts(lambda: None):
            calls.append(signal.getsignal(signal.SIGINT) is before)

    thread = Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert calls == [1, True]
