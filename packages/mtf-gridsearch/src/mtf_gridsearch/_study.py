"""Trials as Optuna keeps them: what is stored, and what a sampler is shown.

A trial is stored in one step, with all its parameters, and finished in one step: whenever a
process is killed, a trial is there or not. Numbers are the search's own and lie in the
user attribute ``number``; where two stored trials have the same one, the later counts: so
is a failed trial corrected that was run again.

Optuna has no say in who is alive: no heartbeat, no trial failed for being silent.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from mtf_gridsearch import _space
from mtf_gridsearch._combined import Combination, Grid
from mtf_gridsearch.errors import SearchFolderError
from mtf_gridsearch.records import Curve

__all__ = [
    "Drawn",
    "JournalLock",
    "Outcome",
    "Sight",
    "Store",
    "StoredTrial",
    "open_storage",
    "quiet",
]

_BLOCK = 1 << 16
NUMBER = "number"
NAME = "experiment_name"
PARAMETERS = "parameters"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a trial ended.

    Attributes:
        state: Complete, pruned or failed.
        value: The objective; None where it failed.
        curve: What a pruner is shown of it, by step.
    """

    state: TrialState
    value: float | None = None
    curve: Mapping[int, float] = field(default_factory=dict)

    def is_like(self, other: Outcome) -> bool:
        """Whether a storage needs no correction: it keeps no whole curve."""
        return (self.state, self.value) == (other.state, other.value)


@dataclass(frozen=True, slots=True)
class Drawn:
    """A combination that was chosen, and what a trial of it has."""

    combination: Combination
    params: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]
    attributes: Mapping[str, Any]


@dataclass(slots=True)
class StoredTrial:
    """A trial of the search, as it is stored.

    Attributes:
        experiment_name: Whose parameters these are.
        parameters: By dotted key, as the experiment has them.
        params: The same by Optuna's names, and *distributions* what each is from.
        attributes: What the sampler noted about it.
        outcome: How it ended; None while it is open.
    """

    number: int
    experiment_name: str
    parameters: Mapping[str, Any]
    params: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    outcome: Outcome | None = None

    def frozen(self, outcome: Outcome | None) -> FrozenTrial:
        """Return it for Optuna, as it is with *outcome*."""
        return create_trial(
            state=TrialState.RUNNING if outcome is None else outcome.state,
            value=None if outcome is None else outcome.value,
            params=dict(self.params),
            distributions=dict(self.distributions),
            user_attrs={
                NUMBER: self.number,
                NAME: self.experiment_name,
                PARAMETERS: dict(self.parameters),
            },
            system_attrs=dict(self.attributes),
            intermediate_values={} if outcome is None else dict(outcome.curve),
        )


class Store:
    """The trials of one search in a storage of Optuna's.

    Raises:
        Exception: What the storage raises, from every method.
    """

    def __init__(
        self, storage: BaseStorage, name: str, direction: StudyDirection
    ) -> None:
        self._storage = storage
        with quiet():
            try:
                self._study_id = storage.get_study_id_from_name(name)
            except KeyError:
                self._study_id = storage.create_new_study([direction], name)
        self._ids: dict[int, int] = {}

    def read(self) -> dict[int, StoredTrial]:
        """Return the trials by number."""
        found = {}
        for trial in self._storage.get_all_trials(self._study_id, deepcopy=False):
            if NUMBER not in trial.user_attrs:
                continue  # somebody else's
            number = trial.user_attrs[NUMBER]
            self._ids[number] = trial._trial_id  # noqa: SLF001 -- it has no other name
            outcome = None
            if trial.state.is_finished():
                value = None if trial.values is None else trial.values[0]
                outcome = Outcome(trial.state, value, dict(trial.intermediate_values))
            found[number] = StoredTrial(
                number=number,
                experiment_name=trial.user_attrs[NAME],
                parameters=trial.user_attrs[PARAMETERS],
                params=trial.params,
                distributions=trial.distributions,
                attributes=trial.system_attrs,
                outcome=outcome,
            )
        return found

    def add(self, trial: StoredTrial) -> None:
        """Store a trial as it is."""
        frozen = trial.frozen(trial.outcome)
        self._ids[trial.number] = self._storage.create_new_trial(self._study_id, frozen)

    def finish(self, trial: StoredTrial, outcome: Outcome) -> None:
        """Store how an open trial ended."""
        trial_id = self._ids[trial.number]
        for step, value in list(outcome.curve.items())[-1:]:
            self._storage.set_trial_intermediate_value(trial_id, step, value)
        values = None if outcome.value is None else [outcome.value]
        self._storage.set_trial_state_values(trial_id, outcome.state, values)


class Sight:
    """What a sampler or a pruner sees: trials in memory, in the order of their numbers."""

    def __init__(
        self,
        name: str,
        direction: StudyDirection,
        sampler: BaseSampler,
        pruner: BasePruner | None,
    ) -> None:
        self._storage = InMemoryStorage()
        with quiet():
            self._study_id = self._storage.create_new_study([direction], name)
        self.study = optuna.Study(name, self._storage, sampler=sampler, pruner=pruner)
        self._ids: dict[int, int] = {}
        self._ended: set[int] = set()
        self._asked: int | None = None

    def update(
        self, trials: Mapping[int, StoredTrial], outcomes: Mapping[int, Outcome]
    ) -> None:
        """Show *trials* that are not in sight, and *outcomes* that are not, by number."""
        for number in sorted(trials.keys() - self._ids.keys()):
            self._add(trials[number], outcomes.get(number))
        for number in sorted(outcomes.keys() - self._ended):
            self._finish(number, outcomes[number])

    def _add(self, trial: StoredTrial, outcome: Outcome | None) -> None:
        frozen = trial.frozen(outcome)
        self._ids[trial.number] = self._storage.create_new_trial(self._study_id, frozen)
        if outcome is not None:
            self._ended.add(trial.number)

    def _finish(self, number: int, outcome: Outcome) -> None:
        trial_id = self._ids[number]
        shown = self._storage.get_trial(trial_id).intermediate_values
        for step, value in outcome.curve.items():
            if step not in shown:
                self._storage.set_trial_intermediate_value(trial_id, step, value)
        values = None if outcome.value is None else [outcome.value]
        self._storage.set_trial_state_values(trial_id, outcome.state, values)
        self._ended.add(number)

    def ask(self, grid: Grid, sampler: BaseSampler) -> Drawn | None:
        """Let *sampler* choose from *grid*; None if what it chose is forbidden.

        What was chosen stays in sight: `keep` it, or look at this no more.
        """
        self.study.sampler = sampler
        combination = _space.suggest(grid, self.study.ask())
        if combination is None:
            return None
        trial = self.study.get_trials(deepcopy=False)[-1]
        # It has no other name.
        self._asked = trial._trial_id  # noqa: SLF001
        return Drawn(combination, trial.params, trial.distributions, trial.system_attrs)

    def keep(self, number: int) -> None:
        """Let what was asked last, if anything, be trial *number*."""
        if self._asked is not None:
            self._ids[number], self._asked = self._asked, None

    def pruned_at(self, number: int, points: Curve) -> int | None:
        """Show new *points* of a running trial; return the step at which it is given up."""
        trial_id = self._ids[number]
        shown = self._storage.get_trial(trial_id).intermediate_values
        newest = max(shown, default=-1)
        for step, value in points:
            if step > newest:
                self._storage.set_trial_intermediate_value(trial_id, step, value)
                trial = self._storage.get_trial(trial_id)
                if self.study.pruner.prune(self.study, trial):
                    return step
        return None


class JournalLock:
    """Locks a journal file of Optuna's by `flock(2)`, and mends it.

    The kernel frees the lock when its holder dies, so nobody waits for a dead process; a
    line that a kill or a full disk left torn is cut off before the next is written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1

    def acquire(self) -> bool:
        """Wait for the lock, and take it."""
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            _cut_torn_line(fd)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        return True

    def release(self) -> None:
        """Give the lock back."""
        fd, self._fd = self._fd, -1
        os.close(fd)


def open_storage(path: Path, url: str | None) -> BaseStorage:
    """Return the journal file *path* as a storage, or the database at *url*.

    Raises:
        SearchFolderError: If the database cannot be used; the address is left out.
    """
    if url is None:
        # Optuna's own type is not public; it asks for these two methods.
        lock: Any = JournalLock(path)
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    # Only who has a database pays for it.
    from sqlalchemy.pool import NullPool  # noqa: PLC0415

    try:
        with quiet():
            # A connection an operation: none is left open, none dies between two trials.
            return RDBStorage(url, engine_kwargs={"poolclass": NullPool})
    except Exception as error:  # noqa: BLE001 -- a driver's own
        # Messages of databases hold what they were given, passwords as well.
        reason = (
            f"the storage of its trials cannot be opened ({type(error).__name__}): check "
            f"its address, that the database answers, and that its driver is installed"
        )
        raise SearchFolderError(path.parent, reason) from None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Optuna from telling of each study and trial on stderr."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _cut_torn_line(fd: int) -> None:
    size = os.lseek(fd, 0, os.SEEK_END)
    end = size
    while end > 0:
        start = max(0, end - _BLOCK)
        place = os.pread(fd, end - start, start).rfind(b"\n")
        if place >= 0:
            end = start + place + 1
            break
        end = start
    if end < size:
        os.ftruncate(fd, end)
