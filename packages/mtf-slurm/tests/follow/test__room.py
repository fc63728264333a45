from __future__ import annotations

from mtf_slurm.follow._room import Rooms
from mtf_slurm.follow._schedule_file import Entry


def entries(
    count: int, qos: str = "gpu", after: dict[str, str] | None = None
) -> list[Entry]:
    """Return experiments of a QOS."""
    return [
        Entry(
            experiment_name=f"{qos}{at}",
            values={"slurm": {"qos": qos}},
            after=dict(after or {}),
        )
        for at in range(count)
    ]


def names(found: list[Entry]) -> list[str]:
    """Return the names of experiments."""
    return [entry.experiment_name for entry in found]


def refuse(rooms: Rooms, tried: list[Entry], now_s: float) -> bool:
    """Let there be no room for any."""
    return rooms.note(tried, names(tried), now_s)


def test_half_as_many_go_until_they_are_taken_then_more() -> None:
    """The first refusal is news; all that is chosen goes where there was none."""
    rooms, all_ = Rooms(), entries(10)
    assert rooms.fitting(all_, 0) == all_
    assert refuse(rooms, all_, 0)
    assert rooms.fitting(all_, 0.9) == []
    assert names(rooms.fitting(all_, 1)) == names(all_[:5])
    assert not refuse(rooms, all_[:5], 1)
    assert rooms.fitting(all_, 2) == all_[:2]
    assert not rooms.note(all_[:2], [], 2)
    assert rooms.fitting(all_, 2) == all_[:4]


def test_one_is_tried_less_and_less_often_or_when_a_job_has_ended() -> None:
    """Up to five minutes; when one is taken, soon again."""
    rooms, one = Rooms(), entries(1)
    for wait_s in (1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300):
        refuse(rooms, one, 0)
        assert rooms.fitting(one, wait_s - 0.1) == []
        assert rooms.fitting(one, wait_s) == one
    rooms.look_again()
    assert rooms.fitting(one, 0) == one
    rooms.note(one, [], 0)
    refuse(rooms, one, 0)
    assert rooms.fitting(one, 1) == one


def test_what_has_other_limits_does_not_wait() -> None:
    """But for those that wait for what is held back: Slurm has no job for them to wait for."""
    rooms, full, free = Rooms(), entries(4), entries(4, "cpu")
    refuse(rooms, full, 0)
    assert rooms.fitting([*full, *free], 0) == free
    waiting = entries(1, "cpu", after={"gpu3": "afterok"})
    assert rooms.fitting([*full, *waiting], 1) == full[:2]
    assert refuse(rooms, free, 1)
