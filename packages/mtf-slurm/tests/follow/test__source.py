from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mtf_slurm.command import Commands
from mtf_slurm.errors import SchedulerCommandError
from mtf_slurm.follow._source import Source
from mtf_slurm.states import JobState
from mtf_slurm.testing import FakeSlurm

COMMANDS = Commands(timeout_s=20, num_attempts=1)
HOUR_S = 3600.0


@pytest.fixture
def job_id(slurm: FakeSlurm, submit: Callable[..., str]) -> str:
    """A job that waits."""
    slurm.configure(is_held=True)
    return submit("a")


def source(*folders: Path, interval_s: float = HOUR_S) -> Source:
    """Return one that asks seldom."""
    return Source(folders, interval_s=interval_s, form="text")


def questions(slurm: FakeSlurm) -> int:
    """Return how often squeue was asked."""
    return len(slurm.calls("squeue"))


def test_sources_of_a_folder_share_an_answer(
    job_id: str, experiments: Path, slurm: FakeSlurm
) -> None:
    """The second one reads what the first one was told: all of it."""
    first = source(experiments).ask(COMMANDS, [job_id])
    second = source(experiments)
    assert second.ask(COMMANDS, [job_id]) == first
    assert 0 < second.due_in_s <= HOUR_S
    assert questions(slurm) == 1
    assert first.rows[job_id].state is JobState.PENDING
    assert first.asked == {job_id}


def test_what_another_wants_to_know_is_asked_with_the_next_question(
    job_id: str, experiments: Path, slurm: FakeSlurm, submit: Callable[..., str]
) -> None:
    """Nobody asks for himself: one question is for all; who has ended is left out."""
    other = submit("b")
    ours, theirs = source(experiments), source(experiments)
    ours.ask(COMMANDS, [job_id])
    assert theirs.ask(COMMANDS, [other]).asked == {job_id}
    assert questions(slurm) == 1
    _age(experiments)
    again = source(experiments).ask(COMMANDS, [job_id])
    assert again.asked == {job_id, other}
    assert sorted(again.rows) == sorted([job_id, other])
    COMMANDS.once(["scancel", other])
    for _ in range(2):
        _age(experiments)
        last = source(experiments).ask(COMMANDS, [job_id])
    assert last.asked == {job_id}


def _age(experiments: Path) -> None:
    path = experiments / ".slurm" / "follow.json"
    date = path.stat().st_mtime - HOUR_S - 1
    os.utime(path, (date, date))


def test_several_folders(
    job_id: str, experiments: Path, tmp_path: Path, slurm: FakeSlurm
) -> None:
    """A question for two is one for each of them."""
    other = tmp_path / "other"
    other.mkdir()
    source(experiments, other).ask(COMMANDS, [job_id])
    for folder in (experiments, other):
        assert (
            source(folder).ask(COMMANDS, [job_id]).rows[job_id].state is JobState.PENDING
        )
    assert questions(slurm) == 1


def test_while_another_asks_nobody_waits(
    job_id: str, experiments: Path, slurm: FakeSlurm
) -> None:
    """What is known stays; it is looked for soon."""
    with (experiments / ".slurm" / "follow.wanted").open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        busy = source(experiments)
        assert busy.ask(COMMANDS, [job_id]).stamp == ""
        assert busy.due_in_s < 1
    assert questions(slurm) == 0


def test_an_outage_is_shared_too(
    job_id: str, experiments: Path, slurm: FakeSlurm
) -> None:
    """Who comes next does not ask again at once, and has the last states."""
    source(experiments).ask(COMMANDS, [job_id])
    _age(experiments)
    slurm.fail("squeue")
    assert "no answer" in source(experiments).ask(COMMANDS, [job_id]).trouble
    answer = source(experiments).ask(COMMANDS, [job_id])
    assert "no answer" in answer.trouble
    assert answer.rows[job_id].state is JobState.PENDING
    assert questions(slurm) == 2


def test_a_refusal_counts_as_a_question(
    job_id: str, experiments: Path, slurm: FakeSlurm
) -> None:
    """It is an error for who asked; others see trouble, and do not ask at once."""
    slurm.fail("squeue", "error: Access denied")
    with pytest.raises(SchedulerCommandError):
        source(experiments).ask(COMMANDS, [job_id])
    assert "Access denied" in source(experiments).ask(COMMANDS, [job_id]).trouble
    assert questions(slurm) == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"rows": 1}',
        '{"rows": [[1]], "asked": [], "earlier": [], "ended": []}',
    ],
)
def test_a_damaged_answer_is_none(
    job_id: str, experiments: Path, slurm: FakeSlurm, text: str
) -> None:
    """It is asked for again, once the interval is over."""
    (experiments / ".slurm" / "follow.json").write_text(text, encoding="utf-8")
    (experiments / ".slurm" / "follow.wanted").write_text(text, encoding="utf-8")
    _age(experiments)
    assert (
        source(experiments).ask(COMMANDS, [job_id]).rows[job_id].state is JobState.PENDING
    )
    assert questions(slurm) == 1


def test_hostile_ids_in_the_file_go_nowhere(
    job_id: str, experiments: Path, slurm: FakeSlurm
) -> None:
    """What can be no id reaches no command."""
    now_s = experiments.stat().st_mtime
    wanted = {"--help": [now_s, False], "1;reboot": [now_s, True], job_id: ["x", 1]}
    path = experiments / ".slurm" / "follow.wanted"
    path.write_text(json.dumps(wanted), encoding="utf-8")
    source(experiments).ask(COMMANDS, [job_id])
    assert slurm.calls("squeue")[0][-1] == f"--jobs={job_id}"


def test_a_full_disk_is_no_hindrance(
    job_id: str, experiments: Path, slurm: FakeSlurm
) -> None:
    """The answer is not shared then; this source keeps its interval by itself."""
    (experiments / ".slurm" / ".follow.part").mkdir()
    own = source(experiments)
    for _ in range(3):
        assert own.ask(COMMANDS, [job_id]).rows[job_id].state is JobState.PENDING
    assert questions(slurm) == 1


def test_accounting_is_asked_in_few_words(
    slurm: FakeSlurm, submit: Callable[..., str]
) -> None:
    """For single tasks, or for a whole array of which many are not shown."""
    slurm.configure(is_held=True)
    few, many = submit("a", "b", "c"), submit(*(f"e{i}" for i in range(60)))
    ids = [*(f"{few}_{i}" for i in range(3)), *(f"{many}_{i}" for i in range(60))]
    slurm.forget(f"{few}_1", *(f"{many}_{i}" for i in range(60)))
    answer = source().ask(COMMANDS, ids)
    assert len(answer.rows) == 63
    assert slurm.calls("sacct")[0][-1] == f"--jobs={few}_1,{many}"


def test_no_accounting_is_no_trouble(job_id: str, slurm: FakeSlurm) -> None:
    """The controller's word is enough for what it knows."""
    slurm.configure(has_accounting=False)
    answer = source().ask(COMMANDS, [job_id, "999"])
    assert (answer.is_whole, answer.trouble, sorted(answer.rows)) == (False, "", [job_id])


def test_earlier_runs_of_suspects(job_id: str, slurm: FakeSlurm) -> None:
    """They are told of those that are asked for, and of no other."""
    reply = (
        f"{job_id}|NODE_FAIL|0:0|n7|2026-11-22T11:22:34|2026-11-22T11:22:49|/x|{job_id}\n"
        f"{job_id}|PENDING|0:0|None assigned|Unknown|Unknown|/x|{job_id}\n"
        "998|PREEMPTED|0:0|n8|2026-11-22T11:22:34|2026-11-22T11:22:49|/x|998\n"
        "998|COMPLETED|0:0|n8|2026-11-22T11:23:34|2026-11-22T11:23:49|/x|998\n"
    )
    slurm.fail("sacct", "", status=0, stdout=reply)
    answer = source().ask(COMMANDS, [job_id, "998"], [job_id])
    assert [(row.job_id, row.nodes) for row in answer.earlier] == [(job_id, "n7")]
    assert answer.rows[job_id].state is JobState.PENDING
    assert answer.rows["998"].state is JobState.SUCCEEDED
    assert "--duplicates" in slurm.calls("sacct")[0]
