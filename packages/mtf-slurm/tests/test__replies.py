from __future__ import annotations

import json
from contextlib import suppress
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtf_slurm._replies import (
    Row,
    cells_of,
    expanded,
    rows_of_accounting,
    rows_of_json,
    rows_of_text,
)
from mtf_slurm.errors import UnreadableReplyError
from mtf_slurm.states import JobState

ARGV = ("squeue",)
START_S = datetime.fromisoformat("2026-11-22T11:22:34").timestamp()

# As Slurm 22.05.8 wrote them.
TEXT = """\
1|RUNNING|None|n1|2026-11-22T11:22:34|/shared/a|b|1
2_2|PENDING|JobArrayTaskLimit||N/A|/shared|2_2
7|RUNNING|None|n[1-2]|2026-11-22T11:22:34|/shared|7
"""
ACCOUNTED = """\
18|NODE_FAIL|0:0|n[1-2]|2026-11-22T11:22:34|2026-11-22T11:22:49|/shared|18
21|REQUEUED|0:0|n1|2026-11-22T11:22:34|2026-11-22T11:22:35|/shared|21
18|PENDING|0:0|None assigned|Unknown|Unknown|/shared|18
2_[0-1]|CANCELLED by 0|0:0|None assigned|Unknown|Unknown|/shared|2_[0-1]
"""


def job_of_22_05(**more: Any) -> dict[str, Any]:
    """Return a job as 22.05 writes it, of what is read."""
    return {
        "job_id": 9,
        "array_job_id": 0,
        "array_task_id": None,
        "array_task_string": "",
        "job_state": "RUNNING",
        "state_reason": "None",
        "nodes": "n1",
        "start_time": 1795346267,
        "exit_code": 0,
        "current_working_directory": "/shared",
        **more,
    }


def job_of_24_05(**more: Any) -> dict[str, Any]:
    """Return the same job as 24.05 writes it: numbers are objects, states are lists."""
    return {
        "job_id": 9,
        "array_job_id": {"set": True, "infinite": False, "number": 0},
        "array_task_id": {"set": False, "infinite": False, "number": 0},
        "array_task_string": "",
        "job_state": ["RUNNING"],
        "state_reason": "None",
        "nodes": "n1",
        "start_time": {"set": True, "infinite": False, "number": 1795346267},
        "exit_code": {
            "status": ["SUCCESS"],
            "return_code": {"set": True, "infinite": False, "number": 0},
            "signal": {"id": {"set": False, "number": 0}, "name": ""},
        },
        "current_working_directory": "/shared",
        **more,
    }


def as_json(*jobs: dict[str, Any]) -> str:
    """Return a reply."""
    return json.dumps({"meta": {}, "errors": [], "jobs": jobs})


def test_text() -> None:
    """Nodes, dates and reasons are there or not; a folder may have a bar in it."""
    rows = rows_of_text(ARGV, TEXT)
    assert (rows["1"].start_s, rows["1"].folder) == (START_S, "/shared/a|b")
    assert rows["7"].nodes == "n[1-2]"
    waits = rows["2_2"]
    assert (waits.reason, waits.nodes, waits.start_s) == ("JobArrayTaskLimit", "", None)


@pytest.mark.parametrize("text", [TEXT, ACCOUNTED])
def test_replies_that_are_cut_off(text: str) -> None:
    """Wherever that is, a row is as it was or an error: its folder is no other's."""

    def read(reply: str) -> list[Row]:
        if text == TEXT:
            return [*rows_of_text(ARGV, reply).values()]
        return [*rows_of_accounting(ARGV, reply)]

    rows = text.splitlines(keepends=True)
    known = {}
    for count in range(len(rows) + 1):
        end = len("".join(rows[:count]))
        known[end] = known[max(0, end - 1)] = read("".join(rows[:count]))
    assert len(known[len(text)]) > len(known[len(rows[0])]) > len(known[0]) == 0
    for cut in range(len(text)):
        if cut in known:
            assert read(text[:cut]) == known[cut]
            continue
        with pytest.raises(UnreadableReplyError):
            read(text[:cut])


def test_rows_and_their_cells() -> None:
    """The last one may be of several lines; an id in it ends no row of another."""
    odd = "12|/a\n7|/b|12/\n\nc|12\r\n\n  7|/d|7"
    assert list(cells_of(ARGV, odd, 2)) == [["12", "/a\n7|/b|12/\n\nc"], ["7", "/d"]]
    for torn in ("12|/a|7\n7|/b|7\n", "12|12\n", "12\n", "12|a\nb|/c|12\n"):
        with pytest.raises(UnreadableReplyError):
            list(cells_of(ARGV, torn, 2 + ("/c" in torn)))


def test_a_reason_is_one_word() -> None:
    """As ``scontrol`` writes it, since others compare it."""
    reply = "1|PENDING|launch failed requeued held||N/A|/shared|1\n"
    assert rows_of_text(ARGV, reply)["1"].reason == "launch_failed_requeued_held"


def test_accounting_has_a_row_for_each_run() -> None:
    """Of a job that came back, the last one last; of tasks that never began, one each."""
    rows = list(rows_of_accounting(("sacct",), ACCOUNTED))
    assert [r.job_id for r in rows] == ["18", "21", "18", "2_0", "2_1"]
    assert rows[0].state is JobState.NODE_FAILED
    assert (rows[0].nodes, rows[0].end_s) == ("n[1-2]", START_S + 15)
    assert (rows[2].state, rows[2].nodes, rows[2].end_s) == (JobState.PENDING, "", None)


@pytest.mark.parametrize("make", [job_of_22_05, job_of_24_05])
def test_json_of_old_and_new(make: Any) -> None:
    """Both forms tell the same."""
    [row] = rows_of_json(ARGV, as_json(make())).values()
    assert (row.job_id, row.state, row.nodes) == ("9", JobState.RUNNING, "n1")
    assert (row.start_s, row.reason, row.has_exit_code) == (1795346267, "", True)


def test_arrays_in_json() -> None:
    """A task has its index; tasks that wait are one job with a list."""
    task = {"array_job_id": 9, "array_task_id": 3, "job_id": 13}
    waits = {"array_job_id": 9, "array_task_string": "4-5,7%2", "job_state": "PENDING"}
    rows = rows_of_json(ARGV, as_json(job_of_22_05(**task), job_of_22_05(**waits)))
    assert sorted(rows) == ["9_3", "9_4", "9_5", "9_7"]
    new = {"array_job_id": {"set": True, "number": 9}, "array_task_id": {"number": 0}}
    assert sorted(rows_of_json(ARGV, as_json(job_of_24_05(**new)))) == ["9_0"]


@pytest.mark.parametrize(
    ("state", "exit_code", "expected"),
    [
        ("FAILED", 3 << 8, JobState.FAILED),
        ("FAILED", 75 << 8, JobState.PREEMPTED),
        ("FAILED", 75, JobState.FAILED),
        ("FAILED", None, JobState.FAILED),
        (["FAILED"], {"return_code": {"set": True, "number": 75}}, JobState.PREEMPTED),
        (["FAILED"], {"return_code": 1, "signal": {"signal_id": 9}}, JobState.FAILED),
        (["RUNNING", "COMPLETING"], 0, JobState.RUNNING),
        (["COMPLETED", "COMPLETING"], 0, JobState.RUNNING),
        (["RUNNING", "CONFIGURING"], 0, JobState.PENDING),
        (["PENDING", "REQUEUED"], 0, JobState.PENDING),
    ],
)
def test_states_and_exit_statuses_in_json(
    state: Any, exit_code: Any, expected: JobState
) -> None:
    """75 asks to be continued; what completes still runs."""
    job = job_of_24_05(job_state=state, exit_code=exit_code)
    [row] = rows_of_json(ARGV, as_json(job)).values()
    assert row.state is expected


@pytest.mark.parametrize(
    "reply",
    [
        *("", "{", "[]", "{}", "null", '{"jobs": 3}', '{"jobs": [3]}', '{"jobs": [{}]}'),
        '{"jobs": [], "errors": [{"error": "no"}]}',
        as_json(job_of_22_05(job_state=[])),
        as_json(job_of_22_05(job_id="x")),
        as_json(job_of_22_05(start_time=float("inf"))),
    ],
)
def test_json_that_cannot_be_read(reply: str) -> None:
    """It is an error that shows it, of one kind."""
    with pytest.raises(UnreadableReplyError):
        rows_of_json(ARGV, reply)


@given(st.text(alphabet="0123456789|_[]-,%: nN/\nabc", max_size=80))
def test_any_text_is_read_or_refused(reply: str) -> None:
    """Nothing else comes out of a reply than rows or that error."""
    for read in (rows_of_text, lambda a, r: list(rows_of_accounting(a, r))):
        with suppress(UnreadableReplyError):
            read(ARGV, reply)


@given(
    st.recursive(st.none() | st.integers() | st.text(max_size=5), st.lists, max_leaves=4)
)
def test_any_json_is_read_or_refused(value: Any) -> None:
    """Whatever stands in a field."""
    for key in job_of_22_05():
        with suppress(UnreadableReplyError):
            rows_of_json(ARGV, as_json(job_of_22_05(**{key: value})))


@given(st.sets(st.integers(0, 500), min_size=1, max_size=30))
def test_lists_of_tasks(indices: set[int]) -> None:
    """Ranges and single ones give back what they were made of."""
    ordered = sorted(indices)
    parts: list[list[int]] = []
    for index in ordered:
        if parts and parts[-1][1] == index - 1:
            parts[-1][1] = index
        else:
            parts.append([index, index])
    text = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
    assert list(expanded(f"3_[{text}%5]")) == [f"3_{i}" for i in ordered]


def test_a_list_that_was_cut_off() -> None:
    """What is left of it counts; a huge range does no harm."""
    assert list(expanded("3_[1,2,...]")) == ["3_1", "3_2"]
    assert list(expanded("3_[0-9999999:3000000]")) == ["3_0", "3_3000000"]
