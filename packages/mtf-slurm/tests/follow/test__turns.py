from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtf_slurm.follow._schedule_file import Entry
from mtf_slurm.follow._turns import Quota, Turns
from mtf_slurm.follow.changes import JobStatus
from mtf_slurm.follow.reasons import explain
from mtf_slurm.states import JobState


def entry(name: str, *, partition: str | None = None, **more: Any) -> Entry:
    """Return an experiment of a schedule."""
    values = {"slurm": {"partition": partition}} if partition else {}
    return Entry(experiment_name=name, values=values, **more)


def status(job_id: str, state: JobState, *, node: str = "n1") -> JobStatus:
    """Return how a job is."""
    return JobStatus(
        job_id=job_id,
        experiment_name="",
        state=state,
        why=explain(""),
        node=node,
        start=None,
        is_stale=False,
        is_over=state.is_final,
    )


def turns(*entries: Entry, jobs: dict[str, JobState] | None = None, **more: Any) -> Turns:
    """Return a schedule in which these experiments have one job each."""
    jobs = jobs or {}
    return Turns(
        entries={e.experiment_name: e for e in entries},
        ids={name: [f"1{at}"] for at, name in enumerate(jobs)},
        statuses={f"1{at}": status(f"1{at}", s) for at, s in enumerate(jobs.values())},
        **more,
    )


def names(chosen: list[Entry]) -> list[str]:
    """Return the names of experiments."""
    return [e.experiment_name for e in chosen]


def test_all_may_go_where_nothing_holds_them() -> None:
    """Those that wait for others go with them, in an order that Slurm can take."""
    chain = [entry("c", after={"b": "afterok"}), entry("b", after={"a": "afterany"})]
    assert names(turns(*chain, entry("a")).choose()) == ["a", "b", "c"]


def test_quotas_and_priorities() -> None:
    """Jobs that run take places; the highest priority gets the next one."""
    entries = [entry("a"), entry("b", priority=1), entry("c", priority=2), entry("run")]
    now = turns(*entries, jobs={"run": JobState.RUNNING}, quotas=[Quota(max_jobs=3)])
    assert names(now.choose()) == ["c", "b"]


def test_what_was_given_up_goes_on_when_it_is_known_again() -> None:
    """A job that Slurm shows again lets go on what waits for it, and what waits for that."""
    known = entry("a", ended=JobState.UNKNOWN, job_id="10")
    waiting = entry("b", after={"a": "afterok"})
    last = entry("c", after={"b": "afterany", "a": "afterok"})
    for state, ended in (
        (JobState.UNKNOWN, JobState.CANCELLED),
        (JobState.SUCCEEDED, None),
    ):
        now = turns(known, waiting, last, jobs={"a": state})
        now.note()
        now.take_up()
        list(now.give_up())
        assert [waiting.ended, last.ended] == [ended] * 2
        now.note()
        assert known.ended is state


def test_what_slurm_gave_up_goes_on_when_that_is_repaired() -> None:
    """As what never had a job: under the same id or another, and if a quota holds it, later."""
    for ids in ({"a": ["10"], "b": ["11"]}, {"a": ["10", "12"], "b": ["11"]}):
        first, waiting = entry("a"), entry("b", after={"a": "afterok"})
        entries = {"b": waiting, "a": first}
        failed = status("10", JobState.FAILED)
        given_up = status("11", JobState.CANCELLED, node="")
        before = Turns(
            entries=entries,
            ids={"a": ["10"], "b": ["11"]},
            statuses={"10": failed, "11": given_up},
        )
        before.note()
        assert [waiting.ended, waiting.job_id] == [JobState.CANCELLED, ""]
        repaired = status(ids["a"][-1], JobState.SUCCEEDED)
        after = Turns(
            entries=entries,
            ids=ids,
            statuses={"10": failed, "11": given_up, repaired.job_id: repaired},
            quotas=[Quota(max_jobs=1)],
        )
        for _ in range(2):
            after.note()
            after.take_up()
            assert not list(after.give_up())
            assert [first.ended, waiting.ended] == [JobState.SUCCEEDED, None]
        assert names(after.choose()) == ["b"]


def test_what_is_given_up_is_known_by_what_is_noted_later() -> None:
    """Slurm cancels what waits before the end of what it waits for is sure."""
    first, waiting = entry("a"), entry("b", after={"a": "afterok"})
    ids = {"a": ["10"], "b": ["11"]}
    timed_out = status("10", JobState.TIMEOUT)
    given_up = status("11", JobState.CANCELLED, node="")
    for is_over, job_id in ((False, "11"), (True, "")):
        statuses = {"10": replace(timed_out, is_over=is_over), "11": given_up}
        now = Turns(entries={"a": first, "b": waiting}, ids=ids, statuses=statuses)
        now.note()
        assert [waiting.ended, waiting.job_id] == [JobState.CANCELLED, job_id]


def test_an_end_that_others_heard_of_is_looked_at_again() -> None:
    """The job may have been requeued since; where nobody answers there is nothing to hear."""
    for state, is_over, is_stale, is_left in (
        (JobState.FAILED, False, False, True),
        (JobState.FAILED, True, False, False),
        (JobState.UNKNOWN, False, False, False),
        (JobState.FAILED, False, True, False),
    ):
        heard = replace(status("10", state), is_over=is_over, is_stale=is_stale)
        now = Turns(
            entries={"a": entry("a", ended=JobState.FAILED, job_id="10")},
            ids={"a": ["10"]},
            statuses={"10": heard},
        )
        now.note()
        assert now.is_left() is is_left


def test_what_was_refused_goes_on_when_somebody_runs_it() -> None:
    """By a first job, by one after that which was lost, or by that; until then it has failed."""
    entries = [entry(n, ended=JobState.FAILED, refusals=3) for n in "abcd"]
    entries[0].job_id = entries[1].job_id = "10"
    entries[3].job_id = "15"
    ids = {"a": ["10"], "b": ["10", "13"], "c": ["14"], "d": ["15"]}
    running = dict.fromkeys(["13", "14", "15"], JobState.RUNNING)
    states = {"10": JobState.NODE_FAILED, **running}
    now = replace(
        turns(*entries),
        ids=ids,
        statuses={i: status(i, state) for i, state in states.items()},
    )
    now.note()
    assert [e.ended for e in entries] == [JobState.FAILED, None, None, None]
    assert [e.refusals for e in entries] == [3, 0, 0, 0]


def test_an_end_makes_good_for_refusals() -> None:
    """What was refused, submitted by hand and failed is seen when it is requeued."""
    failed = entry("a", refusals=1)
    turns(failed, jobs={"a": JobState.FAILED}).note()
    assert (failed.ended, failed.refusals) == (JobState.FAILED, 0)
    turns(failed, jobs={"a": JobState.RUNNING}).note()
    assert failed.ended is None


def test_what_a_user_cancelled_stays_so() -> None:
    """What it waits for may come true: it was not given up for that."""
    cancelled = entry("b", after={"a": "afterok"})
    now = Turns(
        entries={"a": entry("a"), "b": cancelled},
        ids={"a": ["10"], "b": ["11"]},
        statuses={
            "10": status("10", JobState.SUCCEEDED),
            "11": status("11", JobState.CANCELLED, node=""),
        },
    )
    now.note()
    now.take_up()
    assert cancelled.ended is JobState.CANCELLED
    assert now.choose() == []


def test_each_quota_counts_its_own() -> None:
    """By name, user and partition; all of them hold, and others pass by."""
    entries = [
        *(entry(f"sweep-{i}", partition="gpu", user="u") for i in range(3)),
        *(entry(f"eval-{i}", partition="gpu") for i in range(3)),
        entry("other"),
    ]
    quotas = [
        Quota(max_jobs=2, name="sweep-*"),
        Quota(max_jobs=1, user="u"),
        Quota(max_jobs=3, partition="gpu"),
    ]
    chosen = names(turns(*entries, quotas=quotas).choose())
    assert chosen == ["sweep-0", "eval-0", "eval-1", "other"]
    with pytest.raises(ValueError, match="max_jobs"):
        Quota(max_jobs=0)


def test_what_waits_for_what_is_held_back_is_held_back() -> None:
    """It has no job that Slurm could wait for."""
    entries = [entry("a"), entry("b"), entry("c", after={"b": "afterok"})]
    quota = [Quota(max_jobs=1, name="[ab]")]
    assert names(turns(*entries, quotas=quota).choose()) == ["a"]


def test_one_of_several_in_a_task_cannot_be_waited_for() -> None:
    """Slurm does not know it: who waits for it is held back until its end."""
    entries = [entry("a"), entry("b", after={"a": "afterok"})]
    now = Turns(
        entries={e.experiment_name: e for e in entries},
        ids={"a": ["7.0"]},
        statuses={"7.0": status("7.0", JobState.RUNNING)},
    )
    assert now.choose() == []


def test_how_jobs_ended_is_noted() -> None:
    """What is not over has not ended; what nobody knows of the schedule is passed over."""
    jobs = {
        "a": JobState.SUCCEEDED,
        "b": JobState.FAILED,
        "c": JobState.RUNNING,
        "strange": JobState.FAILED,
    }
    now = turns(entry("a"), entry("b"), entry("c"), entry("d"), jobs=jobs)
    now.note()
    ended = {name: e.ended for name, e in now.entries.items()}
    assert ended == {"a": "succeeded", "b": "failed", "c": None, "d": None}
    assert now.entries["b"].job_id == "11"


def test_what_was_preempted_runs_again_so_often() -> None:
    """Then it has ended; a failure of the user's code never runs again."""
    for max_resubmissions, ended in ((1, None), (0, JobState.PREEMPTED)):
        now = turns(
            entry("a"),
            jobs={"a": JobState.PREEMPTED},
            max_resubmissions=max_resubmissions,
        )
        now.note()
        assert now.entries["a"].ended == ended
        assert names(now.choose()) == (["a"] if ended is None else [])
    now = turns(entry("a"), jobs={"a": JobState.FAILED}, max_resubmissions=9)
    now.note()
    assert now.entries["a"].ended is JobState.FAILED


def test_who_waits_for_what_runs_again_does_so_too() -> None:
    """Slurm cancels it when the first run ends; the user's own cancelling is heeded."""
    entries = [entry("a"), entry("b", after={"a": "afterok"})]
    for first, ended in (
        (JobState.PREEMPTED, None),
        (JobState.RUNNING, JobState.CANCELLED),
    ):
        now = Turns(
            entries={e.experiment_name: e for e in entries},
            ids={"a": ["1"], "b": ["2"]},
            statuses={
                "1": status("1", first),
                "2": status("2", JobState.CANCELLED, node=""),
            },
            max_resubmissions=3,
        )
        now.note()
        assert entries[1].ended is ended
        assert names(now.choose()) == (["a", "b"] if ended is None else [])


def test_who_waits_for_the_job_that_runs_again_may_be_cancelled() -> None:
    """What its user cancels stays so, though what it waits for had more than one job."""
    entries = [entry("a"), entry("b", after={"a": "afterok"})]
    for own, ended in (("2", None), ("4", JobState.CANCELLED)):
        now = Turns(
            entries={e.experiment_name: e for e in entries},
            ids={"a": ["1", "3"], "b": [own]},
            statuses={own: status(own, JobState.CANCELLED, node="")},
            max_resubmissions=3,
        )
        now.note()
        assert entries[1].ended is ended


def test_who_submits_again_by_hand_is_followed() -> None:
    """An end that was noted is that of one job."""
    again = entry("a", ended=JobState.FAILED, job_id="9")
    now = turns(again, jobs={"a": JobState.RUNNING})
    now.note()
    assert again.ended is None


@pytest.mark.parametrize(
    ("kind", "state", "goes"),
    [
        ("afterok", JobState.SUCCEEDED, True),
        ("afterok", JobState.FAILED, False),
        ("afterok", JobState.UNKNOWN, False),
        ("afternotok", JobState.SUCCEEDED, False),
        ("afternotok", JobState.TIMEOUT, True),
        ("afternotok", JobState.UNKNOWN, False),
        ("afterany", JobState.CANCELLED, True),
        ("afterany", JobState.UNKNOWN, True),
    ],
)
def test_what_is_waited_for(kind: str, state: JobState, goes: bool) -> None:  # noqa: FBT001
    """It comes true, or everything behind it is cancelled and says why."""
    entries = [
        entry("c", after={"b": "afterok"}),
        entry("b", after={"a": kind}),
        entry("a", ended=state),
    ]
    now = turns(*entries)
    given_up = list(now.give_up())
    assert names(now.choose()) == (["b", "c"] if goes else [])
    assert [e.experiment_name for e, _ in given_up] == ([] if goes else ["b", "c"])
    if not goes:
        assert given_up[0][1] == f"it waits for a ({kind}), which is {state}"
        assert {e.ended for e in entries[:2]} == {JobState.CANCELLED}


def test_what_has_a_job_is_not_given_up() -> None:
    """Slurm ends it, and then that is noted."""
    entries = [entry("b", after={"a": "afterok"}), entry("a", ended=JobState.FAILED)]
    assert list(turns(*entries, jobs={"b": JobState.PENDING}).give_up()) == []


@st.composite
def schedules(draw: st.DrawFn) -> tuple[list[Entry], list[Quota], int]:
    """Draw a graph, quotas, and how many of a round's jobs fail."""
    count = draw(st.integers(1, 12))
    kinds = st.sampled_from(["afterok", "afterany", "afternotok"])
    entries = [
        entry(
            f"e{at}",
            priority=draw(st.integers(0, 2)),
            after=draw(
                st.dictionaries(
                    st.sampled_from([f"e{i}" for i in range(at)]), kinds, max_size=3
                )
            )
            if at
            else {},
        )
        for at in range(count)
    ]
    quotas = draw(
        st.lists(
            st.builds(
                lambda n, name: Quota(max_jobs=n, name=name),
                st.integers(1, 3),
                st.sampled_from(["*", "e[0-4]", "e1*"]),
            ),
            max_size=2,
        )
    )
    return draw(st.permutations(entries)), quotas, draw(st.integers(0, 5))


@given(schedules(), st.randoms(use_true_random=False))
def test_every_schedule_comes_to_an_end(
    drawn: tuple[list[Entry], list[Quota], int], random: Any
) -> None:
    """Whatever the graph: no quota is passed, nothing goes early or twice, all ends."""
    drawn_entries, quotas, num_failing = drawn
    entries = {e.experiment_name: e for e in drawn_entries}
    running: dict[str, str] = {}
    ids: dict[str, list[str]] = {}
    statuses: dict[str, JobStatus] = {}
    for round_number in range(4 * len(entries) + 4):
        now = Turns(entries=entries, ids=ids, statuses=statuses, quotas=quotas)
        now.note()
        list(now.give_up())
        for one in now.choose():
            name = one.experiment_name
            assert name not in ids
            assert all(
                entries[other].ended is not None or other in ids for other in one.after
            )
            ids[name] = [str(round_number * 100 + len(ids) + 1)]
            running[name] = ids[name][0]
        for quota in quotas:
            assert sum(quota.counts(entries[name]) for name in running) <= quota.max_jobs
        for name in random.sample(sorted(running), random.randint(0, len(running))):
            others = [o for o in entries[name].after if o in running]
            if not others:
                is_bad = random.randint(0, 5) < num_failing
                state = JobState.FAILED if is_bad else JobState.SUCCEEDED
                job_id = running.pop(name)
                statuses[job_id] = status(job_id, state)
        if all(e.ended is not None for e in entries.values()):
            break
        if round_number > 2 * len(entries):  # chance must not take for ever
            for name in [*running]:
                if not any(o in running for o in entries[name].after):
                    job_id = running.pop(name)
                    statuses[job_id] = status(job_id, JobState.SUCCEEDED)
    assert all(e.ended is not None for e in entries.values())
