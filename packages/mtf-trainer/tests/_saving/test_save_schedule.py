from __future__ import annotations

from mtf_trainer._saving.save_schedule import SaveSchedule
from mtf_trainer.config import CheckpointSettings


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_by_epochs() -> None:
    """Every second end of an epoch is due, and nothing inside one is."""
    schedule = SaveSchedule(CheckpointSettings(every_n_epochs=2))

    assert [schedule.due_at_epoch_end(n, 10 * n) for n in (1, 2, 3, 4)] == [
        False,
        True,
        False,
        True,
    ]
    assert not any(schedule.due_at_step(n) for n in range(1, 50))


def test_by_steps() -> None:
    """Every n-th step of the training is due once, wherever a run began."""
    schedule = SaveSchedule(CheckpointSettings(every_n_epochs=None, every_n_steps=10))

    assert [n for n in range(13, 41) if schedule.due_at_step(n)] == [20, 30, 40]
    schedule.saved(40)
    assert not schedule.due_at_step(40)
    assert not schedule.due_at_epoch_end(4, 40)
    assert schedule.due_at_epoch_end(5, 50)


def test_by_minutes() -> None:
    """What counts is the time since the last save, whatever was its reason."""
    clock = Clock()
    schedule = SaveSchedule(
        CheckpointSettings(every_n_epochs=None, every_n_minutes=0.5), clock=clock
    )

    clock.now_s += 29
    assert not schedule.due_at_step(3)
    clock.now_s += 1
    assert schedule.due_at_step(3)
    assert schedule.due_at_epoch_end(1, 3)
    assert schedule.due_by_time()
    assert not schedule.due_at_step(3, by_time=False)
    assert not schedule.due_at_epoch_end(1, 3, by_time=False)
    schedule.saved(3)
    assert not schedule.due_at_step(4)
    clock.now_s += 30
    assert schedule.due_at_step(4)
    assert not schedule.due_at_step(3)


def test_the_end_of_an_epoch_is_more_than_its_last_step() -> None:
    """A save at the last step of an epoch does not stand for one behind its validation."""
    schedule = SaveSchedule(CheckpointSettings(every_n_epochs=1, every_n_steps=5))

    schedule.saved(10)
    assert schedule.due_at_epoch_end(1, 10)
    schedule.saved(10, between_epochs=True)
    assert not schedule.due_at_epoch_end(1, 10)


def test_nothing_is_due_by_nothing() -> None:
    """Without any interval nothing is ever due."""
    schedule = SaveSchedule(CheckpointSettings(every_n_epochs=None))

    assert not schedule.due_by_time()
    assert not schedule.due_at_step(1)
    assert not schedule.due_at_epoch_end(1, 1)
