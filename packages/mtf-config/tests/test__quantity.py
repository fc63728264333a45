import pytest

from mtf_config._quantity import memory_bytes, time_s


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1", 60),
        ("90", 5400),
        ("10:30", 630),
        ("01:00:00", 3600),
        ("00:90:00", 5400),
        ("2-0", 172800),
        ("1-06", 108000),
        ("1-6:30", 109800),
        ("7-23:59:59", 691199),
        ("0-00:00:01", 1),
    ],
)
def test_every_form_of_a_time_has_its_seconds(text: str, seconds: int) -> None:
    """The forms of sbatch's --time mean what its manual says."""
    assert time_s(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "soon", "1h", "-1", "1:", ":30", "1:2:3:4", "1-", "-1:00", "1.5"),
        *("12:00:00\n", " 1", "\uff11\uff12", "+1", "1e3", "UNLIMITED", "9" * 7),
    ],
)
def test_what_is_no_time_is_refused(text: str) -> None:
    """Near misses are refused with the forms that are right."""
    with pytest.raises(ValueError, match=r'write minutes, "HH:MM:SS"'):
        time_s(text)


@pytest.mark.parametrize("text", ["0", "00:00", "00:00:00", "0-0", "0-00:00:00"])
def test_a_time_of_zero_is_refused(text: str) -> None:
    """A limit under which nothing can run is an error, not no limit."""
    with pytest.raises(ValueError, match="end the job at once"):
        time_s(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 2**20),
        ("1K", 2**10),
        ("512M", 2**29),
        ("32G", 2**35),
        ("2T", 2**41),
    ],
)
def test_every_unit_of_memory_has_its_bytes(text: str, size: int) -> None:
    """Units are powers of 1024, and mebibytes where none stands."""
    assert memory_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "0", "0G", "G", "-1G", "1.5G", "32GB", "32 G", "32G\n", "\u0663G", "1e9"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    """Near misses are refused with an example of what is right."""
    with pytest.raises(ValueError, match="32G"):
        memory_bytes(text)
