from __future__ import annotations

import fcntl
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.testing.pytest_storages import StorageTestCase
from optuna.trial import TrialState

from mtf_gridsearch._study import (
    JournalLock,
    Outcome,
    Sight,
    Store,
    StoredTrial,
    open_storage,
    quiet,
)
from mtf_gridsearch.distributions import uniform
from mtf_gridsearch.errors import SearchFolderError
from mtf_gridsearch.grid import ParameterGrid

LOW = StudyDirection.MINIMIZE


def trial(number: int, x: float = 0.5, **options: Any) -> StoredTrial:
    """Return a trial of two parameters."""
    return StoredTrial(
        number=number,
        experiment_name=f"d_{number:04d}",
        parameters={"x": x, "y": [1]},
        params={"x": x, "y": "[1]"},
        distributions={
            "x": FloatDistribution(0, 1),
            "y": CategoricalDistribution(["[1]", "[2]"]),
        },
        **options,
    )


@pytest.fixture(params=["file", "sqlite"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Store]:
    """Return a function that opens the same store again, as another process would."""
    url = None if request.param == "file" else f"sqlite:///{tmp_path}/study.db"
    return lambda: Store(open_storage(tmp_path / "study.log", url), "d", LOW)


class TestStorage(StorageTestCase):
    """Optuna's own suite over its journal file with our lock, which also mends it."""

    @pytest.fixture
    def storage(self, tmp_path: Path) -> Iterator[BaseStorage]:
        with warnings.catch_warnings():
            # The suite uses what Optuna calls experimental, and leaves it to warn.
            warnings.simplefilter("ignore")
            yield open_storage(tmp_path / "study.log", None)


def test_what_is_stored_is_read_by_the_next_process(reopen: Callable[[], Store]) -> None:
    """Numbers, names, parameters, the sampler's notes and outcomes come back equal."""
    store = reopen()
    trials = {
        0: trial(0, attributes={"note": [1]}),
        1: trial(1, outcome=Outcome(TrialState.COMPLETE, 0.25)),
        2: trial(2, outcome=Outcome(TrialState.FAIL)),
    }
    for each in trials.values():
        store.add(each)
    assert reopen().read() == trials


def test_a_trial_is_finished_once_and_corrected_by_another(
    reopen: Callable[[], Store],
) -> None:
    """Where two have a number the later counts, and Optuna's own rules are kept."""
    store = reopen()
    store.add(trial(0))
    store.add(trial(1))
    store.finish(trial(1), Outcome(TrialState.PRUNED, 0.5, {1: 0.75, 4: 0.5}))
    store = reopen()
    assert store.read()[1].outcome == Outcome(TrialState.PRUNED, 0.5, {4: 0.5})
    store.finish(trial(0), Outcome(TrialState.FAIL))
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        store.finish(trial(0), Outcome(TrialState.COMPLETE, 1.0))
    store.add(trial(0, outcome=Outcome(TrialState.COMPLETE, 1.0)))
    found = reopen().read()
    assert found[0].outcome == Outcome(TrialState.COMPLETE, 1.0)
    assert sorted(found) == [0, 1]


def test_trials_of_somebody_else_are_not_ours(tmp_path: Path) -> None:
    """Optuna's tools may add some to the study by hand."""
    storage = open_storage(tmp_path / "study.log", None)
    store = Store(storage, "d", LOW)
    storage.create_new_trial(storage.get_study_id_from_name("d"))
    assert store.read() == {}


def test_outcomes_are_like_each_other_whatever_the_curve() -> None:
    """A storage keeps the end of a curve alone."""
    one = Outcome(TrialState.PRUNED, 0.5, {1: 1.0, 2: 0.5})
    assert one.is_like(Outcome(TrialState.PRUNED, 0.5, {2: 0.5}))
    assert not one.is_like(Outcome(TrialState.COMPLETE, 0.5))
    assert not one.is_like(Outcome(TrialState.PRUNED, 0.25))


@pytest.mark.parametrize("torn", [b"{", b'{"op_code": 4, "worker', b"x" * 200_000])
def test_a_torn_line_is_cut_off_before_the_next(tmp_path: Path, torn: bytes) -> None:
    """What a full disk left does not spoil what is written after it."""
    path = tmp_path / "study.log"
    Store(open_storage(path, None), "d", LOW).add(trial(0))
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    store = Store(open_storage(path, None), "d", LOW)
    assert sorted(store.read()) == [0]
    store.add(trial(1))
    assert path.read_bytes().startswith(whole)
    assert all(json.loads(line) for line in path.read_text("utf-8").splitlines())
    assert sorted(Store(open_storage(path, None), "d", LOW).read()) == [0, 1]


def test_a_file_without_a_whole_line_is_emptied(tmp_path: Path) -> None:
    """A torn first line is no reason to refuse it."""
    (tmp_path / "study.log").write_bytes(b'{"op_code"')
    store = Store(open_storage(tmp_path / "study.log", None), "d", LOW)
    assert store.read() == {}


HOLDER = """
import sys
from pathlib import Path
from mtf_gridsearch._study import JournalLock
JournalLock(Path(sys.argv[1])).acquire()
print("held", flush=True)
sys.stdin.read()
"""


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    """At once, and not after half a minute, as with a lock that is a file."""
    path = tmp_path / "study.log"
    argv = [sys.executable, "-c", HOLDER, str(path)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(argv, **pipes) as holder, path.open("wb") as file:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            with pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            holder.kill()
        holder.wait()
        lock = JournalLock(path)
        assert lock.acquire()
        lock.release()


def test_a_file_that_cannot_be_mended_is_not_left_locked(tmp_path: Path) -> None:
    """What was opened is closed before the error leaves."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="Illegal seek"):
        JournalLock(tmp_path / "pipe").acquire()


def binaries() -> Path | None:
    """Return the folder of PostgreSQL's programs; None where there is none."""
    found = [*Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    on_path = shutil.which("initdb")
    found += [Path(on_path).resolve()] if on_path else []
    return found[0].parent if found else None


@pytest.fixture
def postgresql(wait_for: Callable[..., None]) -> Iterator[str]:
    """Run a server of our own, on a socket in a folder of its own; return its address."""
    programs = binaries()
    if programs is None:
        pytest.skip("PostgreSQL's programs are not installed")
    pytest.importorskip("psycopg", reason="the driver psycopg is not installed")
    # A socket's path must be short; the server refuses to be root.
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    user = "nobody" if os.geteuid() == 0 else None
    if user is not None:
        shutil.chown(folder, user)
    options: dict[str, Any] = {"user": user, "cwd": folder, "stdout": subprocess.DEVNULL}
    data, server = folder / "data", None
    try:
        init = (programs / "initdb", "-D", data, "-U", "mtf", "-A", "trust", "--no-sync")
        subprocess.run(init, check=True, **options)
        argv = (programs / "postgres", "-D", data, "-k", folder, "-h", "")
        server = subprocess.Popen(argv, stderr=subprocess.DEVNULL, **options)
        ready = (programs / "pg_isready", "-q", "-h", folder)
        wait_for(lambda: not subprocess.run(ready, check=False).returncode)
        yield f"postgresql+psycopg://mtf@/postgres?host={folder}"
    finally:
        if server is not None:
            server.send_signal(signal.SIGINT)
            server.wait(60)
        shutil.rmtree(folder)


@pytest.mark.slow
def test_a_postgresql_server_is_a_storage_like_any_other(
    postgresql: str, tmp_path: Path
) -> None:
    """What one process stores another reads, and a finished trial stays finished."""
    store = Store(open_storage(tmp_path / "x", postgresql), "d", LOW)
    store.add(trial(0))
    store.add(trial(1))
    store = Store(open_storage(tmp_path / "x", postgresql), "d", LOW)
    assert sorted(store.read()) == [0, 1]
    store.finish(trial(1), Outcome(TrialState.PRUNED, 0.5, {4: 0.5}))
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        store.finish(trial(1), Outcome(TrialState.COMPLETE, 0.5))
    found = Store(open_storage(tmp_path / "x", postgresql), "d", LOW).read()
    assert found[0].outcome is None
    assert found[1].outcome == Outcome(TrialState.PRUNED, 0.5, {4: 0.5})


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+nowhere://user:hunter2@host/name",
        "sqlite:////nowhere/at/all.db",
        "hunter2",
    ],
)
def test_a_storage_that_cannot_be_opened_is_refused_without_its_password(
    tmp_path: Path, url: str
) -> None:
    """Neither the message nor what caused it holds one."""
    with pytest.raises(SearchFolderError, match="cannot be opened") as caught:
        open_storage(tmp_path / "study.log", url)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_optuna_is_quiet_and_then_as_loud_as_before(tmp_path: Path) -> None:
    """It says nothing of our studies, and its own setting stays."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logger = logging.getLogger("optuna")
    logger.addHandler(handler)
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.INFO)
    try:
        Store(open_storage(tmp_path / "study.log", None), "d", LOW)
        Sight("d", LOW, optuna.samplers.RandomSampler(), None)
        with quiet():
            assert optuna.logging.get_verbosity() == optuna.logging.WARNING
        assert optuna.logging.get_verbosity() == optuna.logging.INFO
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with quiet():
            assert optuna.logging.get_verbosity() == optuna.logging.ERROR
    finally:
        optuna.logging.set_verbosity(before)
        logger.removeHandler(handler)
    assert stream.getvalue() == ""


def test_what_is_in_sight_is_what_was_shown() -> None:
    """Trials stand in the order in which they were added, with what is known of them."""
    sight = Sight("d", LOW, optuna.samplers.RandomSampler(seed=0), None)
    trials = {0: trial(0), 1: trial(1)}
    outcomes = {0: Outcome(TrialState.COMPLETE, 1.0)}
    sight.update(trials, outcomes)
    outcomes[1] = Outcome(TrialState.PRUNED, 0.5, {3: 0.5})
    sight.update(trials, outcomes)
    space = ParameterGrid("g").add_parameter("x", uniform(0, 1))
    drawn = sight.ask(space, optuna.samplers.RandomSampler(seed=1))
    assert drawn is not None
    assert drawn.combination == drawn.params
    sight.keep(2)
    sight.keep(3)  # nobody was asked for it
    trials |= {2: trial(2), 3: trial(3)}
    sight.update(trials, outcomes | {2: Outcome(TrialState.FAIL)})
    states = [each.state.name for each in sight.study.trials]
    assert states == ["COMPLETE", "PRUNED", "FAIL", "RUNNING"]
    assert sight.ask(space.where("x > 2"), optuna.samplers.RandomSampler()) is None


def test_a_pruner_sees_each_step_once_and_says_where_to_stop() -> None:
    """Steps that it saw already are not shown again, whatever is asked."""
    pruner = optuna.pruners.ThresholdPruner(upper=1.0, n_warmup_steps=1)
    sight = Sight("d", LOW, optuna.samplers.RandomSampler(), pruner)
    sight.update({0: trial(0)}, {})
    assert sight.pruned_at(0, [(0, 9.0), (1, 0.5)]) is None
    assert sight.pruned_at(0, [(0, 9.0), (1, 0.5), (2, 0.5), (3, 1.5), (4, 2.0)]) == 3
    assert sight.pruned_at(0, [(3, 1.5)]) is None
