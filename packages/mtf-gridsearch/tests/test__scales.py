from __future__ import annotations

import math
from typing import Any

import pytest

from mtf_gridsearch._groups import ABSENT
from mtf_gridsearch._scales import Upright, axis_label, is_wide, safe_text, scale_of


def test_numbers_lie_where_they_are_and_all_else_side_by_side() -> None:
    """Labels stand with numbers first and what is absent last."""
    assert scale_of([1, 2.5]).labels == ()
    assert scale_of([1, 2.5]).place(2.5) == 2.5
    mixed = scale_of(["b", 2, ABSENT, "a", 1, True])
    assert mixed.labels == ("1", "2", "b", "a", "true", "(absent)")
    assert [mixed.place(cell) for cell in (1, True, ABSENT)] == [0.0, 4.0, 5.0]
    assert scale_of([1.0, math.inf]).labels != ()


def test_positive_numbers_far_apart_are_on_a_logarithmic_axis() -> None:
    """Zero, a sign or a narrow range is not."""
    assert scale_of([1e-5, 0.1]).is_log
    assert not scale_of([0.0, 0.1]).is_log
    assert not scale_of([1, 10]).is_log
    assert not is_wide([])
    assert is_wide([math.inf, 1.0, 100.0])


@pytest.mark.parametrize(
    "cells",
    [
        [1e-5, 3e-4, 0.1],
        [10 ** (i / 3) for i in range(-15, 1)],
        [10.0**i for i in range(-40, 41)],
        [-3.0, 0.5, 7.0, 8.0, 9.0, 10.0, 11.0, 12.5],
        [i * 1.7e6 for i in range(50)],
        ["x", "y", ABSENT],
        [3],
    ],
)
def test_an_upright_axis_has_everything_between_0_and_1_with_some_ticks(
    cells: list[Any],
) -> None:
    """Ticks are in order, few, and within the axis as well."""
    scale = Upright.of(cells)
    heights = [scale.place(cell) for cell in cells]
    assert all(-1e-9 <= height <= 1 + 1e-9 for height in heights)
    if len(cells) > 1:
        assert (min(heights), max(heights)) == pytest.approx((0, 1))
    ticks = [height for height, _ in scale.ticks]
    assert 1 <= len(ticks) <= 14
    assert ticks == sorted(ticks)
    assert all(-1e-9 <= height <= 1 + 1e-9 for height in ticks)


def test_one_value_lies_in_the_middle() -> None:
    """There is no range to divide by."""
    assert Upright.of([3]).ticks == ((0.5, "3"),)


def test_labels_say_units_that_names_say() -> None:
    """An ending that is no unit says nothing."""
    assert axis_label("limit_bytes") == "limit_bytes (bytes)"
    assert axis_label("model.type") == "model.type"


def test_text_in_a_picture_is_short_on_one_line_and_no_formula() -> None:
    """A dollar sign would begin one, and could fail to be one."""
    assert safe_text("a\nb\x1b$c$") == r"a b \$c\$"
    assert safe_text("x" * 99, 5) == "xxxx…"
