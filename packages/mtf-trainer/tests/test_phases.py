from __future__ import annotations

import itertools

import pytest

from mtf_trainer.errors import IllegalTransitionError
from mtf_trainer.phases import TRANSITIONS, Phase, check_transition


def test_fifteen_phases_have_rows() -> None:
    """Every phase has a row in the table, and its value is its name."""
    assert len(Phase) == 15
    assert set(TRANSITIONS) == set(Phase)
    assert all(phase.value == phase.name for phase in Phase)


def test_every_phase_is_reached_and_only_the_last_is_an_end() -> None:
    """From the first phase the table leads to all others, and back from each to the end."""
    reached = {Phase.INIT}
    while more := set().union(*(TRANSITIONS[p] for p in reached)) - reached:
        reached |= more

    assert reached == set(Phase)
    assert [p for p in Phase if not TRANSITIONS[p]] == [Phase.TRAINING_COMPLETE]


@pytest.mark.parametrize(("current", "following"), list(itertools.product(Phase, Phase)))
def test_table_decides(current: Phase, following: Phase) -> None:
    """Of all 225 steps, exactly those in the table are accepted."""
    if following in TRANSITIONS[current]:
        check_transition(current, following)
    else:
        with pytest.raises(IllegalTransitionError, match=f"{following} may not follow"):
            check_transition(current, following)
