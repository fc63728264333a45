import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from mtf_trainer.phases import TRANSITIONS


@pytest.fixture
def draw_phases(root: Path) -> dict[str, Any]:
    """Return the names of scripts/draw_phases.py."""
    return runpy.run_path(str(root / "scripts" / "draw_phases.py"))


def test_picture_is_up_to_date(draw_phases: dict[str, Any]) -> None:
    """The committed picture is the one that the script draws now."""
    assert draw_phases["main"](["--check"]) == 0


def test_picture_has_an_arrow_for_each_transition(draw_phases: dict[str, Any]) -> None:
    """No transition is left out, none is made up, and no route is left over."""
    edges = {(a, b) for a, following in TRANSITIONS.items() for b in following}
    drawn = re.findall(r"<title>(\w+) to (\w+)</title></path>", draw_phases["render"]())
    assert sorted(drawn) == sorted(edges)
    assert draw_phases["ROUTES"].keys() <= edges
