"""The trials of one run of a Bayesian search: see `mtf_gridsearch.bayes`."""

from __future__ import annotations

import json
import random
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from mtf_gridsearch import _space, _study, _yaml
from mtf_gridsearch._axis import Axis
from mtf_gridsearch._definition import Definition
from mtf_gridsearch._samplers import make_pruner, make_sampler, seed_of
from mtf_gridsearch._values import reason_to_leave_out, value_of
from mtf_gridsearch.errors import (
    GridError,
    GridSearchError,
    ResultsError,
    SearchFolderError,
)
from mtf_gridsearch.identity import identity_of
from mtf_gridsearch.metrics_file import METRICS_NAME, read_curves
from mtf_gridsearch.records import Curve, ExperimentRecord, GridExperiment, Status

__all__ = ["STORAGE_NAME", "BayesianSupply"]

STORAGE_NAME = "optuna_journal.log"
STUDY_NAME = "optuna_study.json"  # for a database: which of its studies is ours

_NUMBER = re.compile(r".*_(\d{4,})__[0-9a-f]{16}")
_NUM_ASKED = 5
_NUM_DRAWN = 1000
_LAST_STEP = 2**31 - 1
_ENDED = (Status.SUCCEEDED, Status.STOPPED, Status.FAILED, Status.TIMEOUT)


class BayesianSupply:
    """Hands trials out and takes results back; fits `Supply`. For one thread.

    Raises:
        SearchFolderError: If the storage fails; from every method.
    """

    def __init__(
        self,
        definition: Definition,
        folder: Path,
        records: Mapping[str, ExperimentRecord],
    ) -> None:
        self._definition, self._folder = definition, folder
        self._pruner = make_pruner(definition.pruner)
        self._experiments: dict[int, GridExperiment[Any]] = {}
        self._numbers: dict[str, int] = {}
        self._by_identity: dict[str, int] = {}
        self._outcomes: dict[int, _study.Outcome] = {}
        self._unresolved: set[int] = set()
        self._has_skipped = False
        self.notes: list[str] = []  # what the user is to be told, taken by who tells it
        self._handed_out: set[int] = set()  # and not told to have ended
        self._sight: _study.Sight | None = None
        self._judge: _study.Sight | None = None

        numbered = {n: r for r in records.values() if (n := _number(r)) is not None}
        with self._storing():
            self._store = self._opened_store()
            self._trials = self._store.read()
            for number, record in numbered.items():
                self._adopt(number, record)
            for number in sorted(self._trials):
                self._know(number)
                self._unresolved.add(number)
            for number, record in numbered.items():
                self._resolve(number, record)
        states = dict.fromkeys(self._trials, (Status.MISSING, False))
        states |= {n: (r.status, r.has_failed) for n, r in numbered.items()}
        wanted = [n for n, (s, f) in states.items() if definition.starts(s, has_failed=f)]
        self._again = sorted(wanted, reverse=True)

    @property
    def total(self) -> int:
        """How many trials there will be in all."""
        return max(self._definition.num_trials, len(self._trials))

    @property
    def metric(self) -> None:
        """None: `tell` refuses a metric that is not reported."""

    @property
    def is_exhausted(self) -> bool:
        """Whether nothing is left to hand out, nor will be when what is out has ended."""
        if self._again:
            return False
        if self._next is None:
            return True
        # A trial that was cancelled is in the way of later ones, until another run.
        return not self._may_ask and not self._handed_out

    def take(self, most: int) -> Sequence[GridExperiment[Any]]:
        """Return trials that were lost, and then new ones; none where results are due.

        Raises:
            GridError: If constraints leave nothing to choose.
            InvalidExperimentsError: If what was chosen does not fit the base config.
        """
        taken: list[int] = []
        while len(taken) < most and self._again:
            taken.append(self._again.pop())
        while len(taken) < most and self._may_ask:
            taken.append(self._ask())
        self._handed_out.update(taken)
        return [self._experiments[number] for number in taken]

    def observe(
        self, record: ExperimentRecord, curves: Mapping[str, Curve]
    ) -> str | None:
        """Ask the pruner; return why to stop, or None."""
        number = self._numbers.get(record.experiment_name)
        if self._pruner is None or number is None or number in self._outcomes:
            return None
        curve = curves.get(self._definition.metric, ())
        points = self._prunable(curve)
        # A pruner compares with all that is known, whatever the sampler may see.
        self._judge = self._judge or self._new_sight()
        self._judge.update(self._trials, self._outcomes)
        step = self._judge.pruned_at(number, points)
        if step is None:
            return None
        return f"{type(self._pruner).__name__} gave it up at step {step}"

    def tell(self, record: ExperimentRecord) -> None:
        """Take note of how a trial ended; one that was lost waits for another attempt.

        Raises:
            ResultsError: If no trial has ever reported the metric, and this one succeeded.
        """
        number = self._numbers.get(record.experiment_name)
        if number is None:
            return
        self._handed_out.discard(number)
        with self._storing():
            self._resolve(number, record)

    @property
    def _next(self) -> int | None:
        """The number of the next new trial; None if there is none."""
        free = (n for n in range(len(self._trials) + 1) if n not in self._trials)
        number = next(free)
        is_over = number >= self._definition.num_trials or self._definition.only
        return None if is_over else number

    @property
    def _may_ask(self) -> bool:
        """Whether all results are there that the next new trial is chosen by."""
        number, known = self._next, self._definition
        if number is None or len(self._unresolved) >= known.num_parallel:
            return False
        first = min(self._unresolved, default=number)
        return not known.in_order or first > number - known.num_parallel

    def _ask(self) -> int:
        """Choose and store the next trial; return its number."""
        number = self._next
        assert number is not None  # noqa: S101 -- `_may_ask`
        drawn = self._draw(number)
        experiment = self._definition.make(number, drawn.combination)
        trial = _study.StoredTrial(
            number=number,
            experiment_name=experiment.experiment_name,
            parameters=experiment.parameters,
            params=drawn.params,
            distributions=drawn.distributions,
            attributes=drawn.attributes,
        )
        with self._storing():
            self._store.add(trial)
        self._trials[number] = trial
        self._know(number)
        self._unresolved.add(number)
        if self._sight is not None:
            self._sight.keep(number)
        return number

    def _draw(self, number: int) -> _study.Drawn:
        known = self._definition
        if number < len(known.grid.included):
            return self._recalled(known.grid.included[number])
        repeated: _study.Drawn | None = None
        for turn in range(_NUM_ASKED):
            sampler = make_sampler(known.sampler, seed_of(known.seed, number, turn))
            drawn = self._looking().ask(known.grid, sampler)
            if drawn is not None and self._is_new(drawn.combination):
                return drawn
            repeated = repeated or drawn
            self._sight = None  # what was refused must not stay in sight
        rng = random.Random(seed_of(known.seed, number, "even"))  # noqa: S311 -- no secret

        def choose(axis: Axis) -> Any:
            drawn = axis.distribution
            return rng.randrange(len(axis.values)) if drawn is None else drawn.draw(rng)

        for _ in range(_NUM_DRAWN):
            combination = known.grid.draw(choose)
            if combination is not None and self._is_new(combination):
                return self._recalled(combination)
            if combination is not None and repeated is None:
                repeated = self._recalled(combination)
        if repeated is None:
            reason = f"gave nothing that its constraints admit in {_NUM_DRAWN} draws"
            raise GridError(
                known.grid.name, f"{reason}: loosen them, or list what they do"
            )
        return repeated

    def _recalled(self, combination: Mapping[str, Any]) -> _study.Drawn:
        found = _space.recall(self._definition.grid, combination)
        return _study.Drawn(dict(combination), found.params, found.distributions, {})

    def _is_new(self, combination: Mapping[str, Any]) -> bool:
        return identity_of(combination) not in self._by_identity

    def _looking(self) -> _study.Sight:
        """Return what the sampler may see now."""
        known = self._definition
        number = self._next
        limit = len(self._trials) if number is None else number
        if self._sight is None:
            self._sight = self._new_sight()
        visible = self._outcomes
        if known.in_order:
            last = limit - known.num_parallel
            visible = {n: o for n, o in self._outcomes.items() if n <= last}
        self._sight.update(self._trials, visible)
        return self._sight

    def _new_sight(self) -> _study.Sight:
        known = self._definition
        sampler = make_sampler(known.sampler, known.seed)
        return _study.Sight(known.name, known.direction, sampler, self._pruner)

    def _adopt(self, number: int, record: ExperimentRecord) -> None:
        """Store a trial that the journal has and the storage has not."""
        stored = self._trials.get(number)
        if stored is not None and stored.experiment_name == record.experiment_name:
            return
        found = _space.recall(self._definition.grid, record.parameters)
        trial = _study.StoredTrial(
            number=number,
            experiment_name=record.experiment_name,
            parameters=record.parameters,
            params=found.params,
            distributions=found.distributions,
        )
        self._store.add(trial)
        self._trials[number] = trial

    def _know(self, number: int) -> None:
        """Make the experiment of a trial, and give it its identity."""
        made = self._definition.make(number, self._trials[number].parameters)
        if self._by_identity.setdefault(made.identity, number) != number:
            content = {"parameters": dict(made.parameters), "trial": number}
            made = replace(made, identity=identity_of(content))
        self._experiments[number] = made
        self._numbers[made.experiment_name] = number

    def _resolve(self, number: int, record: ExperimentRecord) -> None:
        """Take over what the journal says of a trial, in memory and in the storage."""
        outcome = self._outcome(record)
        if outcome is None:
            return
        before = self._outcomes.get(number)
        if before == outcome:
            return
        if before is not None:
            self._sight = self._judge = None  # they have seen what does not hold
        self._outcomes[number] = outcome
        self._unresolved.discard(number)
        trial = self._trials[number]
        if trial.outcome is None:
            self._store.finish(trial, outcome)
        elif not trial.outcome.is_like(outcome):
            self._store.add(replace(trial, outcome=outcome))
        trial.outcome = outcome

    def _outcome(self, record: ExperimentRecord) -> _study.Outcome | None:
        """Return how a trial ended, in Optuna's words; None if it is to be run yet."""
        if record.status not in _ENDED:
            return None
        known, metric = self._definition, self._definition.metric
        if reason_to_leave_out(record, (metric,)) is not None:
            self._check_metric(record)
            return _study.Outcome(TrialState.FAIL)
        curve = {}
        if self._pruner is not None:
            path = self._folder / record.experiment_name / METRICS_NAME
            curves = read_curves(path, record.failed_jobs)
            curve = dict(self._prunable(curves.get(metric, ())))
        is_stopped = record.status is Status.STOPPED
        if is_stopped and not curve:
            summary = record.metrics[metric]
            curve = {min(max(0, summary.last_step), _LAST_STEP): summary.last}
        state = TrialState.PRUNED if is_stopped else TrialState.COMPLETE
        return _study.Outcome(
            state, value_of(record, metric, known.mode, known.at), curve
        )

    def _prunable(self, curve: Curve) -> list[tuple[int, float]]:
        """Return the points that a pruner is shown: databases keep steps of 32 bits."""
        points = [(step, value) for step, value in curve if 0 <= step <= _LAST_STEP]
        if not self._has_skipped and any(step > _LAST_STEP for step, _ in curve):
            self._has_skipped = True
            self.notes.append(
                f"Reports at steps beyond {_LAST_STEP} are not shown to the pruner: count "
                f"in larger units if it is to see them."
            )
        return points

    def _check_metric(self, record: ExperimentRecord) -> None:
        """Refuse a metric that is never reported, as soon as that can be seen."""
        metric = self._definition.metric
        if record.status is not Status.SUCCEEDED or metric in record.metrics:
            return
        if any(outcome.value is not None for outcome in self._outcomes.values()):
            return
        known = ", ".join(record.metrics) or "nothing"
        msg = (
            f"{record.experiment_name} succeeded and did not report the metric {metric!r} "
            f"that the search is for; it reported: {known}. Correct the metric, or what "
            f"reports it, and start a new search"
        )
        raise ResultsError(msg)

    def _opened_store(self) -> _study.Store:
        known = self._definition
        name = known.name if known.storage is None else self._study_name()
        storage = _study.open_storage(self._folder / STORAGE_NAME, known.storage)
        return _study.Store(storage, name, known.direction)

    def _study_name(self) -> str:
        """Return the name in a database, which other searches share."""
        path = self._folder / STUDY_NAME
        if not path.exists():
            name = f"{self._definition.name}-{secrets.token_hex(8)}"
            _yaml.write_atomically(path, json.dumps({"study_name": name}) + "\n")
        return str(json.loads(path.read_text("utf-8"))["study_name"])

    @contextmanager
    def _storing(self) -> Iterator[None]:
        """Say which search it is whose storage fails."""
        try:
            with _study.quiet():
                yield
        except GridSearchError:
            raise
        except Exception as error:  # noqa: BLE001 -- a driver's own
            # A database's message may hold its address, with the password.
            is_file = self._definition.storage is None
            said = str(error) if is_file else type(error).__name__
            reason = (
                f"the storage of its trials fails: {said}; what runs goes on: repair that "
                f"and run the command again"
            )
            raise SearchFolderError(self._folder, reason) from (
                error if is_file else None
            )


def _number(record: ExperimentRecord) -> int | None:
    match = _NUMBER.fullmatch(record.experiment_name)
    return int(match[1]) if match else None
