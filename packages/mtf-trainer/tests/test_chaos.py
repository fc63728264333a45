from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("chaos.py")


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_the_same(
    tmp_path: Path, launch: Callable[..., Any]
) -> None:
    """A dozen SIGKILLs in steps and saves: the bytes are those of runs never killed."""
    (done,) = launch(SCRIPT, "--kills", 12, "--seed", 1, tmp_path)

    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["kills"] == 12
    assert told["wrong"] == []
    assert told["runs"] >= 1
