from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mtf_slurm import query
from mtf_slurm.command import Commands
from mtf_slurm.errors import (
    SchedulerCommandError,
    SchedulerUnreachableError,
    UnreadableReplyError,
)
from mtf_slurm.states import JobState
from mtf_slurm.testing import FakeSlurm

COMMANDS = Commands(timeout_s=20, num_attempts=2, sleep=lambda _: None)


@pytest.fixture
def submit(tmp_path: Path, slurm: FakeSlurm) -> Callable[..., str]:
    """Submit a script by hand; nothing of it runs."""
    slurm.configure(is_held=True)
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/bash\n", encoding="utf-8")
    return lambda *options: COMMANDS.once(
        ["sbatch", "--parsable", *options, str(script)]
    ).strip()


def test_rows_of_jobs_and_arrays(submit: Callable[..., str], tmp_path: Path) -> None:
    """Each task has its row, with its folder; what is not known has none."""
    one = submit(f"--chdir={tmp_path}")
    many = submit("--array=0-2")
    rows = query.rows(COMMANDS, [one, many, "999", "no id"]).rows
    assert sorted(rows) == [one, *(f"{many}_{i}" for i in range(3))]
    assert rows[one].folder == str(tmp_path)
    assert {row.state for row in rows.values()} == {JobState.PENDING}
    assert query.rows(COMMANDS, ["999"]) == ({}, True)
    assert query.rows(COMMANDS, []) == ({}, True)


def test_accounting_knows_what_the_controller_forgot(
    submit: Callable[..., str], slurm: FakeSlurm
) -> None:
    """A job is looked for in accounting only when the controller has no row."""
    job_id = submit()
    COMMANDS.run(["scancel", job_id])
    assert query.rows(COMMANDS, [job_id]).rows[job_id].state is JobState.CANCELLED
    assert slurm.calls("sacct") == []
    slurm.forget(job_id)
    row = query.rows(COMMANDS, [job_id]).rows[job_id]
    assert (row.state, row.has_exit_code) == (JobState.CANCELLED, True)


def test_tasks_that_the_controller_forgot_while_their_array_runs(
    submit: Callable[..., str], slurm: FakeSlurm
) -> None:
    """Accounting is asked for them, too; of what both know, the controller is right."""
    many = submit("--array=0-1")
    slurm.forget(f"{many}_0")
    rows = query.rows(COMMANDS, [f"{many}_0", f"{many}_1"]).rows
    assert rows[f"{many}_0"].has_exit_code
    assert not rows[f"{many}_1"].has_exit_code


def test_late_or_missing_accounting_is_no_failure(
    submit: Callable[..., str], slurm: FakeSlurm
) -> None:
    """A row that is not there yet, or a site without accounting, means nothing."""
    job_id = submit()
    slurm.forget(job_id)
    slurm.configure(accounting_lag_s=1000)
    assert query.rows(COMMANDS, [job_id]) == ({}, True)
    slurm.configure(has_accounting=False)
    assert query.rows(COMMANDS, [job_id]) == ({}, False)


def test_malformed_replies(slurm: FakeSlurm) -> None:
    """What cannot be parsed is an error that shows it."""
    slurm.fail("squeue", "", status=0, stdout="slurm: banner\n", is_after=True)
    slurm.fail("squeue", "", status=0, stdout="12|RUNNING\n")
    for shown in ("banner", "12.RUNNING"):
        with pytest.raises(UnreadableReplyError, match=shown):
            query.rows(COMMANDS, ["12", "13"])


def test_refusals_and_silence(slurm: FakeSlurm) -> None:
    """Only what says that a job is unknown is an answer."""
    slurm.fail("squeue", "error: Access denied")
    with pytest.raises(SchedulerCommandError, match="Access denied"):
        query.rows(COMMANDS, ["12"])
    slurm.fail("squeue", times=2)
    with pytest.raises(SchedulerUnreachableError):
        query.rows(COMMANDS, ["12"])


def test_jobs_are_found_by_their_token(
    submit: Callable[..., str], slurm: FakeSlurm, tmp_path: Path
) -> None:
    """In the comment, and where it is not stored, in the working folder."""
    (tmp_path / "f00d").mkdir()
    by_comment = submit("--comment=cafe", "--array=0-2", "--job-name=a")
    by_folder = submit(f"--chdir={tmp_path / 'f00d'}", "--job-name=b")
    tokens = ["cafe", "f00d", "dead"]
    expected = {"cafe": by_comment, "f00d": by_folder}
    assert query.find(COMMANDS, tokens, ["a", "b"]) == expected
    slurm.forget(by_folder)
    assert query.find(COMMANDS, tokens, ["a", "b"]) == expected
    slurm.fail("sacct", "error: Slurm accounting storage is disabled")
    assert query.find(COMMANDS, ["dead"], ["a"]) == {}


def test_a_token_is_not_missed_because_accounting_is_silent(slurm: FakeSlurm) -> None:
    """Where accounting might know, an error is one: else a job might come twice."""
    slurm.fail("sacct", "error: something else")
    with pytest.raises(SchedulerCommandError, match="something else"):
        query.find(COMMANDS, ["dead"], ["a"])
    slurm.fail("sacct", times=2)
    with pytest.raises(SchedulerUnreachableError):
        query.find(COMMANDS, ["dead"], ["a"])


def test_the_size_of_arrays(slurm: FakeSlurm) -> None:
    """It is what the site says; nothing is guessed."""
    slurm.configure(max_array_size=17)
    assert query.max_array_size(COMMANDS) == 17
    slurm.fail("scontrol", "", status=0, stdout="nothing")
    with pytest.raises(UnreadableReplyError, match="MaxArraySize"):
        query.max_array_size(COMMANDS)


@pytest.mark.parametrize(
    "wrong", ["", "a", "0", "1;2", "1 2", "-1", "1_", "1_2_3", "\u0661"]
)
def test_what_can_be_no_id(wrong: str) -> None:
    """Nothing else gets to a command line."""
    assert query.base_of(wrong) is None


def test_arrays_that_never_began_are_one_row(slurm: FakeSlurm) -> None:
    """Accounting has one row for them all, with their indices."""
    slurm.fail(
        "sacct",
        "",
        status=0,
        stdout="12_[1-2,5%3]|CANCELLED by 0|0:0|None assigned|Unknown|Unknown|/x|12_[1-2,5%3]\n",
    )
    rows = query.rows(COMMANDS, ["12"]).rows
    assert sorted(rows) == ["12_1", "12_2", "12_5"]


def test_ids_fit_a_command_line(submit: Callable[..., str], slurm: FakeSlurm) -> None:
    """20,000 jobs are three questions, of which each can be asked."""
    job_id = submit()
    ids = [job_id, *(str(10_000_000 + i) for i in range(20_000))]
    assert list(query.queued(COMMANDS, ids)) == [job_id]
    calls = slurm.calls("squeue")
    assert len(calls) == 2
    assert all(len(word) < 131_072 for call in calls for word in call)
    assert [i for part in query.chunks(ids) for i in part.split(",")] == ids
    assert list(query.chunks([])) == []


def test_json_is_for_slurm_that_heeds_its_options(slurm: FakeSlurm) -> None:
    """Before 23.11 it would tell of all jobs of the cluster."""
    assert query.form_of(COMMANDS) == "text"
    for version, form in (("slurm 23.11.4", "json"), ("slurm 24.05.2-1", "json")):
        slurm.fail("squeue", "", status=0, stdout=f"{version}\n")
        assert query.form_of(COMMANDS) == form
    for reply in ("slurm-wlm 23.02.9", "what?"):
        slurm.fail("squeue", "", status=0, stdout=reply)
        assert query.form_of(COMMANDS) == "text"
    slurm.fail("squeue", "error: unrecognized option")
    assert query.form_of(COMMANDS) == "text"


def test_json_of_others_is_left_out(submit: Callable[..., str], slurm: FakeSlurm) -> None:
    """Old Slurm tells of all jobs; what was not asked for is none of ours."""
    ours, others = submit("--array=0-1"), submit()
    reply = COMMANDS.once(["squeue", "--states=all", "--json"])
    slurm.fail("squeue", "", status=0, stdout=reply)
    rows = query.queued(COMMANDS, [ours], form="json")
    assert sorted(rows) == [f"{ours}_0", f"{ours}_1"]
    assert others not in rows
    assert query.queued(COMMANDS, ["999"], form="json") == {}


def test_lists_of_tasks_are_asked_for_whole(
    monkeypatch: pytest.MonkeyPatch, slurm: FakeSlurm
) -> None:
    """Slurm would cut them off after 64 bytes."""
    seen = []
    once = Commands.once

    def spy(self: Commands, argv: Sequence[str], **more: Any) -> str:
        seen.append(more.get("extra"))
        return once(self, argv, **more)

    monkeypatch.setattr(Commands, "once", spy)
    query.rows(COMMANDS, ["12"])
    assert slurm.calls("sacct")
    assert seen == [{"SLURM_BITSTR_LEN": "0"}] * 2


def test_the_site_may_allow_fewer_tasks(slurm: FakeSlurm) -> None:
    """An array is no larger than ``max_array_tasks``."""
    shown = (
        "MaxArraySize = 1001\nSchedulerParameters = bf_interval=2,max_array_tasks=50,x\n"
    )
    slurm.fail("scontrol", "", status=0, stdout=shown)
    assert query.max_array_size(COMMANDS) == 50


def test_the_folders_of_all_jobs(submit: Callable[..., str], tmp_path: Path) -> None:
    """Those of everybody that wait, run, or have ended a moment ago; each once."""
    folder = tmp_path / "a|b c"
    folder.mkdir()
    submit(f"--chdir={folder}", "--array=0-2")
    COMMANDS.run(["scancel", submit(f"--chdir={tmp_path}")])
    assert query.folders(COMMANDS) == {str(folder), str(tmp_path)}


def test_folders_of_jobs_when_nobody_answers(slurm: FakeSlurm) -> None:
    """No answer is an error, not that there are none."""
    slurm.fail("squeue", times=2)
    with pytest.raises(SchedulerUnreachableError):
        query.folders(COMMANDS)


@pytest.mark.parametrize("command", ["squeue", "sacct"])
def test_replies_that_are_cut_off(
    command: str,
    submit: Callable[..., str],
    slurm: FakeSlurm,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Wherever one ends, it counts as far as its rows are whole, or is an error."""
    jobs = {}
    for token in ("f00d", "cafe"):
        (tmp_path / f"a|{token}").mkdir()
        options = (f"--chdir={tmp_path}/a|{token}", "--job-name=a", "--comment=x\ny|z")
        jobs[token] = submit(*options)
    slurm.forget(*(jobs.values() if command == "sacct" else ()))
    assert query.find(COMMANDS, jobs, ["a"]) == jobs
    reply = COMMANDS.once(slurm.calls(command)[-1])
    first = reply.index(f"|{jobs['f00d']}\n{jobs['cafe']}|") + 1 + len(jobs["f00d"])
    size = 0

    def cut(_: Commands, argv: Sequence[str], **__: object) -> str:
        return reply[:size] if argv[0] == command else ""

    monkeypatch.setattr(Commands, "once", cut)
    some = {"f00d": jobs["f00d"]}
    whole = {0: {}, first: some, first + 1: some, len(reply) - 1: jobs}
    for size in range(len(reply)):
        if size in whole:
            assert query.find(COMMANDS, jobs, ["a"]) == whole[size]
            continue
        with pytest.raises(UnreadableReplyError):
            query.find(COMMANDS, jobs, ["a"])


def test_folders_of_a_reply_that_is_cut_off(
    submit: Callable[..., str],
    slurm: FakeSlurm,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No part of a path is taken for a folder: what is in use would be removed."""
    (tmp_path / "a|b").mkdir()
    submit(f"--chdir={tmp_path}/a|b")
    submit(f"--chdir={tmp_path}")
    told = query.folders(COMMANDS)
    assert told == {str(tmp_path), f"{tmp_path}/a|b"}
    reply = COMMANDS.once(slurm.calls("squeue")[-1])
    for size in range(len(reply)):
        monkeypatch.setattr(Commands, "once", lambda *_, s=size, **__: reply[:s])
        with suppress(UnreadableReplyError):
            found = query.folders(COMMANDS)
            assert found <= told
            rest = reply[size:].strip("\n")
            assert (len(found) == 2) == (not rest)
