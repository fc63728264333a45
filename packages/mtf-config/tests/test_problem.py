import pytest

from mtf_config.origin import Origin
from mtf_config.problem import Problem


def test_str_has_place_key_found_and_expected() -> None:
    """One line holds the place, the key, what was found and what would be right."""
    problem = Problem(
        key="a.b", place=Origin("f", 1, 2), message="bad", found="3", expected="write 4"
    )
    assert str(problem) == "f:1:2: a.b: bad, found 3; write 4"


def test_str_leaves_out_what_is_not_known() -> None:
    """Without place, key and values the message stands alone; a warning says it is one."""
    assert str(Problem(key="", place=None, message="bad")) == "bad"
    warning = Problem(key="a", place=None, message="odd", severity="warning")
    assert str(warning) == "warning: a: odd"


@pytest.mark.parametrize(
    ("raw", "shown"),
    [("\x1b[31m", r"\x1b[31m"), ("a\nb", r"a\nb"), ("\udcff", r"\udcff"), ("ü", "ü")],
)
def test_str_is_safe_for_a_terminal(raw: str, shown: str) -> None:
    """A hostile key or file name reaches neither the terminal nor the encoder raw."""
    problem = Problem(key=raw, place=Origin(raw, 1, 1), message=raw)
    assert str(problem) == f"{shown}:1:1: {shown}: {shown}"
    str(problem).encode()


def test_str_is_bounded() -> None:
    """A key of a megabyte does not make a message of a megabyte."""
    assert len(str(Problem(key="k" * 10**6, place=None, message="m" * 10**6))) < 3000
