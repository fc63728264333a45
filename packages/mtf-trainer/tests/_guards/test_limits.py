from __future__ import annotations

import warnings

import pytest

from mtf_trainer._guards.limits import Deadline
from mtf_trainer.config import Limits

NOW = 1_800_000_000.0
GIB = 2**30


class Clock:
    """A clock that stands still unless it is moved."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        """Return the time."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Seconds since some moment."""
    return Clock(5000.0)


def deadline(
    clock: Clock, limits: Limits, environ: dict[str, str] | None = None, used: int = 0
) -> Deadline:
    """Return one that began now, in a process that uses *used* bytes."""
    return Deadline(limits, environ or {}, clock, lambda: NOW, lambda: used)


def test_without_limits_it_is_never_reached(clock: Clock) -> None:
    """No limit and no job: a run may go on for ever."""
    limit = deadline(clock, Limits(), used=2**60)
    clock.now += 1e12

    assert not limit.reached(expected_save_s=1e9)
    assert limit.reason == ""


def test_time_of_the_call(clock: Clock) -> None:
    """At max_time_s, not before, it is reached, in words."""
    limit = deadline(clock, Limits(max_time_s=3600))

    clock.now += 3599.9
    assert not limit.reached(expected_save_s=100.0)
    clock.now += 0.1
    assert limit.reached()
    assert limit.reason == "max_time_s is reached: 1:00:00"


def test_once_reached_it_stays_reached(clock: Clock) -> None:
    """A limit that was told is not taken back, though a save turns out to be quicker."""
    limit = deadline(clock, Limits(end_time=NOW + 100, grace_s=0))
    assert limit.reached(expected_save_s=200.0)
    reason = limit.reason

    assert limit.reached(expected_save_s=0.0)
    assert limit.reason == reason


def test_the_end_of_a_job_leaves_time_to_save(clock: Clock) -> None:
    """It is reached early enough for the grace and a save as measured."""
    limit = deadline(clock, Limits(end_time=NOW + 1000, grace_s=30))

    clock.now += 957.9
    assert not limit.reached(expected_save_s=12.0)
    clock.now += 0.1
    assert limit.reached(expected_save_s=12.0)
    assert limit.reason == (
        "the job ends at 2027-01-15T08:16:40+00:00 (end_time), 30 s are kept free, and a "
        "save takes 0:12"
    )


def test_the_end_of_a_slurm_job_is_known(clock: Clock) -> None:
    """What Slurm says is used, and named in the reason."""
    environ = {"SLURM_JOB_END_TIME": str(int(NOW) + 1000)}
    limit = deadline(clock, Limits(), environ)

    clock.now += 969.9
    assert not limit.reached()
    clock.now += 0.2
    assert limit.reached()
    assert "(SLURM_JOB_END_TIME)" in limit.reason


def test_a_configured_end_outdoes_that_of_the_environment(clock: Clock) -> None:
    """With end_time the variable is not even looked at."""
    environ = {"SLURM_JOB_END_TIME": "nonsense"}
    limit = deadline(clock, Limits(end_time=NOW + 1000), environ)

    assert not limit.reached()


def test_a_configured_end_that_is_over_counts(clock: Clock) -> None:
    """Whoever configures a moment in the past stops at once."""
    assert deadline(clock, Limits(end_time=NOW - 5)).reached()


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "abc", "Unknown", "UNLIMITED", "nan", "inf", "-1", "+1900000000"),
        *("1900000000 ", "1900000000\n", "1.9e9", "0x7fffffff", "1_900_000_000"),
        *(
            "\uff19" * 10,
            "9" * 400,
            "1900000000; rm -rf ~",
            "\x1b[31m1900000000",
        ),
    ],
)
def test_a_hostile_end_of_job_is_refused(clock: Clock, text: str) -> None:
    """What is no plain number is a warning without raw text, and counts for nothing."""
    with pytest.warns(UserWarning, match="is no number of seconds since 1970") as told:
        limit = deadline(clock, Limits(), {"SLURM_JOB_END_TIME": text})

    clock.now += 1e12
    assert not limit.reached()
    message = str(told[0].message)
    assert message.isprintable()
    assert message.isascii()
    assert len(message) < 500


@pytest.mark.parametrize("text", ["0", "1799999999", "1800000000"])
def test_an_end_of_job_that_is_over_is_refused(clock: Clock, text: str) -> None:
    """A variable left over from another job does not stop this run."""
    with pytest.warns(UserWarning, match="is over already"):
        limit = deadline(clock, Limits(), {"SLURM_JOB_END_TIME": text})

    assert not limit.reached()


def test_a_moment_beyond_all_calendars_is_told_in_seconds(clock: Clock) -> None:
    """An end that no date can name is still one."""
    limit = deadline(clock, Limits(end_time=1e18))
    clock.now += 1e18

    assert limit.reached()
    assert "1e+18 s after 1970" in limit.reason


def test_memory_is_a_limit(clock: Clock) -> None:
    """At max_memory_bytes it is reached, in words."""
    limits = Limits(max_memory_bytes=2 * GIB)

    assert not deadline(clock, limits, used=2 * GIB - 1).reached()
    limit = deadline(clock, limits, used=3 * GIB)
    assert limit.reached()
    assert limit.reason == (
        "max_memory_bytes is reached: this process uses 3.00 GiB of 2.00 GiB"
    )


def test_start_without_memory_is_refused(clock: Clock) -> None:
    """What is used and what is allowed is told; where it is not known, nothing is."""
    limits = Limits(max_memory_bytes=2 * GIB)
    deadline(clock, limits, used=2 * GIB - 1).refuse_start()
    deadline(clock, Limits(), used=2 * GIB).refuse_start()
    Deadline(limits, {}, memory=lambda: None).refuse_start()

    with pytest.raises(
        ValueError, match=r"allows 2048 MiB \(2147483648 bytes\), .* uses 3072 MiB before"
    ):
        deadline(clock, limits, used=3 * GIB).refuse_start()


def test_memory_is_looked_at_once_a_second(clock: Clock) -> None:
    """Asking at each step costs a look at the clock, not at the system."""
    looks = []

    def memory() -> None:
        looks.append(clock.now)

    limits = Limits(max_memory_bytes=GIB)
    limit = Deadline(limits, {}, clock, lambda: NOW, memory)
    for _ in range(25):
        assert not limit.reached()
        clock.now += 0.125

    assert looks == [5000.0, 5001.0, 5002.0, 5003.0]


def test_the_real_clocks_and_memory_are_the_defaults() -> None:
    """Without stand-ins, a run just begun is within its time and above one byte."""
    with warnings.catch_warnings(action="error"):
        assert not Deadline(Limits(max_time_s=1000), {}).reached()
        assert Deadline(Limits(max_memory_bytes=1), {}).reached()
